"""Several labels a text: a probability for each label, and from what probability on a label is assigned."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

SHOWS_EVERY_TEXT_HAS_ONE = 100
"""From so many rows on, each with a label, every text is given at least one."""

_PRIOR_OF_CALIBRATION, _PRIOR_OF_THRESHOLDS = 10.0, 30.0  # positive rows
_STEPS = 50
_FURTHEST_STEP = 2.0  # in a shift or the logarithm of a scale
_CONVERGED = 1e-10  # of the loss, relative
_RIDGE = 1e-12
_DAMPING, _LEAST_DAMPING = 1e-3, 1e-8

Floats = NDArray[np.float64]


def _sigmoid(values: Floats) -> Floats:
    below_one = np.exp(-np.abs(values))
    return np.asarray(np.where(values >= 0, 1.0, below_one) / (1 + below_one), dtype=np.float64)


_GRID: Floats = _sigmoid(np.linspace(-5.0, 5.0, 201))
"""Probabilities that may become a threshold, from 0.0067 to 0.9933."""


@dataclass(frozen=True)
class LabelDecisions:
    """How the logits of several labels a text become probabilities, and these the labels assigned.

    Attributes:
        scales: of each label, what its logit is multiplied by, above 0 ...
        shifts: ... and what is added then; the sigmoid of the sum is its probability.
        thresholds: of each label, the least probability at which it is assigned, 0 to 1.
        at_least_one: whether a text that reaches no threshold gets the label that comes closest.

    Raises ValueError where they do not line up or are outside their ranges.
    """

    scales: tuple[float, ...]
    shifts: tuple[float, ...]
    thresholds: tuple[float, ...]
    at_least_one: bool

    def __post_init__(self) -> None:
        """Refuse what makes no decisions."""
        lengths = (len(self.scales), len(self.shifts), len(self.thresholds))
        if not lengths[0] or len(set(lengths)) > 1:
            scales, shifts, thresholds = lengths
            raise ValueError(f"{scales} scales, {shifts} shifts and {thresholds} thresholds")
        if not np.isfinite([*self.scales, *self.shifts]).all() or min(self.scales) <= 0:
            raise ValueError("scales and shifts are finite numbers, and scales above 0")
        if not all(0 <= threshold <= 1 for threshold in self.thresholds):
            raise ValueError("thresholds are from 0 to 1")

    def __len__(self) -> int:
        """The number of labels."""
        return len(self.thresholds)

    def probabilities(self, logits: NDArray[np.floating]) -> NDArray[np.float32]:
        """The probability of each label, computed in float64; both are (rows, labels)."""
        return _sigmoid(self.log_odds(logits)).astype(np.float32)

    def log_odds(self, logits: NDArray[np.floating]) -> Floats:
        """ln p/(1-p) of each label, in nats; both are (rows, labels)."""
        scaled = np.asarray(logits, dtype=np.float64) * np.array(self.scales)
        return np.asarray(scaled + np.array(self.shifts), dtype=np.float64)

    def assigned(self, probabilities: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which labels each text gets by its probabilities; both are (rows, labels)."""
        # As float64, which is what thresholds were found on: float32 would round them too.
        exact, thresholds = np.asarray(probabilities, dtype=np.float64), np.array(self.thresholds)
        found = np.asarray(exact >= thresholds, dtype=np.bool_)
        if self.at_least_one:
            none = np.flatnonzero(~found.any(axis=1))
            closest = exact[none] / np.maximum(thresholds, np.finfo(np.float64).tiny)
            found[none, closest.argmax(axis=1)] = True
        return found

    @classmethod
    def fit(cls, logits: NDArray[np.floating], labels: NDArray[np.bool_]) -> Self:
        """Calibrate each label and choose its threshold, on rows that nothing was learned from.

        **Calibration** is Platt's (1999): a logistic regression on the label's own logit. **Thresholds** are
        those of the highest F1. A label of three positive rows determines neither; alone it would get a
        certain probability and an extreme threshold. So each label counts as if it had some positive rows
        more, which behave as those of all labels together do. Of its targets these are 10, and say what one
        scale and shift for all labels say; of its hits and false alarms 30, with those of all labels scaled
        to that many. A label without positive rows gets just these; one of hundreds is its own. (Positive
        rows, or negative ones where those are fewer; for the calibration as many as expected, too: that none
        of 50 likely ones came true says something.)

        10 and 30 are of Reuters-21578's 90 topics, fitted on 231 to 1,885 rows and measured on the others:
        log-loss is lowest, and a macro F1 1.5 to 2 points above that at 0.5 costs 0.2 of micro F1. Without
        shrinkage both F1 are 1 point lower on 231 rows.

        ``logits`` and ``labels`` are (rows, labels), at least one of each. Raises ValueError otherwise.
        """
        truth = np.asarray(labels, dtype=np.bool_)
        if truth.shape != np.shape(logits) or truth.ndim != 2 or not truth.size:
            raise ValueError(f"logits of shape {np.shape(logits)} for labels of shape {truth.shape}")
        positives = truth.sum(axis=0)
        fewer = np.minimum(positives, len(truth) - positives)
        scales, shifts = _calibrated(np.asarray(logits, dtype=np.float64), truth, fewer)
        uncut = cls(tuple(scales.tolist()), tuple(shifts.tolist()), (0.5,) * len(scales), at_least_one=False)
        thresholds = _thresholds(uncut.probabilities(logits).astype(np.float64), truth, fewer)
        at_least_one = len(truth) >= SHOWS_EVERY_TEXT_HAS_ONE and bool(truth.any(axis=1).all())
        return cls(uncut.scales, uncut.shifts, tuple(thresholds.tolist()), at_least_one)


def _calibrated(logits: Floats, labels: NDArray[np.bool_], fewer: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Scale and shift of each label, (labels,) both, shrunk toward those that all labels share."""
    largest = float(np.abs(logits).max()) or 1.0
    unit = largest * (float(np.sqrt(np.mean((logits / largest) ** 2))) or 1.0)
    values = logits / unit
    positives, negatives = int(labels.sum()), int((~labels).sum())
    smoothed = np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2)).reshape(-1, 1)
    odds = float(log(smoothed.mean() / (1 - smoothed.mean())))
    scale, shift = _logistic(values.reshape(-1, 1), smoothed, np.ones(1), np.array([odds]))
    shared = _sigmoid(scale * values + shift)
    evidence = np.maximum(fewer, (shared * (1 - shared)).sum(axis=0))
    own = evidence / (evidence + _PRIOR_OF_CALIBRATION)
    targets = own * labels + (1 - own) * shared
    count = labels.shape[1]
    scales, shifts = _logistic(values, targets, np.repeat(scale, count), np.repeat(shift, count))
    return scales / unit, shifts


def _logistic(values: Floats, targets: Floats, scales: Floats, shifts: Floats) -> tuple[Floats, Floats]:
    """For each column, the scale above 0 and the shift that make its targets likeliest, both (columns,).

    ``values`` and ``targets``, 0 to 1, are (rows, columns); the search starts from ``scales`` and ``shifts``.
    Levenberg's (1944) damped Newton steps in the shift and the logarithm of the scale, for all at once.
    """
    logs, damping = np.log(scales), np.full(len(scales), _DAMPING)
    losses = _loss(values, targets, np.exp(logs), shifts)
    for _ in range(_STEPS):
        scaled = values * np.exp(logs)
        given = _sigmoid(scaled + shifts)
        excess, weight = given - targets, given * (1 - given)
        slope, slope_of_shift = (excess * scaled).mean(axis=0), excess.mean(axis=0)
        curve, mixed = (weight * scaled**2).mean(axis=0), (weight * scaled).mean(axis=0)
        curve = curve * (1 + damping) + _RIDGE
        curve_of_shift = weight.mean(axis=0) * (1 + damping) + _RIDGE
        determinant = curve * curve_of_shift - mixed**2
        step = (curve_of_shift * slope - mixed * slope_of_shift) / determinant
        step_of_shift = (curve * slope_of_shift - mixed * slope) / determinant
        furthest = np.maximum(1.0, np.maximum(np.abs(step), np.abs(step_of_shift)) / _FURTHEST_STEP)
        tried, tried_shifts = logs - step / furthest, shifts - step_of_shift / furthest
        found = _loss(values, targets, np.exp(tried), tried_shifts)
        better = found < losses
        gained = np.where(better, losses - found, 0.0)
        logs, shifts = np.where(better, tried, logs), np.where(better, tried_shifts, shifts)
        if ((gained <= _CONVERGED * losses) & (better | (damping > 1))).all():
            break
        losses, damping = np.where(better, found, losses), np.where(better, damping / 10, damping * 10)
        damping = np.maximum(damping, _LEAST_DAMPING)
    return np.exp(logs), shifts


def _loss(values: Floats, targets: Floats, scales: Floats, shifts: Floats) -> Floats:
    """Mean cross-entropy of each column, (columns,), in nats."""
    given = values * scales + shifts
    return np.asarray((np.logaddexp(0.0, given) - targets * given).mean(axis=0), dtype=np.float64)


def _thresholds(probabilities: Floats, labels: NDArray[np.bool_], fewer: NDArray[np.int64]) -> Floats:
    """The threshold of each label, (labels,), by F1 on these rows and on those of all labels together."""
    every = int(labels.sum())
    if not every:
        return np.full(labels.shape[1], 0.5)
    reached = np.searchsorted(_GRID, probabilities, side="right")  # how many thresholds it is not below
    assigned, hits = (_at_least(reached, kept) for kept in (np.ones_like(labels), labels))
    positives = labels.sum(axis=0)
    for_all = _of_highest_f1(hits.sum(axis=0), assigned.sum(axis=0), np.array(every), 0.5)
    share = _PRIOR_OF_THRESHOLDS / every
    evidence = np.where(positives > 0, fewer / np.maximum(1, positives), 1.0)[:, None]
    return _of_highest_f1(
        evidence * hits + share * hits.sum(axis=0),
        evidence * assigned + share * assigned.sum(axis=0),
        fewer + _PRIOR_OF_THRESHOLDS,
        float(for_all),
    )


def _at_least(reached: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many of the ``kept`` rows of each label reach each threshold, (labels, thresholds)."""
    count = kept.shape[1]
    cells = (reached + np.arange(count) * (len(_GRID) + 1))[kept]
    by_count = np.bincount(cells, minlength=count * (len(_GRID) + 1)).reshape(count, -1)
    return by_count[:, ::-1].cumsum(axis=1)[:, -2::-1]


def _of_highest_f1(
    hits: NDArray[np.number], assigned: NDArray[np.number], positives: NDArray[np.number], near: float
) -> Floats:
    """The threshold of the highest F1 over the last axis; of equals the nearest to ``near``."""
    f1 = 2 * hits / (assigned + np.asarray(positives)[..., None])
    highest = f1 >= f1.max(axis=-1, keepdims=True) - 1e-12
    distances = np.where(highest, np.abs(_GRID - near), inf)
    return np.asarray(_GRID[distances.argmin(axis=-1)], dtype=np.float64)


def rarest_labels(labels: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of each row the label that the fewest rows have, (rows,), from (rows, labels); none: beyond the last.

    What is stratified by these gives every part its share of the rare labels.
    """
    positives = labels.sum(axis=0)
    by_rarity = np.argsort(positives, kind="stable")
    ranked = labels[:, by_rarity]
    rarest = np.where(ranked.any(axis=1), by_rarity[ranked.argmax(axis=1)], labels.shape[1])
    return np.asarray(rarest, dtype=np.int64)


def strata(labels: NDArray[Any]) -> NDArray[np.int64]:
    """One class id for each row, (rows,), to divide rows by: class ids themselves, or `rarest_labels`."""
    return rarest_labels(labels) if labels.ndim == 2 else np.asarray(labels, dtype=np.int64)
