"""Data files row by row: the format told by the name, bad rows among the good ones, in bounded memory."""

from __future__ import annotations

import difflib
import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

from newsdesk.data.delimited import delimited_rows
from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.data.encoding import detect_encoding
from newsdesk.data.json_lines import json_rows
from newsdesk.data.lines import LineReader, pickle_refused, refuse_foreign
from newsdesk.data.parquet import parquet_rows
from newsdesk.data.table import BadRow, Row, RowStream, Table
from newsdesk.errors import UserError

FORMATS = ("csv", "tsv", "tab", "jsonl", "ndjson", "parquet", "txt")
"""The name endings that tell a file's format; each but parquet may be followed by .gz."""

SAMPLED_ROWS = 4096
"""Rows from which a file that is not read whole tells its columns."""

_PICKLE_ENDINGS = {"pkl", "pickle", "joblib", "pt", "pth", "bin", "npy"}


@contextmanager
def open_rows(
    path: Path, dialect: Dialect = DETECTED, *, sample: int | None = SAMPLED_ROWS
) -> Iterator[RowStream]:
    """A data file for as long as the block lasts, its rows read as they are asked for.

    ``dialect`` says how a text file is written; what it leaves open is detected. Columns that the file does
    not name itself are read off its first ``sample`` rows, None meaning all. Raises UserError for a file
    that is missing, a pickle, empty, of no known format or unlike its name.
    """
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
    by the name of ``path``, which is otherwise for messages.
    """
    form, compressed = format_of(path if form is None else Path(f"stream.{form}"))
    if form == "parquet":
        return parquet_rows(stream, path)
    packed = cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if compressed else stream
    _refuse_foreign_head(packed, path)
    encoding = detect_encoding(packed, dialect.encoding)
    lines = LineReader(packed, path, encoding)
    if form in ("jsonl", "ndjson"):
        rows = json_rows(lines, sample=sample)
    elif form == "txt":
        rows = _text_rows(lines)
    else:
        delimiter = "," if form == "csv" else "\t"
        rows = delimited_rows(lines, delimiter, dialect, sample=sample, orange=form == "tab")
    read_as = rows.head.dialect or Dialect(encoding=encoding.name)
    head = replace(rows.head, dialect=read_as, notes=(*filter(None, [encoding.evidence]), *rows.head.notes))
    return replace(rows, head=head, rows=_to_the_end(rows, lines))


def _refuse_foreign_head(stream: BinaryIO, path: Path) -> None:
    """Raise UserError if the stream, left where it was, begins like another kind of file than text."""
    if not stream.seekable():
        return  # the first line is looked at, too
    start = stream.tell()
    try:
        refuse_foreign(stream.read(16), path)
    except (OSError, EOFError, zlib.error):  # damaged; whoever reads the rows reports it
        pass
    finally:
        stream.seek(start)


def format_of(path: Path) -> tuple[str, bool]:
    """The format that a file's name tells, and whether it is compressed. Raises UserError for others."""
    endings = [ending.lstrip(".").lower() for ending in path.suffixes]
    compressed = bool(endings) and endings[-1] == "gz"
    form = next(reversed(endings[:-1] if compressed else endings), "")
    if form in _PICKLE_ENDINGS:
        raise pickle_refused(path)
    if form not in FORMATS:
        raise UserError(
            f"the format of {path.name} is not known",
            found=f"the name ending {form!r}" if form else "a name without an ending",
            fix=f"use one of {', '.join(FORMATS)}, each but parquet also with .gz",
        )
    if compressed and form == "parquet":
        raise UserError(
            f"{path.name} is a compressed parquet file; parquet compresses its own columns",
            fix=f"gunzip {path.name}",
        )
    return form, compressed


def _open(path: Path) -> BinaryIO:
    """The file, opened for reading bytes. Raises UserError with a helpful word if that cannot be done."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        _missing(path)
    except IsADirectoryError:
        inside = sorted(child.name for child in path.iterdir())[:8]
        raise UserError(
            f"{path} is a folder, not a data file",
            found=", ".join(inside) or "nothing in it",
            fix="name one file in it",
        ) from None
    except PermissionError:
        raise UserError(f"{path} may not be read", fix=f"chmod u+r {path}") from None


def _missing(path: Path) -> NoReturn:
    folder = path.parent
    names = sorted(child.name for child in folder.iterdir()) if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=3)
    raise UserError(
        f"there is no file {path}",
        found=f"in its folder: {', '.join(near or names[:8]) or 'nothing'}" if folder.is_dir() else None,
        fix=f"did you mean {folder / near[0]}?" if near else "check the path",
    ) from None


def _text_rows(lines: LineReader) -> RowStream:
    rows = (
        Row(line.number, (line.text.rstrip("\r\n"),)) if line.fault is None else BadRow(line.fault, line.raw)
        for line in lines
    )
    return RowStream(Table(lines.path, ("text",), (), (), has_header=False), rows)


def _to_the_end(rows: RowStream, lines: LineReader) -> Iterator[Row | BadRow]:
    """All rows, and what broke the file off. Raises UserError if there is nothing at all."""
    named = rows.head.has_header and rows.head.columns
    first = list(islice(rows.rows, 1))
    if not (first or named or rows.faults or lines.broken_off):
        raise UserError(
            f"{lines.path.name} is empty", found="no row and no header", fix="check how the file was made"
        )
    return chain(first, rows.rows, _break(lines))


def _break(lines: LineReader) -> Iterator[BadRow]:
    if lines.broken_off is not None:
        yield BadRow(lines.broken_off, b"", ends_file=True)
