"""A training as its log tells it: curves thin enough to draw, and what it took."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from newsdesk.files import damaged
from newsdesk.reporting.content import Cost, Missing, TrainingContent, TrainingPoint
from newsdesk.training.events import Started, Step, Validation
from newsdesk.training.log import read_log

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
    logged = list(read_log(log))
    events = [entry.event for entry in logged]
    steps = [event for event in events if isinstance(event, Step)]
    if not steps:
        return Missing("the log of this run holds no step")
    started = next((event for event in events if isinstance(event, Started)), None)
    if started is None:
        raise damaged(log, "no event that says what it was started on", fix=_FIX)
    size = -(-len(steps) // POINTS)
    groups = [steps[first : first + size] for first in range(0, len(steps), size)]
    return TrainingContent(
        points=tuple(
            TrainingPoint(
                epoch=group[-1].epoch,
                loss=float(np.mean([step.loss for step in group])),
                learning_rate=group[-1].learning_rate,
            )
            for group in groups
        ),
        validations=tuple(event for event in events if isinstance(event, Validation)),
        steps_a_point=size,
        cost=Cost(
            seconds=logged[-1].seconds,
            steps=steps[-1].step,
            rows=sum(step.rows for step in steps),
            tokens=sum(step.tokens for step in steps),
            padded_tokens=sum(step.padded_tokens for step in steps),
            device=started.device,
            precision=started.precision,
            engine=started.engine,
            processes=processes,
        ),
    )
