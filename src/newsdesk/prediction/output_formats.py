"""The formats that predictions are written in: csv, tsv, jsonl, parquet, ninjs and a submission."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any, BinaryIO

from newsdesk.data.ninjs import with_subjects
from newsdesk.data.table import Fault, Row
from newsdesk.errors import UserError, missing_package
from newsdesk.prediction.abstention import CANDIDATES, UNSURE
from newsdesk.prediction.output_table import (
    GZIP_LEVEL,
    Cells,
    Format,
    OutputTable,
    Piece,
    Refused,
    json_line,
    output_names,
)
from newsdesk.prediction.predictions import LABELS, PROBABILITIES, Prediction, Predictions, delimited_lines

SEPARATOR = ";"
"""Between the labels of a text in csv and tsv; a list of labels that hold it is written as JSON."""


def joined_labels(labels: Sequence[object]) -> str:
    """A list of labels, or of their probabilities, as one cell: `labels_in` and a separator read it back."""
    texts = [str(label) for label in labels]
    if any(SEPARATOR in text or text != text.strip() or text.startswith("[") for text in texts):
        return json.dumps(texts, ensure_ascii=False)
    return SEPARATOR.join(texts)


class DelimitedTable(OutputTable):
    """csv, or with another delimiter tsv. A row with a key that no column has is refused."""

    delimiter = ","

    def _write(self, piece: Piece) -> tuple[bytes, Refused]:
        lines, faults = self._lines(piece)
        header: list[Cells] = [] if self._begun else [[*self.columns, *self.names]]
        return b"".join(delimited_lines(chain(header, lines.values()), self.delimiter)), faults

    def _appended(self, predictions: Predictions) -> list[list[object]]:
        return [list(map(_delimited, row)) for row in super()._appended(predictions)]


def _delimited(cell: object) -> object:
    """Candidates, a tuple, and labels, a list, as one cell."""
    if isinstance(cell, tuple):
        return " | ".join(cell)
    return joined_labels(cell) if isinstance(cell, list) else cell


class TabDelimitedTable(DelimitedTable):
    """tsv."""

    delimiter = "\t"


class SubmissionTable(OutputTable):
    """``ID,Label`` alone: the 0-based number of the row in the input, and the class id."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        if settings.get("several"):
            raise UserError(
                "a submission has one class id a row",
                found="a run whose texts may have several labels",
                fix="write csv, with --indicators for a column of 0 and 1 for each label",
            )

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


_LISTS_OF_LABELS = (CANDIDATES, UNSURE, LABELS)


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
            gzip.GzipFile("", "wb", GZIP_LEVEL, sink, mtime=0) if self._packed else nullcontext(sink) as file,
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
            elif i >= len(self.columns) and self._wanted[i - len(self.columns)] in _LISTS_OF_LABELS:
                arrow_type = self._pyarrow.list_(self._pyarrow.string())  # the first rows may have none
            elif i >= len(self.columns) and self._wanted[i - len(self.columns)] == PROBABILITIES:
                arrow_type = self._pyarrow.list_(self._pyarrow.float64())
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

    def _subjects(self, prediction: Prediction) -> list[tuple[str, float]]:
        """The labels of an item with their probabilities; none where it is not answered."""
        if prediction.may_have_several:
            return [(name, prediction.probabilities[name]) for name in prediction.labels or ()]
        return list(prediction.top_k(self._top_k)) if prediction.label is not None else []

    def resume(self, written: BinaryIO) -> None:
        """Continue an array after its bracket, or after an item."""
        self._begun, self._holds_items = True, len(written.read(2)) > 1

    def convert(self, written: BinaryIO, sink: BinaryIO) -> None:
        """Close the array."""
        with (
            gzip.GzipFile("", "wb", GZIP_LEVEL, sink, mtime=0) if self._packed else nullcontext(sink) as file
        ):
            shutil.copyfileobj(written, file)
            file.write(b"\n]\n")

    def _write(self, piece: Piece) -> tuple[bytes, Refused]:
        items, faults = [], {}
        for position, row in enumerate(piece.rows):
            labels = self._subjects(piece.predictions[position])
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
