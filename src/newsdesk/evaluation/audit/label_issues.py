"""Probabilities for each row from a classifier that did not learn from it, nor from its copies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.folds import assign_folds
from newsdesk.errors import missing_package
from newsdesk.metrics import confusion_matrix
from newsdesk.training.linear_baseline import has_words, tfidf_vectorizer

_SLACK = 1e-6  # a class whose rows all have the same probability must reach its own mean
_LEAST_SKILL = 0.5


def least_accuracy(majority: float) -> float:
    """The out-of-sample accuracy below which labels cannot be judged; both shares are in [0, 1].

    It is half of the way from ``majority``, what always giving the most frequent label reaches, to 1. In
    simulations with 5 to 20 % wrong labels (2 to 10 classes of Gaussian clusters, tests/evaluation/audit),
    most suspects of a classifier far below it had the right label, and the share of wrong labels was
    overestimated up to ten times. With clearly separated classes a classifier is above it even where a fifth
    of the labels is wrong.
    """
    return majority + _LEAST_SKILL * (1 - majority)


@dataclass(frozen=True)
class LabelErrors:
    """What out-of-sample probabilities say about the labels.

    Attributes:
        accuracy: share of the rows whose most probable class is their label, in [0, 1].
        majority: share of the rows that have the most frequent label, in [0, 1].
        quality: float64 (rows,) in [0, 1]: how well each label fits: its own probability.
        suggested: int64 (rows,): the class each row likely belongs to; mostly the given one.
        suspects: int64: rows whose label is likely wrong, the least fitting first; ties in row order.
        confident_joint: int64 (classes, classes): rows counted with confidence, by given and likely class.
        joint: float64 (classes, classes): the same scaled to all rows: how many of each given class (row of
            the matrix) truly belong to which (column).
    """

    accuracy: float
    majority: float
    quality: NDArray[np.float64]
    suggested: NDArray[np.int64]
    suspects: NDArray[np.int64]
    confident_joint: NDArray[np.int64]
    joint: NDArray[np.float64]

    @property
    def noise(self) -> float:
        """The share of wrong labels that can be seen from the labels, in [0, 1].

        A lower bound where the classifier is good: an error made the same way every time is learned like a
        right label, and cannot be seen. A classifier that is often wrong itself takes right labels for wrong.
        """
        return float(1 - np.trace(self.joint) / self.joint.sum())

    @property
    def ranking(self) -> NDArray[np.int64]:
        """All rows, the least fitting label first; ties in row order."""
        return np.argsort(self.quality, kind="stable")

    def confused_pairs(self) -> list[tuple[int, int, float]]:
        """(given class, likely class, estimated rows) wherever there are any, the most rows first."""
        given, likely = np.nonzero(self.joint - np.diag(np.diag(self.joint)))
        pairs = [(int(g), int(t), float(self.joint[g, t])) for g, t in zip(given, likely, strict=True)]
        return sorted(pairs, key=lambda pair: -pair[2])


def rank_label_errors(probabilities: NDArray[Any], labels: NDArray[np.int64]) -> LabelErrors:
    """Find the labels that are wrong by confident learning (Northcutt, Jiang & Chuang, 2021).

    A row counts with confidence for a class when its probability reaches the mean that the class has among
    the rows labelled so; where several classes qualify, for the most probable class of all, as cleanlab has
    it. Rows counted for another class than their label's, off the diagonal of the confident joint, are
    suspects. All rows are ranked by self-confidence, the probability of the given label (Kuan & Mueller,
    Model-agnostic label quality scoring to detect real-world label errors, 2022).

    Args:
        probabilities: (rows, classes), each row's from a model that did not learn from that row.
        labels: int64 (rows,), the given class ids.

    Raises ValueError for shapes that do not fit, no rows or fewer than two classes; that is a defect of the
    caller.
    """
    scores = np.asarray(probabilities, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[0] != len(labels) or not len(labels) or scores.shape[1] < 2:
        raise ValueError(f"probabilities of shape {scores.shape} for {len(labels)} labels")
    classes, most_probable = scores.shape[1], scores.argmax(axis=1)
    quality = scores[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=quality, minlength=classes)
    qualifies = scores >= np.where(counts > 0, sums / np.maximum(counts, 1), np.inf) - _SLACK
    counted = qualifies.any(axis=1)
    # The only class that qualifies need not be the most probable one; of several, the most probable counts.
    confident = np.where(qualifies.sum(axis=1) > 1, most_probable, qualifies.argmax(axis=1))
    joint = confusion_matrix(labels[counted], confident[counted], classes)
    # Every class has at least one right label, or a class without confident rows would vanish.
    kept = joint + np.diag(np.diag(joint) == 0)
    suspects = np.flatnonzero(counted & (confident != labels))
    return LabelErrors(
        accuracy=float((most_probable == labels).mean()),
        majority=float(counts.max() / len(labels)),
        quality=quality,
        suggested=np.where(counted, confident, most_probable),
        suspects=suspects[np.argsort(quality[suspects], kind="stable")],
        confident_joint=joint,
        joint=kept / kept.sum(axis=1, keepdims=True) * counts[:, None],
    )


Rows = NDArray[np.int64]

MOST_NEIGHBOURS = 50
"""By embedding, that a row is judged by."""


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
    labels as a trained head does, and they err on different rows (measured: docs/trust.md).

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
        neighbours = min(MOST_NEIGHBOURS, math.ceil(math.sqrt(len(learned))))
        heads: list[tuple[Any, Any]] = [(KNeighborsClassifier(neighbours, algorithm="brute"), embeddings)]
        if words is not None:
            heads.append((ComplementNB(), words))
        for head, features in heads:
            head.fit(features[learned], labels[learned])
            said = head.predict_proba(features[held_out])
            probabilities[np.ix_(held_out, head.classes_)] += said / len(heads)
    return probabilities
