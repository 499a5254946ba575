"""Events become lines of JSON that any reader takes."""

from __future__ import annotations

import json
import math

import pytest

from newsdesk.runs.log import (
    Event,
    Finished,
    Interrupted,
    Remark,
    Resumed,
    Started,
    Step,
    Validation,
    from_record,
    to_record,
)

EVENTS: list[Event] = [
    Started(
        steps=9,
        epochs=1.5,
        rows=10,
        validation_rows=2,
        choosing_rows=0,
        device="cpu",
        precision="float32",
        engine="fused",
    ),
    Remark("2 validation rows are too few to choose the best state by"),
    Step(1, 0.5, 1.25, 2e-4, 0.75, 16, 400, 410),
    Validation(3, 1.0, 0.5, 0.9, 0.875, True, 2, 3, 4),
    Resumed(4, 1.5, ("step-00000005-0123456789abcdef.safetensors",)),
    Interrupted(5, 1.75),
    Finished(9, 1.5, "completed", 3, 0.02),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_a_record_holds_the_kind_and_every_value(event: Event):
    record = to_record(event)
    assert record.pop("event") == type(event).__name__.lower()
    assert from_record(type(event), json.loads(json.dumps(record, allow_nan=False))) == event


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_what_json_has_no_word_for_is_null(norm: float):
    record = to_record(Step(1, 0.5, 1.25, 2e-4, norm, 16, 400, 410))
    assert record["gradient_norm"] is None
    assert record["loss"] == 1.25
