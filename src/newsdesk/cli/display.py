"""What the command line shows of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from newsdesk.cli.shared import note
from newsdesk.data.words import printable
from newsdesk.errors import UserError, counted
from newsdesk.metrics import over_classes
from newsdesk.prediction.bulk import Begun, BulkEvent, Classified, WindowWritten
from newsdesk.prediction.resumable_output import Checkpoint
from newsdesk.progress import Unit
from newsdesk.runs.log import Event, Finished, Interrupted, Remark, Resumed, Started, Step, Validation

if TYPE_CHECKING:
    from newsdesk.experiments.sweep import SweepEvent, TrialEnded
    from newsdesk.prediction.ray_bulk import RayEvent
    from newsdesk.prediction.watched_folder import WatchEvent

_LINE_EVERY = 15.0  # seconds, where no terminal can be redrawn
_ONLY_TASK = TaskID(0)  # of a bar: rich counts a Progress's tasks from 0
_SMOOTHING = 0.95  # of the loss shown; single batches of 16 jump


class Display:
    """A console, the bar drawn on it, and the time of its last plain line."""

    def __init__(self, console: Console) -> None:
        """Write to ``console``; draw bars where it is a terminal."""
        self.console = console
        self.bar: Progress | None = None
        self.began = self._last_line = time.monotonic()

    def begin(self) -> None:
        """Measure time from now."""
        self.began = self._last_line = time.monotonic()

    def line(self, text: str) -> None:
        """Write a line."""
        note(text, self.console)

    def now_and_then(self, text: str) -> None:
        """Write a line if the last one was long enough ago."""
        if time.monotonic() - self._last_line >= _LINE_EVERY:
            self.line(text)
            self._last_line = time.monotonic()

    def draw(self, what: str, total: float | None, amount: ProgressColumn, *, vanishes: bool = True) -> None:
        """Start a bar; nothing where no terminal can be redrawn."""
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                amount,
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=vanishes,
            )
            self.bar.add_task(what, total=total, figures="")
            self.bar.start()

    def close(self) -> None:
        """Stop drawing; safe to call at any time."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def __enter__(self) -> Self:
        """The display itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        self.close()


class ProgressDisplay(Display):
    """Shows one piece of work after the other: a bar each on a terminal, elsewhere a line, but not of rows.

    No bar outlives its work, so that other displays may follow.
    """

    _what, _done = "", 0

    def show(self, done: int, total: int | None, what: str, unit: Unit = "bytes", /) -> None:
        """See `newsdesk.progress.Progress`."""
        if what != self._what or done < self._done:
            self.close()
            self._what = what
            if total is not None and self.console.is_terminal:
                self.draw(what, total, DownloadColumn() if unit == "bytes" else MofNCompleteColumn())
            elif total is None or unit == "bytes":
                self.line(what)
        self._done = done
        if self.bar is not None:
            self.bar.update(_ONLY_TASK, completed=done)
            if done == total:
                self.close()


class TrainingDisplay(Display):
    """Shows a training's events: loss, learning rate, tokens per second, time left, validation scores."""

    def __init__(self, console: Console) -> None:
        """Write to ``console``; a bar where it is a terminal."""
        super().__init__(console)
        self._loss, self._tokens = 0.0, 0
        self._steps = self._first_step = 0
        self._chooses = False
        self._paused, self._last_event = 0.0, self.began

    def show(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Step):
            self._step(event)
        elif isinstance(event, Validation):
            self._paused += time.monotonic() - self._last_event
            best = "  (best so far)" if event.best and self._chooses else ""
            classes = over_classes(event.macro_f1_classes, event.classes)
            of_sets = "" if event.micro_f1 is None else f"micro F1 {event.micro_f1:.2%}, "
            accuracy = "accuracy" if event.micro_f1 is None else "all labels right"
            self.line(
                f"epoch {event.epoch:.2f}  validation: {of_sets}{accuracy} {event.accuracy:.2%}, "
                f"macro F1 {event.macro_f1:.2%} over {classes}, loss {event.loss:.4f}{best}"
            )
        elif isinstance(event, Remark):
            self.line(f"note: {event.text}")
        elif isinstance(event, Resumed):
            self._resume(event)
        elif isinstance(event, Interrupted):
            self.line(f"a checkpoint of step {event.step:,} is kept")
        else:
            self._finish(event)
        self._last_event = time.monotonic()

    def _start(self, event: Started) -> None:
        self._steps, self._chooses = event.steps, event.choosing_rows > 0
        steps, epochs = counted(event.steps, "step"), counted(event.epochs, "epoch")
        self.line(f"{event.split}, {steps} ({epochs})")
        self.line(f"on {event.device} in {event.precision}, {event.engine}")
        self.begin()
        self.draw("training", event.steps, MofNCompleteColumn(), vanishes=False)

    def _resume(self, event: Resumed) -> None:
        self._first_step = event.step
        for name in event.passed_over:
            self.line(f"checkpoint {name} is damaged and was skipped")
        self.line(f"resuming after step {event.step:,} (epoch {event.epoch:.2f})")
        if self.bar is not None:
            self.bar.reset(_ONLY_TASK, completed=event.step)

    def _step(self, event: Step) -> None:
        self._tokens += event.tokens
        weight = _SMOOTHING if event.step > self._first_step + 1 else 0.0
        self._loss = weight * self._loss + (1 - weight) * event.loss
        busy = max(1e-9, time.monotonic() - self.began - self._paused)
        speed = f"{self._tokens / busy:,.0f} tokens/s"
        figures = f"loss {self._loss:.4f}  learning rate {event.learning_rate:.2e}  {speed}"
        if self.bar is not None:
            self.bar.update(_ONLY_TASK, completed=event.step, figures=figures)
        else:
            left = (self._steps - event.step) * busy / (event.step - self._first_step)
            self.now_and_then(f"step {event.step:,}/{self._steps:,}  {figures}  {_clock(left)} left")

    def _finish(self, event: Finished) -> None:
        self.close()
        reason = {
            "completed": "finished",
            "early-stopping": "stopped early: no gain in validation",
            "interrupted": "interrupted; what was learned so far is kept",
        }[event.reason]
        kept = f", kept the state of step {event.best_step:,}" if event.best_step != event.step else ""
        self.line(
            f"{reason} after {counted(event.step, 'step')} in {_clock(time.monotonic() - self.began)}{kept}; "
            f"padding {event.padding_share:.1%} of tokens"
        )


class SweepDisplay(Display):
    """Shows a sweep: a bar for the trial in work, a line for each that is through, and the time left."""

    def __init__(self, console: Console) -> None:
        """Write to ``console``; a bar where it is a terminal."""
        super().__init__(console)
        self._trial = self._training = self._bar_name = ""
        self._trainings = self._number = 1
        self._steps, self._ended = 1, 0
        self._remarks: set[str] = set()

    def show(self, event: SweepEvent) -> None:
        """Take one event."""
        from newsdesk.experiments.sweep import TrainingBegun, TrialBegun, TrialEnded

        if isinstance(event, TrialBegun):
            self._trainings = event.trainings
            self._trial = f"trial {event.number} ({event.number + 1} of {event.of})"
            self._bar_name = f"trial {event.number}"
            self.line(f"{self._trial}: {event.label}")
        elif isinstance(event, TrainingBegun):
            self._number = event.training
            fold = f", fold {event.fold}" if event.fold else ""
            self._training = f"seed {event.seed}{fold}"
            self.close()  # what is fetched or computed first has a bar of its own
        elif isinstance(event, TrialEnded):
            self._end(event)
        elif isinstance(event, Started):
            self._steps = event.steps
            self.draw(self._bar_name, 1.0, TaskProgressColumn())
        elif isinstance(event, Step):
            self._step(event)
        elif isinstance(event, Resumed):
            self.line(f"resuming after step {event.step:,} (epoch {event.epoch:.2f})")
        elif isinstance(event, Remark) and not self._ended and event.text not in self._remarks:
            self._remarks.add(event.text)
            self.line(f"note: {event.text}")

    def _step(self, event: Step) -> None:
        share = (self._number - 1 + event.step / self._steps) / self._trainings
        figures = f"{self._training}: step {event.step:,} of {self._steps:,}  loss {event.loss:.4f}"
        if self.bar is not None:
            self.bar.update(_ONLY_TASK, completed=share, figures=figures)
        else:
            self.now_and_then(f"{self._trial}, {figures}")

    def _end(self, event: TrialEnded) -> None:
        self.close()
        self._ended += 1
        trial = event.trial
        found = (
            "" if trial.score is None else f" {trial.score:.4f}{' (best so far)' if event.is_best else ''}"
        )
        found += f": {trial.reason}" if trial.reason else ""
        if event.left:
            seconds = event.left * (time.monotonic() - self.began) / self._ended
            found += f"; {counted(event.left, 'trial')} left, about {_clock(seconds)}"
        self.line(f"trial {trial.number} {trial.state}{found}")


class BulkDisplay(Display):
    """Shows a file being classified; in the end, how many rows were rejected."""

    def __init__(self, console: Console, *, names_rejects: bool) -> None:
        """Write to ``console``; ``names_rejects`` notes every bad row, where no file takes them."""
        super().__init__(console)
        self._names_rejects = names_rejects
        self._before = self._rows = 0

    def show(self, event: BulkEvent) -> None:
        """Take one event."""
        if isinstance(event, Begun):
            self._begin(event)
        elif isinstance(event, Classified):
            self._rows = event.rows
            if self.bar is not None:
                self.bar.update(_ONLY_TASK, figures=self._figures())
        else:
            self._written(event)

    def finish(self, done: Checkpoint, output: Path | None, rejects: Path | None) -> None:
        """Say how many rows were rejected; nothing where all went well and the output speaks for itself."""
        self.close()
        if done.rejected:
            place = rejects or (output and f"{output}.rejects.jsonl")
            where = f"; see {place}" if place else ""
            self.line(f"{counted(done.rejected, 'row')} of {done.rows_read:,} rejected{where}")

    def _begin(self, event: Begun) -> None:
        self._before = self._rows = event.rows_before
        self.begin()
        if event.rows_before:
            self.line(f"resuming after row {event.rows_before:,}, where an earlier run stopped")
        if event.read_as:
            self.line(f"reading {event.read_as}")
        if event.left_over:
            self.line("an unfinished output of other input or settings was dropped")
        self.draw("classifying", None, TaskProgressColumn())

    def _written(self, event: WindowWritten) -> None:
        for reject in event.rejects if self._names_rejects else ():
            fault = reject.fault
            found = f" ({fault.found})" if fault.found else ""
            self.line(f"line {fault.line} rejected: {fault.wrong}{found}")
        if self.bar is not None:
            total = None if event.share is None else 1.0
            self.bar.update(_ONLY_TASK, total=total, completed=event.share or 0.0)
        else:
            share = "" if event.share is None else f" ({event.share:.0%})"
            self.now_and_then(f"row {event.checkpoint.rows_read:,}{share}, {self._figures()}")

    def _figures(self) -> str:
        seconds = max(1e-9, time.monotonic() - self.began)
        return f"{counted(self._rows, 'row')}, {(self._rows - self._before) / seconds:,.0f} rows/s"


class WatchDisplay(BulkDisplay):
    """A line a file, with the time and what became of it; a large one is shown as any other, too."""

    def __init__(self, console: Console) -> None:
        """Write to ``console``; a bar where it is a terminal."""
        super().__init__(console, names_rejects=False)

    def line(self, text: str) -> None:
        """Write a line, unless nothing can be written: that is no reason to stop."""
        with suppress(OSError):
            super().line(text)

    def show_watch(self, event: WatchEvent) -> None:
        """Take one event."""
        from newsdesk.prediction.watched_folder import FileDone, FileFailed, Waiting, Watching

        if isinstance(event, Begun):
            self.show(replace(event, read_as="", left_over=False))
        elif isinstance(event, Classified | WindowWritten):
            self.show(event)
        else:
            self.close()
            if isinstance(event, Watching):
                before = f"{event.done:,} done and {event.failed:,} failed before"
                self._tell("watching", f"{printable(str(event.folder))}: {before}")
            elif isinstance(event, FileDone):
                counts = event.counts
                parts = [counted(counts.rows_read, "row")]
                parts += [f"{counts.rejected:,} rejected"] if counts.rejected else []
                parts += [f"{counts.unanswered:,} unanswered"] if counts.unanswered else []
                self._tell("done", f"{printable(event.name)}: {', '.join(parts)}")
            elif isinstance(event, FileFailed):
                self._tell("failed", f"{printable(event.name)}: {_in_one_line(event.error)}")
            elif isinstance(event, Waiting):
                self._tell("waiting", _in_one_line(event.error))

    def _tell(self, what: str, text: str) -> None:
        self.line(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {what} {text}")


def _in_one_line(error: UserError) -> str:
    """An error's three parts in one line of a log."""
    parts = ("", error.wrong), ("found: ", error.found), ("fix: ", error.fix)
    return printable("; ".join(f"{label}{text}" for label, text in parts if text))


class RayDisplay(Display):
    """A line now and then: how many files a cluster has classified, and how fast."""

    _rows = 0

    def show(self, event: RayEvent) -> None:
        """Take one event."""
        from newsdesk.prediction.ray_bulk import JobBegun

        if isinstance(event, JobBegun):
            if event.done:
                self.line(f"resuming: {event.done:,} of {counted(event.shards, 'file')} are done")
            return
        self._rows += event.counts.rows_read
        rate = self._rows / max(1e-9, time.monotonic() - self.began)
        self.now_and_then(f"{event.done:,} of {counted(event.of, 'file')}, {rate:,.0f} rows/s")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
