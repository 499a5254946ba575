"""How far figures, and differences between two classifiers, would move on other rows of the same kind.

The usual intervals are too narrow on few rows: the bootstrap's percentiles for macro F1, the normal one for
the mean of a skewed loss, both for a difference that rests on a handful of rows. These hold 95 % on 200 rows
in simulation, most of them on 25 (benchmarks/intervals.py, docs/evaluation.md).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.evaluation.comparison import paired_difference_interval

CONFIDENCE = 0.95
APPROXIMATE_BELOW = 200
"""Rows; on fewer of them the intervals cover less than 95 % for some classifiers."""

_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_RESAMPLES = 2000
_MOST_RESAMPLED = 20_000  # rows; the mean of more is not skewed any longer
_DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Difference:
    """One figure of two classifiers on the same rows.

    Attributes:
        first: the first classifier's figure.
        other: the other one's.
        interval: 95 % interval (low, high) of other - first.
    """

    first: float
    other: float
    interval: tuple[float, float]

    @property
    def difference(self) -> float:
        """other - first."""
        return self.other - self.first

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of no difference."""
        return self.interval[0] > 0 or self.interval[1] < 0

    def to_dict(self) -> dict[str, Any]:
        """The fields and the difference as JSON types."""
        return asdict(self) | {"difference": self.difference, "interval": list(self.interval)}


def macro_f1_interval(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> tuple[float, float]:
    """Interval of macro F1 over the classes that occur; ids are (rows,), below ``classes``.

    Wilson's (1927) for a share, of as many rows as the figure is worth: those that would give a share the
    variance that leaving out each row in turn finds (jackknife: Efron & Stein, 1981), and no more than a mean
    over classes has with rows so unevenly spread over them. Student's quantile in place of the normal one.
    """
    figure, left_out = _macro_f1(labels, predicted, classes)
    variance, most = _jackknife_variance(left_out), _rows_worth(labels, predicted, classes)
    rows = min(most, figure * (1 - figure) / variance) if variance > 1e-12 else most
    z = _student(rows - 1)
    shrink = 1 + z * z / rows
    centre = figure + z * z / (2 * rows)
    half = z * sqrt(figure * (1 - figure) / rows + z * z / (4 * rows * rows))
    return max(0.0, (centre - half) / shrink), min(1.0, (centre + half) / shrink)


def mean_interval(
    values: NDArray[np.float64], *, least: float = 0.0, most: float = np.inf, seed: int = 0
) -> tuple[float, float] | None:
    """Interval of the mean of a value that every row has, (rows,), between ``least`` and ``most``.

    Bootstrap of the studentised mean (Efron, 1979; Hall, 1988), which follows the skewness of losses, and
    never narrower to either side than Student's interval. None for a single row.
    """
    rows, mean = len(values), float(values.mean())
    if rows < 2:
        return None
    error, quantile = float(values.std(ddof=1)) / sqrt(rows), _student(rows - 1)
    low = high = quantile
    if rows <= _MOST_RESAMPLED and error > 0:
        lower, upper = np.quantile(
            _studentised_means(values, seed), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
        )
        low, high = max(low, float(upper)), max(high, -float(lower))
    return max(least, mean - low * error), min(most, mean + high * error)


def accuracy_difference(
    labels: NDArray[np.int64], first: NDArray[np.int64], other: NDArray[np.int64]
) -> Difference:
    """Of two accuracies on the same rows, ids (rows,); see `paired_difference_interval`."""
    fixed = int(((first != labels) & (other == labels)).sum())
    broken = int(((first == labels) & (other != labels)).sum())
    interval = paired_difference_interval(fixed, broken, len(labels))
    return Difference(float((first == labels).mean()), float((other == labels).mean()), interval)


def macro_f1_difference(
    labels: NDArray[np.int64], first: NDArray[np.int64], other: NDArray[np.int64], classes: int
) -> Difference:
    """Of two macro F1 over the classes that occur, on the same rows; ids (rows,), below ``classes``.

    Jackknife with Student's quantile; to the variance is added what two more rows that tell the two apart
    would bring (after Bonett & Price, 2012), so that it has a width where there is none.
    """
    of_first, first_left_out = _macro_f1(labels, first, classes)
    of_other, other_left_out = _macro_f1(labels, other, classes)
    rows = len(labels)
    worth = min(_rows_worth(labels, predicted, classes) for predicted in (first, other))
    variance = _jackknife_variance(other_left_out - first_left_out) + 2 / (rows * worth)
    difference, half = of_other - of_first, _student(rows - 1) * sqrt(variance)
    interval = (max(-1.0, difference - half), min(1.0, difference + half))
    return Difference(of_first, of_other, interval)


def mean_difference(first: NDArray[np.float64], other: NDArray[np.float64]) -> Difference:
    """Of the means of a value that every row has, (rows,) each, such as its log-likelihood.

    Student's interval of paired differences, which are hardly skewed.
    """
    gains, rows = other - first, len(first)
    error = float(gains.std(ddof=1)) / sqrt(rows) if rows > 1 else float("inf")
    mean, half = float(gains.mean()), _student(rows - 1) * error
    return Difference(float(first.mean()), float(other.mean()), (mean - half, mean + half))


def _macro_f1(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> tuple[float, NDArray[np.float64]]:
    """Macro F1, and what it is without each of the rows, (rows,)."""
    hits = np.bincount(labels[labels == predicted], minlength=classes)
    named = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    f1 = 2 * hits / np.maximum(1, named)
    total, occurring = float(f1.sum()), int((named > 0).sum())
    sums, counts = np.full(len(labels), total), np.full(len(labels), occurring)
    right = labels == predicted
    # A row that is right counts twice in its class; one that is wrong once in each of two classes.
    for of_row, rows, taken in ((labels, right, 2), (labels, ~right, 1), (predicted, ~right, 1)):
        at = of_row[rows]
        without = 2 * (hits[at] - (taken == 2)) / np.maximum(1, named[at] - taken)
        sums[rows] += without - f1[at]
        counts[rows] -= named[at] == taken
    return total / occurring, sums / np.maximum(1, counts)


def _jackknife_variance(left_out: NDArray[np.float64]) -> float:
    rows = len(left_out)
    return float((rows - 1) / rows * ((left_out - left_out.mean()) ** 2).sum())


def _rows_worth(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> float:
    """Of how many rows a share has the variance that a mean of shares over these classes has.

    A class with few rows makes the mean uncertain, however many rows the others have.
    """
    named = (np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)) / 2
    of_class = named[named > 0]
    return float(len(of_class) ** 2 / (1 / of_class).sum())


def _studentised_means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """(mean of resample - mean) / standard error of resample, of 2,000 resamples."""
    rows, generator = len(values), np.random.default_rng(seed)
    centred = values - values.mean()
    smallest = 1e-6 * float(centred.std())  # a resample of one value alone has no spread to divide by
    found = []
    at_once = max(1, _DRAWS_AT_ONCE // rows)
    for done in range(0, _RESAMPLES, at_once):
        drawn = centred[generator.integers(0, rows, (min(at_once, _RESAMPLES - done), rows), dtype=np.int32)]
        found.append(drawn.mean(axis=1) / (np.maximum(drawn.std(axis=1, ddof=1), smallest) / sqrt(rows)))
    return np.concatenate(found)


def _student(degrees: float) -> float:
    """Student's quantile for the two-sided interval, by its expansion (Abramowitz & Stegun, 26.7.5).

    Within 3 % from 2 degrees of freedom, which is taken for fewer; the base install has no scipy.
    """
    z, nu = _Z, max(2.0, degrees)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / nu**power for power, term in enumerate(terms, 1))
