"""Columns: which of a table's are the text and which one is the class, and its rows as examples."""

from __future__ import annotations

import math
import re
import shlex
import string
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from newsdesk.data.dialect import fields_of, looks_like_labels, same_name
from newsdesk.data.examples import Examples
from newsdesk.data.fields import NEWS_FIELDS, SUBJECTS, parsed, value_at, walked
from newsdesk.data.labels import (
    LabelMatcher,
    LabelMatching,
    MatchedLabels,
    UnknownLabels,
    class_names,
    labels_in,
    match_labels,
    number_of,
)
from newsdesk.data.news import labels_of_subjects
from newsdesk.data.table import (
    AG_NEWS_COLUMNS,
    LABEL_COLUMNS,
    LONGEST_TEXT,
    TEXT_COLUMNS,
    Cell,
    Fault,
    Table,
    canonical,
)
from newsdesk.data.words import normalise
from newsdesk.errors import UserError, listed

_MOST_CLASSES = 10_000
NEWS_TEXT = ("headline", "body")
"""The text columns of news items, whatever their format."""

_CHOOSE_A_SUBJECT = (
    "name a rule that leaves one: the first (--label 'subject.0.name'), those of a scheme "
    "(--label 'subject[scheme=medtop].name'), IPTC's top level (--label 'subject[level=1].name')"
)

AG_NEWS_LABELS = ("World", "Sports", "Business", "Sci/Tech")
"""The classes of AG News (Zhang et al., 2015) in id order; its files count them from 1."""


@dataclass(frozen=True)
class TextLayout:
    """How a row becomes one text; what a run must remember to read later files in the same way.

    Attributes:
        text_columns: the columns that the text is made of, in order.
        template: a text with column names in braces, as ``{title}. {description}``; None joins the cells
            that are not empty by single spaces.
        normaliser: name of the normaliser that every cell passes through first.
    """

    text_columns: tuple[str, ...]
    template: str | None = None
    normaliser: str = "none"

    def __post_init__(self) -> None:
        """Raise UserError for a template or normaliser that cannot be used."""
        normalise("", self.normaliser)
        if self.template is not None:
            _template_parts(self.template, self.text_columns)

    def text_of(self, line: int, record: Mapping[str, Cell]) -> str | Fault:
        """The text of the row in that line, given as column name to cell; its fault where one holds no text.

        Raises UserError if a column is missing.
        """
        cells = {}
        for column in self.text_columns:
            cell = value_at(record, column)
            if cell is None and column not in record and not _may_be_nested(column, record):
                raise _no_such_column(column, list(record), "--text")
            if cell is None or (isinstance(cell, float) and math.isnan(cell)):
                cell = ""
            if not isinstance(cell, str | int | float):
                fix = "name the text columns, for example --text title,description"
                found = f"a value of type {type(cell).__name__}"
                return Fault(line, f"column {column!r} holds no text", found, fix)
            cells[column] = normalise(str(cell), self.normaliser).strip()
        if self.template is None:
            text = " ".join(filter(None, cells.values()))
        else:
            parts = _template_parts(self.template, self.text_columns)
            text = "".join(literal + (cells[column] if column else "") for literal, column in parts).strip()
        if len(text) > LONGEST_TEXT:
            found = f"{len(text):,} characters, where at most {LONGEST_TEXT:,} are read"
            return Fault(line, "the text is too long", found, "cut its cells")
        return text

    def texts(self, table: Table) -> tuple[str, ...]:
        """The text of every row. Raises UserError, by line, for a cell that holds no text."""
        texts = []
        parts = dict.fromkeys(NEWS_FIELDS) if table.news else {}
        for line, record in zip(table.lines, table.records(), strict=True):
            text = self.text_of(line, {**parts, **record})
            if isinstance(text, Fault):
                raise text.error(table.path)
            texts.append(text)
        return tuple(texts)

    def for_table(
        self, table: Table, *, text: Sequence[str] | None = None, template: str | None = None
    ) -> TextLayout:
        """The layout that ``text`` and ``template`` name, else this one where the table has its columns.

        Else the table's own: so a run trained on titles and descriptions still predicts from a plain list
        of headlines. The title of a news item is its headline. The normaliser is always this one's. Raises
        UserError if the table has neither these columns nor usual ones.
        """
        if not (text or template):
            is_title = [bool(table.news) and canonical(column) == "title" for column in self.text_columns]
            columns = ["headline" if is_title[i] else each for i, each in enumerate(self.text_columns)]
            found = [column_named(table, column) for column in columns]
            if found == list(self.text_columns):
                return self
            if self.template is None and None not in found:
                return replace(self, text_columns=tuple(filter(None, found)))
        return text_layout(table, text=text, template=template, normaliser=self.normaliser)


def text_layout(
    table: Table,
    *,
    text: Sequence[str] | None = None,
    label: str | None = None,
    template: str | None = None,
    normaliser: str = "none",
) -> TextLayout:
    """The layout of a table's text: the columns of ``text``, else those of the template, else the usual ones.

    ``label`` names a column that is not text even if it is called so. Raises UserError when a column is
    missing or none has a usual name (title, headline, text, description, content ...).
    """
    columns = tuple(_existing(table, column, "--text") for column in text or ())
    if not columns and template is not None:
        nested = [name for name in fields_of(template) if column_named(table, name) == name]
        parts = _template_parts(template, (*table.columns, *nested))
        columns = tuple(dict.fromkeys(name for _, name in parts if name))
    if not columns and table.news:
        columns = NEWS_TEXT
    if not columns:
        other = None if label is None else column_named(table, label)
        columns = tuple(c for c in table.columns if canonical(c) in TEXT_COLUMNS and c != other)
    if not columns and len(table.columns) == 1:
        columns = table.columns
    if not columns:
        raise UserError(
            f"which column of {table.path.name} holds the text?",
            found=listed(table.columns) or "no columns",
            fix=f"name the text columns, for example {_flags_for(table)}{_by_position(table)}",
        )
    return TextLayout(columns, template, normaliser)


def column_named(table: Table, name: str) -> str | None:
    """The column that is called so, else (``2``, ``column_2``) the one in that place, from 1; None: neither.

    A name may be written with composed or decomposed accents, and may be a path that leads to something in
    one row at least, or a part of a news item (see `fields.value_at`).
    """
    if name in table.columns:
        return name
    for column in table.columns:
        if same_name(column, name):
            return column
    place = re.fullmatch(r"(?:column_)?([1-9]\d{0,3})", name)
    if place and int(place[1]) <= len(table.columns):
        return table.columns[int(place[1]) - 1]
    if table.news and name in NEWS_FIELDS:
        return name
    if not _may_be_nested(name, (*table.columns, *(NEWS_FIELDS if table.news else ()))):
        return None
    if not len(table):  # of a stream, whose rows are still to come
        return name if table.dialect is None or table.dialect.delimiter is None else None
    return name if any(value_at(record, name) is not None for record in table.records()) else None


def _may_be_nested(name: str, columns: Container[str]) -> bool:
    """Whether a name is a path into one of the columns."""
    head, steps = parsed(name)
    return bool(steps) and head in columns


def label_column(table: Table, label: str | None = None, text: Sequence[str] = ()) -> str | None:
    """The column that holds the class: ``label``, else what the file declares, else one with a usual name.

    Returns None if there is none. Raises UserError if ``label`` is no column or several qualify.
    """
    if label is not None:
        return _existing(table, label, "--label")
    if table.class_column is not None and table.class_column not in text:
        return table.class_column
    usual = [c for c in table.columns if canonical(c) in LABEL_COLUMNS and c not in text]
    if table.news and "subject" not in text and (not len(table) or any(table.column("subject"))):
        usual.append("subject")
    exact = [c for c in usual if canonical(c) == "label"]
    if len(usual) > 1 and len(exact) != 1:
        raise UserError(
            f"several columns of {table.path.name} could be the class",
            found=", ".join(usual),
            fix=f"name the one you mean, for example --label {usual[0]}",
        )
    return next(iter(exact or usual), None)


def to_examples(
    table: Table,
    layout: TextLayout | None = None,
    *,
    label: str | None = None,
    label_names: Sequence[str] | None = None,
    labelled: bool | None = None,
    unknown_labels: UnknownLabels = "error",
    merge_case: bool = False,
) -> Examples:
    """A table's rows as examples, their texts by ``layout``, or by the columns that have usual names.

    Labels become ids in ``label_names``, the classes of a run, as ``match_labels`` says, and so does
    ``unknown_labels``. Without ``label_names``, the file's own classes are taken: AG News' four for its
    official layout (class_index from 1), those a parquet file declares, else the labels themselves as
    ``class_names`` says, and so does ``merge_case``. ``labelled`` True demands classes, False ignores them,
    None takes what is there.

    Raises UserError for columns that are missing or ambiguous, a table without rows, rows without a label
    among labelled ones, rows with several, and labels that are not among the classes.
    """
    if not len(table) and labelled is not False:
        raise UserError(
            f"{table.path.name} holds no rows",
            found="a header and nothing below",
            fix="check how it was made",
        )
    layout = layout or text_layout(table, label=label)
    texts, source = layout.texts(table), str(table.path)
    column = None if labelled is False else label_column(table, label, layout.text_columns)
    labels = () if column is None else labels_of(table, column)
    if column is None or not any(labels):
        if labelled:
            raise UserError(
                f"{table.path.name} has no labels",
                found=f"columns {', '.join(table.columns)}"
                + (f"; every cell of {column} is empty" if column else ""),
                fix="name the column that holds the class, for example --label topic" + _by_position(table),
            )
        return Examples(texts, None, (), source)
    if not all(labels) and (label_names is None or unknown_labels != "drop"):
        raise UserError(
            f"{table.path.name}, line {table.lines[labels.index('')]}: the row has no label",
            found=f"{labels.count(''):,} such rows among {len(labels):,}",
            fix="label these rows, or leave them out, as --unknown-labels drop does of rows to measure",
        )
    if label_names is None:
        own = _own_classes(labels, _declared_names(table, column)[0], merge_case=merge_case)
        return Examples(texts, own.ids, own.names, source, own.matching)
    kept = [row for row, label in enumerate(labels) if label]
    matched = match_labels(
        _as_learned(table, column, labels, label_names, kept),
        [table.lines[row] for row in kept],
        label_names,
        source=table.path.name,
        unknown_labels=unknown_labels,
    )
    matching = replace(matched.matching, unlabelled=len(labels) - len(kept))
    examples = Examples(tuple(texts[row] for row in kept), matched.ids, matched.names, source, matching)
    return examples.select(np.flatnonzero(matched.ids >= 0))


def _require_few_classes(table: Table, column: str, labels: Sequence[str]) -> None:
    if (distinct := len(set(labels))) > _MOST_CLASSES:
        raise UserError(
            f"there are too many classes in {table.path.name}",
            found=f"{distinct:,} labels in {len(labels):,} rows of the column {column!r:.80}, where at most "
            f"{_MOST_CLASSES:,} can be learned",
            fix="name the column that holds the class with --label, or merge classes",
        )


def _as_learned(
    table: Table, column: str, labels: Sequence[str], label_names: Sequence[str], rows: Sequence[int]
) -> list[str]:
    """The labels of these rows: numbers where a file declares classes, but the run learned from numbers."""
    declared, first = _declared_names(table, column)
    if declared and set(map(number_of, label_names)) == set(map(str, range(first, first + len(declared)))):
        cells = table.column(column)
        return ["".join(labels_in(cells[row])) for row in rows]
    return [labels[row] for row in rows]


def labels_of(table: Table, column: str) -> tuple[str, ...]:
    """The label of every row by name, as the file itself names it; empty for rows without one.

    Numbers that the file says are ids (official AG News, the Hub's parquet) come out as the names they
    stand for. Raises UserError, by line, for a number beyond them, and for too many classes.
    """
    labels, faults = labels_with_faults(table, column)
    if faults:
        raise faults[0].error(table.path, others=len(faults) - 1)
    _require_few_classes(table, column, labels)
    return labels


def labels_with_faults(table: Table, column: str) -> tuple[tuple[str, ...], tuple[Fault, ...]]:
    """As ``labels_of``, but cells without a single label of a class are left empty and returned as faults."""
    declared, first = _declared_names(table, column)
    matcher = LabelMatcher(declared)
    labels, faults = [], []
    for line, cell in zip(table.lines, table.column(column), strict=True):
        label = _single_label(line, cell, column)
        if declared and label == "-1":  # how the Hub marks the rows of unlabelled test sets
            label = ""
        elif declared and label and isinstance(label, str):
            label = _declared_label(line, label, matcher, first, is_id=not isinstance(cell, str))
        if isinstance(label, Fault):
            faults.append(label)
            label = ""
        labels.append(label)
    return tuple(labels), tuple(faults)


def _single_label(line: int, cell: Cell, column: str) -> str | Fault:
    """The one label of a cell, empty if it has none."""
    is_subject = parsed(column)[0] in SUBJECTS
    try:
        labels = tuple(dict.fromkeys(labels_in(labels_of_subjects(cell) if is_subject else cell)))
    except ValueError as error:
        return Fault(line, "the label is neither text nor a number", str(error), "write the class as text")
    if len(labels) > 1:
        fix = (
            "keep one label in each row: a classifier learns one class a text, several are not supported yet"
        )
        if is_subject:
            fix = _CHOOSE_A_SUBJECT
        return Fault(line, "the row has several labels", listed(labels), fix)
    return "".join(labels)


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


def _declared_names(table: Table, column: str) -> tuple[tuple[str, ...], int]:
    """The class names that the file's layout fixes for a column, and the number of the first."""
    if canonical(column) == AG_NEWS_COLUMNS[0] and {canonical(c) for c in table.columns} & set(
        AG_NEWS_COLUMNS[1:]
    ):
        return AG_NEWS_LABELS, 1
    return tuple(table.class_names.get(column, ())), 0


def _own_classes(labels: Sequence[str], declared: Sequence[str], *, merge_case: bool) -> MatchedLabels:
    """The labels of a file whose classes nothing else names."""
    classes = {name: name for name in declared} or class_names(labels, merge_case=merge_case)
    number = {name: i for i, name in enumerate(dict.fromkeys(classes.values()))}
    ids = np.array([number[classes[label]] for label in labels], dtype=np.int64)
    respelled = {label: name for label, name in classes.items() if label != name}
    return MatchedLabels(ids, tuple(number), LabelMatching(len(labels), respelled=respelled))


def _template_parts(template: str, columns: Sequence[str]) -> list[tuple[str, str | None]]:
    """A template as (literal, column or None) pairs. Raises UserError for anything but plain column names.

    The fields are looked up, never evaluated: ``{title.__class__}`` is refused as an unknown column.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(
            f"the template {template!r} cannot be read",
            found=str(error),
            fix="write it as '{title}. {description}'; a brace of the text itself is doubled: {{",
        ) from None
    for _, name, form, conversion in parts:
        if name is not None and (name not in columns or form or conversion):
            field = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise UserError(
                f"the template names {{{field}}}, which is not a text column",
                found=", ".join(columns),
                fix="use only these names in braces, as in --template '{title}. {description}'",
            )
    return [(literal, name) for literal, name, _, _ in parts]


def _existing(table: Table, name: str, flag: str) -> str:
    """The column called so. Raises UserError if there is none."""
    found = column_named(table, name)
    if found is None and _may_be_nested(name, table.columns):
        raise UserError(
            f"no row has {name!r}",
            found=_what_is_on_the_way(table, name),
            fix=f"write the path as keys and places from 0, for example {flag} headlines.0.value",
        )
    if found is None:
        raise _no_such_column(name, table.columns, flag, _by_position(table))
    return found


def _what_is_on_the_way(table: Table, path: str) -> str:
    """The longest beginning of a path that leads to something, and the keys or the type of what is there."""
    head, steps = parsed(path)
    for length in range(len(steps) - 1, -1, -1):
        cells = ((line, walked(record.get(head), steps[:length])) for line, record in _numbered(table))
        line, cell = next(((line, cell) for line, cell in cells if cell not in (None, [])), (0, None))
        if line:
            where = ".".join(
                (head, *("[...]" if isinstance(step, tuple) else step for step in steps[:length]))
            )
            keys = listed(cell) if isinstance(cell, Mapping) else f"a value of type {type(cell).__name__}"
            return f"{where} in line {line} has {keys}"
    return f"{head} is empty in every row"


def _numbered(table: Table) -> Iterator[tuple[int, Mapping[str, Cell]]]:
    return zip(table.lines, table.records(), strict=True)


def _no_such_column(column: str, columns: Sequence[str], flag: str, more: str = "") -> UserError:
    example = "--label category" if flag == "--label" else "--text title,description"
    return UserError(
        f"there is no column {column!r}",
        found=listed(columns),
        fix=f"name one of these, for example {example}{more}",
    )


def _flags_for(table: Table) -> str:
    """Flags that might suit a table: the longest column as text, the one with few values as class."""
    if not table.columns:
        return "--text title,description"
    cells = {name: [str(row[place]) for row in table.rows[:100]] for place, name in enumerate(table.columns)}
    longest = max(cells, key=lambda name: sum(map(len, cells[name])))
    classes = [name for name in cells if name != longest and cells[name] and looks_like_labels(cells[name])]
    label = f" --label {_quoted(classes[0])}" if len(classes) == 1 else ""
    return f"--text {_quoted(longest)}{label}"


def _quoted(name: str) -> str:
    """A column's name as one types it in a shell."""
    return f'"{name}"' if "'" in name and not re.search(r'["$`\\]', name) else shlex.quote(name)


def _by_position(table: Table) -> str:
    """What else helps where a file has no header, for the end of a fix."""
    if table.has_header or table.dialect is None or table.dialect.delimiter is None:
        return ""
    return "; no header was found: count columns from 1 (--text 2 --label 1), or say --header"
