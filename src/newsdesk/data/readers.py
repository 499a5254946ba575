"""Data files read whole or not at all: what training and evaluation learn and measure on."""

from __future__ import annotations

import io
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from newsdesk.data.datasets import class_folders, split_folder, texts_below
from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.data.encoding import Encoding, as_utf8, encoding_of_texts, mark_of
from newsdesk.data.stream import open_rows, rows_of
from newsdesk.data.table import Cell, Fault, Row, RowStream, Table
from newsdesk.errors import UserError


def read_table(path: Path, dialect: Dialect = DETECTED) -> Table:
    """Everything a data file holds, its format told by its name; or a folder with a folder for each class.

    ``dialect`` says how a text file is written; what it leaves open is detected. Cells are str, except that
    jsonl and parquet keep the types of their values (None where a key is missing).
    Blank lines are no rows, except in .txt, where each line is a text.

    Raises UserError for a file that is missing, a pickle, empty or of no known format, and for the first
    malformed row: a file is read whole or not at all.
    """
    return _whole(*read_with_faults(path, dialect))


def read_with_faults(path: Path, dialect: Dialect = DETECTED) -> tuple[Table, tuple[Fault, ...]]:
    """As ``read_table``, but malformed rows are left out and returned as faults, in line order."""
    folder = split_folder(path, "train") or path
    if class_folders(folder):
        return _texts_by_class(folder, dialect)
    with open_rows(path, dialect, sample=None) as rows:
        return _collected(rows)


def read_stream(
    stream: BinaryIO, form: str, dialect: Dialect = DETECTED, *, name: str = "standard input"
) -> Table:
    """As ``read_table``, from an open binary stream whose format is stated: ``csv``, ``jsonl.gz`` ..."""
    return _whole(*_collected(rows_of(stream, Path(name), dialect, form=form, sample=None)))


def _texts_by_class(folder: Path, dialect: Dialect) -> tuple[Table, tuple[Fault, ...]]:
    """Columns text, label and file: a row for each file below a class's folder, in the order of their names.

    Lines are rows, counted from 1. The encoding is stated, or told from all files together.
    """
    paths = [(path, each.name) for each in class_folders(folder) for path in texts_below(each)]
    contents = [path.read_bytes() for path, _ in paths]
    encoding = Encoding(dialect.encoding) if dialect.encoding else encoding_of_texts(contents)
    rows: list[tuple[Cell, ...]] = []
    lines: list[int] = []
    faults = []
    for line, ((path, label), content) in enumerate(zip(paths, contents, strict=True), start=1):
        name = path.relative_to(folder).as_posix()
        text = as_utf8(io.BytesIO(content), Encoding(mark_of(content) or encoding.name)).read()
        try:
            cell = text.decode().removeprefix("\ufeff").replace("\r\n", "\n").strip()
        except UnicodeDecodeError:
            fix = "name the encoding, for example --encoding cp1252, or fix the file"
            faults.append(Fault(line, f"{name} is not {encoding.name}", None, fix, encoding=True))
            continue
        rows.append((cell, unicodedata.normalize("NFC", label), name))
        lines.append(line)
    notes = (*filter(None, [encoding.evidence]), f"a class for each of {len(class_folders(folder))} folders")
    head = Table(folder, ("text", "label", "file"), tuple(rows), tuple(lines), has_header=True)
    read_as = Dialect(encoding=encoding.name)
    return replace(head, class_column="label", dialect=read_as, notes=notes), tuple(faults)


def _whole(table: Table, faults: tuple[Fault, ...]) -> Table:
    if not faults:
        return table
    error = faults[0].error(table.path, others=len(faults) - 1)
    if len(faults) > len(table) and table.dialect is not None and table.dialect.delimiter is not None:
        fix = f"{error.fix}; it was read as: {table.read_as} (--delimiter, --quote, --encoding state another)"
        raise UserError(error.wrong, found=error.found, fix=fix)
    raise error


def _collected(stream: RowStream) -> tuple[Table, tuple[Fault, ...]]:
    columns, faults = stream.head.columns, list(stream.faults)
    rows: list[tuple[Cell, ...]] = []
    lines: list[int] = []
    for row in stream.rows:
        if isinstance(row, Row):
            rows.append(row.cells_under(columns))
            lines.append(row.line)
        else:
            faults.append(row.fault)
    faults.sort(key=lambda fault: fault.line)
    return replace(stream.head, rows=tuple(rows), lines=tuple(lines)), tuple(faults)
