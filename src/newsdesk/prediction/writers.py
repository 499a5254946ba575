"""Predictions as a file: which format it gets, whether it can be written, and all of it at once."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from newsdesk.data.table import Row
from newsdesk.errors import UserError
from newsdesk.files import atomic_writer
from newsdesk.prediction.output_table import FORMATS, Format, Piece, output_table, remark_columns
from newsdesk.prediction.predictions import Predictions

_ENDINGS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}

_LOOKED_AT = 1 << 16
"""Bytes at the beginning and end of a file that tell whether predictions are in it."""

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
    alone, the 0-based row number and class id. What is left unanswered has no label; the column ``reason``
    says why, and ``candidates`` stand before it where predictions were made by a rule that names them.

    The format follows the file's ending (see ``output_format``); a stream without one gets csv. A file is
    written atomically, and gzip-compressed if its name ends in .gz; a pipe or device is written directly.
    ``source`` is the file the rows came from. Raises UserError as ``check_destination`` does, when the file
    cannot be written, when jsonl or parquet would need two columns of one name, and for parquet without
    pyarrow; ValueError when rows, columns and predictions do not line up, or for parquet to a text stream.
    """
    if isinstance(destination, Path):
        chosen = check_destination(destination, source=source, format=format)
    else:
        chosen = format or "csv"
    table = output_table(
        chosen,
        columns,
        predictions.label_names,
        top_k=top_k,
        all_probabilities=all_probabilities,
        remarks=remark_columns(predictions.rule, answer_empty=predictions.unreadable is None),
    )
    numbered = [Row(number, tuple(cells)) for number, cells in enumerate(rows)]
    pieces, _ = table.write(Piece(numbered, predictions, range(len(rows))))
    content = io.BytesIO()
    table.convert(io.BytesIO(pieces), content)
    if isinstance(destination, Path):
        _write_file(destination, content.getvalue())
    elif isinstance(destination, io.TextIOBase):
        if chosen == "parquet":
            raise ValueError("parquet is bytes; give a binary stream")
        destination.write(content.getvalue().decode())
    else:
        cast(BinaryIO, destination).write(content.getvalue())


def check_destination(
    destination: Path, *, source: Path | None = None, format: Format | None = None
) -> Format:
    """Refuse an output file that could not be written in the end, before any work is done for it.

    Returns the format it will have. Raises UserError when it is a folder, when it is the input file (by
    any path or link), when it is there and no predictions are in it, or when its ending names no format.
    """
    if destination.is_dir():
        raise UserError(
            "the output is a folder, not a file",
            found=str(destination),
            fix=f"name a file in it, for example --output {destination / 'predictions.csv'}",
        )
    if source is not None and source.exists() and destination.exists() and source.samefile(destination):
        raise UserError(
            "the output file is the input file, which would be lost",
            found=f"--input {source} --output {destination}",
            fix="give --output another name",
        )
    if destination.is_file() and not _holds_predictions(destination):
        raise UserError(
            f"{destination} is there already, and newsdesk predict did not write it",
            fix="give --output another name, or move the file elsewhere",
        )
    return format or output_format(destination)


def _holds_predictions(path: Path) -> bool:
    """Whether a file has the columns that predictions have, by its first line or a parquet file's footer."""
    with path.open("rb") as stream:
        beginning = stream.read(_LOOKED_AT)
        stream.seek(max(0, path.stat().st_size - _LOOKED_AT))
        end = stream.read()
    if not beginning:
        return True
    if beginning.startswith(b"PAR1"):
        return b"probability" in end
    if beginning.startswith(b"\x1f\x8b"):
        with suppress(zlib.error):
            beginning = zlib.decompressobj(wbits=31).decompress(beginning)
    first_line = beginning.partition(b"\n")[0]
    return b"probability" in first_line or first_line.strip() == b"ID,Label"


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
        fix=f"end it in {', '.join(_ENDINGS)} (each also .gz), or give --format {'|'.join(FORMATS)}",
    )


def _write_file(path: Path, content: bytes) -> None:
    try:
        if path.exists() and not path.is_file():  # a pipe or device: a rename would put a file in its place
            with path.open("wb") as stream:
                stream.write(content)
            return
        # A link stays a link: what it points to is replaced.
        with atomic_writer(path.resolve() if path.is_symlink() else path) as stream:
            if path.suffix.lower() != ".gz":
                stream.write(content)
                return
            # Neither name nor time in the header: the same predictions give the same bytes.
            with gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as packed:
                packed.write(content)
    except OSError as error:
        raise UserError(
            f"cannot write {path}",
            found=error.strerror or str(error),
            fix="choose another place with --output",
        ) from error
