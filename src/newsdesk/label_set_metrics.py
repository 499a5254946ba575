"""Metrics of a classifier that gives each text any number of labels: numpy in, plain numbers out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsdesk.metrics import (
    CALIBRATION_BINS,
    SMALLEST_PROBABILITY,
    ClassMetrics,
    expected_calibration_error,
    over_classes,
    wilson_interval,
)

RESAMPLES = 1000
"""Draws of as many texts, with replacement, that the intervals rest on."""
LEVEL = 0.05
"""The share of draws that the intervals leave outside, half on either side."""
PAIRS_KEPT = 20

_DRAWN_AT_ONCE = 2_000_000  # numbers of texts of a kind
_EXACT_IN_FLOAT32 = 1 << 24  # texts

LABEL_SET_UNITS = {
    "micro_f1": "0 to 1, over all labels of all texts; so are micro_precision and micro_recall",
    "micro_f1_interval": "95 % bootstrap interval over texts, same unit as micro_f1",
    "macro_f1": "0 to 1, mean over the labels that occur among true or assigned ones; so are macro_precision "
    "and macro_recall",
    "macro_f1_interval": "95 % bootstrap interval over texts, same unit as macro_f1",
    "macro_f1_labels": "labels that macro_f1 is the mean over",
    "per_label": "precision, recall, f1 and its 95 % interval from 0 to 1; support in texts",
    "subset_accuracy": "share of texts, 0 to 1, whose assigned labels are just the true ones",
    "subset_accuracy_interval": "95 % Wilson interval, same unit as subset_accuracy",
    "label_ranking_average_precision": "0 to 1, mean over texts",
    "coverage_error": "labels, mean over texts",
    "negative_log_likelihood": "nats per label of a text",
    "expected_calibration_error": f"0 to 1, over all labels of all texts, {CALIBRATION_BINS} equal-mass bins",
    "assigned_calibration_error": f"0 to 1, over the assigned labels, {CALIBRATION_BINS} equal-mass bins",
    "labels_per_text": "mean number of true labels; assigned_per_text of assigned ones",
    "texts_without_labels": "texts; texts_without_assigned are those that are given none",
    "confused": "texts counted in which a label is missed and another one is assigned wrongly",
    "missed_beside": "texts counted in which a label is missed and another one is assigned rightly",
}


@dataclass(frozen=True)
class LabelMetrics(ClassMetrics):
    """The figures of one label, as `ClassMetrics` has them.

    Attributes:
        f1_interval: 95 % interval (low, high) of the F1; see `f1_interval`.
    """

    f1_interval: tuple[float, float]


@dataclass(frozen=True)
class LabelPair:
    """Two labels and the number of texts in which the first is missed and the second assigned.

    Attributes:
        missed: a true label that is not assigned.
        assigned: a label that is.
        texts: how many.
    """

    missed: str
    assigned: str
    texts: int


@dataclass(frozen=True)
class LabelSetMetrics:
    """What one classifier got right and wrong on one set of texts; ``LABEL_SET_UNITS`` says each unit.

    Ratios whose denominator is zero are 0.0, as in scikit-learn; texts without true labels count in all
    figures.

    Attributes:
        rows: number of texts.
        label_names: label names in id order.
        micro_f1: F1 over all labels of all texts, ``sklearn.metrics.f1_score(average="micro")``.
        micro_precision: share of the assigned labels that are true.
        micro_recall: share of the true labels that are assigned.
        micro_f1_interval: 95 % interval (low, high) of the F1, by drawing texts with replacement (Efron,
            1979): the labels of one text are not independent.
        macro_f1: mean F1 over the labels that occur among the true or the assigned ones.
        macro_precision: mean precision over the same.
        macro_recall: mean recall over the same.
        macro_f1_interval: 95 % interval (low, high) of macro F1, likewise.
        per_label: one entry a label, in id order.
        subset_accuracy: share of texts whose assigned labels are just the true ones.
        subset_accuracy_interval: its 95 % Wilson interval (low, high).
        label_ranking_average_precision: for each true label, the share of true labels among those at least as
            probable; mean over a text's labels, then over texts. 1 for a text without any, or with all.
        coverage_error: how many labels, the most probable first, contain all true ones of a text on average;
            0 for a text without any.
        negative_log_likelihood: mean -ln p of what is true, over all labels of all texts, in nats.
        expected_calibration_error: see `label_calibration_error`.
        assigned_calibration_error: the same of the assigned labels alone: whether of those with 80 % just
            80 % are true. 0 where none is assigned.
        labels_per_text: mean number of true labels.
        assigned_per_text: mean number of assigned ones.
        texts_without_labels: how many have no true label.
        texts_without_assigned: how many are given none.
        confused: which label is assigned where which other is missed, the most frequent pairs first.
        missed_beside: which label is missed beside which other that is true and assigned, likewise.
        macro_f1_labels: how many labels macro F1 is the mean over.
        units: of each figure, for who reads the file without this code.

    Raises ValueError where figures and labels do not agree.
    """

    rows: int
    label_names: tuple[str, ...]
    micro_f1: float
    micro_precision: float
    micro_recall: float
    micro_f1_interval: tuple[float, float]
    macro_f1: float
    macro_precision: float
    macro_recall: float
    macro_f1_interval: tuple[float, float]
    macro_f1_labels: int
    per_label: tuple[LabelMetrics, ...]
    subset_accuracy: float
    subset_accuracy_interval: tuple[float, float]
    label_ranking_average_precision: float
    coverage_error: float
    negative_log_likelihood: float
    expected_calibration_error: float
    assigned_calibration_error: float
    labels_per_text: float
    assigned_per_text: float
    texts_without_labels: int
    texts_without_assigned: int
    confused: tuple[LabelPair, ...]
    missed_beside: tuple[LabelPair, ...]
    units: Mapping[str, str] = field(default_factory=lambda: dict(LABEL_SET_UNITS), repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be figures of these labels."""
        if tuple(one.label for one in self.per_label) != self.label_names:
            raise ValueError("per_label is not of the labels of label_names")
        of_texts = (self.texts_without_labels, self.texts_without_assigned)
        if not 0 < self.rows < 1 << 62 or max(of_texts) > self.rows:
            raise ValueError(f"rows is {self.rows}, or less than the texts without labels")
        shares = (
            *(self.micro_f1, self.micro_precision, self.micro_recall, *self.micro_f1_interval),
            *(self.macro_f1, self.macro_precision, self.macro_recall, *self.macro_f1_interval),
            *(self.subset_accuracy, *self.subset_accuracy_interval, self.label_ranking_average_precision),
            *(self.expected_calibration_error, self.assigned_calibration_error),
        )
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError("a share, an F1, an interval or a calibration error is not from 0 to 1")
        counts = (self.coverage_error, self.labels_per_text, self.assigned_per_text)
        if not all(0 <= count <= len(self.label_names) for count in counts):
            raise ValueError("more labels a text than there are")
        if not 0 <= self.macro_f1_labels <= len(self.label_names):
            raise ValueError("macro_f1_labels is more than there are labels")
        pairs = (*self.confused, *self.missed_beside)
        if not {name for pair in pairs for name in (pair.missed, pair.assigned)} <= set(self.label_names):
            raise ValueError("confused or missed_beside names an unknown label")

    @property
    def over_labels(self) -> str:
        """What macro F1 is the mean over, in words: ``90 labels``, ``81 of 90 labels``."""
        return over_classes(self.macro_f1_labels, len(self.label_names), "label")


class Counts(NamedTuple):
    """Of each label, in how many texts; all have the same shape, (..., labels).

    Attributes:
        hits: it is true and assigned.
        assigned: it is assigned.
        true: it is true.
    """

    hits: NDArray[np.floating]
    assigned: NDArray[np.floating]
    true: NDArray[np.floating]

    @classmethod
    def of(cls, assigned: NDArray[np.bool_], labels: NDArray[np.bool_]) -> Counts:
        """Of all texts, from (texts, labels) each."""
        return cls(
            *(np.sum(each, axis=0).astype(np.float64) for each in (labels & assigned, assigned, labels))
        )

    @classmethod
    def of_texts(cls, assigned: NDArray[np.bool_], labels: NDArray[np.bool_]) -> Counts:
        """Of each text, (texts,), over its labels, from (texts, labels) each."""
        return cls(
            *(np.sum(each, axis=1).astype(np.float64) for each in (labels & assigned, assigned, labels))
        )

    def micro_f1(self) -> NDArray[np.float64]:
        """F1 over all labels together, (...); 0 where none is true or assigned."""
        hits, assigned, true = (each.sum(axis=-1) for each in self)
        return _ratio(2 * hits, assigned + true)

    def micro_precision(self) -> NDArray[np.float64]:
        """The share of all assigned labels that are true, (...); 0 where none is assigned."""
        return _ratio(self.hits.sum(axis=-1), self.assigned.sum(axis=-1))

    def micro_recall(self) -> NDArray[np.float64]:
        """The share of all true labels that are assigned, (...); 0 where none is true."""
        return _ratio(self.hits.sum(axis=-1), self.true.sum(axis=-1))

    def macro_f1(self) -> NDArray[np.float64]:
        """Mean F1 over the labels that are true or assigned anywhere, (...); 0 where none is."""
        return _ratio(self.f1().sum(axis=-1), self.occurs.sum(axis=-1))

    def f1(self) -> NDArray[np.float64]:
        """F1 of each label, (..., labels); 0 where it does not occur."""
        return _ratio(2 * self.hits, self.assigned + self.true)

    @property
    def occurs(self) -> NDArray[np.bool_]:
        """Which labels are true or assigned anywhere, (..., labels)."""
        return np.asarray(self.assigned + self.true > 0, dtype=np.bool_)


def evaluate_label_sets(
    probabilities: NDArray[np.floating],
    assigned: NDArray[np.bool_],
    labels: NDArray[np.bool_],
    label_names: Sequence[str],
) -> LabelSetMetrics:
    """All metrics of labels assigned to texts, and of their probabilities, against the true ones.

    The arrays are (texts, labels). Raises ValueError when shapes or names do not line up, without a text or a
    label, or when a probability is not from 0 to 1.
    """
    given, assigned = np.asarray(probabilities, dtype=np.float64), np.asarray(assigned, dtype=np.bool_)
    labels = np.asarray(labels)
    _check(given, assigned, labels, label_names)
    counts = Counts.of(assigned, labels)
    occurs, per_label = counts.occurs, _per_label(counts, label_names)
    hits, all_assigned, true = (float(each.sum()) for each in counts)
    same = int((assigned == labels).all(axis=1).sum())
    missed, wrong = labels & ~assigned, assigned & ~labels
    micro, macro = bootstrap_intervals(assigned, labels, (Counts.micro_f1, Counts.macro_f1))

    def over_occurring(figure: Callable[[LabelMetrics], float]) -> float:
        return float(
            np.mean([figure(one) for one, there in zip(per_label, occurs, strict=True) if there] or 0)
        )

    return LabelSetMetrics(
        rows=len(labels),
        label_names=tuple(label_names),
        micro_f1=float(counts.micro_f1()),
        micro_precision=hits / max(1.0, all_assigned),
        micro_recall=hits / max(1.0, true),
        micro_f1_interval=micro,
        macro_f1=over_occurring(lambda one: one.f1),
        macro_precision=over_occurring(lambda one: one.precision),
        macro_recall=over_occurring(lambda one: one.recall),
        macro_f1_interval=macro,
        macro_f1_labels=int(occurs.sum()),
        per_label=per_label,
        subset_accuracy=same / len(labels),
        subset_accuracy_interval=wilson_interval(same, len(labels)),
        label_ranking_average_precision=float(ranking_precisions(given, labels).mean()),
        coverage_error=float(labels_to_cover(given, labels).mean()),
        negative_log_likelihood=binary_log_loss(given, labels),
        expected_calibration_error=label_calibration_error(given, labels),
        assigned_calibration_error=expected_calibration_error(given[assigned], labels[assigned])
        if assigned.any()
        else 0.0,
        labels_per_text=float(labels.sum(axis=1).mean()),
        assigned_per_text=float(assigned.sum(axis=1).mean()),
        texts_without_labels=int((~labels.any(axis=1)).sum()),
        texts_without_assigned=int((~assigned.any(axis=1)).sum()),
        confused=_most_frequent_pairs(missed, wrong, label_names),
        missed_beside=_most_frequent_pairs(missed, labels & assigned, label_names),
    )


def bootstrap_intervals(
    assigned: NDArray[np.bool_],
    labels: NDArray[np.bool_],
    figures: Sequence[Callable[[Counts], NDArray[np.float64]]],
    *,
    seed: int = 0,
) -> tuple[tuple[float, float], ...]:
    """The 95 % interval (low, high) of each figure, 0 to 1, over draws of texts (Efron, 1979).

    ``assigned`` and ``labels`` are (texts, labels), figures are functions of `Counts`. Texts are drawn whole.
    The percentiles of the draws, moved by what draws are off on average: where labels are rare, many a draw
    lacks some of them, which leaves macro F1 too high.
    """
    drawn = [
        [figure(counts) for figure in figures] for (counts,) in resampled_counts(labels, [assigned], seed)
    ]
    values = np.concatenate(drawn, axis=-1)
    off = values.mean(axis=-1) - [float(figure(Counts.of(assigned, labels))) for figure in figures]
    ends = np.clip(np.quantile(values, [LEVEL / 2, 1 - LEVEL / 2], axis=-1) - off, 0.0, 1.0)
    return tuple((float(low), float(high)) for low, high in ends.T)


def resampled_counts(
    labels: NDArray[np.bool_], assigned: Sequence[NDArray[np.bool_]], seed: int
) -> Iterator[tuple[Counts, ...]]:
    """The counts of 1,000 draws of the texts, with replacement, a few hundred draws at a time.

    One `Counts` of (draws, labels) for each of the classifiers whose labels are ``assigned``, on the same
    draws. Texts with the same labels, true and assigned, are interchangeable: how often each kind is drawn
    is multinomial, which is the same as drawing texts and needs far fewer numbers.
    """
    packed = np.packbits(np.concatenate([labels, *assigned], axis=1), axis=1)
    _kinds, first, texts = np.unique(packed, axis=0, return_index=True, return_counts=True)
    parts = [labels[first], *(part[first] for given in assigned for part in (labels & given, given))]
    columns = np.concatenate(parts, axis=1).astype(
        np.float32 if len(labels) < _EXACT_IN_FLOAT32 else np.float64
    )
    generator = np.random.Generator(np.random.PCG64(seed))
    at_once = max(1, _DRAWN_AT_ONCE // len(first))
    for done in range(0, RESAMPLES, at_once):
        draws = generator.multinomial(len(labels), texts / len(labels), min(at_once, RESAMPLES - done))
        true, *others = np.split(
            (draws.astype(columns.dtype) @ columns).astype(np.float64), len(parts), axis=1
        )
        yield tuple(Counts(hits, given, true) for hits, given in zip(others[::2], others[1::2], strict=True))


def f1_interval(hits: int, either: int) -> tuple[float, float]:
    """95 % interval of a label's F1 from the texts in which it is both true and assigned, or either.

    F1 is 2 J / (1 + J), where J is the share of the former among the latter, a share of independent texts:
    Wilson's interval of J, mapped. Unlike the bootstrap's it has a width where all of three texts are right.
    (0, 1) for a label that does not occur.
    """
    low, high = wilson_interval(hits, either) if either else (0.0, 1.0)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def binary_log_loss(probabilities: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """Mean -ln p of what is true over all labels of all texts, in nats; both arrays are (texts, labels).

    Probabilities are clipped to ``SMALLEST_PROBABILITY``.
    """
    given = np.asarray(probabilities, dtype=np.float64)
    return float(-np.log(np.clip(np.where(labels, given, 1 - given), SMALLEST_PROBABILITY, 1.0)).mean())


def label_calibration_error(probabilities: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """`expected_calibration_error` of each label's probability, over all labels of all texts, 0 to 1.

    Both arrays are (texts, labels). Most labels of most texts are surely not true, so that it is small.
    """
    return expected_calibration_error(np.ravel(probabilities), np.ravel(labels))


def ranking_precisions(probabilities: NDArray[np.floating], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of each text the mean precision at the rank of each true label (Tsoumakas et al., 2010), (texts,).

    Their mean is the label-ranking average precision. Both arrays are (texts, labels). Labels of equal
    probability share the last of their ranks. Texts without true labels, or with all, have 1.
    """
    sums = np.zeros(len(labels))
    for label in range(labels.shape[1]):
        rows = np.flatnonzero(labels[:, label])
        before = probabilities[rows] >= probabilities[rows, label, None]
        sums[rows] += (before & labels[rows]).sum(axis=1) / before.sum(axis=1)
    having = labels.sum(axis=1)
    return np.asarray(np.where(having > 0, sums / np.maximum(1, having), 1.0), dtype=np.float64)


def labels_to_cover(probabilities: NDArray[np.floating], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How far down the ranking all true labels of each text are found, in labels, (texts,).

    Their mean is the coverage error. Both arrays are (texts, labels). Texts without true labels have 0.
    """
    least = np.where(labels, probabilities, np.inf).min(axis=1, keepdims=True)
    return np.asarray((probabilities >= least).sum(axis=1), dtype=np.float64)


def _check(
    probabilities: NDArray[np.float64],
    assigned: NDArray[np.bool_],
    labels: NDArray[np.bool_],
    label_names: Sequence[str],
) -> None:
    if labels.dtype != np.bool_:
        raise ValueError(f"labels of several a text are true or false, not {labels.dtype}")
    if not probabilities.shape == assigned.shape == labels.shape == (len(labels), len(label_names)):
        raise ValueError(
            f"probabilities of shape {probabilities.shape}, assigned {assigned.shape} and labels "
            f"{labels.shape} for {len(label_names)} label names"
        )
    if not labels.size:
        raise ValueError("metrics need at least one text and one label")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities that are not from 0 to 1")


def _per_label(counts: Counts, label_names: Sequence[str]) -> tuple[LabelMetrics, ...]:
    precision, recall = _ratio(counts.hits, counts.assigned), _ratio(counts.hits, counts.true)
    either = counts.assigned + counts.true - counts.hits
    intervals = map(f1_interval, counts.hits.astype(int).tolist(), either.astype(int).tolist())
    figures = (precision, recall, counts.f1(), counts.true.astype(int))
    rows = zip(label_names, *(figure.tolist() for figure in figures), intervals, strict=True)
    return tuple(LabelMetrics(*row) for row in rows)


def _most_frequent_pairs(
    missed: NDArray[np.bool_], given: NDArray[np.bool_], label_names: Sequence[str]
) -> tuple[LabelPair, ...]:
    """The pairs of a missed and a given label by the number of texts in which they meet."""
    texts = missed.astype(np.float64).T @ given.astype(np.float64)
    order = np.argsort(-texts, axis=None, kind="stable")[:PAIRS_KEPT]
    cells = (divmod(cell, len(label_names)) for cell in order.tolist())
    return tuple(LabelPair(label_names[i], label_names[j], int(texts[i, j])) for i, j in cells if texts[i, j])


def _ratio(numerator: NDArray[np.floating], denominator: NDArray[np.floating]) -> NDArray[np.float64]:
    """0 where the denominator is."""
    zeros = np.zeros(np.shape(numerator), dtype=np.float64)
    np.divide(numerator, denominator, out=zeros, where=np.asarray(denominator) > 0)
    return zeros
