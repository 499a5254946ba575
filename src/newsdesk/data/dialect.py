"""Dialects: how a text file writes its rows down, stated by flags and recipes or detected from a sample."""

from __future__ import annotations

import codecs
import csv
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from newsdesk.data.table import LABEL_COLUMNS, TEXT_COLUMNS, Limits, canonical
from newsdesk.errors import UserError

if TYPE_CHECKING:
    from _csv import Reader

DELIMITERS = (",", ";", "\t", "|")
QUOTES = ('"', "'")
NO_QUOTE = "none"
"""The quote of files in which a quotation mark is a character like any other."""

_NAMED = {"tab": "\t", r"\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}
_SHOWN = {"\t": "tab"}
_GOOD_ENOUGH = 0.5  # the score from which another delimiter than the usual one is believed
_FULL_WIDTH, _CERTAIN = ("，", "；"), 1.2
"""Commas and semicolons of Chinese and Japanese, which prose is full of: believed where they are in each row
as often, and a column looks like one.
"""
_QUOTED_CELL = re.compile(r'(?:^|\t)"(?:[^"\t]|"")*"(?=\t|\r?\n?$)')
_SWALLOWED = 20  # lines after which a quote that does not close is a character of the text


@dataclass(frozen=True)
class Dialect:
    """How a text file writes its rows down. What is None is detected.

    Attributes:
        header: whether the first row names the columns.
        delimiter: the character between two cells.
        quote: the character around cells that hold a delimiter or a line break; ``none``: there is none.
        encoding: the name of the character encoding, as Python knows it.
        columns: names that the caller will ask for: a first line that holds one of them is a header.
        max_characters, max_columns, max_unpacked: limits of files of every kind, see `Limits`; None: its own.
    """

    header: bool | None = None
    delimiter: str | None = None
    quote: str | None = None
    encoding: str | None = None
    columns: tuple[str, ...] = ()
    max_characters: int | None = None
    max_columns: int | None = None
    max_unpacked: int | None = None

    def __post_init__(self) -> None:
        """Take names for characters (``tab``). Raises UserError for what cannot separate, quote or encode."""
        if self.delimiter is not None:
            named = _NAMED.get(self.delimiter.casefold(), self.delimiter)
            if len(named) != 1 or named in "\r\n\0":
                raise _cannot("--delimiter", self.delimiter, "one character, or tab", "';'")
            object.__setattr__(self, "delimiter", named)
        if self.quote is not None:
            quote = self.quote or NO_QUOTE
            if quote.casefold() != NO_QUOTE and (len(quote) != 1 or quote in "\r\n\0 "):
                raise _cannot("--quote", self.quote, "one character, or none", '"\'"')
            if quote == self.delimiter:
                raise _cannot("--quote", self.quote, "another character than the delimiter", '"\'"')
            object.__setattr__(self, "quote", quote.casefold() if len(quote) > 1 else quote)
        if self.encoding is not None:
            object.__setattr__(self, "encoding", _known_encoding(self.encoding))

    @property
    def limits(self) -> Limits:
        """How large the rows may be."""
        usual = Limits()
        return Limits(
            self.max_characters or usual.characters, self.max_columns or usual.columns, self.max_unpacked
        )

    def asking(
        self, text: Iterable[str] | None = None, label: str | None = None, template: str | None = None
    ) -> Dialect:
        """The same, and the columns of this layout are looked for in the first line, too."""
        names = filter(None, (*self.columns, *(text or ()), label, *fields_of(template or "")))
        return replace(self, columns=tuple(dict.fromkeys(names)))

    def to_dict(self) -> dict[str, Any]:
        """What flags or a recipe say, by name: ``header``, ``delimiter``, ``max_columns`` and so on."""
        return {name: value for name, value in asdict(self).items() if name != "columns"}

    def describe(self) -> str:
        """What is known of it, for people: ``encoding cp1252, delimiter ';', quote ", with a header``."""
        delimiter = None if self.delimiter is None else shown_character(self.delimiter)
        given = (("encoding", self.encoding), ("delimiter", delimiter), ("quote", self.quote))
        said = [f"{name} {value}" for name, value in given if value is not None]
        header = {None: [], True: ["with a header"], False: ["no header"]}[self.header]
        return ", ".join([*said, *header])

    @property
    def is_plain(self) -> bool:
        """Whether nothing about it would surprise: UTF-8, comma or tab, double quotes."""
        usual = (None, "utf-8"), (None, ",", "\t"), (None, '"')
        given = self.encoding, self.delimiter, self.quote
        return all(value in values for value, values in zip(given, usual, strict=True))

    def reader(self, lines: Iterable[str]) -> Reader:
        """A strict csv.reader of these lines; delimiter and quote must be known."""
        assert self.delimiter is not None
        assert self.quote is not None
        if self.quote == NO_QUOTE:
            return csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE, strict=True)
        return csv.reader(lines, delimiter=self.delimiter, quotechar=self.quote, strict=True)


def fields_of(template: str) -> list[str]:
    """The names in a template's braces; none if it cannot be read, which making texts by it reports."""
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template) if name]
    except ValueError:
        return []


DETECTED = Dialect()
"""Nothing is stated of how a file is written: all of it is detected."""


def shown_character(character: str) -> str:
    """A delimiter as a message and a flag name it: ``tab``, ``';'``."""
    return _SHOWN.get(character, repr(character))


def detect(lines: Sequence[str], given: Dialect, usual: str) -> Dialect:
    """Delimiter and quote of a sample of lines; what ``given`` states stays as it is.

    Every pair of delimiter and quote is tried. A pair scores by the share of rows that have as many cells as
    most, the first row among them; by how many columns look like columns (numbers, values that recur, known
    names above them), as in van den Burg et al. (2019), "Wrangling messy CSV files by detecting row and type
    patterns"; and it loses where its delimiters are followed by spaces, as in prose. ``usual`` is the
    delimiter that the file's name suggests, which stays unless another one is clearly better.
    """
    delimiters = DELIMITERS if given.delimiter is None else (given.delimiter,)
    tried = [_best_quote(lines, given, delimiter, usual) for delimiter in delimiters]
    best = max(tried, key=lambda trial: trial.score)
    if best.score >= _GOOD_ENOUGH:
        return best.dialect
    if given.delimiter is None and lines:
        wide = [_best_quote(lines, given, each, usual) for each in _FULL_WIDTH if each in lines[0]]
        if wide and (widest := max(wide, key=lambda trial: trial.score)).score >= _CERTAIN:
            return widest.dialect
    best = next((trial for trial in tried if trial.dialect.delimiter == usual), tried[0])
    if len(best.rows) > 2 and len(best.rows[0]) == 1 and best.consistency < 0.6:
        # As wide as it happens: the one column of a file whose writer did not quote the usual delimiter.
        single = (each for each in tried if not each.broken and {len(row) for row in each.rows} == {1})
        best = next(single, best)
    return best.dialect


@dataclass(frozen=True)
class _Trial:
    """What reading the sample in one dialect gave: rows as cells, which of them are as wide as most, ignoring
    empty cells beyond, and lines that broke off.
    """

    dialect: Dialect
    rows: list[list[str]]
    fits: list[bool]
    broken: int
    score: float = 0.0

    @property
    def consistency(self) -> float:
        """Share of the rows that are as wide as most."""
        return sum(self.fits) / max(1, len(self.rows) + self.broken)


def _best_quote(lines: Sequence[str], given: Dialect, delimiter: str, usual: str) -> _Trial:
    """The quote that suits a delimiter; another than the double one has to be seen at work."""
    if given.quote is not None:
        return _trial(lines, replace(given, delimiter=delimiter), usual)
    double, single = (
        _trial(lines, replace(given, delimiter=delimiter, quote=quote), usual) for quote in QUOTES
    )
    gained = sum(single.fits) - sum(double.fits)
    if not single.broken and len(single.rows) > 1 and single.fits[0]:
        if gained >= 0 and _has_enclosed_column(double.rows, "'"):
            return single
        opened = sum(line.startswith("'") or f"{delimiter}'" in line for line in lines)
        if gained >= 0 and any(_is_quoted(cell, "'") for row in double.rows for cell in row):
            return single
        clearly = gained > max(1, 0.02 * len(single.rows)) or single.score > double.score + 0.25
        if clearly and 2 * opened >= max(1, gained):
            return single
    if delimiter == "\t" and double.broken > sum(len(_QUOTED_CELL.findall(line)) for line in lines):
        return _trial(lines, replace(given, delimiter=delimiter, quote=NO_QUOTE), usual)
    return double


def _trial(lines: Sequence[str], dialect: Dialect, usual: str) -> _Trial:
    rows, broken = _read(lines, dialect)
    most = _width_of_most(rows)
    fits = [len(row) >= most and not any(map(str.strip, row[most:])) for row in rows]
    trial = _Trial(dialect, rows, fits, broken)
    width = width_of(rows)
    if width < 2:
        return trial
    score = trial.consistency if fits[0] else 0.25 * trial.consistency
    later = [cell for row in rows for cell in row[1:] if cell]
    prose = sum(cell[0] == " " for cell in later) / max(1, len(later))
    is_usual = dialect.delimiter == usual
    score *= 1 - (0.5 if is_usual else 0.9) * prose
    columns = list(zip(*(row[:width] for row in rows[1:] if len(row) >= width), strict=True))
    score += 0.4 * sum(map(_looks_like_a_column, columns)) / width
    first = {canonical(cell) for cell in rows[0]}
    if first & {canonical(name) for name in dialect.columns if not name.isdigit()}:
        score += 1.0
    elif first & (LABEL_COLUMNS | TEXT_COLUMNS):
        score += 0.5
    return replace(trial, score=score + 0.02 * min(width, 6) + (0.1 if is_usual else 0.0))


def _read(lines: Sequence[str], dialect: Dialect) -> tuple[list[list[str]], int]:
    """The rows of a sample that are not blank, and how many lines began one that cannot be read."""
    rows: list[list[str]] = []
    broken = position = 0
    while position < len(lines):
        reader = dialect.reader(lines[position : position + _SWALLOWED])
        try:
            row = next(reader)
        except (csv.Error, StopIteration):
            if (
                position + reader.line_num < len(lines) or reader.line_num == 1
            ):  # else the sample may end in it
                broken += 1
            position += 1
            continue
        position += reader.line_num
        if any(cell.strip() for cell in row):
            rows.append(row)
    return rows, broken


def width_of(rows: Sequence[Sequence[str]]) -> int:
    """How many cells a row of these has: as the first one, unless its last cells are empty or the rows' are.

    A header may end in empty cells that the rows do not have, and rows in some that the header does not have.
    """
    if not rows:
        return 0
    first, most = rows[0], _width_of_most(rows)
    named = max((position for position, cell in enumerate(first, start=1) if cell.strip()), default=0)
    return most if named <= most < len(first) else len(first)


def _width_of_most(rows: Sequence[Sequence[str]]) -> int:
    widths = Counter(map(len, rows))
    return max(widths, key=lambda width: (widths[width], width == len(rows[0])), default=0)


def _looks_like_a_column(cells: Sequence[str]) -> bool:
    """Whether the cells are all numbers, or few short values that recur."""
    filled = [cell.strip() for cell in cells if cell.strip()]
    return bool(filled) and (all(map(is_number, filled)) or looks_like_labels(filled))


def looks_like_labels(cells: Sequence[str]) -> bool:
    """Whether the cells are few distinct short values, as classes are: each occurs twice or more."""
    values = {cell.strip() for cell in cells}
    return 2 * len(values) <= len(cells) and all(0 < len(value) <= 60 for value in values)


def is_number(cell: str) -> bool:
    """Whether a cell holds a number, with a point or a comma for its decimals."""
    text = cell.strip().replace(",", ".", 1).lstrip("+-")
    return text.replace(".", "", 1).isdigit() and text.isascii()


def _is_enclosed(cell: str, quote: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == quote


def _is_quoted(cell: str, quote: str) -> bool:
    """Whether a cell is in quotes and has doubled ones within, and no others."""
    inner = cell[1:-1]
    return _is_enclosed(cell, quote) and 2 * quote in inner and quote not in inner.replace(2 * quote, "")


def _has_enclosed_column(rows: Sequence[Sequence[str]], quote: str) -> bool:
    """Whether there is a column whose cells all (but one in ten) begin and end with the quote."""
    for column in range(min(map(len, rows), default=0)):
        cells = [row[column].strip() for row in rows[1:] if row[column].strip()]
        if cells and sum(_is_enclosed(cell, quote) for cell in cells) >= 0.9 * len(cells):
            return True
    return False


def same_name(first: str, second: str) -> bool:
    """Whether two column names are one but for Unicode's two ways to write an accent, and spaces around."""
    return unicodedata.normalize("NFC", first).strip() == unicodedata.normalize("NFC", second).strip()


def _known_encoding(name: str) -> str:
    try:
        codec = codecs.lookup(name)
    except LookupError:
        codec = None
    if codec is None or not codec._is_text_encoding:
        raise _cannot("--encoding", name, "the name of a text encoding", "cp1252")
    return codec.name


def _cannot(flag: str, given: str, wanted: str, example: str) -> UserError:
    return UserError(f"{flag} takes {wanted}", found=repr(given), fix=f"for example {flag} {example}")
