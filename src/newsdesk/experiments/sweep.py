"""A sweep: trial after trial through the ordinary training, on the same validation rows for all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from newsdesk.config import SWEEPS, Recipe, ResolvedRecipe, read_recipe, recipe_names, resolve
from newsdesk.errors import UserError, counted, first_line
from newsdesk.experiments.folder import Outcome, SweepFacts, begin, begun, require_same
from newsdesk.experiments.results import Answers, SweepResults, score_of
from newsdesk.experiments.rows import SweepRows
from newsdesk.experiments.space import METHODS, Method, Space
from newsdesk.experiments.study import Study, Trial
from newsdesk.files import write_bytes
from newsdesk.model.catalog import resolve_base
from newsdesk.progress import Progress
from newsdesk.runs.calibration import HeldOutRows, write_held_out_rows
from newsdesk.runs.folder import RunFolder
from newsdesk.runs.log import Event, Finished, Started, Step, Validation, read_log
from newsdesk.runs.manifest import RowFacts
from newsdesk.training import started_by_torchrun

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from newsdesk.training.loop import TrainingLoop

USUAL_TRIALS = 20
"""Of random and TPE where nothing is said."""


class SweepSettings(TypedDict, total=False):
    """What may be asked of a sweep besides the keys to vary: see `Asked`."""

    method: Method | None
    trials: int | None
    seeds: int | None
    folds: int | None
    budget: str | None
    prune: bool | None


@dataclass(frozen=True)
class Asked:
    """What is asked of a sweep; None: not said, and as the sweep file or the usual has it.

    Attributes:
        vary: what is varied, as ``--vary`` takes it.
        method: how points are chosen: ``grid``.
        trials: points at most: all of a grid or of one-by-one, else 20.
        seeds: trainings of each point: 1.
        folds: of a cross-validation: none.
        budget: when no new trial is begun, ``45m`` or ``5Mtokens``: never.
        prune: whether trials are ended early that do worse than most: not.
    """

    vary: tuple[str, ...] = ()
    method: Method | None = None
    trials: int | None = None
    seeds: int | None = None
    folds: int | None = None
    budget: str | None = None
    prune: bool | None = None


@dataclass(frozen=True)
class TrialBegun:
    """A trial is about to be trained: its number from 0 on, how many are known, its point, its trainings."""

    number: int
    of: int
    label: str
    trainings: int


@dataclass(frozen=True)
class TrainingBegun:
    """One of a trial's trainings, from 1 on, is about to begin; ``fold`` 0: no cross-validation."""

    training: int
    seed: int
    fold: int


@dataclass(frozen=True)
class TrialEnded:
    """What became of a trial; ``left`` is how many may follow."""

    trial: Trial
    label: str
    is_best: bool
    left: int


SweepEvent = TrialBegun | TrainingBegun | TrialEnded | Event
Observer = Callable[[SweepEvent], None]


class _Pruned(Exception):  # noqa: N818
    """A training is ended because its trial does worse than most."""


class _FailedError(Exception):
    """A training failed because of its point."""

    def __init__(self, reason: str, error: UserError) -> None:
        super().__init__(reason)
        self.error = error


_FAILURES = 3
"""Trials that fail before any is complete: then it is not the points."""


def read_sweep(
    name_or_path: str, asked: Asked, flags: Mapping[str, Any], overrides: tuple[str, ...]
) -> tuple[ResolvedRecipe, Asked]:
    """A sweep file, or one that comes with newsdesk, by name; what is asked for besides takes precedence.

    Raises UserError for a file without a section [sweep], and for what it says wrongly.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml" and not path.is_file() and name_or_path not in (*recipe_names(), *SWEEPS):
        raise UserError(
            f"there is no sweep called {name_or_path!r}",
            found=f"sweeps: {', '.join(SWEEPS)}",
            fix="give this name, the path of a .toml file with a section [sweep], or --recipe and --vary",
        )
    content = read_recipe(name_or_path)
    section = content.pop("sweep", None)
    if not isinstance(section, dict):
        raise UserError(
            f"{name_or_path} is no sweep",
            found="no section [sweep]" if section is None else f"sweep = {section!r:.80}",
            fix=f"newsdesk sweep --recipe {name_or_path} --vary KEY=VALUES varies a recipe",
        )
    faults: list[str] = []
    vary = section.pop("vary", [])
    texts = []
    for number, each in enumerate(vary if isinstance(vary, list) else [vary], start=1):
        keys, values = (each.get(name) for name in ("keys", "values")) if isinstance(each, dict) else (0, 0)
        if isinstance(keys, str) and isinstance(values, str) and len(each) == 2:
            texts.append(" ".join(f"{keys}={values}".split()))
        else:
            faults.append(f"[[sweep.vary]] {number}: it takes keys and values, two texts as --vary has them")
    kinds: dict[str, tuple[type, Any]] = {
        **{name: (int, lambda value: value > 0) for name in ("trials", "seeds")},
        "folds": (int, lambda value: value >= 2),
        "method": (str, METHODS.__contains__),
        "budget": (str, lambda value: bool(Budget.of(value))),
        "prune": (bool, lambda _value: True),
    }
    for key, value in section.items():
        if key not in kinds:
            faults.append(f"sweep.{key}: no such key; there are {', '.join(kinds)} and vary")
        elif type(value) is not kinds[key][0] or not kinds[key][1](value):
            faults.append(f"sweep.{key}: {value!r:.80} is not possible")
    if faults:
        raise UserError(
            f"the sweep {name_or_path} has {counted(len(faults), 'fault')}", found="\n       ".join(faults)
        )
    given = {name: value for name, value in vars(asked).items() if value not in (None, ())}
    merged = Asked(**{"vary": tuple(texts), **section, **given})
    return resolve(content, name_or_path, flags, overrides), merged


@dataclass(frozen=True)
class Budget:
    """When no new trial is begun: after so many seconds, or tokens, of all trainings together."""

    seconds: float | None = None
    tokens: float | None = None

    @classmethod
    def of(cls, text: str) -> Budget:
        """``90s``, ``45m``, ``2h`` or ``1.5h``; ``800ktokens``, ``5Mtokens``. Raises UserError for others."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([smh])|([kMG]?) ?tokens)", text.strip())
        if found is None or not float(found[1]):
            raise UserError(
                f"--budget {text!r} is neither a time nor tokens",
                fix="for example --budget 45m (s, m, h) or --budget 5Mtokens (k, M, G)",
            )
        if found[2]:
            return cls(seconds=float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]])
        return cls(tokens=float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[found[3]])

    def is_spent(self, trials: list[Trial]) -> bool:
        """Whether what is through has taken all of it."""
        seconds = sum(trial.seconds for trial in trials)
        tokens = sum(trial.tokens for trial in trials)
        return (self.seconds is not None and seconds >= self.seconds) or (
            self.tokens is not None and tokens >= self.tokens
        )


def run_sweep(
    base: ResolvedRecipe,
    asked: Asked,
    out: Path,
    *,
    observe: Observer = lambda _event: None,
    progress: Progress | None = None,
) -> SweepResults:
    """Train points of a space, or what is left of it, and keep what each came to in the folder ``out``.

    The same call on the same folder continues a sweep that was killed or interrupted: finished trainings are
    kept, and the one that was in work resumes from its checkpoint. Several processes share the work.

    Raises UserError for anything that recipe, data, folder or machine do not allow.
    """
    if started_by_torchrun():
        raise UserError(
            "a sweep does not train one adapter in several processes",
            found="it was started by torchrun",
            fix="start the same newsdesk sweep several times: the processes share the trials",
        )
    folds = asked.folds or base.recipe.data.folds or 0
    # Of a cross-validation every fold is a training of the sweep.
    data = base.recipe.data.model_copy(update={"folds": 0})
    base = replace(base, recipe=base.recipe.model_copy(update={"data": data}))
    seed = base.recipe.training.seed
    method: Method = asked.method or "grid"
    given = bool(folds) or data.validation is not None
    space = Space.of(base, asked.vary, method, rows_are_given=given)
    base = space.base
    trials = asked.trials or (None if method in ("grid", "one-by-one") else USUAL_TRIALS)
    budget = Budget.of(asked.budget) if asked.budget else Budget()
    if asked.prune:
        _require_validations(base.recipe)
    unknown = RowFacts("", 0, "")
    facts = SweepFacts(
        *("", "", method, asked.vary, asked.seeds or 1, folds, bool(asked.prune)),
        *(trials, asked.budget, unknown, unknown),
    )
    if (before := begun(out)) is not None:
        require_same(out, before, base, facts)
    rows = SweepRows(data, seed, folds, progress)
    facts = begin(out, base, replace(facts, train=rows.train_facts, validation=rows.validation_facts))
    if base.recipe.training.baseline and facts.baseline is None:
        facts = begin(out, base, replace(facts, baseline=rows.baseline(progress)))
    study = Study(out, space, facts)
    study.settle()
    interrupted = False
    while not interrupted:
        with study.taken(trials, lambda: not budget.is_spent(study.trials())) as trial:
            if trial is None:
                break
            interrupted = not _Trial(study, trial, rows, observe, progress).run()
    return SweepResults.of(study, rows.label_names, interrupted=interrupted)


def _require_validations(recipe: Recipe) -> None:
    if recipe.training.validate_every is None and recipe.training.epochs <= 1:
        raise UserError(
            "--prune compares trials by their validations, of which each training has only one, at its end",
            found=f"training.epochs = {recipe.training.epochs}, and no training.validate_every",
            fix="validate more often, for example --set training.validate_every=0.25",
        )


class _Trial:
    """The trainings of one point."""

    def __init__(
        self,
        study: Study,
        trial: Trial,
        rows: SweepRows,
        observe: Observer,
        progress: Progress | None,
    ) -> None:
        self.study, self.trial, self.rows = study, trial, rows
        self.observe, self.progress = observe, progress
        self.label = study.space.label(trial.parameters)
        self.trainings = study.trainings()
        self._training, self._steps = 1, 1

    def run(self) -> bool:
        """Train what is not trained yet, and tell what became of it; False where it was interrupted."""
        study, trial = self.study, self.trial
        count = len(study.trials())
        self.observe(
            TrialBegun(trial.number, count + study.left(study.facts.trials), self.label, len(self.trainings))
        )
        try:
            for number, (seed, of_fold) in enumerate(self.trainings, start=1):
                self._training = number
                self.observe(TrainingBegun(number, seed, of_fold))
                if not self._train(seed, of_fold):
                    return False
        except _Pruned:
            self._tell("pruned")
        except _FailedError as failure:
            self._tell("failed", reason=str(failure))
            states = [each.state for each in study.trials()]
            if states.count("failed") >= _FAILURES and "complete" not in states:
                raise failure.error from None
        else:
            answers = Answers.of(study, trial.number, self.rows.label_names)
            self._tell("complete", score_of(answers, self.rows.label_names, study.metric))
        return True

    def _train(self, seed: int, of_fold: int) -> bool:
        """One training, unless it is through already; False where it was interrupted."""
        from newsdesk.training.run import OneOfMany, run_training

        study, folder = self.study, self.study.training_folder(self.trial.number, seed, of_fold)
        run = RunFolder(folder / "run")
        may_be_kept = (seed, of_fold) == (study.space.base.recipe.training.seed, 0)
        if Outcome.read(folder) is not None and (
            not may_be_kept or run.is_complete() or not run.path.exists()
        ):
            return True
        recipe = self._recipe(seed)
        resolve_base(
            recipe.recipe.model.base, progress=self.progress
        )  # that it is missing is not the point's
        data = self.rows.of(recipe.recipe.data, of_fold)

        def keep(loop: TrainingLoop, logits: NDArray[np.float32] | None) -> None:
            rows = data.validation
            assert logits is not None  # there are validation rows
            assert rows.labels is not None
            write_held_out_rows(folder, HeldOutRows(logits, rows.labels, rows.fingerprint()))
            write_bytes(folder / run.log.name, run.log.read_bytes())
            parameters = sum(parameter.numel() for parameter in loop.trained)
            # Written last: it says that the training is through.
            Outcome(seed, of_fold, *_work_in(run.log), loop.step, parameters).write(folder)

        try:
            trained = run_training(
                recipe,
                run.path,
                resume=True,
                observe=self._take,
                progress=self.progress,
                part=OneOfMany(data, keep),
            )
        except UserError as error:
            # What a point's values make of a training is its result; a full disk is not.
            if isinstance(error.__cause__, OSError):
                raise
            raise _FailedError(error.wrong, error) from error
        if trained.manifest.is_interrupted:
            return False
        if not may_be_kept:
            shutil.rmtree(run.path)
        return True

    def _recipe(self, seed: int) -> ResolvedRecipe:
        try:
            return self.study.space.recipe(self.trial.parameters, seed)
        except UserError as error:  # values that are possible, but not together
            raise _FailedError(first_line(error.found), error) from error

    def _take(self, event: Event) -> None:
        if isinstance(event, Started):
            self._steps = event.steps
        self.observe(event)
        if isinstance(event, Validation):
            metric = self.study.metric
            accuracy = event.accuracy if event.micro_f1 is None else event.micro_f1
            score = {"accuracy": accuracy, "macro_f1": event.macro_f1, "loss": event.loss}[metric]
            # How far the trial is, the same for trials whose batches are of other sizes, and after a kill.
            done = round(1000 * (self._training - 1 + event.step / self._steps))
            if self.study.report(self.trial.number, done, score):
                raise _Pruned

    def _tell(self, state: Any, score: float | None = None, *, reason: str = "") -> None:
        study, number = self.study, self.trial.number
        seconds, tokens = 0.0, 0
        for training in self.trainings:
            folder = study.training_folder(number, *training)
            log, of_run = folder / "log.jsonl", folder / "run" / "log.jsonl"
            if of_run.exists() and not log.exists():  # of a training that did not come to its end
                write_bytes(log, of_run.read_bytes())
            if log.exists():
                spent = _work_in(log)
                seconds, tokens = seconds + spent[0], tokens + spent[1]
        study.tell(self.trial, state, score, seconds=seconds, tokens=tokens, reason=reason)
        best = study.best()
        told = study.trials()[number]
        is_best = best is not None and best.number == number
        self.observe(TrialEnded(told, self.label, is_best, study.left(study.facts.trials)))


def _work_in(log: Path) -> tuple[float, int]:
    """Seconds and tokens of a training, by its log."""
    seconds, tokens = 0.0, 0
    for entry in read_log(log, Step, Validation, Finished):
        seconds = entry.seconds
        if isinstance(entry.event, Step):
            tokens += entry.event.tokens
    return seconds, tokens
