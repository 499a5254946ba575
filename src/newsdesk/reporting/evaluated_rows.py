"""The rows of an evaluation as it left them: predictions-SPLIT.csv, read back."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import UserError
from newsdesk.evaluation.csv_lines import probability_column
from newsdesk.metrics import Metrics


@dataclass(frozen=True)
class EvaluatedRows:
    """Every evaluated row.

    Attributes:
        labels: int64 (rows,), the true class ids.
        predicted: int64 (rows,), those of the most probable classes.
        probabilities: float64 (rows, classes), as predicted, to six decimals.
        texts: one a row, where the file holds them.
    """

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    texts: tuple[str, ...] | None

    @property
    def confidence(self) -> NDArray[np.float64]:
        """The probability of the predicted class, (rows,)."""
        return np.asarray(self.probabilities.max(axis=1), dtype=np.float64)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether that class is the true one, (rows,)."""
        return np.asarray(self.predicted == self.labels, dtype=np.bool_)


def read_evaluated_rows(path: Path, metrics: Metrics) -> EvaluatedRows:
    """Read a predictions file beside the figures that were made of it.

    Raises UserError when it is missing, damaged, or not of the evaluation that gave the figures.
    """
    csv.field_size_limit(sys.maxsize)  # a text may be longer than csv's own limit of 131,072 characters
    ids = {name: number for number, name in enumerate(metrics.label_names)}
    labels: list[int] = []
    predicted: list[int] = []
    probabilities: list[list[float]] = []
    texts: list[str] = []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            for row in reader:
                labels.append(ids[row["true_label"]])
                predicted.append(ids[row["predicted_label"]])
                probabilities.append([float(row[probability_column(name)]) for name in metrics.label_names])
                texts += [row["text"]] if "text" in row else []
    except FileNotFoundError:
        raise _unusable(path, "no such file") from None
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise _unusable(path, f"{type(error).__name__}: {error}") from None
    rows = EvaluatedRows(
        np.array(labels, dtype=np.int64),
        np.array(predicted, dtype=np.int64),
        np.array(probabilities, dtype=np.float64).reshape(-1, len(ids)),
        tuple(texts) if labels and len(texts) == len(labels) else None,
    )
    if len(labels) != metrics.rows or int(rows.correct.sum()) != metrics.correct:
        found = f"{len(labels):,} rows, of which {int(rows.correct.sum()):,} right"
        stated = f"metrics.json tells of {metrics.rows:,} and {metrics.correct:,}"
        raise _unusable(path, f"{found}; {stated}")
    return rows


def _unusable(path: Path, found: str) -> UserError:
    return UserError(
        f"{path} is not the file that the evaluation left",
        found=found,
        mend="evaluate the run again: newsdesk evaluate RUN --data NAME|PATH",
    )
