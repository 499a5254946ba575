"""Data files read whole or not at all: what training and evaluation learn and measure on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.data.stream import open_rows, rows_of
from newsdesk.data.table import Cell, Fault, Row, RowStream, Table


def read_table(path: Path, dialect: Dialect = DETECTED) -> Table:
    """Everything a data file holds, its format told by its name.

    ``dialect`` says how a text file is written; what it leaves open is detected. Cells are str, except that
    jsonl and parquet keep the types of their values (None where a key is missing).
    Blank lines are no rows, except in .txt, where each line is a text.

    Raises UserError for a file that is missing, a pickle, empty or of no known format, and for the first
    malformed row: a file is read whole or not at all.
    """
    return _whole(*read_with_faults(path, dialect))


def read_with_faults(path: Path, dialect: Dialect = DETECTED) -> tuple[Table, tuple[Fault, ...]]:
    """As ``read_table``, but malformed rows are left out and returned as faults, in line order."""
    with open_rows(path, dialect, sample=None) as rows:
        return _collected(rows)


def read_stream(
    stream: BinaryIO, form: str, dialect: Dialect = DETECTED, *, name: str = "standard input"
) -> Table:
    """As ``read_table``, from an open binary stream whose format is stated: ``csv``, ``jsonl.gz`` ..."""
    return _whole(*_collected(rows_of(stream, Path(name), dialect, form=form, sample=None)))


def _whole(table: Table, faults: tuple[Fault, ...]) -> Table:
    if faults:
        raise faults[0].error(table.path, others=len(faults) - 1)
    return table


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
