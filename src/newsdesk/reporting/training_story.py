"""A training as its log tells it: curves thin enough to draw, and what it took."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from newsdesk.files import damaged
from newsdesk.reporting.content import Cost, Missing, TrainingContent, TrainingPoint, ValidationPoint

POINTS = 160
"""Points of a curve, at most: more would not be told apart on a page."""

_FIX = "copy the run anew from where it is whole, or train it again"


def training_story(log: Path, *, processes: int) -> TrainingContent | Missing:
    """Curves and cost from log.jsonl; Missing where there is none or no step in it.

    ``processes`` is how many trained together, which the log does not say. Raises UserError for a damaged
    log.
    """
    if not log.is_file():
        return Missing("this run was not trained by newsdesk: it has no log")
    events = list(_events(log))
    try:
        return _story(events, processes)
    except (KeyError, TypeError) as error:
        raise damaged(log, f"an event without {error}", fix=_FIX) from None


def _events(log: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise damaged(log, f"line {number}: {error}", fix=_FIX) from None


def _story(events: Sequence[dict[str, Any]], processes: int) -> TrainingContent | Missing:
    steps = [event for event in events if event["event"] == "step"]
    if not steps:
        return Missing("the log of this run holds no step")
    started = next(event for event in events if event["event"] == "started")
    size = -(-len(steps) // POINTS)
    groups = [steps[first : first + size] for first in range(0, len(steps), size)]
    return TrainingContent(
        points=tuple(
            TrainingPoint(
                epoch=group[-1]["epoch"],
                loss=float(np.mean([step["loss"] for step in group])),
                learning_rate=group[-1]["learning_rate"],
            )
            for group in groups
        ),
        validations=tuple(
            ValidationPoint(*(event[key] for key in ("epoch", "loss", "accuracy", "macro_f1", "best")))
            for event in events
            if event["event"] == "validation"
        ),
        steps_a_point=size,
        cost=Cost(
            seconds=events[-1]["seconds"],
            steps=steps[-1]["step"],
            **{key: sum(step[key] for step in steps) for key in ("rows", "tokens", "padded_tokens")},
            **{key: started[key] for key in ("device", "precision", "engine")},
            processes=processes,
        ),
    )
