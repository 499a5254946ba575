"""Tracking: a training shown by TensorBoard, MLflow or Weights & Biases, which it never waits for.

Each tracker works in a thread of its own, and the run's log.jsonl is its queue: it sends what the log has and
the tracker has not. So a server that was absent, or died, gets the rest when it answers again, a resumed
training continues its tracked run, and nothing is sent twice.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from newsdesk.errors import UserError, counted, first_line, missing_package
from newsdesk.reports.trackers import SECONDS_TO_FINISH, TRACKERS, Beginning, Ending, Point, Tracker
from newsdesk.runs.folder import RunFolder, resumable
from newsdesk.runs.log import Event, Logged, Remark, Started, Step, Validation, read_added
from newsdesk.stored import read_stored, write_stored
from newsdesk.training import rank

TRACKING = "tracking.json"

SECONDS_BETWEEN_SENDS = 2.0
SECONDS_BEFORE_RETRY = 60.0
SECONDS_IN_TROUBLE = 10.0
"""How long a training waits that is interrupted or fails, or whose tracker has not answered before."""

_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Tracked:
    """Under what a run is tracked, tracking.json.

    Attributes:
        id: 32 hexadecimal digits by which its trackers find it again.
        trackers: their names.
        complete: those that have everything up to the end of the training.
    """

    id: str
    trackers: tuple[str, ...]
    complete: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for an id that is none, which could lead out of a folder, and unknown trackers."""
        if not _ID.fullmatch(self.id):
            raise ValueError(f"id is {self.id!r:.80}, not 32 hexadecimal digits")
        if unknown := {*self.trackers, *self.complete} - TRACKERS.keys():
            raise ValueError(f"trackers has {min(unknown)!r:.80}, not one of {', '.join(TRACKERS)}")

    @classmethod
    def of(cls, run: RunFolder) -> Tracked | None:
        """That of a run; None for one that is not tracked. Raises UserError when the file is damaged."""
        path = run.path / TRACKING
        if not os.path.lexists(path):
            return None
        return read_stored(path, cls, fix="delete it: the training is tracked as a new one then")


def require_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker that there is not, or whose package is missing."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(
                f"there is no tracker called {name!r}",
                found=f"trackers: {', '.join(TRACKERS)}",
                fix="give one of these names to --track",
            )
        for package in missing_packages(name):
            raise missing_package(package, name, f"--track {name}")


def missing_packages(name: str) -> list[str]:
    """The packages of a tracker that are not installed."""
    return [package for package in TRACKERS[name].packages if find_spec(package) is None]


class _Worker(threading.Thread):
    """Sends one run to one tracker; a daemon, so that no process stays for its sake."""

    def __init__(self, name: str, beginning: Beginning, run: RunFolder) -> None:
        super().__init__(name=f"newsdesk-{name}", daemon=True)
        self.tracker_name, self.beginning, self.log = name, beginning, run.log
        self.trouble: str | None = None
        self.done = False
        self._ending: Ending | None = None
        self._ended = threading.Event()

    def end(self, ending: Ending, log: Path) -> None:
        """Let it send the rest of ``log``, and then the ending."""
        self._ending, self.log = ending, log
        self._ended.set()

    def run(self) -> None:
        """Send until the ending is sent; after a failure begin again, once more at the end."""
        while not self.done:
            last = self._ended.is_set()
            try:
                self._send()
                self.done = True
            except Exception as error:  # whatever a tracker raises, the training goes on
                self.trouble = self.trouble or first_line(error) or type(error).__name__
                if last:
                    return
                self._ended.wait(SECONDS_BEFORE_RETRY)

    def _send(self) -> None:
        """Begin, send what the log has and the tracker has not, and more as it comes, until the end."""
        tracker: Tracker = TRACKERS[self.tracker_name]()
        known = tracker.begin(self.beginning)
        place, lines = 0, list[str]()
        while True:
            ending = self._ending if self._ended.is_set() else None
            logged, place = read_added(self.log, place)
            if new := [line for entry in logged for line in _described(entry.event)]:
                lines += [line for line in new if line not in lines]
                tracker.describe("\n".join(f"- {line}" for line in lines))
            points = [point for point in _points(logged, self.log) if point.step > known.get(point.kind, 0)]
            if points:
                tracker.add(points)
            if ending is not None:
                return tracker.end(ending)
            self._ended.wait(SECONDS_BETWEEN_SENDS)


def _points(logged: Sequence[Logged], log: Path) -> Iterator[Point]:
    """The points among events; the log was last written when the last of them happened."""
    if logged:
        began = log.stat().st_mtime - logged[-1].seconds
        for entry in logged:
            if isinstance(entry.event, Step | Validation):
                yield Point.of(entry.event, began + entry.seconds)


def _described(event: Event) -> Iterator[str]:
    """What to know of a training, a line each."""
    if isinstance(event, Started):
        yield f"{event.split}, {counted(event.steps, 'step')}"
        yield f"on {event.device} in {event.precision}, {event.engine}"
    elif isinstance(event, Remark):
        yield event.text


class Tracking:
    """Tracks one training.

    As a context manager it tells the trackers of a training that fails. Of processes that train together the
    first one alone tracks.
    """

    def __init__(
        self,
        names: str | Sequence[str] | None,
        out: Path,
        observe: Callable[[Event], None],
        *,
        name: str | None = None,
        resume: bool = False,
    ) -> None:
        """Prepare to track the training at ``out``; with ``resume`` by the trackers it has already, too.

        ``observe`` is called with every event and, as remarks, with what trackers fail in; ``name`` is shown
        by the trackers. Raises UserError for a tracker that there is not, or whose package is missing.
        """
        begun = resumable(out) if resume else None
        self._tracked = None if begun is None else Tracked.of(begun)
        asked = (names,) if isinstance(names, str) else tuple(names or ())
        before = () if self._tracked is None else self._tracked.trackers
        self._names = tuple(dict.fromkeys((*before, *asked)))
        require_trackers(self._names)
        if rank() > 0:
            self._names = ()
        self._out, self._observe, self._name = out, observe, name or out.resolve().name
        self._workers: list[_Worker] = []
        self._told: set[str] = set()

    def observe(self, event: Event) -> None:
        """Take one event of the training; at the first one the trackers begin."""
        if self._names and not self._workers:
            run = resumable(self._out)
            assert run is not None  # it is laid out before its first event
            self._begin(run, self._names)
        self._observe(event)
        self._tell()

    def finish(self, run: RunFolder, *, again: bool = False) -> None:
        """Send what the training came to, and wait for the trackers, at most a minute.

        A run that had finished before is sent where a tracker lacks its end, or ``again``.
        """
        if not self._workers:
            complete = () if again or self._tracked is None else self._tracked.complete
            if names := [name for name in self._names if name not in complete]:
                self._begin(run, names)
        if not self._workers or run.manifest.training is None:
            return
        with ExitStack() as scratch:
            folder = scratch.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            self._end(Ending.of(run, Path(folder)), run)
        if run.is_complete():
            assert self._tracked is not None
            done = tuple(worker.tracker_name for worker in self._workers if worker.done)
            complete = tuple(name for name in self._names if name in {*self._tracked.complete, *done})
            if complete != self._tracked.complete:
                self._tracked = replace(self._tracked, complete=complete)
                write_stored(run.path / TRACKING, self._tracked)
                run.reseal()

    def __enter__(self) -> Self:
        """The tracking itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell the trackers where the training failed."""
        run = resumable(self._out) if self._workers and error is not None else None
        if run is not None:
            self._end(Ending("interrupted" if kind is KeyboardInterrupt else "failed", time.time()), run)

    def _begin(self, run: RunFolder, names: Sequence[str]) -> None:
        """Note under what the run is tracked, and start a worker for each of the ``names``."""
        trackers = tuple(self._names)
        self._tracked = replace(self._tracked or Tracked(uuid.uuid4().hex, trackers), trackers=trackers)
        if Tracked.of(run) != self._tracked:
            write_stored(run.path / TRACKING, self._tracked)
        beginning = Beginning.of(run, self._tracked.id, self._name)
        self._workers = [_Worker(name, beginning, run) for name in names]
        for worker in self._workers:
            worker.start()

    def _end(self, ending: Ending, run: RunFolder) -> None:
        for worker in self._workers:
            worker.end(ending, run.log)
        troubled = ending.status != "finished" or any(worker.trouble for worker in self._workers)
        deadline = time.monotonic() + (SECONDS_IN_TROUBLE if troubled else SECONDS_TO_FINISH)
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
            if worker.is_alive() and worker.trouble is None:
                worker.trouble = "it did not answer in time"
        self._tell()

    def _tell(self) -> None:
        """Say once of each tracker that it failed."""
        for worker in self._workers:
            if worker.trouble is not None and not worker.done and worker.tracker_name not in self._told:
                self._told.add(worker.tracker_name)
                found = f"{worker.tracker_name} did not take what is tracked: {worker.trouble}"
                later = "what is missing is sent later, at the latest by newsdesk train --resume"
                self._observe(Remark(f"{found}. Training goes on; {later}"))


def track_evaluation(run: RunFolder, tell: Callable[[str], None]) -> None:
    """Send what a tracked run has after an evaluation; ``tell`` is called with what fails."""
    try:
        tracking = Tracking((), run.path, lambda event: tell(getattr(event, "text", "")), resume=True)
    except UserError as error:
        tell(f"{error.wrong}: it did not get these figures")
        return
    tracking.finish(run, again=True)
