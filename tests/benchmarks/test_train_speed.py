"""The speed benchmark's arithmetic, and that it runs from rows to table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_speed.py"


@pytest.fixture(scope="module")
def train_speed(benchmark_script: Callable[[str], Any]) -> Any:
    return benchmark_script("train_speed")


def turn(tokens: int, seconds: float, padded: int = 1000, peak: int = 10) -> dict[str, Any]:
    return {"tokens": tokens, "seconds": seconds, "padded_tokens": padded, "rows": 16, "peak_memory": peak}


def test_a_summary_takes_medians_of_rounds_and_counts_real_tokens_only(train_speed: Any) -> None:
    turns = [turn(800, 1.0, peak=5), turn(900, 3.0, peak=7), turn(500, 1.0, peak=9)]
    found = train_speed.summarise(turns, 50.0, 1000, [1e6, 2e6, 1e6])
    assert found.tokens_per_second == 500
    assert found.samples_per_second == 10
    assert found.padding_share == pytest.approx(800 / 3000)
    assert found.peak_memory == 9
    assert found.ceiling_share == pytest.approx(0.5)  # of 0.8, 0.15 and 0.5: each round by its own ceiling


def test_a_ratio_pairs_the_turns_of_a_round(train_speed: Any) -> None:
    ours = [turn(200, 1.0), turn(300, 1.0), turn(800, 2.0, peak=4)]
    theirs = [turn(100, 1.0), turn(200, 1.0), turn(100, 1.0, peak=8)]
    assert train_speed.ratio(ours, theirs) == {"median": 2.0, "low": 1.5, "high": 4.0, "memory": 0.5}


def test_the_ceiling_is_the_rate_of_all_products_one_after_the_other(train_speed: Any) -> None:
    # 100 at 10 a second and 300 at 60 a second: 400 in 15 seconds.
    assert train_speed.over_all_products([(10, 10), (10, 30)], [10.0, 60.0]) == pytest.approx(400 / 15)


def test_the_longest_rows_make_the_widest_batch(train_speed: Any) -> None:
    import numpy as np

    rows = [np.zeros(length, np.int64) for length in (3, 9, 1, 7)]
    ids, labels = sys.modules["speed_contestants"].longest((rows, np.array([0, 1, 2, 3])), 2)
    assert [len(row) for row in ids] == [9, 7]
    assert labels.tolist() == [1, 3]


def test_a_quick_run_tells_every_contestant(
    tiny_base: Callable[..., Path], topical_csv: Path, tmp_path: Path
) -> None:
    contestants = ["notebook", "newsdesk"]
    flags = ["--quick", "--shape", tiny_base("bert"), "--data", topical_csv, "--max-length", "40"]
    flags += ["--json", tmp_path / "out" / "speed.json", "--contestants", *contestants]
    done = subprocess.run(
        [sys.executable, SCRIPT, *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = {line.split("|")[1].strip(): line for line in done.stdout.splitlines() if line.startswith("|")}
    assert set(contestants) < set(lines)
    assert "1.00x" in lines["newsdesk"]
    (shape,) = json.loads((tmp_path / "out" / "speed.json").read_text())["shapes"]
    found = shape["contestants"]
    assert found["notebook"]["padding_share"] > 0.5 > found["newsdesk"]["padding_share"]
    assert all(found[name]["tokens_per_second"] > 0 for name in contestants)
    assert all(len(turns) == 2 for turns in shape["turns"].values())
