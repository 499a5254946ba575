"""Windows: as many rows of a file as are classified together, those that cannot be set aside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from newsdesk.data.layout import TextLayout
from newsdesk.data.table import BadRow, Fault, Row, RowStream
from newsdesk.inference.output_table import json_value

Item = TypeVar("Item")

NO_TEXT = "the row has no text"
"""What is wrong with a row whose text columns are all missing or null."""


@dataclass(frozen=True)
class Reject:
    """A row that was not classified.

    Attributes:
        fault: why, and in which line.
        row: what it holds, one of two: its cells by column, or the bytes of a row that could not be read.
    """

    fault: Fault
    row: dict[str, object] | bytes

    def to_json(self) -> bytes:
        """A line for the file of rejects: line, reason, found, and the row or the repr of its raw bytes."""
        content: dict[str, object] = {"line": self.fault.line, "reason": self.fault.wrong}
        if self.fault.found:
            content["found"] = self.fault.found
        raw = isinstance(self.row, bytes)
        content |= {"raw": repr(self.row)} if raw else {"row": json_value(self.row)}
        line = json.dumps(content, ensure_ascii=False, default=str)
        return (line + "\n").encode(errors="backslashreplace")


@dataclass
class Window:
    """Some rows in a file's order.

    Attributes:
        start: how many rows, bad ones included, come before it.
        rows: those that can be classified.
        numbers: their 0-based positions in the file.
        texts: what the model reads of each.
        rejects: the others.
        share: how much of the file is read with it, 0 to 1; None where that is not known.
    """

    start: int
    rows: list[Row] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    share: float | None = None

    @property
    def end(self) -> int:
        """How many rows of the file come before the next window."""
        return self.start + len(self.rows) + len(self.rejects)


def windows(
    stream: RowStream, layout: TextLayout, *, size: int, skip: int = 0, strict: bool = False
) -> Iterator[Window]:
    """Windows of ``size`` rows behind the first ``skip``; of an empty file there is one, without rows.

    A row is rejected when it cannot be read, when a text column holds something other than text, or when
    all of them are missing or null; an empty text is a text. Raises UserError where the file breaks off,
    and with ``strict`` at the first bad row.
    """
    rows = islice(stream.rows, skip, None)
    start = skip
    while True:
        window = Window(start)
        for number, row in enumerate(islice(rows, size), start):
            _take(window, number, row, stream, layout, strict)
        if window.end == start and start > 0:
            return
        window.share = _share(stream, window.end)
        yield window
        if window.end == start:
            return
        start = window.end


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each prepared by another thread while the one before it is in use."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = reader.submit(next, items, None)
            yield item


def _take(
    window: Window, number: int, row: Row | BadRow, stream: RowStream, layout: TextLayout, strict: bool
) -> None:
    """Put a row where it belongs in its window. Raises UserError as ``windows`` does."""
    if isinstance(row, BadRow):
        reject = Reject(row.fault, row.raw)
        if row.ends_file:
            raise row.fault.error(stream.head.path)
    else:
        record = row.record(stream.head.columns)
        text = _text_of(row, record, layout)
        if isinstance(text, str):
            window.rows.append(row)
            window.numbers.append(number)
            window.texts.append(text)
            return
        reject = Reject(text, record)
    if strict:
        raise reject.fault.error(stream.head.path)
    window.rejects.append(reject)


def _text_of(row: Row, record: dict[str, object], layout: TextLayout) -> str | Fault:
    if all(record.get(column) is None for column in layout.text_columns):
        named = ", ".join(map(repr, layout.text_columns))
        return Fault(row.line, NO_TEXT, f"{named} missing or null", "complete the row, or drop it")
    return layout.text_of(row.line, {**dict.fromkeys(layout.text_columns), **record})


def _share(stream: RowStream, rows: int) -> float | None:
    if stream.count is not None:
        return rows / stream.count if stream.count else 1.0
    return stream.share_read() if stream.share_read is not None else None
