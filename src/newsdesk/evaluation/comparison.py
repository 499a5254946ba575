"""Two classifiers on the same rows, pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil, copysign, exp, inf, lgamma, log, log1p, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.prediction.abstention import binomial_tail

LEVEL = 0.05
"""The chance of seeing a difference where there is none, which every verdict here allows for."""
_HALVINGS = 60  # of an interval: far below what float64 tells apart
POWER = 0.8
"""The chance of seeing a difference that is there, on as many rows as ``rows_needed`` says."""


@dataclass(frozen=True)
class PairedComparison:
    """A model beside a baseline: only rows on which one of them is right tell the two apart (McNemar, 1947).

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

    def to_dict(self) -> dict[str, Any]:
        """The fields, by name."""
        return asdict(self)


def compare_paired(
    labels: NDArray[np.integer], model: NDArray[np.integer], baseline: NDArray[np.integer]
) -> PairedComparison:
    """Count agreement of two classifiers' class ids with the true ones, each of shape (rows,).

    Raises ValueError when the shapes differ.
    """
    if not labels.shape == model.shape == baseline.shape:
        raise ValueError(f"shapes differ: {labels.shape}, {model.shape}, {baseline.shape}")
    model_right, baseline_right = model == labels, baseline == labels
    only_model_wrong = int((~model_right & baseline_right).sum())
    only_baseline_wrong = int((model_right & ~baseline_right).sum())
    return PairedComparison(
        both_right=int((model_right & baseline_right).sum()),
        both_wrong=int((~model_right & ~baseline_right).sum()),
        only_model_wrong=only_model_wrong,
        only_baseline_wrong=only_baseline_wrong,
        p_value=_exact_mcnemar(only_model_wrong, only_baseline_wrong),
    )


def paired_difference_interval(
    only_first_right: int, only_second_right: int, rows: int, level: float = LEVEL
) -> tuple[float, float]:
    """Confidence interval of the first model's accuracy minus the second's, both measured on the same rows.

    The score interval for paired proportions (Tango, 1998), two-sided at ``level``: the differences that the
    score test does not reject. Unlike others it stays wide where no row tells the two apart: it reaches
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
    second_share = (sqrt(max(0.0, b * b - 4 * a * c)) - b) / (
        2 * a
    )  # its likeliest value under the difference
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
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, p_values[position] * (len(p_values) - rank)))
        adjusted[position] = largest
    return tuple(adjusted)


def rows_needed(comparison: PairedComparison, level: float = LEVEL) -> int | None:
    """From how many rows on McNemar's exact test finds the difference in four cases of five, as measured.

    The power is computed exactly (`mcnemar_power`); on this many rows and on more it is 0.8 or higher.
    Two-sided at ``level``; None where the two err equally often.
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
    enough, too_few = ceil(2 * about + 4 / difference + 20), 0
    if about * discordant * (1 - discordant) < _SMOOTHING_VARIANCE:
        powers = list(_conditional_powers(0, enough, share, level))
        saw = (_power(rows, discordant, powers.__getitem__) for rows in range(enough, -1, -1))
        return enough + 1 - next(steps for steps, power in enumerate(saw) if power < POWER)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if mcnemar_power(middle, discordant, share, level) >= POWER:
            enough = middle
        else:
            too_few = middle
    return enough


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
    powers = dict(zip(counts, _conditional_powers(counts[0], counts[-1], share, level), strict=True))
    return _power(rows, discordant, powers.__getitem__)


def _power(rows: int, discordant: float, given: Callable[[int], float]) -> float:
    """The mean of the power given a number of discordant rows, over what that number may be."""
    counts = _likely_counts(rows, discordant)
    return sum(_binomial_mass(count, rows, discordant) * given(count) for count in counts)


def _likely_counts(rows: int, discordant: float) -> range:
    """How many of the rows may be discordant: all numbers but those of no weight."""
    reach = 9 * sqrt(rows * discordant * (1 - discordant)) + 20 * (discordant < 1)
    mean = rows * discordant
    return range(max(0, int(mean - reach)), min(rows, ceil(mean + reach)) + 1)


def _conditional_powers(least: int, most: int, share: float, level: float) -> Iterator[float]:
    """The power given ``least``, ..., ``most`` discordant rows.

    The test rejects where at most ``critical`` of them fall on one side. From one count to the next that
    limit stays or grows by one, so that tails are carried on and not summed anew.
    """
    below, above = -1, (least + 1) // 2  # of these the first rejects, the second does not
    while above - below > 1:
        middle = (below + above) // 2
        if 2 * binomial_tail(middle, least, 0.5) < level:
            below = middle
        else:
            above = middle
    critical = below
    sides = (0.5, share, 1 - share)
    tails = [_tail(critical, least, side) for side in sides]
    for count in range(least, most + 1):
        grown = [
            tail + _binomial_mass(critical + 1, count, side) for tail, side in zip(tails, sides, strict=True)
        ]
        if 2 * grown[0] < level:
            critical, tails = critical + 1, grown
        yield tails[1] + tails[2]
        # Of one coin more, at most as many fall on this side, unless the limit was reached and it does too.
        tails = [
            tail - side * _binomial_mass(critical, count, side)
            for tail, side in zip(tails, sides, strict=True)
        ]


def _tail(most: int, trials: int, share: float) -> float:
    """As ``binomial_tail``, for none and for shares of 0 and 1, too."""
    if most < 0:
        return 0.0
    if share in (0.0, 1.0):
        return float(share == 0 or most >= trials)
    return binomial_tail(most, trials, share)


def _binomial_mass(successes: int, trials: int, share: float) -> float:
    """The probability of just so many successes."""
    if not 0 <= successes <= trials:
        return 0.0
    if share in (0.0, 1.0):
        return float(successes == trials * share)
    ways = lgamma(trials + 1) - lgamma(successes + 1) - lgamma(trials - successes + 1)
    return exp(ways + successes * log(share) + (trials - successes) * log1p(-share))


def _exact_mcnemar(first: int, second: int) -> float:
    """Two-sided binomial test that ``first`` of ``first + second`` coins fell heads, in whole numbers."""
    flips, fewer = first + second, min(first, second)
    ways, tail = 1, 0
    for heads in range(fewer + 1):
        tail += ways
        ways = ways * (flips - heads) // (heads + 1)
    return min(1.0, 2 * tail / (1 << flips))
