"""Data files row by row: the format by the name, bad rows among the good ones, in bounded memory."""

from __future__ import annotations

import csv
import difflib
import io
import os
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from newsdesk.data.bounds import ROWS_BETWEEN_LOOKS, MemoryWatch, unpacked
from newsdesk.data.delimited import SAMPLED_CHARACTERS, SAMPLED_LINES, delimited_rows, holds_a_name
from newsdesk.data.dialect import DETECTED, Dialect, detect
from newsdesk.data.encoding import (
    Encoding,
    LineReader,
    as_utf8,
    detect_encoding,
    encoding_of,
    mark_of,
    not_decoded,
    pickle_refused,
    refuse_other_format,
)
from newsdesk.data.json_lines import HEAD, json_rows
from newsdesk.data.news_xml import XML_FORMATS, xml_rows
from newsdesk.data.packed import parquet_rows, spreadsheet_rows, zip_member
from newsdesk.data.table import BadRow, Fault, Row, RowStream, Table
from newsdesk.errors import UserError
from newsdesk.files import open_regular

FORMATS = ("csv", "tsv", "tab", "jsonl", "ndjson", "json", "txt", *XML_FORMATS, "parquet", "xlsx", "zip")
"""The name endings that tell a file's format; those of text may be followed by .gz."""

SAMPLED_ROWS = 4096
"""Rows by which columns are named where a file is not read whole."""

_BYTES_A_CHARACTER = 4  # at most
_COMPRESSED_THEMSELVES = ("parquet", "xlsx", "zip")
_SAVE_SHEET = "open it in the spreadsheet program and save it as .xlsx or .csv"
_SAVE_TEXT = "put the texts into a csv file, one row each, or into .txt files in one folder for each class"
_UNPACK = "unpack it, and give the file that it holds"
_OTHER_FORMATS = {
    **dict.fromkeys(("xls", "xlsm", "xlsb", "ods", "numbers"), _SAVE_SHEET),
    **dict.fromkeys(("doc", "docx", "odt", "rtf", "pdf", "html", "htm"), _SAVE_TEXT),
    **dict.fromkeys(("tar", "tgz", "bz2", "xz", "zst", "rar", "7z"), _UNPACK),
    **dict.fromkeys(("db", "sqlite", "sqlite3"), "export the table as csv"),
    **dict.fromkeys(("feather", "arrow", "avro", "orc"), "convert it to parquet, for example with pandas"),
    **dict.fromkeys(("dta", "sav", "rds", "rdata", "arff"), "export the table as csv from the program"),
}
_PICKLE_ENDINGS = {"pkl", "pickle", "joblib", "pt", "pth", "bin", "npy"}


@contextmanager
def open_rows(
    path: Path, dialect: Dialect = DETECTED, *, sample: int | None = SAMPLED_ROWS
) -> Iterator[RowStream]:
    """A data file for as long as the block lasts, its rows read as they are asked for.

    ``dialect`` says how a text file is written; what it leaves open is detected. Columns that the file does
    not name itself are read off its first ``sample`` rows, None meaning all. Raises UserError for a file
    that is missing, a pickle, empty, of an unknown format or not what its name says.
    """
    if not path.is_dir():
        format_of(path)
    with _open(path) as stream:
        size = os.fstat(stream.fileno()).st_size or 1
        rows = rows_of(stream, path, dialect, sample=sample)
        yield replace(rows, share_read=lambda: stream.tell() / size)


def rows_of(
    stream: BinaryIO,
    path: Path,
    dialect: Dialect = DETECTED,
    *,
    form: str | None = None,
    sample: int | None = SAMPLED_ROWS,
) -> RowStream:
    """As ``open_rows``, from an open binary stream; its format is ``form`` (csv, jsonl.gz ...), else told
    by the name of ``path``, which is otherwise for messages. Stated to be ``txt``, it is one text a line
    unless a delimiter is stated, too.
    """
    stated = form is not None
    form, compressed = format_of(path if form is None else Path(f"stream.{form}"))
    if (compressed or form in _COMPRESSED_THEMSELVES) and not stream.seekable():
        stream = io.BytesIO(stream.read())
    if form == "zip":
        member, name = zip_member(stream, path, dialect.limits, is_data=_is_data)
        inner, compressed = format_of(name)
        if inner in _COMPRESSED_THEMSELVES:  # which are read here and there
            member = io.BytesIO(member.read())
        rows = rows_of(member, path, dialect, form=f"{inner}.gz" if compressed else inner, sample=sample)
        return replace(rows, head=replace(rows.head, notes=(f"{name} in the archive", *rows.head.notes)))
    if form == "xlsx":
        return spreadsheet_rows(stream, path, dialect, sample=sample)
    if form == "parquet":
        return parquet_rows(stream, path, dialect.limits)
    packed = unpacked(stream, path, dialect.limits) if compressed else stream
    if form in XML_FORMATS:
        return xml_rows(packed, path, dialect)
    head = _head(packed, path)
    encoding = detect_encoding(packed, dialect.encoding)
    lines = LineReader(packed, path, encoding, limits=dialect.limits)
    if form in ("json", "jsonl", "ndjson"):
        beginning = as_utf8(io.BytesIO(head), encoding).read()
        if beginning.lstrip().startswith(b"<"):
            fix = "give it the name ending .xml if it is NewsML-G2, RSS or Atom"
            raise UserError(f"{path.name} is XML or HTML, not JSON", found="it begins with <", fix=fix)
        rows = json_rows(lines, beginning, sample=sample)
    elif form == "txt" and dialect.delimiter is None and (stated or not _is_table(lines, dialect)):
        rows = _text_rows(lines)
    else:
        delimiter = "," if form == "csv" else "\t"
        rows = delimited_rows(lines, delimiter, dialect, sample=sample, orange=form == "tab")
    read_as = rows.head.dialect or Dialect(encoding=encoding.name)
    notes = (*filter(None, [encoding.evidence]), *rows.head.notes)
    return replace(rows, head=replace(rows.head, dialect=read_as, notes=notes), rows=_to_the_end(rows, lines))


def _head(stream: BinaryIO, path: Path) -> bytes:
    """The first bytes of a stream, which is left where it was. Raises UserError if they are not text."""
    if not stream.seekable():  # its first line is looked at, too
        return stream.peek(HEAD)[:HEAD] if isinstance(stream, io.BufferedReader) else b""
    start = stream.tell()
    try:
        head = stream.read(HEAD)
        refuse_other_format(head, path)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile):  # reading the rows reports it
        return b""
    finally:
        stream.seek(start)
    return head


def _is_table(lines: LineReader, dialect: Dialect) -> bool:
    """Whether a .txt file holds columns: names are found in its first line, or all lines have tabs."""
    first = [line.text for line in lines.first(SAMPLED_LINES, SAMPLED_CHARACTERS)]
    found = detect(first, dialect, "\t")
    try:
        rows = [row for row in found.reader(first) if row]
    except csv.Error:
        return False
    widths = {len(row) for row in rows}
    if len(widths) != 1 or min(widths) < 2 or len(rows) < 2:
        return False
    return found.delimiter == "\t" or holds_a_name(rows[0], dialect.columns)


def format_of(path: Path) -> tuple[str, bool]:
    """The format by a file's name, and whether it is compressed. Raises UserError for an unknown one."""
    endings = [ending.lstrip(".").lower() for ending in path.suffixes]
    compressed = bool(endings) and endings[-1] == "gz"
    form = next(reversed(endings[:-1] if compressed else endings), "")
    if form in _PICKLE_ENDINGS:
        raise pickle_refused(path)
    if form in _OTHER_FORMATS:
        raise UserError(f"newsdesk does not read .{form} files", found=path.name, fix=_OTHER_FORMATS[form])
    if form not in FORMATS:
        raise UserError(
            f"the format of {path.name} is not known",
            found=f"the name ending {form!r}" if form else "a name without an ending",
            fix=f"use one of {', '.join(FORMATS)}; text formats also with .gz",
        )
    if compressed and form in _COMPRESSED_THEMSELVES:
        raise UserError(
            f"{path.name} is a compressed {form} file, and {form} is compressed itself",
            fix=f"gunzip {path.name}",
        )
    return form, compressed


def _open(path: Path) -> BinaryIO:
    """The file, opened for reading bytes. Raises UserError with a helpful word if that cannot be done."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(
                f"{path} is no file that can be read twice",
                found="a pipe or a device",
                fix="write it to a file first; predict reads texts from standard input with --input -",
            )
        return path.open("rb")
    except FileNotFoundError:
        folder = path.parent
        names = sorted(child.name for child in folder.iterdir()) if folder.is_dir() else []
        close = difflib.get_close_matches(path.name, names, n=3)
        raise UserError(
            f"there is no file {path}",
            found=f"in its folder: {', '.join(close or names[:8]) or 'nothing'}" if folder.is_dir() else None,
            fix=f"did you mean {folder / close[0]}?" if close else "check the path",
        ) from None
    except IsADirectoryError:
        inside = sorted(child.name for child in path.iterdir())[:8]
        raise UserError(
            f"{path} is a folder, not a data file",
            found=", ".join(inside) or "nothing in it",
            fix="name one file in it (predict --engine ray reads all files of a folder)",
        ) from None
    except PermissionError:
        raise UserError(f"{path} may not be read", fix=f"chmod u+r {path}") from None


def _is_data(name: Path) -> bool:
    try:
        form, _ = format_of(name)
    except UserError:
        return False
    return form != "zip"


def _text_rows(lines: LineReader) -> RowStream:
    rows = (
        BadRow(fault, line.raw)
        if (fault := line.fault or lines.limits.fault(line.number, (line.text,)))
        else Row(line.number, (line.text.rstrip("\r\n"),))
        for line in lines
    )
    return RowStream(Table(lines.path, ("text",), has_header=False), rows)


def _to_the_end(rows: RowStream, lines: LineReader) -> Iterator[Row | BadRow]:
    """All rows, and what broke the file off. Raises UserError at once if there is nothing at all."""
    first = list(islice(rows.rows, 1))
    if not (first or rows.faults or lines.broken_off or (rows.head.has_header and rows.head.columns)):
        raise UserError(
            f"{lines.path.name} is empty", found="no row and no header", fix="check how the file was made"
        )

    def end() -> Iterator[BadRow]:
        if lines.broken_off is not None:
            yield BadRow(lines.broken_off, b"", ends_file=True)

    return chain(first, rows.rows, end())


def read_table(path: Path, dialect: Dialect = DETECTED) -> Table:
    """Everything a data file holds, its format by its name; or a folder with a folder for each class.

    ``dialect`` says how a text file is written; what it leaves open is detected. Cells are str, except that
    jsonl and parquet keep the types of their values (None where a key is missing).
    Blank lines are skipped, except in .txt, where each line is a text.

    Raises UserError for a file that is missing, a pickle, empty or of an unknown format, and for the first
    malformed row: a file is read whole or not at all.
    """
    return _whole(*read_with_faults(path, dialect))


def read_with_faults(path: Path, dialect: Dialect = DETECTED) -> tuple[Table, tuple[Fault, ...]]:
    """As ``read_table``, but malformed rows are left out and returned as faults, in line order."""
    folder = path / "train" if class_folders(path / "train") else path
    if class_folders(folder):
        return _collected(_rows_by_class(folder, dialect))
    with open_rows(path, dialect, sample=None) as rows:
        return _collected(rows)


def read_stream(
    stream: BinaryIO, form: str, dialect: Dialect = DETECTED, *, name: str = "standard input"
) -> Table:
    """As ``read_table``, from an open binary stream whose format is stated: ``csv``, ``jsonl.gz`` ..."""
    return _whole(*_collected(rows_of(stream, Path(name), dialect, form=form, sample=None)))


def class_folders(path: Path) -> list[Path]:
    """The folders in a folder that hold texts, a class each, by name; none unless there are two of them.

    A folder that holds a file of training rows has none.
    """
    if not path.is_dir() or any(child.name.startswith("train.") for child in path.iterdir()):
        return []
    inside = sorted(child for child in path.iterdir() if child.is_dir() and child.name[0] not in "._")
    found = [child for child in inside if _texts_below(child)]
    return found if len(found) > 1 else []


def _texts_below(folder: Path) -> list[Path]:
    """The .txt files in a folder and those below it, by name; those without an ending if there is no .txt."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name[0] != "."]
    texts = [file for file in files if file.suffix.lower() == ".txt"]
    return texts or [file for file in files if not file.suffix]


def _rows_by_class(folder: Path, dialect: Dialect) -> RowStream:
    """Columns text, label and file: a row for each file below a class's folder, in the order of their names.

    Lines are rows, counted from 1. The encoding is stated, or told from all files together.
    """
    classes = class_folders(folder)
    paths = [(path, each.name) for each in classes for path in _texts_below(each)]
    memory, contents = MemoryWatch(folder), []
    for path, _ in paths:
        memory.look(every=ROWS_BETWEEN_LOOKS)
        with open_regular(path) as stream:  # of one that is too long, enough to be too long
            contents.append(stream.read(_BYTES_A_CHARACTER * (dialect.limits.characters + 1)))
    encoding = Encoding(dialect.encoding) if dialect.encoding else encoding_of(contents, "files")
    rows: list[Row | BadRow] = []
    for line, ((path, label), content) in enumerate(zip(paths, contents, strict=True), start=1):
        name = path.relative_to(folder).as_posix()
        text = as_utf8(io.BytesIO(content), Encoding(mark_of(content) or encoding.name)).read()
        try:
            cell = text.decode().removeprefix("\ufeff").replace("\r\n", "\n").strip()
        except UnicodeDecodeError:
            rows.append(BadRow(not_decoded(line, encoding.name, what=f"{name} is"), content))
        else:
            row = (cell, unicodedata.normalize("NFC", label), name)
            fault = dialect.limits.fault(line, row)
            rows.append(Row(line, row) if fault is None else BadRow(fault, content))
    notes = (*filter(None, [encoding.evidence]), f"a class for each of {len(classes)} folders")
    read_as = Dialect(encoding=encoding.name)
    columns = ("text", "label", "file")
    return RowStream(Table(folder, columns, class_column="label", dialect=read_as, notes=notes), iter(rows))


def _whole(table: Table, faults: tuple[Fault, ...]) -> Table:
    if not faults:
        return table
    error = faults[0].error(table.path, others=len(faults) - 1)
    if len(faults) > len(table) and table.dialect is not None and table.dialect.delimiter is not None:
        fix = f"{error.fix}; it was read as: {table.read_as} (--delimiter, --quote, --encoding state another)"
        raise UserError(error.wrong, found=error.found, fix=fix)
    raise error


def _collected(stream: RowStream) -> tuple[Table, tuple[Fault, ...]]:
    lines, cells, faults = [], [], list(stream.faults)
    for row in stream.rows:
        if isinstance(row, Row):
            lines.append(row.line)
            cells.append(row.cells_under(stream.head.columns))
        else:
            faults.append(row.fault)
    table = replace(stream.head, rows=tuple(cells), lines=tuple(lines))
    return table, tuple(sorted(faults, key=lambda fault: fault.line))
