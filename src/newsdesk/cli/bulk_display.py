"""What the command line shows of a file being classified: how far it is, how fast, what was set aside."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from newsdesk.cli.shared import note
from newsdesk.errors import counted
from newsdesk.inference.bulk import Begun, BulkEvent, Classified, WindowWritten
from newsdesk.inference.part_file import Checkpoint

_PLAIN_LINE_EVERY = 15.0  # seconds, where no terminal can be redrawn
_ONLY_TASK = TaskID(0)


class BulkDisplay:
    """A bar on a terminal, a line now and then elsewhere; notes on what matters in the end."""

    def __init__(self, console: Console, *, names_rejects: bool) -> None:
        """Write to ``console``; ``names_rejects`` notes every bad row, where no file takes them."""
        self._console = console
        self._names_rejects = names_rejects
        self._before = 0
        self._rows = 0
        self._began = self._last_line = time.monotonic()
        self._bar: Progress | None = None

    def show(self, event: BulkEvent) -> None:
        """Take one event."""
        if isinstance(event, Begun):
            self._begin(event)
        elif isinstance(event, Classified):
            self._rows += event.rows
            if self._bar is not None:
                self._bar.update(_ONLY_TASK, figures=self._figures())
        else:
            self._written(event)

    def finish(self, done: Checkpoint, output: Path | None, rejects: Path | None) -> None:
        """Say what became of the rows; nothing where all went well and the output speaks for itself."""
        self._stop()
        if done.rejected:
            rows = "row" if done.rejected == 1 else "rows"
            place = rejects or (output and f"{output}.rejects.jsonl")
            note(
                self._console,
                f"{done.rejected:,} {rows} of {done.rows_read:,} rejected"
                + (f"; see {place}" if place else ""),
            )

    def __enter__(self) -> BulkDisplay:
        """The display itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        self._stop()

    def _begin(self, event: Begun) -> None:
        self._before, self._began = event.rows_before, time.monotonic()
        if event.rows_before:
            note(self._console, f"going on behind row {event.rows_before:,}, where an earlier run stopped")
        if event.read_as:
            note(self._console, f"reading {event.read_as}")
        if event.left_over:
            note(self._console, "an unfinished output of other input or settings was dropped")
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("classifying"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.add_task("classifying", total=None, figures="")
            self._bar.start()

    def _written(self, event: WindowWritten) -> None:
        if self._names_rejects:
            for reject in event.rejects:
                fault = reject.fault
                found = f" ({fault.found})" if fault.found else ""
                note(self._console, f"line {fault.line} rejected: {fault.wrong}{found}")
        now = time.monotonic()
        if self._bar is not None:
            total = None if event.share is None else 1.0
            self._bar.update(_ONLY_TASK, total=total, completed=event.share or 0.0)
        elif now - self._last_line >= _PLAIN_LINE_EVERY:
            share = "" if event.share is None else f" ({event.share:.0%})"
            note(self._console, f"row {event.checkpoint.rows_read:,}{share}, {self._figures()}")
            self._last_line = now

    def _figures(self) -> str:
        seconds = max(1e-9, time.monotonic() - self._began)
        return f"{counted(self._before + self._rows, 'row')}, {self._rows / seconds:,.0f} rows/s"

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
