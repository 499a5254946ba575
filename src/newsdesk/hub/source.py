"""What every source of files has in common: its interface, how it reports progress, how it fails."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from newsdesk.errors import UserError
from newsdesk.progress import Progress

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK_LOCKED = (errno.EACCES, errno.EPERM, errno.EROFS)
_DISK_FULL_SIGNS = ("No space left on device", "Disk quota exceeded", "File too large")
_CHUNK = 1 << 20
_REPORT_SECONDS = 0.25

Origin = Literal["hub", "pypi"]


@dataclass(frozen=True)
class Fetched:
    """What a source delivered.

    Attributes:
        files: sha256 of every delivered file by its path relative to the folder, all of them verified.
        revision: the commit or package version they belong to, where the source names one.
        licence: the licence that the source states, if it states one.
    """

    files: Mapping[str, str]
    revision: str | None = None
    licence: str | None = None


class Source(Protocol):
    """A place that files can be fetched from."""

    @property
    def origin(self) -> Origin:
        """Which kind of place this is."""
        ...

    def fetch(self, into: Path, progress: Progress) -> Fetched:
        """Put the verified files into the empty folder ``into``.

        Raises SourceUnavailableError when another source may be asked instead, and UserError when not: wrong
        bytes are never answered by asking elsewhere.
        """
        ...


class SourceUnavailableError(UserError):
    """This source does not give the files (unreachable, offline, not found); another one still may."""


def tells_of_full_disk(message: str) -> bool:
    """Whether an error that reached us only as text means that there was no space to write."""
    return any(sign in message for sign in _DISK_FULL_SIGNS)


def wrong_bytes(file: str, *, expected: str, found: str, origin: str) -> UserError:
    """The error for a file whose bytes are not the expected ones; the caller has deleted the file."""
    return UserError(
        f"{file} from {origin} is not the file it should be",
        found=f"its sha256 or git hash is {found}, expected {expected}; the file was deleted",
        fix="try again; if it stays so, that source, or a mirror or proxy before it, serves altered files",
    )


def copy_verified(stream: BinaryIO, target: Path, expected: str, *, origin: str) -> None:
    """Copy ``stream`` to ``target``; deletes it and raises UserError when its sha256 is not ``expected``."""
    digest = hashlib.sha256()
    with target.open("wb") as copy:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            copy.write(chunk)
    if digest.hexdigest() != expected:
        target.unlink()
        raise wrong_bytes(target.name, expected=expected, found=digest.hexdigest(), origin=origin)


@contextmanager
def reporting_growth(folder: Path, total: int | None, what: str, progress: Progress) -> Iterator[None]:
    """Report the size of ``folder`` while the block runs: a measure that holds for pip and any Hub client."""
    finished = threading.Event()

    def report() -> None:
        largest = 0
        while not finished.wait(_REPORT_SECONDS):
            largest = max(largest, _size_of(folder))
            progress(largest if total is None else min(largest, total), total, what)

    progress(0, total, what)
    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        finished.set()
        reporter.join()
    progress(_size_of(folder) if total is None else total, total, what)


def _size_of(folder: Path) -> int:
    """The bytes of all files below ``folder``; files that vanish meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):  # unlike rglob, it bears folders that vanish under it
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_size
    return total
