"""Confidence against truth: the bins of a reliability diagram, with and without the temperature."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from newsdesk.metrics import SMALLEST_PROBABILITY, expected_calibration_error, reliability
from newsdesk.reporting.content import Calibration, Missing, Reliability
from newsdesk.reporting.evaluated_rows import EvaluatedRows


def calibration_of(rows: EvaluatedRows, temperature: float, command: str) -> Calibration:
    """What the temperature that the rows were predicted with did for them.

    ``temperature`` is 1 where they were predicted without one; ``command`` then says how to fit it. What
    was there before follows from the probabilities: raised to the power of the temperature, they are
    proportional to those of the undivided logits.
    """
    after = _reliability("as predicted", rows.probabilities, rows)
    if temperature == 1.0:
        reason = "these probabilities are the model's own, without a temperature fitted on held-out rows"
        return Calibration(after, Missing(reason, command), 1.0)
    powers = np.clip(rows.probabilities, SMALLEST_PROBABILITY, 1.0) ** temperature
    undivided = powers / powers.sum(axis=1, keepdims=True)
    return Calibration(after, _reliability("before the temperature", undivided, rows), temperature)


def _reliability(name: str, probabilities: NDArray[np.float64], rows: EvaluatedRows) -> Reliability:
    of_rows = np.arange(len(rows.labels))
    confidence = probabilities[of_rows, rows.predicted]
    of_true = probabilities[of_rows, rows.labels]
    return Reliability(
        name=name,
        expected_calibration_error=expected_calibration_error(confidence, rows.correct),
        negative_log_likelihood=float(-np.log(np.clip(of_true, SMALLEST_PROBABILITY, 1.0)).mean()),
        bins=reliability(confidence, rows.correct),
    )
