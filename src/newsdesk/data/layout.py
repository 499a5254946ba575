"""Layouts: which columns of a table are the text and which one is the class."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.dialect import same_name
from newsdesk.data.examples import Examples
from newsdesk.data.normalise import normaliser as normaliser_named
from newsdesk.data.table import AG_NEWS_COLUMNS, LABEL_COLUMNS, TEXT_COLUMNS, Cell, Fault, Table, canonical
from newsdesk.errors import UserError

AG_NEWS_LABELS = ("World", "Sports", "Business", "Sci/Tech")
"""The classes of AG News (Zhang et al., 2015) in id order; its files count them from 1."""

_SHOWN = 20  # names in a message


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
        normaliser_named(self.normaliser)
        if self.template is not None:
            _template_parts(self.template, self.text_columns)

    def render(self, row: Mapping[str, Cell]) -> str:
        """The text of one row, given as column name to cell. Raises UserError if a column is missing."""
        missing = [column for column in self.text_columns if column not in row]
        if missing:
            raise _no_such_column(missing[0], list(row), "--text")
        clean = normaliser_named(self.normaliser)
        cells = {column: clean(_text_of(row[column], column)).strip() for column in self.text_columns}
        if self.template is None:
            return " ".join(filter(None, cells.values()))
        parts = _template_parts(self.template, self.text_columns)
        return "".join(literal + (cells[column] if column else "") for literal, column in parts).strip()

    def texts(self, table: Table) -> tuple[str, ...]:
        """The text of every row. Raises UserError, by line, for a cell that holds no text."""
        texts = []
        for line, record in zip(table.lines, table.records(), strict=True):
            text = self.text_of(line, record)
            if isinstance(text, Fault):
                raise text.error(table.path)
            texts.append(text)
        return tuple(texts)

    def text_of(self, line: int, record: Mapping[str, Cell]) -> str | Fault:
        """As ``render``, but the fault of the row in that line where a cell holds no text."""
        try:
            return self.render(record)
        except _NoTextError as error:
            return Fault(
                line,
                f"column {error.column!r} holds no text",
                error.found,
                "name the text columns, for example --text title,description",
            )

    def for_table(
        self, table: Table, *, text: Sequence[str] | None = None, template: str | None = None
    ) -> TextLayout:
        """The layout that ``text`` and ``template`` name, else this one where the table has its columns.

        Else the table's own: so a run trained on titles and descriptions still predicts from a plain list
        of headlines. The normaliser is always this one's. Raises UserError if the table has neither these
        columns nor usual ones.
        """
        if not (text or template):
            found = [column_named(table, column) for column in self.text_columns]
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
        columns = tuple(dict.fromkeys(name for _, name in _template_parts(template, table.columns) if name))
    if not columns:
        other = None if label is None else column_named(table, label)
        columns = tuple(c for c in table.columns if canonical(c) in TEXT_COLUMNS and c != other)
    if not columns and len(table.columns) == 1:
        columns = table.columns
    if not columns:
        raise UserError(
            f"which column of {table.path.name} holds the text?",
            found=", ".join(table.columns) or "no columns",
            fix="name the text columns, for example --text title,description" + _by_position(table),
        )
    return TextLayout(columns, template, normaliser)


def column_named(table: Table, name: str) -> str | None:
    """The column that is called so, else (``2``, ``column_2``) the one in that place, from 1; None: neither.

    A name may be written with composed or decomposed accents.
    """
    if name in table.columns:
        return name
    for column in table.columns:
        if same_name(column, name):
            return column
    place = re.fullmatch(r"(?:column_)?([1-9]\d{0,3})", name)
    if place and int(place[1]) <= len(table.columns):
        return table.columns[int(place[1]) - 1]
    return None


def label_column(table: Table, label: str | None = None, text: Sequence[str] = ()) -> str | None:
    """The column that holds the class: ``label``, else what the file declares, else one with a usual name.

    Returns None if there is none. Raises UserError if ``label`` is no column or several qualify.
    """
    if label is not None:
        return _existing(table, label, "--label")
    if table.class_column is not None and table.class_column not in text:
        return table.class_column
    usual = [c for c in table.columns if canonical(c) in LABEL_COLUMNS and c not in text]
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
    *,
    text: Sequence[str] | None = None,
    label: str | None = None,
    label_names: Sequence[str] | None = None,
    template: str | None = None,
    normaliser: str = "none",
    labelled: bool | None = None,
) -> Examples:
    """A table's rows as examples; without flags, where the columns have usual names.

    Labels become ids in ``label_names`` (those of a run, say): by name, or by 0-based id if all are
    integers. Without ``label_names``, the file's own names are taken: AG News' four for its official
    layout (class_index from 1), those a parquet file declares, else the labels themselves in order, whole
    numbers in numeric order. ``labelled`` True demands classes, False ignores them, None takes what is there.

    Raises UserError for columns that are missing or ambiguous, a table without rows, rows without a label
    among labelled ones, and labels that are not among the names.
    """
    if not len(table) and labelled is not False:
        raise UserError(
            f"{table.path.name} holds no rows",
            found="a header and nothing below",
            fix="check how it was made",
        )
    layout = text_layout(table, text=text, label=label, template=template, normaliser=normaliser)
    column = None if labelled is False else label_column(table, label, layout.text_columns)
    texts = layout.texts(table)
    labels = None if column is None else labels_of(table, column)
    if labels is None or not any(labels):
        if labelled:
            raise UserError(
                f"{table.path.name} has no labels",
                found=f"columns {', '.join(table.columns)}"
                + (f"; every cell of {column} is empty" if column else ""),
                fix="name the column that holds the class, for example --label topic" + _by_position(table),
            )
        return Examples(texts, None, (), str(table.path))
    own = _own_label_names(table, column or "", labels)
    names = own if label_names is None else tuple(label_names)
    ids = _label_ids(table, labels, own, names)
    return Examples(texts, ids, names, str(table.path))


def labels_of(table: Table, column: str) -> tuple[str, ...]:
    """The label of every row by name, as the file itself names it; empty for rows without one.

    Numbers that the file says are ids (official AG News, the Hub's parquet) come out as the names they
    stand for. Raises UserError, by line, for a number beyond them.
    """
    labels, faults = labels_with_faults(table, column)
    if faults:
        raise faults[0].error(table.path, others=len(faults) - 1)
    return labels


def labels_with_faults(table: Table, column: str) -> tuple[tuple[str, ...], tuple[Fault, ...]]:
    """As ``labels_of``, but a number beyond the names is no label and returned as a fault."""
    declared, first = _declared_names(table, column)
    labels, faults = [], []
    for line, cell in zip(table.lines, table.column(column), strict=True):
        label = _label_text(cell)
        if declared and label == "-1":  # how the Hub marks the rows of unlabelled test sets
            label = ""
        elif declared and label and label not in declared:
            position = int(label) - first if _is_integer(label) else -1
            if 0 <= position < len(declared):
                label = declared[position]
            else:
                numbered = [f"{number} {name}" for number, name in enumerate(declared, start=first)]
                faults.append(_unknown_label(line, label, numbered))
                label = ""
        labels.append(label)
    return tuple(labels), tuple(faults)


def _declared_names(table: Table, column: str) -> tuple[tuple[str, ...], int]:
    """The class names that the file's layout fixes for a column, and the number of the first."""
    if canonical(column) == AG_NEWS_COLUMNS[0] and {canonical(c) for c in table.columns} & set(
        AG_NEWS_COLUMNS[1:]
    ):
        return AG_NEWS_LABELS, 1
    return tuple(table.class_names.get(column, ())), 0


def _own_label_names(table: Table, column: str, labels: Sequence[str]) -> tuple[str, ...]:
    declared, _ = _declared_names(table, column)
    present = set(labels) - {""}
    return declared or tuple(sorted(present, key=int if all(map(_is_integer, present)) else None))


def _label_ids(
    table: Table, labels: Sequence[str], own: Sequence[str], names: Sequence[str]
) -> NDArray[np.int64]:
    """Each label's position in ``names``: by name, or by id where all labels, or all names, are numbers."""
    known = {name: position for position, name in enumerate(names)}
    if not set(own) <= set(known):
        if all(map(_is_integer, own)) and all(0 <= int(name) < len(names) for name in own):
            known = {name: int(name) for name in own}
        elif all(map(_is_integer, names)) and len(own) == len(names) and not all(map(_is_integer, own)):
            known = {name: position for position, name in enumerate(own)}
    ids = np.empty(len(labels), dtype=np.int64)
    for row, label in enumerate(labels):
        if not label:
            raise UserError(
                f"{table.path.name}, line {table.lines[row]}: the row has no label",
                found=f"{sum(not other for other in labels):,} such rows among {len(labels):,}",
                fix="label these rows, or leave them out",
            )
        if label not in known:
            raise _unknown_label(table.lines[row], label, names).error(table.path)
        ids[row] = known[label]
    return ids


def _unknown_label(line: int, label: str, names: Sequence[str]) -> Fault:
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return Fault(
        line,
        f"the label {label!r} is not a known class",
        f"the known classes are {shown}",
        "correct the label, or name the column that holds the class with --label",
    )


def _is_integer(label: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]+", label) is not None


def _label_text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):  # pandas writes the integers of a column with gaps as floats
        return "" if math.isnan(cell) else str(int(cell)) if cell.is_integer() else str(cell)
    return str(cell).strip()


class _NoTextError(Exception):
    def __init__(self, column: str, found: str) -> None:
        self.column, self.found = column, found


def _text_of(cell: Cell, column: str) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, str | int | float):
        return str(cell)
    raise _NoTextError(column, f"a value of type {type(cell).__name__}")


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
    if found is None:
        error = _no_such_column(name, table.columns, flag)
        raise UserError(error.wrong, found=error.found, fix=f"{error.fix}{_by_position(table)}")
    return found


def _by_position(table: Table) -> str:
    """What else helps where a file has no header, for the end of a fix."""
    if table.has_header or table.dialect is None or table.dialect.delimiter is None:
        return ""
    return "; no header was found: count columns from 1 (--text 2 --label 1), or say --header"


def _no_such_column(column: str, columns: Sequence[str], flag: str) -> UserError:
    example = "--label category" if flag == "--label" else "--text title,description"
    return UserError(
        f"there is no column {column!r}",
        found=", ".join(columns),
        fix=f"name one of these, for example {example}",
    )
