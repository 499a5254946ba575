"""Predictions as a file: its format, its columns, and its rows as bytes, piece by piece."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, get_args

from newsdesk.data.ninjs import CREATED_HERE, with_subjects
from newsdesk.data.table import Fault, Row
from newsdesk.errors import UserError, missing_package
from newsdesk.prediction.abstention import CANDIDATES, OFF_TOPIC, REASON
from newsdesk.prediction.predictions import Predictions, delimited_lines, probability_column, rounded

Format = Literal["csv", "tsv", "jsonl", "parquet", "ninjs", "submission"]
FORMATS: tuple[Format, ...] = get_args(Format)
_ENDINGS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_COMPRESSION = 6  # of gzip; 9 takes three times as long for one per cent
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
        return b"probability" in end
    if beginning.startswith(b"\x1f\x8b"):
        with suppress(zlib.error):
            beginning = zlib.decompressobj(wbits=31).decompress(beginning)
    if CREATED_HERE in beginning or CREATED_HERE in end:
        return True
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


class Piece(NamedTuple):
    """Some rows, a prediction for each, and the rows' 0-based positions in the input."""

    rows: Sequence[Row]
    predictions: Predictions
    numbers: Sequence[int]


class OutputTable(ABC):
    """Rows and their predictions as bytes, to be written one piece after the other.

    The input's columns come first, unchanged and in order. Then ``label`` and ``probability``; with ``top_k``
    2 or more ``label_2``, ``probability_2`` and so on; with ``all_probabilities`` a column ``p(<label>)`` for
    each class; and the ``remarks`` asked for: candidates, reason, off_topic.

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
    ) -> None:
        """Take the input's columns; ``arrow_schema``, a pyarrow.Schema, gives them their types in parquet.

        A ``packed`` file is compressed with gzip, without name and time: the same content is the same bytes.
        ``in_array`` says that the rows are the entries of a JSON array, as ninjs is written again.

        Raises UserError when jsonl or parquet would need two columns of one name, and for parquet without
        pyarrow.
        """
        ranks = range(1, min(top_k, len(label_names)) + 1)
        ranked = [f"{name}_{rank}".removesuffix("_1") for rank in ranks for name in ("label", "probability")]
        every = map(probability_column, label_names) if all_probabilities else ()
        self.columns = tuple(columns)
        self._top_k = top_k
        self._every_class = all_probabilities
        self._remarks = tuple(remarks)
        self._arrow_schema = arrow_schema
        self._packed, self._in_array = packed, in_array
        self._wanted = [*ranked, *every, *remarks]
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
            content = gzip.compress(content, _COMPRESSION, mtime=0)
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
        ids, probabilities = predictions.top_k(self._top_k)
        cells: list[list[object]] = []
        for row, label in enumerate(predictions.labels):
            pairs = zip(ids[row], probabilities[row], strict=True)
            _, *ranked = chain.from_iterable((predictions.label_names[i], rounded(p)) for i, p in pairs)
            others = map(rounded, predictions.probabilities[row]) if self._every_class else ()
            said: dict[str, object] = {REASON: predictions.reasons[row]}
            said[CANDIDATES] = predictions.candidates_of(row)
            if predictions.off_topic is not None:
                said[OFF_TOPIC] = rounded(predictions.off_topic[row])
            cells.append([label, *ranked, *others, *(said[name] for name in self._remarks)])
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


class DelimitedTable(OutputTable):
    """csv, or with another delimiter tsv. A row with a key that no column has is refused."""

    delimiter = ","

    def _write(self, piece: Piece) -> tuple[bytes, Refused]:
        lines, faults = self._lines(piece)
        header: list[Cells] = [] if self._begun else [[*self.columns, *self.names]]
        return b"".join(delimited_lines(chain(header, lines.values()), self.delimiter)), faults

    def _appended(self, predictions: Predictions) -> list[list[object]]:
        cells = super()._appended(predictions)
        return [[" | ".join(cell) if isinstance(cell, tuple) else cell for cell in row] for row in cells]


class TabDelimitedTable(DelimitedTable):
    """tsv."""

    delimiter = "\t"


class SubmissionTable(OutputTable):
    """``ID,Label`` alone: the 0-based number of the row in the input, and the class id."""

    def _write(self, piece: Piece) -> tuple[bytes, Refused]:
        ids, answered = piece.predictions.class_ids.tolist(), piece.predictions.answered
        labels = (label if is_answered else None for label, is_answered in zip(ids, answered, strict=True))
        lines: Iterable[Cells] = zip(piece.numbers, labels, strict=True)
        header: list[Cells] = [] if self._begun else [("ID", "Label")]
        return b"".join(delimited_lines(chain(header, lines))), {}


class JsonLinesTable(OutputTable):
    """One object a line; a row from jsonl keeps its own keys in their order."""

    knows_columns_by_name = True

    def _write(self, piece: Piece) -> tuple[bytes, Refused]:
        return b"".join(map(self._line, piece.rows, self._appended(piece.predictions))), {}

    def _line(self, row: Row, appended: Cells) -> bytes:
        keys, names = self.columns if row.keys is None else row.keys, self.names
        if not set(keys).isdisjoint(names):  # a key that came up after the first rows
            names = output_names(self._wanted, [*self.columns, *keys])
        values = (*(row.cells if row.keys else self._cells(row)), *appended)
        return json_line(dict(zip((*keys, *names), values, strict=True)))


_ROWS_PER_GROUP = 1 << 16
_UNFIT = (ValueError, TypeError, OverflowError)  # pyarrow's own errors derive from these


class ParquetTable(OutputTable):
    """Pieces are Arrow record batches, the first after a schema; at the end they become row groups.

    Types are the input's own where it has any, else those that the first piece shows: numbers where all
    are numbers, text where they have no type in common. A later row of another type is refused.
    """

    knows_columns_by_name = True
    needs_conversion = True

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise missing_package("pyarrow", "parquet", "writing parquet") from error
        super().__init__(*arguments, **settings)
        self._pyarrow = pyarrow
        self._schema: Any = None

    def resume(self, written: BinaryIO) -> None:
        """Take the types from what was written."""
        self._schema = self._pyarrow.ipc.open_stream(written).schema
        self._begun = True

    def convert(self, written: BinaryIO, sink: BinaryIO) -> None:
        """Write the parquet file of the pieces in ``written``, some row groups in memory at a time."""
        batches = self._pyarrow.ipc.open_stream(written)
        with (
            gzip.GzipFile("", "wb", _COMPRESSION, sink, mtime=0)
            if self._packed
            else nullcontext(sink) as file,
            self._pyarrow.parquet.ParquetWriter(file, batches.schema) as writer,
        ):
            waiting: list[Any] = []
            for batch in batches:
                waiting.append(batch)
                if sum(map(len, waiting)) >= _ROWS_PER_GROUP:
                    writer.write_table(self._pyarrow.Table.from_batches(waiting))
                    waiting.clear()
            if waiting:
                writer.write_table(self._pyarrow.Table.from_batches(waiting))

    def _write(self, piece: Piece) -> tuple[bytes, Refused]:
        lines, faults = self._lines(piece)
        head = b""
        if not self._begun:
            self._schema = self._schema_of(list(lines.values()))
            head = self._schema.serialize().to_pybytes()
        try:
            batch = self._batch(list(lines.values()))
        except _UNFIT:
            for position in list(lines):
                fault = self._misfit(piece.rows[position].line, lines[position])
                if fault is not None:
                    faults[position] = fault
                    del lines[position]
            batch = self._batch(list(lines.values()))
        return head + batch.serialize().to_pybytes(), faults

    def _batch(self, lines: Sequence[Cells]) -> Any:
        columns = zip(*lines, strict=True) if lines else [()] * len(self._schema)
        arrays = [self._array(cells, field.type) for cells, field in zip(columns, self._schema, strict=True)]
        return self._pyarrow.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _schema_of(self, lines: Sequence[Cells]) -> Any:
        fields = []
        for i, name in enumerate((*self.columns, *self.names)):
            if self._arrow_schema is not None and i < len(self.columns):
                arrow_type = self._arrow_schema.field(i).type
                if self._pyarrow.types.is_dictionary(arrow_type):
                    arrow_type = arrow_type.value_type
            elif i >= len(self.columns) and self._wanted[i - len(self.columns)] == CANDIDATES:
                arrow_type = self._pyarrow.list_(self._pyarrow.string())  # the first rows may have none
            else:
                arrow_type = self._type_of([cells[i] for cells in lines])
            fields.append((name, arrow_type))
        return self._pyarrow.schema(fields)

    def _type_of(self, values: list[object]) -> Any:
        try:
            found = self._pyarrow.array(values).type
        except _UNFIT:
            return self._pyarrow.string()
        return self._pyarrow.string() if self._pyarrow.types.is_null(found) else found

    def _array(self, values: Cells, arrow_type: Any) -> Any:
        if self._pyarrow.types.is_string(arrow_type):
            texts = (value if value is None or isinstance(value, str) else str(value) for value in values)
            # A lone surrogate has no form in UTF-8.
            values = [text and text.encode(errors="backslashreplace").decode() for text in texts]
        return self._pyarrow.array(values, arrow_type)

    def _misfit(self, line: int, cells: Cells) -> Fault | None:
        for value, field in zip(cells, self._schema, strict=True):
            try:
                self._array([value], field.type)
            except _UNFIT:
                return Fault(
                    line,
                    f"a value of another type than the column {field.name!r} has in the first rows",
                    f"{type(value).__name__}, not {field.type}",
                    "write jsonl, or give the column one type",
                )
        return None


class NinjsTable(OutputTable):
    """The ninjs items themselves, each with its classes among its subjects: as an array if they came in one.

    Nothing else about an item changes, not a byte. Its subjects get a name or a code, and who set them how
    surely (0 to 100), under the names of the item's own version of ninjs. An unanswered item gets none.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        if self._every_class:
            raise UserError(
                "ninjs has no place for the probabilities of all classes",
                found="--probabilities --format ninjs",
                fix="name so many classes with --top-k, or write jsonl",
            )
        self.needs_conversion = self._in_array  # which has an end
        self._holds_items = False

    def resume(self, written: BinaryIO) -> None:
        """Continue an array after its bracket, or after an item."""
        self._begun, self._holds_items = True, len(written.read(2)) > 1

    def convert(self, written: BinaryIO, sink: BinaryIO) -> None:
        """Close the array."""
        with (
            gzip.GzipFile("", "wb", _COMPRESSION, sink, mtime=0)
            if self._packed
            else nullcontext(sink) as file
        ):
            shutil.copyfileobj(written, file)
            file.write(b"\n]\n")

    def _write(self, piece: Piece) -> tuple[bytes, Refused]:
        items, faults = [], {}
        ids, probabilities = piece.predictions.top_k(self._top_k)
        names, answered = piece.predictions.label_names, piece.predictions.answered
        for position, row in enumerate(piece.rows):
            pairs = zip(ids[position], probabilities[position], strict=True) if answered[position] else ()
            labels = [(names[label], float(share)) for label, share in pairs]
            try:
                items.append(with_subjects(row.record(()), row.source, labels).encode())
            except ValueError as error:
                fix = "correct the item, leave it out, or write jsonl"
                faults[position] = Fault(row.line, "subjects cannot be added", str(error), fix)
        if not self._in_array:
            return b"".join(item + b"\n" for item in items), faults
        content = (b"" if self._begun else b"[") + (b"," if self._holds_items and items else b"")
        self._holds_items = self._holds_items or bool(items)
        return content + b"".join([b"\n" + b",\n".join(items)] if items else []), faults


OUTPUT_TABLES: dict[Format, type[OutputTable]] = {
    "csv": DelimitedTable,
    "tsv": TabDelimitedTable,
    "jsonl": JsonLinesTable,
    "parquet": ParquetTable,
    "ninjs": NinjsTable,
    "submission": SubmissionTable,
}


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
