"""Predictions as parquet, piece by piece: Arrow's stream format can be appended to, parquet's cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

from newsdesk.data.table import Fault
from newsdesk.errors import missing_package
from newsdesk.inference.decision import CANDIDATES
from newsdesk.inference.output_table import (
    OutputTable,
    Piece,
    Refused,
    checked_cells,
    refuse_twin_columns,
    unknown_keys,
)

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
