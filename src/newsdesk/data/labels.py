"""Labels as files write them: cells to labels, labels to the classes of a run, and what is wrong with them.

Labels are matched, never guessed: by their exact text, then without what cannot be seen (Unicode
composition, white space, the format of a number), then without case.
"""

from __future__ import annotations

import ast
import math
import re
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import islice
from operator import itemgetter
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.table import Cell, canonical
from newsdesk.errors import UserError, counted, listed
from newsdesk.stored import OPTIONAL

UnknownLabels = Literal["error", "count-wrong", "drop"]
"""What to do about labels that are not classes of the run: refuse, count as errors, leave the rows out."""

OTHER_CLASSES = "(unknown classes)"
"""The name under which unknown labels are counted where there are too many to name each."""

_MOST_COUNTED = 20  # unknown labels that are counted under their own names
_LINES_SHOWN, _LINES_KEPT, _FAULTY_SHOWN = 5, 100, 10
_NUMBER = re.compile(r"([+-]?)([0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")
_LONGEST_SHOWN = 100  # characters of a label in a message
_MOST_DIGITS = 9  # of the number of a class
_LISTS = (list, tuple, set, frozenset)
# fmt: off
_MISSING = frozenset({
    "nan", "none", "null", "nil", "n/a", "n.a.", "na", "#n/a", "#na", "<na>", "nat", "undefined", "missing",
    "unlabeled", "unlabelled", "(none)", "(blank)", "-", "--", "?", ".",
})
# fmt: on
_SEPARATORS = (";", "|", "\n", ",", "/")
_ONLY_BETWEEN_KNOWN = ",/"  # occur in the names of classes, too: Sci/Tech
_FREE_TEXT_SHARE, _FREE_TEXT_ROWS = 0.5, 20


def labels_in(cell: Cell) -> tuple[str, ...]:
    """The labels of one cell: none, one, or several where it is a list, or the text of one.

    Whole floats are whole numbers: pandas writes the integers of a column with gaps as floats. Raises
    ValueError for a cell that cannot be a label, such as a JSON object.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ()
    if isinstance(cell, float):
        return (str(int(cell)) if cell.is_integer() else str(cell),)
    if isinstance(cell, str):
        text = cell.strip()
        listed = _listed(text)
        return tuple(filter(None, (text,))) if listed is None else labels_in(listed)
    if isinstance(cell, _LISTS):
        if any(isinstance(entry, _LISTS) for entry in cell):
            raise ValueError("a list of lists")
        return tuple(label for entry in cell for label in labels_in(entry))
    if isinstance(cell, Mapping):
        raise ValueError(f"an object with the keys {', '.join(map(str, cell))}")
    return tuple(filter(None, (str(cell).strip(),)))


def is_list(cell: Cell) -> bool:
    """Whether a cell is a list of labels, or the text of one."""
    return isinstance(cell, _LISTS) or (isinstance(cell, str) and _listed(cell.strip()) is not None)


def _listed(text: str) -> list[Cell] | None:
    """The list that a text spells out, as JSON or Python write it; None for any other text."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    simple = isinstance(value, list) and all(isinstance(entry, str | int | float) for entry in value)
    return value if simple else None


def number_of(label: str) -> str | None:
    """A decimal number as its value is written plainly (``+01.50`` as ``1.5``); None for anything else.

    Only ASCII digits make numbers; ``1e3``, ``nan`` and ``inf`` are names.
    """
    match = _NUMBER.fullmatch(label)
    if match is None:
        return None
    whole, _, fraction = match[2].partition(".")
    value = f"{whole.lstrip('0') or '0'}.{fraction.rstrip('0')}".rstrip(".")
    return f"-{value}" if match[1] == "-" and value != "0" else value


def spelling(label: str) -> str:
    """A label without what cannot be seen: numbers by value, else composed (NFC), white space single."""
    text = " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFC", label)).split())
    return number_of(text) or text


def folded(label: str) -> str:
    """As ``spelling``, and without case."""
    caseless = spelling(label).casefold().replace("i\u0307", "i")  # what becomes of the Turkish capital
    return unicodedata.normalize("NFC", caseless)


def visible(label: str) -> str:
    """A label in quotes, cut if it is long; one with decomposed letters, which look alike, in escapes."""
    if len(label) > _LONGEST_SHOWN:
        label = label[:_LONGEST_SHOWN] + "..."
    return repr(label) if unicodedata.is_normalized("NFC", label) else ascii(label)


def spellings_of_one_class(
    counts: Mapping[str, int], same: Callable[[str], str] = folded
) -> list[dict[str, int]]:
    """The spellings, with their rows, of each class that is written in several ways; most frequent first."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        groups[same(label)].append(label)
    return [
        {
            label: counts[label]
            for label in sorted(group, key=lambda label: (-counts[label], len(label), label))
        }
        for group in groups.values()
        if len(group) > 1
    ]


def class_names(labels: Sequence[str], *, merge_case: bool = False) -> dict[str, str]:
    """The class of every label that occurs, for a run that learns from them; values are in class order.

    Labels that differ in nothing that can be seen, and numbers of the same value, are one class, and with
    ``merge_case`` also those that differ in case. It is called as it is written most often, a number as it
    is written shortest. Order is that of numbers where all classes are numbers, else alphabetical.
    """
    classes = {label: label for label in dict.fromkeys(labels) if label}
    for group in spellings_of_one_class(Counter(filter(None, labels)), folded if merge_case else spelling):
        numbers = all(number_of(label) for label in group)
        name = min(group, key=lambda label: (len(label), label)) if numbers else next(iter(group))
        classes |= dict.fromkeys(group, name)
    order: Callable[[str], Any] = Decimal if all(map(number_of, classes.values())) else str
    return dict(sorted(classes.items(), key=lambda entry: order(entry[1])))


class LabelMatcher:
    """Finds the class that a label stands for among the classes of a run.

    Exact text comes first, then ``spelling``, then ``folded``. A label that stands for two classes by one of
    these stands for none: a run that tells "US" from "us" knows both, but not "Us".
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Match to the classes called ``names``, in id order."""
        self.names = tuple(names)
        self._exact = {name: i for i, name in enumerate(self.names)}
        self._alike: list[tuple[Callable[[str], str], dict[str, list[int]]]] = []
        for same in (spelling, folded):
            classes: dict[str, list[int]] = defaultdict(list)
            for i, name in enumerate(self.names):
                classes[same(name)].append(i)
            self._alike.append((same, dict(classes)))

    def match(self, label: str) -> int | None:
        """The id of the class; None if there is none, or more than one."""
        candidates = self.candidates(label)
        return candidates[0] if len(candidates) == 1 else None

    def matches(self, labels: Iterable[str]) -> dict[str, int]:
        """The ids of those labels that stand for a class."""
        found = ((label, self.match(label)) for label in labels)
        return {label: number for label, number in found if number is not None}

    def candidates(self, label: str) -> tuple[int, ...]:
        """The ids of all classes that the label may stand for, at the first stage that finds any."""
        if label in self._exact:
            return (self._exact[label],)
        for same, classes in self._alike:
            if found := classes.get(same(label)):
                return tuple(found)
        return ()

    def positions(self, labels: Collection[str]) -> dict[str, int] | None:
        """The class ids that whole numbers count off, from 0 or from 1, where no class is itself a number.

        They count from 0 if 0 is among them, and from 1 if the number of classes is. None where neither is,
        where one goes beyond the classes, or a label is not a whole number.
        """
        numbers = self.class_numbers(labels)
        if numbers is None or not {0, len(self.names)} & set(numbers.values()):
            return None
        first = 0 if 0 in numbers.values() else 1
        if max(numbers.values()) - first >= len(self.names):
            return None
        return {label: number - first for label, number in numbers.items()}

    def class_numbers(self, labels: Collection[str]) -> dict[str, int] | None:
        """The labels as whole numbers; None unless they could count the classes, which have names."""
        if any(map(number_of, self.names)):
            return None
        values = {label: number_of(label) or "" for label in labels}
        if not all(value.isdigit() and len(value) <= _MOST_DIGITS for value in values.values()):
            return None
        numbers = {label: int(value) for label, value in values.items()}
        return numbers if numbers and max(numbers.values()) <= len(self.names) else None


@dataclass(frozen=True)
class UnknownLabel:
    """A label that is not a class of the run.

    Attributes:
        label: as the file has it.
        rows: how many rows have it.
        lines: where the first few of them begin.
        could_be: classes that it could stand for, where these are several.
    """

    label: str
    rows: int
    lines: tuple[int, ...]
    could_be: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The label, its rows and their first lines."""
        lines = "line " if self.rows == 1 else "lines "
        lines += ", ".join(map(str, self.lines)) + (" ..." if self.rows > len(self.lines) else "")
        either = f", which could be {' or '.join(self.could_be)}" if self.could_be else ""
        return f"{visible(self.label)} ({counted(self.rows, 'row')}, {lines}{either})"


@dataclass(frozen=True)
class LabelMatching:
    """How the labels of a file were matched to the classes of a run.

    Attributes:
        rows: of the file.
        unknown: labels that are not classes of the run, the most frequent first.
        policy: what was done with their rows.
        respelled: labels that a class spells differently, and that class.
        positions: where the labels are numbers that count the classes off: the class of each.
        unlabelled: rows without a label, which were left out.
        texts_with_unknown: rows with an unknown label; None where a row has one label.
    """

    rows: int
    unknown: tuple[UnknownLabel, ...] = ()
    policy: UnknownLabels = "error"
    respelled: Mapping[str, str] = field(default_factory=dict)
    positions: Mapping[str, str] = field(default_factory=dict)
    unlabelled: int = 0
    texts_with_unknown: int | None = field(default=None, metadata=OPTIONAL)

    @property
    def unknown_rows(self) -> int:
        """How many rows have an unknown label."""
        if self.texts_with_unknown is not None:
            return self.texts_with_unknown
        return sum(label.rows for label in self.unknown)

    @property
    def counted_wrong(self) -> tuple[str, ...]:
        """The classes beyond those of the run under which unknown labels are counted as errors."""
        if self.policy != "count-wrong" or not self.unknown:
            return ()
        if len(self.unknown) > _MOST_COUNTED:
            return (OTHER_CLASSES,)
        return tuple(label.label for label in self.unknown)

    def notes(self) -> list[str]:
        """What a person should know of it, a sentence each."""
        notes = []
        if self.positions:
            numbers = listed([f"{label} = {name}" for label, name in self.positions.items()])
            notes.append(f"the labels are class numbers, read as {numbers}")
        if self.respelled:
            pairs = listed([f"{visible(label)} as {name}" for label, name in self.respelled.items()])
            notes.append(f"labels spelled differently from the run's classes: {pairs}")
        if self.unlabelled:
            notes.append(f"{counted(self.unlabelled, 'row')} without a label left out")
        if self.unknown:
            done = "are counted as errors" if self.policy == "count-wrong" else "were left out"
            which = listed([f"{visible(label.label)} ({label.rows:,})" for label in self.unknown])
            notes.append(
                f"{self.unknown_rows:,} of {counted(self.rows, 'row')}, whose labels are not classes of the "
                f"run, {done}: {which}"
            )
        return notes


@dataclass(frozen=True)
class MatchedLabels:
    """The labels of a file as ids of a run's classes.

    Attributes:
        ids: int64 (rows,), ids into ``names``; -1 for rows to leave out.
        names: the run's classes, then the unknown ones that are counted as errors.
        matching: how they were matched.
    """

    ids: NDArray[np.int64]
    names: tuple[str, ...]
    matching: LabelMatching


def match_labels(
    labels: Sequence[str],
    lines: Sequence[int],
    names: Sequence[str],
    *,
    source: str,
    unknown_labels: UnknownLabels = "error",
    of_rows: Sequence[int] | None = None,
    rows: int | None = None,
) -> MatchedLabels:
    """Match the label of each row, none of them empty, to the classes of a run called ``names``.

    ``lines`` says where each row begins, ``source`` what the file is called. Where a row may have several,
    ``of_rows`` names the row of each label, and ``rows`` is how many there are. Raises UserError for labels
    that are not among the classes, unless ``unknown_labels`` says what to do with them, and if none is.
    """
    matcher = LabelMatcher(names)
    distinct = dict.fromkeys(labels)
    counted_off = matcher.positions(distinct)
    known = counted_off or matcher.matches(distinct)
    at: dict[str, list[int]] = {label: [] for label in distinct if label not in known}
    for label, line in zip(labels, lines, strict=True):
        if label in at:
            at[label].append(line)
    unknown = [
        UnknownLabel(
            label, len(lines), tuple(lines[:_LINES_SHOWN]), tuple(names[i] for i in matcher.candidates(label))
        )
        for label, lines in at.items()
    ]
    pairs = sorted(known.items(), key=itemgetter(1))
    otherwise = {label: names[i] for label, i in pairs if label != names[i]}
    unknown_in = {row for row, label in zip(of_rows or (), labels, strict=False) if label in at}
    matching = LabelMatching(
        rows=len(labels) if rows is None else rows,
        unknown=tuple(sorted(unknown, key=lambda label: -label.rows)),
        policy=unknown_labels,
        respelled={} if counted_off else otherwise,
        positions=otherwise if counted_off else {},
        texts_with_unknown=None if of_rows is None else len(unknown_in),
    )
    if unknown and (unknown_labels == "error" or not known):
        raise _refusal(matching, matcher, source)
    beyond = matching.counted_wrong
    ids = {label.label: len(names) + at % len(beyond) for at, label in enumerate(matching.unknown) if beyond}
    ids |= known
    return MatchedLabels(np.array([ids.get(label, -1) for label in labels]), (*names, *beyond), matching)


def _refusal(matching: LabelMatching, matcher: LabelMatcher, source: str) -> UserError:
    """The error for labels that are not classes of the run."""
    unknown, classes = matching.unknown, matcher.names
    wrong = f"no label in {source} is a class of the run"
    found = f"{listed(unknown)}; the run's classes are {listed(classes)}"
    fix = "name the column that holds the class with --label, or write the run's classes into the file"
    numbers = matcher.class_numbers([label.label for label in unknown]) or {}
    if matching.unknown_rows < matching.rows:
        wrong = (
            f"{matching.unknown_rows:,} of {counted(matching.rows, 'row')} in {source} have labels that "
            "are not classes of the run"
        )
        fix = (
            "correct these labels, name the column that holds the class with --label, or go on with "
            "--unknown-labels drop (leaves these rows out) or count-wrong (evaluate counts them as errors)"
        )
    elif numbers and not {0, len(classes)} & set(numbers.values()):
        wrong = f"the labels of {source} are numbers, and it is not clear which classes they stand for"
        found += f"; without 0 or {len(classes)} among them they may count from 0 or from 1"
        fix = "write the names of the classes into the file"
    joined = joined_labels([label.label for label in unknown], classes)
    if matching.texts_with_unknown is not None and joined:
        separator = shown_separator(next(iter(joined)))
        fix = f"say what is between two labels of a cell: --label-separator {separator}"
    return UserError(wrong, found=found, fix=fix)


@dataclass(frozen=True)
class LabelFault:
    """Something wrong with the labels of a file.

    Attributes:
        wrong: what it is.
        labels: those it concerns, with their rows.
        fix: how to put it right.
        odd: those of the labels whose rows are to be looked at.
        lines: where the first hundred of these rows begin, if they were looked up.
    """

    wrong: str
    labels: Mapping[str, int]
    fix: str
    odd: tuple[str, ...] = ()
    lines: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, counts: Mapping[str, int], labels: Sequence[str], wrong: str, fix: str, right: int = 0
    ) -> Self:
        """The fault of these labels, which occur so many times; the first ``right`` of them are not odd."""
        return cls(wrong, {label: counts[label] for label in labels}, fix, tuple(labels[right:]))

    def at(self, lines: Sequence[int], labels: Sequence[str]) -> Self:
        """The fault with the lines of its rows; both arguments have one entry a row."""
        odd = set(self.odd)
        found = dict.fromkeys(line for line, label in zip(lines, labels, strict=True) if label in odd)
        return replace(self, lines=tuple(islice(found, _LINES_KEPT)))

    def __str__(self) -> str:
        """What is wrong, and with which labels; of many, the first."""
        which = [f"{visible(label)} ({counted(rows, 'row')})" for label, rows in self.labels.items()]
        return f"{self.wrong}: {listed(which, _FAULTY_SHOWN)}" if which else self.wrong


def label_faults(counts: Mapping[str, int], column: str) -> list[LabelFault]:
    """What is wrong with labels that occur so many times in the column of that name."""
    rows, joined = sum(counts.values()), joined_labels(counts)
    most = rows * _FREE_TEXT_SHARE
    if rows >= _FREE_TEXT_ROWS and len(counts) > most and not _are_few_when_split(counts, joined, most):
        wrong = f"{len(counts):,} classes in {rows:,} rows: {column!r} looks like free text or row numbers"
        return [LabelFault(wrong, {}, "name the column that holds the class with --label")]
    several = "write it in one way, or train with --set data.merge_case=true, which reads them as one class"
    spellings = [
        LabelFault.of(counts, list(group), "one class in several spellings", several, right=1)
        for group in spellings_of_one_class(counts)
    ]
    others = (
        (
            [label for label in counts if label.strip().casefold() in _MISSING],
            "a class that looks like a missing label",
            "leave these rows out or label them; if it is a class, give it another name",
        ),
        (
            [label for label in counts if canonical(label) == canonical(column)],
            "the header repeated as a row, which makes the column's name a class",
            "delete these lines",
        ),
    )
    found = [LabelFault.of(counts, labels, wrong, fix) for labels, wrong, fix in others if labels]
    for separator, labels in joined.items():
        fix = f"if a text may have several labels, say so: --label-separator {shown_separator(separator)}"
        fix += "; else keep one label in each row"
        found.append(LabelFault.of(counts, labels, "labels that look like several in one", fix))
    return [*spellings, *found]


def _are_few_when_split(counts: Collection[str], joined: Mapping[str, Collection[str]], most: float) -> bool:
    """Whether most cells are several labels joined by one separator, of which there are at most so many."""
    usual = [separator for separator, labels in joined.items() if 2 * len(labels) > len(counts)]
    return any(
        len({folded(part) for label in counts for part in label.split(each)}) <= most for each in usual
    )


def joined_labels(labels: Collection[str], known: Collection[str] = ()) -> dict[str, list[str]]:
    """By separator the labels made of several: their parts are ``known``, labels, or parts of other ones."""
    whole = set(map(folded, (*labels, *known)))
    found: dict[str, list[str]] = {}
    for separator in _SEPARATORS:
        parts = {
            label: [part for part in map(folded, label.split(separator)) if part]
            for label in labels
            if separator in label
        }
        among = Counter(part for each in parts.values() for part in set(each))
        every: Callable[[Iterable[object]], bool] = all if separator in _ONLY_BETWEEN_KNOWN else any
        joined = [
            label
            for label, each in parts.items()
            if len(each) > 1 and every(part in whole or among[part] > 1 for part in each)
        ]
        if joined:
            found[separator] = joined
    return found


def shown_separator(separator: str) -> str:
    r"""A separator as one types it in a shell; ``\n`` and ``\t`` are understood."""
    return shlex.quote(separator.replace("\n", "\\n").replace("\t", "\\t"))
