"""The benchmark of learning curves: what is said of twice the rows is compared with what is so."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")


def test_intervals_cover_what_twice_the_rows_reach(benchmark_script, monkeypatch):
    script = benchmark_script("learning_curve")
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 4000)
    centres = 0.55 * generator.normal(size=(4, 32))
    rows = script.Rows([""] * 4000, centres[labels] + generator.normal(size=(4000, 32)), labels)
    found = list(script.draws(rows, "discriminant", 150, 12, seed=1))
    assert np.mean([one["within"] for one in found]) >= 0.9
    assert np.mean([one["gain within"] for one in found]) >= 0.8
    gains = np.mean([[one["truth"] - one["now"], one["gain"]] for one in found], axis=0)
    assert abs(gains[0] - gains[1]) < 0.02
    (line,) = script.lines(rows, ["discriminant"], [150], 2)
    assert line["covers"].endswith("%")
