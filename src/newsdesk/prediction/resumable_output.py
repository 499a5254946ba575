"""Where predictions of a file go: an output that resumes after a kill, or a stream that cannot."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from newsdesk.errors import UserError
from newsdesk.files import (
    atomic_writer,
    held_alone,
    make_folder,
    read_json,
    remove_empty,
    remove_leftovers,
    take_own,
    write_json,
)
from newsdesk.model.tokenizer import Truncation
from newsdesk.stored import WrongContentError, from_content

_HEAD = 1 << 16  # bytes by which an input is recognised, besides its size and time of change

Convert = Callable[[BinaryIO, BinaryIO], None]


@dataclass(frozen=True)
class Counts:
    """What became of the rows of an input.

    Attributes:
        rows_read, rejected: how many rows there were, and how many of them were bad.
        unanswered, unreadable: rows left without a label, and how many of these for an empty text.
        cut, tokens, lost: texts that were cut, tokens of all texts, and those that were not read.
    """

    rows_read: int = 0
    rejected: int = 0
    unanswered: int = 0
    unreadable: int = 0
    cut: int = 0
    tokens: int = 0
    lost: int = 0

    @property
    def truncation(self) -> Truncation:
        """How many of the texts were cut."""
        return Truncation(self.rows_written, self.cut, self.tokens, self.lost)

    @property
    def rows_written(self) -> int:
        """Rows that are in the output."""
        return self.rows_read - self.rejected


@dataclass(frozen=True)
class Checkpoint(Counts):
    """How far an output has come: bytes of it and of the rejects; ``complete`` when only renames are left."""

    output_bytes: int = 0
    rejects_bytes: int = 0
    complete: bool = False

    def plus(self, **counts: int) -> Checkpoint:
        """The same with each of the named counts raised."""
        return replace(self, **{name: getattr(self, name) + more for name, more in counts.items()})


class PartFile:
    """``OUTPUT.part``, its rejects, and a journal that says how many bytes of both are valid.

    Every append is on the disk before the journal says so. Whatever kills the process, the journal and the
    bytes up to its lengths belong together; the rest is cut off.

    Attributes:
        checkpoint: how far it has come.
        left_over: whether an unfinished output of other input or settings had to be dropped.
    """

    def __init__(
        self, destination: Path, rejects: Path, job: Mapping[str, Any], convert: Convert | None = None
    ) -> None:
        """Take the places, what decides the output, and what makes the part file the output in the end."""
        self.destination = destination
        self.rejects = rejects
        self.part = _beside(destination, ".part")
        self._rejects_part = _beside(rejects, ".part")
        self._journal = _beside(destination, ".part.json")
        self._job = json.loads(json.dumps(job))
        self._convert = convert
        self.checkpoint = Checkpoint()
        self.left_over = False

    @contextmanager
    def opened(self) -> Iterator[PartFile]:
        """Resume where the journal says, or begin.

        Raises UserError if another process is writing it, or what is no file is in the way.

        If the block fails before anything was appended, it leaves nothing behind, not even new folders.
        """
        lock = _beside(self.destination, ".part.lock")
        for path in (self._journal, self.part, self._rejects_part, lock):
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise _in_the_way(path)
        with _explained(self.destination, "choose another place with --output"):
            made = [*make_folder(self.part.parent), *make_folder(self.rejects.parent)]
        busy = f"another process is writing {self.destination}"
        try:
            with held_alone(lock, busy, fix="wait until it has finished, or give --output another name"):
                try:
                    self._restore()
                    yield self
                except BaseException:
                    if not self.checkpoint.rows_read and not self.checkpoint.complete:
                        self.discard()
                    raise
        finally:
            remove_empty(made)

    def append(self, output: bytes, rejects: bytes, **counts: int) -> None:
        """Add bytes to both files and make them last; ``counts`` are the checkpoint's, of the new rows.

        Raises UserError where they cannot be written.
        """
        now = self.checkpoint
        _append(self.part, now.output_bytes, output)
        if rejects:
            _append(self._rejects_part, now.rejects_bytes, rejects)
        self._note(now.plus(**counts, output_bytes=len(output), rejects_bytes=len(rejects)))

    def finish(self) -> None:
        """Put the files in their places, the output converted where it has to be, and drop the journal.

        A file of rejects that an earlier output left there goes when this one has none.
        """
        if not self.checkpoint.complete:
            self._note(replace(self.checkpoint, complete=True))
        if self._rejects_part.is_file():
            self._rejects_part.replace(self.rejects)
        elif not self.checkpoint.rejects_bytes:
            self.rejects.unlink(missing_ok=True)
        if self.part.is_file():
            if self._convert is not None:
                with self.part.open("rb") as written, atomic_writer(self.destination) as sink:
                    self._convert(written, sink)
                self.part.unlink()
            else:
                self.part.replace(self.destination)
        self._journal.unlink(missing_ok=True)

    def _restore(self) -> None:
        """Resume what the journal describes if it is of the same job and the files are long enough."""
        for path in (self._journal, self.destination):
            remove_leftovers(path)
        found = self._journal_content()
        if found is not None and found["job"] == self._job:
            with suppress(WrongContentError):  # of no use then
                checkpoint = from_content(Checkpoint, found.get("checkpoint"))
                if self._is_restored(checkpoint):
                    self.checkpoint = checkpoint
                    return
        self.left_over = found is not None
        self.discard()

    def _is_restored(self, checkpoint: Checkpoint) -> bool:
        """Whether the files are at least as long as it says; what they have beyond is cut off."""
        if checkpoint.complete:
            return self.part.is_file() or self.destination.exists()
        return _cut(self.part, checkpoint.output_bytes) and _cut(self._rejects_part, checkpoint.rejects_bytes)

    def discard(self) -> None:
        """Remove all that was written so far."""
        for path in (self._journal, self.part, self._rejects_part):
            path.unlink(missing_ok=True)

    def _journal_content(self) -> dict[str, Any] | None:
        if not self._journal.is_file():
            return None
        with suppress(UserError):
            content = read_json(self._journal, fix="")
            if "job" in content:
                return content
        return {"job": None}

    def _note(self, checkpoint: Checkpoint) -> None:
        write_json(self._journal, {"job": self._job, "checkpoint": asdict(checkpoint)})
        self.checkpoint = checkpoint


def fingerprint(path: Path) -> dict[str, Any]:
    """What tells whether an input is still the same: its path, size, time of change and first bytes."""
    status = path.stat()
    with path.open("rb") as stream:
        head = hashlib.sha256(stream.read(_HEAD)).hexdigest()
    return {"path": str(path.resolve()), "size": status.st_size, "changed": status.st_mtime_ns, "head": head}


def _in_the_way(path: Path) -> UserError:
    return UserError(
        f"{path} is in the way: newsdesk writes a file there until the output is done",
        found="a link, a folder, a pipe or a device",
        fix="move it elsewhere, or give --output another name",
    )


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _cut(path: Path, length: int) -> bool:
    """Cut a file to this length; False where it is shorter."""
    if not path.is_file():
        return length == 0
    if path.stat().st_size < length:
        return False
    take_own(path)
    os.truncate(path, length)
    return True


@contextmanager
def _explained(path: Path, fix: str) -> Iterator[None]:
    """Turn the system's refusal to write to ``path`` into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}", found=error.strerror or str(error), fix=fix) from error


def _append(path: Path, position: int, content: bytes) -> None:
    with (
        _explained(path, "make room and give the same command again: it resumes where it stopped"),
        path.open("r+b" if path.is_file() else "wb") as stream,
    ):
        stream.seek(position)
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


class DirectOutput:
    """Takes what a part file takes, writes it to a stream or a pipe at once, and keeps no journal."""

    left_over = False

    def __init__(
        self, destination: Path | BinaryIO, rejects: Path | None, convert: Convert | None = None
    ) -> None:
        """Take the places. With ``convert`` nothing is written before `finish`."""
        self.checkpoint = Checkpoint()
        self._destination, self._rejects_path, self._convert = destination, rejects, convert

    @contextmanager
    def opened(self) -> Iterator[DirectOutput]:
        """Open the places. If the block fails before anything was appended, no file of rejects stays."""
        with ExitStack() as files:
            place, rejects = self._destination, self._rejects_path
            self._sink = files.enter_context(place.open("wb")) if isinstance(place, Path) else place
            self._written = self._sink if self._convert is None else files.enter_context(TemporaryFile())
            self._rejects = None if rejects is None else files.enter_context(rejects.open("wb"))
            try:
                yield self
            except BaseException:
                if rejects is not None and not self.checkpoint.rows_read:
                    rejects.unlink(missing_ok=True)
                raise

    def append(self, output: bytes, rejects: bytes, **counts: int) -> None:
        """Write both at once."""
        self._written.write(output)
        self._written.flush()
        if self._rejects is not None:
            self._rejects.write(rejects)
        self.checkpoint = self.checkpoint.plus(**counts)

    def finish(self) -> None:
        """Write what had to wait for its conversion."""
        if self._convert is not None:
            self._written.seek(0)
            self._convert(self._written, self._sink)
