"""The trials of a sweep: who works on which point, what the next one is, and what became of the others.

Optuna keeps them, in a journal that several processes share. Locks are the operating system's, and free when
their holder dies: one of the folder for whoever chooses a point or tells of a trial, and one of each trial in
work.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from newsdesk.errors import UserError, missing_package
from newsdesk.experiments.folder import BEGIN_AGAIN, BEST, JOURNAL, LOCK, TRIALS, SweepFacts, lock_of
from newsdesk.experiments.space import Parameter, Space
from newsdesk.files import damaged, make_folder, open_regular, take_own
from newsdesk.reports.model_card import refresh_card
from newsdesk.runs.folder import RunFolder, put_in_place, run_state

if TYPE_CHECKING:
    import optuna
    from filelock import BaseFileLock

_NAME = "newsdesk"
_LARGEST_JOURNAL = 1 << 30
_ATTEMPTS = 200  # to find a point that was not tried

Metric = Literal["accuracy", "macro_f1", "loss"]
State = Literal["complete", "pruned", "failed", "in work"]


@dataclass(frozen=True)
class Trial:
    """A point, and what became of it.

    Attributes:
        number: from 0 on, in the order of their beginning.
        parameters: the point.
        state: what became of it.
        score: mean of the recipe's metric over its trainings; None unless complete.
        seconds: of its trainings; 0 while in work.
        tokens: of its trainings, likewise.
        reason: why it failed.
    """

    number: int
    parameters: Mapping[str, Parameter]
    state: State
    score: float | None
    seconds: float = 0.0
    tokens: int = 0
    reason: str = ""


class Study:
    """A sweep's folder, opened by one of the processes that work on it."""

    def __init__(self, folder: Path, space: Space, facts: SweepFacts) -> None:
        """Open the journal of a sweep that was begun. Raises UserError where it is damaged."""
        self.folder, self.space, self.facts = folder, space, facts
        self.metric: Metric = space.base.recipe.training.metric
        self._points = space.points(facts.method)
        self._study = self._opened()
        self.trials()  # whose parameters have to be of this space

    @property
    def rises(self) -> bool:
        """Whether a higher score is the better one."""
        return self.metric != "loss"

    def trial_folder(self, number: int) -> Path:
        """The folder of a trial."""
        return self.folder / TRIALS / f"{number:04}"

    def trainings(self) -> list[tuple[int, int]]:
        """(seed, fold) of the trainings of each trial, in their order; fold 0: rows split off or given."""
        first = self.space.base.recipe.training.seed
        folds = range(1, self.facts.folds + 1) if self.facts.folds else (0,)
        return [(first + number, fold) for number in range(self.facts.seeds) for fold in folds]

    def training_folder(self, number: int, seed: int, fold: int) -> Path:
        """The folder of one training."""
        return self.trial_folder(number) / (f"seed-{seed}" + (f"-fold-{fold}" if fold else ""))

    def trials(self) -> list[Trial]:
        """All trials, in their order. Raises UserError for a journal that is not of this sweep."""
        states: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
        found = []
        with self._readable():
            for each in self._study.get_trials(deepcopy=False):
                self.space.values(each.params)
                told = each.user_attrs
                state = states.get(each.state.name, "in work")
                score = float(each.value) if state == "complete" and each.value is not None else None
                of_work = (float(told.get("seconds", 0.0)), int(told.get("tokens", 0)))
                reason = str(told.get("reason", ""))
                found.append(Trial(each.number, dict(each.params), state, score, *of_work, reason))
        return found

    def best(self) -> Trial | None:
        """The complete trial of the best score; of equal ones the first."""
        complete = [trial for trial in self.trials() if trial.score is not None]
        sign = 1 if self.rises else -1
        return max(complete, key=lambda trial: (sign * (trial.score or 0.0), -trial.number), default=None)

    def left(self, most: int | None) -> int:
        """How many points may still be begun."""
        size = self.space.size() if self._points is None else len(self._points)
        known = [count for count in (most, size) if count is not None]
        return max(0, min(known) - len(self._study.get_trials(deepcopy=False)))

    @contextmanager
    def taken(self, most: int | None, may_begin: Callable[[], bool]) -> Iterator[Trial | None]:
        """A trial to work on, which no other process does while the block runs; None where there is none.

        One that was begun, and whose process died or was interrupted, comes first; else a new point, unless
        ``most`` are begun or ``may_begin`` says no.
        """
        lock, trial = self._take(most, may_begin)
        try:
            yield trial
        finally:
            if lock is not None:
                lock.release()

    def _take(
        self, most: int | None, may_begin: Callable[[], bool]
    ) -> tuple[BaseFileLock | None, Trial | None]:
        from filelock import Timeout

        with self._locked():
            for trial in self.trials():
                if trial.state == "in work":
                    with suppress(Timeout):
                        lock = self._lock_of(trial.number)
                        if self.trials()[trial.number].state == "in work":
                            return lock, trial
                        lock.release()
            if not self.left(most) or not may_begin():
                return None, None
            number = len(self.trials())
            point = self._next_point(number)
            if point is None:
                return None, None
            lock = self._lock_of(number)
            self._begin(point)
            return lock, self.trials()[number]

    def report(self, number: int, step: int, score: float) -> bool:
        """Tell the score of a trial's validation; whether Optuna's median pruner would end the trial."""
        with quiet_optuna() as optuna:
            found = self._study.get_trials(deepcopy=False)[number]
            trial = optuna.trial.Trial(self._study, found._trial_id)
            trial.report(score, step)
            return bool(self.facts.prune and trial.should_prune())

    def tell(
        self,
        trial: Trial,
        state: State,
        score: float | None,
        *,
        seconds: float,
        tokens: int,
        reason: str = "",
    ) -> None:
        """Tell what became of a trial, and keep the best one's run and no other."""
        from optuna.trial import TrialState

        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        with self._locked():
            frozen = self._study.get_trials(deepcopy=False)[trial.number]
            storage = self._study._storage
            told = {"seconds": round(seconds, 3), "tokens": tokens, "reason": reason}
            for name, value in told.items():
                storage.set_trial_user_attr(frozen._trial_id, name, value)
            self._study.tell(trial.number, score, state=states[state], skip_if_finished=True)
        self.settle()

    def settle(self) -> None:
        """Put the best trial's run in its place, and remove the runs of all others that are through."""
        with self._locked():
            best, seed = self.best(), self.space.base.recipe.training.seed
            if best is not None and not self.facts.folds:
                run = RunFolder(self.training_folder(best.number, seed, 0) / "run")
                if run_state(run.path) == "a finished run":
                    make_folder(self.folder / BEST)
                    refresh_card(put_in_place(run, self.folder / BEST), retrained=True)
            for trial in self.trials():
                if trial.state != "in work":
                    for of_seed, fold in self.trainings():
                        shutil.rmtree(
                            self.training_folder(trial.number, of_seed, fold) / "run", ignore_errors=True
                        )

    def _next_point(self, number: int) -> dict[str, Parameter] | None:
        """The point of the trial of that number, which no other has; None where all are tried."""
        if self._points is not None:
            return self._points[number] if number < len(self._points) else None
        tried = {self.space.label(trial.parameters) for trial in self.trials()}
        size = self.space.size()
        if size is not None and len(tried) >= size:
            return None
        for attempt in range(_ATTEMPTS):
            point = self._suggested(number, attempt)
            if self.space.label(point) not in tried:
                return point
        return None

    def _suggested(self, number: int, attempt: int) -> dict[str, Parameter]:
        """What the sampler says next, given all trials; the same whenever it is asked again."""
        import optuna

        state = np.random.SeedSequence([self.space.base.recipe.training.seed, number, attempt])
        seed = int(state.generate_state(1)[0])
        # Beyond a few attempts TPE insists on what it knows.
        if self.facts.method == "tpe" and attempt < 10:
            sampler: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(
                seed=seed, multivariate=True, constant_liar=True
            )
        else:
            sampler = optuna.samplers.RandomSampler(seed)
        memory = optuna.create_study(direction=self._direction(), sampler=sampler)
        memory.add_trials(self._study.get_trials(deepcopy=True))
        asked = memory.ask(self._distributions()).params
        ranges = {axis.name: axis.range for axis in self.space.axes}
        return {
            name: value if isinstance(value, str) or (of := ranges[name]) is None else of.rounded(value)
            for name, value in asked.items()
        }

    def _distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        found: dict[str, optuna.distributions.BaseDistribution] = {}
        for axis in self.space.axes:
            if axis.range is None or self._points is not None:
                labels = axis.asked if self._points is None else tuple(axis.choices)
                found[axis.name] = CategoricalDistribution(labels)
            elif axis.range.whole:
                low, high = int(axis.range.low), int(axis.range.high)
                found[axis.name] = IntDistribution(low, high, log=axis.range.by_ratio)
            else:
                found[axis.name] = FloatDistribution(axis.range.low, axis.range.high, log=axis.range.by_ratio)
        return found

    def _direction(self) -> Literal["maximize", "minimize"]:
        return "maximize" if self.rises else "minimize"

    def _begin(self, point: dict[str, Parameter]) -> None:
        """Put a trial in work into the journal: whole, as one line."""
        import optuna

        distributions = self._distributions()
        state = optuna.trial.TrialState.RUNNING
        self._study.add_trial(
            optuna.trial.create_trial(state=state, params=dict(point), distributions=distributions)
        )

    def _opened(self) -> optuna.Study:
        """The study in the journal, created where there is none. Raises UserError for a damaged journal."""
        with quiet_optuna() as library, self._readable():
            path = self.folder / JOURNAL
            if path.exists():
                with open_regular(path) as stream:
                    if stream.seek(0, 2) > _LARGEST_JOURNAL:
                        raise ValueError(f"larger than {_LARGEST_JOURNAL:,} bytes")
            with self._locked():
                lock = _journal_lock(path)
                with lock.lock:  # or the line that another process is writing would look torn
                    _drop_torn_line(path)
                backend = library.storages.journal.JournalFileBackend(str(path), lock)
                storage = library.storages.JournalStorage(backend)
                direction = self._direction()
                study = library.create_study(
                    study_name=_NAME,
                    storage=storage,
                    direction=direction,
                    sampler=library.samplers.RandomSampler(0),  # points are chosen by ``_suggested``
                    pruner=library.pruners.MedianPruner(n_startup_trials=4),
                    load_if_exists=True,
                )
            if len(library.get_all_study_names(storage)) != 1 or study.direction.name.lower() != direction:
                raise ValueError("other studies are in it")
            return cast("optuna.Study", study)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn whatever Optuna makes of a journal that it did not write into a UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"[:200]
            raise damaged(self.folder / JOURNAL, reason, fix=BEGIN_AGAIN) from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with lock_of(self.folder / LOCK):
            yield

    def _lock_of(self, number: int) -> BaseFileLock:
        """The lock of a trial. Raises Timeout where another process holds it."""
        folder = self.trial_folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_of(folder / LOCK)
        lock.acquire(timeout=0)
        return lock


def _journal_lock(path: Path) -> Any:
    """Optuna's own lock outlives a killed process for half a minute; the operating system's does not."""

    class Lock:
        def __init__(self) -> None:
            self.lock = lock_of(Path(f"{path}{LOCK}"))

        def acquire(self) -> bool:
            self.lock.acquire()
            return True

        def release(self) -> None:
            self.lock.release()

    return Lock()


def _drop_torn_line(path: Path) -> None:
    """Remove what a power cut left of a journal's last line: whoever appends to it would spoil both."""
    if not path.exists():
        return
    take_own(path)
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as stream:
            stream.truncate(content.rfind(b"\n") + 1)


@contextmanager
def quiet_optuna() -> Iterator[Any]:
    """Optuna, without its notes on what is experimental. Raises UserError where it is missing."""
    try:
        import optuna
    except ImportError:
        raise missing_package("optuna", "sweep", "a sweep") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield optuna
