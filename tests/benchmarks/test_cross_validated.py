"""What cross-validated answers say of a classifier holds as often as it should; the simulation would tell."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

DRAWS = 100
MOST_BROKEN = 0.05 + 2.6 * (0.05 * 0.95 / DRAWS) ** 0.5
LEAST_COVERED = 0.93 - 2.6 * (0.07 * 0.93 / DRAWS) ** 0.5


@pytest.fixture(scope="module")
def script(benchmark_script: Callable[[str], Any]) -> Any:
    return benchmark_script("cross_validated")


@pytest.mark.parametrize("head", ["discriminant", "overfitted"])
def test_intervals_cover_and_promises_are_kept_by_the_answers_of_folds(script: Any, head: str) -> None:
    settings = {"rows": 150, "classes": 4, "distance": 3.0, "noise": 0.02}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tally = script.simulated(script.HEADS[head], **settings, draws=DRAWS)
    assert tally.covered / DRAWS >= LEAST_COVERED
    assert max(tally.broken.values()) / DRAWS <= MOST_BROKEN
    assert tally.gave[0.2] > DRAWS / 4  # it is not kept by promising nothing
    assert np.mean(tally.sets) >= script.COVERAGE - 0.02


def test_answers_that_count_as_whole_rows_promise_too_much_where_heads_overfit(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.calibration, "CROSS_VALIDATED_WORTH", 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tally = script.simulated(script.HEADS["overfitted"], **script.SETTINGS[0], draws=DRAWS)
    assert max(tally.broken.values()) / DRAWS > 0.05
