"""Two classifiers on the same rows, pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
"""The chance of seeing a difference where there is none, which every verdict here allows for."""
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
    """On how many rows McNemar's test would find the difference in four cases of five, were it as measured.

    The sample size of Connor (1987), two-sided at ``level``; None where the two err equally often.
    """
    first, second = comparison.only_model_wrong, comparison.only_baseline_wrong
    rows = comparison.both_right + comparison.both_wrong + first + second
    if first == second:
        return None
    discordant, difference = (first + second) / rows, abs(first - second) / rows
    z_level, z_power = NormalDist().inv_cdf(1 - level / 2), NormalDist().inv_cdf(POWER)
    root = z_level * sqrt(discordant) + z_power * sqrt(discordant - difference**2)
    return ceil((root / difference) ** 2)


def _exact_mcnemar(first: int, second: int) -> float:
    """Two-sided binomial test that ``first`` of ``first + second`` coins fell heads, in whole numbers."""
    flips, fewer = first + second, min(first, second)
    ways, tail = 1, 0
    for heads in range(fewer + 1):
        tail += ways
        ways = ways * (flips - heads) // (heads + 1)
    return min(1.0, 2 * tail / (1 << flips))
