"""Prediction sets that hold the true class as often as they promise, whatever the classifier is worth."""

from __future__ import annotations

from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray


def set_threshold(probabilities: NDArray[np.floating], labels: NDArray[np.integer], coverage: float) -> float:
    """The least probability of a class that belongs to a text's set: split conformal prediction.

    A set of all classes at least this probable holds the true one with probability ``coverage`` or more,
    over texts and calibration rows together, where both are exchangeable (Vovk et al., 2005; the score,
    which makes sets smallest on average: Sadinle, Lei and Wasserman, 2019). ``probabilities`` is (rows,
    classes), ``labels`` (rows,), of rows that nothing was learned from. 0, all classes, where there are too
    few rows for it (see :func:`highest_coverage`).
    Raises ValueError unless coverage lies between 0 and 1.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"a coverage lies between 0 and 1, not at {coverage}")
    of_true = np.sort(probabilities[np.arange(len(labels)), labels])[::-1]
    # The next row's true class is as likely to fall into any of the gaps between those of n rows.
    needed = ceil((len(labels) + 1) * coverage)
    return float(of_true[needed - 1]) if needed <= len(labels) else 0.0


def coverage_spread(rows: int, coverage: float) -> float:
    """By how much the coverage of one draw of so many calibration rows differs from the mean of all draws.

    The standard deviation of the Beta distribution that it has where scores do not tie (Vovk, 2012).
    """
    needed = min(rows, ceil((rows + 1) * coverage))
    mean = needed / (rows + 1)
    return sqrt(mean * (1 - mean) / (rows + 2))


def highest_coverage(rows: int) -> float:
    """Up to which coverage so many calibration rows leave any class out: rows / (rows + 1)."""
    return rows / (rows + 1)


def prediction_sets(probabilities: NDArray[np.floating], threshold: float) -> NDArray[np.bool_]:
    """Which classes belong to each row's set, in the shape of ``probabilities``: (rows, classes).

    The most probable class always does: that only raises the coverage, and no set is empty.
    """
    most_probable = probabilities == probabilities.max(axis=1, keepdims=True)
    return np.asarray(most_probable | (probabilities >= threshold), dtype=np.bool_)
