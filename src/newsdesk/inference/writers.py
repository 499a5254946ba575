"""Predictions as a table: the input's own columns, unchanged and in order, with the classes appended."""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO, cast, get_args

from newsdesk.errors import UserError, missing_package
from newsdesk.evaluation.csv_lines import delimited_lines, probability_column, rounded
from newsdesk.files import atomic_writer
from newsdesk.inference.predictions import Predictions

Format = Literal["csv", "tsv", "jsonl", "parquet", "submission"]
FORMATS: tuple[Format, ...] = get_args(Format)

_ENDINGS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}

Cells = Sequence[object]


def write_predictions(
    rows: Sequence[Cells],
    columns: Sequence[str],
    predictions: Predictions,
    destination: Path | BinaryIO | TextIO,
    *,
    format: Format | None = None,
    top_k: int = 1,
    all_probabilities: bool = False,
    source: Path | None = None,
) -> None:
    """Write the input's table with ``label`` and ``probability`` appended to every row.

    ``rows`` are the input's cells, (rows, columns), in its order, one for each prediction. With ``top_k`` 2
    or more there follow ``label_2``, ``probability_2`` and so on; with ``all_probabilities`` a column
    ``p(<label>)`` for each class. An input column is never overwritten: where it bears the name of an
    output column, the latter is called ``predicted_<name>``. The format ``submission`` writes ``ID,Label``
    alone, the 0-based row number and class id.

    The format follows the file's ending (see ``output_format``); a stream without one gets csv. A file is
    written atomically, and gzip-compressed if its name ends in .gz; a pipe or device is written directly.
    ``source`` is the file the rows came from. Raises UserError as ``check_destination`` does, when the file
    cannot be written, when jsonl or parquet would need two columns of one name, and for parquet without
    pyarrow; ValueError when rows, columns and predictions do not line up, or for parquet to a text stream.
    """
    if len(rows) != len(predictions):
        raise ValueError(f"{len(rows)} rows but {len(predictions)} predictions")
    if isinstance(destination, Path):
        chosen = check_destination(destination, source=source, format=format)
    else:
        chosen = format or "csv"
    if chosen == "submission":
        header, table = ["ID", "Label"], _submission_rows(predictions)
    else:
        header, table = _appended(rows, columns, predictions, top_k, all_probabilities)
    pieces = _SERIALIZERS[chosen](header, table)
    if isinstance(destination, Path):
        _write_file(destination, pieces)
    elif isinstance(destination, io.TextIOBase):
        if chosen == "parquet":
            raise ValueError("parquet is bytes; give a binary stream")
        destination.writelines(piece.decode() for piece in pieces)
    else:
        cast(BinaryIO, destination).writelines(pieces)


def check_destination(
    destination: Path, *, source: Path | None = None, format: Format | None = None
) -> Format:
    """Refuse an output file that could not be written in the end, before any work is done for it.

    Returns the format it will have. Raises UserError when it is a folder, when it is the input file (by
    any path or link), or when its ending names no format.
    """
    if destination.is_dir():
        raise UserError(
            "the output is a folder, not a file",
            found=str(destination),
            mend=f"name a file in it, for example --output {destination / 'predictions.csv'}",
        )
    if source is not None and source.exists() and destination.exists() and source.samefile(destination):
        raise UserError(
            "the output file is the input file, which would be lost",
            found=f"--input {source} --output {destination}",
            mend="give --output another name",
        )
    return format or output_format(destination)


def output_format(path: Path) -> Format:
    """The format that a file's ending asks for: .csv .tsv .jsonl .ndjson .parquet, each also with .gz.

    Raises UserError for any other ending.
    """
    suffix = Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()
    if suffix in _ENDINGS:
        return _ENDINGS[suffix]
    raise UserError(
        f"the ending of {path.name} names no format",
        found=suffix or "no ending",
        mend=f"end it in {', '.join(_ENDINGS)} (each also .gz), or give --format {'|'.join(FORMATS)}",
    )


def output_names(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The names for output columns, each prefixed with ``predicted_`` until no input column bears it."""
    free: list[str] = []
    for name in names:
        candidate = name
        while candidate in taken or candidate in free:
            candidate = f"predicted_{candidate}"
        free.append(candidate)
    return free


def _appended(
    rows: Sequence[Cells], columns: Sequence[str], predictions: Predictions, top_k: int, every_class: bool
) -> tuple[list[str], Iterator[Cells]]:
    """The header and the rows of the output: input cells, then the ranked classes, then all of them."""
    ids, probabilities = predictions.top_k(top_k)
    ranks = range(1, ids.shape[1] + 1)
    names = [name if rank == 1 else f"{name}_{rank}" for rank in ranks for name in ("label", "probability")]
    if every_class:
        names += map(probability_column, predictions.label_names)

    def cells(row: int) -> Cells:
        if len(rows[row]) != len(columns):
            raise ValueError(f"row {row} has {len(rows[row])} cells for {len(columns)} columns")
        pairs = zip(ids[row], probabilities[row], strict=True)
        ranked = chain.from_iterable((predictions.label_names[i], rounded(p)) for i, p in pairs)
        others = map(rounded, predictions.probabilities[row]) if every_class else ()
        return [*rows[row], *ranked, *others]

    return [*columns, *output_names(names, columns)], map(cells, range(len(rows)))


def _submission_rows(predictions: Predictions) -> Iterator[Cells]:
    return iter(enumerate(predictions.class_ids.tolist()))


def _write_file(path: Path, pieces: Iterator[bytes]) -> None:
    try:
        if path.exists() and not path.is_file():  # a pipe or device: a rename would put a file in its place
            with path.open("wb") as stream:
                stream.writelines(pieces)
            return
        # A link stays a link: what it points to is replaced.
        with atomic_writer(path.resolve() if path.is_symlink() else path) as stream:
            if path.suffix.lower() != ".gz":
                stream.writelines(pieces)
                return
            # Neither name nor time in the header: the same predictions give the same bytes.
            with gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as packed:
                packed.writelines(pieces)
    except OSError as error:
        raise UserError(
            f"cannot write {path}",
            found=error.strerror or str(error),
            mend="choose another place with --output",
        ) from error


def _delimited(header: Cells, table: Iterator[Cells], delimiter: str = ",") -> Iterator[bytes]:
    return delimited_lines(chain([header], table), delimiter)


def _tab_delimited(header: Cells, table: Iterator[Cells]) -> Iterator[bytes]:
    return _delimited(header, table, "\t")


def _json_lines(header: Sequence[str], table: Iterator[Cells]) -> Iterator[bytes]:
    _refuse_twin_columns(header, "jsonl")
    for cells in table:
        content = dict(zip(header, map(_json_value, cells), strict=True))
        line = json.dumps(content, ensure_ascii=False, allow_nan=False, default=str)
        # A lone surrogate becomes \udXXX, which is also how JSON spells it.
        yield (line + "\n").encode(errors="backslashreplace")


def _json_value(value: object) -> object:
    """The value with what JSON cannot hold, not-a-number and infinity, replaced by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _json_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(entry) for entry in value]
    return value


def _parquet(header: Sequence[str], table: Iterator[Cells]) -> Iterator[bytes]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_package("pyarrow", "parquet", "writing parquet") from error
    _refuse_twin_columns(header, "parquet")
    rows = list(table)
    arrays = {name: _arrow_column(pyarrow, [cells[i] for cells in rows]) for i, name in enumerate(header)}
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(arrays), sink)
    yield sink.getvalue()


def _arrow_column(pyarrow: Any, values: list[object]) -> Any:
    """The values as Arrow types them, or as text where they have no type in common."""
    try:
        return pyarrow.array(values)
    except (ValueError, TypeError, OverflowError):
        texts = (None if value is None else str(value) for value in values)
        return pyarrow.array(
            [text and text.encode(errors="backslashreplace").decode() for text in texts], pyarrow.string()
        )


def _refuse_twin_columns(header: Sequence[str], format: str) -> None:
    twins = sorted({name for name in header if list(header).count(name) > 1})
    if twins:
        raise UserError(
            f"{format} cannot hold two columns of one name",
            found=f"several columns called {', '.join(map(repr, twins))}",
            mend="rename them in the input, or write csv",
        )


_SERIALIZERS: dict[Format, Callable[[Sequence[str], Iterator[Cells]], Iterator[bytes]]] = {
    "csv": _delimited,
    "tsv": _tab_delimited,
    "jsonl": _json_lines,
    "parquet": _parquet,
    "submission": _delimited,
}
