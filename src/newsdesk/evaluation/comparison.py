"""Two classifiers on the same rows, pair by pair."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


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


def _exact_mcnemar(first: int, second: int) -> float:
    """Two-sided binomial test that ``first`` of ``first + second`` coins fell heads, in whole numbers."""
    flips, fewer = first + second, min(first, second)
    ways, tail = 1, 0
    for heads in range(fewer + 1):
        tail += ways
        ways = ways * (flips - heads) // (heads + 1)
    return min(1.0, 2 * tail / (1 << flips))
