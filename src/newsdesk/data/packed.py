"""Zip archives, Excel's workbooks, which are such archives, and parquet: read in place, within bounds."""

from __future__ import annotations

import datetime
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from newsdesk.data.bounds import ROWS_BETWEEN_LOOKS, MemoryWatch, hopeful, require_unpackable
from newsdesk.data.delimited import head_of
from newsdesk.data.dialect import Dialect
from newsdesk.data.encoding import refuse_other_format
from newsdesk.data.table import BadRow, Cell, Fault, Limits, Row, RowStream, Table
from newsdesk.errors import UserError, missing_package
from newsdesk.files import parsed_json

_ABOUT_DATA = {"readme", "license", "licence", "notice", "changelog"}
_LAST_ROW = 1 << 20  # of an Excel sheet
_ROWS_PER_BATCH = 4096
_BYTES_PER_BATCH = 1 << 28  # where each row has the largest value that its column may hold
_BYTES_A_CHARACTER = 4  # in UTF-8, at most
_LEAST_BYTES_A_CELL = 4  # in memory, however tightly it is packed
_BYTES_READ_AHEAD = 1 << 20  # of each column; without a limit, a whole row group is held


def zip_member(
    stream: BinaryIO, path: Path, limits: Limits, is_data: Callable[[Path], bool]
) -> tuple[BinaryIO, Path]:
    """The one data file in an archive, as a stream, and its name. Nothing is written to the disk.

    Raises UserError for a file that is not a zip archive, holds no data file or several, or one that is
    encrypted or would be far too large.
    """
    archive = _archive(stream, path)
    members = [info for info in archive.infolist() if not info.is_dir() and not _is_hidden(info.filename)]
    data = [info for info in members if is_data(Path(info.filename))]
    data = [info for info in data if Path(info.filename).stem.lower() not in _ABOUT_DATA] or data
    if len(data) != 1:
        names = ", ".join(_shown(info.filename) for info in (data or members)[:8])
        raise UserError(
            f"{path.name} holds {len(data) or 'no'} data files" + ("" if data else " that newsdesk reads"),
            found=names or "nothing",
            fix="unpack the one you mean (unzip ARCHIVE NAME), and give that file",
        )
    (member,) = data
    if member.flag_bits & 1:
        raise UserError(f"{path.name} is encrypted", fix="unpack it, and give the file that it holds")
    _refuse_bomb([member], path, limits)
    try:
        content = cast(BinaryIO, archive.open(member))
    except (NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{_shown(member.filename)} in {path.name} cannot be unpacked",
            found=str(error),
            fix="unpack it with another program, and give that file",
        ) from None
    return content, Path(PurePosixPath(member.filename).name)


def spreadsheet_rows(stream: BinaryIO, path: Path, dialect: Dialect, *, sample: int | None) -> RowStream:
    """The rows of a workbook's only sheet that has any; cells keep their types, dates become ISO 8601 texts.

    The header is detected, and columns are named, as in delimited text. Raises UserError without openpyxl,
    for a file that is not a workbook, and where several sheets have rows.
    """
    try:
        import openpyxl
    except ImportError:
        raise missing_package("openpyxl", "xlsx", f"reading {path.name}") from None
    _refuse_bomb(_archive(stream, path).infolist(), path, dialect.limits)
    try:
        book = openpyxl.load_workbook(stream, read_only=True, data_only=True)
        sheets = [sheet for sheet in book.worksheets if any(_numbered_rows(sheet))]
    except Exception as error:  # whatever openpyxl stumbles over in a file that is not as it should be
        raise UserError(
            f"{path.name} is not a whole Excel workbook",
            found=(str(error).splitlines() or [type(error).__name__])[0],
            fix="open it in the spreadsheet program and save it again, or as csv",
        ) from error
    if len(sheets) != 1:
        raise UserError(
            f"{len(sheets)} sheets of {path.name} have rows" if sheets else f"{path.name} is empty",
            found=", ".join(sheet.title for sheet in sheets) or "no sheet with a row",
            fix="keep the sheet that you mean, or save it as csv" if sheets else "check how it was made",
        )
    rows = hopeful(_sheet_rows(sheets[0], path, dialect.limits), path)
    sampled = list(islice(rows, sample))
    head, faults = head_of(path, [row for row in sampled if isinstance(row, Row)], dialect)
    head = replace(head, notes=(f"sheet {sheets[0].title!r}", *head.notes))
    return RowStream(head, chain(sampled[head.has_header :], rows), faults)


def _archive(stream: BinaryIO, path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        stream.seek(0)
        head = stream.read(16)
        if not head.startswith(b"PK"):
            refuse_other_format(head, path)
        raise UserError(
            f"{path.name} is not a whole zip archive"
            + (", as workbooks are" if path.suffix == ".xlsx" else ""),
            found=str(error),
            fix="fetch or save the file again",
        ) from None


def _refuse_bomb(members: Iterable[zipfile.ZipInfo], path: Path, limits: Limits) -> None:
    """Raise UserError if a member would grow beyond the limit."""
    for member in members:
        require_unpackable(member.file_size, member.compress_size, _shown(member.filename), path, limits)


def _is_hidden(name: str) -> bool:
    return any(
        part.startswith(("__MACOSX", ".")) and part not in (".", "..") for part in PurePosixPath(name).parts
    )


def _shown(name: str) -> str:
    """A member's name for a message: no control characters, not endless."""
    return "".join(character if character.isprintable() else "?" for character in name)[:100]


def _numbered_rows(sheet: Any) -> Iterator[tuple[int, tuple[Cell, ...]]]:
    """Row numbers from 1 and cells, without blank rows and empty cells at the end."""
    sheet.reset_dimensions()  # which many programs write wrongly
    for number, cells in enumerate(sheet.iter_rows(values_only=True), start=1):
        width = len(cells)
        while width and cells[width - 1] in (None, ""):
            width -= 1
        if width or number > _LAST_ROW:
            yield number, tuple(cells[:width])


def _sheet_rows(sheet: Any, path: Path, limits: Limits) -> Iterator[Row | BadRow]:
    width, memory = 0, MemoryWatch(path)
    for number, cells in _numbered_rows(sheet):
        memory.look(every=ROWS_BETWEEN_LOOKS)
        if number > _LAST_ROW:
            wrong = f"the sheet goes on beyond row {_LAST_ROW:,}, the last that a sheet can have"
            yield BadRow(Fault(number, wrong, None, "save it again, or as csv"), b"", ends_file=True)
            return
        if beyond := limits.fault(number, cells):
            yield BadRow(beyond, repr(cells[: limits.columns]).encode(errors="replace"))
            continue
        width = width or len(cells)
        if len(cells) > width:
            fault = Fault(
                number, "too many cells", f"{len(cells)} where the first row has {width}", "name every column"
            )
            yield BadRow(fault, repr(cells).encode(errors="replace"))
        else:
            yield Row(number, tuple(map(_plain, cells)) + (None,) * (width - len(cells)))


def _plain(cell: Cell) -> Cell:
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        return cell.date().isoformat()
    return cell.isoformat() if isinstance(cell, datetime.date | datetime.time) else cell


def parquet_rows(stream: BinaryIO, path: Path, limits: Limits) -> RowStream:
    """The rows of a parquet file; class names in the metadata that the Hub's datasets write are kept.

    Raises UserError without pyarrow, for a file that is not parquet, names a column twice, or is beyond the
    limits as a whole.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_package("pyarrow", "parquet", f"reading {path.name}") from None
    first = stream.read(8)
    stream.seek(0)
    if not first.startswith(b"PAR1"):
        refuse_other_format(first, path)
    try:
        file = pyarrow.parquet.ParquetFile(stream, buffer_size=_BYTES_READ_AHEAD, pre_buffer=False)
        schema = file.schema_arrow
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path.name} is not a whole parquet file",
            found=str(error).splitlines()[0],
            fix="fetch or write the file again",
        ) from None
    names = schema.names
    if len(names) > limits.columns:
        raise limits.too_wide(1, len(names)).error(path)
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise UserError(f"two columns of {path.name} are named {twice!r:.80}", fix="give each its own name")
    head = Table(path, tuple(names), class_names=_hub_class_names(schema.metadata or {}))
    _require_no_parquet_bomb(file.metadata, stream.seek(0, io.SEEK_END), path, limits)
    rows = hopeful(_parquet_rows(file, path, stream, limits), path)
    return RowStream(head, rows, count=file.metadata.num_rows, arrow_schema=schema)


def _require_no_parquet_bomb(metadata: Any, packed: int, path: Path, limits: Limits) -> None:
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    size = sum(group.total_byte_size for group in groups)
    least = metadata.num_rows * metadata.num_columns * _LEAST_BYTES_A_CELL
    require_unpackable(max(size, least), packed, "it", path, limits)


def _parquet_rows(file: Any, path: Path, stream: BinaryIO, limits: Limits) -> Iterator[Row | BadRow]:
    import pyarrow

    line, memory = 0, MemoryWatch(path)
    try:
        for group in range(file.metadata.num_row_groups):
            rows = _rows_per_batch(file.schema_arrow, stream, group)
            for batch in file.iter_batches(batch_size=rows, row_groups=[group]):
                memory.look()
                faults: dict[int, Fault] = {}
                columns = [_values(column, line + 1, limits, faults) for column in batch.columns]
                for place, cells in enumerate(zip(*columns, strict=True)):
                    line += 1
                    fault = faults.get(place) or limits.fault(line, cells)
                    if fault is None:
                        yield Row(line, cells)
                    else:
                        yield BadRow(fault, repr(cells).encode(errors="replace"))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, RecursionError) as error:
        reason = next(iter(str(error).splitlines()), None)
        fault = Fault(line + 1, "the file breaks off or is damaged here", reason, "fetch or write it again")
        yield BadRow(fault, b"", ends_file=True)


def _rows_per_batch(schema: Any, stream: BinaryIO, group: int) -> int:
    """So few rows that a batch fits into memory even if all have the group's longest text: it is stored once.

    The first row, read as an index into the group's dictionary, brings that dictionary along.
    """
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    texts = [field.name for field in schema if pyarrow.types.is_string(field.type)]
    if not texts:
        return _ROWS_PER_BATCH
    file = pyarrow.parquet.ParquetFile(stream, read_dictionary=texts, pre_buffer=False)
    size = 1
    for batch in islice(file.iter_batches(1, row_groups=[group], columns=texts), 1):
        for column in batch.columns:
            values = column.dictionary if pyarrow.types.is_dictionary(column.type) else column
            size += pyarrow.compute.max(pyarrow.compute.binary_length(values)).as_py() or 0
    return min(max(_BYTES_PER_BATCH // size, 1), _ROWS_PER_BATCH)


def _values(column: Any, first: int, limits: Limits, faults: dict[int, Fault]) -> list[Cell]:
    """The cells of a batch's column; None, and a fault by place, for those that Python cannot hold.

    ``first`` is the line of the first one.
    """
    import pyarrow
    import pyarrow.compute

    if pyarrow.types.is_dictionary(column.type):  # a value that many rows have is one object in all of them
        wrong: dict[int, Fault] = {}
        values = _values(column.dictionary, 0, limits, wrong)
        indices = column.indices.to_pylist()
        for place, index in enumerate(indices):
            if index in wrong:
                faults[place] = replace(wrong[index], line=first + place)
        return [None if index is None else values[index] for index in indices]
    if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
        most = _BYTES_A_CHARACTER * limits.characters
        beyond = pyarrow.compute.greater(pyarrow.compute.binary_length(column), most)
        if pyarrow.compute.any(beyond).as_py():
            for place in pyarrow.compute.indices_nonzero(beyond).to_pylist():
                size = len(column[place].as_buffer())
                faults[place] = limits.too_long(first + place, f"{size:,} bytes in one")
            column = pyarrow.compute.if_else(beyond, None, column)
    try:
        found: list[Cell] = column.to_pylist()
        return found
    except (pyarrow.ArrowException, ValueError, OverflowError):  # dates beyond Python's, texts not UTF-8
        pass
    cells: list[Cell] = []
    for place, value in enumerate(column):
        try:
            cells.append(value.as_py())
        except (pyarrow.ArrowException, ValueError, OverflowError) as error:
            cells.append(None)
            what = f"a {column.type} that cannot be read"
            faults[place] = Fault(first + place, what, str(error), "correct the value, or leave the row out")
    return cells


def _hub_class_names(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Class names by column from the schema metadata of `datasets`: of ClassLabel, and of lists of it."""
    try:
        features = parsed_json(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        found = ((column, _class_label(feature)) for column, feature in features.items())
        return {column: tuple(map(str, each["names"])) for column, each in found if "names" in each}
    except (ValueError, AttributeError, TypeError):
        return {}


def _class_label(feature: Any) -> dict[str, Any]:
    """The ClassLabel that a feature is, or a list of; an empty one where it is something else."""
    if isinstance(feature, list):
        feature = {"feature": feature[0]} if len(feature) == 1 else {}
    if isinstance(feature, dict) and "feature" in feature:
        feature = feature["feature"]
    is_class = isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    return feature if is_class else {}
