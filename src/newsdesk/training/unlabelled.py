"""Texts without labels that a training learns from, too: each takes the class that its neighbours suggest.

What the frozen encoder makes of a few labelled and many unlabelled texts shows where one topic ends and the
next begins. A mixture of Gaussians finds that, one for each class, begun at the labelled rows and fitted to
all texts by expectation maximisation (Nigam et al., 2000). Where it is sure, and a logistic regression on the
labelled rows alone says the same, the text is learned from as of that class: where two models agree that are
wrong in different ways, both are rarely wrong.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.load import TrainingData
from newsdesk.errors import UserError, counted
from newsdesk.model.network import Network, TextEmbedder, predict_with_features
from newsdesk.model.tokenizer import TextTokenizer, TokenIds
from newsdesk.training.loop import EncodedRows

Points = NDArray[np.float64]

_ROUNDS = 30
_PER_CLASS, _FEWEST, _MOST = 4, 16, 64
"""Dimensions of the mixture: four for each class, within these bounds."""
_LABELLED_COUNT = 5.0
"""How many unlabelled texts a class's labelled rows together outweigh in its mean."""
_SURE = 0.8
_INVERSE_PENALTY = 3.0


def rows_to_learn(
    data: TrainingData, token_ids: list[TokenIds], tokenizer: TextTokenizer, network: Network, base: Path
) -> tuple[EncodedRows, tuple[str, ...]]:
    """The training rows and, where there are texts without labels, those of them whose class is clear.

    Args:
        data: the rows.
        token_ids: of its training rows.
        tokenizer: for the texts without labels.
        network: fresh, so that its adapters do nothing yet.
        base: the folder of the base model.

    Returns:
        The rows, the labelled ones first, and a sentence on the others.

    Raises UserError where a text may have several labels.
    """
    labelled = EncodedRows(token_ids, data.train.truth())
    if data.unlabelled is None:
        return labelled, ()
    if data.train.is_multi:
        raise UserError(
            "texts without labels can be learned from where each text has one class",
            found=f"{counted(len(data.train.label_names), 'label')}, of which a text may have several",
            fix="leave out --unlabelled",
        )
    others = tokenizer.encode(data.unlabelled.texts)
    device = str(network.device)
    embedder = TextEmbedder(base, max_length=tokenizer.max_length or 512, device=device)
    last = embedder.embed(data.learned_texts)
    middle = predict_with_features(network, [*token_ids, *others])[1]
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    sure, classes = agreed(np.hstack([middle, last]), labelled.labels)
    ids = [*token_ids, *(others[row] for row in sure)]
    remark = (
        f"{counted(len(sure), 'text')} of {len(others):,} without labels are learned from, too, each as of "
        "the class that two models of the labelled rows agree on"
    )
    return EncodedRows(ids, np.concatenate([labelled.labels, classes])), (remark,)


def agreed(
    features: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of the unlabelled rows have a clear class, as positions among them, and which class.

    Arguments as those of `class_posteriors`.
    """
    from sklearn.linear_model import LogisticRegression

    posteriors = class_posteriors(features, labels)
    classes = np.unique(labels)[posteriors.argmax(axis=1)]
    count = len(labels)
    regression = LogisticRegression(C=_INVERSE_PENALTY, max_iter=1000).fit(features[:count], labels)
    same = regression.predict(features[count:]) == classes
    sure = np.flatnonzero(same & (posteriors.max(axis=1) >= _SURE))
    return sure, classes[sure]


def class_posteriors(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Points:
    """How probable each class that occurs is for each unlabelled row, (unlabelled rows, classes).

    Args:
        features: of the labelled rows, then of the unlabelled ones, (rows, features).
        labels: class ids of the labelled rows, (labelled rows,).
    """
    known, ids = np.unique(labels, return_inverse=True)
    classes, count = len(known), len(labels)
    centred = features.astype(np.float64) - features.mean(axis=0)
    dimensions = min(max(_FEWEST, min(_MOST, _PER_CLASS * classes)), *centred.shape)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    points = centred @ vectors[:, -dimensions:]
    truth = np.eye(classes)[ids]
    start = truth.T @ points[:count] / truth.sum(axis=0)[:, None]
    spread = points.T @ points / len(points)
    means, covariance, shares = start, spread, np.full(classes, 1 / classes)
    for _ in range(_ROUNDS):
        posteriors = _posteriors(points, means, covariance, shares)
        posteriors[:count] = truth
        weight = posteriors.sum(axis=0)
        means = (posteriors.T @ points + _LABELLED_COUNT * start) / (weight + _LABELLED_COUNT)[:, None]
        shares = 0.5 * weight / weight.sum() + 0.5 / classes
        rest = points - posteriors @ means
        covariance = rest.T @ rest / len(points)
    return _posteriors(points, means, covariance, shares)[count:]


def _posteriors(points: Points, means: Points, covariance: Points, shares: Points) -> Points:
    """Of Gaussians of one covariance, (rows, classes)."""
    ridge = (1e-4 * np.trace(covariance) / len(covariance) + 1e-12) * np.eye(len(covariance))
    whitening = np.linalg.cholesky(np.linalg.inv(covariance + ridge))
    white, centres = points @ whitening, means @ whitening
    scores = white @ centres.T - 0.5 * (centres**2).sum(axis=1) + np.log(shares)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(scores / scores.sum(axis=1, keepdims=True))
