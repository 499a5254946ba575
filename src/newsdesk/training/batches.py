"""Rows to batches: grouped by length so that hardly any padding is computed, in an order a seed decides."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

# Rows are sorted by length within windows of so many batches: wide enough that a batch's rows differ by a
# token or two, narrow enough that every epoch mixes the batches anew.
_WINDOW_BATCHES = 128


def epoch_batches(
    lengths: Rows, batch_size: int, *, seed: int, epoch: int, group_by_length: bool
) -> list[Rows]:
    """All rows of one epoch in batches of ``batch_size`` (one may be smaller).

    Args:
        lengths: tokens of each row, shape (rows,).
        batch_size: rows a batch.
        seed: with ``epoch`` decides the order, the same on every machine.
        epoch: 0-based.
        group_by_length: sort by length within shuffled windows, then shuffle the batches.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    if not group_by_length:
        return _cut(order, batch_size)
    batches: list[Rows] = []
    for window in _cut(order, batch_size * _WINDOW_BATCHES):
        batches += _cut(window[np.argsort(lengths[window], kind="stable")], batch_size)
    return [batches[i] for i in generator.permutation(len(batches))]


def padding_share(lengths: Rows, batches: list[Rows]) -> float:
    """The share of computed tokens that are padding when each batch is padded to its longest row."""
    computed = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    return 1.0 - int(lengths.sum()) / computed if computed else 0.0


def _cut(rows: Rows, size: int) -> list[Rows]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
