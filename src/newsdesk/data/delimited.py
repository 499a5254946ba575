"""Delimited text (csv, tsv, Orange's tab): quotes, headers, and faults by line."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain

from newsdesk.data.lines import Line, LineReader
from newsdesk.data.table import (
    AG_NEWS_COLUMNS,
    LABEL_COLUMNS,
    TEXT_COLUMNS,
    BadRow,
    Fault,
    Row,
    RowStream,
    Table,
    canonical,
    sample_of,
)

_LONGEST_FIELD = 2**31 - 1  # characters; csv's own limit of 131,072 is less than one long article
_LONGEST_COLUMN_NAME = 60
_SAMPLE = 50
_LONGEST_ROW = 1 << 21  # characters over several lines: a quote that never closes must not swallow the file
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_INTEGER = re.compile(r"[+-]?\d+")
_ORANGE_TYPES = {"", "d", "discrete", "c", "continuous", "s", "string", "t", "time", "b", "basket"}
_ORANGE_ROLES = {"class", "meta", "i", "ignore", "weight"}


def delimited_rows(
    lines: LineReader, delimiter: str, *, header: bool | None, sample: int | None, orange: bool = False
) -> RowStream:
    """The rows that delimited lines hold, the bad ones among them.

    ``header`` says whether the first row names the columns; None detects it. What the file leaves open
    (the names of columns without a header) is read off its first ``sample`` rows; None takes all of them.
    ``orange`` allows for the three header lines (names, types, roles) of Orange's .tab files and drops
    rows of empty cells.
    """
    sampled, rest = sample_of(_parse(lines, delimiter), sample)
    rows = [row for row in sampled if isinstance(row, Row)]
    faults: list[Fault] = []
    if rows and (fault := _other_delimiter(rows[0], delimiter)):
        faults.append(fault)
    class_column, heading = None, 0
    if orange and _has_orange_header(rows):
        names, roles = _cells(rows[0]), _cells(rows[2])
        position = next((i for i, role in enumerate(roles) if "class" in role.split()), None)
        columns, has_header, heading = _unique_names(names, 1, faults), True, 3
        class_column = None if position is None else columns[position]
    else:
        rows = [row for row in rows if row.cells]
        has_header = header if header is not None else looks_like_header([_cells(r) for r in rows[:_SAMPLE]])
        if has_header and rows:
            columns, heading = _unique_names(_cells(rows[0]), rows[0].line, faults), 1
        else:
            columns = _headerless_names([_cells(row) for row in rows])
    above = rows[heading].line if len(rows) > heading else rows[-1].line + 1 if rows else 0
    kept = (
        row
        for row in chain(sampled, rest)
        if isinstance(row, BadRow) or (row.line >= above and row.cells and (any(row.cells) or not orange))
    )
    return RowStream(Table(lines.path, columns, (), (), has_header, class_column), kept, tuple(faults))


def looks_like_header(sample: Sequence[Sequence[str]]) -> bool:
    """Whether the first of the sampled rows names the columns of the others.

    Names are short and no numbers. They are believed when one of them is usual (text, label, title ...),
    and, if distinct, when a column below is all numbers or all are single words that do not recur.
    """
    if not sample:
        return False
    first, below = [cell.strip() for cell in sample[0]], list(zip(*sample[1:], strict=True))
    named = [cell for cell in first if cell]
    if not all(map(_could_be_a_name, named)):
        return False
    if any(canonical(cell) in LABEL_COLUMNS | TEXT_COLUMNS for cell in named):
        return True
    if len(first) == 1 or not below or not named or len(set(named)) < len(named):
        return False
    numeric_below = any(all(_NUMBER.fullmatch(cell.strip()) for cell in column) for column in below)
    return numeric_below or all(
        cell.isidentifier() and cell not in column for cell, column in zip(first, below, strict=True)
    )


def _could_be_a_name(cell: str) -> bool:
    return len(cell) <= _LONGEST_COLUMN_NAME and "\n" not in cell and not _NUMBER.fullmatch(cell)


def _headerless_names(rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Names for the columns of a file without a header: the usual ones where the cells leave no doubt."""
    width = len(rows[0]) if rows else 0
    if width == 1:
        return ("text",)
    integers = [all(_INTEGER.fullmatch(row[i].strip()) for row in rows) for i in range(width)]
    if width == 2 and sum(integers) == 1:
        return ("label", "text") if integers[0] else ("text", "label")
    if width == 3 and {row[0].strip() for row in rows} <= {"1", "2", "3", "4"}:
        return AG_NEWS_COLUMNS
    return tuple(f"column_{position + 1}" for position in range(width))


def _unique_names(cells: Sequence[str], line: int, faults: list[Fault]) -> tuple[str, ...]:
    """Column names from a header; a name given twice is a fault, an empty one (pandas' index) is not."""
    names: list[str] = []
    for position, cell in enumerate(cells, start=1):
        name = cell.strip() or f"column_{position}"
        if name in names:
            faults.append(
                Fault(line, f"two columns are named {name!r}", ", ".join(cells), "give each its own name")
            )
            name = f"{name} ({position})"
        names.append(name)
    return tuple(names)


def _other_delimiter(first: Row, delimiter: str) -> Fault | None:
    """The fault of a header that is one field only because another delimiter separates its names."""
    if len(first.cells) != 1:
        return None
    for other, fix in ((";", "save it with commas"), ("\t", "name it .tsv"), (",", "name it .csv")):
        names = [canonical(name.strip('"')) for name in str(first.cells[0]).split(other)]
        if other != delimiter and len(names) > 1 and set(names) & (LABEL_COLUMNS | TEXT_COLUMNS):
            return Fault(first.line, f"the columns are separated by {other!r}", str(first.cells[0]), fix)
    return None


def _has_orange_header(rows: Sequence[Row]) -> bool:
    if len(rows) < 3:
        return False
    types, roles = _cells(rows[1]), _cells(rows[2])
    return all(cell.strip() in _ORANGE_TYPES for cell in types) and all(
        word in _ORANGE_ROLES or "=" in word for cell in roles for word in cell.split()
    )


def _cells(row: Row) -> tuple[str, ...]:
    return tuple(str(cell) for cell in row.cells)


class _Feed(Iterator[str]):
    """Lines for csv.reader that remembers the current row's, so that a broken row can be left out."""

    def __init__(self, lines: LineReader) -> None:
        self.row: list[Line] = []
        self._lines = lines
        self._again: deque[Line] = deque()
        self._length = 0

    def __next__(self) -> str:
        if self._length > _LONGEST_ROW:
            raise csv.Error("a row without end")
        line = self._again.popleft() if self._again else next(self._lines)
        self.row.append(line)
        self._length += len(line.text)
        return line.text

    def begin_row(self) -> None:
        self.row.clear()
        self._length = 0

    def retry_after_first_line(self) -> None:
        self._again.extendleft(reversed(self.row[1:]))


def _parse(lines: LineReader, delimiter: str) -> Iterator[Row | BadRow]:
    """Rows of equal width (blank lines as rows without cells), and those that are none."""
    csv.field_size_limit(_LONGEST_FIELD)
    feed = _Feed(lines)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    expected = 0
    while True:
        feed.begin_row()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            if lines.broken_off:
                return
            yield BadRow(feed.row[0].fault or _broken_quote(feed.row, delimiter), feed.row[0].raw)
            feed.retry_after_first_line()
            reader = csv.reader(feed, delimiter=delimiter, strict=True)
            continue
        fault = next((line.fault for line in feed.row if line.fault), None)
        if fault is None:
            expected = expected or len(cells)
            if cells and len(cells) != expected:
                fault = _wrong_width(feed.row[0].number, cells, expected)
        if fault is None:
            yield Row(feed.row[0].number, tuple(cells))
        else:
            yield BadRow(fault, b"".join(line.raw for line in feed.row))


def _wrong_width(line: int, cells: Sequence[str], expected: int) -> Fault:
    much = "few" if len(cells) < expected else "many"
    return Fault(
        line,
        f"too {much} fields",
        f"{len(cells)} where the first row has {expected}",
        "put quotes around a field that contains the delimiter or a line break",
    )


def _broken_quote(row: Sequence[Line], delimiter: str) -> Fault:
    """The fault for a row that csv refuses: where its last quote opened, and whether it ever closed."""
    opened, opened_at, state = row[0].number, 1, "start"
    for line in row:
        for position, character in enumerate(line.text, start=1):
            if state == "quoted":
                state = "closed?" if character == '"' else state
            elif state == "start" and character == '"':
                opened, opened_at, state = line.number, position, "quoted"
            elif state == "closed?" and character == '"':
                state = "quoted"
            elif character in (delimiter, "\n"):
                state = "start"
            elif state == "closed?" and character != "\r":
                return Fault(
                    row[0].number,
                    "text follows the closing quote of a field",
                    f"a quote opened in line {opened}, character {opened_at}, and closed in line"
                    f" {line.number}, character {position - 1}",
                    'close the field where it ends, and double the quotes that belong to the text ("")',
                )
            elif state != "closed?":
                state = "plain"
    if state != "quoted":
        return Fault(
            row[0].number,
            "a carriage return stands alone in the line",
            None,
            "end lines with \\n (dos2unix -c mac converts old Macintosh files), or quote the field",
        )
    return Fault(
        row[0].number,
        "a quoted field is never closed",
        f"the quote opened in line {opened}, character {opened_at}",
        'close it, and double the quotes that belong to the text ("")',
    )
