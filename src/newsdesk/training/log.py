"""The log of a run: one JSON object a line, each on disk before the next event happens."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from newsdesk.training.events import Event, to_record


class EventLog:
    """Appends events to log.jsonl with the seconds since the log was opened."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` for appending."""
        self._stream = path.open("a", encoding="utf-8")
        self._start = time.monotonic()

    def write(self, event: Event) -> None:
        """Append one event and hand it to the operating system, so that a kill loses nothing before it."""
        record = {**to_record(event), "seconds": round(time.monotonic() - self._start, 3)}
        self._stream.write(json.dumps(record) + "\n")
        self._stream.flush()

    def __enter__(self) -> Self:
        """The log itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._stream.close()
