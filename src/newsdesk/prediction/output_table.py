"""Predictions as a file: its format, its columns, and its rows as bytes, piece by piece."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, get_args

from newsdesk.data.news_xml import XML_FORMATS
from newsdesk.data.ninjs import CREATED_HERE
from newsdesk.data.stream import format_of
from newsdesk.data.table import Fault, Row
from newsdesk.errors import UserError
from newsdesk.prediction.abstention import CANDIDATES, OFF_TOPIC, REASON, UNSURE
from newsdesk.prediction.predictions import (
    LABELS,
    PROBABILITIES,
    Prediction,
    Predictions,
    probability_column,
    rounded,
)

Format = Literal["csv", "tsv", "jsonl", "parquet", "ninjs", "submission"]
FORMATS: tuple[Format, ...] = get_args(Format)
_ENDINGS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
REJECTS_ENDING = ".rejects.jsonl"
GZIP_LEVEL = 6
"""Of compressed output; 9 takes three times as long for one per cent."""
_LOOKED_AT = 1 << 16  # bytes at the beginning and end of a file that tell whether predictions are in it

Cells = Sequence[object]
Refused = Mapping[int, Fault]
"""Positions of the rows that the format cannot hold, and why."""


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
        return b"probabilit" in end
    if beginning.startswith(b"\x1f\x8b"):
        with suppress(zlib.error):
            beginning = zlib.decompressobj(wbits=31).decompress(beginning)
    if CREATED_HERE in beginning or CREATED_HERE in end:
        return True
    first_line = beginning.partition(b"\n")[0]
    return b"probabilit" in first_line or first_line.strip() == b"ID,Label"


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


def output_for(name: str, format: Format | None) -> tuple[str, Format]:
    """What the output of one of many files is called, and its format; None: the file's, else jsonl or csv.

    It keeps the input's name, with the format's ending added where that is another one. Raises UserError for
    an input of unknown format.
    """
    form, _ = format_of(Path(name))
    own = _ENDINGS.get(f".{form}", "jsonl" if form in ("json", *XML_FORMATS) else "csv")
    chosen = format or own
    ending = "csv" if chosen == "submission" else chosen
    keeps_name = _ENDINGS.get(f".{form}") == ending or chosen == "ninjs"
    return (name if keeps_name else f"{name}.{ending}"), chosen


def rejects_of(output: Path) -> Path:
    """Where the bad rows of an input go, unless another file is named."""
    return output.with_name(output.name + REJECTS_ENDING)


class Piece(NamedTuple):
    """Some rows, a prediction for each, and the rows' 0-based positions in the input."""

    rows: Sequence[Row]
    predictions: Predictions
    numbers: Sequence[int]


class OutputTable(ABC):
    """Rows and their predictions as bytes, to be written one piece after the other.

    The input's columns come first, unchanged and in order. Then ``label`` and ``probability``; with ``top_k``
    2 or more ``label_2``, ``probability_2`` and so on; with ``all_probabilities`` a column ``p(<label>)`` for
    each class; and the ``remarks`` asked for: candidates, reason, off_topic. Where a text may have several
    labels, there are ``labels`` and ``probabilities`` instead, lists of equal length, or with
    ``indicators`` one column of 0 and 1 for each label.

    Attributes:
        columns: the input's columns.
        names: what the appended columns are called; an input column is never overwritten: where it has the
            name of an output column, the latter is called ``predicted_<name>``.
    """

    knows_columns_by_name = False
    needs_conversion = False
    """Whether the pieces are not the file's bytes yet: `convert` makes them so."""

    def __init__(
        self,
        columns: Sequence[str],
        label_names: Sequence[str],
        *,
        top_k: int = 1,
        all_probabilities: bool = False,
        remarks: Sequence[str] = (),
        arrow_schema: Any = None,
        packed: bool = False,
        in_array: bool = False,
        several: bool = False,
        indicators: bool = False,
    ) -> None:
        """Take the input's columns; ``arrow_schema``, a pyarrow.Schema, gives them their types in parquet.

        A ``packed`` file is compressed with gzip, without name and time: the same content is the same bytes.
        ``in_array``: the rows are entries of a JSON array. ``several``: a text may have several labels.

        Raises UserError when jsonl or parquet would need two columns of one name, for parquet without
        pyarrow, and for ``top_k`` or ``indicators`` where they say nothing.
        """
        _refuse_other_task(several=several, top_k=top_k, indicators=indicators)
        ranks = range(1, min(top_k, len(label_names)) + 1)
        ranked = [f"{name}_{rank}".removesuffix("_1") for rank in ranks for name in ("label", "probability")]
        sets = [*label_names] if indicators else [LABELS, PROBABILITIES]
        self._indicators = indicators
        every = map(probability_column, label_names) if all_probabilities else ()
        self.columns, self._remarks = tuple(columns), tuple(remarks)
        self._top_k, self._every_class = top_k, all_probabilities
        self._arrow_schema = arrow_schema
        self._packed, self._in_array = packed, in_array
        self._wanted = [*(sets if several else ranked), *every, *remarks]
        self.names = output_names(self._wanted, columns)
        self._begun = False
        if self.knows_columns_by_name:
            _refuse_twin_columns([*self.columns, *self.names])

    def write(self, piece: Piece) -> tuple[bytes, Refused]:
        """The bytes of a piece; those of the first begin with the header or schema.

        Rows that the format cannot hold beside those already written are left out and returned. Raises
        ValueError when rows, columns and predictions do not line up.
        """
        if not len(piece.rows) == len(piece.predictions) == len(piece.numbers):
            raise ValueError(f"{len(piece.rows)} rows but {len(piece.predictions)} predictions")
        content, refused = self._write(piece)
        self._begun = True
        if self._packed and not self.needs_conversion:
            content = gzip.compress(content, GZIP_LEVEL, mtime=0)
        return content, refused

    def resume(self, written: BinaryIO) -> None:
        """Continue after the pieces that an earlier process wrote, which ``written`` holds."""
        self._begun = bool(written.read(1))

    def convert(self, written: BinaryIO, sink: BinaryIO) -> None:
        """Write the file whose pieces ``written`` contains one after the other."""
        shutil.copyfileobj(written, sink)

    @abstractmethod
    def _write(self, piece: Piece) -> tuple[bytes, Refused]: ...

    def _appended(self, predictions: Predictions) -> list[list[object]]:
        """The cells under ``names`` of each row: ranked classes, all of them where asked for, remarks.

        The first class of a row that is not answered is None.
        """
        if predictions.decisions is None:
            ids, probabilities = predictions.top_k(self._top_k)
            named = [
                _ranked(predictions, row, ids[row], probabilities[row]) for row in range(len(predictions))
            ]
        elif self._indicators:
            unanswered: list[object] = [None] * len(predictions.label_names)
            given = zip(predictions.assigned.astype(int).tolist(), predictions.answered, strict=True)
            named = [row if is_answered else unanswered for row, is_answered in given]
        else:
            named = [_label_set(prediction) for prediction in predictions]
        cells: list[list[object]] = []
        for row, answer in enumerate(named):
            others = map(rounded, predictions.probabilities[row]) if self._every_class else ()
            said: dict[str, object] = {REASON: predictions.reasons[row]}
            unsure = predictions.unsure_sets[row]
            said[UNSURE] = None if unsure is None else list(unsure)
            said[CANDIDATES] = predictions.candidates_of(row)
            if predictions.off_topic is not None:
                said[OFF_TOPIC] = rounded(predictions.off_topic[row])
            cells.append([*answer, *others, *(said[name] for name in self._remarks)])
        return cells

    def _lines(self, piece: Piece) -> tuple[dict[int, list[object]], dict[int, Fault]]:
        """The cells of each row by its position, and the rows with a key for which there is no column."""
        lines: dict[int, list[object]] = {}
        faults = {}
        pairs = zip(piece.rows, self._appended(piece.predictions), strict=True)
        for position, (row, appended) in enumerate(pairs):
            unknown = [key for key in row.keys or () if key not in self.columns]
            if unknown:
                faults[position] = Fault(
                    row.line,
                    f"the key {unknown[0]!r}, for which the output has no column",
                    f"columns of the first rows: {', '.join(self.columns)}",
                    "write jsonl, where each row keeps its own keys",
                )
            else:
                lines[position] = [*self._cells(row), *appended]
        return lines, faults

    def _cells(self, row: Row) -> Cells:
        """The row's values under the columns. Raises ValueError when it has too few or too many."""
        cells = row.cells_under(self.columns)
        if len(cells) != len(self.columns):
            raise ValueError(f"line {row.line} has {len(cells)} cells for {len(self.columns)} columns")
        return cells


def _ranked(
    predictions: Predictions, row: int, ids: Iterable[Any], probabilities: Iterable[Any]
) -> list[object]:
    """The classes of a row and their probabilities in turn; the first class is None where not answered."""
    pairs = zip(ids, probabilities, strict=True)
    _, *others = chain.from_iterable((predictions.label_names[i], rounded(p)) for i, p in pairs)
    return [predictions.labels[row], *others]


def _label_set(prediction: Prediction) -> list[object]:
    """The labels of a row and their probabilities, as two lists; None where it is not answered."""
    if prediction.labels is None:
        return [None, None]
    return [[*prediction.labels], [rounded(prediction.probabilities[name]) for name in prediction.labels]]


def _refuse_other_task(*, several: bool, top_k: int, indicators: bool) -> None:
    if several and top_k > 1:
        raise UserError(
            "a text gets all labels that are likely enough, not the most likely ones",
            found=f"--top-k {top_k} of a run whose texts may have several labels",
            fix="leave --top-k out; --probabilities writes the probability of every label",
        )
    if indicators and not several:
        raise UserError(
            "columns of 0 and 1 are for texts that may have several labels",
            found="--indicators, and a run whose texts have one label each",
            fix="leave --indicators out; --probabilities writes a column for each class",
        )


def output_names(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The names for output columns, each prefixed with ``predicted_`` until no input column has it."""
    free: list[str] = []
    for name in names:
        candidate = name
        while candidate in taken or candidate in free:
            candidate = f"predicted_{candidate}"
        free.append(candidate)
    return free


def json_line(content: Mapping[str, object]) -> bytes:
    """One line of strict JSON in UTF-8; not-a-number and infinity become null.

    A lone surrogate becomes ``\\udXXX``, which is also how JSON spells it.
    """
    line = json.dumps(_json_value(content), ensure_ascii=False, allow_nan=False, default=str)
    return (line + "\n").encode(errors="backslashreplace")


def _json_value(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _json_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(entry) for entry in value]
    return value


def _refuse_twin_columns(header: Sequence[str]) -> None:
    """Raise UserError when a format that knows columns by name would get two of one name."""
    twins = sorted({name for name in header if list(header).count(name) > 1})
    if twins:
        raise UserError(
            "jsonl and parquet cannot hold two columns of one name",
            found=f"several columns called {', '.join(map(repr, twins))}",
            fix="rename them in the input, or write csv",
        )
