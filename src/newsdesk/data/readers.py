"""Reading data files (csv, tsv, tab, jsonl, parquet, plain text; compressed or not): whole or not at all."""

from __future__ import annotations

import difflib
import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from newsdesk.data.delimited import read_delimited
from newsdesk.data.lines import Line, LineReader, pickle_refused, refuse_foreign
from newsdesk.data.table import Cell, Fault, Table
from newsdesk.errors import UserError, missing_package

FORMATS = ("csv", "tsv", "tab", "jsonl", "ndjson", "parquet", "txt")
"""The name endings that tell a file's format; each but parquet may be followed by .gz."""

_PICKLE_ENDINGS = {"pkl", "pickle", "joblib", "pt", "pth", "bin", "npy"}


def read_table(path: Path, *, header: bool | None = None) -> Table:
    """Everything a data file holds, its format told by its name.

    ``header`` says whether the first row of a csv or tsv file names its columns; None detects it. Cells
    are str, except that jsonl and parquet keep the types of their values (None where a key is missing).
    Blank lines are no rows, except in .txt, where each line is a text.

    Raises UserError for a file that is missing, a pickle, empty or of no known format, and for the first
    malformed row: a file is read whole or not at all.
    """
    return _whole(*read_with_faults(path, header=header))


def read_with_faults(path: Path, *, header: bool | None = None) -> tuple[Table, tuple[Fault, ...]]:
    """As ``read_table``, but malformed rows are left out and returned as faults, in line order."""
    form, compressed = _format_of(path)
    with _open(path) as stream:
        return _read(stream, path, form, compressed, header)


def read_stream(
    stream: BinaryIO, form: str, *, name: str = "standard input", header: bool | None = None
) -> Table:
    """As ``read_table``, from an open binary stream whose format is stated: ``csv``, ``jsonl.gz`` ..."""
    kind, compressed = _format_of(Path(f"{name}.{form}"))
    return _whole(*_read(stream, Path(name), kind, compressed, header))


def _whole(table: Table, faults: tuple[Fault, ...]) -> Table:
    if faults:
        raise faults[0].error(table.path, others=len(faults) - 1)
    return table


def _read(
    stream: BinaryIO, path: Path, form: str, compressed: bool, header: bool | None
) -> tuple[Table, tuple[Fault, ...]]:
    if form == "parquet":
        return _read_parquet(stream, path), ()
    lines = LineReader(cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if compressed else stream, path)
    if form in ("jsonl", "ndjson"):
        table, faults = _read_jsonl(lines)
    elif form == "txt":
        table, faults = _read_text(lines), []
    else:
        delimiter = "," if form == "csv" else "\t"
        table, faults = read_delimited(lines, delimiter, header=header, orange=form == "tab")
    faults = sorted(faults + lines.faults, key=lambda fault: fault.line)
    if not faults and not table.columns:
        raise UserError(
            f"{path.name} is empty", found="no row and no header", mend="check how the file was made"
        )
    return table, tuple(faults)


def _format_of(path: Path) -> tuple[str, bool]:
    """The format that a file's name tells, and whether it is compressed."""
    endings = [ending.lstrip(".").lower() for ending in path.suffixes]
    compressed = bool(endings) and endings[-1] == "gz"
    form = next(reversed(endings[:-1] if compressed else endings), "")
    if form in _PICKLE_ENDINGS:
        raise pickle_refused(path)
    if form not in FORMATS:
        raise UserError(
            f"the format of {path.name} is not known",
            found=f"the name ending {form!r}" if form else "a name without an ending",
            mend=f"use one of {', '.join(FORMATS)}, each but parquet also with .gz",
        )
    if compressed and form == "parquet":
        raise UserError(
            f"{path.name} is a compressed parquet file; parquet compresses its own columns",
            mend=f"gunzip {path.name}",
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
            mend="name one file in it",
        ) from None
    except PermissionError:
        raise UserError(f"{path} may not be read", mend=f"chmod u+r {path}") from None


def _missing(path: Path) -> NoReturn:
    folder = path.parent
    names = sorted(child.name for child in folder.iterdir()) if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=3)
    raise UserError(
        f"there is no file {path}",
        found=f"in its folder: {', '.join(near or names[:8]) or 'nothing'}" if folder.is_dir() else None,
        mend=f"did you mean {folder / near[0]}?" if near else "check the path",
    ) from None


def _read_text(lines: LineReader) -> Table:
    texts = [Line(number, text.rstrip("\r\n")) for number, text in lines]
    kept = [line for line in texts if line.number not in lines.bad_lines]
    return Table(
        lines.path,
        ("text",) if texts else (),
        tuple((line.text,) for line in kept),
        tuple(line.number for line in kept),
        has_header=False,
    )


def _read_jsonl(lines: LineReader) -> tuple[Table, list[Fault]]:
    """One object a line; the columns are the keys of all rows, in the order in which they first appear."""
    records: list[dict[str, Cell]] = []
    numbers: list[int] = []
    faults: list[Fault] = []
    for number, text in lines:
        if number in lines.bad_lines or not text.strip():
            continue
        record = _json_object(number, text)
        if isinstance(record, Fault):
            faults.append(record)
        else:
            records.append(record)
            numbers.append(number)
    columns = tuple(dict.fromkeys(key for record in records for key in record))
    rows = tuple(tuple(record.get(column) for column in columns) for record in records)
    return Table(lines.path, columns, rows, tuple(numbers), has_header=True), faults


def _json_object(number: int, text: str) -> dict[str, Cell] | Fault:
    """The object that a line of jsonl holds, or why it holds none that can be used."""
    try:
        value = json.loads(text, object_pairs_hook=_without_repeated_keys, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        return Fault(
            number,
            "broken JSON",
            f"{error.msg} at character {error.pos + 1}",
            "write one whole JSON object a line; jq -c . FILE rewrites objects that span lines",
        )
    except ValueError as error:
        return Fault(number, "JSON that cannot be read unambiguously", str(error), "mend the line")
    except RecursionError:
        return Fault(number, "JSON nested too deeply", None, "keep the text and label at the top level")
    if not isinstance(value, dict):
        return Fault(
            number,
            "not a JSON object",
            f"a JSON {'array' if isinstance(value, list) else type(value).__name__}",
            'write one object a line, as {"text": "...", "label": "..."}; jq -c .[] FILE unpacks an array',
        )
    if "\\u" in text and not _encodable(value):
        return Fault(
            number,
            "half of a surrogate pair, which is no character",
            None,
            "remove the \\ud8xx to \\udfxx that stands alone",
            encoding=True,
        )
    return value


def _without_repeated_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for key, value in pairs:
        if key in record:
            raise ValueError(f"the key {key!r} twice in one object")
        record[key] = value
    return record


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is not JSON")


def _encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(stream: BinaryIO, path: Path) -> Table:
    """A parquet table; class names in the metadata that the Hub's datasets write are kept."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_package("pyarrow", "parquet", f"reading {path.name}") from None
    content = stream if stream.seekable() else io.BytesIO(stream.read())
    first = content.read(8)
    content.seek(0)
    if not first.startswith(b"PAR1"):
        refuse_foreign(first, path)
    try:
        arrow = pyarrow.parquet.read_table(content)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path.name} is not a whole parquet file",
            found=str(error).splitlines()[0],
            mend="fetch or write the file again",
        ) from None
    columns = tuple(arrow.column_names)
    rows = tuple(zip(*(column.to_pylist() for column in arrow.columns), strict=True))
    lines = tuple(range(1, len(rows) + 1))
    names = _hub_class_names(arrow.schema.metadata or {})
    return Table(path, columns, rows, lines, has_header=True, class_names=names)


def _hub_class_names(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Class names by column from the schema metadata of `datasets` (its ClassLabel features)."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return {}
    return {
        column: tuple(feature["names"])
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and "names" in feature
    }
