"""Classifiers that may give a text several labels, compared on the same rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.stream import read_table
from newsdesk.errors import UserError, counted
from newsdesk.evaluation.predicted_rows import predictions_path
from newsdesk.evaluation.significance import LEVEL, Difference, holm, label_set_differences
from newsdesk.label_set_metrics import Counts
from newsdesk.prediction.output_formats import SEPARATOR
from newsdesk.prediction.predictions import WRITTEN
from newsdesk.runs.ready_made import located
from newsdesk.stored import to_content

_COLUMNS = ("row", "true_labels", "predicted_labels")


@dataclass(frozen=True)
class LabelChange:
    """One label under two classifiers; F1 is 0.0 where neither rows nor predictions have it.

    Attributes:
        label: its name.
        support: how many rows have it.
        first_f1: its F1 by the first.
        other_f1: by the other.
    """

    label: str
    support: int
    first_f1: float
    other_f1: float


@dataclass(frozen=True)
class LabelSetComparison:
    """One classifier compared with the first, where a text may have several labels.

    Attributes:
        first: the first one's name.
        other: this one's.
        rows: how many rows both were evaluated on.
        micro_f1: with the interval of the difference, by drawing texts; so is ``macro_f1``.
        macro_f1: over the labels that occur.
        p_value: of the difference in micro F1, of this pair alone.
        adjusted_p_value: by Holm's method, where there are several others; else the same.
        per_label: every label that occurs, by name.
    """

    first: str
    other: str
    rows: int
    micro_f1: Difference
    macro_f1: Difference
    p_value: float
    adjusted_p_value: float
    per_label: tuple[LabelChange, ...]

    @property
    def verdict(self) -> str:
        """The outcome in a sentence."""
        points, (low, high) = 100 * self.micro_f1.difference, (100 * end for end in self.micro_f1.interval)
        evidence = f"[{low:+.2f}, {high:+.2f}], p = {self.adjusted_p_value:.2g}"
        if self.adjusted_p_value >= LEVEL:
            return f"the difference of {points:+.2f} points of micro F1 is within noise: {evidence}"
        better, worse = (self.other, self.first) if points > 0 else (self.first, self.other)
        return f"{better} is better than {worse} by {abs(points):.2f} points of micro F1: {evidence}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return {**to_content(self), "verdict": self.verdict}

    def lines(self) -> list[str]:
        """The verdict, and the figures that it rests on."""
        figures = (("micro F1", self.micro_f1), ("macro F1", self.macro_f1))
        return [
            self.verdict,
            f"on {counted(self.rows, 'row')}, first {self.first}, then {self.other}:",
            *(
                f"  {name}  {of.first:.2%}  {of.other:.2%}  {100 * of.difference:+.2f} "
                f"[{100 * of.interval[0]:+.2f}, {100 * of.interval[1]:+.2f}]"
                for name, of in figures
            ),
        ]


@dataclass(frozen=True)
class _Rows:
    name: str
    numbers: tuple[str, ...]
    true: tuple[frozenset[str], ...]
    predicted: tuple[frozenset[str], ...]


def have_label_sets(paths: Sequence[Path], split: str) -> bool:
    """Whether what was predicted there, in runs, exported models or files, are sets of labels."""
    for file in (_file_of(path, split) for path in paths):
        if file.is_file():
            with file.open(encoding="utf-8", errors="replace") as stream:
                if stream.readline().startswith(",".join(_COLUMNS)):
                    return True
    return False


def compare_label_sets(first: Path, others: Sequence[Path], *, split: str) -> tuple[LabelSetComparison, ...]:
    """Compare each of the others with the first, all evaluated on the same rows before.

    Each is a run, an exported model or a file ``predictions-SPLIT.csv``. Raises UserError when one was not
    evaluated, gives one label a text, or was evaluated on other rows.
    """
    rows, *rest = (_read(path, split) for path in (first, *others))
    compared = [_compare_pair(rows, other) for other in rest]
    adjusted = holm([each.p_value for each in compared])
    return tuple(replace(each, adjusted_p_value=p) for each, p in zip(compared, adjusted, strict=True))


def _compare_pair(first: _Rows, other: _Rows) -> LabelSetComparison:
    if (first.numbers, first.true) != (other.numbers, other.true):
        raise UserError(
            f"{first.name} and {other.name} were not evaluated on the same rows",
            found=f"{counted(len(first.numbers), 'row')}, and {counted(len(other.numbers), 'row')} whose "
            "numbers or labels differ",
            fix="evaluate both on the same rows with newsdesk evaluate RUN --data NAME|PATH",
        )
    names = sorted(frozenset().union(*first.true, *first.predicted, *other.predicted))
    truth, by_first, by_other = (
        np.array([[name in labels for name in names] for labels in column], dtype=np.bool_)
        for column in (first.true, first.predicted, other.predicted)
    )
    micro, macro, p_value = label_set_differences(truth, by_first, by_other)
    f1s = [_f1(given, truth) for given in (by_first, by_other)]
    columns = zip(names, truth.sum(axis=0).tolist(), *f1s, strict=True)
    per_label = tuple(LabelChange(*values) for values in columns)
    return LabelSetComparison(first.name, other.name, len(truth), micro, macro, p_value, p_value, per_label)


def _f1(given: NDArray[np.bool_], truth: NDArray[np.bool_]) -> list[float]:
    return [float(f1) for f1 in Counts.of(given, truth).f1()]


def _file_of(path: Path, split: str) -> Path:
    file = located(path)
    return predictions_path(file, split) if file.is_dir() else file


def _read(path: Path, split: str) -> _Rows:
    file = _file_of(path, split)
    if not file.is_file():
        raise UserError(
            f"{path} has no predictions on {split!r}",
            found=f"no {file.name}",
            fix=f"evaluate it on the same rows as the others: newsdesk evaluate {path} --data NAME|PATH "
            f"--split {split}",
        )
    table = read_table(file, WRITTEN)
    if not set(_COLUMNS) <= set(table.columns) or not table.rows:
        raise UserError(
            f"{path} cannot be compared with runs whose texts may have several labels",
            found=f"no rows with columns {', '.join(_COLUMNS)} in {file.name}",
            fix="compare runs of one kind, evaluated by newsdesk evaluate",
        )
    places = [table.columns.index(name) for name in _COLUMNS]
    cells = zip(*([str(row[place] or "") for place in places] for row in table.rows), strict=True)
    numbers, true, predicted = cells
    try:
        return _Rows(str(path), numbers, *(tuple(map(_labels, column)) for column in (true, predicted)))
    except ValueError as error:
        raise UserError(
            f"{file} is not a file of predictions that newsdesk evaluate wrote",
            found=str(error),
            fix="evaluate again: newsdesk evaluate RUN --data NAME|PATH",
        ) from None


def _labels(cell: str) -> frozenset[str]:
    """What `joined_labels` wrote. Raises ValueError for what it did not."""
    if cell.startswith("["):
        return frozenset(map(str, json.loads(cell)))
    return frozenset(cell.split(SEPARATOR)) if cell else frozenset()
