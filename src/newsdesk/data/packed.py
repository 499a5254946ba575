"""Zip archives, Excel's workbooks, which are such archives, and parquet: read in place, within bounds."""

from __future__ import annotations

import datetime
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from newsdesk.data.delimited import head_of
from newsdesk.data.dialect import Dialect
from newsdesk.data.encoding import refuse_other_format
from newsdesk.data.table import BadRow, Cell, Fault, Row, RowStream, Table
from newsdesk.errors import UserError, missing_package
from newsdesk.files import parsed_json

_LARGEST = 1 << 30  # bytes of a member that is packed more tightly than any text
_TIGHTEST = 200  # bytes made of one; texts of news shrink to a third, whatever is repeated to a fiftieth
_ABOUT_DATA = {"readme", "license", "licence", "notice", "changelog"}
_ROWS_PER_BATCH = 4096
_BYTES_READ_AHEAD = 1 << 20  # of each column; without a limit, a whole row group is held


def zip_member(stream: BinaryIO, path: Path, is_data: Callable[[Path], bool]) -> tuple[BinaryIO, Path]:
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
    _refuse_bomb([member], path)
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
    _refuse_bomb(_archive(stream, path).infolist(), path)
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
    rows = _sheet_rows(sheets[0])
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


def _refuse_bomb(members: Iterable[zipfile.ZipInfo], path: Path) -> None:
    """Raise UserError if a member would grow to more than a gigabyte from next to nothing."""
    for member in members:
        if member.file_size > max(_LARGEST, _TIGHTEST * member.compress_size):
            raise UserError(
                f"{path.name} is packed too tightly to be data",
                found=f"{_shown(member.filename)} would grow from {member.compress_size:,} bytes to"
                f" {member.file_size:,}",
                fix="unpack it yourself if you trust it, and give the file that it holds",
            )


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
        width = max((place for place, cell in enumerate(cells, start=1) if cell not in (None, "")), default=0)
        if width:
            yield number, tuple(cells[:width])


def _sheet_rows(sheet: Any) -> Iterator[Row | BadRow]:
    width = 0
    for number, cells in _numbered_rows(sheet):
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


def parquet_rows(stream: BinaryIO, path: Path) -> RowStream:
    """The rows of a parquet file; class names in the metadata that the Hub's datasets write are kept.

    Raises UserError without pyarrow, or for a file that is not parquet.
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
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path.name} is not a whole parquet file",
            found=str(error).splitlines()[0],
            fix="fetch or write the file again",
        ) from None
    schema = file.schema_arrow
    head = Table(path, tuple(schema.names), class_names=_hub_class_names(schema.metadata or {}))
    return RowStream(head, _parquet_rows(file), count=file.metadata.num_rows, arrow_schema=schema)


def _parquet_rows(file: Any) -> Iterator[Row | BadRow]:
    import pyarrow

    line = 0
    try:
        for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH):
            for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                line += 1
                yield Row(line, cells)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # texts, dates and lengths
        reason = next(iter(str(error).splitlines()), None)
        fault = Fault(line + 1, "the file breaks off or is damaged here", reason, "fetch or write it again")
        yield BadRow(fault, b"", ends_file=True)


def _hub_class_names(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Class names by column from the schema metadata of `datasets` (its ClassLabel features)."""
    try:
        features = parsed_json(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return {
            column: tuple(map(str, feature["names"]))
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and "names" in feature
        }
    except (ValueError, AttributeError, TypeError):
        return {}
