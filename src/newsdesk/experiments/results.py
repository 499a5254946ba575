"""What the trials of a sweep came to: figures with intervals, what is noise, and a table for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import counted
from newsdesk.evaluation.significance import label_set_f1_without_each, macro_f1_without_each
from newsdesk.experiments.folder import BEST, RECIPE, RESULTS, Outcome
from newsdesk.experiments.noise import (
    METHOD,
    METHOD_OF_ONE_SEED,
    METHOD_OF_ONE_SEED_OF_SETS,
    Against,
    Values,
    against_best,
    intervals,
    optimism,
)
from newsdesk.experiments.space import override, shown
from newsdesk.experiments.study import Metric, Study, Trial
from newsdesk.files import atomic_writer, damaged
from newsdesk.label_set_metrics import Counts
from newsdesk.metrics import evaluate_probabilities
from newsdesk.prediction.predictions import delimited_lines
from newsdesk.runs.calibration import CALIBRATION_ROWS, read_held_out_rows, softmax
from newsdesk.stored import OPTIONAL, to_content

Labels = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Answers:
    """What the trainings of a complete trial say of the validation rows.

    Attributes:
        logits: float32 (seeds, rows, classes); of a cross-validation the folds' rows one after another.
        labels: int64 (rows,), as they were when it was trained; bool (rows, labels) where a
            text may have several.
        outcomes: what each training took, in the order of ``Study.trainings``.
    """

    logits: NDArray[np.float32]
    labels: Labels
    outcomes: tuple[Outcome, ...]

    @classmethod
    def of(cls, study: Study, number: int, names: Sequence[str]) -> Answers:
        """Those of a trial. Raises UserError for files that are missing, damaged or of other rows."""
        outcomes, by_seed = [], dict[int, list[Any]]()
        for seed, fold in study.trainings():
            folder = study.training_folder(number, seed, fold)
            outcome, rows = Outcome.read(folder), read_held_out_rows(folder)
            if outcome is None or rows is None:
                raise damaged(folder, "an outcome or answers are missing", fix=_FIX)
            outcomes.append(outcome)
            by_seed.setdefault(seed, []).append(rows)
        labels = [np.concatenate([rows.labels for rows in parts]) for parts in by_seed.values()]
        classes = {rows.logits.shape[1] for parts in by_seed.values() for rows in parts}
        if classes != {len(names)} or any(not np.array_equal(each, labels[0]) for each in labels):
            raise damaged(study.trial_folder(number) / CALIBRATION_ROWS, "answers of other rows", fix=_FIX)
        logits = [np.concatenate([rows.logits for rows in parts]) for parts in by_seed.values()]
        return cls(np.stack(logits), labels[0], tuple(outcomes))

    def figures(self, names: Sequence[str]) -> tuple[Figures, ...]:
        """The figures of each seed."""
        found = []
        seeds = list(dict.fromkeys(outcome.seed for outcome in self.outcomes))
        for seed, logits in zip(seeds, self.logits, strict=True):
            measured = self._measured(logits, names)
            parts = [outcome for outcome in self.outcomes if outcome.seed == seed]
            found.append(
                Figures(
                    seed,
                    *measured[:3],
                    round(sum(part.seconds for part in parts), 3),
                    sum(part.tokens for part in parts),
                    max(part.parameters for part in parts),
                    micro_f1=measured[3],
                )
            )
        return tuple(found)

    @property
    def several(self) -> bool:
        """Whether a text may have several labels."""
        return self.labels.ndim == 2

    def _measured(
        self, logits: NDArray[np.float32], names: Sequence[str]
    ) -> tuple[float, float, float, float | None]:
        """Accuracy, macro F1, loss and micro F1 of logits (rows, classes), as a validation has them."""
        if not self.several:
            metrics = evaluate_probabilities(softmax(logits), self.labels, names)
            return metrics.accuracy, metrics.macro_f1, metrics.negative_log_likelihood, None
        assigned = logits > 0
        counts, same = Counts.of(assigned, self.labels), (assigned == self.labels).all(axis=1)
        loss = -_log_likelihoods(logits, self.labels).mean()
        return float(same.mean()), float(counts.macro_f1()), float(loss), float(counts.micro_f1())

    def values(self, metric: Metric) -> Values:
        """(seeds, rows): what the metric is a mean of; the higher, the better.

        1 for a right answer; the log-likelihood; for F1 the jackknife's pseudo-values (Tukey, 1958).
        """
        if self.several:
            return self._values_of_sets(metric)
        predicted = self.logits.argmax(axis=2)
        if metric == "accuracy":
            return np.asarray(predicted == self.labels, dtype=np.float64)
        if metric == "loss":
            likely = np.stack([softmax(logits) for logits in self.logits]).astype(np.float64)
            of_true = likely[:, np.arange(len(self.labels)), self.labels]
            return np.asarray(np.log(np.maximum(of_true, 1e-12)))
        rows, classes = len(self.labels), self.logits.shape[2]
        pairs = [macro_f1_without_each(self.labels, of_seed, classes) for of_seed in predicted]
        return np.stack([rows * whole - (rows - 1) * without for whole, without in pairs])

    def _values_of_sets(self, metric: Metric) -> Values:
        """The same where a text may have several labels: micro F1 in place of accuracy."""
        if metric == "loss":
            return np.stack([_log_likelihoods(logits, self.labels).mean(axis=1) for logits in self.logits])
        rows, found = len(self.labels), []
        for logits in self.logits:
            whole, without = label_set_f1_without_each(self.labels, logits > 0, macro=metric == "macro_f1")
            found.append(rows * whole - (rows - 1) * without)
        return np.stack(found)


def _log_likelihoods(logits: NDArray[np.float32], labels: NDArray[np.bool_]) -> Values:
    """ln p of what is true, of each label of each row; all arrays are (rows, labels)."""
    return np.asarray(-np.logaddexp(0.0, np.where(labels, -1.0, 1.0) * logits.astype(np.float64)))


_MOST_COLUMNS = 3
_FIX = "delete the folder of the trial's training, and it is trained again"


@dataclass(frozen=True)
class Figures:
    """What one seed of a point reached on all validation rows, and what that took.

    Where a text may have several labels there is a ``micro_f1``, and the accuracy is the share of texts with
    just the right ones.
    """

    seed: int
    accuracy: float
    macro_f1: float
    loss: float
    seconds: float
    tokens: int
    parameters: int
    micro_f1: float | None = field(default=None, metadata=OPTIONAL)

    def score(self, metric: Metric) -> float:
        """The figure that a recipe's metric stands for: micro F1 for accuracy where there is one."""
        if metric == "accuracy" and self.micro_f1 is not None:
            return self.micro_f1
        return float(getattr(self, metric))


def score_of(answers: Answers, names: Sequence[str], metric: Metric) -> float:
    """The mean of a metric over seeds."""
    return float(np.mean([figures.score(metric) for figures in answers.figures(names)]))


@dataclass(frozen=True)
class Point:
    """A complete trial and its figures.

    Attributes:
        trial: as Optuna knows it.
        values: its recipe values by dotted key.
        seeds: the figures of each seed.
        score: mean of the recipe's metric over the seeds.
        interval: its 95 % interval over rows and seeds.
        against: it beside the best point; None for that one.
    """

    trial: Trial
    values: Mapping[str, Any]
    seeds: tuple[Figures, ...]
    score: float
    interval: tuple[float, float]
    against: Against | None

    def mean(self, name: str) -> float:
        """The mean of one of the figures over the seeds."""
        return float(np.mean([getattr(figures, name) for figures in self.seeds]))

    @property
    def label(self) -> str:
        """Its values in words."""
        return ", ".join(f"{key}={shown(value)}" for key, value in self.values.items())

    @property
    def verdict(self) -> str:
        """The point beside the best one: ``best``, ``noise`` where it cannot be told from that, ``worse``."""
        if self.against is None:
            return "best"
        return "noise" if self.against.is_noise else "worse"

    @property
    def evidence(self) -> str:
        """What the verdict rests on: ``p = 0.021``."""
        return "" if self.against is None else f"p = {self.against.p_value:.2g}"


@dataclass(frozen=True)
class SweepResults:
    """All of a sweep.

    Attributes:
        study: its folder.
        points: complete trials, the best first.
        others: pruned and failed trials, and those in work.
        rows: how many rows they are measured on.
        optimism: by how much the best score is likely too good, in the metric's unit.
        interrupted: whether the process was asked to stop.
    """

    study: Study
    points: tuple[Point, ...]
    others: tuple[Trial, ...]
    rows: int
    optimism: float
    interrupted: bool = False

    @classmethod
    def of(cls, study: Study, names: Sequence[str], *, interrupted: bool = False) -> SweepResults:
        """Read what the trials left. Raises UserError for files that are missing or damaged."""
        trials = study.trials()
        complete = [trial for trial in trials if trial.state == "complete"]
        others = tuple(trial for trial in trials if trial.state != "complete")
        if not complete:
            return cls(study, (), others, 0, 0.0, interrupted)
        sign = 1 if study.rises else -1
        complete.sort(key=lambda trial: (-sign * (trial.score or 0.0), trial.number))
        answers = [Answers.of(study, trial.number, names) for trial in complete]
        for trial, each in zip(complete, answers, strict=True):
            if not np.array_equal(each.labels, answers[0].labels):
                raise damaged(study.trial_folder(trial.number), "answers of other rows", fix=_FIX)
        values = [each.values(study.metric) for each in answers]
        shares = study.metric == "accuracy" or (answers[0].several and study.metric == "macro_f1")
        ranges = intervals(values, shares=shares)
        beside = against_best(values, 0, shares=shares)
        points = []
        for trial, each, (low, high), against in zip(complete, answers, ranges, beside, strict=True):
            figures = each.figures(names)
            score = float(np.mean([of_seed.score(study.metric) for of_seed in figures]))
            interval = (low, high) if study.rises else (-high, -low)
            if study.metric == "macro_f1":
                interval = (max(0.0, low), min(1.0, high))
            interval = (min(interval[0], score), max(interval[1], score))
            points.append(
                Point(trial, study.space.values(trial.parameters), figures, score, interval, against)
            )
        rows = len(answers[0].labels)
        return cls(study, tuple(points), others, rows, optimism(values, 0), interrupted)

    @property
    def in_work(self) -> int:
        """How many trials are in work, by other processes or until the sweep goes on."""
        return sum(trial.state == "in work" for trial in self.others)

    @property
    def several(self) -> bool:
        """Whether a text may have several labels."""
        return any(of_seed.micro_f1 is not None for point in self.points for of_seed in point.seeds)

    @property
    def metric_name(self) -> str:
        """The recipe's metric in words."""
        return {
            "accuracy": "micro F1" if self.several else "accuracy",
            "macro_f1": "macro F1",
            "loss": "loss",
        }[self.study.metric]

    @property
    def measured_on(self) -> str:
        """The rows in words."""
        folds = self.study.facts.folds
        return counted(self.rows, "validation row") + (f", out of {folds} folds" if folds else "")

    @property
    def seconds(self) -> float:
        """Of all trainings of the trials that are through."""
        return sum(trial.seconds for trial in self.study.trials())

    @property
    def tokens(self) -> int:
        """Trained on, likewise."""
        return sum(trial.tokens for trial in self.study.trials())

    def shown(self, score: float) -> str:
        """A score in words: ``93.92 %``, ``0.1874``."""
        return f"{score:.4f}" if self.study.metric == "loss" else f"{100 * score:.2f} %"

    def shown_interval(self, interval: tuple[float, float]) -> str:
        """``93.12 to 94.64``."""
        return " to ".join(self.shown(end).removesuffix(" %") for end in interval)

    def shown_difference(self, against: Against) -> tuple[str, str]:
        """The best point's score minus another's, and its interval."""
        # Values are such that the higher one is the better.
        ends = (against.difference, *against.interval)
        middle, low, high = ends if self.study.rises else (-ends[0], -ends[2], -ends[1])
        digits, scale = (4, 1) if self.study.metric == "loss" else (2, 100)
        return f"{scale * middle:+.{digits}f}", f"{scale * low:+.{digits}f} to {scale * high:+.{digits}f}"

    @property
    def noise_sentence(self) -> str:
        """How many points cannot be told from the best one."""
        others = self.points[1:]
        noise = sum(point.against is not None and point.against.is_noise for point in others)
        if not others:
            return "there is one point alone, and nothing to compare"
        basis = f"on {counted(self.rows, 'row')} with {counted(self.study.facts.seeds, 'seed')}"
        if not noise:
            return f"the best point is better than {counted(len(others), 'other point')} {basis}"
        worse = f"; {len(others) - noise:,} worse" if noise < len(others) else ""
        return (
            f"{noise:,} of {counted(len(others), 'other point')} cannot be told from the best one {basis}: "
            f"noise{worse}"
        )

    @property
    def optimism_sentence(self) -> str:
        """What choosing the best of several by the rows that they are measured on does to its score."""
        if self.study.metric == "loss":
            amount = f"{self.optimism:.4f} too low"
        else:
            amount = f"{100 * self.optimism:.2f} points too high"
        points = counted(len(self.points), "point")
        return f"the best of {points} was chosen by the rows it is measured on: its score is likely {amount}"

    @property
    def takes_all_rows(self) -> bool:
        """Whether the winner's command leaves no rows to validate on."""
        return not self.study.facts.folds and self.study.facts.validation.is_split_off

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The dotted keys that are varied."""
        return tuple(dict.fromkeys(key for axis in self.study.space.axes for key in axis.keys))

    def columns(self, point: Point) -> dict[str, str]:
        """A point in columns of a table: one a key, or where that is too wide, what is not the recipe's."""
        if len(self.keys) <= _MOST_COLUMNS and self.study.facts.method != "one-by-one":
            return {key: shown(value) for key, value in point.values.items()}
        own = self.study.space.values(self.study.space.own_point())
        changed = {key: shown(value) for key, value in point.values.items() if value != own[key]}
        named = ", ".join(f"{key}={value}" for key, value in changed.items())
        return {"changed": named or "nothing: the recipe itself"}

    @property
    def how(self) -> str:
        """How differences are told from noise, with the sources of the method."""
        if self.study.facts.seeds > 1:
            return METHOD
        return METHOD_OF_ONE_SEED_OF_SETS if self.several else METHOD_OF_ONE_SEED

    @property
    def baseline_sentence(self) -> str | None:
        """What a linear model reaches on these rows; None where none was measured."""
        found = self.study.facts.baseline
        if found is None:
            return None
        share, interval, unit = found.accuracy, found.accuracy_interval, "accuracy"
        if found.micro_f1 is not None and found.micro_f1_interval is not None:
            share, interval, unit = found.micro_f1, found.micro_f1_interval, "micro F1"
        low, high = (f"{100 * end:.2f}" for end in interval)
        return f"{100 * share:.2f} %{'' if unit == 'accuracy' else ' ' + unit} [{low}, {high}]"

    @property
    def best_run(self) -> Path | None:
        """The run of the best point; None after a cross-validation, whose runs lack a fold each."""
        return None if self.study.facts.folds or not self.points else self.study.folder / BEST

    @property
    def command(self) -> str | None:
        """What trains the best point on all rows."""
        if not self.points:
            return None
        folder = self.study.folder
        space = self.study.space
        own = space.values(space.own_point())
        values = self.points[0].values
        settings = [override(key, value) for key, value in values.items() if value != own[key]]
        if self.takes_all_rows:
            settings.append("data.validation_share=0.0")
        given = "".join(f" --set {_quoted(each)}" for each in settings)
        recipe, out = _quoted(str(folder / RECIPE)), _quoted(f"{folder}-winner")
        return f"newsdesk train --recipe {recipe}{given} --out {out}"

    def table(self) -> list[dict[str, Any]]:
        """A row for each trial and seed; of trials that are not complete one, without figures."""
        rows = []
        by_number = {point.trial.number: point for point in self.points}
        for trial in sorted(
            (*self.others, *(point.trial for point in self.points)), key=lambda one: one.number
        ):
            values = self.study.space.values(trial.parameters)
            head = {"trial": trial.number, "state": trial.state, **values}
            point = by_number.get(trial.number)
            if point is None:
                empty = dict.fromkeys(("seed", "accuracy", "macro_f1", "loss"))
                spent = {"seconds": trial.seconds, "tokens": trial.tokens, "parameters": None}
                sets = {"micro_f1": None} if self.several else {}
                rows.append({**head, **empty, **spent, **sets, "reason": trial.reason})
            else:
                rows += [{**head, **to_content(of_seed), "reason": ""} for of_seed in point.seeds]
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        facts = self.study.facts
        return {
            "folder": str(self.study.folder),
            "metric": self.study.metric,
            "rows": self.rows,
            "seeds": facts.seeds,
            "folds": facts.folds,
            "points": [
                {
                    "trial": point.trial.number,
                    "values": to_content(point.values),
                    "score": point.score,
                    "interval": list(point.interval),
                    "against_best": to_content(point.against),
                    "is_noise": point.against is not None and point.against.is_noise,
                    "seeds": to_content(point.seeds),
                }
                for point in self.points
            ],
            "others": to_content(self.others),
            "optimism": self.optimism,
            "baseline": to_content(facts.baseline),
            "how": self.how,
            "best_run": None if self.best_run is None else str(self.best_run),
            "command": self.command,
        }

    def write_table(self) -> Path:
        """Write results.parquet, or results.csv where pyarrow is missing; the path."""
        rows = self.table()
        columns = {name: _column([row[name] for row in rows]) for name in rows[0]} if rows else {}
        parquet, plain = (self.study.folder / name for name in RESULTS)
        try:
            import pyarrow
            from pyarrow import parquet as parquet_files
        except ImportError:
            with atomic_writer(plain) as stream:
                lines = zip(*columns.values(), strict=True)
                stream.writelines(delimited_lines([tuple(columns), *lines]))
            written, stale = plain, parquet
        else:
            with atomic_writer(parquet) as stream:
                parquet_files.write_table(pyarrow.table(columns), stream)
            written, stale = parquet, plain
        with suppress(FileNotFoundError):
            stale.unlink()
        return written


def _column(cells: list[Any]) -> list[Any]:
    """Cells of one type: numbers as they are, whole ones as others where both occur; else as text."""
    given = [cell for cell in cells if cell is not None]
    kinds = {type(cell) for cell in given}
    if kinds <= {int} or kinds <= {bool} or kinds <= {str}:
        return cells
    if kinds <= {int, float}:
        return [None if cell is None else float(cell) for cell in cells]
    return [shown(cell) for cell in cells]


def _quoted(word: str) -> str:
    from shlex import quote

    return quote(word)
