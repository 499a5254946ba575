"""Probabilities for each row from a classifier that did not learn from it, nor from its copies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import missing_package
from newsdesk.evaluation.baseline import has_words, tfidf_vectorizer

Rows = NDArray[np.int64]

_MOST_NEIGHBOURS = 50


def out_of_sample_probabilities(
    texts: Sequence[str],
    embeddings: NDArray[np.float32],
    labels: Rows,
    clusters: Rows,
    *,
    classes: int,
    folds: int,
    seed: int,
) -> NDArray[np.float64]:
    """Class probabilities of every row by cross-validation: the mean of what two simple classifiers say.

    One sees the meaning: the labels among the row's nearest neighbours by embedding (as many as the square
    root of the rows learned from, at most 50). The other sees the words (the characters, in Chinese and other
    scripts without spaces): complement naive Bayes on TF-IDF (Rennie et al., 2003). Neither fits single wrong
    labels as a trained head does, and they err on different rows (measured: docs/audit.md).

    Args:
        texts: (rows,); the words' weights, which know no labels, come from all of them.
        embeddings: float32 (rows, dimensions), each of length 1.
        labels: int64 (rows,), below ``classes``.
        clusters: int64 (rows,); rows of one cluster, such as copies of one text, share a fold.
        classes: how many there are; one that no training row of a fold has gets probability 0 there.
        folds: how many parts; each is judged by what learned from all others.
        seed: decides the folds.

    Returns float64 (rows, classes). Raises UserError where scikit-learn is missing.
    """
    try:
        from sklearn.naive_bayes import ComplementNB
        from sklearn.neighbors import KNeighborsClassifier
    except ImportError:
        raise missing_package("scikit-learn", "train", "an audit") from None
    fold_of = assign_folds(labels, clusters, folds, seed)
    words = tfidf_vectorizer(len(texts)).fit_transform(texts) if has_words(texts) else None
    probabilities = np.zeros((len(labels), classes))
    for fold in range(folds):
        held_out, learned = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
        if not len(held_out) or not len(learned):
            continue
        neighbours = min(_MOST_NEIGHBOURS, math.ceil(math.sqrt(len(learned))))
        heads: list[tuple[Any, Any]] = [(KNeighborsClassifier(neighbours, algorithm="brute"), embeddings)]
        if words is not None:
            heads.append((ComplementNB(), words))
        for head, features in heads:
            head.fit(features[learned], labels[learned])
            said = head.predict_proba(features[held_out])
            probabilities[np.ix_(held_out, head.classes_)] += said / len(heads)
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
