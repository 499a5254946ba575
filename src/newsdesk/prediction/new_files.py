"""Files of a folder that are new, or changed, and do not change any more: by looking, as shares need it."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from math import inf
from pathlib import Path

from newsdesk.prediction.watch_journal import Journal, Stamp

_UNFINISHED = (".part", ".partial", ".filepart", ".crdownload", ".tmp", ".temp", ".swp", "~")
_IDLE_SHARE, _BUSY_SHARE = 1 / 300, 1 / 10  # of the time that looking at all files may take
_OF_ONE_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM}
_QUIET_AFTER = 3.0  # seconds within which a folder's time of change may not tell of another change


class NewFiles:
    """Finds files that are new, or changed, and do not change any more.

    All files are looked at when a folder's time of change says that there may be others, and now and then
    for those that changed in place: so rarely that it takes a third of a per cent of the time.
    """

    def __init__(self, folder: Path, journal: Journal, tried_as: str, settle: float) -> None:
        self.folder, self.pending = folder, dict[str, tuple[Stamp, float]]()
        self._journal, self._tried_as, self._settle = journal, tried_as, settle
        self._folders: dict[Path, int] = {}
        self._soonest = self._latest = self._quiet_from = 0.0

    def ready(self) -> list[tuple[str, Stamp]]:
        """Files to be taken, the oldest first. Raises OSError where the folder cannot be looked at."""
        now = time.monotonic()
        if self._is_due(now):
            found = self._new_files(now)
        else:
            found = {name: stamp for name in self.pending if (stamp := self.stamp(name)) is not None}
        before = self.pending
        self.pending = {
            name: before[name] if name in before and before[name][0] == stamp else (stamp, now)
            for name, stamp in found.items()
        }
        settled = [
            (name, stamp) for name, (stamp, since) in self.pending.items() if now - since >= self._settle
        ]
        return sorted(settled, key=lambda each: (each[1].changed, each[0]))

    def settled_in(self) -> float:
        """Seconds until the first of the files that are waited for may be taken; without one infinity."""
        now = time.monotonic()
        return max(0.0, min((since + self._settle - now for _, since in self.pending.values()), default=inf))

    def stamp(self, name: str) -> Stamp | None:
        """A file's stamp; None where it is gone."""
        try:
            return _stamp_of(os.lstat(self.folder / name))
        except (FileNotFoundError, NotADirectoryError):
            self.folder.stat()  # or is it the folder that has gone?
            return None

    def names(self) -> set[str]:
        """The names of all files. Raises OSError where the folder cannot be looked at."""
        self._latest = 0.0
        return {name for name, _ in self._files()}

    def _is_due(self, now: float) -> bool:
        if now >= self._latest or now < self._soonest:
            return now >= self._latest
        return now < self._quiet_from or self._has_changed()

    def _has_changed(self) -> bool:
        with suppress(FileNotFoundError):
            return any(folder.stat().st_mtime_ns != changed for folder, changed in self._folders.items())
        return True

    def _new_files(self, now: float) -> dict[str, Stamp]:
        before, found, known = self._folders, dict[str, Stamp](), self._journal.known
        self._latest = 0.0  # should it fail
        for name, stamp in self._files():
            handled = known.get(name)
            if handled is None or handled.stamp != stamp or handled.tried_as not in (None, self._tried_as):
                found[name] = stamp
        took = time.monotonic() - now
        self._soonest, self._latest = now + took / _BUSY_SHARE, now + took / _IDLE_SHARE
        if self._folders != before:
            self._quiet_from = now + _QUIET_AFTER
        return found

    def _files(self) -> Iterator[tuple[str, Stamp]]:
        """Name and stamp of each file, and of folders that may not be read, to be told of as of files."""
        self._folders = {}
        waiting = [""]
        while waiting:
            prefix = waiting.pop()
            try:
                files, folders = self._inside(prefix)
            except OSError as error:
                if not prefix or error.errno not in _OF_ONE_FOLDER:
                    raise
                if isinstance(error, PermissionError) and (stamp := self.stamp(prefix[:-1])) is not None:
                    yield prefix[:-1], stamp
                continue
            waiting += folders
            yield from files

    def _inside(self, prefix: str) -> tuple[list[tuple[str, Stamp]], list[str]]:
        """The files in a folder, and the folders, each with the slash at its end."""
        folder = self.folder / prefix
        changed = folder.stat().st_mtime_ns
        files, folders = [], []
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or name.lower().endswith(_UNFINISHED):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{prefix}{name}/")
                    continue
                with suppress(FileNotFoundError):
                    files.append((prefix + name, _stamp_of(entry.stat(follow_symlinks=False))))
        self._folders[folder] = changed
        return files, folders


def _stamp_of(status: os.stat_result) -> Stamp:
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device changes without end
        return Stamp(0, 0, max(0, status.st_ctime_ns))
    return Stamp(status.st_size, max(0, status.st_mtime_ns), max(0, status.st_ctime_ns))
