"""predictions-SPLIT.csv: every evaluated row of a run or exported model, written and read back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import eq
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.examples import Examples, aligned_labels
from newsdesk.data.stream import read_table
from newsdesk.data.table import Cell
from newsdesk.errors import UserError, counted
from newsdesk.evaluation.evaluate import Evaluation, padded
from newsdesk.evaluation.label_sets import LabelSetEvaluation, read_evaluations
from newsdesk.files import atomic_writer
from newsdesk.metrics import Metrics
from newsdesk.prediction.output_formats import SEPARATOR, joined_labels
from newsdesk.prediction.predictions import (
    PROBABILITY_DIGITS,
    WRITTEN,
    delimited_lines,
    probability_column,
    rounded,
)
from newsdesk.runs.ready_made import located
from newsdesk.stored import FORMAT

_METRICS = "metrics.json"
SMALLEST_WRITTEN = 0.5 * 10**-PROBABILITY_DIGITS
"""How a probability written as 0 is read: half of the last digit."""


def predictions_path(folder: Path, split: str) -> Path:
    """The file of the predictions on a split: ``folder/predictions-<split>.csv``.

    Raises UserError for a split name that does not make a plain file name, or that metrics.json uses itself.
    """
    if split == FORMAT:
        raise UserError(
            f"a split cannot be called {FORMAT!r}: metrics.json keeps its own version under that name",
            fix="give it another name with --split",
        )
    if not re.fullmatch(r"[\w.+-]+", split):
        raise UserError(
            "a split's name becomes part of a file's name: letters, digits and . _ + - only",
            found=repr(split),
            fix="give it another name with --split",
        )
    return folder / f"predictions-{split}.csv"


def write_evaluated_rows(
    probabilities: NDArray[np.floating],
    examples: Examples,
    label_names: Sequence[str],
    path: Path,
    *,
    with_text: bool = False,
) -> None:
    """Write one csv line for each row: its 0-based number, true and predicted label, all probabilities.

    ``probabilities`` is (rows, classes); the column of a class is called ``p(<label>)``, six decimals.
    Texts are left out unless asked for: many corpora may not be copied. Atomic.
    Raises UserError as ``aligned_labels`` does.
    """
    truth = aligned_labels(examples, label_names)
    probabilities = padded(probabilities, len(label_names))
    columns = ["row", "true_label", "predicted_label", *map(probability_column, label_names)]
    texts: list[tuple[str, ...]] = [()] * len(examples)
    if with_text:
        columns, texts = [*columns, "text"], [(text,) for text in examples.texts]
    lines = (
        [row, label_names[true], label_names[int(np.argmax(given))], *map(rounded, given), *text]
        for row, (true, given, text) in enumerate(zip(truth, probabilities, texts, strict=True))
    )
    with atomic_writer(path) as stream:
        stream.writelines(delimited_lines([columns]))
        stream.writelines(delimited_lines(lines))


@dataclass(frozen=True, eq=False)
class PredictedRows:
    """Every evaluated row of one classifier.

    Attributes:
        name: the run, exported model or file, as it was given.
        evaluation: the figures that belong to them; None for a file that stands alone.
        numbers: the rows' own numbers.
        several: whether a row may have several labels.
        true_labels: their classes; where there may be several, all of a row, joined in alphabetical order.
        predicted_labels: what was predicted, likewise.
        label_names: the classes with a column of probabilities, in the order of the file.
        probabilities: float64 (rows, classes), as predicted, to six decimals.
        texts: one a row, where the file holds them.
    """

    name: str
    evaluation: Evaluation | LabelSetEvaluation | None
    numbers: tuple[str, ...]
    several: bool
    true_labels: tuple[str, ...]
    predicted_labels: tuple[str, ...]
    label_names: tuple[str, ...]
    probabilities: NDArray[np.float64]
    texts: tuple[str, ...] | None

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.numbers)

    @property
    def known_labels(self) -> tuple[str, ...]:
        """The classes of the classifier itself: without unknown ones that were counted as errors."""
        matching = None if self.evaluation is None else self.evaluation.labels
        unknown = () if matching is None else matching.counted_wrong
        return tuple(name for name in self.label_names if name not in unknown)

    def select(self, rows: Sequence[int]) -> PredictedRows:
        """Those at these positions, in this order."""
        columns: dict[str, Any] = {
            name: tuple(getattr(self, name)[row] for row in rows)
            for name in ("numbers", "true_labels", "predicted_labels")
        }
        texts = None if self.texts is None else tuple(self.texts[row] for row in rows)
        return replace(self, **columns, probabilities=self.probabilities[list(rows)], texts=texts)

    @property
    def true_probabilities(self) -> NDArray[np.float64] | None:
        """Those of the true classes, float64 (rows,); None unless each of these has its column."""
        columns = {name: number for number, name in enumerate(self.label_names)}
        if self.several or not columns.keys() >= set(self.true_labels):
            return None
        return self.probabilities[np.arange(len(self)), [columns[name] for name in self.true_labels]]

    @property
    def origin(self) -> str:
        """Where they came from, in words: ``1,000 rows of wire.csv``."""
        source = self.evaluation.source if self.evaluation else "unknown origin"
        return f"{counted(len(self), 'row')} of {source}"


def read_predicted_rows(path: str | Path, split: str) -> PredictedRows:
    """The evaluation of ``split`` in a run or exported model, or a file of predictions, of whatever split.

    Raises UserError when there is none, or an evaluation did not write it.
    """
    file = located(Path(path))
    if file.is_dir():
        evaluations, file = read_evaluations(file / _METRICS), predictions_path(file, split)
        if split not in evaluations or not file.is_file():
            known = ", ".join(evaluations)
            raise UserError(
                f"{path} has no predictions on {split!r}",
                found=f"it was evaluated on {known}" if known else "it was not evaluated, or is not a run",
                fix=f"evaluate all of them on the same rows with --data NAME|PATH, or one by one: "
                f"newsdesk evaluate {path} --data NAME|PATH --split {split}",
            )
        return _read(file, str(path), evaluations[split])
    if not file.is_file():
        raise UserError(
            f"there is nothing to compare at {path}",
            found="neither a folder nor a file",
            fix="give runs, exported models, or the files predictions-SPLIT.csv that newsdesk evaluate wrote",
        )
    named = re.fullmatch(r"predictions-(.+)\.csv", file.name)
    return _read(file, str(path), read_evaluations(file.parent / _METRICS).get(named[1]) if named else None)


def labels_of(cell: str) -> tuple[str, ...]:
    """The labels of a row as `joined_labels` wrote them. Raises ValueError for what it did not write."""
    if cell.startswith("["):
        return tuple(map(str, json.loads(cell)))
    return tuple(cell.split(SEPARATOR)) if cell else ()


def _ordered(file: Path, cells: Sequence[Cell]) -> tuple[str, ...]:
    """Cells of several labels, these in alphabetical order: then the same labels are the same text."""
    try:
        return tuple(joined_labels(sorted(labels_of("" if cell is None else str(cell)))) for cell in cells)
    except ValueError as error:
        raise unusable(file, str(error)) from None


def _read(file: Path, name: str, evaluation: Evaluation | LabelSetEvaluation | None) -> PredictedRows:
    table = read_table(file, WRITTEN)
    several = "true_labels" in table.columns
    wanted = ("true_labels", "predicted_labels") if several else ("true_label", "predicted_label")
    missing = {"row", *wanted} - set(table.columns)
    if missing or not table.rows:
        raise unusable(file, f"no column {', '.join(sorted(missing))}" if missing else "no rows")
    columns = dict(zip(table.columns, zip(*table.rows, strict=True), strict=True))
    true_labels, predicted = (tuple(map(str, columns[name])) for name in wanted)
    if several:
        true_labels, predicted = (_ordered(file, columns[name]) for name in wanted)
    label_names, probabilities = _probabilities(file, columns)
    if evaluation is not None:
        stated, right = evaluation.metrics, sum(map(eq, true_labels, predicted))
        share = stated.accuracy if isinstance(stated, Metrics) else stated.subset_accuracy
        if (len(table), right) != (stated.rows, round(share * stated.rows)):
            found = f"{right:,} of {counted(len(table), 'row')} right; metrics.json has {share:.2%}"
            raise unusable(file, found)
    return PredictedRows(
        name=name,
        evaluation=evaluation,
        numbers=tuple(map(str, columns["row"])),
        several=several,
        true_labels=true_labels,
        predicted_labels=predicted,
        label_names=label_names,
        probabilities=probabilities,
        texts=tuple(map(str, columns["text"])) if "text" in columns else None,
    )


def _probabilities(
    file: Path, columns: Mapping[str, tuple[Cell, ...]]
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """The classes that have a column of probabilities, and these as (rows, classes)."""
    names = tuple(name[2:-1] for name in columns if probability_column(name[2:-1]) == name)
    try:
        rows = zip(*(columns[probability_column(name)] for name in names), strict=True)
        return names, np.array([[float(str(cell)) for cell in row] for row in rows], dtype=np.float64)
    except ValueError as error:
        raise unusable(file, str(error)) from None


def unusable(file: str | Path, found: str) -> UserError:
    """The error for a file of predictions that newsdesk did not write."""
    return UserError(
        f"{file} is not a file of predictions that newsdesk evaluate wrote",
        found=found,
        fix="evaluate again: newsdesk evaluate RUN --data NAME|PATH",
    )
