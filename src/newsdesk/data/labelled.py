"""Labelled rows: the labels of a table's rows, one or several each, and the rows as examples."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from newsdesk.data.columns import TextLayout, by_position, existing_column, label_column, text_layout
from newsdesk.data.examples import Examples
from newsdesk.data.fields import SUBJECTS, parsed
from newsdesk.data.growing import with_new_classes
from newsdesk.data.labels import (
    LabelMatcher,
    LabelMatching,
    MatchedLabels,
    UnknownLabels,
    class_names,
    is_list,
    labels_in,
    match_labels,
    number_of,
    shown_separator,
)
from newsdesk.data.news import labels_of_subjects
from newsdesk.data.table import AG_NEWS_COLUMNS, Cell, Fault, Table, canonical
from newsdesk.errors import UserError, counted, listed

Task = Literal["auto", "single", "multi"]
"""Whether a text has one label or may have several; auto: what the file shows, and what is said of it."""

LabelSet = tuple[str, ...]
"""The labels of one row, by name, without repetition."""

AG_NEWS_LABELS = ("World", "Sports", "Business", "Sci/Tech")
"""The classes of AG News (Zhang et al., 2015) in id order; its files count them from 1."""

_MOST_CLASSES = 10_000
_CHOOSE_ONE = "keep one label in each row, or train with --task multi, which learns several labels a text"
_CHOOSE_A_SUBJECT = (
    "name a rule that leaves one: the first (--label 'subject.0.name'), those of a scheme "
    "(--label 'subject[scheme=medtop].name'), IPTC's top level (--label 'subject[level=1].name'); "
    "or train with --task multi, which learns several labels a text"
)
_MARKS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}
"""What a cell of a 0/1 column may hold."""
_LISTS = (list, tuple)


@dataclass(frozen=True)
class LabelFormat:
    """How a file writes labels, as flags or a recipe state it.

    Attributes:
        column: the one that holds them; None: recognised.
        separator: between the labels of a cell; None: several labels of a cell are a list.
        columns: instead of one, 0/1 columns that are called as the labels are.
        task: whether a text may have several labels.
    """

    column: str | None = None
    separator: str | None = None
    columns: tuple[str, ...] = ()
    task: Task = "auto"

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be meant together."""
        flags = [] if self.separator is None else [f"--label-separator {self.separator!r}"]
        flags += [f"--label-columns {','.join(self.columns)}"] if self.columns else []
        if self.separator == "":
            raise UserError(
                "the separator of labels is empty",
                found=flags[0],
                fix="give what is between two labels of a cell, for example --label-separator ';'",
            )
        if len(flags) > 1:
            raise UserError(
                "labels are in one column with a separator, or in 0/1 columns, not in both",
                found=" and ".join(flags),
                fix="leave out one of the two",
            )
        if self.columns and self.column is not None:
            raise UserError(
                "labels are in one column, or in 0/1 columns, not in both",
                found=f"--label {self.column} and {flags[0]}",
                fix="leave out one of the two",
            )
        if twice := [name for place, name in enumerate(self.columns) if name in self.columns[:place]]:
            raise _named_twice(twice[0])
        if flags and self.task == "single":
            raise UserError(
                "where a text has one class, there are no several labels to tell apart",
                found=f"{flags[0]}, and the task is single",
                fix="leave it out, or train with --task multi, which learns several labels a text",
            )

    @classmethod
    def of(
        cls,
        label: str | None = None,
        label_separator: str | None = None,
        label_columns: Sequence[str] | None = None,
        task: Task = "auto",
    ) -> LabelFormat:
        r"""By the arguments of functions and flags; the separator may be written ``\n`` or ``\t``."""
        if label_separator is not None:
            label_separator = label_separator.replace("\\n", "\n").replace("\\t", "\t")
        return cls(label, label_separator, tuple(label_columns or ()), task)


def _named_twice(column: str) -> UserError:
    return UserError(
        "a label column is named twice", found=repr(column), fix="name each one once with --label-columns"
    )


@dataclass(frozen=True)
class TableLabels:
    """The labels of a table's rows.

    Attributes:
        sets: of each row; empty where a cell has none, or is at fault.
        is_multi: whether a row may have several.
        columns: where they are: one column, or a 0/1 column for each label.
        declared: the classes that the file itself declares, in id order; empty where it declares none.
        faults: of cells that do not hold labels, in line order.
    """

    sets: tuple[LabelSet, ...]
    is_multi: bool
    columns: tuple[str, ...]
    declared: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()

    def flat(self) -> list[tuple[int, str]]:
        """Each row's position with each of its labels, in row order."""
        return [(row, label) for row, labels in enumerate(self.sets) for label in labels]

    def names(self) -> list[str]:
        """Each row's labels, in row order, then those that a column alone names."""
        return [label for _, label in self.flat()] + (list(self.columns) if len(self.columns) > 1 else [])


def table_labels(table: Table, form: LabelFormat, text: Sequence[str] = ()) -> TableLabels | None:
    """The labels of every row, as the file itself names them; None where no column holds any.

    Numbers that the file says are ids (official AG News, the Hub's parquet) come out as the names they stand
    for. ``text`` are the columns of the text. Raises UserError for columns that are missing or ambiguous.
    """
    if form.columns:
        columns = tuple(existing_column(table, name, "--label-columns") for name in form.columns)
        if twice := [name for place, name in enumerate(columns) if name in columns[:place]]:
            raise _named_twice(twice[0])
        sets, faults = _marked(table, columns)
        return TableLabels(sets, True, columns, faults=faults)
    column = label_column(table, form.column, text)
    if column is None:
        return None
    is_multi = form.task == "multi" or form.separator is not None
    if form.task == "auto" and not is_multi:
        is_multi = any(len(labels) > 1 for labels in _lists(table, column))
    sets, faults = _label_sets(table, column, form.separator, several=is_multi)
    return TableLabels(sets, is_multi, (column,), _declared_names(table, column)[0], faults)


def labels_with_faults(table: Table, column: str) -> tuple[tuple[str, ...], tuple[Fault, ...]]:
    """The one label of every row, empty for rows without one; as faults, cells without a single label."""
    sets, faults = _label_sets(table, column, None, several=False)
    return tuple("".join(labels) for labels in sets), faults


def to_examples(
    table: Table,
    layout: TextLayout | None = None,
    *,
    label: str | None = None,
    label_separator: str | None = None,
    label_columns: Sequence[str] | None = None,
    task: Task = "auto",
    label_names: Sequence[str] | None = None,
    labelled: bool | None = None,
    unknown_labels: UnknownLabels = "error",
    merge_case: bool = False,
    growing: bool = False,
) -> Examples:
    """A table's rows as examples, their texts by ``layout``, or by the columns that have usual names.

    ``label``, ``label_separator``, ``label_columns`` and ``task`` say how labels are written: see
    `LabelFormat`. Labels become ids in ``label_names``, the classes of a run, as ``match_labels`` says, and
    so does ``unknown_labels``; where ``growing``, others become classes after these. Without ``label_names``,
    the file's own classes are taken: AG News' four for its official layout (class_index from 1), those a
    parquet file declares, else the labels themselves as ``class_names`` says, and so does ``merge_case``.
    ``labelled`` True demands classes, False ignores them, None takes what is there.

    Raises UserError for columns that are missing or ambiguous, a table without rows, labels that are not
    among the classes, and, where a text has one label, rows without one among labelled ones or with several.
    """
    form = LabelFormat.of(label, label_separator, label_columns, task)
    if not len(table) and labelled is not False:
        raise UserError(
            f"{table.path.name} holds no rows",
            found="a header and nothing below",
            fix="check how it was made",
        )
    layout = layout or text_layout(table, label=label, label_columns=label_columns)
    texts = layout.texts(table)
    found = None if labelled is False else table_labels(table, form, layout.text_columns)
    if found is not None:
        _require_usable(table, found)
    if found is None or not any(found.sets):
        if labelled:
            raise _no_labels(table, found)
        return Examples(texts, None, (), str(table.path))
    if not found.is_multi and not all(found.sets) and (label_names is None or unknown_labels != "drop"):
        without = [row for row, labels in enumerate(found.sets) if not labels]
        raise UserError(
            f"{table.path.name}, line {table.lines[without[0]]}: the row has no label",
            found=f"{len(without):,} such rows among {len(found.sets):,}",
            fix="label these rows, or leave them out, as --unknown-labels drop does of rows to measure",
        )
    if label_names is None:
        return _examples(table, texts, found, _own_classes(found, merge_case=merge_case))
    found = replace(found, sets=_as_learned(table, found, label_names))
    known = with_new_classes(found.names(), label_names, merge_case=merge_case) if growing else label_names
    return _examples(table, texts, found, _matched(table, found, known, unknown_labels))


def _matched(
    table: Table, found: TableLabels, label_names: Sequence[str], unknown_labels: UnknownLabels
) -> MatchedLabels:
    flat = found.flat()
    return match_labels(
        [label for _, label in flat],
        [table.lines[row] for row, _ in flat],
        label_names,
        source=table.path.name,
        unknown_labels=unknown_labels,
        of_rows=[row for row, _ in flat] if found.is_multi else None,
        rows=len(table) if found.is_multi else None,
    )


def _examples(table: Table, texts: Sequence[str], found: TableLabels, matched: MatchedLabels) -> Examples:
    """The rows with their labels as ids; without those whose labels were not matched, and were dropped."""
    rows = np.array([row for row, _ in found.flat()], dtype=np.int64)
    known, source = matched.ids >= 0, str(table.path)
    if found.is_multi:
        sets = np.zeros((len(texts), len(matched.names)), dtype=np.bool_)
        sets[rows[known], matched.ids[known]] = True
        examples = Examples(tuple(texts), sets, matched.names, source, matched.matching)
        return examples if known.all() else examples.select(np.setdiff1d(np.arange(len(texts)), rows[~known]))
    matching = replace(matched.matching, unlabelled=len(texts) - len(rows))
    of_labels = tuple(texts[row] for row in rows)
    return Examples(of_labels, matched.ids, matched.names, source, matching).select(np.flatnonzero(known))


def _require_usable(table: Table, found: TableLabels) -> None:
    """Raise UserError for the first fault among the labels, and for too many classes."""
    if found.faults:
        raise found.faults[0].error(table.path, others=len(found.faults) - 1)
    distinct = {label for labels in found.sets for label in labels}
    if len(distinct) > _MOST_CLASSES:
        raise UserError(
            f"there are too many classes in {table.path.name}",
            found=f"{len(distinct):,} labels in {len(table):,} rows of the column {found.columns[0]!r:.80}, "
            f"where at most {_MOST_CLASSES:,} can be learned",
            fix="name the column that holds the class with --label, or merge classes",
        )


def _no_labels(table: Table, found: TableLabels | None) -> UserError:
    empty = ""
    if found is not None:
        several = len(found.columns) > 1
        empty = f"; {'no' if several else 'every'} cell of {listed(found.columns)} is "
        empty += "1" if several else "empty"
    return UserError(
        f"{table.path.name} has no labels",
        found=f"columns {', '.join(table.columns)}{empty}",
        fix="name the column that holds the class, for example --label topic" + by_position(table),
    )


def _as_learned(table: Table, found: TableLabels, label_names: Sequence[str]) -> tuple[LabelSet, ...]:
    """The labels of each row; as numbers where the file declares classes, but the run learned numbers."""
    declared, first = _declared_names(table, found.columns[0])
    numbers = set(map(str, range(first, first + len(declared))))
    if not found.declared or set(map(number_of, label_names)) != numbers:
        return found.sets
    cells = zip(table.column(found.columns[0]), found.sets, strict=True)
    return tuple(tuple(dict.fromkeys(labels_in(cell))) if labels else () for cell, labels in cells)


def _own_classes(found: TableLabels, *, merge_case: bool) -> MatchedLabels:
    """The labels of a file whose classes nothing else names."""
    labels, names = [label for _, label in found.flat()], found.names()
    classes = {name: name for name in found.declared} or class_names(names, merge_case=merge_case)
    number = {name: i for i, name in enumerate(dict.fromkeys(classes.values()))}
    ids = np.array([number[classes[label]] for label in labels], dtype=np.int64)
    respelled = {label: name for label, name in classes.items() if label != name}
    return MatchedLabels(ids, tuple(number), LabelMatching(len(found.sets), respelled=respelled))


def rewritten_cells(
    table: Table,
    form: LabelFormat,
    found: TableLabels,
    names: Mapping[str, str],
    sets: Mapping[int, Collection[str]],
) -> dict[int, dict[str, Cell]]:
    """The cells that give rows other labels, by row and column, each label as the file first writes it.

    ``found`` are the table's labels, of several a row; ``names`` says which are called otherwise in ``sets``.
    """
    if form.columns:
        cells: dict[int, dict[str, Cell]] = {row: {} for row in sets}
        for column in found.columns:
            held = table.column(column)
            marks: dict[bool | None, Cell] = {_mark(cell): cell for cell in reversed(held)}
            usual: Any = next(filter(None, held), 1)
            for row, labels in sets.items():
                wanted = names.get(column, column) in labels
                if wanted != _mark(held[row]):
                    cells[row][column] = marks.get(wanted, type(usual)(wanted))
        return cells
    (column,) = found.columns
    held, written = table.column(column), dict[str, Cell]()
    for cell, labels in zip(reversed(held), reversed(found.sets), strict=True):
        parts = _parts(cell, form.separator)
        if len(parts) == len(labels):
            written.update(zip((names.get(label, label) for label in labels), parts, strict=True))
    lists = any(isinstance(cell, _LISTS) for cell in held)

    def cell_of(labels: Collection[str]) -> Cell:
        parts = [written.get(label, label) for label in labels]
        if lists:
            return parts
        if form.separator is not None and not any(form.separator in str(part) for part in parts):
            return form.separator.join(map(str, parts))
        return str(parts[0]) if len(parts) == 1 else json.dumps(parts, ensure_ascii=False)

    return {row: {column: cell_of(labels)} for row, labels in sets.items()}


def _parts(cell: Cell, separator: str | None) -> list[Cell]:
    """The labels of a cell as it writes them, without repetition."""
    if isinstance(cell, str) and separator is not None and not is_list(cell):
        return list(dict.fromkeys(filter(None, map(str.strip, cell.split(separator)))))
    entries = cell if isinstance(cell, _LISTS) else labels_in(cell)
    return list({label: entry for entry in entries for label in labels_in(entry)}.values())


# --- cells


def _marked(table: Table, columns: Sequence[str]) -> tuple[tuple[LabelSet, ...], tuple[Fault, ...]]:
    """The labels whose 0/1 columns are 1, row by row, and the cells that are neither."""
    sets: list[LabelSet] = []
    faults: list[Fault] = []
    for line, cells in zip(table.lines, zip(*map(table.column, columns), strict=True), strict=True):
        marks = [_mark(cell) for cell in cells]
        if None in marks:
            place = marks.index(None)
            wrong = f"the label column {columns[place]!r} holds neither 0 nor 1"
            fix = "write 1 where the text has the label, else 0 (or true and false, yes and no, nothing)"
            faults.append(Fault(line, wrong, f"{cells[place]!r:.80}", fix))
            marks = []
        sets.append(tuple(name for name, mark in zip(columns, marks, strict=False) if mark))
    return tuple(sets), tuple(faults)


def _mark(cell: Cell) -> bool | None:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return False
    text = str(cell).strip().casefold()
    return _MARKS.get(number_of(text) or text)


def _label_sets(
    table: Table, column: str, separator: str | None, *, several: bool
) -> tuple[tuple[LabelSet, ...], tuple[Fault, ...]]:
    """The labels of every row; cells without labels of a class are left empty and returned as faults."""
    declared, first = _declared_names(table, column)
    matcher = LabelMatcher(declared)
    sets, faults = [], []
    for line, cell in zip(table.lines, table.column(column), strict=True):
        labels = _labels_of_cell(line, cell, column, separator)
        if not isinstance(labels, Fault) and len(labels) > 1 and not several:
            fix = _CHOOSE_A_SUBJECT if is_of_subjects(column) else _CHOOSE_ONE
            labels = Fault(line, "the row has several labels", listed(labels), fix)
        if declared and not isinstance(labels, Fault):
            is_id = not isinstance(cell, str) and not any(isinstance(each, str) for each in _entries(cell))
            labels = _declared_labels(line, labels, matcher, first, is_id=is_id)
        if isinstance(labels, Fault):
            faults.append(labels)
            labels = ()
        sets.append(labels)
    return tuple(sets), tuple(faults)


def _labels_of_cell(line: int, cell: Cell, column: str, separator: str | None) -> LabelSet | Fault:
    try:
        if separator is not None and isinstance(cell, str) and not is_list(cell):
            return tuple(dict.fromkeys(filter(None, map(str.strip, cell.split(separator)))))
        return tuple(dict.fromkeys(labels_in(labels_of_subjects(cell) if is_of_subjects(column) else cell)))
    except ValueError as error:
        return Fault(line, "the label is neither text nor a number", str(error), "write the class as text")


def is_of_subjects(column: str) -> bool:
    """Whether a column holds subjects of news items, or is a path into them."""
    return parsed(column)[0] in SUBJECTS


def _entries(cell: Cell) -> Sequence[Cell]:
    return cell if isinstance(cell, list | tuple) else ()


def _lists(table: Table, column: str) -> Iterator[LabelSet]:
    """The labels of those cells that are lists."""
    for cell in table.column(column):
        if is_list(cell):
            labels = _labels_of_cell(0, cell, column, None)
            yield () if isinstance(labels, Fault) else labels


def _declared_labels(
    line: int, labels: LabelSet, matcher: LabelMatcher, first: int, *, is_id: bool
) -> LabelSet | Fault:
    """The classes that labels name or count; -1 is how the Hub marks the rows of unlabelled test sets."""
    found: dict[str, None] = {}
    for label in labels:
        named = "" if label == "-1" else _declared_label(line, label, matcher, first, is_id=is_id)
        if isinstance(named, Fault):
            return named
        found[named] = None
    return tuple(filter(None, found))


def _declared_label(line: int, label: str, matcher: LabelMatcher, first: int, *, is_id: bool) -> str | Fault:
    """The class that a label names or counts, of classes whose numbers begin with ``first``.

    A number in the file (``is_id``) counts even where classes are called by numbers; a text may be a name.
    """
    number = number_of(label)
    if (is_id or label not in matcher.names) and number is not None and number.isdigit() and len(number) < 10:
        position = int(number) - first
        if 0 <= position < len(matcher.names):
            return matcher.names[position]
    found = matcher.match(label)
    if found is not None:
        return matcher.names[found]
    numbered = [f"{number} {name}" for number, name in enumerate(matcher.names, start=first)]
    return Fault(
        line,
        f"the label {label!r} is not one of the classes that the file declares",
        f"the classes are {listed(numbered)}",
        "correct the label, or name the column that holds the class with --label",
    )


def _declared_names(table: Table, column: str) -> tuple[LabelSet, int]:
    """The class names that the file's layout fixes for a column, and the number of the first."""
    if canonical(column) == AG_NEWS_COLUMNS[0] and {canonical(c) for c in table.columns} & set(
        AG_NEWS_COLUMNS[1:]
    ):
        return AG_NEWS_LABELS, 1
    return tuple(table.class_names.get(column, ())), 0


def task_notes(table: Table, form: LabelFormat, train: Examples, column: str) -> list[str]:
    """What was decided on the labels of training rows, a sentence each; none where it goes without saying."""
    if not train.is_multi:
        lists = form.task == "auto" and not table.news and any(True for _ in _lists(table, column))
        return [_LISTS_OF_ONE.format(column)] if lists else []
    assert train.labels is not None
    why = f"lists in {column!r}"
    if form.columns:
        why = counted(len(form.columns), "label column")
    elif form.separator is not None:
        why = f"--label-separator {shown_separator(form.separator)}"
    elif form.task == "multi":
        why = "data.task = multi"
    each = train.labels.sum(axis=1)
    notes = [
        f"a text may have several labels ({why}): {each.mean():.2f} on average, {each.max():,} at most, "
        f"{counted(int((each == 0).sum()), 'text')} without any"
    ]
    if absent := [name for name, rows in zip(train.label_names, train.label_rows(), strict=True) if not rows]:
        notes.append(f"no row has {counted(len(absent), 'label')}, which cannot be learned: {listed(absent)}")
    return notes


_LISTS_OF_ONE = (
    "each list in {!r} has one label: one class a text is learned; where texts may have several: --task multi"
)
