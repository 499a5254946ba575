"""The GPU benchmark runs from end to end where there is no GPU, so that none of it is untried on one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")


@pytest.fixture(scope="module")
def script(benchmark_script: Callable[[str], Any]) -> Any:
    return benchmark_script("gpu_seed_run")


def test_a_rehearsal_goes_through_every_contestant(script, tmp_path, monkeypatch, capsys):
    path = tmp_path / "figures" / "gpu.json"
    sizes = ["--rows", "128", "--peer-steps", "2", "--rounds", "1", "--lengths-from", str(tmp_path / "none")]
    monkeypatch.setattr(sys, "argv", ["gpu_seed_run.py", "--rehearse", *sizes, "--json", str(path)])
    script.main()
    printed, results = capsys.readouterr().out, json.loads(path.read_text())
    assert "A REHEARSAL" in printed
    for name in ("whole run", "grouped", "notebook", "eager", "graphs", "of large products"):
        assert name in printed
    assert results["newsdesk"]["rows"] == 128
    assert results["newsdesk"]["steps"] == 8
    assert {name: parts[0]["rows"] for name, parts in results["slices"].items()} == dict.fromkeys(
        ("newsdesk", "grouped", "notebook"), 32
    )
    assert results["engines"]["eager"]["recordings"] == 0 < results["engines"]["graphs"]["recordings"]


def test_without_a_gpu_it_says_what_it_would_measure(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_seed_run.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    script.main()
    printed = capsys.readouterr().out
    assert "no GPU here" in printed
    assert "--rehearse" in printed


def test_lengths_are_those_of_the_news(script, tmp_path):
    lengths = script.sample_lengths(20_000, tmp_path / "none", np.random.default_rng(0))
    assert 53 < lengths.mean() < 55
    assert 16 < lengths.min() <= lengths.max() <= 256


def test_ratios_are_medians_over_rounds_and_totals_are_sums(script):
    def slices(*seconds: float) -> list[dict[str, Any]]:
        return [
            {"steps": 2, "rows": 32, "tokens": 99, "seconds": each, "peak_memory": each} for each in seconds
        ]

    assert script._ratio(slices(1.0, 1.0, 2.0), slices(3.0, 5.0, 2.0)) == 3.0
    total = script._total(slices(1.0, 2.0))
    assert total == {"steps": 4, "rows": 64, "tokens": 198, "seconds": 3.0, "peak_memory": 2.0}
