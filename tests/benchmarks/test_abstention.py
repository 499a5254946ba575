"""The abstention benchmark: what counts as kept, and that it runs from rows to tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def abstention(benchmark_script: Callable[[str], Any]) -> Any:
    return benchmark_script("abstention")


def simulated(abstention: Any, rows: int, seed: int) -> Any:
    """A classifier whose margin tells how often it is right."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, rows)
    noise = generator.normal(scale=1.2, size=(rows, 3))
    return abstention.Rows((4 * np.eye(3)[labels] + noise).astype(np.float32), labels)


def test_what_promises_nothing_answers_nothing_and_breaks_nothing(abstention: Any) -> None:
    assert abstention.outcome(None, simulated(abstention, 50, 0), 1.0) == (0.0, 0.0)


def test_draws_are_from_the_pool_and_halves_do_not_meet(abstention: Any) -> None:
    pool = simulated(abstention, 400, 0)
    drawn, whole = abstention.with_replacement(pool, np.random.default_rng(0))
    assert (len(drawn.labels), whole) == (200, pool)
    one, other = abstention.halves(pool, np.random.default_rng(0))
    assert sorted(np.concatenate([one.logits, other.logits])[:, 0]) == sorted(pool.logits[:, 0])


def test_it_prints_calibration_promises_and_scores(
    abstention: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = simulated(abstention, 600, 1), simulated(abstention, 800, 2)
    monkeypatch.setattr(abstention, "rows_of", lambda _run, _data: parts)
    monkeypatch.setattr("sys.argv", ["abstention.py", "run", "--data", "rows", "--draws", "10"])
    abstention.main()
    shown = capsys.readouterr().out
    assert "600 validation rows, 800 test rows" in shown
    assert shown.count("the pool is all there is") == 4
    assert "kept 10 of 10" in shown
    assert "least area on the validation rows: " in shown
