"""What happens during training, as values: whoever cares (display, log, checkpoints) consumes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from newsdesk.stored import from_content

FinishReason = Literal["completed", "early-stopping", "interrupted"]


@dataclass(frozen=True)
class Started:
    """Training is about to begin. ``engine`` says which implementation runs the encoder, and why."""

    steps: int
    epochs: float
    rows: int
    validation_rows: int
    device: str
    precision: str
    engine: str


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
    """The state of the model on the validation rows; ``best`` when it is better than every earlier one."""

    step: int
    epoch: float
    loss: float
    accuracy: float
    macro_f1: float
    best: bool


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
    """Training is over and the model holds the best state seen (the last, without validation rows)."""

    step: int
    epoch: float
    reason: FinishReason
    best_step: int
    padding_share: float


Event = Started | Resumed | Step | Validation | Interrupted | Finished


def to_record(event: Event) -> dict[str, Any]:
    """An event as one JSON object for ``log.jsonl``, its kind under ``event``.

    JSON has no infinity: the gradient norm of a float16 step that the loss scaler skips becomes null.
    """
    values = asdict(event).items()
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values}
    return {"event": event_name(type(event)), **finite}


def from_record(kind: type[Event], record: Mapping[str, Any]) -> Event:
    """The inverse of ``to_record`` for an event of a kind. Raises WrongContentError for anything else."""
    lost = {"gradient_norm": math.inf} if record.get("gradient_norm", 0.0) is None else {}
    return from_content(kind, {**record, **lost})


def event_name(kind: type[Event]) -> str:
    """What a log calls events of a kind."""
    return kind.__name__.lower()
