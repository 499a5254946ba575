"""Rows dealt to the folds of a cross-validation, copies of a text together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.duplicates import duplicate_groups, near_copies
from newsdesk.data.examples import LEAST_FIGURES, Examples, validation_size
from newsdesk.data.stratification import stratified
from newsdesk.errors import UserError, counted, listed

Rows = NDArray[np.int64]
USUAL_FOLDS = 5


def usual_folds(examples: Examples, *, rows: int, seed: int) -> tuple[Rows | None, tuple[str, ...]]:
    """The folds of rows of which nobody said how to validate, as `fold_of_rows`, and what to know of it.

    There are none where `hold_out` would set 200 of the ``rows`` aside, which is so from 1,000 on: that many
    are enough to measure by, and what they are missed for in training is little. Below, the trainings are
    short, and six of them a matter of minutes. There are none either where some fold would leave
    nothing of a class to learn from: what its model says of that class tells nothing.
    """
    if validation_size(rows, None) >= LEAST_FIGURES:
        return None, ()
    try:
        fold_of = fold_of_rows(examples, USUAL_FOLDS, seed=seed)
    except UserError as error:
        return None, (f"{_NOT_DEALT}: {error.found}",)
    if lost := _classes_of_one_fold(examples, fold_of):
        return None, (
            f"{_NOT_DEALT}: one fold has all of {listed(lost)}, and its model would not know what that is; "
            "--folds 5 does it all the same",
        )
    return fold_of, (
        f"{counted(len(examples), 'row')}, of which fewer than {LEAST_FIGURES} would be held out: "
        f"cross-validated in {USUAL_FOLDS} folds, which takes about {USUAL_FOLDS + 1} times as long; "
        "--folds 0 holds some out instead",
    )


_NOT_DEALT = "rows are few, but held out instead of cross-validated"


def _classes_of_one_fold(examples: Examples, fold_of: Rows) -> list[str]:
    """Each class that some fold leaves no row of, with its rows; labels of which a text may have several not.

    Such a label is one of many that its texts have, and rarely any of the figures.
    """
    if examples.is_multi:
        return []
    assert examples.labels is not None
    names, of_class = (
        examples.label_names,
        [fold_of[examples.labels == i] for i in range(len(examples.label_names))],
    )
    return [
        f"{name} ({counted(len(folds), 'row')})"
        for name, folds in zip(names, of_class, strict=True)
        if len(folds) and len(np.unique(folds)) == 1
    ]


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
