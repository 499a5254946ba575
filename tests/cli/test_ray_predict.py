"""predict --engine ray: what goes with it, and what it says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from newsdesk.cli import cli
from newsdesk.cli.display import RayDisplay
from newsdesk.cli.shared import terminal
from newsdesk.prediction import open_model as loading
from newsdesk.prediction import ray_bulk
from newsdesk.prediction.ray_bulk import JobBegun, ShardDone, Totals
from newsdesk.prediction.resumable_output import Counts


@pytest.mark.parametrize(
    "arguments",
    [
        ["a text"],
        ["--input", "in"],
        ["--output", "out"],
        ["--input", "-", "--output", "out"],
        ["--input", "in", "--output", "out", "--rejects", "bad"],
        ["--input", "in", "--json"],
    ],
)
def test_what_is_for_one_machine_is_refused(arguments):
    result = CliRunner().invoke(cli, ["predict", "run", "--engine", "ray", *arguments])
    assert result.exit_code == 2
    assert "--engine ray takes --input" in result.output


def test_its_flags_need_the_engine():
    result = CliRunner().invoke(cli, ["predict", "run", "a text", "--ray-cores", "2"])
    assert result.exit_code == 2
    assert "--ray-cores needs --engine ray" in result.output


def test_flags_arrive_and_rejects_are_told(monkeypatch):
    calls = []

    def predict_on_ray(predictor, source, output, **settings):
        calls.append((predictor, source, output, settings))
        return Totals(1000, 3, shards=2, unanswered=4, unreadable=4, cut=50, tokens=20_000, lost=1_000)

    loaded = SimpleNamespace(max_length=64)
    monkeypatch.setattr(loading, "open_model", lambda path, engine: loaded if engine == "onnx" else None)
    monkeypatch.setattr(ray_bulk, "predict_on_ray", predict_on_ray)
    arguments = ["--input", "s3://b/in", "--output", "s3://b/out", "--ray-workers", "8", "--top-k", "2"]
    result = CliRunner().invoke(cli, ["predict", "run", "--engine", "ray", *arguments, "--format", "jsonl"])
    assert result.exit_code == 0, result.output
    ((predictor, source, output, settings),) = calls
    assert (predictor, source, output) == (loaded, "s3://b/in", "s3://b/out")
    expected = {"workers": 8, "cores": 1, "address": None, "top_k": 2, "format": "jsonl", "strict": False}
    assert expected.items() <= settings.items()
    assert "2 files, 1,000 rows; 3 rejected, see s3://b/out/_rejects" in result.stderr
    assert "4 texts have no label: empty, or without a known token" in result.stderr
    assert "50 of 997 texts (5.0%) cut to 64 tokens; 5.0% of all tokens not read" in result.stderr


def test_progress_says_where_it_resumes_and_how_far_it_is(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = RayDisplay(terminal())
    progress.show(JobBegun(5, 2))
    for done in (3, 4):
        now[0] += 10
        progress.show(ShardDone("a.csv", Counts(1000), done, 5))
    assert capsys.readouterr().err.splitlines() == [
        "resuming: 2 of 5 files are done",
        "4 of 5 files, 100 rows/s",
    ]
