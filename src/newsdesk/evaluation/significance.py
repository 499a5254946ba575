"""How certain figures and differences are: intervals, paired tests, and how many rows are needed.

The usual intervals are too narrow on few rows: the bootstrap's percentiles for macro F1, the normal one for
the mean of a skewed loss, both for a difference of a handful of rows. These hold 95 % on 200 rows
in simulation, most of them on 25 (benchmarks/intervals.py, docs/evaluation.md).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, copysign, inf, lgamma, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from newsdesk.label_set_metrics import Counts, resampled_counts
from newsdesk.metrics import confusion_matrix, score_interval
from newsdesk.prediction.abstention import binomial_tail

LEVEL = 0.05
"""The chance of seeing a difference where there is none, which every verdict here allows for."""
POWER = 0.8
"""The chance of seeing a difference that is there, on as many rows as ``rows_needed`` says."""
APPROXIMATE_BELOW = 200
"""Rows; on fewer of them the intervals cover less than 95 % for some classifiers."""

_Z = NormalDist().inv_cdf(1 - LEVEL / 2)
_HALVINGS = 60  # of an interval: far below what float64 tells apart
_NEVER = 1e-12  # stands for a share of 0, whose logarithm is infinite
_RESAMPLES = 2000
_MOST_RESAMPLED = 20_000  # rows; the mean of more is not skewed any longer
_DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Difference:
    """One figure of two classifiers on the same rows.

    Attributes:
        first: the first classifier's figure.
        other: the other one's.
        interval: 95 % interval (low, high) of the difference.
        difference: other - first.
    """

    first: float
    other: float
    interval: tuple[float, float]
    difference: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is on one side of zero."""
        return self.interval[0] > 0 or self.interval[1] < 0


def macro_f1_interval(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> tuple[float, float]:
    """Interval of macro F1 over the classes that occur; ids are (rows,), below ``classes``.

    Wilson's (1927) for a share, of as many rows as the figure is worth: those that would give a share the
    variance that leaving out each row in turn finds (jackknife: Efron & Stein, 1981), and no more than a mean
    over classes has with rows so unevenly spread over them. Student's quantile in place of the normal one.
    """
    figure, left_out = macro_f1_without_each(labels, predicted, classes)
    variance, most = _jackknife_variance(left_out), _rows_worth(labels, predicted, classes)
    rows = min(most, figure * (1 - figure) / variance) if variance > 1e-12 else most
    low, high = score_interval(figure, rows, _student(rows - 1))
    return max(0.0, low), min(1.0, high)


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
        lower, upper = np.quantile(_studentised_means(values, seed), [LEVEL / 2, 1 - LEVEL / 2])
        low, high = max(low, float(upper)), max(high, -float(lower))
    return max(least, mean - low * error), min(most, mean + high * error)


def accuracy_difference(
    labels: NDArray[np.int64], first: NDArray[np.int64], other: NDArray[np.int64]
) -> Difference:
    """Of two accuracies on the same rows, ids (rows,); see `paired_difference_interval`."""
    paired = compare_paired(labels, other, first)
    fixed, broken = paired.only_baseline_wrong, paired.only_model_wrong
    interval = paired_difference_interval(fixed, broken, len(labels))
    of_first, of_other = float((first == labels).mean()), float((other == labels).mean())
    return Difference(of_first, of_other, interval, of_other - of_first)


def macro_f1_difference(
    labels: NDArray[np.int64], first: NDArray[np.int64], other: NDArray[np.int64], classes: int
) -> Difference:
    """Of two macro F1 over the classes that occur, on the same rows; ids (rows,), below ``classes``.

    Jackknife with Student's quantile; two more rows on which just one of the two is right are
    added to the variance (after Bonett & Price, 2012), so that it has a width where there is none.
    """
    of_first, first_left_out = macro_f1_without_each(labels, first, classes)
    of_other, other_left_out = macro_f1_without_each(labels, other, classes)
    rows = len(labels)
    worth = min(_rows_worth(labels, predicted, classes) for predicted in (first, other))
    variance = _jackknife_variance(other_left_out - first_left_out) + 2 / (rows * worth)
    difference, half = of_other - of_first, _student(rows - 1) * sqrt(variance)
    interval = (max(-1.0, difference - half), min(1.0, difference + half))
    return Difference(of_first, of_other, interval, difference)


def mean_difference(first: NDArray[np.float64], other: NDArray[np.float64]) -> Difference:
    """Of the means of a value that every row has, (rows,) each, such as its log-likelihood.

    Student's interval of paired differences, which are hardly skewed.
    """
    gains, rows = other - first, len(first)
    error = float(gains.std(ddof=1)) / sqrt(rows) if rows > 1 else float("inf")
    mean, half = float(gains.mean()), _student(rows - 1) * error
    return Difference(float(first.mean()), float(other.mean()), (mean - half, mean + half), mean)


def macro_f1_without_each(
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


def label_set_f1_without_each(
    labels: NDArray[np.bool_], assigned: NDArray[np.bool_], *, macro: bool
) -> tuple[float, NDArray[np.float64]]:
    """Micro F1, or macro F1 over the labels that occur, and what it is without each of the texts, (texts,).

    Both arrays are (texts, labels).
    """
    counts = Counts.of(assigned, labels)
    of_texts = (labels & assigned, assigned, labels)
    left = Counts(*(whole - each for whole, each in zip(counts, of_texts, strict=True)))
    figure = Counts.macro_f1 if macro else Counts.micro_f1
    return float(figure(counts)), figure(left)


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

    Within 3 % from 2 degrees of freedom, which also stands for fewer; the base install has no scipy.
    """
    z, nu = _Z, max(2.0, degrees)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / nu**power for power, term in enumerate(terms, 1))


@dataclass(frozen=True)
class PairedComparison:
    """A model and a baseline on the same rows: only rows on which just one is right matter (McNemar, 1947).

    Attributes:
        both_right: rows that both classify correctly.
        both_wrong: rows that neither does.
        only_model_wrong: rows that only the baseline classifies correctly.
        only_baseline_wrong: rows that only the model classifies correctly.
        p_value: of the exact two-sided test that both err equally often.
    """

    both_right: int
    both_wrong: int
    only_model_wrong: int
    only_baseline_wrong: int
    p_value: float


def compare_paired(
    labels: NDArray[np.integer], model: NDArray[np.integer], baseline: NDArray[np.integer]
) -> PairedComparison:
    """Count agreement of two classifiers' class ids with the true ones, each of shape (rows,).

    Raises ValueError when the shapes differ.
    """
    if not labels.shape == model.shape == baseline.shape:
        raise ValueError(f"shapes differ: {labels.shape}, {model.shape}, {baseline.shape}")
    right = confusion_matrix((model == labels).astype(int), (baseline == labels).astype(int), 2).tolist()
    (both_wrong, only_model_wrong), (only_baseline_wrong, both_right) = right
    fewer = min(only_model_wrong, only_baseline_wrong)
    p_value = min(1.0, 2 * binomial_tail(fewer, only_model_wrong + only_baseline_wrong, 0.5))
    return PairedComparison(both_right, both_wrong, only_model_wrong, only_baseline_wrong, p_value)


def paired_difference_interval(
    only_first_right: int, only_second_right: int, rows: int, level: float = LEVEL
) -> tuple[float, float]:
    """Confidence interval of the first model's accuracy minus the second's, both measured on the same rows.

    The score interval for paired proportions (Tango, 1998), two-sided at ``level``: the differences that the
    score test does not reject. Unlike others it stays wide where both answer alike on all rows: it reaches
    z^2 / (rows + z^2) to either side. Returns (low, high) in [-1, 1]. Raises ValueError unless there are that
    many rows.
    """
    first, second = only_first_right, only_second_right
    if min(first, second) < 0 or first + second > rows or rows < 1:
        raise ValueError(f"{first} and {second} of {rows} rows")
    z = NormalDist().inv_cdf(1 - level / 2)
    found = (first - second) / rows
    high = _where_falls_to(-z, lambda difference: _tango(first, second, rows, difference), found, 1.0)
    low = _where_falls_to(z, lambda difference: _tango(first, second, rows, difference), -1.0, found)
    return low, high


def _tango(first: int, second: int, rows: int, difference: float) -> float:
    """The score statistic for a true difference; it falls as that rises."""
    a = 2 * rows
    b = -first - second + (2 * rows - first + second) * difference
    c = -second * difference * (1 - difference)
    second_share = (sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)  # the likeliest under the difference
    variance = rows * (2 * second_share + difference * (1 - difference))
    excess = first - second - rows * difference
    return excess / sqrt(variance) if variance > 0 else copysign(inf, excess) if excess else 0.0


def _where_falls_to(value: float, falling: Callable[[float], float], low: float, high: float) -> float:
    """Where between the two a falling function takes the value, by bisection."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > value else (low, middle)
    return (low + high) / 2


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """The p-values of several tests, adjusted so that one false alarm among all is as rare as of one alone.

    The step-down method (Holm, 1979): the k-th smallest of n is multiplied by n - k + 1, in their order.
    """
    order = np.argsort(p_values)
    steps = np.sort(p_values) * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return tuple(adjusted.tolist())


def rows_needed(comparison: PairedComparison, level: float = LEVEL) -> int | None:
    """From how many rows on McNemar's exact test finds the difference in four cases of five, as measured.

    The power is computed exactly (`mcnemar_power`); on this many rows and on more it is 0.8 or higher. Where
    that takes hundreds of thousands of discordant rows, it is Connor's approximation and a hundredth.
    Two-sided at ``level``; None where both err equally often.
    """
    first, second = comparison.only_model_wrong, comparison.only_baseline_wrong
    total = comparison.both_right + comparison.both_wrong + first + second
    if first == second:
        return None
    discordant, share = (first + second) / total, max(first, second) / (first + second)

    # Connor (1987) approximates it from below; twice that, and some more for whole numbers, is enough.
    z_level, z_power = NormalDist().inv_cdf(1 - level / 2), NormalDist().inv_cdf(POWER)
    difference = discordant * (2 * share - 1)
    root = z_level * sqrt(discordant) + z_power * sqrt(max(0.0, discordant - difference**2))
    about = (root / difference) ** 2
    if about * discordant > _MANY_DISCORDANT:  # 0.001 short there; exactly takes a minute
        return ceil(1.01 * about)
    enough = ceil(2 * about + 4 / difference + 20)
    if about * discordant * (1 - discordant) < _SMOOTHING_VARIANCE:
        powers = list(_conditional_powers(range(enough + 1), share, level))
        saw = (_mean_power(rows, discordant, powers.__getitem__) for rows in range(enough, -1, -1))
        return enough + 1 - next(steps for steps, power in enumerate(saw) if power < POWER)
    return bisect_left(range(enough), POWER, key=lambda rows: mcnemar_power(rows, discordant, share, level))


_MANY_DISCORDANT = 200_000
_SMOOTHING_VARIANCE = 6
"""Of the number of discordant rows: from here on the power rises evenly with the rows.

Given the discordant rows it is a saw, as the test rejects at whole numbers alone; their variance smooths it.
"""


def mcnemar_power(rows: int, discordant: float, share: float, level: float = LEVEL) -> float:
    """The chance that McNemar's exact two-sided test finds a difference on so many rows, computed exactly.

    Args:
        rows: how many both classify.
        discordant: the probability that just one of the two classifies a row correctly.
        share: the probability that, of these, it is the better one.
        level: below which a p-value has to be.
    """
    counts = _likely_counts(rows, discordant)
    powers = list(_conditional_powers(counts, share, level))
    return _mean_power(rows, discordant, lambda count: powers[count - counts[0]])


def _mean_power(rows: int, discordant: float, given: Callable[[int], float]) -> float:
    """The mean of the power given a number of discordant rows, over what that number may be."""
    share = np.array(discordant).clip(_NEVER, 1 - _NEVER)
    counts = _likely_counts(rows, discordant)
    return float(sum(_binomial_mass(count, rows, share) * given(count) for count in counts))


def _likely_counts(rows: int, discordant: float) -> range:
    """How many of the rows may be discordant: all numbers but those of no weight."""
    mean, reach = rows * discordant, 6 * sqrt(rows * discordant * (1 - discordant)) + 20
    return range(max(0, int(mean - reach)), min(rows, ceil(mean + reach)) + 1)


def _conditional_powers(counts: range, share: float, level: float) -> Iterator[float]:
    """The power given each of these numbers of discordant rows.

    The test rejects where at most ``critical`` of them fall on one side. From one count to the next that
    limit stays or grows by one, so that tails are updated, not summed again.
    """
    least = counts[0]
    critical = bisect_left(range(least), level, key=lambda most: 2 * binomial_tail(most, least, 0.5)) - 1
    sides = np.array([0.5, share, 1 - share]).clip(_NEVER, 1 - _NEVER)
    tails = np.array([binomial_tail(critical, least, side) if critical >= 0 else 0.0 for side in sides])
    for count in counts:
        grown = tails + _binomial_mass(critical + 1, count, sides)
        if 2 * grown[0] < level:
            critical, tails = critical + 1, grown
        yield float(tails[1] + tails[2])
        # Of one coin more, at most as many fall on this side, unless the limit was reached and it does too.
        tails = tails - sides * _binomial_mass(critical, count, sides)


def _binomial_mass(successes: int, trials: int, shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The probability of just so many successes, for each of several shares, none of them 0 or 1."""
    if not 0 <= successes <= trials:
        return np.zeros_like(shares)
    ways = lgamma(trials + 1) - lgamma(successes + 1) - lgamma(trials - successes + 1)
    logs = ways + successes * np.log(shares) + (trials - successes) * np.log1p(-shares)
    return np.asarray(np.exp(logs), dtype=np.float64)


def label_set_differences(
    labels: NDArray[np.bool_], first: NDArray[np.bool_], other: NDArray[np.bool_], *, seed: int = 0
) -> tuple[Difference, Difference, float]:
    """Of micro F1 and of macro F1, where a text may have several labels, and the p-value of the former.

    All arrays are (texts, labels): the true labels and those that two classifiers assign. Both are counted on
    the same 1,000 draws of the texts with replacement (paired bootstrap: Efron & Tibshirani, 1993). The
    p-value is two-sided: twice the share of draws in which the difference is zero or on the other side, at
    least 1 in 500.
    """
    drawn = list(resampled_counts(labels, [first, other], seed))
    found = []
    for figure in (Counts.micro_f1, Counts.macro_f1):
        gains = np.concatenate([figure(by_other) - figure(by_first) for by_first, by_other in drawn])
        of_first, of_other = (float(figure(Counts.of(given, labels))) for given in (first, other))
        off = float(gains.mean()) - (of_other - of_first)  # of draws that lack rare labels
        low, high = np.quantile(gains, [LEVEL / 2, 1 - LEVEL / 2]) - off
        found.append((Difference(of_first, of_other, (float(low), float(high)), of_other - of_first), gains))
    (micro, gains), (macro, _) = found
    beyond = min(int((gains <= 0).sum()), int((gains >= 0).sum()))
    return micro, macro, min(1.0, 2 * (1 + beyond) / (1 + len(gains)))
