"""The Hugging Face Hub as a source: HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN count as they do everywhere.

One request lists the repository with the hash of each file; a Hub that cannot be reached is known after it,
within seconds and without retries. Every file is then checked against the pinned sha256 where we have one,
and always against the hash that the Hub itself states.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from newsdesk.errors import UserError
from newsdesk.files import sha256_of
from newsdesk.hub.source import (
    DISK_FULL,
    DISK_LOCKED,
    Fetched,
    Origin,
    SourceUnavailableError,
    reporting_growth,
    tells_of_full_disk,
    wrong_bytes,
)
from newsdesk.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo
    from huggingface_hub.hf_api import RepoSibling

_LISTING_SECONDS = 5.0
_SHA256_DIGITS = 64
_GIT_DIGITS = 40


@dataclass(frozen=True)
class HubSource:
    """A repository of the Hub.

    Attributes:
        repo_id: ``organisation/name``.
        wanted: patterns of the files to take; ``*`` does not reach into subfolders.
        kind: the kind of repository.
        pins: sha256 of the files whose bytes we know.
        accept: called with the repository's name and all its file names; raises UserError to refuse it.
    """

    repo_id: str
    wanted: tuple[str, ...]
    kind: Literal["model", "dataset"] = "model"
    pins: Mapping[str, str] = field(default_factory=dict)
    accept: Callable[[str, Collection[str]], None] | None = None

    @property
    def origin(self) -> Origin:
        """Always ``hub``."""
        return "hub"

    def fetch(self, into: Path, progress: Progress) -> Fetched:
        """Download the wanted files of the repository's main branch, and check their bytes.

        Where the Hub cannot be asked, a copy in the Hub client's own cache serves as well. Raises
        SourceUnavailableError when neither gives the files, and UserError for wrong bytes or a repository
        without what newsdesk needs.
        """
        try:
            with self._explained():
                listing = self._listing(progress)
        except SourceUnavailableError as unavailable:
            if (snapshot := self._snapshot_of_client()) is None:
                raise unavailable
            return self._copy(snapshot, into)
        siblings = {sibling.rfilename: sibling for sibling in listing.siblings or ()}
        names = self._choose(siblings)
        self._download([siblings[name] for name in names], listing.sha, into, progress)
        files = {name: self._checked(into / name, name, _stated_hash(siblings[name])) for name in names}
        return Fetched(files, revision=listing.sha, licence=_licence(listing.tags or ()))

    def _listing(self, progress: Progress) -> ModelInfo | DatasetInfo:
        from huggingface_hub import HfApi

        progress(0, None, f"asking the Hub for {self.repo_id}")
        timeout = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or _LISTING_SECONDS)
        ask = HfApi().dataset_info if self.kind == "dataset" else HfApi().model_info
        return ask(self.repo_id, files_metadata=True, timeout=timeout)

    def _choose(self, names: Collection[str]) -> list[str]:
        """The wanted ones of the repository's files. Raises UserError when it does not have them."""
        if self.accept is not None:
            self.accept(f"{self.repo_id} on the Hub", names)
        chosen = [name for name in sorted(names) if any(_matches(name, pattern) for pattern in self.wanted)]
        for pattern in self.wanted:
            if "*" not in pattern and self.accept is None and pattern not in chosen:
                raise UserError(
                    f"{self.repo_id} on the Hub holds no {pattern}",
                    found=", ".join(sorted(names)[:5]) or "an empty repository",
                    fix="check the name, or that HF_ENDPOINT points to a complete mirror",
                )
        return chosen

    def _download(
        self, siblings: list[RepoSibling], revision: str | None, into: Path, progress: Progress
    ) -> None:
        from huggingface_hub import hf_hub_download

        sizes = [sibling.size for sibling in siblings]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        what = f"downloading {self.repo_id} from the Hub"
        with reporting_growth(into, total, what, progress), without_progress_bars(), self._explained():
            for sibling in siblings:
                hf_hub_download(
                    self.repo_id, sibling.rfilename, repo_type=self.kind, revision=revision, local_dir=into
                )
        shutil.rmtree(into / ".cache", ignore_errors=True)  # the client's notes about the download

    def _snapshot_of_client(self) -> Path | None:
        """The newest snapshot in the Hub client's own cache that holds all wanted files, if there is one."""
        from huggingface_hub import snapshot_download

        try:
            with self._explained():
                found = snapshot_download(
                    self.repo_id, repo_type=self.kind, allow_patterns=list(self.wanted), local_files_only=True
                )
            self._choose(_names_below(Path(found)))
        except UserError:
            return None
        return Path(found)

    def _copy(self, snapshot: Path, into: Path) -> Fetched:
        files = {}
        for name in self._choose(_names_below(snapshot)):
            blob = (snapshot / name).resolve()  # the client names a blob by its hash
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(blob, into / name)
            files[name] = self._checked(into / name, name, blob.name)
        return Fetched(files, revision=snapshot.name)

    def _checked(self, path: Path, name: str, stated: str | None) -> str:
        """The sha256 of a file. Raises UserError, and deletes it, where a pin or the stated hash differs."""
        sha256 = sha256_of(path)
        found_by_length = {_SHA256_DIGITS: sha256}
        if stated is not None and len(stated) == _GIT_DIGITS:
            found_by_length[_GIT_DIGITS] = _git_hash_of(path)
        for expected in (self.pins.get(name), stated):
            found = found_by_length.get(len(expected or ""))
            if found is not None and found != expected:
                path.unlink()
                raise wrong_bytes(
                    name, expected=str(expected), found=found, origin=f"the Hub ({self.repo_id})"
                )
        return sha256

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn whatever the Hub client raises into a sentence; a full disk is the cache's to explain.

        The client's exceptions come from whichever HTTP library its version uses, so any may arrive here;
        the original stays attached as the cause.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL + DISK_LOCKED:
                raise
            if tells_of_full_disk(str(error)):  # the client's own transfer library knows no errno
                raise OSError(errno.ENOSPC, str(error)) from error
            raise _unavailable(self.repo_id, self.kind, error) from error


def _unavailable(repo_id: str, kind: str, error: Exception) -> SourceUnavailableError:
    """What an exception of the Hub client means to the person who named the repository."""
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    found = f"{constants.ENDPOINT} answered {status}"
    if constants.HF_HUB_OFFLINE:
        wrong, found = f"the Hub was not asked for {repo_id}", "HF_HUB_OFFLINE is set"
        fix = "unset HF_HUB_OFFLINE"
    elif isinstance(error, errors.GatedRepoError):
        wrong = f"{repo_id} is a gated {kind}"
        fix = f"accept its terms at {constants.ENDPOINT}/{repo_id} and set HF_TOKEN"
    elif isinstance(error, errors.RepositoryNotFoundError):
        wrong = f"the Hub has no {kind} {repo_id}, or it is private"
        fix = "check the spelling, and for a private one set HF_TOKEN"
    elif isinstance(error, errors.HFValidationError):
        wrong, found = f"{repo_id} is not a Hub id", str(error)
        fix = "write organisation/name"
    elif status in (401, 403):
        wrong = f"the Hub refuses access to {repo_id}"
        fix = "check HF_TOKEN, or unset it for a public repository"
    elif status is not None:
        wrong = f"the Hub failed to give {repo_id}"
        fix = "try again later, or point HF_ENDPOINT to a mirror"
    else:
        reason = str(error.__cause__ or error).strip().partition("\n")[0] or type(error).__name__
        wrong = f"the Hub could not be reached for {repo_id}, or the download broke off"
        found = f"{constants.ENDPOINT}: {reason}"
        fix = "check the network, or point HF_ENDPOINT to a mirror (HF_HUB_OFFLINE=1 skips the Hub)"
    return SourceUnavailableError(wrong, found=found, fix=fix)


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern names the file; unlike fnmatch alone, ``*`` stays within one folder."""
    return name.count("/") == pattern.count("/") and "\\" not in name and fnmatch.fnmatchcase(name, pattern)


def _names_below(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _stated_hash(sibling: RepoSibling) -> str | None:
    """What the Hub says of a file: its sha256 where it lies in large file storage, else its git blob hash."""
    return sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id


def _git_hash_of(path: Path) -> str:
    """The git blob hash: sha1 over a header with the size, and the bytes."""
    content = path.read_bytes()  # files outside large file storage are at most 10 MB
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _licence(tags: Iterable[str]) -> str | None:
    return next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), None)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep the Hub client's own bars off the terminal: progress is the command line's to show."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
