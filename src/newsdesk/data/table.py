"""Tables: what a data file holds, row by row, before anyone decides which column is the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from newsdesk.data.fields import NEWS_FIELDS, value_at
from newsdesk.errors import UserError

if TYPE_CHECKING:
    from newsdesk.data.dialect import Dialect

Cell: TypeAlias = object
"""A value as the file gives it: str from text formats, any JSON value from jsonl and parquet."""

IN_MEMORY = "(given in memory)"
"""What stands for the name of data in a run whose rows a program gave, not a file."""

AG_NEWS_COLUMNS = ("class_index", "title", "description")
"""The columns of the official AG News files (Zhang et al., 2015), which have no header themselves."""

# fmt: off
LABEL_COLUMNS = frozenset({
    "label", "labels", "label_id", "class", "class_id", "class_index", "category", "topic", "section",
    "target",
})
"""Canonical names under which files usually keep the class."""

LABEL_LISTS = frozenset({"classes", "categories", "topics", "sections", "targets", "tags"})
"""Those under which they keep several labels; looked for where there is none of the others."""

TEXT_COLUMNS = frozenset({
    "title", "headline", "subject", "text", "description", "short_description", "abstract", "summary", "lead",
    "body", "content", "article", "sentence", "quote",
})
"""Canonical names under which files usually keep text that decides the class."""
# fmt: on


def canonical(column: str) -> str:
    """A column name as it is compared with the usual ones: ``Class Index`` becomes ``class_index``."""
    return "_".join(column.casefold().replace("-", " ").replace("_", " ").split())


@dataclass(frozen=True)
class Fault:
    """Something wrong at one place of a file.

    Attributes:
        line: 1-based line (parquet: row) where it begins.
        wrong: what is wrong, without the file's name.
        found: what is there.
        fix: how to put it right.
        encoding: True when the bytes or characters are at fault rather than the row's shape.
    """

    line: int
    wrong: str
    found: str | None = None
    fix: str | None = None
    encoding: bool = False

    def error(self, path: Path, others: int = 0) -> UserError:
        """The error that reports this fault of ``path`` and the number of ``others`` after it."""
        more = f"; `newsdesk data check {path}` lists this fault and {others:,} more" if others else ""
        return UserError(
            f"{path.name}, line {self.line}: {self.wrong}", found=self.found, fix=(self.fix or "") + more
        )


LONGEST_TEXT = 4_000_000
"""Characters of a text, at most; the tokenizers library takes about 200 bytes of memory for each."""


@dataclass(frozen=True)
class Limits:
    """How large the rows of a file may be; those beyond are bad rows.

    Attributes:
        characters: of a cell.
        columns: of a file, and keys of an object.
        unpacked: bytes that a compressed file may grow to; None: what text that is packed may be.
    """

    characters: int = 1_000_000
    columns: int = 1000
    unpacked: int | None = None

    def fault(self, line: int, cells: Sequence[Cell]) -> Fault | None:
        """What is wrong with a row of these cells; None where it is within the limits."""
        if len(cells) > self.columns:
            return self.too_wide(line, len(cells))
        for cell in cells:
            if isinstance(cell, str):
                if len(cell) > self.characters:
                    return self.too_long(line, f"{len(cell):,} characters in one")
            elif isinstance(cell, _NESTED):
                longest = _longest_within(cell)
                if longest is None:
                    return too_deep(line)
                if longest > self.characters:
                    return self.too_long(line, f"{longest:,} characters in one")
        return None

    def too_wide(self, line: int, columns: int) -> Fault:
        """The fault of a row of so many columns or keys."""
        found = f"{columns:,} where at most {self.columns:,} are read"
        return Fault(line, "too many columns", found, "leave out some, or raise the limit: --max-columns")

    def too_long(self, line: int, found: str) -> Fault:
        """The fault of a row with a cell beyond the limit."""
        found += f", where at most {self.characters:,} are read"
        return Fault(line, "a cell is too long", found, "cut it, or raise the limit: --max-characters")


_NESTED = (dict, list, tuple)
_DEEPEST = 100  # far below what Python's recursion allows whoever writes the row out again


def _longest_within(cell: Any) -> int | None:
    """Characters of the longest text in a list or object; None if such are nested beyond `_DEEPEST`."""
    level: list[Any] = [cell]
    longest = 0
    for _ in range(_DEEPEST):
        inside = (entry.values() if isinstance(entry, dict) else entry for entry in level)
        values = [value for entry in inside for value in entry]
        longest = max(longest, *(len(value) for value in values if isinstance(value, str)), 0)
        level = [value for value in values if isinstance(value, _NESTED)]
        if not level:
            return longest
    return None


def too_deep(line: int) -> Fault:
    """The fault of a row whose values are nested without end."""
    found = f"more than {_DEEPEST} lists or objects within each other"
    return Fault(line, "nested too deeply", found, "keep the text and label at the top level")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    Attributes:
        line: 1-based line (parquet: row) where it begins.
        cells: its values.
        keys: what they are called; None where they are those of the file's columns, in that order.
        source: the JSON that it was read from, if it is a ninjs item.
    """

    line: int
    cells: tuple[Cell, ...]
    keys: tuple[str, ...] | None = None
    source: str | None = None

    def record(self, columns: Sequence[str]) -> dict[str, Cell]:
        """The values by key, or by the file's columns where the row has no keys of its own."""
        return dict(zip(columns if self.keys is None else self.keys, self.cells, strict=True))

    def cells_under(self, columns: Sequence[str]) -> tuple[Cell, ...]:
        """The values under these columns; None for a key that the row does not have."""
        if self.keys is None or self.keys == columns:
            return self.cells
        return tuple(map(self.record(columns).get, columns))


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        fault: why.
        raw: its bytes as they are in the file.
        ends_file: whether nothing after it can be read either.
    """

    fault: Fault
    raw: bytes
    ends_file: bool = False


@dataclass(frozen=True)
class Table:
    """A data file in memory, with every column and the order of its rows.

    Attributes:
        path: the file, for messages.
        columns: column names, in the file's order, without repetition.
        rows: one tuple of cells a row, each as long as ``columns``.
        lines: for each row the 1-based line where it begins (parquet: the row's number).
        has_header: whether the file itself names its columns.
        class_column: the column that the file itself declares to be the class (Orange's .tab), if any.
        class_names: class names in id order that the file declares (the Hub's parquet), by column.
        dialect: how a text file is written; None for others.
        news: the news format of its rows, such as ``ninjs 3``; empty for others.
        notes: what else there is to know of how it was read, for people.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...] = ()
    lines: tuple[int, ...] = ()
    has_header: bool = True
    class_column: str | None = None
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dialect: Dialect | None = None
    news: str = ""
    notes: tuple[str, ...] = ()

    @property
    def read_as(self) -> str:
        """How the file was read, for people: ``encoding utf-8, delimiter ',', quote ", with a header``."""
        return "; ".join(filter(None, ("" if self.dialect is None else self.dialect.describe(), *self.notes)))

    @property
    def is_noteworthy(self) -> bool:
        """Whether the file is read in another way than UTF-8 with a header and double quotes suggests."""
        plain = self.dialect is None or self.dialect.is_plain
        return bool(self.notes) or not plain

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def column(self, name: str) -> tuple[Cell, ...]:
        """The cells of one column, or what a path leads to, in row order: see `fields.value_at`."""
        if name not in self.columns or (self.news and name in NEWS_FIELDS):
            return tuple(value_at(record, name) for record in self.records())
        position = self.columns.index(name)
        return tuple(row[position] for row in self.rows)

    def records(self) -> Iterator[dict[str, Cell]]:
        """The rows as dictionaries from column name to cell."""
        return (dict(zip(self.columns, row, strict=True)) for row in self.rows)


@dataclass(frozen=True)
class RowStream:
    """A data file as it is read, once: what its head says, then row after row.

    Attributes:
        head: the table without its rows; of jsonl, the columns are the keys of the sampled rows.
        rows: its rows in line order, bad ones among them.
        faults: what is wrong with the head itself.
        count: the number of rows, where the file says it beforehand (parquet).
        share_read: how much of the file has been read so far, 0 to 1, where its size is known.
        arrow_schema: the types of its columns, where it has any (parquet: a pyarrow.Schema).
        in_array: whether its rows are the entries of one JSON array.
    """

    head: Table
    rows: Iterator[Row | BadRow]
    faults: tuple[Fault, ...] = ()
    count: int | None = None
    share_read: Callable[[], float] | None = None
    arrow_schema: Any = None
    in_array: bool = False
