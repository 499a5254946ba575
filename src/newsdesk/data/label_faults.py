"""What spoils the labels of a file: found for ``newsdesk data check``, and told before a training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Self

from newsdesk.data.labels import LabelMatcher, class_names, folded, spellings_of_one_class, visible
from newsdesk.data.table import canonical
from newsdesk.errors import counted

FOLDS = 5
"""Parts of a cross-validation: a class with fewer rows is missing from some of them."""

# fmt: off
_MISSING = frozenset({
    "nan", "none", "null", "nil", "n/a", "n.a.", "na", "#n/a", "#na", "<na>", "nat", "undefined", "missing",
    "unlabeled", "unlabelled", "(none)", "(blank)", "-", "--", "?", ".",
})
# fmt: on
_SEPARATORS = (";", "|", "\n", ",", "/")
_ONLY_BETWEEN_KNOWN = ",/"  # occur in the names of classes, too: Sci/Tech
_SHOWN, _LINES_KEPT = 10, 100
_FREE_TEXT_SHARE, _FREE_TEXT_ROWS = 0.5, 20


@dataclass(frozen=True)
class LabelFault:
    """Something that spoils the labels of a file.

    Attributes:
        wrong: what it is.
        labels: those it concerns, with their rows.
        fix: how to put it right.
        odd: those of the labels whose rows are to be looked at.
        lines: where the first hundred of these rows begin, as far as that was looked up.
    """

    wrong: str
    labels: Mapping[str, int]
    fix: str
    odd: tuple[str, ...] = ()
    lines: tuple[int, ...] = ()

    def at(self, lines: Sequence[int], labels: Sequence[str]) -> Self:
        """It with the lines of the rows that bear its labels; both arguments are one a row."""
        odd = set(self.odd)
        found = (line for line, label in zip(lines, labels, strict=True) if label in odd)
        return replace(self, lines=tuple(islice(found, _LINES_KEPT)))

    def __str__(self) -> str:
        """What is wrong, and with which labels; of many, the first."""
        shown = ", ".join(
            f"{visible(label)} ({counted(rows, 'row')})"
            for label, rows in islice(self.labels.items(), _SHOWN)
        )
        more = f" and {len(self.labels) - _SHOWN:,} more" if len(self.labels) > _SHOWN else ""
        return f"{self.wrong}: {shown}{more}" if shown else self.wrong


def label_faults(counts: Mapping[str, int], column: str) -> Iterator[LabelFault]:
    """What is wrong with labels that occur so many times in the column of that name."""
    rows = sum(counts.values())
    if rows >= _FREE_TEXT_ROWS and len(counts) > _FREE_TEXT_SHARE * rows:
        yield LabelFault(
            f"{len(counts):,} classes in {rows:,} rows: {column!r} looks like free text or row numbers",
            {},
            "name the column that holds the class with --label",
        )
        return
    for spellings in spellings_of_one_class(counts):
        yield _fault(
            counts,
            spellings,
            "one class in several spellings",
            "write it in one way, or train with --set data.merge_case=true, which reads them as one class",
            first_is_right=True,
        )
    missing = [label for label in counts if label.strip().casefold() in _MISSING]
    if missing:
        yield _fault(
            counts,
            missing,
            "a class that looks like a missing label",
            "leave these rows out or label them; if it is a class, give it another name",
        )
    header = [label for label in counts if canonical(label) == canonical(column)]
    if header:
        yield _fault(
            counts,
            header,
            "the header repeated as a row, which makes the column's name a class",
            "delete these lines",
        )
    joined = list(_joined(counts))
    if joined:
        yield _fault(
            counts,
            joined,
            "labels that look like several in one",
            "keep one label in each row: a classifier learns one class a text, several are not supported yet",
        )


def rare_classes(counts: Mapping[str, int]) -> Iterator[LabelFault]:
    """Classes with fewer rows than ``FOLDS``."""
    rare = [label for label, rows in counts.items() if rows < FOLDS]
    if rare:
        yield _fault(
            counts,
            rare,
            f"classes with fewer than {FOLDS} rows: too few to learn from, and to cross-validate by",
            "label more of these, merge them into another class, or leave them out",
        )


def absent_classes(
    here: Mapping[str, int], there: Mapping[str, int], other: Path
) -> tuple[LabelFault, LabelFault]:
    """Classes of the file ``other`` that this one does not have, and the other way round."""
    names = tuple(class_names(tuple(here)))
    positions = LabelMatcher(names).positions(there) or {}  # numbers there may count the classes here
    there = {names[positions[label]] if label in positions else label: n for label, n in there.items()}
    return (
        _fault(
            there,
            _unmatched(there, here),
            f"classes of {other.name} that are absent here, so that they cannot be learned",
            "correct these labels, or add rows of these classes here",
        ),
        _fault(
            here,
            _unmatched(here, there),
            f"classes that are absent from {other.name}, whose figures say nothing of them",
            "correct these labels, or add rows of these classes there",
        ),
    )


def _unmatched(labels: Collection[str], classes: Collection[str]) -> list[str]:
    matcher = LabelMatcher(tuple(classes))
    return [label for label in labels if not matcher.candidates(label)]


def _joined(counts: Mapping[str, int]) -> Iterator[str]:
    """Labels made of several: their parts are labels themselves, or parts of other ones."""
    whole = set(map(folded, counts))
    for separator in _SEPARATORS:
        parts = {label: _parts(label, separator) for label in counts if separator in label}
        among = Counter(part for found in parts.values() for part in set(found))
        every: Callable[[Iterable[object]], bool] = all if separator in _ONLY_BETWEEN_KNOWN else any
        for label, found in parts.items():
            if len(found) > 1 and every(part in whole or among[part] > 1 for part in found):
                yield label


def _parts(label: str, separator: str) -> list[str]:
    return [part for part in map(folded, label.split(separator)) if part]


def _fault(
    counts: Mapping[str, int], labels: Iterable[str], wrong: str, fix: str, *, first_is_right: bool = False
) -> LabelFault:
    concerned = {label: counts[label] for label in labels}
    return LabelFault(wrong, concerned, fix, tuple(concerned)[int(first_is_right) :])
