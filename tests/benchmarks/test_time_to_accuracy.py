"""Accuracy against seconds: all contestants learn the same rows; measuring does not count as work."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def script(benchmark_script: Callable[[str], Any]) -> Any:
    return benchmark_script("time_to_accuracy")


@pytest.fixture
def job(script: Any, tiny_base: Callable[..., Path], topical_csv: Path) -> Any:
    return script.Job(
        data=str(topical_csv),
        normaliser="none",
        rows=150,
        measure="validation",
        measured=30,
        base=str(tiny_base("bert")),
        epochs=4.0,
        peer_epochs=2.0,
        peer_length=40,
        seed=1,
    )


def test_the_clock_stands_still_while_something_is_measured(script: Any) -> None:
    clock = script.Clock()
    with clock.stopped():
        time.sleep(0.2)
    with clock.stopped():
        assert clock.seconds < 0.1


def test_a_curve_knows_when_it_was_first_as_accurate(script: Any) -> None:
    curve = script.Curve("it", "", 100, [(1.0, 0.1, 0.5), (2.0, 0.5, 0.9), (4.0, 1.0, 0.8)])
    assert (curve.seconds_to(0.8), curve.seconds_to(0.95), curve.best) == (2.0, None, 0.9)


def test_the_target_is_what_the_published_settings_end_with(script: Any) -> None:
    published = script.Curve("published", "", 100, [(10.0, 0.5, 0.7), (20.0, 1.0, 0.8)])
    quick = script.Curve("newsdesk quick", "", 100, [(2.0, 0.5, 0.85), (3.0, 1.0, 0.84)])
    linear = script.Curve("linear", "", 100, [(0.1, 1.0, 0.75)])
    rows = {
        line.split("|")[1].strip(): line for line in script.table([published, quick, linear]).splitlines()
    }
    assert rows["newsdesk quick"].split("|")[5].strip() == "2.0"
    assert "10.0x" in rows["newsdesk quick"]
    assert "-" in rows["linear"].split("|")[5]


def test_all_contestants_learn_the_same_rows_and_are_measured_at_several_moments(
    script: Any, job: Any, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(
        '[model]\nmax_length = 32\n[training]\nlearning_rate = 2e-2\ndevice = "cpu"\nprecision = "float32"\n'
    )
    curves = [
        script.train_newsdesk(job, str(tmp_path / "tiny.toml")),
        script.train_published(job, "published"),
        script.fit_linear(job, "linear"),
        script.fit_frozen(job, "frozen"),
    ]
    for curve in curves:
        assert curve.measured == 30
        assert len(curve.moments) >= 4
        assert curve.moments[-1][1] == 1.0
        assert all(0 < seconds < 60 for seconds, _, _ in curve.moments)
    trained = curves[0]
    assert [seconds for seconds, _, _ in trained.moments] == sorted(
        seconds for seconds, _, _ in trained.moments
    )
    assert trained.moments[-1][2] > 0.6  # the words tell the class; a third are right by chance

    out = tmp_path / "curves"
    script.write(curves, job, out)
    script.draw(curves, out)
    lines = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert {line["contestant"] for line in lines} == {curve.name for curve in curves}
    assert json.loads(out.with_suffix(".json").read_text())["job"]["rows"] == 150
    assert out.with_suffix(".svg").read_bytes().startswith(b"<?xml")
    assert out.with_suffix(".png").stat().st_size > 1000
