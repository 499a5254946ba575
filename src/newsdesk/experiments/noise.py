"""Which differences between points are real, how sure each figure is, and how lucky the best one was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from newsdesk.evaluation.significance import LEVEL, compare_paired, holm, paired_difference_interval
from newsdesk.metrics import score_interval

Values = NDArray[np.float64]

METHOD = (
    "both rows and trainings vary (Dorfman, Berbaum & Metz, 1992); the variance between trainings is "
    "estimated from all points, and averaged over what it may be (Tsui & Weerahandi, 1989); p-values are "
    "adjusted for all pairs of points (Holm, 1979), since the best one is known by the same rows"
)
METHOD_OF_ONE_SEED = (
    "McNemar's exact test on the rows, adjusted for all pairs of points (Holm, 1979), since the best one is "
    "known by the same rows; that another seed would give other figures is not in it: for that use --seeds 3"
)
METHOD_OF_ONE_SEED_OF_SETS = (
    "the jackknife over texts (Tukey, 1958), whose labels are not independent, adjusted for all pairs of "
    "points (Holm, 1979), since the best one is known by the same texts; that another seed would give other "
    "figures is not in it: for that use --seeds 3"
)
_RESAMPLES = 1000
_PSEUDO_ROWS = 2
"""On which just one of two points is right (after Bonett & Price, 2012): variance where there was none."""


@dataclass(frozen=True)
class Against:
    """A point beside the best one.

    Attributes:
        difference: the best one's mean value minus this one's.
        interval: 95 % interval of it, for this pair alone.
        p_value: that there is no difference, adjusted for all pairs of points.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float

    @property
    def is_noise(self) -> bool:
        """Whether the difference cannot be told from none, at the 5 % level for all pairs together."""
        return self.p_value >= LEVEL


def against_best(values: Sequence[Values], best: int, *, shares: bool) -> list[Against | None]:
    """Each point beside the best; None for that one itself.

    Args:
        values: of each point (trainings, rows), the same rows and seeds for all: what a mean is taken of.
        best: the position of the best point.
        shares: whether the mean is a share or an F1, from 0 to 1: values are 1 for a right answer and 0 for a
            wrong one, or the jackknife's pseudo-values of an F1.

    The chance that any of several equal points is said to differ is at most 5 %.
    """
    stacked = np.stack(values)
    points = len(stacked)
    pooled, degrees = _training_variance(stacked)
    pairs = [(first, second) for first in range(points) for second in range(first)]
    single = [_p_value(stacked[a] - stacked[b], 2 * pooled, degrees, shares) for a, b in pairs]
    p_values = dict(zip(map(frozenset, pairs), holm(single), strict=True))
    found: list[Against | None] = []
    for point in range(points):
        if point == best:
            found.append(None)
            continue
        gains = stacked[best] - stacked[point]
        mean = float(gains.mean())
        if shares and _are_counts(gains):
            interval = paired_difference_interval(int((gains > 0).sum()), int((gains < 0).sum()), gains.size)
        else:
            half = _half_width(gains, 2 * pooled, degrees, shares)
            interval = (mean - half, mean + half)
        found.append(Against(mean, interval, p_values[frozenset({best, point})]))
    return found


def intervals(values: Sequence[Values], *, shares: bool) -> list[tuple[float, float]]:
    """95 % interval of each point's mean over rows and trainings that might have been others.

    Of shares Wilson's (1927), for as many rows as would give a share this variance. Arguments as above.
    """
    stacked = np.stack(values)
    pooled, degrees = _training_variance(stacked, alone=True)
    found = []
    for point in stacked:
        mean, half = float(point.mean()), _half_width(point, pooled, degrees, shares=False)
        if shares:
            quantile = NormalDist().inv_cdf(1 - LEVEL / 2)
            rows, variance = point.shape[1], (half / quantile) ** 2
            worth = min(rows, mean * (1 - mean) / variance) if variance > 0 and 0 < mean < 1 else rows
            low, high = score_interval(mean, worth, quantile)
            found.append((max(0.0, low), min(1.0, high)))
        else:
            found.append((mean - half, mean + half))
    return found


def optimism(values: Sequence[Values], best: int, *, seed: int = 0) -> float:
    """By how much the best point's value is too good, as it was chosen by the rows that it is measured on.

    Rows are drawn with repetition and one training is left out, the best by these is chosen, and measured by
    the rows and the training that were not drawn (Tsamardinos, Greasidou & Borboudakis, 2018, for
    cross-validated predictions). Of a single training, by the rows alone. 0 for a single point.
    """
    stacked = np.stack(values)
    points, trainings, rows = stacked.shape
    known = [stacked if trainings == 1 else np.delete(stacked, one, axis=1) for one in range(trainings)]
    means = [each.mean(axis=1) for each in known]
    if points < 2 or rows < 2:
        return 0.0
    generator, measured = np.random.default_rng(seed), []
    for number in range(_RESAMPLES):
        drawn = np.bincount(generator.integers(0, rows, rows), minlength=rows)
        out = number % trainings
        chosen = int((means[out] @ drawn).argmax())
        left_out = drawn == 0
        if left_out.any():
            measured.append(float(stacked[chosen, out, left_out].mean()))
    return max(0.0, float(stacked[best].mean()) - float(np.mean(measured)))


def _training_variance(stacked: Values, *, alone: bool = False) -> tuple[float, int]:
    """rows x the variance between trainings of one point, and how many degrees of freedom it rests on.

    ``alone``: including what all points have in common in a seed, which a difference does not have.
    """
    points, trainings, rows = stacked.shape
    of_trainings = stacked.mean(axis=2)
    rest = of_trainings - of_trainings.mean(axis=1, keepdims=True)
    degrees = points * (trainings - 1)
    if not alone and points > 1:
        rest = rest - rest.mean(axis=0)
        degrees = (points - 1) * (trainings - 1)
    return rows * float((rest**2).sum()) / max(1, degrees), degrees


def _variances(values: Values, pooled: float, degrees: int) -> tuple[Values, Values]:
    """What trainings x rows x the variance of the mean may be, and the probability of each."""
    trainings, rows = values.shape
    of_rows = values.mean(axis=0)
    by_rows = trainings * float(of_rows.var(ddof=1)) if rows > 1 else 0.0
    if trainings == 1:
        return np.array([by_rows]), np.ones(1)
    from scipy.stats import chi2

    of_trainings = values.mean(axis=1)
    own = rows * float(of_trainings.var(ddof=1))
    rest = values - of_rows - of_trainings[:, None] + values.mean()
    together = float((rest**2).sum()) / ((trainings - 1) * max(1, rows - 1))
    edges = np.concatenate([[0.0], np.logspace(-8, 0, 400)])  # closest where the variance is largest
    by_trainings = degrees * max(pooled, own) / chi2.ppf((edges[:-1] + edges[1:]) / 2, degrees)
    return np.maximum(by_rows, by_trainings + max(0.0, by_rows - together)), np.diff(edges)


def _errors(values: Values, pooled: float, degrees: int, shares: bool) -> tuple[Values, Values]:
    """What the standard error of the mean may be, and the probability of each."""
    variances, weights = _variances(values, pooled, degrees)
    added = _PSEUDO_ROWS / values.shape[1] ** 2 if shares else 0.0
    return np.sqrt(variances / values.size + added), weights


def _tail(distance: float, errors: Values, weights: Values) -> float:
    """The probability that a mean is so far from its expectation, to either side."""
    from scipy.stats import norm

    with np.errstate(divide="ignore"):
        return float(2 * (weights * norm.sf(distance / errors)).sum()) if distance > 0 else 1.0


def _are_counts(gains: Values) -> bool:
    """Whether one training's rows are right or wrong, for which there are exact tests."""
    return len(gains) == 1 and bool(np.isin(gains, (-1.0, 0.0, 1.0)).all())


def _p_value(gains: Values, pooled: float, degrees: int, shares: bool) -> float:
    if shares and _are_counts(gains):
        right = np.ones(gains.shape[1], dtype=np.int64)
        return compare_paired(
            right, (gains[0] > -1).astype(np.int64), (gains[0] < 1).astype(np.int64)
        ).p_value
    return _tail(abs(float(gains.mean())), *_errors(gains, pooled, degrees, shares))


def _half_width(values: Values, pooled: float, degrees: int, shares: bool) -> float:
    """What the 95 % interval of a mean reaches to either side: where its tails hold 5 %."""
    errors, weights = _errors(values, pooled, degrees, shares)
    low, high = 0.0, 40 * float(errors.max())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _tail(middle, errors, weights) > LEVEL else (low, middle)
    return (low + high) / 2
