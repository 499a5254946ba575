"""How far a difference between two classifiers would move on other rows of the same kind."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95

_DRAWS = 100_000_000  # of single rows, where each row has its own value: a second or so
_DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Difference:
    """One figure of two classifiers on the same rows.

    Attributes:
        first: the first classifier's figure.
        other: the other one's.
        interval: 95 % percentile interval (low, high) of other - first, from resampled rows.
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


def accuracy_and_macro_f1(
    labels: NDArray[np.int64],
    first: NDArray[np.int64],
    other: NDArray[np.int64],
    classes: int,
    *,
    seed: int = 0,
) -> tuple[Difference, Difference]:
    """Paired bootstrap (Efron & Tibshirani, 1993) of both figures; all ids (rows,), below ``classes``.

    Both figures depend only on how many rows have which true and predicted classes; so whole tables of
    counts are drawn, which is the same as drawing rows, and 10,000 of them take a moment.
    """
    codes = (labels * classes + first) * classes + other
    cells, counts = np.unique(codes, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(labels), counts / len(labels), size=RESAMPLES)
    tables = np.concatenate([counts[None], drawn]).astype(np.float64)
    true, by_first, by_other = cells // classes**2, cells // classes % classes, cells % classes
    accuracies = [tables @ (predicted == true) / len(labels) for predicted in (by_first, by_other)]
    macro_f1s = [_macro_f1(tables, true, predicted, classes) for predicted in (by_first, by_other)]
    return _difference(*accuracies), _difference(*macro_f1s)


def mean_difference(first: NDArray[np.float64], other: NDArray[np.float64], *, seed: int = 0) -> Difference:
    """Paired bootstrap of the mean of a value that every row has, (rows,) each, such as its log-likelihood.

    10,000 resamples; of more than 10,000 rows, fewer, but at least 1,000.
    """
    rows = len(first)
    resamples = max(RESAMPLES // 10, min(RESAMPLES, _DRAWS // rows))
    generator, gains = np.random.default_rng(seed), other - first
    at_once = max(1, _DRAWS_AT_ONCE // rows)
    means = [
        gains[generator.integers(0, rows, (min(at_once, resamples - done), rows), dtype=np.int32)].mean(
            axis=1
        )
        for done in range(0, resamples, at_once)
    ]
    return Difference(float(first.mean()), float(other.mean()), _interval(np.concatenate(means)))


def _macro_f1(
    tables: NDArray[np.float64], true: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> NDArray[np.float64]:
    """Macro F1 of each table of counts (tables, cells), over the classes that occur in it: (tables,)."""
    of_class = np.eye(classes)
    hits = tables @ (of_class[true] * (true == predicted)[:, None])
    occurring = tables @ (of_class[true] + of_class[predicted])
    f1 = np.divide(2 * hits, occurring, out=np.zeros_like(hits), where=occurring > 0)
    return np.asarray(f1.sum(axis=1) / (occurring > 0).sum(axis=1), dtype=np.float64)


def _difference(first: NDArray[np.float64], other: NDArray[np.float64]) -> Difference:
    """From figures whose first entry is that of the rows themselves, the others those of resamples."""
    return Difference(float(first[0]), float(other[0]), _interval((other - first)[1:]))


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return low, high
