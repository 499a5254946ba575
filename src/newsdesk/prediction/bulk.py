"""Predictions of files of any size: window after window, in bounded memory, each row once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar, Unpack

import numpy as np

from newsdesk import __version__
from newsdesk.data.columns import TextLayout
from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.data.fields import value_at
from newsdesk.data.stream import open_rows, rows_of
from newsdesk.data.table import BadRow, Fault, Row, RowStream
from newsdesk.errors import UserError, listed
from newsdesk.model.tokenizer import Truncation
from newsdesk.prediction.abstention import REASON, DecisionRule, Promises
from newsdesk.prediction.classifier import Classifier
from newsdesk.prediction.output_formats import OUTPUT_TABLES
from newsdesk.prediction.output_table import (
    Format,
    OutputTable,
    Piece,
    Refused,
    check_destination,
    json_line,
    rejects_of,
)
from newsdesk.prediction.predictions import Predictions
from newsdesk.prediction.resumable_output import (
    Checkpoint,
    DirectOutput,
    PartFile,
    fingerprint,
)

Item = TypeVar("Item")

NO_TEXT = "the row has no text"
"""What is wrong with a row whose text columns are all missing or null."""


@dataclass(frozen=True)
class Reject:
    """A row that was not classified, by its ``fault``: its cells by column, or bytes that cannot be read."""

    fault: Fault
    row: dict[str, object] | bytes

    def to_json(self) -> bytes:
        """A line for the file of rejects: line, reason, found, and the row or the repr of its raw bytes."""
        content: dict[str, object] = {"line": self.fault.line, "reason": self.fault.wrong}
        if self.fault.found:
            content["found"] = self.fault.found
        if isinstance(self.row, bytes):
            cut = {"cut_from": len(self.row)} if len(self.row) > _LONGEST_RAW else {}
            return json_line(content | {"raw": repr(self.row[:_LONGEST_RAW])} | cut)
        return json_line(content | {"row": self.row})


@dataclass
class Window:
    """Some rows in a file's order.

    Attributes:
        start: how many rows, bad ones included, come before it.
        rows, numbers, texts: those that can be classified, their 0-based positions, what the model reads.
        rejects: the others.
        share: how much of the file is read with it, 0 to 1; None where that is not known.
        size: characters in its rows, and bytes in its rejects.
    """

    start: int
    rows: list[Row] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    share: float | None = None
    size: int = 0

    @property
    def end(self) -> int:
        """How many rows of the file come before the next window."""
        return self.start + len(self.rows) + len(self.rejects)


def windows(
    stream: RowStream, layout: TextLayout, *, size: int, skip: int = 0, strict: bool = False
) -> Iterator[Window]:
    """Windows of ``size`` rows after the first ``skip``; of an empty file there is one, without rows.

    A row is rejected when it cannot be read, when a text column contains something other than text, or when
    all of them are missing or null; an empty text is a text. Raises UserError where the file breaks off,
    and with ``strict`` at the first bad row.
    """
    rows = islice(stream.rows, skip, None)
    start = skip
    while True:
        window = Window(start)
        for number, row in enumerate(islice(rows, size), start):
            _take(window, number, row, stream, layout, strict)
            if window.size >= CHARACTERS_PER_WINDOW:
                break
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
        window.size += len(row.raw)
        if row.ends_file:
            raise row.fault.error(stream.head.path)
    else:
        record = row.record(stream.head.columns)
        window.size += len(row.source or "") or sum(len(cell) for cell in row.cells if isinstance(cell, str))
        text: str | Fault
        if all(value_at(record, column) is None for column in layout.text_columns):
            named = ", ".join(map(repr, layout.text_columns))
            text = Fault(row.line, NO_TEXT, f"{named} missing or null", "complete the row, or drop it")
        else:
            text = layout.text_of(row.line, {**dict.fromkeys(layout.text_columns), **record})
        if isinstance(text, str):
            window.rows.append(row)
            window.numbers.append(number)
            window.texts.append(text)
            return
        reject = Reject(text, record)
    if strict:
        raise reject.fault.error(stream.head.path)
    window.rejects.append(reject)


def _share(stream: RowStream, rows: int) -> float | None:
    if stream.count is not None:
        return rows / stream.count if stream.count else 1.0
    return stream.share_read() if stream.share_read is not None else None


ROWS_PER_WINDOW = 4096
"""Enough that batches of like length waste little, and little enough to be lost by a kill."""

CHARACTERS_PER_WINDOW = 1 << 25
"""Characters after which a window ends before it has so many rows, so that it fits into memory."""

_LONGEST_RAW = 1 << 16  # bytes of a row that cannot be read, in the file of rejects
_FAULTS_KEPT = 1000  # the commonest of which is reported


class MostlyRejectedError(UserError):
    """More rows are rejected than classified: the file is not what it was taken for."""


class NotComputedError(UserError):
    """The model failed, not the file: what it computes is no number, say, or it takes too long."""


@dataclass(frozen=True)
class Begun:
    """The work begins, after ``rows_before`` rows that an earlier process dealt with.

    Attributes:
        left_over: whether an unfinished output of other input or settings was dropped.
        read_as: how the input is read, for people, where that is not what anyone would expect.
    """

    rows_before: int
    left_over: bool
    read_as: str = ""


@dataclass(frozen=True)
class Classified:
    """A batch was computed: ``rows`` of the input are done, with the bad ones of earlier windows."""

    rows: int


@dataclass(frozen=True)
class WindowWritten:
    """A window is on the disk, with its bad rows; ``share`` of the input, 0 to 1 where known, is done."""

    checkpoint: Checkpoint
    share: float | None
    rejects: tuple[Reject, ...]


BulkEvent: TypeAlias = Begun | Classified | WindowWritten
Observer = Callable[[BulkEvent], None]


def predict_file(
    predictor: Classifier,
    source: Path | BinaryIO | RowStream,
    destination: Path | BinaryIO,
    *,
    format: Format | None = None,
    text: Sequence[str] | None = None,
    template: str | None = None,
    dialect: Dialect = DETECTED,
    top_k: int = 1,
    all_probabilities: bool = False,
    indicators: bool = False,
    rejects: Path | None = None,
    strict: bool = False,
    observe: Observer = lambda _event: None,
    **asked: Unpack[Promises],
) -> Checkpoint:
    """Classify every row of a file of any size; its columns and order are kept, the classes appended.

    Memory is bounded by a window of rows. A row that cannot be classified goes to the rejects, with its
    line and the reason. A file grows as ``OUTPUT.part`` beside a journal and takes its name at the end; after
    a kill the same call resumes, and the output is the same byte for byte. Streams are not resumed.

    Args:
        predictor: a run or exported model, from ``newsdesk.open_model``.
        source: a data file, a binary stream of one text a line, or rows.
        destination: the file to write, or a binary stream.
        format: csv, tsv, jsonl, parquet, ninjs or submission; None: by the file's ending, a stream gets csv.
        text: columns that make the text; None: as the run was trained, else those with usual names.
        template: how columns make one text; None: likewise.
        dialect: how the input is written, and whether it has a header; by default detected.
        top_k, all_probabilities: how many classes to name, and whether to append a column for each.
        indicators: where a text may have several labels, a column of 0 and 1 for each instead of a list.
        rejects: the file for bad rows; None: ``OUTPUT.rejects.jsonl``, and for a stream ``observe`` alone.
        strict: stop at the first bad row; what was written stays, and the call without ``strict`` resumes.
        observe: called with every event.
        asked: ``abstain``, ``confidence``, ``sets``, ``off_topic``, ``answer_empty``: see `Promises`.

    Raises:
        MostlyRejectedError: when more than half of the first, or of all, rows are rejected; no file is left.
        NotComputedError: where the model fails.
        UserError: for unreadable input, an output that cannot be written, ``strict`` and a bad row.
    """
    if isinstance(destination, Path):
        given = source if isinstance(source, Path) else None
        format = check_destination(destination, source=given, format=format)
    settings = {
        "limits": asdict(dialect.limits),
        "format": format or "csv",
        "text": text,
        "template": template,
        "top_k": top_k,
        "all_probabilities": all_probabilities,
        "answer_empty": asked.get("answer_empty", False),
        **({"indicators": True} if indicators else {}),
    }
    job = _Job(predictor, settings, predictor.decision_rule(**asked), strict, observe)
    stated = dialect.asking(text or predictor.layout.text_columns, template=template)
    with _opened(source, stated) as stream:
        return _predict(job, stream, source, destination, rejects)


@dataclass(frozen=True)
class _Job:
    predictor: Classifier
    settings: Mapping[str, Any]
    rule: DecisionRule | None
    strict: bool
    observe: Observer

    def table(self, stream: RowStream, *, packed: bool = False) -> OutputTable:
        if self.rule is not None:
            remarks = self.rule.columns
        else:
            remarks = () if self.settings["answer_empty"] else (REASON,)
        if self.settings["format"] == "ninjs" and not stream.head.news.startswith("ninjs"):
            raise UserError(
                "--format ninjs adds subjects to ninjs items, and the input has none",
                found=stream.head.news or f"columns {listed(stream.head.columns)}",
                fix="give --input a json or jsonl file of ninjs items, or write jsonl",
            )
        return OUTPUT_TABLES[self.settings["format"]](
            stream.head.columns,
            self.predictor.label_names,
            top_k=self.settings["top_k"],
            all_probabilities=self.settings["all_probabilities"],
            remarks=remarks,
            arrow_schema=stream.arrow_schema,
            packed=packed,
            in_array=stream.in_array,
            several=self.predictor.task == "multi",
            indicators=self.settings.get("indicators", False),
        )

    def identity(self) -> dict[str, Any]:
        """All that decides the output's bytes, besides the input."""
        return {
            "newsdesk": __version__,
            "model": self.predictor.fingerprint,
            "rows_per_window": ROWS_PER_WINDOW,
            "characters_per_window": CHARACTERS_PER_WINDOW,
            "rule": None if self.rule is None else asdict(self.rule),
            **self.settings,
        }


@contextmanager
def _opened(source: Path | BinaryIO | RowStream, dialect: Dialect) -> Iterator[RowStream]:
    if isinstance(source, Path):
        with open_rows(source, dialect) as stream:
            yield stream
    elif isinstance(source, RowStream):
        yield source
    else:
        yield rows_of(source, Path("standard input"), dialect, form="txt")


def _predict(
    job: _Job,
    stream: RowStream,
    source: Path | BinaryIO | RowStream,
    destination: Path | BinaryIO,
    rejects: Path | None,
) -> Checkpoint:
    """Write all rows of the stream to a file that can be resumed; at once to a stream, a pipe or a device."""
    output: PartFile | DirectOutput
    if isinstance(destination, Path) and (destination.is_file() or not destination.exists()):
        table = job.table(stream, packed=destination.suffix.lower() == ".gz")
        destination = destination.resolve() if destination.is_symlink() else destination
        rejects = rejects or rejects_of(destination)
        _check_rejects(rejects, source, destination)
        identity = {"rejects": str(rejects), **_identity_of(source, stream), **job.identity()}
        output = PartFile(destination, rejects, identity, table.convert if table.needs_conversion else None)
    else:
        table = job.table(stream)
        output = DirectOutput(destination, rejects, table.convert if table.needs_conversion else None)
    head = stream.head
    with output.opened():
        read_as = f"{head.path}: {head.read_as}" if head.is_noteworthy else ""
        job.observe(Begun(output.checkpoint.rows_read, output.left_over, read_as))
        if not output.checkpoint.complete:
            try:
                _classify(job, stream, table, output)
            except MostlyRejectedError:
                if isinstance(output, PartFile):
                    output.discard()
                raise
        output.finish()
    return output.checkpoint


def _identity_of(source: Path | BinaryIO | RowStream, stream: RowStream) -> dict[str, Any]:
    """What tells whether an input is the same, read in the same way; a pipe never is."""
    known = fingerprint(source) if isinstance(source, Path) else os.urandom(16).hex()
    dialect = None if stream.head.dialect is None else asdict(stream.head.dialect)
    return {"input": known, "read_as": {"columns": stream.head.columns, "dialect": dialect}}


def _classify(job: _Job, stream: RowStream, table: OutputTable, output: PartFile | DirectOutput) -> None:
    """Every row that the output does not have yet, window after window."""
    if isinstance(output, PartFile) and output.checkpoint.output_bytes:
        with output.part.open("rb") as part:
            table.resume(part)
    if stream.faults:
        raise stream.faults[0].error(stream.head.path)
    if not stream.head.columns:  # no row can be read
        bad = [row.fault for row in islice(stream.rows, ROWS_PER_WINDOW) if isinstance(row, BadRow)]
        _require_half(stream, len(bad), len(bad), bad)
    columns = {name: job.settings[name] for name in ("text", "template")}
    layout = job.predictor.layout.for_table(stream.head, **columns)
    skip = output.checkpoint.rows_read
    coming = windows(stream, layout, skip=skip, strict=job.strict, size=ROWS_PER_WINDOW)
    faults: list[Fault] = []
    for window in ahead(coming):
        faults += [reject.fault for reject in window.rejects][: _FAULTS_KEPT - len(faults)]
        if window.start == 0:  # before anything is computed: it may be read in the wrong way
            _require_half(stream, len(window.rejects), window.end, faults)
        predictions = _predictions(job, window)
        written, refused = table.write(Piece(window.rows, predictions, window.numbers))
        rejected = _with_refused(window, refused, stream, strict=job.strict)
        output.append(
            written,
            b"".join(reject.to_json() for reject in rejected),
            rows_read=window.end - window.start,
            rejected=len(rejected),
            **_counts(predictions, refused),
        )
        job.observe(WindowWritten(output.checkpoint, window.share, tuple(rejected)))
        faults += list(refused.values())[: _FAULTS_KEPT - len(faults)]
    _require_half(stream, output.checkpoint.rejected, output.checkpoint.rows_read, faults)


def _predictions(job: _Job, window: Window) -> Predictions:
    try:
        return job.predictor.classify(
            window.texts,
            job.rule,
            answer_empty=job.settings["answer_empty"],
            progress=lambda done, *_: job.observe(Classified(window.start + done)),
        )
    except UserError as error:
        raise NotComputedError(error.wrong, found=error.found, fix=error.fix) from error


def _require_half(stream: RowStream, rejected: int, rows: int, faults: Sequence[Fault]) -> None:
    """Raise MostlyRejectedError, with the commonest fault, if more than half of the rows are rejected."""
    if 2 * rejected <= rows:
        return
    kinds = Counter(fault.wrong for fault in faults)
    wrong = next((wrong for wrong, _ in kinds.most_common(1)), "for reasons that an earlier run found")
    first = next((fault for fault in faults if fault.wrong == wrong), None)
    where = "" if first is None else f", first in line {first.line}"
    if first is not None and first.found:
        where += f" ({first.found})"
    written = stream.head.dialect is not None and stream.head.dialect.delimiter is not None
    if first is not None and first.encoding and first.fix:
        fix = first.fix
    elif written and wrong != NO_TEXT:
        fix = "name what separates and surrounds its cells: --delimiter, --quote; or fix the rows"
    else:
        fix = (first and first.fix) or "fix the rows, or name other text columns with --text"
    read_as = f"; the file was read as: {stream.head.read_as}" if stream.head.read_as else ""
    raise MostlyRejectedError(
        f"{rejected:,} of the {'first ' if first and rows == ROWS_PER_WINDOW else ''}{rows:,} rows of"
        f" {stream.head.path.name} cannot be classified",
        found=f"{wrong}{where}{read_as}",
        fix=fix,
    )


def _counts(predictions: Predictions, refused: Refused) -> dict[str, int]:
    """How many of the rows in the output have no label, and how much of the texts was read."""
    held = np.ones(len(predictions), dtype=np.bool_)
    held[list(refused)] = False
    read = predictions.truncation or Truncation()
    return {
        "unanswered": int((held & ~predictions.answered).sum()),
        "unreadable": int((held & predictions.is_unreadable).sum()),
        "cut": read.cut,
        "tokens": read.tokens,
        "lost": read.lost,
    }


def _with_refused(window: Window, refused: Refused, stream: RowStream, *, strict: bool) -> list[Reject]:
    """The window's rejects and those that the output cannot hold, in line order."""
    if refused and strict:
        raise refused[min(refused)].error(stream.head.path)
    columns = stream.head.columns
    others = (Reject(fault, window.rows[position].record(columns)) for position, fault in refused.items())
    return sorted([*window.rejects, *others], key=lambda reject: reject.fault.line)


def _check_rejects(rejects: Path, source: object, destination: Path) -> None:
    """Refuse a file of rejects that is the input or the output. Raises UserError."""
    for other, flag in ((source, "--input"), (destination, "--output")):
        if isinstance(other, Path) and rejects.resolve() == other.resolve():
            raise UserError(
                f"the rejects would overwrite {other}",
                found=f"{flag} {other} --rejects {rejects}",
                fix="give --rejects another name",
            )
