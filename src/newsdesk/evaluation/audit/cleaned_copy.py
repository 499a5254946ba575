"""A copy of a data file with rows left out or given another label; all other bytes stay as they are."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from newsdesk.data.dialect import Dialect
from newsdesk.data.encoding import UTF8
from newsdesk.data.stream import format_of
from newsdesk.data.table import Cell, Table
from newsdesk.errors import UserError
from newsdesk.evaluation.csv_lines import delimited_lines
from newsdesk.files import write_bytes

_FORMATS = ("csv", "tsv", "tab", "txt", "jsonl", "ndjson", "parquet")


def require_free_target(table: Table, target: Path) -> None:
    """Raise UserError unless ``target`` is a new file of the same format as the table's own."""
    if target.exists() or target.is_symlink():
        own = target.exists() and target.samefile(table.path)
        raise UserError(
            "a cleaned copy is a new file" if own else f"there is something at {target} already",
            found=f"{target} is the data itself, which is never changed" if own else None,
            fix="give --apply a name that is free",
        )
    form = "a folder" if table.path.is_dir() else format_of(table.path)[0]
    if form not in _FORMATS or len(set(table.lines)) < len(table):
        raise UserError(
            "a cleaned copy can be written of a csv, tsv, jsonl or parquet file",
            found=f"{table.path} ({form})",
            fix="convert the data to one of these first, or leave --apply out",
        )
    if format_of(target)[0] != form:
        raise UserError(
            f"a cleaned copy has the format of the data, {form}",
            found=target.name,
            fix=f"name it, for example, --apply {target.with_suffix('').name}.{form}",
        )


def write_cleaned(
    table: Table, target: Path, *, drop: Collection[int], relabel: Mapping[int, Cell], column: str
) -> None:
    """Write the table's file anew without the rows of ``drop``, and with other cells in its label column.

    Positions are 0-based rows of ``table``, which must be the whole file. ``relabel`` gives rows their cell
    of ``column`` as the file writes classes. Text formats keep every other line byte for byte, and the
    relabelled ones their delimiter, quote and encoding; parquet keeps columns, types and metadata. A target
    that ends in .gz is compressed. Raises UserError as ``require_free_target`` does.
    """
    require_free_target(table, target)
    form, compressed = format_of(target)
    if form == "parquet":
        content = _parquet(table.path, set(drop), relabel, column)
    else:
        content = _text(table, form, set(drop), relabel, column)
    write_bytes(target, gzip.compress(content, mtime=0) if compressed else content)


def _text(table: Table, form: str, drop: set[int], relabel: Mapping[int, Cell], column: str) -> bytes:
    raw = table.path.read_bytes()
    raw = gzip.decompress(raw) if format_of(table.path)[1] else raw
    dialect = table.dialect or Dialect()
    encoding = dialect.encoding or UTF8
    wide = encoding.startswith(("utf-16", "utf-32"))  # in which a line feed is more than one byte
    if wide:
        raw, dialect = raw.decode(encoding).encode(), replace(dialect, encoding=UTF8)
    lines = raw.splitlines(keepends=True) if b"\n" not in raw else io.BytesIO(raw).readlines()
    written = b"".join(_lines(table, lines, form, dialect, drop, relabel, column))
    return written.decode().encode(encoding) if wide else written


def _lines(
    table: Table,
    lines: list[bytes],
    form: str,
    dialect: Dialect,
    drop: set[int],
    relabel: Mapping[int, Cell],
    column: str,
) -> Iterator[bytes]:
    encoding = dialect.encoding or UTF8
    starts = [line - 1 for line in table.lines]
    yield from lines[: starts[0]]
    for row, (start, stop) in enumerate(zip(starts, [*starts[1:], len(lines)], strict=True)):
        if row in drop:
            continue
        if row not in relabel:
            yield from lines[start:stop]
        elif form in ("jsonl", "ndjson"):
            yield from _relabelled_object(lines[start:stop], column, relabel[row], encoding)
        else:
            cells = [
                relabel[row] if name == column else cell
                for name, cell in zip(table.columns, table.rows[row], strict=True)
            ]
            usual = "," if form == "csv" else "\t"
            (line,) = delimited_lines([cells], dialect.delimiter or usual, dialect.quote or '"')
            end = next((end for end in (b"\r\n", b"\r") if lines[stop - 1].endswith(end)), b"\n")
            yield line[:-1].decode().encode(encoding) + end


def _relabelled_object(lines: list[bytes], column: str, cell: Cell, encoding: str) -> Iterator[bytes]:
    """The object in the first line with another label; blank lines behind it as they are."""
    values = json.loads(lines[0].decode(encoding).removeprefix("\ufeff")) | {column: cell}
    yield json.dumps(values, ensure_ascii=False).encode(encoding) + b"\n"
    yield from lines[1:]


def _parquet(path: Path, drop: set[int], relabel: Mapping[int, Cell], column: str) -> bytes:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    position = table.schema.get_field_index(column)
    cells = [relabel.get(row, cell) for row, cell in enumerate(table.column(position).to_pylist())]
    field = table.schema.field(position)
    table = table.set_column(position, field, pyarrow.array(cells, type=field.type))
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table.take([row for row in range(len(table)) if row not in drop]), buffer)
    return buffer.getvalue()
