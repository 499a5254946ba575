"""A copy of a data file with rows left out or given another label; all other bytes stay as they are."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from newsdesk.data.stream import format_of
from newsdesk.data.table import Cell, Table
from newsdesk.errors import UserError
from newsdesk.evaluation.csv_lines import delimited_lines
from newsdesk.files import write_bytes


def require_free_target(table: Table, target: Path) -> None:
    """Raise UserError unless ``target`` is a new file of the same format as the table's own."""
    if target.exists() or target.is_symlink():
        own = target.exists() and target.samefile(table.path)
        raise UserError(
            "a cleaned copy is a new file" if own else f"there is something at {target} already",
            found=f"{target} is the data itself, which is never changed" if own else None,
            fix="give --apply a name that is free",
        )
    form, _ = format_of(table.path)
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
    of ``column`` as the file writes classes. Text formats keep every other line byte for byte; parquet keeps
    columns, types and metadata. A target that ends in .gz is compressed. Raises UserError as
    ``require_free_target`` does.
    """
    require_free_target(table, target)
    form, compressed = format_of(target)
    if form == "parquet":
        content = _parquet(table.path, set(drop), relabel, column)
    else:
        content = b"".join(_lines(table, form, set(drop), relabel, column))
    write_bytes(target, gzip.compress(content, mtime=0) if compressed else content)


def _lines(
    table: Table, form: str, drop: set[int], relabel: Mapping[int, Cell], column: str
) -> Iterator[bytes]:
    packed = format_of(table.path)[1]
    raw = table.path.read_bytes()
    lines = io.BytesIO(gzip.decompress(raw) if packed else raw).readlines()
    starts = [line - 1 for line in table.lines]
    yield from lines[: starts[0]]
    for row, (start, stop) in enumerate(zip(starts, [*starts[1:], len(lines)], strict=True)):
        if row in drop:
            continue
        if row not in relabel:
            yield from lines[start:stop]
        elif form in ("jsonl", "ndjson"):
            yield from _relabelled_object(lines[start:stop], column, relabel[row])
        else:
            cells = [
                relabel[row] if name == column else cell
                for name, cell in zip(table.columns, table.rows[row], strict=True)
            ]
            (written,) = delimited_lines([cells], "," if form == "csv" else "\t")
            yield written[:-1] + (b"\r\n" if lines[stop - 1].endswith(b"\r\n") else b"\n")


def _relabelled_object(lines: list[bytes], column: str, cell: Cell) -> Iterator[bytes]:
    """The object in the first line with another label; blank lines behind it as they are."""
    values = json.loads(lines[0].removeprefix(b"\xef\xbb\xbf")) | {column: cell}
    yield json.dumps(values, ensure_ascii=False).encode() + b"\n"
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
