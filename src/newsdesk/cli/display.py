"""What the command line shows of long work: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from newsdesk.cli.shared import note
from newsdesk.errors import counted
from newsdesk.metrics import over_classes
from newsdesk.prediction.bulk import Begun, BulkEvent, Classified, WindowWritten
from newsdesk.prediction.resumable_output import Checkpoint
from newsdesk.progress import Unit
from newsdesk.runs.log import (
    Event,
    Finished,
    Interrupted,
    Remark,
    Resumed,
    Started,
    Step,
    Validation,
)

_PLAIN_LINE_EVERY = 15.0  # seconds, where no terminal can be redrawn
_ONLY_TASK = TaskID(0)  # of a bar: rich counts a Progress's tasks from 0
_SMOOTHING = 0.95  # of the loss shown; single batches of 16 jump


class TrainingDisplay:
    """Shows a training's events: loss, learning rate, tokens a second, time left, validation scores."""

    def __init__(self, console: Console) -> None:
        """Write to ``console``; a bar where it is a terminal."""
        self._console = console
        self._progress: Progress | None = None
        self._loss = 0.0
        self._tokens = 0
        self._steps = 0
        self._chooses = False
        self._first_step = 0
        self._paused = 0.0
        self._began = self._last_event = self._last_line = time.monotonic()

    def show(self, event: Event) -> None:
        """Take one event."""
        now = time.monotonic()
        if isinstance(event, Started):
            self._start(event, now)
        elif isinstance(event, Step):
            self._step(event, now)
        elif isinstance(event, Validation):
            self._paused += now - self._last_event
            best = "  (best so far)" if event.best and self._chooses else ""
            classes = over_classes(event.macro_f1_classes, event.classes)
            self._line(
                f"epoch {event.epoch:.2f}  validation: accuracy {event.accuracy:.2%}, "
                f"macro F1 {event.macro_f1:.2%} over {classes}, loss {event.loss:.4f}{best}"
            )
        elif isinstance(event, Remark):
            self._line(f"note: {event.text}")
        elif isinstance(event, Resumed):
            self._resume(event)
        elif isinstance(event, Interrupted):
            self._line(f"a checkpoint of step {event.step:,} is kept")
        else:
            self._finish(event, now)
        self._last_event = time.monotonic()

    def close(self) -> None:
        """Stop drawing; safe to call at any time."""
        if self._progress is not None:
            self._progress.stop()

    def _start(self, event: Started, now: float) -> None:
        self._steps, self._chooses = event.steps, event.choosing_rows > 0
        self._line(
            f"{counted(event.rows, 'training row')}, {counted(event.validation_rows, 'validation row')}, "
            f"{counted(event.steps, 'step')} ({counted(event.epochs, 'epoch')})"
        )
        self._line(f"on {event.device} in {event.precision}, {event.engine}")
        self._began = self._last_line = now
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._progress.add_task("training", total=event.steps, figures="")
            self._progress.start()

    def _resume(self, event: Resumed) -> None:
        self._first_step = event.step
        for name in event.passed_over:
            self._line(f"checkpoint {name} is damaged and was passed over")
        self._line(f"going on after step {event.step:,} (epoch {event.epoch:.2f})")
        if self._progress is not None:
            self._progress.reset(_ONLY_TASK, completed=event.step)

    def _step(self, event: Step, now: float) -> None:
        self._tokens += event.tokens
        weight = _SMOOTHING if event.step > self._first_step + 1 else 0.0
        self._loss = weight * self._loss + (1 - weight) * event.loss
        busy = max(1e-9, now - self._began - self._paused)
        speed = f"{self._tokens / busy:,.0f} tokens/s"
        figures = f"loss {self._loss:.4f}  learning rate {event.learning_rate:.2e}  {speed}"
        if self._progress is not None:
            self._progress.update(_ONLY_TASK, completed=event.step, figures=figures)
        elif now - self._last_line >= _PLAIN_LINE_EVERY:
            left = (self._steps - event.step) * busy / (event.step - self._first_step)
            self._line(f"step {event.step:,}/{self._steps:,}  {figures}  {_clock(left)} left")
            self._last_line = now

    def _finish(self, event: Finished, now: float) -> None:
        self.close()
        reason = {
            "completed": "finished",
            "early-stopping": "stopped early: no gain in validation",
            "interrupted": "interrupted; what was learned so far is kept",
        }[event.reason]
        kept = f", kept the state of step {event.best_step:,}" if event.best_step != event.step else ""
        self._line(
            f"{reason} after {counted(event.step, 'step')} in {_clock(now - self._began)}{kept}; "
            f"padding {event.padding_share:.1%} of tokens"
        )

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class ProgressDisplay:
    """Shows one piece of work after the other: a bar each on a terminal, elsewhere a line, but not of rows.

    No bar outlives its work, so that other displays may follow.
    """

    def __init__(self, console: Console) -> None:
        """Write to ``console``."""
        self._console = console
        self._what, self._done = "", 0
        self._bar: Progress | None = None

    def show(self, done: int, total: int | None, what: str, unit: Unit = "bytes", /) -> None:
        """See `newsdesk.progress.Progress`."""
        if what != self._what or done < self._done:
            self.close()
            self._what = what
            if total is not None and self._console.is_terminal:
                self._bar = _started_bar(self._console, what, total, unit)
            elif total is None or unit == "bytes":
                note(self._console, what)
        self._done = done
        if self._bar is not None:
            self._bar.update(_ONLY_TASK, completed=done)
            if done == total:
                self.close()

    def close(self) -> None:
        """Stop drawing; safe to call at any time."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _started_bar(console: Console, what: str, total: int, unit: Unit) -> Progress:
    """A bar with one task that vanishes when it stops."""
    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    description = TextColumn("{task.description}", markup=False)
    bar = Progress(description, BarColumn(), amount, TimeRemainingColumn(), console=console, transient=True)
    bar.add_task(what, total=total)
    bar.start()
    return bar


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


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
            self._rows = event.rows
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
        self._before = self._rows = event.rows_before
        self._began = time.monotonic()
        if event.rows_before:
            note(self._console, f"resuming after row {event.rows_before:,}, where an earlier run stopped")
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
        return f"{counted(self._rows, 'row')}, {(self._rows - self._before) / seconds:,.0f} rows/s"

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
