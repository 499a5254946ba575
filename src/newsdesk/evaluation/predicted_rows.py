"""What an evaluation left of every row: predictions-SPLIT.csv, read with what metrics.json says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.known_texts import LearnedRows
from newsdesk.data.readers import read_table
from newsdesk.data.table import Cell
from newsdesk.errors import UserError, counted
from newsdesk.evaluation.csv_lines import PROBABILITY_DIGITS, WRITTEN, probability_column
from newsdesk.evaluation.evaluate import Evaluation, predictions_path, read_metrics

SMALLEST_WRITTEN = 0.5 * 10**-PROBABILITY_DIGITS
"""What a probability written as 0 is taken for: half of the last digit."""


@dataclass(frozen=True, eq=False)
class PredictedRows:
    """Every evaluated row of one classifier.

    Attributes:
        name: the run, artefact or file, as it was given.
        split: the evaluation's name; None for a file that stands alone.
        source: where the rows came from; None likewise.
        fingerprint: of the rows, by ``Examples.fingerprint``; None likewise.
        numbers: the rows' own numbers.
        true_labels: their classes.
        predicted_labels: what they were taken for.
        true_probabilities: float64 (rows,), those of the true classes; None where the file has none.
        texts: one a row, where the file holds them.
        learned: how many of the rows the classifier knew before; None where that is not known.
    """

    name: str
    split: str | None
    source: str | None
    fingerprint: str | None
    numbers: tuple[str, ...]
    true_labels: tuple[str, ...]
    predicted_labels: tuple[str, ...]
    true_probabilities: NDArray[np.float64] | None
    texts: tuple[str, ...] | None
    learned: LearnedRows | None = None

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.numbers)


def read_predicted_rows(path: str | Path, split: str) -> PredictedRows:
    """The evaluation of ``split`` in a run or artefact, or a file of predictions, whatever split that is of.

    Raises UserError when there is none, or it is not as an evaluation leaves it.
    """
    given = Path(path)
    if given.is_dir():
        file = predictions_path(given, split)
        facts = read_metrics(given / "metrics.json").get(split)
        if facts is None or not file.is_file():
            raise _not_evaluated(given, split)
        return _read(file, str(path), facts)
    if not given.is_file():
        raise UserError(
            f"there is nothing to compare at {path}",
            found="neither a folder nor a file",
            fix="give runs, artefacts, or the files predictions-SPLIT.csv that newsdesk evaluate wrote",
        )
    named = re.fullmatch(r"predictions-(.+)\.csv", given.name)
    facts = read_metrics(given.parent / "metrics.json").get(named[1]) if named else None
    return _read(given, str(path), facts)


def _read(file: Path, name: str, facts: Evaluation | None) -> PredictedRows:
    table = read_table(file, WRITTEN)
    missing = {"row", "true_label", "predicted_label"} - set(table.columns)
    if missing:
        raise _unusable(file, f"no column {', '.join(sorted(missing))}")
    columns = dict(zip(table.columns, zip(*table.rows, strict=True), strict=True)) if table.rows else {}
    if not columns:
        raise _unusable(file, "no rows")
    true_labels = tuple(map(str, columns["true_label"]))
    rows = PredictedRows(
        name=name,
        split=facts.split if facts else None,
        source=facts.source if facts else None,
        fingerprint=facts.fingerprint if facts else None,
        numbers=tuple(map(str, columns["row"])),
        true_labels=true_labels,
        predicted_labels=tuple(map(str, columns["predicted_label"])),
        true_probabilities=_true_probabilities(file, columns, true_labels),
        texts=tuple(map(str, columns["text"])) if "text" in columns else None,
        learned=facts.learned if facts else None,
    )
    if facts is not None:
        _require_those_measured(file, rows, facts)
    return rows


def _true_probabilities(
    file: Path, columns: Mapping[str, tuple[Cell, ...]], true_labels: tuple[str, ...]
) -> NDArray[np.float64] | None:
    """The probability of each row's class; None unless every class has its column."""
    names = [probability_column(label) for label in true_labels]
    if not set(names) <= set(columns):
        return None
    try:
        return np.array([float(str(columns[name][row])) for row, name in enumerate(names)])
    except ValueError as error:
        raise _unusable(file, str(error)) from None


def _require_those_measured(file: Path, rows: PredictedRows, facts: Evaluation) -> None:
    """Refuse a file that is not of the evaluation that gave the figures beside it."""
    pairs = zip(rows.true_labels, rows.predicted_labels, strict=True)
    right = sum(true == predicted for true, predicted in pairs)
    stated = facts.metrics
    if (len(rows), right) != (stated.rows, stated.correct):
        raise _unusable(
            file, f"{right:,} of {counted(len(rows), 'row')} right; metrics.json has {stated.accuracy:.2%}"
        )


def _not_evaluated(folder: Path, split: str) -> UserError:
    evaluated = ", ".join(read_metrics(folder / "metrics.json"))
    return UserError(
        f"{folder} has no predictions on {split!r}",
        found=f"it was evaluated on {evaluated}" if evaluated else "it was not evaluated, or is no run",
        fix=f"evaluate all of them on the same rows with --data NAME|PATH, or one by one: "
        f"newsdesk evaluate {folder} --data NAME|PATH --split {split}",
    )


def _unusable(file: Path, found: str) -> UserError:
    return UserError(
        f"{file} is not a file of predictions as newsdesk evaluate leaves it",
        found=found,
        fix="evaluate again: newsdesk evaluate RUN --data NAME|PATH",
    )
