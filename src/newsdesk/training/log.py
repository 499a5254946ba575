"""The log of a run: one JSON object a line, each on disk before the next event happens."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from newsdesk.files import explaining_full_disk
from newsdesk.training.events import Event, to_record


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
    return float(json.loads(lines[-1])["seconds"]) if lines else 0.0
