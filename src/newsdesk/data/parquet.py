"""Parquet files: rows in batches, and the class names that the Hub's files declare."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from newsdesk.data.lines import refuse_foreign
from newsdesk.data.table import BadRow, Fault, Row, RowStream, Table
from newsdesk.errors import UserError, missing_package

_ROWS_PER_BATCH = 4096
_BYTES_READ_AHEAD = 1 << 20  # of each column; without a limit, a whole row group is held


def parquet_rows(stream: BinaryIO, path: Path) -> RowStream:
    """The rows of a parquet file; class names in the metadata that the Hub's datasets write are kept.

    Raises UserError without pyarrow, or for what is no parquet file.
    """
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
        file = pyarrow.parquet.ParquetFile(content, buffer_size=_BYTES_READ_AHEAD, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path.name} is not a whole parquet file",
            found=str(error).splitlines()[0],
            fix="fetch or write the file again",
        ) from None
    schema = file.schema_arrow
    names = _hub_class_names(schema.metadata or {})
    head = Table(path, tuple(schema.names), (), (), has_header=True, class_names=names)
    return RowStream(head, _rows(file), count=file.metadata.num_rows, arrow_schema=schema)


def _rows(file: Any) -> Iterator[Row | BadRow]:
    import pyarrow

    line = 0
    try:
        for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH):
            for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                line += 1
                yield Row(line, cells)
    except (pyarrow.ArrowException, OSError) as error:
        reason = next(iter(str(error).splitlines()), None)
        fault = Fault(line + 1, "the file breaks off or is damaged here", reason, "fetch or write it again")
        yield BadRow(fault, b"", ends_file=True)


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
