"""Classifiers beside one another on the same rows: which is better, by how much, or whether that is noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.labels import LabelMatcher
from newsdesk.errors import UserError, counted
from newsdesk.evaluation.comparison import LEVEL, PairedComparison, compare_paired, holm, rows_needed
from newsdesk.evaluation.intervals import (
    Difference,
    accuracy_difference,
    macro_f1_difference,
    mean_difference,
)
from newsdesk.evaluation.rows import SMALLEST_WRITTEN, PredictedRows, read_predicted_rows
from newsdesk.files import atomic_writer
from newsdesk.metrics import confusion_matrix
from newsdesk.prediction.predictions import delimited_lines

Change = Literal["fixed", "broken", "other error"]


@dataclass(frozen=True)
class ChangedRow:
    """A row that two classifiers take for different classes.

    Attributes:
        row: its number, as the files of predictions have it.
        change: ``fixed`` if only the other is right, ``broken`` if only the first is, else ``other error``.
        true_label: its class.
        first_label: what the first takes it for.
        other_label: what the other does.
        text: what they read, where that is known.
    """

    row: str
    change: Change
    true_label: str
    first_label: str
    other_label: str
    text: str | None


@dataclass(frozen=True)
class ClassChange:
    """One class under two classifiers; F1 is 0.0 where neither rows nor predictions name the class.

    Attributes:
        label: its name.
        support: how many rows bear it.
        first_f1: its F1 by the first.
        other_f1: by the other.
        fixed: rows of this class that only the other gets right.
        broken: rows of this class that only the first gets right.
    """

    label: str
    support: int
    first_f1: float
    other_f1: float
    fixed: int
    broken: int


@dataclass(frozen=True)
class RunComparison:
    """One classifier beside the first.

    Attributes:
        first: the first one's name.
        other: this one's.
        rows: how many rows both were evaluated on.
        accuracy: with the interval of the difference, as the next two.
        macro_f1: over the classes that occur.
        negative_log_likelihood: mean, in nats, from probabilities of six decimals, so that it may differ from
            metrics.json in rows that are certain and wrong; None where a file has no probabilities.
        paired: ``model`` is the other one, ``baseline`` the first; its p-value is of this pair alone.
        adjusted_p_value: the p-value by Holm's method, where there are several others; else the same.
        rows_needed: how many rows would tell the two apart; None where they err equally often.
        per_class: every class, in the order of the first's rows.
        changed: the rows that the two take for different classes, in their order.
        notes: where one of the two learned from rows of these, how many.
    """

    first: str
    other: str
    rows: int
    accuracy: Difference
    macro_f1: Difference
    negative_log_likelihood: Difference | None
    paired: PairedComparison
    adjusted_p_value: float
    rows_needed: int | None
    per_class: tuple[ClassChange, ...]
    changed: tuple[ChangedRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_noise(self) -> bool:
        """Whether McNemar's test, after Holm, cannot tell the two accuracies apart at the 5 % level."""
        return self.adjusted_p_value >= LEVEL

    @property
    def verdict(self) -> str:
        """The outcome in a sentence."""
        if not self.changed:
            return f"both take all {counted(self.rows, 'row')} for the same classes"
        points = 100 * self.accuracy.difference
        low, high = (100 * end for end in self.accuracy.interval)
        evidence = f"[{low:+.2f}, {high:+.2f}], p = {self.adjusted_p_value:.2g}"
        if not self.is_noise:
            better, worse = (self.other, self.first) if points > 0 else (self.first, self.other)
            return f"{better} is better than {worse} by {abs(points):.2f} points of accuracy: {evidence}"
        sentence = f"the difference of {points:+.2f} points is within noise: {evidence}"
        if self.rows_needed is None:
            return f"{sentence}; as many rows were fixed as broken"
        return f"{sentence}; were it real, about {counted(self.rows_needed, 'row')} would be needed to tell"

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; of the changed rows their numbers and labels, not their texts."""
        unlikelihood = self.negative_log_likelihood
        return {
            "first": self.first,
            "other": self.other,
            "rows": self.rows,
            "accuracy": self.accuracy.to_dict(),
            "macro_f1": self.macro_f1.to_dict(),
            "negative_log_likelihood": None if unlikelihood is None else unlikelihood.to_dict(),
            "paired": self.paired.to_dict(),
            "adjusted_p_value": self.adjusted_p_value,
            "is_noise": self.is_noise,
            "notes": list(self.notes),
            "rows_needed": self.rows_needed,
            "verdict": self.verdict,
            "per_class": [asdict(entry) for entry in self.per_class],
            "changed": [
                {key: value for key, value in asdict(row).items() if key != "text"} for row in self.changed
            ],
        }


def compare(
    first: str | Path, others: Sequence[str | Path], *, split: str = "test"
) -> tuple[RunComparison, ...]:
    """Compare each of the others with the first, all evaluated on the same rows before.

    ``newsdesk.compare("runs/wire", ["runs/wire-r16"])[0].verdict``

    Args:
        first: a run, an exported model or a file ``predictions-SPLIT.csv``.
        others: any number of the same.
        split: which evaluation of runs and exported models to compare.

    Raises:
        UserError: when one was not evaluated, or they were on different rows.
    """
    evaluated = [read_predicted_rows(path, split) for path in (first, *others)]
    for other in evaluated[1:]:
        require_same_rows(evaluated[0], other)
    return compare_rows(evaluated[0], evaluated[1:])


def require_same_rows(first: PredictedRows, other: PredictedRows) -> None:
    """Raise UserError where fingerprints say that the two were evaluated on different rows."""
    if first.fingerprint and other.fingerprint and first.fingerprint != other.fingerprint:
        raise _different_rows(first, other, "with other fingerprints")


def compare_rows(first: PredictedRows, others: Sequence[PredictedRows]) -> tuple[RunComparison, ...]:
    """As :func:`compare`, from rows read before.

    Raises UserError where the rows' numbers or true classes differ.
    """
    level = LEVEL / max(1, len(others))  # the strictest that Holm's method asks of any
    compared = [_compare_pair(first, other, level) for other in others]
    adjusted = holm([each.paired.p_value for each in compared])
    return tuple(
        replace(each, adjusted_p_value=p_value) for each, p_value in zip(compared, adjusted, strict=True)
    )


def write_changed_rows(comparisons: Sequence[RunComparison], path: Path) -> None:
    """Write a csv line for each changed row of each comparison, with its text where that is known. Atomic."""
    fields = ("row", "change", "true_label", "first_label", "other_label", "text")
    lines = ([each.other, *asdict(row).values()] for each in comparisons for row in each.changed)
    with atomic_writer(path) as stream:
        stream.writelines(delimited_lines([("other", *fields)]))
        stream.writelines(delimited_lines(lines))


def _in_the_words_of(first: PredictedRows, other: PredictedRows) -> PredictedRows:
    """The other's rows with the classes called as the first calls them, who may spell them otherwise."""
    matcher = LabelMatcher(tuple(dict.fromkeys((*first.true_labels, *first.predicted_labels))))
    ids = matcher.matches({*other.true_labels, *other.predicted_labels})
    if len(set(ids.values())) < len(ids):  # two of its classes would become one
        return other
    names = {label: matcher.names[i] for label, i in ids.items()}
    return replace(
        other,
        true_labels=tuple(names.get(label, label) for label in other.true_labels),
        predicted_labels=tuple(names.get(label, label) for label in other.predicted_labels),
    )


def _compare_pair(first: PredictedRows, other: PredictedRows, level: float) -> RunComparison:
    other = _in_the_words_of(first, other)
    if (first.numbers, first.true_labels) != (other.numbers, other.true_labels):
        raise _different_rows(first, other, "whose numbers or classes differ")
    names = tuple(dict.fromkeys((*first.true_labels, *first.predicted_labels, *other.predicted_labels)))
    ids = {name: number for number, name in enumerate(names)}
    labels, by_first, by_other = (
        np.array([ids[name] for name in column], dtype=np.int64)
        for column in (first.true_labels, first.predicted_labels, other.predicted_labels)
    )
    paired = compare_paired(labels, by_other, by_first)
    return RunComparison(
        first=first.name,
        other=other.name,
        rows=len(labels),
        accuracy=accuracy_difference(labels, by_first, by_other),
        macro_f1=macro_f1_difference(labels, by_first, by_other, len(names)),
        negative_log_likelihood=_unlikelihood(first, other),
        paired=paired,
        adjusted_p_value=paired.p_value,
        rows_needed=rows_needed(paired, level),
        per_class=_per_class(names, labels, by_first, by_other),
        changed=tuple(_changed_rows(first, other)),
        notes=tuple(
            f"{rows.name}: {rows.learned.note()}"
            for rows in (first, other)
            if rows.learned is not None and rows.learned.share
        ),
    )


def _unlikelihood(first: PredictedRows, other: PredictedRows) -> Difference | None:
    if first.true_probabilities is None or other.true_probabilities is None:
        return None
    losses = [
        -np.log(np.clip(rows, SMALLEST_WRITTEN, 1.0))
        for rows in (first.true_probabilities, other.true_probabilities)
    ]
    return mean_difference(*losses)


def _per_class(
    names: Sequence[str],
    labels: NDArray[np.int64],
    by_first: NDArray[np.int64],
    by_other: NDArray[np.int64],
) -> tuple[ClassChange, ...]:
    first_f1, other_f1 = (_f1(labels, predicted, len(names)) for predicted in (by_first, by_other))
    of_class = [labels == number for number in range(len(names))]
    fixed, broken = (by_first != labels) & (by_other == labels), (by_first == labels) & (by_other != labels)
    return tuple(
        ClassChange(
            label=name,
            support=int(of_class[number].sum()),
            first_f1=first_f1[number],
            other_f1=other_f1[number],
            fixed=int((of_class[number] & fixed).sum()),
            broken=int((of_class[number] & broken).sum()),
        )
        for number, name in enumerate(names)
    )


def _f1(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> list[float]:
    confusion = confusion_matrix(labels, predicted, classes)
    f1: list[float] = (2 * np.diag(confusion) / np.maximum(1, confusion.sum(0) + confusion.sum(1))).tolist()
    return f1


def _changed_rows(first: PredictedRows, other: PredictedRows) -> Iterator[ChangedRow]:
    texts = first.texts or other.texts or (None,) * len(first)
    columns = (first.numbers, first.true_labels, first.predicted_labels, other.predicted_labels, texts)
    for number, true, by_first, by_other, text in zip(*columns, strict=True):
        if by_first != by_other:
            change: Change = "fixed" if by_other == true else "broken" if by_first == true else "other error"
            yield ChangedRow(str(number), change, str(true), str(by_first), str(by_other), text)


def _different_rows(first: PredictedRows, other: PredictedRows, how: str) -> UserError:
    mine, theirs = (
        f"{counted(len(rows), 'row')} of {rows.source or 'unknown origin'}" for rows in (first, other)
    )
    return UserError(
        f"{first.name} and {other.name} were not evaluated on the same rows",
        found=f"{mine}, and {theirs} {how}",
        fix="give --data NAME|PATH, which evaluates or checks both on the same rows; runs that read other "
        "columns or order their classes otherwise need it even for one file",
    )
