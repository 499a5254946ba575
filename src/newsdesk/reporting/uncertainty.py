"""Intervals of figures that are no plain share of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from newsdesk.reporting.content import Measured

_DRAWS = 2000
_NORMAL_95 = 1.959964
_SEED = 0  # the same run gives the same page


def measured_mean(values: NDArray[np.float64]) -> Measured:
    """The mean of one value a row, with its normal 95 % interval; no interval for a single row."""
    mean = float(values.mean())
    if len(values) < 2:
        return Measured(mean)
    half = _NORMAL_95 * float(values.std(ddof=1)) / len(values) ** 0.5
    return Measured(mean, (mean - half, mean + half))


def measured_macro_f1(macro_f1: float, confusion: NDArray[np.int64]) -> Measured:
    """Macro F1 with its 95 % percentile interval by the bootstrap over rows (Efron, 1979).

    ``confusion`` is int64 (classes, classes), rows true. F1 needs nothing else of a row than its cell there,
    so that a draw of rows is a multinomial draw of cells.
    """
    true, given = np.nonzero(confusion)
    counts = confusion[true, given]
    draws = np.random.default_rng(_SEED).multinomial(counts.sum(), counts / counts.sum(), size=_DRAWS)
    one_hot = np.eye(len(confusion), dtype=np.int64)
    right = draws @ (one_hot[true] * (true == given)[:, None])
    occurrences = draws @ (one_hot[true] + one_hot[given])
    f1 = np.divide(2 * right, occurrences, out=np.zeros(right.shape), where=occurrences > 0)
    means = f1.sum(axis=1) / (occurrences > 0).sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Measured(macro_f1, (float(low), float(high)))
