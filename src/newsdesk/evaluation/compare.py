"""Classifiers compared on the same rows: which is better, by how much, or whether the difference is noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from newsdesk.data.labels import LabelMatcher
from newsdesk.errors import UserError, counted, listed
from newsdesk.evaluation.predicted_rows import (
    SMALLEST_WRITTEN,
    PredictedRows,
    labels_of,
    read_predicted_rows,
)
from newsdesk.evaluation.significance import (
    LEVEL,
    Difference,
    PairedComparison,
    accuracy_difference,
    compare_paired,
    holm,
    label_set_differences,
    macro_f1_difference,
    mean_difference,
    rows_needed,
)
from newsdesk.files import atomic_writer
from newsdesk.label_set_metrics import Counts
from newsdesk.metrics import class_metrics, confusion_matrix
from newsdesk.prediction.predictions import delimited_lines
from newsdesk.stored import OPTIONAL, UNSTORED, to_content

Change = Literal["fixed", "broken", "other error"]


@dataclass(frozen=True)
class ChangedRow:
    """A row that two classifiers predict differently.

    Attributes:
        row: its number, as the files of predictions have it.
        change: ``fixed`` if only the other is right, ``broken`` if only the first is, else ``other error``.
        true_label: its class; where a text may have several labels, all of them, as files have them.
        first_label: what the first predicts.
        other_label: what the other does.
        text: what they read, where that is known.
    """

    row: str
    change: Change
    true_label: str
    first_label: str
    other_label: str
    text: str | None = field(default=None, metadata=UNSTORED)


@dataclass(frozen=True)
class ClassChange:
    """One class under two classifiers; F1 is 0.0 where neither rows nor predictions name the class.

    Attributes:
        label: its name.
        support: how many rows have it.
        first_f1: its F1 by the first.
        other_f1: by the other.
        fixed: rows of this class that only the other gets right; where a text may have several labels, those
            about which only the other is right whether they have this one.
        broken: those that only the first gets right.
        first_recall: the share of its rows that the first finds, where the two do not have the same classes.
        other_recall: the share that the other finds.
    """

    label: str
    support: int
    first_f1: float
    other_f1: float
    fixed: int
    broken: int
    first_recall: float | None = field(default=None, metadata=OPTIONAL)
    other_recall: float | None = field(default=None, metadata=OPTIONAL)


class _Judged(ABC):
    """What both kinds of comparison say of themselves."""

    adjusted_p_value: float

    @property
    def is_noise(self) -> bool:
        """Whether the test, after Holm, cannot tell the two classifiers apart at the 5 % level."""
        return self.adjusted_p_value >= LEVEL

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; of the changed rows their numbers and labels, not their texts."""
        return {**to_content(self), "is_noise": self.is_noise, "verdict": self.verdict}

    @property
    @abstractmethod
    def verdict(self) -> str:
        """The outcome in a sentence."""


@dataclass(frozen=True)
class RunComparison(_Judged):
    """One classifier compared with the first.

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
        rows_needed: how many rows would show the difference; None where both err equally often.
        per_class: every class, in the order of the first's rows.
        changed: the rows that the two predict differently, in their order.
        notes: how many of the rows one of the two learned from, if any, and which classes only one has.
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
    def p_value(self) -> float:
        """Of this pair alone."""
        return self.paired.p_value

    @property
    def verdict(self) -> str:
        """The outcome in a sentence."""
        if not self.changed:
            return f"both predict the same classes for all {counted(self.rows, 'row')}"
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


@dataclass(frozen=True)
class LabelSetComparison(_Judged):
    """One classifier compared with the first, where a text may have several labels.

    Attributes:
        first: the first one's name.
        other: this one's.
        rows: how many rows both were evaluated on.
        micro_f1: with the interval of the difference, by drawing texts; so is ``macro_f1``.
        macro_f1: over the labels that occur.
        p_value: of the difference in micro F1, of this pair alone.
        adjusted_p_value: by Holm's method, where there are several others; else the same.
        per_class: every label that occurs, by name.
        changed: the rows to which the two give other labels, in their order.
        notes: how many of the rows one of the two learned from, if any.
    """

    first: str
    other: str
    rows: int
    micro_f1: Difference
    macro_f1: Difference
    p_value: float
    adjusted_p_value: float
    per_class: tuple[ClassChange, ...]
    changed: tuple[ChangedRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The outcome in a sentence."""
        if not self.changed:
            return f"both give the same labels to all {counted(self.rows, 'row')}"
        points, (low, high) = 100 * self.micro_f1.difference, (100 * end for end in self.micro_f1.interval)
        evidence = f"[{low:+.2f}, {high:+.2f}], p = {self.adjusted_p_value:.2g}"
        if self.is_noise:
            return f"the difference of {points:+.2f} points of micro F1 is within noise: {evidence}"
        better, worse = (self.other, self.first) if points > 0 else (self.first, self.other)
        return f"{better} is better than {worse} by {abs(points):.2f} points of micro F1: {evidence}"


AnyComparison = TypeVar("AnyComparison", RunComparison, LabelSetComparison)


def compare(
    first: str | Path, others: Sequence[str | Path], *, split: str = "test"
) -> tuple[RunComparison, ...] | tuple[LabelSetComparison, ...]:
    """Compare each of the others with the first, all evaluated on the same rows before.

    ``newsdesk.compare("runs/wire", ["runs/wire-r16"])[0].verdict``

    Args:
        first: a run, an exported model or a file ``predictions-SPLIT.csv``.
        others: any number of the same.
        split: which evaluation of runs and exported models to compare.

    Raises:
        UserError: when one was not evaluated, or they were on different rows.
    """
    rows, *rest = (read_predicted_rows(Path(path), split) for path in (first, *others))
    for other in rest:
        fingerprints = [each.evaluation.fingerprint for each in (rows, other) if each.evaluation]
        if len(set(fingerprints)) > 1:
            raise _different_rows(rows, other, "with other fingerprints")
    return compare_rows(rows, rest)


def compare_rows(
    first: PredictedRows, others: Sequence[PredictedRows]
) -> tuple[RunComparison, ...] | tuple[LabelSetComparison, ...]:
    """As :func:`compare`, from rows read before.

    Where one has classes that the other does not, as a run that has grown, they are compared on the rows
    whose labels both know. Raises UserError where the rows' numbers or true labels differ, or only some may
    have several labels.
    """
    others = [_renamed_as_in(first, other) for other in others]
    for other in others:
        if first.several != other.several:
            of_sets, of_one = (first, other) if first.several else (other, first)
            raise UserError(
                "classifiers that give a text one label cannot be compared with those that may give several",
                found=f"{of_one.name}, and {of_sets.name}, whose texts may have several",
                fix="compare runs of one kind",
            )
    pairs = [_on_shared_rows(first, other) for other in others]
    for one, other, _ in pairs:
        if (one.numbers, one.true_labels) != (other.numbers, other.true_labels):
            raise _different_rows(first, other, "whose numbers or classes differ")
    if first.several:
        sets = [(_compare_sets(one, other), notes) for one, other, notes in pairs]
        return _adjusted([_with_notes(found, notes) for found, notes in sets])
    level = LEVEL / max(1, len(others))  # the strictest that Holm's method asks of any
    classes = [(_compare_classes(one, other, level), notes) for one, other, notes in pairs]
    return _adjusted([_with_notes(found, notes) for found, notes in classes])


def _with_notes(found: AnyComparison, notes: tuple[str, ...]) -> AnyComparison:
    """The comparison with notes on rows left out; where there are none, without what these call for."""
    if notes:
        return replace(found, notes=(*notes, *found.notes))
    per_class = (replace(entry, first_recall=None, other_recall=None) for entry in found.per_class)
    return replace(found, per_class=tuple(per_class))


def _on_shared_rows(
    first: PredictedRows, other: PredictedRows
) -> tuple[PredictedRows, PredictedRows, tuple[str, ...]]:
    """The rows of both whose labels both know, and what was left out, a sentence each.

    As they are where both have the same classes. Rows were numbered without those of unknown labels, if they
    were left out of an evaluation, and get the numbers of the one that has more.
    """
    both = set(first.known_labels) & set(other.known_labels)
    if both == set(first.known_labels) == set(other.known_labels) or not both:
        return first, other, ()
    parts, notes = [], []
    for rows in (first, other):
        labels = [labels_of(true) if rows.several else (true,) for true in rows.true_labels]
        shared = [row for row, names in enumerate(labels) if both.issuperset(names)]
        alone = [name for name in rows.known_labels if name not in both]
        parts.append(rows.select(shared))
        found = [note for name in alone if (note := _found_alone(rows, labels, name))]
        if found:
            left_out = counted(len(rows) - len(shared), "row")
            notes.append(f"{left_out} of classes that only {rows.name} has: it finds {', '.join(found)}")
        elif alone:
            notes.append(f"only {rows.name} has {listed(alone)}")
    one, another = parts
    numbers = max((first, one), (other, another), key=lambda pair: len(pair[0]))[1].numbers
    if len(one) == len(another):
        one, another = replace(one, numbers=numbers), replace(another, numbers=numbers)
    return one, another, tuple(notes)


def _found_alone(rows: PredictedRows, labels: Sequence[Sequence[str]], name: str) -> str:
    """How many of the rows of a class are given it; empty where there are none."""
    given = [
        name in (labels_of(found) if rows.several else (found,))
        for found, true in zip(rows.predicted_labels, labels, strict=True)
        if name in true
    ]
    return f"{sum(given):,} of {counted(len(given), 'row')} of {name}" if given else ""


def _adjusted(compared: Sequence[AnyComparison]) -> tuple[AnyComparison, ...]:
    """The comparisons with p-values by Holm's method."""
    adjusted = holm([each.p_value for each in compared])
    return tuple(replace(each, adjusted_p_value=p) for each, p in zip(compared, adjusted, strict=True))


def write_changed_rows(comparisons: Sequence[RunComparison | LabelSetComparison], path: Path) -> None:
    """Write a csv line for each changed row of each comparison, with its text where that is known. Atomic."""
    header = ("other", *(of.name for of in fields(ChangedRow)))
    lines = ((each.other, *astuple(row)) for each in comparisons for row in each.changed)
    with atomic_writer(path) as stream:
        stream.writelines(delimited_lines([header, *lines]))


def _renamed_as_in(first: PredictedRows, other: PredictedRows) -> PredictedRows:
    """The other's rows with the class names of the first, which may be spelled differently."""
    if first.several or other.several:
        return other
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


def _compare_classes(first: PredictedRows, other: PredictedRows, level: float) -> RunComparison:
    names = tuple(dict.fromkeys((*first.true_labels, *first.predicted_labels, *other.predicted_labels)))
    ids = {name: number for number, name in enumerate(names)}
    labels, by_first, by_other = (
        np.array([ids[name] for name in column], dtype=np.int64)
        for column in (first.true_labels, first.predicted_labels, other.predicted_labels)
    )
    paired = compare_paired(labels, by_other, by_first)
    changed = tuple(_changed_rows(first, other))
    fixed, broken = (
        Counter(row.true_label for row in changed if row.change == change) for change in ("fixed", "broken")
    )
    before, after = (
        class_metrics(confusion_matrix(labels, predicted, len(names)), names)
        for predicted in (by_first, by_other)
    )
    losses = [
        -np.log(np.clip(rows.true_probabilities, SMALLEST_WRITTEN, 1.0))
        for rows in (first, other)
        if rows.true_probabilities is not None
    ]
    return RunComparison(
        first=first.name,
        other=other.name,
        rows=len(labels),
        accuracy=accuracy_difference(labels, by_first, by_other),
        macro_f1=macro_f1_difference(labels, by_first, by_other, len(names)),
        negative_log_likelihood=mean_difference(*losses) if len(losses) == 2 else None,
        paired=paired,
        adjusted_p_value=paired.p_value,
        rows_needed=rows_needed(paired, level),
        per_class=tuple(
            ClassChange(
                *(old.label, old.support, old.f1, new.f1, fixed[old.label], broken[old.label]),
                *(old.recall, new.recall),
            )
            for old, new in zip(before, after, strict=True)
        ),
        changed=changed,
        notes=_notes(first, other),
    )


def _compare_sets(first: PredictedRows, other: PredictedRows) -> LabelSetComparison:
    true, by_first, by_other = (
        [frozenset(labels_of(cell)) for cell in cells]
        for cells in (first.true_labels, first.predicted_labels, other.predicted_labels)
    )
    names = sorted(frozenset().union(*true, *by_first, *by_other))
    truth, before, after = (
        np.array([[name in labels for name in names] for labels in sets], dtype=np.bool_)
        for sets in (true, by_first, by_other)
    )
    micro, macro, p_value = label_set_differences(truth, before, after)
    columns = (
        truth.sum(axis=0),
        *(Counts.of(given, truth).f1() for given in (before, after)),
        ((before != truth) & (after == truth)).sum(axis=0),
        ((before == truth) & (after != truth)).sum(axis=0),
        *((given & truth).sum(axis=0) / np.maximum(1, truth.sum(axis=0)) for given in (before, after)),
    )
    return LabelSetComparison(
        first=first.name,
        other=other.name,
        rows=len(first),
        micro_f1=micro,
        macro_f1=macro,
        p_value=p_value,
        adjusted_p_value=p_value,
        per_class=tuple(
            ClassChange(name, int(rows), float(old), float(new), int(fixed), int(broken), *map(float, found))
            for name, rows, old, new, fixed, broken, *found in zip(names, *columns, strict=True)
        ),
        changed=tuple(_changed_rows(first, other)),
        notes=_notes(first, other),
    )


def _notes(first: PredictedRows, other: PredictedRows) -> tuple[str, ...]:
    """How many of the rows either of the two learned from, a sentence each."""
    knew = [(rows.name, rows.evaluation.learned) for rows in (first, other) if rows.evaluation]
    return tuple(f"{name}: {learned.note()}" for name, learned in knew if learned and learned.share)


def _changed_rows(first: PredictedRows, other: PredictedRows) -> Iterator[ChangedRow]:
    texts = first.texts or other.texts or (None,) * len(first)
    columns = (first.numbers, first.true_labels, first.predicted_labels, other.predicted_labels, texts)
    for number, true, by_first, by_other, text in zip(*columns, strict=True):
        if by_first != by_other:
            change: Change = "fixed" if by_other == true else "broken" if by_first == true else "other error"
            yield ChangedRow(str(number), change, str(true), str(by_first), str(by_other), text)


def _different_rows(first: PredictedRows, other: PredictedRows, how: str) -> UserError:
    return UserError(
        f"{first.name} and {other.name} were not evaluated on the same rows",
        found=f"{first.origin}, and {other.origin} {how}",
        fix="give --data NAME|PATH, which evaluates or checks both on the same rows; runs that read other "
        "columns or order their classes differently need it even for the same file",
    )
