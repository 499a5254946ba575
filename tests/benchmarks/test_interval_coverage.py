"""Intervals cover on few rows what they are of, and the simulation would tell if they did not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

DRAWS = 150
LEAST = 0.95 - 2.6 * (0.05 * 0.95 / DRAWS) ** 0.5


@pytest.fixture(scope="module")
def intervals(benchmark_script: Callable[[str], Any]) -> Any:
    return benchmark_script("intervals")


@pytest.fixture(autouse=True)
def small_populations(intervals: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "POPULATION", 20_000)


@pytest.mark.parametrize("kind", range(5))
def test_intervals_cover_on_a_hundred_rows(intervals: Any, kind: int) -> None:
    found = intervals.coverage(intervals.KINDS[kind], 100, DRAWS, seed=kind)
    assert set(found) == set(intervals.FIGURES)
    assert {figure: share for figure, share in found.items() if share < LEAST} == {}


def test_the_normal_interval_of_a_mean_would_be_noticed(
    intervals: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def normal(values: Any, most: float) -> tuple[float, float]:
        half = 1.96 * values.std() / len(values) ** 0.5
        return values.mean() - half, min(most, values.mean() + half)

    monkeypatch.setattr(intervals, "mean_interval", lambda values, *, most: normal(values, most))
    (share,) = intervals.coverage(intervals.KINDS[4], 50, DRAWS, figures=["log-loss"]).values()
    assert share < LEAST
