"""The table of predictions, piece by piece: the input's columns, unchanged and in order, then the classes."""

from __future__ import annotations

import json
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, Literal, get_args

from newsdesk.data.table import Fault, Row
from newsdesk.errors import UserError, missing_package
from newsdesk.prediction.abstention import CANDIDATES, OFF_TOPIC, REASON, DecisionRule
from newsdesk.prediction.predictions import Predictions, delimited_lines, probability_column, rounded

Format = Literal["csv", "tsv", "jsonl", "parquet", "submission"]
FORMATS: tuple[Format, ...] = get_args(Format)

Refused = list[tuple[int, Fault]]
"""Positions in a piece whose rows the format cannot hold, and why."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Some rows with what is said of them.

    Attributes:
        rows: as they were read.
        predictions: one for each.
        numbers: their 0-based positions in the input.

    Raises ValueError when the three do not line up.
    """

    rows: Sequence[Row]
    predictions: Predictions
    numbers: Sequence[int]

    def __post_init__(self) -> None:
        """Refuse what does not line up."""
        if not len(self.rows) == len(self.predictions) == len(self.numbers):
            raise ValueError(f"{len(self.rows)} rows but {len(self.predictions)} predictions")


class OutputTable(ABC):
    """Rows and their predictions as bytes, to be written one piece behind the other.

    Attributes:
        columns: the input's columns.
        names: what the appended columns are called; an input column is never overwritten.
    """

    def __init__(
        self,
        columns: Sequence[str],
        label_names: Sequence[str],
        top_k: int,
        all_probabilities: bool,
        remarks: Sequence[str] = (),
    ) -> None:
        self.columns = tuple(columns)
        self._top_k = top_k
        self._every_class = all_probabilities
        self._remarks = tuple(remarks)
        self._wanted = [*_names_of_classes(label_names, top_k, all_probabilities), *remarks]
        self.names = output_names(self._wanted, columns)
        self._begun = False

    def write(self, piece: Piece) -> tuple[bytes, Refused]:
        """The bytes of a piece; those of the first begin with whatever stands above the rows.

        Rows that the format cannot hold beside those already written are left out and returned.
        """
        written = self._write(piece)
        self._begun = True
        return written

    def go_on(self, written: BinaryIO) -> None:
        """Continue behind the pieces that an earlier process wrote, which ``written`` holds."""
        self._begun = bool(written.read(1))

    def convert(self, written: BinaryIO, sink: BinaryIO) -> None:
        """Write the file whose pieces ``written`` holds one behind the other."""
        shutil.copyfileobj(written, sink)

    @abstractmethod
    def _write(self, piece: Piece) -> tuple[bytes, Refused]: ...

    def _classes(self, predictions: Predictions) -> list[list[object]]:
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
            cells.append([label, *ranked, *others, *(self._remark(said[name]) for name in self._remarks)])
        return cells

    def _remark(self, said: object) -> object:
        """A remark as the format holds it; several labels come as a tuple."""
        return list(said) if isinstance(said, tuple) else said


class DelimitedTable(OutputTable):
    """csv, or with another delimiter tsv. A row with a key that no column bears is refused."""

    delimiter = ","

    def _remark(self, said: object) -> object:
        return " | ".join(said) if isinstance(said, tuple) else said

    def _write(self, piece: Piece) -> tuple[bytes, Refused]:
        refused = list(unknown_keys(piece.rows, self.columns))
        bad = {position for position, _ in refused}
        lines: list[Sequence[object]] = [] if self._begun else [[*self.columns, *self.names]]
        for position, classes in enumerate(self._classes(piece.predictions)):
            if position not in bad:
                lines.append([*checked_cells(piece.rows[position], self.columns), *classes])
        return b"".join(delimited_lines(lines, self.delimiter)), refused


class TabDelimitedTable(DelimitedTable):
    """tsv."""

    delimiter = "\t"


class SubmissionTable(OutputTable):
    """``ID,Label`` alone: the 0-based number of the row in the input, and the class id."""

    def _write(self, piece: Piece) -> tuple[bytes, Refused]:
        sure = zip(piece.predictions.class_ids.tolist(), piece.predictions.answered, strict=True)
        pairs = zip(piece.numbers, (label if answered else None for label, answered in sure), strict=True)
        header: list[Sequence[object]] = [] if self._begun else [("ID", "Label")]
        return b"".join(delimited_lines(chain(header, pairs))), []


class JsonLinesTable(OutputTable):
    """One object a line; a row from jsonl keeps its own keys in their order."""

    def __init__(
        self,
        columns: Sequence[str],
        label_names: Sequence[str],
        top_k: int,
        all_probabilities: bool,
        remarks: Sequence[str] = (),
    ) -> None:
        super().__init__(columns, label_names, top_k, all_probabilities, remarks)
        refuse_twin_columns([*columns, *self.names], "jsonl")

    def _write(self, piece: Piece) -> tuple[bytes, Refused]:
        classes = self._classes(piece.predictions)
        return b"".join(map(self._line, piece.rows, classes)), []

    def _line(self, row: Row, classes: Sequence[object]) -> bytes:
        keys, names = row.keys or self.columns, self.names
        if not set(keys).isdisjoint(names):  # a key that came up after the columns were told
            names = output_names(self._wanted, [*self.columns, *keys])
        values = (*(row.cells if row.keys else checked_cells(row, self.columns)), *classes)
        content = dict(zip((*keys, *names), map(json_value, values), strict=True))
        line = json.dumps(content, ensure_ascii=False, allow_nan=False, default=str)
        # A lone surrogate becomes \udXXX, which is also how JSON spells it.
        return (line + "\n").encode(errors="backslashreplace")


def output_table(
    format: Format,
    columns: Sequence[str],
    label_names: Sequence[str],
    *,
    top_k: int = 1,
    all_probabilities: bool = False,
    remarks: Sequence[str] = (),
    arrow_schema: Any = None,
) -> OutputTable:
    """The table of a format for an input with these columns.

    ``remarks`` are those of ``remark_columns``.
    ``arrow_schema``, the pyarrow.Schema of an input that has one, gives its columns their types in parquet.
    Raises UserError when jsonl or parquet would need two columns of one name, and for parquet without
    pyarrow.
    """
    if format == "parquet":
        return ParquetTable(columns, label_names, top_k, all_probabilities, remarks, arrow_schema)
    kinds: dict[Format, type[OutputTable]] = {
        "csv": DelimitedTable,
        "tsv": TabDelimitedTable,
        "jsonl": JsonLinesTable,
        "submission": SubmissionTable,
    }
    return kinds[format](columns, label_names, top_k, all_probabilities, remarks)


def remark_columns(rule: DecisionRule | None, *, answer_empty: bool) -> tuple[str, ...]:
    """The columns behind those of the classes: a rule's, and without one the reason of an empty text."""
    if rule is not None:
        return rule.columns
    return () if answer_empty else (REASON,)


def output_names(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The names for output columns, each prefixed with ``predicted_`` until no input column bears it."""
    free: list[str] = []
    for name in names:
        candidate = name
        while candidate in taken or candidate in free:
            candidate = f"predicted_{candidate}"
        free.append(candidate)
    return free


def unknown_keys(rows: Sequence[Row], columns: Sequence[str]) -> Iterator[tuple[int, Fault]]:
    """Position and fault of each row with a key that no column bears."""
    for position, row in enumerate(rows):
        unknown = [key for key in row.keys or () if key not in columns]
        if unknown:
            yield (
                position,
                Fault(
                    row.line,
                    f"the key {unknown[0]!r}, for which the output has no column",
                    f"columns of the first rows: {', '.join(columns)}",
                    "write jsonl, where each row keeps its own keys",
                ),
            )


def checked_cells(row: Row, columns: Sequence[str]) -> Sequence[object]:
    """The row's values under the columns. Raises ValueError when it has too few or too many."""
    cells = row.cells_under(tuple(columns))
    if len(cells) != len(columns):
        raise ValueError(f"line {row.line} has {len(cells)} cells for {len(columns)} columns")
    return cells


def refuse_twin_columns(header: Sequence[str], format: str) -> None:
    """Raise UserError when a format that knows columns by name would get two of one name."""
    twins = sorted({name for name in header if list(header).count(name) > 1})
    if twins:
        raise UserError(
            f"{format} cannot hold two columns of one name",
            found=f"several columns called {', '.join(map(repr, twins))}",
            fix="rename them in the input, or write csv",
        )


def json_value(value: object) -> object:
    """The value with what JSON cannot hold, not-a-number and infinity, replaced by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): json_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(entry) for entry in value]
    return value


def _names_of_classes(label_names: Sequence[str], top_k: int, every_class: bool) -> list[str]:
    ranks = range(1, min(top_k, len(label_names)) + 1)
    names = [name if rank == 1 else f"{name}_{rank}" for rank in ranks for name in ("label", "probability")]
    return [*names, *map(probability_column, label_names)] if every_class else names


_ROWS_PER_GROUP = 1 << 16
_UNFIT = (ValueError, TypeError, OverflowError)  # pyarrow's own errors derive from these


class ParquetTable(OutputTable):
    """Pieces are Arrow record batches, the first behind a schema; at the end they become row groups.

    Types are the input's own where it has any, else those that the first piece shows: numbers where all
    are numbers, text where they have no type in common. A later row of another type is refused.
    """

    def __init__(
        self,
        columns: Sequence[str],
        label_names: Sequence[str],
        top_k: int,
        all_probabilities: bool,
        remarks: Sequence[str] = (),
        input_schema: Any = None,
    ) -> None:
        super().__init__(columns, label_names, top_k, all_probabilities, remarks)
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise missing_package("pyarrow", "parquet", "writing parquet") from error
        refuse_twin_columns([*columns, *self.names], "parquet")
        self._pyarrow = pyarrow
        self._input_schema = input_schema
        self._schema: Any = None

    def go_on(self, written: BinaryIO) -> None:
        """Take the types from what was written."""
        self._schema = self._pyarrow.ipc.open_stream(written).schema
        self._begun = True

    def convert(self, written: BinaryIO, sink: BinaryIO) -> None:
        """Write the parquet file of the pieces in ``written``, some row groups in memory at a time."""
        batches = self._pyarrow.ipc.open_stream(written)
        with self._pyarrow.parquet.ParquetWriter(sink, batches.schema) as writer:
            waiting: list[Any] = []
            for batch in batches:
                waiting.append(batch)
                if sum(map(len, waiting)) >= _ROWS_PER_GROUP:
                    writer.write_table(self._pyarrow.Table.from_batches(waiting))
                    waiting.clear()
            if waiting:
                writer.write_table(self._pyarrow.Table.from_batches(waiting))

    def _write(self, piece: Piece) -> tuple[bytes, Refused]:
        faults = dict(unknown_keys(piece.rows, self.columns))
        classes = self._classes(piece.predictions)
        table = {
            position: [*checked_cells(row, self.columns), *classes[position]]
            for position, row in enumerate(piece.rows)
            if position not in faults
        }
        head = b""
        if not self._begun:
            self._schema = self._schema_of(list(table.values()))
            head = self._schema.serialize().to_pybytes()
        try:
            batch = self._batch(list(table.values()))
        except _UNFIT:
            misfits = {
                p: fault for p, row in table.items() if (fault := self._misfit(piece.rows[p].line, row))
            }
            faults |= misfits
            batch = self._batch([row for position, row in table.items() if position not in misfits])
        return head + batch.serialize().to_pybytes(), sorted(faults.items(), key=lambda item: item[0])

    def _batch(self, table: Sequence[Sequence[object]]) -> Any:
        columns = zip(*table, strict=True) if table else [()] * len(self._schema)
        arrays = [self._array(cells, field.type) for cells, field in zip(columns, self._schema, strict=True)]
        return self._pyarrow.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _schema_of(self, table: Sequence[Sequence[object]]) -> Any:
        fields = []
        for i, name in enumerate((*self.columns, *self.names)):
            if self._input_schema is not None and i < len(self.columns):
                arrow_type = self._input_schema.field(i).type
                if self._pyarrow.types.is_dictionary(arrow_type):
                    arrow_type = arrow_type.value_type
            elif i >= len(self.columns) and self._wanted[i - len(self.columns)] == CANDIDATES:
                arrow_type = self._pyarrow.list_(self._pyarrow.string())  # the first rows may have none
            else:
                arrow_type = self._type_of([cells[i] for cells in table])
            fields.append((name, arrow_type))
        return self._pyarrow.schema(fields)

    def _type_of(self, values: list[object]) -> Any:
        try:
            found = self._pyarrow.array(values).type
        except _UNFIT:
            return self._pyarrow.string()
        return self._pyarrow.string() if self._pyarrow.types.is_null(found) else found

    def _array(self, values: Sequence[object], arrow_type: Any) -> Any:
        if self._pyarrow.types.is_string(arrow_type):
            texts = (value if value is None or isinstance(value, str) else str(value) for value in values)
            # A lone surrogate has no form in UTF-8.
            values = [text and text.encode(errors="backslashreplace").decode() for text in texts]
        return self._pyarrow.array(values, arrow_type)

    def _misfit(self, line: int, cells: Sequence[object]) -> Fault | None:
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
