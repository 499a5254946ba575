"""Metrics of a classifier from its probabilities alone: numpy in, plain numbers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import counted

CALIBRATION_BINS = 15
CONFIDENT_ERRORS_KEPT = 20
SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)
"""Where the negative log-likelihood clips: a row that is certain and wrong costs 36.04 nats, not infinity."""

UNITS = {
    "accuracy": "share of rows, 0 to 1",
    "accuracy_interval": "95 % Wilson interval, same unit as accuracy",
    "macro_f1": "0 to 1, mean over the classes that occur among true or predicted labels",
    "macro_f1_classes": "classes that macro_f1 is the mean over",
    "per_class": "precision, recall and f1 from 0 to 1; support in rows",
    "confusion": "rows counted, [true class][predicted class] in label_names order",
    "negative_log_likelihood": "nats per row",
    "brier_score": "squared distance summed over classes, mean per row, 0 to 2",
    "expected_calibration_error": f"0 to 1, {CALIBRATION_BINS} equal-mass bins",
    "most_confident_errors": "0-based row numbers, most confident first",
}

_SUM_TOLERANCE = 1e-3  # float16 softmax over some hundred classes is off by a few 1e-4


@dataclass(frozen=True)
class ClassMetrics:
    """The figures of one class; a ratio whose denominator is zero is 0.0, as in scikit-learn.

    Attributes:
        label: the class's name.
        precision: share of the rows predicted as this class that belong to it.
        recall: share of the rows of this class that are predicted as it.
        f1: harmonic mean of the two.
        support: number of rows of this class.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Metrics:
    """What one classifier got right and wrong on one set of rows; ``UNITS`` says each figure's unit.

    Attributes:
        rows: number of rows.
        label_names: class names in id order.
        accuracy: share of rows whose most probable class (the first of equals) is the true one.
        accuracy_interval: 95 % Wilson interval (low, high) of the accuracy.
        macro_f1: mean F1 over the classes that occur among the true or the predicted labels, which is
            ``sklearn.metrics.f1_score(average="macro")``; classes in neither are left out.
        per_class: one entry a class, in id order.
        confusion: counts, (classes, classes): rows are true, columns predicted.
        negative_log_likelihood: mean -ln p(true class), in nats, p clipped to ``SMALLEST_PROBABILITY``.
        brier_score: mean squared distance to the one-hot truth, summed over classes (Brier, 1950), 0 to 2.
        expected_calibration_error: see the function of that name.
        most_confident_errors: up to 20 wrong rows, the most confident first, equals in row order.
        macro_f1_classes: how many classes that is the mean over.
        units: of each figure, for who reads the file without this code.
    """

    rows: int
    label_names: tuple[str, ...]
    accuracy: float
    accuracy_interval: tuple[float, float]
    macro_f1: float
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    negative_log_likelihood: float
    brier_score: float
    expected_calibration_error: float
    most_confident_errors: tuple[int, ...]
    macro_f1_classes: int = 0
    units: Mapping[str, str] = field(default_factory=lambda: dict(UNITS), repr=False, compare=False)

    def __post_init__(self) -> None:
        """Count the classes that macro F1 rests on; files of earlier versions do not say.

        Raises ValueError where classes, counts and rows do not agree.
        """
        classes = len(self.label_names)
        lengths = {len(self.confusion), len(self.per_class), *map(len, self.confusion)}
        if lengths != {classes} or tuple(one.label for one in self.per_class) != self.label_names:
            raise ValueError(f"confusion or per_class is not of the {classes:,} classes of label_names")
        if not 0 < self.rows == sum(map(sum, self.confusion)) < 1 << 62:
            raise ValueError(f"rows is {self.rows}, and not the sum of confusion")
        shares = (self.accuracy, self.macro_f1, *self.accuracy_interval, self.expected_calibration_error)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError("accuracy, its interval, macro_f1 or the calibration error is not from 0 to 1")
        if not all(row < self.rows for row in self.most_confident_errors):
            raise ValueError("most_confident_errors has a row beyond the last")
        counts = np.array(self.confusion)
        occurs = (counts.sum(axis=0) + counts.sum(axis=1)) > 0
        object.__setattr__(self, "macro_f1_classes", int(occurs.sum()))

    @property
    def over_classes(self) -> str:
        """What macro F1 is the mean over, in words: ``8 classes``, ``1 of 2 classes``."""
        return over_classes(self.macro_f1_classes, len(self.label_names))

    @property
    def correct(self) -> int:
        """The number of rows classified correctly."""
        return sum(row[i] for i, row in enumerate(self.confusion))


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows of similar confidence, and how often they are right; a calibrated classifier's two shares agree.

    Attributes:
        rows: how many.
        mean_confidence: of them, 0 to 1.
        accuracy: share of them that is right.
        accuracy_interval: its 95 % Wilson interval.
    """

    rows: int
    mean_confidence: float
    accuracy: float
    accuracy_interval: tuple[float, float]


def evaluate_probabilities(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer], label_names: Sequence[str]
) -> Metrics:
    """All metrics of predicted probabilities (rows, classes) against true class ids (rows,).

    Raises ValueError when shapes, ids or names do not line up, when there is no row, or when a row is not
    a probability distribution (no negative entry, sum within 0.001 of one).
    """
    given = np.asarray(probabilities, dtype=np.float64)
    labels = np.asarray(labels)
    _check(given, labels, label_names)
    predicted = given.argmax(axis=1)
    confidence = given.max(axis=1)
    correct = predicted == labels
    confusion = confusion_matrix(labels, predicted, len(label_names))
    per_class = class_metrics(confusion, label_names)
    named = confusion.sum(axis=0) + confusion.sum(axis=1)
    true_probability = given[np.arange(len(labels)), labels]
    return Metrics(
        rows=len(labels),
        label_names=tuple(label_names),
        accuracy=float(correct.mean()),
        accuracy_interval=wilson_interval(int(correct.sum()), len(labels)),
        macro_f1=float(np.mean([entry.f1 for entry, rows in zip(per_class, named, strict=True) if rows])),
        per_class=per_class,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        negative_log_likelihood=float(-np.log(np.clip(true_probability, SMALLEST_PROBABILITY, 1.0)).mean()),
        brier_score=float(((given - np.eye(len(label_names))[labels]) ** 2).sum(axis=1).mean()),
        expected_calibration_error=expected_calibration_error(confidence, correct),
        most_confident_errors=_most_confident_errors(confidence, correct),
    )


def over_classes(occurring: int, classes: int, noun: str = "class") -> str:
    """``8 classes`` where all occur, else ``1 of 2 classes``; ``noun`` is what they are called."""
    total = counted(classes, noun)
    return total if occurring == classes else f"{occurring:,} of {total}"


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval for a proportion (Wilson, 1927); holds its level near 0 and 1, where the normal one fails.

    Returns (low, high) in [0, 1]. Raises ValueError unless 0 <= correct <= total and total > 0.
    """
    if not (0 <= correct <= total and total > 0):
        raise ValueError(f"{correct} of {total} is not a proportion")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence level is between 0 and 1, not {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    low, high = score_interval(correct / total, total, z)
    # The bounds at 0 and 1 are exact in theory; rounding would leave them a last digit outside or inside.
    return (0.0 if correct == 0 else low, 1.0 if correct == total else high)


def score_interval(share: float, rows: float, z: float) -> tuple[float, float]:
    """Wilson's interval for a share of so many rows, from the normal quantile ``z``."""
    shrink = 1 + z * z / rows
    centre = (share + z * z / (2 * rows)) / shrink
    half = z * sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows)) / shrink
    return centre - half, centre + half


def expected_calibration_error(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> float:
    """Mean gap between confidence and accuracy over bins, weighted by rows (Naeini et al., 2015).

    ``confidence`` is the predicted class's probability, (rows,); ``correct`` says whether it is right,
    (rows,). Bins hold equally many rows (Nixon et al., 2019), since confidences crowd near 1; rows of equal
    confidence share a bin, so that the figure does not depend on the order of the rows.
    Returns a number in [0, 1]. Raises ValueError without rows.
    """
    found = reliability(confidence, correct, bins)
    gaps = (each.rows * abs(each.accuracy - each.mean_confidence) for each in found)
    return sum(gaps) / len(confidence)


def reliability(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> tuple[ReliabilityBin, ...]:
    """The bins of ``expected_calibration_error``, from unsure to sure; ties may leave fewer than ``bins``.

    Both arguments are (rows,). Raises ValueError without rows.
    """
    if len(confidence) == 0:
        raise ValueError("calibration needs at least one row")
    given = np.asarray(confidence, dtype=np.float64)
    edges = np.sort(given)[np.arange(1, bins) * len(given) // bins]
    of_rows = np.searchsorted(edges, given, side="right")  # rows of equal confidence share a bin
    found = []
    for number in np.unique(of_rows):
        members = of_rows == number
        rows, right = int(members.sum()), int(correct[members].sum())
        found.append(
            ReliabilityBin(rows, float(given[members].mean()), right / rows, wilson_interval(right, rows))
        )
    return tuple(found)


def confusion_matrix(
    labels: NDArray[np.integer], predicted: NDArray[np.integer], classes: int
) -> NDArray[np.int64]:
    """Counts of shape (classes, classes): rows are true ids, columns predicted ids."""
    cells = np.asarray(labels, dtype=np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def _check(
    probabilities: NDArray[np.float64], labels: NDArray[np.integer], label_names: Sequence[str]
) -> None:
    if probabilities.ndim != 2 or probabilities.shape[1] != len(label_names):
        raise ValueError(f"probabilities of shape {probabilities.shape} for {len(label_names)} label names")
    if labels.shape != (len(probabilities),):
        raise ValueError(f"labels of shape {labels.shape} for {len(probabilities)} rows")
    if len(labels) == 0:
        raise ValueError("metrics need at least one row")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are class ids, not {labels.dtype}")
    if labels.min() < 0 or labels.max() >= len(label_names):
        raise ValueError(f"class ids {labels.min()} to {labels.max()} for {len(label_names)} classes")
    sums_to_one = np.abs(probabilities.sum(axis=1) - 1) <= _SUM_TOLERANCE
    if not (distribution := (probabilities >= 0).all(axis=1) & sums_to_one).all():
        row = int(np.argmin(distribution))
        raise ValueError(f"row {row} is not a probability distribution: {probabilities[row].tolist()}")


def class_metrics(confusion: NDArray[np.int64], label_names: Sequence[str]) -> tuple[ClassMetrics, ...]:
    """The figures of each class from a `confusion_matrix`."""
    hits = np.diag(confusion)
    given, support = confusion.sum(axis=0), confusion.sum(axis=1)
    precision, recall, f1 = _ratio(hits, given), _ratio(hits, support), _ratio(2 * hits, given + support)
    columns = zip(
        label_names, precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), strict=True
    )
    return tuple(ClassMetrics(*values) for values in columns)


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> NDArray[np.float64]:
    zeros = np.zeros(len(numerator), dtype=np.float64)
    return np.divide(numerator, denominator, out=zeros, where=denominator > 0)


def _most_confident_errors(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> tuple[int, ...]:
    wrong = np.flatnonzero(~correct)
    ranked = wrong[np.argsort(-confidence[wrong], kind="stable")]
    return tuple(ranked[:CONFIDENT_ERRORS_KEPT].tolist())
