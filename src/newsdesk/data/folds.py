"""Rows dealt to the folds of a cross-validation, copies of a text together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.duplicates import duplicate_groups, near_copies
from newsdesk.data.examples import Examples
from newsdesk.data.stratification import stratified
from newsdesk.errors import UserError, counted

Rows = NDArray[np.int64]


def fold_of_rows(examples: Examples, folds: int, *, seed: int) -> Rows:
    """The fold of each labelled row, counted from 0, (rows,): each class spread evenly.

    Copies of a text, near ones too, are in one fold. The same seed gives the same folds on every platform.
    Raises UserError where a fold would be empty, or without it no second class would be left.
    """
    assert examples.labels is not None
    near = ((one.match, one.row) for one in near_copies(examples.texts))
    clusters = clusters_of(len(examples), chain(duplicate_groups(examples.texts), near))
    fold_of = assign_folds(examples.labels, clusters, folds, seed)
    for fold in range(folds):
        held_out = fold_of == fold
        classes = (examples.select(np.flatnonzero(~held_out)).label_rows() > 0).sum()
        if not held_out.any() or classes < 2:
            raise UserError(
                f"the rows cannot be dealt to {counted(folds, 'fold')}",
                found=f"{counted(len(examples), 'row')} of {counted(len(np.unique(clusters)), 'text')}; fold "
                f"{fold + 1} has {held_out.sum():,}, and {counted(int(classes), 'class')} would be left to "
                "learn from without it",
                fix="use fewer --folds, or give more rows",
            )
    return fold_of


def assign_folds(labels: NDArray[Any], clusters: Rows, folds: int, seed: int) -> Rows:
    """The fold of each row: whole clusters, drawn in random order, each class spread evenly.

    ``labels`` are class ids, (rows,): a cluster goes where its first row's class has the fewest rows so far,
    and of such folds to the smallest. Or they are truth values, (rows, labels): see `stratified`.
    """
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=clusters[order[:1]] - 1))
    members = np.split(order, starts[1:])
    if labels.ndim == 2:
        groups = [rows.tolist() for rows in members]
        return stratified(labels, [1 / folds] * folds, seed=seed, groups=groups)
    filled = np.zeros((int(labels.max()) + 1, folds), dtype=np.int64)
    fold_of = np.zeros(len(labels), dtype=np.int64)
    for position in np.random.Generator(np.random.PCG64(seed)).permutation(len(members)):
        rows = members[position]
        fold = int(np.lexsort((filled.sum(axis=0), filled[labels[rows[0]]]))[0])
        np.add.at(filled, (labels[rows], fold), 1)
        fold_of[rows] = fold
    return fold_of


def clusters_of(rows: int, groups: Iterable[Sequence[int]]) -> Rows:
    """A number for each of ``rows`` rows, equal for all that ``groups`` link, directly or over others."""
    parent = list(range(rows))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for first, *others in groups:
        for other in others:
            parent[root(other)] = root(first)
    return np.array([root(row) for row in range(rows)], dtype=np.int64)
