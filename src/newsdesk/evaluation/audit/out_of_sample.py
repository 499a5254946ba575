"""Probabilities for each row from a classifier that did not learn from it, nor from its copies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import missing_package

Rows = NDArray[np.int64]

_REGULARISATION = 10.0  # scikit-learn's C, chosen on rows of AG News' train (see benchmarks/label_noise.py)
_MOST_ITERATIONS = 300


def out_of_sample_probabilities(
    embeddings: NDArray[np.float32], labels: Rows, clusters: Rows, *, classes: int, folds: int, seed: int
) -> NDArray[np.float64]:
    """Class probabilities of every row by cross-validation: a logistic regression for each fold.

    Args:
        embeddings: float32 (rows, dimensions).
        labels: int64 (rows,), below ``classes``.
        clusters: int64 (rows,); rows of one cluster, such as copies of one text, share a fold.
        classes: how many there are; one that no training row of a fold has gets probability 0 there.
        folds: how many parts; each head learns from the rows of all others.
        seed: decides the folds.

    Returns float64 (rows, classes). Raises UserError where scikit-learn is missing.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise missing_package("scikit-learn", "train", "an audit") from None
    fold_of = assign_folds(labels, clusters, folds, seed)
    probabilities = np.zeros((len(labels), classes))
    for fold in range(folds):
        held_out = fold_of == fold
        learned = np.unique(labels[~held_out])
        if not held_out.any() or not len(learned):
            continue
        if len(learned) == 1:
            probabilities[held_out, learned[0]] = 1.0
            continue
        head: Any = LogisticRegression(C=_REGULARISATION, max_iter=_MOST_ITERATIONS)
        head.fit(embeddings[~held_out], labels[~held_out])
        probabilities[np.ix_(held_out, head.classes_)] = head.predict_proba(embeddings[held_out])
    return probabilities


def assign_folds(labels: Rows, clusters: Rows, folds: int, seed: int) -> Rows:
    """The fold of each row: whole clusters, drawn in random order, each class spread evenly.

    A cluster goes where its first row's class has the fewest rows so far; of such folds, to the smallest.
    """
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=clusters[order[:1]] - 1))
    members = np.split(order, starts[1:])
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
