"""From the fastest way to quantise to gentler ones, until one passes the gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from newsdesk.errors import UserError
from newsdesk.inference.gate import (
    Evidence,
    Limits,
    Quality,
    render_tried,
    rows_to_tell,
)
from newsdesk.inference.quantise import Calibration, Setting, products, quantise, rounding_error

if TYPE_CHECKING:
    from onnx import ModelProto

FASTEST = Setting("token", bits=7)
FINER = Setting("token", bits=8)
SENSITIVE_SHARES = (1 / 8, 1 / 3)
SMOOTHING = 0.5

Measure = Callable[["ModelProto", str], Quality]


class Ladder:
    """The settings to try on a model, the fastest first; what needs calibration waits until its turn."""

    def __init__(self, model: ModelProto, calibrate: Callable[[], Calibration]) -> None:
        """Take the float32 model, and what looks at the inputs of its products when that is needed."""
        self._model = model
        self._calibrate = calibrate

    @cached_property
    def calibration(self) -> Calibration:
        """What the inputs of the products look like."""
        return self._calibrate()

    def __iter__(self) -> Iterator[Setting]:
        """The settings in order."""
        yield from (FASTEST, FINER)
        ranked = self.most_sensitive()
        for share in SENSITIVE_SHARES:
            yield replace(FINER, kept=frozenset(ranked[: max(1, round(share * len(ranked)))]))
        yield Setting("calibrated", bits=8)
        yield replace(FINER, smoothing=SMOOTHING)
        yield Setting("float32", bits=8)

    def most_sensitive(self) -> list[str]:
        """Names of the products, those first that rounding changes most on the calibration rows."""
        from onnx import numpy_helper

        found = products(self._model)
        tensors = {tensor.name: tensor for tensor in self._model.graph.initializer}
        errors = {}
        for node in self._model.graph.node:
            if node.name in found:
                weights = numpy_helper.to_array(tensors[node.input[1]])
                errors[node.name] = rounding_error(
                    self.calibration[node.input[0]].sample, weights, FINER.bits
                )
        return sorted(errors, key=lambda name: -errors[name])

    def quantised(self, setting: Setting) -> ModelProto:
        """The model by one of the settings."""
        needs_calibration = setting.smoothing or setting.activations == "calibrated"
        return quantise(self._model, setting, self.calibration if needs_calibration else None)


def first_that_passes(ladder: Ladder, measure: Measure, evidence: Evidence, limits: Limits) -> list[Quality]:
    """Try the ladder's settings; the last of the figures returned is of the one that passes.

    ``measure`` writes a model and measures it on ``evidence``. Raises UserError, with the table of what was
    tried, when none passes.
    """
    tried: list[Quality] = []
    for setting in ladder:
        tried.append(measure(ladder.quantised(setting), str(setting)))
        if tried[-1].is_close(limits):
            return tried
    found = "\n" + "\n".join(render_tried(tried, evidence.facts, limits))
    enough = min(filter(None, (rows_to_tell(quality, limits) for quality in tried)), default=None)
    if enough is None:
        raise UserError(
            "no way to quantise this model keeps its quality; nothing was written",
            found=found,
            fix="deploy it with --to onnx-fp32, or allow more with --max-loss and --max-loss-upper",
        )
    raise UserError(
        "the rows are too few to tell whether an int8 export keeps the quality; nothing was written",
        found=found,
        fix=f"give about {enough:,} labelled rows, which the run did not learn from, with --data FILE; allow "
        "more with --max-loss-upper; or deploy it with --to onnx-fp32",
    )
