"""What more rows would bring: the folds' figures, carried on along a learning curve.

The share of wrong answers falls about as a power of the rows that were learned from (Hestness et al., 2017;
Viering & Loog, 2022): from ``m`` to ``r m`` rows it becomes r^-c of what it was. How fast it falls for these
texts is seen from heads on the frozen encoder's features, which learn from half, three quarters and all of a
fold's rows in a fraction of a second and answer the rows of the fold. As curves flatten, and a head is not
the whole classifier, that is taken for a part of the truth, beside what is usual.
``benchmarks/learning_curve.py`` measures how far what is said holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import counted
from newsdesk.metrics import wilson_interval
from newsdesk.model.network import predict_with_features
from newsdesk.runs.calibration import CROSS_VALIDATED_WORTH, cross_validated_counts
from newsdesk.runs.label_decisions import strata
from newsdesk.runs.off_topic import stratified_rows
from newsdesk.training.folds import OutOfFold
from newsdesk.training.loop import TrainingLoop

MOST_ROWS = 2000
"""Rows from which on nothing is said: more of them bring little, and the heads would take minutes."""

SHARES = (0.5, 0.75, 1.0)
_SUBSETS = 3  # of a fold's rows for each of the shares below 1
_PENALTY = 2.0  # of the mean variance: what serves a few hundred rows of a sentence encoder best

# The exponent from n rows to 2n: what is usual, and how far the heads' from n/2 to n tells it: in part, as
# curves flatten, and give or take what tells heads from encoders, whose trainings are luck in part, too.
_USUAL, _USUAL_SPREAD = 0.33, 0.25
_OF_HEADS, _HEADS_SPREAD = 0.9, 0.12
_TWO_SIDED = NormalDist().inv_cdf(0.975)

Values = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Ahead:
    """What is to be expected of more rows, with 95 % intervals.

    Attributes:
        rows: how many there would be.
        score: the accuracy, or micro F1 where a text may have several labels, 0 to 1.
        interval: of the score, (low, high).
        gain: by how much it would be better than with the rows there are.
        gain_interval: of the gain, (low, high), not below 0.
    """

    rows: int
    score: float
    interval: tuple[float, float]
    gain: float
    gain_interval: tuple[float, float]


@dataclass(frozen=True)
class LearningCurve:
    """How the share of wrong answers falls with the rows learned from.

    Attributes:
        rows: how many there are.
        learned: how many a fold's model learned from, on average.
        wrong: 1 - accuracy or micro F1 of the folds' models, and ``error`` the standard error of its ln.
        exponent: of the power by which it falls, and ``spread`` how far it may be off (standard deviation).
        heads: the share of wrong answers of the heads, by each of the `SHARES` of rows.
    """

    rows: int
    learned: float
    wrong: float
    error: float
    exponent: float
    spread: float
    heads: tuple[float, ...]

    @classmethod
    def of(
        cls, features: Values, given: NDArray[Any], labels: NDArray[Any], fold_of: NDArray[np.int64]
    ) -> LearningCurve:
        """The curve of a cross-validated classifier.

        Args:
            features: of the frozen encoder, (rows, hidden).
            given: class ids (rows,) or labels (rows, labels), bool, as the folds' models answered.
            labels: the true ones, in the same shape.
            fold_of: the fold of each row, counted from 0.
        """
        by_share = _answers_of_heads(features, labels, fold_of)
        heads, slopes = zip(*(_log_wrong(answers, labels) for answers in by_share), strict=True)
        shares = np.log(SHARES) - np.mean(np.log(SHARES))
        weights = -shares / (shares @ shares)
        seen, by_row = float(weights @ heads), weights @ np.stack(slopes)
        noise = (_OF_HEADS * float(by_row.std())) ** 2 / len(labels) + _HEADS_SPREAD**2
        prior = _USUAL_SPREAD**2
        exponent = (_OF_HEADS * seen * prior + _USUAL * noise) / (prior + noise)
        wrong, of_rows = _log_wrong(given[None], labels)
        rows, folds = len(labels), int(fold_of.max()) + 1
        error = float(of_rows.std()) / (CROSS_VALIDATED_WORTH * rows) ** 0.5
        spread = (prior * noise / (prior + noise)) ** 0.5
        learned = rows * (1 - 1 / folds)
        return cls(rows, learned, exp(wrong), error, max(0.0, exponent), spread, tuple(map(exp, heads)))

    def at(self, rows: int) -> Ahead:
        """What is to be expected of so many rows.

        By which rows are drawn, and by its seed, a training has luck: its share of wrong answers has a
        relative standard deviation of about 1 / sqrt(rows).
        """
        steps, more = log(rows / self.learned), log(rows / self.rows)
        wrong = min(self.wrong * exp(-self.exponent * steps), 1 - 1e-6)
        luck = 1 / rows + self.error**2
        reach = _TWO_SIDED * (luck + (steps * self.spread) ** 2) ** 0.5 / (1 - wrong)
        low, high = (1 / (1 + exp(log(wrong / (1 - wrong)) + sign * reach)) for sign in (1, -1))
        now = self.wrong * exp(-self.exponent * log(self.rows / self.learned))
        kept = exp(-self.exponent * more)
        gain = now * (1 - kept)
        luck = now**2 / self.rows + (gain * self.error) ** 2
        reach = _TWO_SIDED * (luck + (now * kept * more * self.spread) ** 2) ** 0.5
        return Ahead(rows, 1 - wrong, (low, high), gain, (max(0.0, gain - reach), max(0.0, gain + reach)))


def frozen_features(loop: TrainingLoop, rows: int) -> Values | None:
    """The encoder's features of the labelled training rows before the first step, (rows, hidden).

    These are the first ``rows`` that are learned from; None of too many.
    """
    if rows > MOST_ROWS:
        return None
    token_ids = loop.rows.token_ids[:rows]
    return predict_with_features(loop.network, token_ids, batch_size=2 * loop.training.batch_size)[1]


def remark_on_more_rows(features: Values, found: OutOfFold, label_names: Sequence[str]) -> str:
    """What twice the rows would bring, and which classes lack rows most, a sentence.

    ``features`` are those of `frozen_features`.
    """
    labels, given = found.labels, found.given
    ahead = LearningCurve.of(features, given, labels, found.fold_of).at(2 * len(labels))
    figure = "micro F1" if labels.ndim == 2 else "accuracy"
    low, high = ahead.interval
    least, most = (100 * gain for gain in ahead.gain_interval)
    return (
        f"with twice the rows, {ahead.rows:,}, {figure} would be about {ahead.score:.1%} "
        f"[{low:.1%}, {high:.1%}], {100 * ahead.gain:.1f} points more [{least:.1f}, {most:.1f}]; "
        f"{_classes_behind(given, labels, label_names)}"
    )


def _classes_behind(
    given: NDArray[Any], labels: NDArray[Any], label_names: Sequence[str], most: int = 3
) -> str:
    """The classes of which clearly fewer rows are found than of all, the worst first."""
    if labels.ndim == 1:
        given, labels = (np.arange(len(label_names)) == ids[:, None] for ids in (given, labels))
    rows, found = labels.sum(axis=0), (given & labels).sum(axis=0)
    overall, behind = float(found.sum() / max(1, rows.sum())), []
    for name, right, of in zip(label_names, found.tolist(), rows.tolist(), strict=True):
        low, high = wilson_interval(*cross_validated_counts(right, of)) if of else (0.0, 1.0)
        if high < overall:
            shown = f"{right / of:.0%} [{low:.0%}, {high:.0%}] of {counted(of, 'row')}"
            behind.append((right / of, f"{name} ({shown} found)"))
    if not behind:
        return "no class is clearly behind the others"
    return "rows are needed most of " + ", ".join(named for _, named in sorted(behind)[:most])


def _log_wrong(answers: NDArray[Any], labels: NDArray[Any]) -> tuple[float, Values]:
    """ln of the share of wrong answers, 1 - accuracy or micro F1, and how far it rests on each row, (rows,).

    ``answers`` are those of several models to each row, (models, *labels.shape). The mean of the second is 0,
    and its standard deviation by the root of the rows the standard error (linearised, as of any ratio).
    """
    right = (answers == labels).astype(float)
    missed, found = 1 - right, right
    if labels.ndim == 2:  # F1 = 2 found / (2 found + missed), and where each row has one the accuracy
        missed, found = missed.sum(axis=2) / 2, (answers & labels).sum(axis=2).astype(float)
    missed, found = missed.mean(axis=0), found.mean(axis=0)
    whole = float((found + missed).mean())
    wrong = (float(missed.sum()) + 0.5) / (len(labels) * whole + 1.0)  # a half more, so that none is 0
    of_rows = (missed - wrong * (found + missed)) / (whole * wrong)
    return log(wrong), of_rows - of_rows.mean()


def _answers_of_heads(
    features: Values, labels: NDArray[Any], fold_of: NDArray[np.int64]
) -> list[NDArray[Any]]:
    """What heads that learned from each share of the other rows answer, (heads, *labels.shape) each."""
    points = features.astype(np.float64)
    points = (points - points.mean(axis=0)) / (points.std(axis=0) + 1e-6)
    targets = (labels if labels.ndim == 2 else np.arange(int(labels.max()) + 1) == labels[:, None]).astype(
        float
    )
    answers = [np.zeros((_SUBSETS if share < 1 else 1, *labels.shape), labels.dtype) for share in SHARES]
    groups = strata(labels)
    for fold in range(int(fold_of.max()) + 1):
        asked, others = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
        for share, of_share in zip(SHARES, answers, strict=True):
            for subset, answer in enumerate(of_share):
                seed = fold * _SUBSETS + subset
                learned = others[
                    stratified_rows(groups[others], max(2, round(share * len(others))), seed=seed)
                ]
                scores = _head(points[learned], targets[learned], points[asked])
                answer[asked] = (
                    scores.argmax(axis=1) if labels.ndim == 1 else _assigned(scores, targets[learned])
                )
    return answers


def _head(points: Values, targets: Values, asked: Values) -> Values:
    """The scores of ridge regression on the targets, (asked, classes); cheap in rows or in features."""
    centre, usual = points.mean(axis=0), targets.mean(axis=0)
    points, targets, asked = points - centre, targets - usual, asked - centre
    by_rows = len(points) < points.shape[1]
    products = points @ points.T if by_rows else points.T @ points
    penalty = _PENALTY * np.trace(products) / len(products) + 1e-9
    products[np.diag_indices_from(products)] += penalty
    if by_rows:
        return np.asarray(asked @ (points.T @ np.linalg.solve(products, targets)) + usual)
    return np.asarray(asked @ np.linalg.solve(products, points.T @ targets) + usual)


def _assigned(scores: Values, targets: Values) -> NDArray[np.bool_]:
    """The labels with the highest scores, as many a row, on the whole, as the rows learned from have."""
    count = round(float(targets.mean()) * scores.size)
    if not count:
        return np.zeros(scores.shape, np.bool_)
    return np.asarray(scores >= np.partition(scores, scores.size - count, axis=None)[-count])
