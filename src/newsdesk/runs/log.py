"""The log of a run, log.jsonl: one event a line, each on disk before the next one happens."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from newsdesk.errors import counted
from newsdesk.files import damaged, explaining_full_disk, parsed_json, read_regular, take_own
from newsdesk.stored import OPTIONAL, WrongContentError, from_content, to_content

FinishReason = Literal["completed", "early-stopping", "interrupted"]


@dataclass(frozen=True)
class Started:
    """Training is about to begin.

    ``engine`` says which implementation runs the encoder, and why. The best state is chosen by
    ``choosing_rows`` of the validation rows; 0: the last one is kept. The rows were cross-validated before in
    so many ``folds``; 0: they were not. ``read_as`` says for each file in
    which dialect and encoding its rows were read.
    """

    steps: int
    epochs: float
    rows: int
    validation_rows: int
    device: str
    precision: str
    engine: str
    choosing_rows: int = 0
    folds: int = 0
    read_as: tuple[str, ...] = ()

    @property
    def split(self) -> str:
        """How many rows are learned from, and by which it is measured, in words."""
        held_out = counted(self.validation_rows, "validation row")
        if self.folds:
            held_out = f"cross-validated in {counted(self.folds, 'fold')}"
        return f"{counted(self.rows, 'training row')}, {held_out}"


@dataclass(frozen=True)
class Remark:
    """What to know of this training, a sentence: classes without validation rows, texts cut, and the like."""

    text: str


@dataclass(frozen=True)
class Step:
    """One optimiser step. Tokens are counted since the last step; ``padded_tokens`` includes the padding."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float
    rows: int
    tokens: int
    padded_tokens: int


@dataclass(frozen=True)
class Validation:
    """The state of the model on validation rows: those that choose the best state, or all where none do.

    ``best`` when this is the state to be kept so far: better than every earlier one, or where none choose
    the last. Macro F1 is a mean over ``macro_f1_classes`` of the ``classes``. In logs of earlier versions
    these and ``rows`` are missing and read as 0. Where a text may have several labels there is a
    ``micro_f1``, the accuracy is the share of texts with exactly the right ones, and the loss a mean over
    texts and labels.
    """

    step: int
    epoch: float
    loss: float
    accuracy: float
    macro_f1: float
    best: bool
    rows: int = 0
    macro_f1_classes: int = 0
    classes: int = 0
    micro_f1: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Resumed:
    """Training resumes after ``step`` steps; ``passed_over`` names newer checkpoints that are damaged."""

    step: int
    epoch: float
    passed_over: tuple[str, ...]


@dataclass(frozen=True)
class Interrupted:
    """Training was asked to stop and ends here; the model still holds the state to resume from."""

    step: int
    epoch: float


@dataclass(frozen=True)
class Finished:
    """Training is over and the model holds the state that is kept: the best one, or the last."""

    step: int
    epoch: float
    reason: FinishReason
    best_step: int
    padding_share: float


Event = Started | Remark | Resumed | Step | Validation | Interrupted | Finished


def to_record(event: Event) -> dict[str, Any]:
    """An event as one JSON object for ``log.jsonl``, its kind under ``event``.

    JSON has no infinity: the gradient norm of a float16 step that the loss scaler skips becomes null.
    """
    values = to_content(event).items()
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values}
    return {"event": type(event).__name__.lower(), **finite}


def from_record(kind: type[Event], record: Mapping[str, Any]) -> Event:
    """The inverse of ``to_record`` for an event of a kind. Raises WrongContentError for anything else."""
    lost = {"gradient_norm": math.inf} if record.get("gradient_norm", 0.0) is None else {}
    return from_content(kind, {**record, **lost})


_LARGEST_LOG = 1 << 30
_FIX = "copy the run again from an undamaged copy, or train it again"


@dataclass(frozen=True)
class Logged:
    """An event, and the seconds that training had taken by then."""

    event: Event
    seconds: float


@dataclass(frozen=True)
class _Line:
    """What every line of a log has."""

    event: str
    seconds: float


def read_log(path: Path, *kinds: type[Event]) -> Iterator[Logged]:
    """The events of a log in their order: those of the ``kinds`` named, else all.

    Raises UserError for a log that is missing, or damaged in a line that is read.
    """
    try:
        lines = read_regular(path, _LARGEST_LOG).decode().splitlines()
    except (OSError, ValueError) as error:
        raise damaged(path, str(error), fix=_FIX) from None
    yield from _events(path, lines, kinds)


def read_added(path: Path, start: int) -> tuple[list[Logged], int]:
    """The events after the first ``start`` bytes of a log that is still being written, and where they end.

    A line that is not whole yet is left for the next time. Raises UserError as :func:`read_log` does.
    """
    try:
        added = read_regular(path, _LARGEST_LOG)[start:]
        whole = added[: added.rfind(b"\n") + 1]
        lines = whole.decode().splitlines()
    except (OSError, ValueError) as error:
        raise damaged(path, str(error), fix=_FIX) from None
    return list(_events(path, lines)), start + len(whole)


def _events(path: Path, lines: list[str], kinds: tuple[type[Event], ...] = ()) -> Iterator[Logged]:
    wanted = {kind.__name__.lower(): kind for kind in kinds or get_args(Event)}
    for number, line in enumerate(lines, start=1):
        try:
            record = parsed_json(line)
            head = from_content(_Line, record)
            if head.event in wanted:
                yield Logged(from_record(wanted[head.event], record), head.seconds)
            elif not kinds:
                raise WrongContentError(f"event is {head.event!r}, which this version does not know")
        except ValueError as error:
            raise damaged(path, f"line {number}: {error}", fix=_FIX) from None


class EventLog:
    """Appends events to log.jsonl with the seconds that training has taken so far."""

    def __init__(self, path: Path, *, keep: int | None = None) -> None:
        """Open ``path`` for appending; what follows its first ``keep`` bytes, if given, is removed."""
        self._path = path
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise damaged(path, "a link or a folder, a pipe, a device in its place", fix=_FIX)
        if path.exists():
            take_own(path)
        self._stream = path.open("a", encoding="utf-8")
        if keep is not None:
            self._stream.truncate(min(max(keep, 0), path.stat().st_size))
        try:
            lines = read_regular(path, _LARGEST_LOG).decode().splitlines()
            already = from_content(_Line, parsed_json(lines[-1])).seconds if lines else 0.0
        except (OSError, ValueError) as error:
            self._stream.close()
            raise damaged(path, f"its last line: {error}", fix=_FIX) from None
        self._start = time.monotonic() - already

    def write(self, event: Event) -> None:
        """Append one event and hand it to the operating system, so that a kill loses nothing before it.

        Raises UserError when the disk is full.
        """
        record = {**to_record(event), "seconds": round(time.monotonic() - self._start, 3)}
        with explaining_full_disk(self._path):
            self._stream.write(json.dumps(record) + "\n")
            self._stream.flush()

    def secure(self) -> int:
        """Flush everything to the disk; the length in bytes. Raises UserError when it is full."""
        with explaining_full_disk(self._path):
            os.fsync(self._stream.fileno())
        return self._path.stat().st_size

    def __enter__(self) -> Self:
        """The log itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._stream.close()
