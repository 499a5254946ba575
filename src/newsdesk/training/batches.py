"""Rows to batches: of like length, so that little padding is computed, yet mixed anew in every epoch.

Rows sorted by length and cut into batches would meet the same neighbours in every epoch, and where length
tells the class, batches would lean to one class, which costs accuracy in short trainings. So every row gets
a place by its length, which each epoch blurs anew, and batches come in random order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Places = NDArray[np.float64]

_BLUR, _BLUR_OF_FEW = 12, 24
"""How far a row's place is blurred, in batches: the more, the better mixed, and the more padding."""
_FEW, _VERY_FEW = 500, 128
"""Few batches an epoch meet again soon, and their padding costs little time; very few are left random."""


class Batcher:
    """Batches of every epoch over the same rows; the same seed gives the same ones on every machine."""

    def __init__(
        self,
        lengths: Rows,
        batch_size: int,
        *,
        seed: int,
        group_by_length: bool = True,
        sample_of: int | None = None,
    ) -> None:
        """Prepare for rows of so many tokens ``lengths``, (rows,).

        Args:
            lengths: tokens of each row.
            batch_size: rows a batch.
            seed: with the epoch it decides the order.
            group_by_length: False: random batches, as also where there are 128 or fewer.
            sample_of: the rows are a random sample of so many, and their batches shall be as like in length.
        """
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        batches = max(1.0, (sample_of or len(lengths)) / batch_size)
        blur = (_BLUR_OF_FEW if batches < _FEW else _BLUR) / batches
        self._blur = blur if group_by_length and batches > _VERY_FEW else None
        self._from, self._to = _places(lengths)

    def epoch(self, number: int) -> list[Rows]:
        """All rows in batches of ``batch_size``, one of them maybe smaller; ``number`` is 0-based."""
        generator = np.random.default_rng([self._seed, number])
        rows = len(self._lengths)
        whole, rest = divmod(rows, self._batch_size)
        sizes = [self._batch_size] * whole + [rest] * (rest > 0)
        if self._blur is None:
            return np.split(generator.permutation(rows), np.cumsum(sizes)[:-1])
        places = generator.uniform(self._from, self._to) + generator.uniform(0, self._blur, rows)
        by_length = np.argsort(places, kind="stable")
        batches = np.split(by_length, np.cumsum(generator.permutation(sizes))[:-1])
        return [batches[position] for position in generator.permutation(len(batches))]


def padding_share(lengths: Rows, batches: list[Rows]) -> float:
    """The share of computed tokens that are padding when each batch is padded to its longest row."""
    computed = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    return 1.0 - int(lengths.sum()) / computed if computed else 0.0


def _places(lengths: Rows) -> Places:
    """From where to where each row may stand in the order of lengths, 0 to 1, (2, rows)."""
    _, group, sizes = np.unique(lengths, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes) / len(lengths)
    return np.stack([(ends - sizes / len(lengths))[group], ends[group]])
