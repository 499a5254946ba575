"""Delimited text (csv, tsv, Orange's tab): quotes, headers, and faults by line."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator, Sequence

from newsdesk.data.lines import Line, LineReader
from newsdesk.data.table import AG_NEWS_COLUMNS, LABEL_COLUMNS, TEXT_COLUMNS, Fault, Row, Table, canonical

_LONGEST_FIELD = 2**31 - 1  # characters; csv's own limit of 131,072 is less than one long article
_LONGEST_COLUMN_NAME = 60
_SAMPLE = 50
_MAX_RETRIES = 20  # each may read on to the end of the file, so their number must be bounded
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_INTEGER = re.compile(r"[+-]?\d+")
_ORANGE_TYPES = {"", "d", "discrete", "c", "continuous", "s", "string", "t", "time", "b", "basket"}
_ORANGE_ROLES = {"class", "meta", "i", "ignore", "weight"}


def read_delimited(
    lines: LineReader, delimiter: str, *, header: bool | None, orange: bool = False
) -> tuple[Table, list[Fault]]:
    """The table that delimited lines hold, and the faults of those rows that had to be left out.

    ``header`` says whether the first row names the columns; None detects it. ``orange`` allows for the
    three header lines (names, types, roles) of Orange's .tab files and drops rows of empty cells.
    """
    rows: list[Row] = []
    faults: list[Fault] = []
    for item in _parse(lines, delimiter):
        (rows if isinstance(item, Row) else faults).append(item)  # type: ignore[arg-type]
    if rows and (fault := _other_delimiter(rows[0], delimiter)):
        faults.append(fault)
    if orange and _has_orange_header(rows):
        names, roles, rows = _cells(rows[0]), _cells(rows[2]), rows[3:]
        position = next((i for i, role in enumerate(roles) if "class" in role.split()), None)
        columns, has_header = _unique_names(names, 1, faults), True
        class_column = None if position is None else columns[position]
    else:
        class_column = None
        rows = [row for row in rows if row.cells]
        has_header = header if header is not None else looks_like_header([_cells(r) for r in rows[:_SAMPLE]])
        if has_header and rows:
            columns, rows = _unique_names(_cells(rows[0]), rows[0].line, faults), rows[1:]
        else:
            columns = _headerless_names([_cells(row) for row in rows])
    kept = [row for row in rows if any(row.cells) or (row.cells and not orange)]
    table = Table(
        lines.path,
        columns,
        tuple(row.cells for row in kept),
        tuple(row.line for row in kept),
        has_header,
        class_column,
    )
    return table, faults


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
    for other, mend in ((";", "save it with commas"), ("\t", "name it .tsv"), (",", "name it .csv")):
        names = [canonical(name.strip('"')) for name in str(first.cells[0]).split(other)]
        if other != delimiter and len(names) > 1 and set(names) & (LABEL_COLUMNS | TEXT_COLUMNS):
            return Fault(first.line, f"the columns are separated by {other!r}", str(first.cells[0]), mend)
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

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.row.append(line)
        return line.text

    def retry_after_first_line(self) -> None:
        self._again.extendleft(reversed(self.row[1:]))


def _parse(lines: LineReader, delimiter: str) -> Iterator[Row | Fault]:
    """Rows of equal width (blank lines as rows without cells), and a fault for each that is none."""
    csv.field_size_limit(_LONGEST_FIELD)
    feed = _Feed(lines)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    expected, retries = 0, 0
    while True:
        feed.row.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            if lines.broken_off:
                return
            yield _broken_quote(feed.row, delimiter)
            retries += 1
            if retries == _MAX_RETRIES:
                yield Fault(feed.row[0].number, "too many broken quotes; the rest of the file was not read")
                return
            feed.retry_after_first_line()
            reader = csv.reader(feed, delimiter=delimiter, strict=True)
            continue
        if any(line.number in lines.bad_lines for line in feed.row):
            continue
        line = feed.row[0].number
        expected = expected or len(cells)
        if cells and len(cells) != expected:
            yield _wrong_width(line, cells, expected)
        else:
            yield Row(line, tuple(cells))


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
    for number, text in row:
        for position, character in enumerate(text, start=1):
            if state == "quoted":
                state = "closed?" if character == '"' else state
            elif state == "start" and character == '"':
                opened, opened_at, state = number, position, "quoted"
            elif state == "closed?" and character == '"':
                state = "quoted"
            elif character in (delimiter, "\n"):
                state = "start"
            elif state == "closed?" and character != "\r":
                return Fault(
                    row[0].number,
                    "text follows the closing quote of a field",
                    f"a quote opened in line {opened}, character {opened_at}, and closed in line {number},"
                    f" character {position - 1}",
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
