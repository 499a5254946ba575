"""The rows of an evaluation as it left them, with every class's probability."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.readers import read_table
from newsdesk.evaluation.csv_lines import WRITTEN, probability_column
from newsdesk.evaluation.evaluate import predictions_path
from newsdesk.evaluation.predicted_rows import read_predicted_rows
from newsdesk.files import damaged
from newsdesk.metrics import Metrics


@dataclass(frozen=True)
class EvaluatedRows:
    """Every evaluated row.

    Attributes:
        labels: int64 (rows,), the true class ids.
        predicted: int64 (rows,), those of the most probable classes.
        probabilities: float64 (rows, classes), as predicted, to six decimals.
        texts: one a row, where the evaluation kept them.
    """

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    texts: tuple[str, ...] | None

    @property
    def confidence(self) -> NDArray[np.float64]:
        """The probability of the predicted class, (rows,)."""
        return np.asarray(self.probabilities[np.arange(len(self.labels)), self.predicted], dtype=np.float64)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether that class is the true one, (rows,)."""
        return np.asarray(self.predicted == self.labels, dtype=np.bool_)


def read_evaluated_rows(folder: Path, split: str, metrics: Metrics) -> EvaluatedRows:
    """The rows of a run's evaluation, ids in the order of ``metrics``.

    Raises UserError when its file of predictions is missing, damaged, or not of that evaluation.
    """
    rows = read_predicted_rows(folder, split)
    path = predictions_path(folder, split)
    table = read_table(path, WRITTEN)
    ids = {name: number for number, name in enumerate(metrics.label_names)}
    try:
        columns = [table.columns.index(probability_column(name)) for name in metrics.label_names]
        return EvaluatedRows(
            labels=np.array([ids[name] for name in rows.true_labels]),
            predicted=np.array([ids[name] for name in rows.predicted_labels]),
            probabilities=np.array([[float(str(row[at])) for at in columns] for row in table.rows]),
            texts=rows.texts,
        )
    except (KeyError, ValueError) as error:
        fix = "evaluate the run again: newsdesk evaluate RUN --data NAME|PATH"
        raise damaged(path, str(error), fix=fix) from None
