"""The log of a run, log.jsonl: one event a line, each on disk before the next one happens."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, get_args

from newsdesk.files import damaged, explaining_full_disk
from newsdesk.stored import WrongContentError, from_content
from newsdesk.training.events import Event, event_name, from_record, to_record

_FIX = "copy the run anew from where it is whole, or train it again"


@dataclass(frozen=True)
class Logged:
    """An event, and the seconds that training had taken by then."""

    event: Event
    seconds: float


def read_log(path: Path, *kinds: type[Event]) -> Iterator[Logged]:
    """The events of a log in their order: those of the ``kinds`` named, else all.

    Raises UserError for a log that is missing, or damaged in a line that is read.
    """
    wanted = {event_name(kind): kind for kind in kinds or get_args(Event)}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise damaged(path, str(error), fix=_FIX) from None
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            head = from_content(_Line, record)
            if head.event in wanted:
                yield Logged(from_record(wanted[head.event], record), head.seconds)
            elif not kinds:
                raise WrongContentError(f"event is {head.event!r}, which this version does not know")
        except ValueError as error:
            raise damaged(path, f"line {number}: {error}", fix=_FIX) from None


@dataclass(frozen=True)
class _Line:
    """What every line of a log has."""

    event: str
    seconds: float


class EventLog:
    """Appends events to log.jsonl with the seconds that training has taken so far."""

    def __init__(self, path: Path, *, keep: int | None = None) -> None:
        """Open ``path`` for appending, behind its first ``keep`` bytes where that is given: the rest goes."""
        self._path = path
        self._stream = path.open("a", encoding="utf-8")
        if keep is not None:
            self._stream.truncate(min(keep, path.stat().st_size))
        self._start = time.monotonic() - _last_seconds(path)

    def write(self, event: Event) -> None:
        """Append one event and hand it to the operating system, so that a kill loses nothing before it.

        Raises UserError when the disk is full.
        """
        record = {**to_record(event), "seconds": round(time.monotonic() - self._start, 3)}
        with explaining_full_disk(self._path):
            self._stream.write(json.dumps(record) + "\n")
            self._stream.flush()

    def secure(self) -> int:
        """Have all that was written reach the disk; the length in bytes. Raises UserError when it is full."""
        with explaining_full_disk(self._path):
            os.fsync(self._stream.fileno())
        return self._path.stat().st_size

    def __enter__(self) -> Self:
        """The log itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._stream.close()


def _last_seconds(path: Path) -> float:
    """The seconds in the last line of a log, 0 for an empty one."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return from_content(_Line, json.loads(lines[-1])).seconds if lines else 0.0
