"""The journal of a watched folder: what became of which file, on the disk before anybody sees an output."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import NamedTuple

from newsdesk.errors import UserError
from newsdesk.files import (
    LONGEST_LINE,
    atomic_writer,
    cut_to_whole_lines,
    damaged,
    held_alone,
    open_regular,
    parsed_json,
    require_no_links_out,
)
from newsdesk.stored import (
    CURRENT,
    FORMAT,
    OPTIONAL,
    UNSAID,
    WrongContentError,
    from_content,
    to_content,
    with_format,
)

HOME = ".newsdesk"
"""The folder, in the output folder, of the journal and of what is not finished yet."""
JOURNAL = "journal.jsonl"

_SHA256 = re.compile("[0-9a-f]{64}|")
_DAY = 86_400
_FORGOTTEN_AFTER = 30 * _DAY  # seconds for which a file is gone
_FIX = "put the original back; a line that is taken out has its file classified again"


class Stamp(NamedTuple):
    """What tells, without reading it, that a file is still the same: bytes, times of change (ns) of it."""

    size: int
    changed: int
    status_changed: int


@dataclass(frozen=True)
class Handled:
    """A line of the journal: what became of a file of these bytes.

    Attributes:
        name: where it lies below the watched folder.
        stamp: as long as this is the same, the file is not read again.
        sha256: of its bytes; of a failed one it may be empty.
        at: when, in seconds since 1970.
        output: where the output lies below the output folder; None where the file failed, or was done before
            and only touched since.
        rows_read, rejected: as in `Counts`.
        failed: why, where it failed.
        tried_as: of a failed one, what stands for model, settings and version that it was tried with.
        has_output: whether a file of this name was classified before, so that the output is its own.
        gone: since when it is not in the folder any more.
    """

    name: str
    stamp: tuple[int, int, int]
    sha256: str
    at: int
    output: str | None = field(default=None, metadata=OPTIONAL)
    rows_read: int = field(default=0, metadata=UNSAID)
    rejected: int = field(default=0, metadata=UNSAID)
    failed: str | None = field(default=None, metadata=OPTIONAL)
    tried_as: str | None = field(default=None, metadata=OPTIONAL)
    has_output: bool = field(default=False, metadata=UNSAID)
    gone: int | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        """Raise ValueError for what would lead out of the folders."""
        for text in (self.name, self.output or ""):
            path = PurePath(name_of(text))
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{text!r} is no place below a folder")
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError("sha256 is not one")


@dataclass(frozen=True)
class _Beginning:
    """The first line of a journal: the watched folder, and when what is gone was last looked for."""

    watched: str
    tidied: int


class Known(NamedTuple):
    """What is kept in memory of a file; ``tried_as`` is None where it is done."""

    stamp: Stamp
    sha256: str
    tried_as: str | None
    has_output: bool


class Journal:
    """What became of which file, a line each, on the disk before anybody sees an output.

    Attributes:
        work: the folder of outputs that are not in place yet.
        known: what was handled, by name.
    """

    def __init__(self, home: Path, watched: Path) -> None:
        self.home, self.work = home, home / "work"
        self.path = home / JOURNAL
        self.known: dict[str, Known] = {}
        self._watched, self._size, self._tidied = watched, 0, 0

    @contextmanager
    def opened(self) -> Iterator[Journal]:
        """Read what is there, and keep other processes from it meanwhile.

        Raises UserError where another process watches for this output, or the journal is damaged, of a newer
        version, or of another watched folder, and where links lead out of the folder of it.
        """
        require_no_links_out(self.home)
        self.home.mkdir(parents=True, exist_ok=True)
        busy = f"another process writes what it watches for to {self.home.parent}"
        fix = "give each its own --output; one process watches all folders below --watch"
        with held_alone(self.home / "lock", busy, fix=fix, stays=True):
            if self.path.exists() and cut_to_whole_lines(self.path, fix=_FIX):
                self._read()
            else:
                self._rewrite([], int(time.time()))
            yield self

    def lines(self) -> Iterator[Handled]:
        """All lines, in order. Raises UserError where the journal is damaged."""
        with open_regular(self.path) as stream:
            stream.readline(LONGEST_LINE)
            for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE), b""), start=2):
                try:
                    yield from_content(Handled, parsed_json(line))
                except ValueError as error:
                    raise damaged(self.path, f"line {number}: {error}", fix=_FIX) from None

    def add(self, handled: Handled) -> None:
        """Append a line, which is on the disk then. Raises OSError where it cannot be."""
        try:
            with self.path.open("r+b") as stream:
                stream.seek(self._size)
                stream.truncate()  # of a line that the disk had no space for
                stream.write(_line(handled))
                stream.flush()
                os.fsync(stream.fileno())
                self._size = stream.tell()
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise
        self._know(handled)

    def require_there(self) -> None:
        """Raise OSError where the journal is not, because the disk or share that it is on has gone."""
        if self.path.stat().st_size < self._size:
            raise OSError(errno.ESTALE, "the journal is not what it was", str(self.path))

    def tidy(self, names: Callable[[], Collection[str]]) -> None:
        """Once a day, keep one line a file, and none of those that are gone for long.

        ``names`` tells those in the watched folder, which may have been away, too: what is gone is noted
        first, and forgotten after 30 days.
        """
        now = int(time.time())
        if now < self._tidied + _DAY:
            return
        present = names()
        last = {handled.name: handled for handled in self.lines()}
        kept = []
        for handled in last.values():
            gone = None if name_of(handled.name) in present else handled.gone or now
            if gone is None or gone > now - _FORGOTTEN_AFTER:
                kept.append(replace(handled, gone=gone))
            else:
                self.known.pop(name_of(handled.name), None)
        self._rewrite(kept, now)

    def _rewrite(self, entries: list[Handled], now: int) -> None:
        with atomic_writer(self.path) as stream:
            beginning = with_format(to_content(_Beginning(text_of(str(self._watched)), now)))
            stream.write(json.dumps(beginning).encode() + b"\n")
            stream.writelines(map(_line, entries))
            self._size = stream.tell()
        self._tidied = now

    def _read(self) -> None:
        with open_regular(self.path) as stream:
            first = stream.readline(LONGEST_LINE)
        try:
            content = parsed_json(first)
            if isinstance(content, dict) and content.pop(FORMAT, CURRENT) != CURRENT:
                raise WrongContentError(f"another {FORMAT} than {CURRENT}")
            beginning = from_content(_Beginning, content)
        except ValueError as error:
            raise damaged(self.path, f"its first line: {error}", fix=_FIX) from None
        if name_of(beginning.watched) != str(self._watched):
            raise UserError(
                f"{self.home.parent} holds the outputs of another watched folder",
                found=f"that of {beginning.watched}, not of {self._watched}",
                fix=f"give --output another folder; if it was moved, correct the first line of {self.path}",
            )
        self._tidied, self._size = beginning.tidied, self.path.stat().st_size
        for handled in self.lines():
            self._know(handled)

    def _know(self, handled: Handled) -> None:
        tried_as = None if handled.failed is None else handled.tried_as or ""
        has_output = handled.has_output or handled.failed is None
        known = Known(Stamp(*handled.stamp), handled.sha256, tried_as, has_output)
        self.known[name_of(handled.name)] = known


def _line(handled: Handled) -> bytes:
    return json.dumps(to_content(handled)).encode() + b"\n"


def text_of(name: str) -> str:
    """A file's name as UTF-8 can hold it: of one that is other bytes, NUL and their hexadecimal digits."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "\0" + os.fsencode(name).hex()
    return name


def name_of(text: str) -> str:
    """The inverse of `text_of`."""
    return os.fsdecode(bytes.fromhex(text[1:])) if text.startswith("\0") else text
