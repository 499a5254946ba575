"""Columns: which of a table's are the text and which one is the class, by flags or by their usual names."""

from __future__ import annotations

import math
import re
import shlex
import string
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from newsdesk.data.dialect import fields_of, looks_like_labels, same_name
from newsdesk.data.fields import NEWS_FIELDS, parsed, value_at, walked
from newsdesk.data.table import (
    LABEL_COLUMNS,
    LABEL_LISTS,
    LONGEST_TEXT,
    TEXT_COLUMNS,
    Cell,
    Fault,
    Table,
    canonical,
)
from newsdesk.data.words import normalise
from newsdesk.errors import UserError, listed

NEWS_TEXT = ("headline", "body")
"""The text columns of news items, whatever their format."""


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
    label_columns: Sequence[str] | None = None,
    template: str | None = None,
    normaliser: str = "none",
) -> TextLayout:
    """The layout of a table's text: the columns of ``text``, else those of the template, else the usual ones.

    ``label`` and ``label_columns`` name columns that are not text even if they are called so. Raises
    UserError when a column is missing or none has a usual name (title, headline, text, content ...).
    """
    columns = tuple(existing_column(table, column, "--text") for column in text or ())
    if not columns and template is not None:
        nested = [name for name in fields_of(template) if column_named(table, name) == name]
        parts = _template_parts(template, (*table.columns, *nested))
        columns = tuple(dict.fromkeys(name for _, name in parts if name))
    if not columns and table.news:
        columns = NEWS_TEXT
    if not columns:
        others = {column_named(table, name) for name in (label, *(label_columns or ())) if name is not None}
        columns = tuple(c for c in table.columns if canonical(c) in TEXT_COLUMNS and c not in others)
    if not columns and len(table.columns) == 1:
        columns = table.columns
    if not columns:
        raise UserError(
            f"which column of {table.path.name} holds the text?",
            found=listed(table.columns) or "no columns",
            fix=f"name the text columns, for example {_flags_for(table)}{by_position(table)}",
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
        return existing_column(table, label, "--label")
    if table.class_column is not None and table.class_column not in text:
        return table.class_column
    others = {c: canonical(c) for c in table.columns if c not in text}
    usual = [c for c, name in others.items() if name in LABEL_COLUMNS]
    usual = usual or [c for c, name in others.items() if name in LABEL_LISTS]
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


def existing_column(table: Table, name: str, flag: str) -> str:
    """The column called so. Raises UserError if there is none."""
    found = column_named(table, name)
    if found is None and _may_be_nested(name, table.columns):
        raise UserError(
            f"no row has {name!r}",
            found=_what_is_on_the_way(table, name),
            fix=f"write the path as keys and places from 0, for example {flag} headlines.0.value",
        )
    if found is None:
        raise _no_such_column(name, table.columns, flag, by_position(table))
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
    examples = {"--label": "category", "--label-columns": "world,sport"}
    example = f"{flag} {examples.get(flag, 'title,description')}"
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


def by_position(table: Table) -> str:
    """What else helps where a file has no header, for the end of a fix."""
    if table.has_header or table.dialect is None or table.dialect.delimiter is None:
        return ""
    return "; no header was found: count columns from 1 (--text 2 --label 1), or say --header"
