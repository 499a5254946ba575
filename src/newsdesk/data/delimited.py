"""Delimited text (csv, tsv, Orange's tab): quotes, headers, and faults by line."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from statistics import median

from newsdesk.data.bounds import hopeful
from newsdesk.data.dialect import (
    Dialect,
    detect,
    is_number,
    looks_like_labels,
    shown_character,
    width_of,
)
from newsdesk.data.encoding import Line, LineReader
from newsdesk.data.table import (
    AG_NEWS_COLUMNS,
    LABEL_COLUMNS,
    TEXT_COLUMNS,
    BadRow,
    Fault,
    Limits,
    Row,
    RowStream,
    Table,
    canonical,
)

_LONGEST_FIELD = 2**31 - 1  # characters; csv's own limit of 131,072 is less than one long article
_LONGEST_COLUMN_NAME = 60
SAMPLED_LINES, SAMPLED_CHARACTERS = 500, 1 << 20
"""How much of a file its dialect is detected from."""

_ROWS_ABOVE = 51  # rows that tell a header, with the header itself
_ENOUGH_ROWS = 8  # from which a class that is only in the first row is likely none
_LONGEST_ROW = 1 << 21  # characters over several lines: a quote that never closes must not swallow the file
_MOST_LINES = 1 << 16  # of a row, likewise
_SHORTEST_TEXT = 8  # characters of a column's median cell, from which it may be the text
_INTEGER = re.compile(r"[+-]?\d+")
_SEPARATOR_LINE = re.compile(r'"?sep=([^\w\s"]|\t)"?', re.IGNORECASE)  # which Excel writes above the header
_POSITION = re.compile(r"(column_)?\d+")
_ORANGE_TYPES = {"", "d", "discrete", "c", "continuous", "s", "string", "t", "time", "b", "basket"}
_ORANGE_ROLES = {"class", "meta", "i", "ignore", "weight"}


def delimited_rows(
    lines: LineReader, usual: str, dialect: Dialect, *, sample: int | None, orange: bool = False
) -> RowStream:
    """The rows that delimited lines hold, the bad ones among them.

    What ``dialect`` leaves open is detected from the first lines; ``usual`` is the delimiter that the file's
    name suggests. Columns without a header get names by the first ``sample`` rows; None takes all of them.
    ``orange`` allows for the three header lines (names, types, roles) of Orange's .tab files and drops rows
    of empty cells.
    """
    first = lines.first(SAMPLED_LINES, SAMPLED_CHARACTERS)
    if first and (stated := _SEPARATOR_LINE.fullmatch(first[0].text.strip())):
        next(lines)
        del first[0]
        dialect = replace(dialect, delimiter=dialect.delimiter or stated[1])
    found = detect([line.text for line in first], dialect, usual)
    every = hopeful(_parse(lines, found), lines.path)
    sampled = list(islice(every, sample))
    rows = [row for row in sampled if isinstance(row, Row)]
    other = _other_delimiter(rows, first, dialect, usual) if rows else ()
    class_column, heading = None, 1
    if orange and _has_orange_header(rows):
        head, faults = head_of(lines.path, rows, replace(found, header=True))
        roles = enumerate(_cells(rows[2]))
        class_column = next((head.columns[place] for place, role in roles if "class" in role.split()), None)
        heading = 3
    else:
        rows = [row for row in rows if row.cells]
        head, faults = head_of(lines.path, rows, found)
    heading = heading if head.has_header else 0
    begin = rows[heading].line if len(rows) > heading else rows[-1].line + 1 if rows else 0
    kept = (
        row
        for row in chain(sampled, every)
        if isinstance(row, BadRow) or (row.line >= begin and row.cells and (any(row.cells) or not orange))
    )
    read_as = replace(found, header=head.has_header, encoding=lines.encoding.name, columns=())
    return RowStream(replace(head, class_column=class_column, dialect=read_as), kept, (*other, *faults))


def head_of(path: Path, rows: Sequence[Row], dialect: Dialect) -> tuple[Table, tuple[Fault, ...]]:
    """A table with the columns of these rows, called as the first row says if it is a header, and its faults.

    A name given twice is a fault, an empty one (pandas' index) is not.
    """
    texts = [_cells(row) for row in rows]
    has_header = dialect.header
    if has_header is None:
        has_header = looks_like_header(texts[:_ROWS_ABOVE], dialect.columns)
    if not has_header:
        columns = headerless_names(texts, dialect.columns)
        return Table(path, columns, has_header=False, notes=(f"columns called {', '.join(columns)}",)), ()
    names: dict[str, None] = {}
    faults = []
    for position, cell in enumerate(texts[0] if texts else (), start=1):
        name = cell.strip().lstrip("\ufeff") or f"column_{position}"
        if name in names:
            wrong = f"two columns are named {name!r}"
            faults.append(Fault(rows[0].line, wrong, ", ".join(texts[0]), "give each its own name"))
            name = f"{name} ({position})"
        names[name] = None
    return Table(path, tuple(names)), tuple(faults)


def looks_like_header(sample: Sequence[Sequence[str]], expected: Collection[str] = ()) -> bool:
    """Whether the first of the sampled rows names the columns of the others.

    It does if it holds one of the ``expected`` names or a usual one (text, label, title ...). Otherwise its
    cells are short, distinct and no numbers, no cell recurs below it, and some column below is all numbers,
    or all cells are single words, or they are far shorter than the texts below and there are several columns
    of texts or one of classes (few values that recur). Whole numbers are names where they count the columns,
    as pandas writes them.
    """
    if not sample:
        return False
    first = [cell.strip().lstrip("\ufeff") for cell in sample[0]]
    named = [cell for cell in first if cell]
    if holds_a_name(named, expected, usual=False):
        return True
    below = list(zip(*(row for row in sample[1:] if list(row) != list(sample[0])), strict=True))
    if named and first in ([str(n + start) for n in range(len(first))] for start in (0, 1)):
        return len(first) > 1 and bool(below) and not any(all(map(is_number, column)) for column in below)
    if not all(map(_could_be_a_name, named)):
        return False
    if holds_a_name(named, ()):
        return True
    if len(first) == 1 or not below or not named or len(set(named)) < len(named):
        return False
    columns = [[cell.strip() for cell in column if cell.strip()] for column in below]
    if any(cell and cell in column for cell, column in zip(first, columns, strict=True)):
        return False
    if any(column and all(map(is_number, column)) for column in columns):
        return True
    if all(cell.isidentifier() for cell in named) and len(named) == len(first):
        return True
    texts = [(cell, column) for cell, column in zip(first, columns, strict=True) if _is_text_like(column)]
    if not texts:
        return False
    lengths = [(len(cell), min(map(len, column)), median(map(len, column))) for cell, column in texts]
    if all(length < shortest and 2 * length <= middle for length, shortest, middle in lengths):
        return len(texts) > 1 or any(map(_recurs, columns))
    classes = any(len(column) >= _ENOUGH_ROWS and looks_like_labels(column) for column in columns)
    short_names = all(len(cell.split()) <= 4 and cell[-1] not in ".!?" for cell in named)
    return classes and short_names and all(4 * length <= 3 * middle for length, _, middle in lengths)


def _recurs(column: Sequence[str]) -> bool:
    """Whether the cells are short, and some value occurs twice, as classes do."""
    return len(set(column)) < len(column) and all(len(cell) <= _LONGEST_COLUMN_NAME for cell in column)


def holds_a_name(cells: Iterable[str], expected: Collection[str], *, usual: bool = True) -> bool:
    """Whether one of the cells is an expected name of a column, or a usual one; numbers count columns."""
    names = {canonical(name) for name in expected if not name.isdigit()}
    return not names.union(LABEL_COLUMNS | TEXT_COLUMNS if usual else ()).isdisjoint(map(canonical, cells))


def _could_be_a_name(cell: str) -> bool:
    return len(cell) <= _LONGEST_COLUMN_NAME and "\n" not in cell and not is_number(cell)


def _is_text_like(column: Sequence[str]) -> bool:
    return bool(column) and median(map(len, column)) >= _SHORTEST_TEXT and not looks_like_labels(column)


def headerless_names(rows: Sequence[Sequence[str]], expected: Collection[str]) -> tuple[str, ...]:
    """Names for the columns of a file without a header: the usual ones where the cells leave no doubt.

    Where a column is asked for by its position, all are named by theirs.
    """
    width = len(rows[0]) if rows else 0
    by_position = tuple(f"column_{position + 1}" for position in range(width))
    if any(_POSITION.fullmatch(name) for name in expected):
        return by_position
    if width == 1:
        return ("text",)
    integers = [all(_INTEGER.fullmatch(row[i].strip()) for row in rows) for i in range(width)]
    if width == 2 and sum(integers) == 1:
        return ("label", "text") if integers[0] else ("text", "label")
    if width == 3 and {row[0].strip() for row in rows} <= {"1", "2", "3", "4"}:
        return AG_NEWS_COLUMNS
    columns = [[row[i].strip() for row in rows] for i in range(width)]
    labels = [i for i, column in enumerate(columns) if looks_like_labels(column)]
    varied = [i for i in labels if len(set(columns[i])) > 1]  # a source, say, may be the same in all
    labels = varied or labels
    texts = [i for i, column in enumerate(columns) if _is_text(column)]
    if len(texts) > 1:  # one that is far longer than the others
        lengths = {i: median(map(len, columns[i])) for i in texts}
        longest = max(texts, key=lambda i: lengths[i])
        texts = [longest] if all(3 * lengths[i] <= lengths[longest] for i in texts if i != longest) else []
    plain = {}
    if len(texts) == 1:
        plain[texts[0]] = "text"
        if len(labels) == 1:
            plain[labels[0]] = "label"
    return tuple(plain.get(i, name) for i, name in enumerate(by_position))


def _is_text(column: Sequence[str]) -> bool:
    """Whether the cells are texts: most of them distinct, and several words each or in a script without."""
    filled = [cell for cell in column if cell]
    if not _is_text_like(filled) or 2 * len(set(filled)) < len(filled):
        return False
    worded = sum(" " in cell or (cell[0].isalpha() and not cell.isascii()) for cell in filled)
    return 2 * worded > len(filled)


def _other_delimiter(rows: Sequence[Row], lines: Sequence[Line], stated: Dialect, usual: str) -> list[Fault]:
    """The fault of a stated delimiter that is in no row, where another one makes columns."""
    if stated.delimiter is None or any(len(row.cells) > 1 for row in rows[:SAMPLED_LINES]):
        return []
    other = detect([line.text for line in lines], replace(stated, delimiter=None), usual)
    try:
        found = width_of(list(other.reader(line.text for line in lines)))
    except csv.Error:
        return []
    if found < 2 or other.delimiter is None:
        return []
    wrong = f"the columns are not separated by {shown_character(stated.delimiter)}"
    fix = f"name the delimiter: --delimiter {shown_character(other.delimiter)}"
    return [Fault(rows[0].line, wrong, str(rows[0].cells[0])[:100], fix)]


def _has_orange_header(rows: Sequence[Row]) -> bool:
    if len(rows) < 3:
        return False
    types, roles = _cells(rows[1]), _cells(rows[2])
    words = {word for cell in roles for word in cell.split() if "=" not in word}
    return words <= _ORANGE_ROLES and {cell.strip() for cell in types} <= _ORANGE_TYPES


def _cells(row: Row) -> tuple[str, ...]:
    return tuple("" if cell is None else str(cell) for cell in row.cells)


def _parse(lines: LineReader, dialect: Dialect) -> Iterator[Row | BadRow]:
    """Rows of equal width (blank lines as rows without cells), and bad ones.

    The first rows tell the width; empty cells beyond it do not count.
    """
    records = _records(lines, dialect)
    first = list(islice(records, SAMPLED_LINES))
    rows = [cells for cells, _ in first if isinstance(cells, list) and any(map(str.strip, cells))]
    rows = [cells for cells in rows if len(cells) <= lines.limits.columns]
    if _numbers_rows(rows):
        rows[0].insert(0, "")
    width = width_of(rows)
    for cells, source in chain(first, records):
        number = source[0].number
        fitted = cells if isinstance(cells, Fault) else _fitted(number, cells, width, lines.limits)
        if isinstance(fitted, Fault):
            yield BadRow(fitted, b"".join(line.raw for line in source))
        else:
            yield Row(number, fitted)


def _fitted(line: int, cells: Sequence[str], width: int, limits: Limits) -> tuple[str, ...] | Fault:
    """The cells, none for a blank line, without empty ones beyond the width; else what is wrong with them."""
    if beyond := limits.fault(line, cells):
        return beyond
    if width > 1 and len(cells) == 1 and not cells[0].strip():
        return ()
    if len(cells) > width and not any(map(str.strip, cells[width:])):
        return tuple(cells[:width])
    if len(cells) in (0, width):
        return tuple(cells)
    wrong = f"too {'few' if len(cells) < width else 'many'} fields"
    fix = "put quotes around a field that contains the delimiter or a line break"
    return Fault(line, wrong, f"{len(cells)} where the first row has {width}", fix)


def _numbers_rows(rows: Sequence[Sequence[str]]) -> bool:
    """Whether all rows but the header begin with their number, as R writes them (write.table)."""
    below = rows[1:]
    numbers = [str(number) for number in range(1, len(below) + 1)]
    return (
        len(below) > 1
        and [row[0] for row in below] == numbers
        and all(len(row) == len(rows[0]) + 1 for row in below)
    )


def _records(lines: LineReader, dialect: Dialect) -> Iterator[tuple[list[str] | Fault, tuple[Line, ...]]]:
    """The cells of each row, or why it cannot be read, and the lines that it takes up.

    Of a row that cannot be read the first line is left out, and reading goes on with the next.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    row: list[Line] = []
    length = 0

    def feed() -> Iterator[str]:
        nonlocal length
        for line in lines:
            row.append(line)
            length += len(line.text)
            yield line.text
            if length > max(_LONGEST_ROW, lines.limits.characters) or len(row) > _MOST_LINES:
                raise csv.Error("a row without end")

    reader = dialect.reader(feed())
    while True:
        row.clear()
        length = 0
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            if lines.broken_off:
                return
            yield row[0].fault or _broken_quote(row, dialect), (row[0],)
            lines.put_back(row[1:])
            reader = dialect.reader(feed())
            continue
        yield next((line.fault for line in row if line.fault), None) or cells, tuple(row)


def _broken_quote(row: Sequence[Line], dialect: Dialect) -> Fault:
    """The fault for a row that csv refuses: where its last quote opened, and whether it ever closed."""
    delimiter, quote = dialect.delimiter, dialect.quote
    opened, state = "", "start"
    wrong = "text follows the closing quote of a field"
    double = f"and double quotes of the text itself ({quote}{quote})"
    for line, position, character in (
        (each.number, position, character)
        for each in row
        for position, character in enumerate(each.text, start=1)
    ):
        if state == "quoted":
            state = "closed?" if character == quote else state
        elif state == "start" and character == quote:
            opened, state = f"line {line}, character {position}", "quoted"
        elif state == "closed?" and character == quote:
            state = "quoted"
        elif character in (delimiter, "\n"):
            state = "start"
        elif state == "closed?" and character != "\r":
            found = f"a quote opened in {opened}, and closed in line {line}, character {position - 1}"
            return Fault(row[0].number, wrong, found, f"close the field where it ends, {double}")
        elif state != "closed?":
            state = "plain"
    if state == "quoted":
        wrong, found = "a quoted field is never closed", f"the quote opened in {opened}"
        return Fault(row[0].number, wrong, found, f"close it, {double}")
    fix = "end lines with \\n (dos2unix -c mac converts old Macintosh files), or quote the field"
    return Fault(row[0].number, "there is a carriage return alone in the line", None, fix)
