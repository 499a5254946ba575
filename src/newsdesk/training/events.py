"""What happens during training, as values: whoever cares (display, log, checkpoints) consumes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from newsdesk.stored import from_content, to_content

FinishReason = Literal["completed", "early-stopping", "interrupted"]


@dataclass(frozen=True)
class Started:
    """Training is about to begin.

    ``engine`` says which implementation runs the encoder, and why. The best state is chosen by
    ``choosing_rows`` of the validation rows; 0: the last one is kept. ``read_as`` says for each file in
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
    read_as: tuple[str, ...] = ()


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
    the last. Macro F1 is a mean over ``macro_f1_classes`` of the ``classes``. Logs of earlier versions do not
    tell the last three, which are 0 there.
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


@dataclass(frozen=True)
class Resumed:
    """Training goes on from a checkpoint after ``step`` steps.

    ``passed_over`` names newer checkpoints that were found damaged.
    """

    step: int
    epoch: float
    passed_over: tuple[str, ...]


@dataclass(frozen=True)
class Interrupted:
    """Training was asked to stop and ends here; the model still holds the state it would go on from."""

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
    return {"event": event_name(type(event)), **finite}


def from_record(kind: type[Event], record: Mapping[str, Any]) -> Event:
    """The inverse of ``to_record`` for an event of a kind. Raises WrongContentError for anything else."""
    lost = {"gradient_norm": math.inf} if record.get("gradient_norm", 0.0) is None else {}
    return from_content(kind, {**record, **lost})


def event_name(kind: type[Event]) -> str:
    """What a log calls events of a kind."""
    return kind.__name__.lower()
