"""Iterative stratification: rows that may have several labels, dealt to parts that all resemble the whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LabelSets = NDArray[np.bool_]
"""Which labels each row has, (rows, labels)."""


def label_counts(labels: LabelSets) -> NDArray[np.int64]:
    """Rows of each label, then those without any, (labels + 1,)."""
    return np.append(labels.sum(axis=0), (~labels.any(axis=1)).sum()).astype(np.int64)


def stratified(
    labels: LabelSets, shares: Sequence[float], *, seed: int, groups: Sequence[Sequence[int]] | None = None
) -> NDArray[np.int64]:
    """A part for each row, (rows,), so that each part has its share of the rows of each label.

    ``groups`` are positions of rows that have to stay together, all of them; None: each is on its own.
    """
    each = np.asarray(shares)
    groups = [[row] for row in range(len(labels))] if groups is None else groups
    return dealt(labels, np.outer(each, label_counts(labels)), each * len(labels), groups, seed=seed)


def dealt(
    labels: LabelSets,
    wanted: NDArray[np.float64],
    sizes: Sequence[float] | NDArray[np.float64],
    groups: Sequence[Sequence[int]],
    *,
    seed: int,
    keeper: int | None = None,
) -> NDArray[np.int64]:
    """A part for each row, (rows,): iterative stratification (Sechidis, Tsoumakas & Vlahavas, 2011).

    The label with the fewest rows still to be dealt goes first, since later it could not be made up for; each
    of its rows goes to the part that lacks most of that label, then to the one that lacks most rows. Rows
    without a label are dealt as if that were one. What is wanted may not be met exactly.

    Args:
        labels: which labels each row has, (rows, labels).
        wanted: rows of each label in each part, and then of those without a label, (parts, labels + 1).
        sizes: rows that each part should have, (parts,).
        groups: positions of rows that have to stay together; each row is in one.
        seed: of the order in which rows are dealt, the same on every platform.
        keeper: a part that has to have a row, at least, of every label.
    """
    every = np.column_stack([labels, ~labels.any(axis=1)])
    missing, room = wanted.tolist(), list(map(float, sizes))
    remaining = every.sum(axis=0)
    left = remaining.tolist()  # rows of a label that are not in other parts than the keeper's
    left[-1] += len(labels)  # to have no row without a label is no loss
    members = [_labels_of(every, group) for group in groups]
    holders: list[list[int]] = [[] for _ in left]
    for number in np.random.Generator(np.random.PCG64(seed)).permutation(len(groups)).tolist():
        for label in members[number]:
            holders[label].append(number)
    part_of = np.full(len(labels), -1, dtype=np.int64)

    def spare(number: int) -> bool:
        return all(rows < left[label] for label, rows in members[number].items())

    def place(number: int, rarest: int) -> None:
        parts = range(len(room))
        if keeper is not None and not spare(number):
            parts = range(keeper, keeper + 1)
        part = max(parts, key=lambda each: (missing[each][rarest], room[each], -each))
        for label, rows in members[number].items():
            missing[part][label] -= rows
            remaining[label] -= rows
            if part != keeper:
                left[label] -= rows
        room[part] -= len(groups[number])
        part_of[list(groups[number])] = part

    while remaining.any():
        rarest = int(np.argmin(np.where(remaining > 0, remaining, len(labels) + 1)))
        for number in holders[rarest]:
            if part_of[groups[number][0]] < 0:
                place(number, rarest)
    return part_of


def _labels_of(every: LabelSets, group: Sequence[int]) -> dict[int, int]:
    """How many rows of a group have each label."""
    found: dict[int, int] = {}
    for row in group:
        for label in np.flatnonzero(every[row]).tolist():
            found[label] = found.get(label, 0) + 1
    return found
