"""Which unlabelled rows teach a classifier most: those that it is unsure of, and of these unlike ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import missing_package

Floats = NDArray[np.float64]
Embeddings = NDArray[np.float32]
Rows = NDArray[np.int64]

CANDIDATES, CANDIDATES_AT_ONCE = 5, 10
"""How many times the rows wanted are looked at, the most uncertain ones, to choose unlike ones among them:
in a batch of up to 50, and where more are picked at once, none of whose answers can guide the next."""

_RIDGE = 0.5  # of the head, whose features have length 1
_UNSEEN = 0.01  # the probability, before any answer, of a label that the classifier does not know
_LEAST = 1e-6  # a probability that answers can still change
_BATCH = 50
_ROUNDS, _ROUNDS_OF_HEAD = 10, 100
_AT_ONCE = 1 << 24  # similarities computed at once


@dataclass(frozen=True)
class Answered:
    """Rows that a person has labelled.

    Attributes:
        rows: their positions among those to pick from, (answers,).
        labels: bool (answers, labels), which labels each has.
    """

    rows: Rows
    labels: NDArray[np.bool_]

    @property
    def tells_apart(self) -> bool:
        """Whether a classifier can be learned from them: some label is given to some and not to all."""
        return len(self.rows) > 0 and bool((self.labels.any(axis=0) & ~self.labels.all(axis=0)).any())


@dataclass(frozen=True)
class Pool:
    """The rows to pick from, as a picker sees them.

    Attributes:
        embeddings: float32 (rows, dimensions), each of length 1.
        several: whether a text may have several labels.
        probabilities: (rows, labels) of a trained classifier; None: there is none yet.
    """

    embeddings: Embeddings
    several: bool
    probabilities: NDArray[np.floating[Any]] | None = None

    def pick(self, count: int, free: Rows, answered: Answered, *, seed: int) -> tuple[Rows, bool]:
        """The ``count`` rows of ``free`` to label next, the most telling first, and whether doubt chose them.

        Without a classifier, and before answers that tell labels apart, rows are picked to be unlike each
        other and those answered; as soon as there is one, by `pick_uncertain`.
        """
        known = self.estimates(answered)
        if known is None:
            return pick_diverse(self.embeddings, answered.rows, free, count, seed=seed), False
        doubts = uncertainty(known[free], several=self.several)
        return free[pick_uncertain(self.embeddings[free], doubts, count, seed=seed)], True

    def estimates(self, answered: Answered) -> Floats | None:
        """Probabilities of each row, (rows, labels), by the classifier and the answers so far.

        To what the classifier says a linear model of the embeddings is added that is fitted on the answers
        (ridge-regularised): so ten answers about a subject do not have to wait for a training to be believed.
        In simulations on AG News that was worth as much as fitting a model of all labelled rows anew. None
        where neither says anything yet. Raises UserError where scikit-learn's scipy is missing.
        """
        labels = answered.labels.shape[1]
        if self.probabilities is None and not answered.tells_apart:
            return None
        start = np.zeros((len(self.embeddings), labels))
        if self.probabilities is not None:
            start += np.log(_UNSEEN)
            known = np.clip(np.asarray(self.probabilities, dtype=np.float64), _LEAST, 1 - _LEAST)
            odds = np.log(known) - np.log1p(-known) if self.several else np.log(known)
            start[:, : known.shape[1]] = odds
        if answered.tells_apart:
            features = np.hstack([self.embeddings, np.ones((len(self.embeddings), 1), np.float32)])
            head = _fitted_head(features[answered.rows], answered.labels, start[answered.rows], self.several)
            start += features @ head
        return _probabilities(start, several=self.several)


def uncertainty(probabilities: NDArray[np.floating[Any]], *, several: bool) -> Floats:
    """How unsure each row of probabilities, (rows, labels), is, from 0 on, (rows,).

    One label a text: 1 less the margin between the two most probable labels (Scheffer et al., 2001), at most
    1. Several: the number of labels that are expected to be decided wrongly.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    if several:
        return np.asarray(np.minimum(values, 1 - values).sum(axis=1))
    if values.shape[1] < 2:
        return np.zeros(len(values))
    best = np.partition(values, -2, axis=1)
    return np.asarray(1 - (best[:, -1] - best[:, -2]))


def pick_uncertain(embeddings: Embeddings, doubts: Floats, count: int, *, seed: int) -> Rows:
    """So many rows of high ``doubts`` that are unlike each other; the most uncertain first.

    Of the most uncertain rows, five or ten times as many as wanted, clusters are made by k-means, in which a
    row weighs as much as its doubt; the row nearest to the centre of each is taken (Zhdanov, 2019). A batch
    of the most uncertain rows alone asks the same question many times. Deterministic by ``seed``.
    """
    order: Rows = np.argsort(-doubts, kind="stable")[
        : count * (CANDIDATES if count <= _BATCH else CANDIDATES_AT_ONCE)
    ]
    if len(order) <= count:
        return order
    clusters = _clusters(embeddings[order], count, weights=doubts[order] + _LEAST, seed=seed)
    chosen = order[clusters.medoids(embeddings[order])]
    missing = [row for row in order.tolist() if row not in set(chosen.tolist())][: count - len(chosen)]
    rows = np.concatenate([chosen, np.array(missing, dtype=np.int64)])
    return np.asarray(rows[np.argsort(-doubts[rows], kind="stable")], dtype=np.int64)


def pick_diverse(embeddings: Embeddings, known: Rows, free: Rows, count: int, *, seed: int) -> Rows:
    """So many rows of ``free`` that stand for all rows: each the most typical one of a cluster of its own.

    There are as many clusters as rows known and wanted together; those with the fewest known rows come first,
    and of these the largest (Hacohen et al., 2022: with few labels typical rows teach more than uncertain
    ones). Deterministic by ``seed``.
    """
    rows = np.concatenate([known, free]).astype(np.int64)
    clusters = _clusters(embeddings[rows], min(len(rows), len(known) + count), weights=None, seed=seed)
    sizes = np.bincount(clusters.of_row, minlength=len(clusters.centres))
    taken = np.bincount(clusters.of_row[: len(known)], minlength=len(clusters.centres))
    medoids = clusters.medoids(embeddings[rows], start=len(known))
    places = clusters.of_row[medoids]
    chosen = medoids[np.lexsort((-sizes[places], taken[places]))][:count]
    rest = np.setdiff1d(np.arange(len(known), len(rows)), chosen)[: count - len(chosen)]
    picked: Rows = rows[np.concatenate([chosen, rest])]
    return picked


@dataclass(frozen=True)
class _Clusters:
    """Clusters of rows: unit centres, (clusters, dimensions), and the cluster of each row, (rows,)."""

    centres: NDArray[np.float32]
    of_row: Rows

    def medoids(self, embeddings: Embeddings, *, start: int = 0) -> Rows:
        """Of each cluster with a row from ``start`` on, the one of these that is nearest to its centre."""
        nearness = np.einsum("rd,rd->r", embeddings[start:], self.centres[self.of_row[start:]])
        order = np.lexsort((-nearness, self.of_row[start:]))
        _, first = np.unique(self.of_row[start:][order], return_index=True)
        return np.asarray(order[first] + start, dtype=np.int64)


def _clusters(embeddings: Embeddings, count: int, *, weights: Floats | None, seed: int) -> _Clusters:
    """Spherical k-means of unit vectors from seeds by k-means++ (Arthur & Vassilvitskii, 2007)."""
    generator = np.random.Generator(np.random.PCG64(seed))
    weigh = np.ones(len(embeddings)) if weights is None else weights
    centres = embeddings[_spread(embeddings, count, weigh, generator)]
    of_row = _nearest(embeddings, centres)
    for _ in range(_ROUNDS):
        sums, order = np.zeros_like(centres), np.argsort(of_row, kind="stable")
        held, starts = np.unique(of_row[order], return_index=True)
        sums[held] = np.add.reduceat((embeddings * weigh[:, None].astype(np.float32))[order], starts)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centres).astype(np.float32)
        now = _nearest(embeddings, centres)
        if (now == of_row).all():
            break
        of_row = now
    return _Clusters(centres, of_row)


def _spread(embeddings: Embeddings, count: int, weights: Floats, generator: np.random.Generator) -> Rows:
    """Rows drawn one after the other, each likelier the further it is from those drawn before."""
    distances = np.full(len(embeddings), 2.0)
    chosen: list[int] = []
    for _ in range(count):
        chances = weights * distances
        chances[chosen] = 0.0
        total = chances.sum()
        if total <= 0:  # all others are copies of those drawn
            chances = np.ones(len(embeddings))
            chances[chosen] = 0.0
            total = chances.sum()
        row = int(generator.choice(len(chances), p=chances / total))
        chosen.append(row)
        distances = np.minimum(distances, np.maximum(0.0, 2 - 2 * (embeddings @ embeddings[row])))
    return np.array(chosen, dtype=np.int64)


def _nearest(embeddings: Embeddings, centres: NDArray[np.float32]) -> Rows:
    """The centre that is most similar to each row, (rows,)."""
    step = max(1, _AT_ONCE // len(centres))
    parts = range(0, len(embeddings), step)
    return np.concatenate([(embeddings[part : part + step] @ centres.T).argmax(axis=1) for part in parts])


def _fitted_head(
    features: NDArray[np.floating[Any]], labels: NDArray[np.bool_], start: Floats, several: bool
) -> Floats:
    """Weights (features, labels) of a logistic regression whose scores are added to those of ``start``."""
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise missing_package("scikit-learn", "train", "picking rows") from None
    truth, inputs = labels.astype(np.float64), features.astype(np.float64)
    shape = (inputs.shape[1], truth.shape[1])

    def loss(flat: Floats) -> tuple[float, Floats]:
        weights = flat.reshape(shape)
        scores = start + inputs @ weights
        if several:
            cost = (np.logaddexp(0, scores) - truth * scores).sum()
        else:
            highest = scores.max(axis=1)
            cost = (highest + np.log(np.exp(scores - highest[:, None]).sum(axis=1))).sum()
            cost -= (truth * scores).sum()
        slope = inputs.T @ (_probabilities(scores, several=several) - truth) + _RIDGE * weights
        return float(cost + 0.5 * _RIDGE * (flat @ flat)), slope.ravel()

    options = {"maxiter": _ROUNDS_OF_HEAD}
    found = minimize(loss, np.zeros(shape[0] * shape[1]), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x, dtype=np.float64).reshape(shape)


def _probabilities(scores: Floats, *, several: bool) -> Floats:
    if several:
        return np.asarray(0.5 * (1 + np.tanh(0.5 * scores)))
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def answered_rows(rows: Sequence[int], sets: Sequence[Sequence[str]], names: Sequence[str]) -> Answered:
    """The answers to these rows, each the names of its labels."""
    number = {name: place for place, name in enumerate(names)}
    labels = np.zeros((len(rows), len(names)), dtype=np.bool_)
    for place, given in enumerate(sets):
        labels[place, [number[name] for name in given]] = True
    return Answered(np.array(rows, dtype=np.int64), labels)
