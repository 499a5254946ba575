"""Sources of files, what they have in common, and the Hugging Face Hub; every file is checked.

HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN count as they do everywhere. One request lists a repository with the
size and hash of each file, so a Hub that cannot be reached is known within seconds and without retries, and
what it sends afterwards is held to what it said.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import math
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol
from urllib.parse import quote

from newsdesk import __version__
from newsdesk.errors import UserError, first_line, listed
from newsdesk.files import LARGEST_JSON, is_disk_full, parsed_json, sha256_of
from newsdesk.hub import transfer
from newsdesk.hub.transfer import (
    RefusedError,
    TransferError,
    Watch,
    WrongSizeError,
    download,
    read_answer,
    watched,
)
from newsdesk.progress import Progress
from newsdesk.stored import KEY, from_content

DISK_LOCKED = (errno.EACCES, errno.EPERM, errno.EROFS)
_LARGEST_LISTING = 16 << 20  # bytes; 50,000 files
_MOST_FILES = 200
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][\w.-]*(/[A-Za-z0-9_-][\w.-]*)*", re.ASCII)
_SHA256_DIGITS = 64
_GIT_DIGITS = 40
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


class SourceUnavailableError(UserError):
    """This source does not give the files (unreachable, offline, not found); another one still may."""


@dataclass(frozen=True)
class _Large:
    """A file in large file storage."""

    sha256: str


@dataclass(frozen=True)
class _Listed:
    """A file as the Hub lists it."""

    name: str = field(metadata={KEY: "rfilename"})
    size: int | None = None
    git_hash: str | None = field(default=None, metadata={KEY: "blobId"})
    lfs: _Large | None = None


@dataclass(frozen=True)
class _Listing:
    """A repository as the Hub describes it."""

    siblings: tuple[_Listed, ...]
    sha: str | None = None
    tags: tuple[str, ...] | None = None


class Source(Protocol):
    """A place that files can be fetched from."""

    @property
    def origin(self) -> Origin:
        """Its kind."""

    def fetch(self, into: Path, progress: Progress) -> Fetched:
        """Fetch its files into an empty folder; raises SourceUnavailableError where it does not give them."""


@dataclass(frozen=True)
class HubSource:
    """A repository of the Hub.

    Attributes:
        repo_id: ``organisation/name``.
        wanted: patterns of the files to take; ``*`` does not reach into subfolders.
        kind: the kind of repository.
        pins: sha256 of the files whose bytes we know.
        accept: called with the repository's name and all its file names; raises UserError to refuse it.
        most_bytes: of all files together.
    """

    origin: ClassVar[Origin] = "hub"

    repo_id: str
    wanted: tuple[str, ...]
    kind: Literal["model", "dataset"] = "model"
    pins: Mapping[str, str] = field(default_factory=dict)
    accept: Callable[[str, Collection[str]], None] | None = None
    most_bytes: int = 16 << 30

    def fetch(self, into: Path, progress: Progress) -> Fetched:
        """Download the wanted files of the repository's main branch, and check their bytes.

        Each is checked against its pin, where there is one, and the hash that the Hub states. Where the Hub
        cannot be asked, a copy in the Hub client's own cache serves as well. Raises SourceUnavailableError
        when neither gives the files, and UserError for wrong bytes or a repository without what newsdesk
        needs: wrong bytes are never answered by asking elsewhere.
        """
        try:
            from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # noqa: F401
        except ValueError as error:  # it reads its settings as it is imported
            raise SourceUnavailableError(
                f"the Hub was not asked for {self.repo_id}",
                found=first_line(error),
                fix="correct the environment variables whose names begin with HF_",
            ) from error
        try:
            with self._explained():
                listing = self._listing(progress)
        except SourceUnavailableError:
            if (copied := self._from_clients_cache(into)) is None:
                raise
            return copied
        siblings = {sibling.name: sibling for sibling in listing.siblings}
        chosen = {name: siblings[name] for name in self._choose(siblings)}
        self._download(chosen, listing.sha, into, progress)
        files = {}
        for name, facts in chosen.items():
            # Large file storage knows sha256; git knows its own hash.
            files[name] = self._checked(into, name, facts.lfs.sha256 if facts.lfs else facts.git_hash)
        tags = (tag for tag in listing.tags or () if tag.startswith("license:"))
        return Fetched(files, listing.sha, next((tag.removeprefix("license:") for tag in tags), None))

    def _listing(self, progress: Progress) -> _Listing:
        from huggingface_hub import constants

        url = f"{constants.ENDPOINT}/api/{self.kind}s/{self.repo_id}?blobs=true"
        content = watched(
            lambda watch: read_answer(url, self._headers(), watch, most=_LARGEST_LISTING),
            f"asking the Hub for {self.repo_id}",
            progress,
            stall=_seconds("HF_HUB_ETAG_TIMEOUT", transfer.ANSWER_SECONDS),
        )
        try:
            return from_content(_Listing, parsed_json(content))
        except ValueError as error:
            raise TransferError(f"it does not list the repository's files: {error!s:.200}") from None

    def _headers(self) -> dict[str, str]:
        """Of each request: the token, if there is one. Raises for what is no Hub id, and when offline."""
        from huggingface_hub import constants, get_token
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        validate_repo_id(self.repo_id)
        if constants.HF_HUB_OFFLINE:
            raise TransferError("offline")
        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        return {"User-Agent": f"newsdesk/{__version__}"} | (
            {"Authorization": f"Bearer {token}"} if token else {}
        )

    def _choose(self, names: Collection[str]) -> list[str]:
        """The wanted ones of the repository's files. Raises UserError when it does not have them."""
        names = [name for name in names if _PLAIN_NAME.fullmatch(name)]
        if self.accept is not None:
            self.accept(f"{self.repo_id} on the Hub", names)
        chosen = [name for name in sorted(names) if any(_matches(name, pattern) for pattern in self.wanted)]
        for pattern in self.wanted:
            if "*" not in pattern and self.accept is None and pattern not in chosen:
                raise UserError(
                    f"{self.repo_id} on the Hub holds no {pattern}",
                    found=listed(sorted(names), 5) or "an empty repository",
                    fix="check the name, or that HF_ENDPOINT points to a complete mirror",
                )
        return chosen

    def _download(
        self, files: Mapping[str, _Listed], revision: str | None, into: Path, progress: Progress
    ) -> None:
        from huggingface_hub import constants

        sizes = [facts.size for facts in files.values()]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        self._require_moderate(files, total or 0, into)
        place = f"{constants.ENDPOINT}/{'datasets/' * (self.kind == 'dataset')}{self.repo_id}/resolve"

        def fetch_all(watch: Watch) -> None:
            for name, facts in files.items():
                url = f"{place}/{quote(revision or 'main', safe='')}/{quote(name)}"
                try:
                    download(url, self._headers(), into / name, facts.size, watch)
                except WrongSizeError as error:
                    raise altered(name, self._name, str(error)) from None

        with self._explained():
            watched(
                fetch_all,
                f"downloading {self.repo_id} from the Hub",
                progress,
                stall=_seconds("HF_HUB_DOWNLOAD_TIMEOUT", transfer.STALL_SECONDS),
                folder=into,
                total=total,
                most=self.most_bytes,
            )

    def _require_moderate(self, files: Mapping[str, _Listed], total: int, into: Path) -> None:
        """Raise UserError for more than a model needs, and OSError for more than the disk can hold."""
        large = [name for name, facts in files.items() if _is_text(name) and (facts.size or 0) > LARGEST_JSON]
        vague = [n for n, facts in files.items() if facts.size is None and not (facts.lfs or facts.git_hash)]
        wrong = f"{vague[0]:.80} without a size and a hash" if vague else ""
        if len(files) > _MOST_FILES:
            wrong = f"{len(files):,} files, where {_MOST_FILES} are the most"
        elif large:
            wrong = f"{large[0]:.80} of {files[large[0]].size:,} bytes, where {LARGEST_JSON:,} are the most"
        elif total > self.most_bytes:
            wrong = f"{total:,} bytes, where {self.most_bytes:,} are the most"
        if wrong:
            fix = "name another repository, or fetch it by other means and give its folder"
            raise UserError(f"{self._name} holds more than newsdesk fetches", found=wrong, fix=fix)
        if total > shutil.disk_usage(into).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(into))

    def _from_clients_cache(self, into: Path) -> Fetched | None:
        """Copies out of the newest snapshot that the Hub client has of all wanted files, if there is one."""
        from huggingface_hub import snapshot_download

        try:
            with self._explained():
                snapshot = Path(
                    snapshot_download(
                        self.repo_id,
                        repo_type=self.kind,
                        allow_patterns=list(self.wanted),
                        local_files_only=True,
                    )
                )
            every = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
            names = self._choose(every)
        except UserError:
            return None
        files = {}
        for name in names:
            blob = (snapshot / name).resolve()  # the client names a blob by its hash
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(blob, into / name)
            files[name] = self._checked(into, name, blob.name)
        return Fetched(files, revision=snapshot.name)

    def _checked(self, into: Path, name: str, stated: str | None) -> str:
        return checked(into / name, (self.pins.get(name), stated), self._name)

    @property
    def _name(self) -> str:
        return f"the Hub ({self.repo_id})"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn whatever the Hub client raises into a sentence; a full disk is the cache's to explain.

        The client's exceptions come from whichever HTTP library its version uses, so any may arrive here;
        the original stays attached as the cause.
        """
        try:
            yield
        except Exception as error:
            if is_disk_full(error) or (isinstance(error, OSError) and error.errno in DISK_LOCKED):
                raise
            if isinstance(error, UserError):
                raise
            raise _hub_failure(self.repo_id, self.kind, error) from error


def _hub_failure(repo_id: str, kind: str, error: Exception) -> SourceUnavailableError:
    """What an exception of the Hub client means to the person who named the repository."""
    from huggingface_hub import constants, errors

    refused = error if isinstance(error, RefusedError) else None
    status, code = (refused.status, refused.code) if refused else (None, None)
    found = f"{constants.ENDPOINT}: {first_line(error)}"
    if constants.HF_HUB_OFFLINE:
        wrong, found = f"the Hub was not asked for {repo_id}", "HF_HUB_OFFLINE is set"
        fix = "unset HF_HUB_OFFLINE"
    elif code == "GatedRepo":
        wrong = f"{repo_id} is a gated {kind}"
        fix = f"accept its terms at {constants.ENDPOINT}/{repo_id} and set HF_TOKEN"
    elif code == "RepoNotFound":
        wrong = f"the Hub has no {kind} {repo_id}, or it is private"
        fix = "check the spelling, and for a private one set HF_TOKEN"
    elif isinstance(error, errors.HFValidationError):
        wrong, found = f"{repo_id} is not a Hub id", str(error)
        fix = "write organisation/name"
    elif status in (401, 403):
        wrong = f"the Hub refuses access to {repo_id}"
        fix = "check HF_TOKEN, or unset it for a public repository"
    elif status == 429:
        wrong = f"the Hub answers no more questions for now, so {repo_id} was not fetched"
        fix = "try again later, set HF_TOKEN, which may ask more, or point HF_ENDPOINT to a mirror"
    elif isinstance(error, TransferError):
        wrong = f"the Hub failed to give {repo_id}"
        fix = "try again later, or point HF_ENDPOINT to a mirror (HF_HUB_OFFLINE=1 skips the Hub)"
    else:
        reason = first_line(error.__cause__ or error) or type(error).__name__
        wrong = f"the Hub could not be reached for {repo_id}, or the download broke off"
        found = f"{constants.ENDPOINT}: {reason}"
        fix = "check the network, or point HF_ENDPOINT to a mirror (HF_HUB_OFFLINE=1 skips the Hub)"
    return SourceUnavailableError(wrong, found=found, fix=fix)


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern names the file; unlike fnmatch alone, ``*`` stays within one folder.

    Nothing but plain names is matched: no ``..``, no drive, no byte that a file system takes for another.
    """
    plain = _PLAIN_NAME.fullmatch(name) and name.count("/") == pattern.count("/")
    return bool(plain) and fnmatch.fnmatchcase(name, pattern)


def _is_text(name: str) -> bool:
    return name.endswith((".json", ".txt"))


def _seconds(variable: str, usual: float) -> float:
    """What an environment variable of the Hub's client says, if it says a number above 0."""
    try:
        stated = float(os.environ.get(variable) or usual)
    except ValueError:
        return usual
    return stated if 0 < stated < math.inf else usual


def checked(path: Path, expected: Iterable[str | None], origin: str) -> str:
    """The sha256 of a file. Raises UserError, and deletes it, where an expected hash is another.

    A hash of 64 digits is a sha256, one of 40 git's own; anything else states nothing.
    """
    sha256 = sha256_of(path)
    for stated in filter(None, expected):
        if len(stated) not in (_SHA256_DIGITS, _GIT_DIGITS):
            continue
        found = sha256 if len(stated) == _SHA256_DIGITS else _git_hash_of(path)
        if found != stated:
            path.unlink()
            raise altered(path.name, origin, f"its sha256 or git hash is {found}, expected {stated}")
    return sha256


def altered(name: str, origin: str, found: str) -> UserError:
    """The error for a file whose bytes are not those that were stated."""
    return UserError(
        f"{name} from {origin} is not the file it should be",
        found=f"{found}; the file was deleted",
        fix="try again; if it stays so, that source, or a mirror or proxy before it, serves altered files",
    )


def _git_hash_of(path: Path) -> str:
    """The git blob hash: sha1 over a header with the size, and the bytes."""
    content = path.read_bytes()  # files outside large file storage are at most 10 MB
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
