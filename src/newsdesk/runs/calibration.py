"""Calibration: a temperature for the logits, or decisions for several labels, and the rows they rest on."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.files import damaged, stored_tensors, write_bytes
from newsdesk.label_set_metrics import binary_log_loss, label_calibration_error
from newsdesk.metrics import expected_calibration_error
from newsdesk.runs.label_decisions import LabelDecisions, rarest_labels
from newsdesk.runs.labels import Labels
from newsdesk.stored import OPTIONAL, read_stored, write_stored

CALIBRATION = "calibration.json"
CALIBRATION_ROWS = "calibration.safetensors"
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0

_HALVINGS = 60  # of the interval between the bounds: below the resolution of float64
_FIX = "fit it again with newsdesk calibrate"


CROSS_VALIDATED_WORTH = 2 / 3
"""As how many rows a cross-validated one counts."""


def cross_validated_counts(right: int, rows: int) -> tuple[int, int]:
    """Counts of rows that tell as much of the classifier itself as these tell of those of the folds."""
    worth = max(1, round(rows * CROSS_VALIDATED_WORTH))
    return round(right * worth / rows), worth


@dataclass(frozen=True, eq=False)
class HeldOutRows:
    """A classifier's logits for labelled rows that it did not learn from.

    Attributes:
        logits: float32 of shape (rows, classes), before any temperature.
        labels: int64 class ids of shape (rows,), or bool of shape (rows, classes) where a text may have
            several labels.
        sha256: ``Examples.fingerprint()`` of the rows.
        distances: float32 of shape (rows,), how far each is from the training topics (`OffTopicScore`); None
            where there is no such score, or an earlier version kept none.
        readable: bool of shape (rows,), whether the text can be classified: others get no answer and no
            promise. None: not known, as in an earlier version, and all count as readable.
        linear: float32 of shape (rows, classes), the scores of the linear model beside the encoder; None
            where there is none.
        folds: of a cross-validation, in which each row was answered by the model of its fold, which learned
            from the others; 0: all were answered by the one classifier.

    Raises ValueError when logits, labels and the others do not line up, or a logit is no finite number.
    """

    logits: NDArray[np.float32]
    labels: NDArray[Any]
    sha256: str
    distances: NDArray[np.float32] | None = None
    readable: NDArray[np.bool_] | None = None
    linear: NDArray[np.float32] | None = None
    folds: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be calibrated on."""
        wanted = self.logits.shape if self.is_multi else self.logits.shape[:1]
        if self.logits.ndim != 2 or self.labels.shape != wanted or not len(self.labels):
            raise ValueError(f"logits of shape {self.logits.shape} for labels of shape {self.labels.shape}")
        if not np.isfinite(self.logits).all():
            raise ValueError("logits that are not finite numbers")
        if not self.is_multi and not np.isin(self.labels, np.arange(self.logits.shape[1])).all():
            raise ValueError(f"labels that are none of {self.logits.shape[1]} classes")
        for name, column in (("distances", self.distances), ("readable", self.readable)):
            if column is not None and column.shape != self.labels.shape[:1]:
                raise ValueError(f"{name} of shape {column.shape} for {len(self.labels)} rows")
        if self.linear is not None and self.linear.shape != self.logits.shape:
            raise ValueError(f"linear of shape {self.linear.shape} for logits of {self.logits.shape}")
        if self.linear is not None and not np.isfinite(self.linear).all():
            raise ValueError("scores of the linear model that are not finite numbers")

    @property
    def worth(self) -> float:
        """As how many rows each counts for intervals and promises, which the model of a fold answered.

        What is said of the folds' models differs from what holds for the one that learned from all rows: by
        more than rows drawn at random would (Bates, Hastie & Tibshirani, 2023). `CROSS_VALIDATED_WORTH` was
        found by simulation; docs/trust.md has the figures.
        """
        return CROSS_VALIDATED_WORTH if self.folds else 1.0

    @property
    def is_multi(self) -> bool:
        """Whether a text may have several labels."""
        return self.labels.dtype == np.bool_

    def halves(self) -> tuple[HeldOutRows, HeldOutRows]:
        """Two halves at random, each class in both: what is chosen on one can be promised on the other."""
        shuffled = np.random.Generator(np.random.PCG64(0)).permutation(len(self.labels))
        classes = rarest_labels(self.labels) if self.is_multi else self.labels
        by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]

        first, second = (self.select(np.sort(by_class[start::2])) for start in (0, 1))
        return first, second

    def select(self, rows: NDArray[np.int64]) -> HeldOutRows:
        """Those at ``rows``, positions of shape (selected,)."""
        return replace(
            self,
            logits=self.logits[rows],
            labels=self.labels[rows],
            distances=None if self.distances is None else self.distances[rows],
            readable=None if self.readable is None else self.readable[rows],
            linear=None if self.linear is None else self.linear[rows],
        )


@dataclass(frozen=True)
class Change:
    """A figure before and after the logits are divided by the temperature, or scaled and shifted."""

    before: float
    after: float


@dataclass(frozen=True)
class Calibration:
    """A temperature, or decisions for several labels, and what they changed on the rows they were fitted on.

    Attributes:
        temperature: what logits are divided by; above 1 it makes a classifier less sure.
        rows: how many it was fitted on.
        source: where they came from.
        sha256: their fingerprint.
        expected_calibration_error: 0 to 1, as in ``metrics``, on these very rows.
        negative_log_likelihood: nats per row, likewise. Where a text may have several labels, it is the mean
            over all labels of all rows, and the calibration error is over these too.
        how: the method.
        folded: what an export's logits are divided by already, in the weights of its last layer, so that
            other programs give calibrated probabilities; 1: nothing.
        decisions: where a text may have several labels; the temperature is 1 then.
    """

    temperature: float
    rows: int
    source: str
    sha256: str
    expected_calibration_error: Change
    negative_log_likelihood: Change
    how: str
    folded: float = 1.0
    decisions: LabelDecisions | None = field(default=None, metadata=OPTIONAL)


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float32]:
    """Probabilities over the last axis of logits divided by ``temperature``, in the logits' shape.

    Subtracts each row's maximum, so that no exponential overflows, and computes in float64.
    """
    exact = np.asarray(logits, dtype=np.float64)
    exponentials = np.exp((exact - exact.max(axis=-1, keepdims=True)) / temperature)
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), dtype=np.float32)


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The temperature that makes held-out labels most likely (Guo et al., 2017).

    ``logits`` is (rows, classes), ``labels`` are class ids (rows,). In 1/temperature the negative
    log-likelihood is convex, so that bisection of its slope finds the one minimum. One more row of unknown
    class counts, its target spread evenly, after Platt's (1999) smoothed targets: n rows that are all
    classified correctly cannot show certainty, and get about n in n + 1. The result is between 0.01 and 100,
    and 1 where no temperature changes anything: one class, or logits that do not differ.
    """
    scores = np.asarray(logits, dtype=np.float64)
    scores = scores - scores.max(axis=1, keepdims=True)
    if not scores.any():
        return 1.0
    unknown = 1 / (len(scores) + 1)
    of_true = scores[np.arange(len(scores)), labels]
    wanted = float(((1 - unknown) * of_true + unknown * scores.mean(axis=1)).mean())
    low, high = np.log(LOWEST_TEMPERATURE), np.log(HIGHEST_TEMPERATURE)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        exponentials = np.exp(scores / np.exp(middle))
        expected = (exponentials * scores).sum(axis=1) / exponentials.sum(axis=1)
        if expected.mean() > wanted:  # surer than the labels allow
            low = middle
        else:
            high = middle
    # exp(log(x)) may miss x by a last digit, which must not leave the bounds.
    return float(np.clip(np.exp((low + high) / 2), LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE))


def negative_log_likelihood(
    logits: NDArray[np.floating], labels: NDArray[np.integer], temperature: float = 1.0
) -> float:
    """Mean -ln p(true class) in nats; ``logits`` (rows, classes), ``labels`` (rows,); nothing is clipped."""
    scores = np.asarray(logits, dtype=np.float64) / temperature
    scores = scores - scores.max(axis=1, keepdims=True)
    return float((np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(scores)), labels]).mean())


def calibrate(rows: HeldOutRows, source: str) -> Calibration:
    """Fit the temperature on held-out rows that came from ``source``, and measure what it changes.

    `LabelDecisions` in its place where a text may have several labels.
    """
    if rows.is_multi:
        return _calibrate_labels(rows, source)
    temperature = fit_temperature(rows.logits, rows.labels)
    bounds = (LOWEST_TEMPERATURE * 1.001, HIGHEST_TEMPERATURE / 1.001)
    at_bound = "" if bounds[0] < temperature < bounds[1] else "; the rows ask for more than the bound"
    return Calibration(
        temperature=temperature,
        rows=len(rows.labels),
        source=source,
        sha256=rows.sha256,
        expected_calibration_error=Change(_error_at(rows, 1.0), _error_at(rows, temperature)),
        negative_log_likelihood=Change(
            negative_log_likelihood(rows.logits, rows.labels),
            negative_log_likelihood(rows.logits, rows.labels, temperature),
        ),
        how=f"temperature scaling (Guo et al., 2017), least negative log-likelihood{at_bound}",
    )


def _calibrate_labels(rows: HeldOutRows, source: str) -> Calibration:
    decisions = LabelDecisions.fit(rows.logits, rows.labels)
    as_trained = replace(decisions, scales=(1.0,) * len(decisions), shifts=(0.0,) * len(decisions))
    before, after = (each.probabilities(rows.logits) for each in (as_trained, decisions))
    return Calibration(
        temperature=1.0,
        rows=len(rows.labels),
        source=source,
        sha256=rows.sha256,
        expected_calibration_error=Change(
            label_calibration_error(before, rows.labels), label_calibration_error(after, rows.labels)
        ),
        negative_log_likelihood=Change(
            binary_log_loss(before, rows.labels), binary_log_loss(after, rows.labels)
        ),
        how="a scale and a shift for each label (Platt, 1999), and its threshold of the highest F1; rare "
        "labels shrunk toward all labels",
        decisions=decisions,
    )


def store_calibration(folder: Path, rows: HeldOutRows, source: str, *, folded: float = 1.0) -> Calibration:
    """Calibrate, and keep the result and the rows as two files in a run or exported model; each is atomic.

    ``folded`` is what an export's head divides by. Whoever calls this seals the folder afterwards.
    """
    found = replace(calibrate(rows, source), folded=folded)
    write_held_out_rows(folder, rows)
    write_calibration(folder, found)
    return found


def write_calibration(folder: Path, found: Calibration) -> None:
    """Write the calibration alone, without its rows. Atomic."""
    write_stored(folder / CALIBRATION, found)


def write_held_out_rows(folder: Path, rows: HeldOutRows) -> None:
    """Write what a classifier says of rows that it did not learn from. Atomic."""
    from safetensors.numpy import save

    tensors: dict[str, NDArray[Any]] = {
        "logits": np.ascontiguousarray(rows.logits, dtype=np.float32),
        "labels": np.ascontiguousarray(rows.labels, dtype=np.bool_ if rows.is_multi else np.int64),
    }
    if rows.distances is not None:
        tensors["distances"] = np.ascontiguousarray(rows.distances, dtype=np.float32)
    if rows.readable is not None:
        tensors["readable"] = np.ascontiguousarray(rows.readable, dtype=np.bool_)
    if rows.linear is not None:
        tensors["linear"] = np.ascontiguousarray(rows.linear, dtype=np.float32)
    if rows.folds:
        tensors["folds"] = np.array([rows.folds], dtype=np.int64)
    write_bytes(folder / CALIBRATION_ROWS, save(tensors, metadata={"sha256": rows.sha256}))


def read_calibration(folder: Path, labels: Labels | None = None) -> Calibration | None:
    """The calibration of a run or exported model; None in one made without.

    Raises UserError if it is damaged, or of other labels where these are given.
    """
    path = folder / CALIBRATION
    if not os.path.lexists(path):
        return None
    found = read_stored(path, Calibration, fix=_FIX)
    for divisor in (found.temperature, found.folded):
        if not LOWEST_TEMPERATURE <= divisor <= HIGHEST_TEMPERATURE:
            raise damaged(path, f"a temperature of {divisor}", fix=_FIX)
    if labels is not None:
        decided = 0 if found.decisions is None else len(found.decisions)
        if decided != (len(labels.names) if labels.task == "multi" else 0):
            raise damaged(path, f"decisions of {decided} labels, not {len(labels.names)}", fix=_FIX)
    return found


def read_held_out_rows(folder: Path, labels: Labels | None = None) -> HeldOutRows | None:
    """The rows that a run or exported model was calibrated on, if any.

    Raises UserError if they are damaged, or of other labels where these are given.
    """
    path = folder / CALIBRATION_ROWS
    if not os.path.lexists(path):
        return None
    with stored_tensors(path, fix=_FIX) as file:
        sha256 = (file.metadata() or {})["sha256"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        distances, readable, linear = map(tensors.get, ("distances", "readable", "linear"))
        columns = (tensors["logits"], tensors["labels"], sha256, distances, readable, linear)
        rows = HeldOutRows(*columns, int(tensors.get("folds", np.zeros(1, np.int64)).sum()))
        if labels is not None:
            if (found := rows.logits.shape[1]) != len(labels.names):
                raise ValueError(f"logits of {found} classes, not {len(labels.names)}")
            if rows.is_multi != (labels.task == "multi"):
                raise ValueError(f"rows of {'several labels' if rows.is_multi else 'one label'} each")
        return rows


def _error_at(rows: HeldOutRows, temperature: float) -> float:
    probabilities = softmax(rows.logits, temperature).astype(np.float64)
    correct = probabilities.argmax(axis=1) == rows.labels
    return expected_calibration_error(probabilities.max(axis=1), correct)
