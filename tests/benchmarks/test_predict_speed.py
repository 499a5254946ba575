"""The prediction benchmark's arithmetic, and that it runs from texts to tables."""

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
pytest.importorskip("onnx")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "predict_speed.py"


@pytest.fixture(scope="module")
def predict_speed(benchmark_script: Callable[[str], Any]) -> Any:
    return benchmark_script("predict_speed")


@pytest.fixture(scope="module")
def figures(predict_speed: Any) -> Any:
    return sys.modules["predict_figures"]


def test_texts_a_second_are_of_average_length_whatever_texts_a_turn_met(figures: Any) -> None:
    turns = [figures.Turn(1000, 2.0), figures.Turn(300, 1.0), figures.Turn(8000, 10.0)]
    assert figures.texts_per_second(turns, 50.0) == 10


def test_single_texts_of_all_rounds_make_the_percentiles(figures: Any) -> None:
    turns = [
        figures.Turn(1, 1.0, tuple(number / 1000 for number in range(51))),
        figures.Turn(1, 1.0, tuple(number / 1000 for number in range(51, 101))),
    ]
    assert figures.single_text(turns) == pytest.approx({"p50_ms": 50, "p99_ms": 99, "texts": 101})


def test_ratios_pair_the_turns_of_a_round(figures: Any) -> None:
    ours = [figures.Turn(200, 1.0, (1.0, 2.0, 9.0)), figures.Turn(900, 3.0, (4.0,))]
    theirs = [figures.Turn(100, 1.0, (8.0,)), figures.Turn(100, 2.0, (16.0,))]
    assert figures.speed_ratio(ours, theirs) == {"median": 4.0, "low": 2.0, "high": 6.0}
    assert figures.latency_ratio(ours, theirs) == {"median": 0.25, "low": 0.25, "high": 0.25}


def test_quality_tells_accuracy_by_the_truth_and_agreement_by_the_reference(figures: Any) -> None:
    found = figures.quality(list("abab"), truth=list("abbb"), reference=list("aaaa"))
    assert (found["accuracy"], found["agreement"], found["rows"]) == (0.75, 0.5, 4)
    low, high = found["accuracy_interval"]
    assert 0.3 < low < 0.75 < high < 0.96


def test_optimum_takes_part_where_it_is_installed_and_has_a_stand_in_elsewhere(predict_speed: Any) -> None:
    with_optimum = predict_speed.default_contestants(True, "python")
    without = predict_speed.default_contestants(False, None)
    assert "optimum-int8" in with_optimum
    assert "stand-in-int8" not in with_optimum
    assert "stand-in-int8" in without
    assert "pipeline-bfloat16" in set(with_optimum) - set(without)
    with pytest.raises(SystemExit, match="--optimum-python"):
        predict_speed.Stage(Path("models"), Path("logs"), None).open("optimum-int8")


def test_whole_process_tells_seconds_and_memory_and_stops_at_a_failure(predict_speed: Any) -> None:
    seconds, memory = predict_speed.whole_process([sys.executable, "-c", "held = b'x' * 50_000_000"])
    assert 0 < seconds < 10
    assert memory > 50_000_000
    with pytest.raises(SystemExit, match="failed"):
        predict_speed.whole_process([sys.executable, "-c", "raise SystemExit(3)"])


def test_all_contestants_are_held_against_the_truth_and_newsdesks_float32(predict_speed: Any) -> None:
    from types import SimpleNamespace

    class Says:
        def __init__(self, labels: list[str]) -> None:
            self.labels = labels

        def ask(self, request: dict[str, Any]) -> dict[str, Any]:
            assert request["texts"] == ["one", "two"]
            return {"labels": self.labels, "seconds": [1.0], "peak_memory": 1}

    says = {"newsdesk-int8": ["a", "a"], "newsdesk-float32": ["a", "b"], "pipeline": ["b", "b"]}
    contestants = {name: Says(labels) for name, labels in says.items()}
    examples = SimpleNamespace(texts=["one", "two"], labels=[0, 1], label_names=("a", "b"))
    found = predict_speed.accuracy(contestants, dict.fromkeys(says, 1), examples)
    assert {name: (of["accuracy"], of["agreement"]) for name, of in found.items()} == {
        "newsdesk-int8": (0.5, 0.5),
        "newsdesk-float32": (1.0, 1.0),
        "pipeline": (0.5, 0.5),
    }


def test_the_fastest_of_the_tried_batches_is_taken(predict_speed: Any) -> None:
    from types import SimpleNamespace

    class Fastest32:
        def ask(self, request: dict[str, Any]) -> dict[str, Any]:
            return {"labels": [], "seconds": [abs(request["batch"] - 30)], "peak_memory": 1}

        def close(self) -> None:
            pass

    stage = SimpleNamespace(open=lambda _name: Fastest32())
    asked = SimpleNamespace(parts=["speed"], trial=16)
    assert predict_speed.batch_of("pipeline", stage, ["text"] * 20, asked) == 32
    assert predict_speed.batch_of("onnxruntime", stage, ["text"] * 20, asked) == 32
    assert predict_speed.batch_of("newsdesk-int8", stage, ["text"] * 20, asked) == 0
    assert predict_speed.batch_of("pipeline-1", stage, ["text"] * 20, asked) == 1


def test_a_quick_run_tells_every_contestant(
    tiny_base: Callable[..., Path], topical_csv: Path, tmp_path: Path
) -> None:
    out, contestants = tmp_path / "out" / "speed.json", ["newsdesk-int8", "onnxruntime"]
    flags = ["--quick", "--shape", tiny_base("bert"), "--data", topical_csv, "--max-length", "40"]
    flags += ["--json", out, "--texts", "16", "--parts", "speed", "cold", "--contestants", *contestants]
    done = subprocess.run(
        [sys.executable, SCRIPT, *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = {line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|")}
    assert set(contestants) < lines
    (shape,) = json.loads(out.read_text())["shapes"]
    found = shape["speed"]
    assert all(found[name]["texts_per_second"] > 0 for name in contestants)
    assert all(len(found[name]["turns"]) == 2 for name in contestants)
    assert found["onnxruntime"]["bulk_ratio"]["low"] <= found["onnxruntime"]["bulk_ratio"]["high"]
    assert found["newsdesk-int8"]["single"]["texts"] == 16
    assert found["newsdesk-int8"]["turns"][0]["tokens"] == found["onnxruntime"]["turns"][0]["tokens"]
    assert shape["cold"]["newsdesk-int8"]["seconds"] > 0
