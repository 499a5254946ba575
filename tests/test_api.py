"""The verbs as a library: the same work without the command line, and not a word on any stream."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

import newsdesk
from newsdesk import api
from newsdesk.data.stream import read_table
from newsdesk.errors import UserError
from newsdesk.evaluation import rows as rows_of_runs
from newsdesk.runs.folder import open_run
from newsdesk.runs.log import Finished, Started, Step, Validation

LEARNING = (
    *("model.max_length=32", "model.dropout=0.0", "lora.targets=['all-linear']"),
    *("training.epochs=8", "training.learning_rate=2e-2", "training.metric=loss"),
    *("training.precision=float32", "training.device=cpu", "data.folds=0"),
)
TEXTS = ["goal coach league", "bank profit market", "orbit genome quantum"]
LABELS = ("Sports", "Business", "Science")


def train(base, data, out, *overrides, **named):
    flags = {"model.base": str(base), "data.train": str(data)}
    return newsdesk.train(out=out, flags=flags, overrides=[*LEARNING, *overrides], **named)


@pytest.fixture(scope="module")
def trained(tiny_base, topical_csv, tmp_path_factory):
    return train(tiny_base("bert"), topical_csv, tmp_path_factory.mktemp("run") / "run").path


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_the_library_says_nothing(tiny_base, topical_csv, tmp_path, capfd, caplog):
    base = tiny_base("bert")
    capfd.readouterr()
    run = train(base, topical_csv, tmp_path / "run", "training.epochs=0.5")
    newsdesk.evaluate(run.path, str(topical_csv))
    newsdesk.load(run.path).predict(TEXTS)
    assert tuple(capfd.readouterr()) == ("", "")
    assert caplog.records == []


def test_a_run_is_trained_evaluated_and_asked(run, topical_csv):
    evaluation = newsdesk.evaluate(run, str(topical_csv), split="seen")
    assert evaluation.metrics.accuracy > 0.95
    assert json.loads((run / "metrics.json").read_text())["seen"] == evaluation.to_dict()
    assert newsdesk.load(run).predict(TEXTS).labels == LABELS


def test_the_observer_is_told_all_that_happens_in_order(tiny_base, topical_csv, tmp_path):
    events: list[object] = []
    train(
        tiny_base("bert"),
        topical_csv,
        tmp_path / "run",
        "training.epochs=1",
        "training.baseline=false",
        observe=events.append,
    )
    first, *steps, validation, last = events
    assert isinstance(first, Started)
    assert [step.step for step in steps if isinstance(step, Step)] == list(range(1, first.steps + 1))
    assert isinstance(validation, Validation)
    assert isinstance(last, Finished)


def test_a_run_is_overwritten_only_when_asked(tiny_base, topical_csv, run):
    with pytest.raises(UserError, match="is not empty"):
        train(tiny_base("bert"), topical_csv, run)
    again = train(tiny_base("bert"), topical_csv, run, "training.epochs=0.1", overwrite=True)
    assert again.manifest.training.epochs == pytest.approx(0.1, abs=0.05)


def test_evaluating_counts_every_row_and_announces_them_first(run, topical_csv):
    reports: list[tuple[object, ...]] = []
    newsdesk.evaluate(run, str(topical_csv), progress=lambda *report: reports.append(report))
    counts = [done for done, *of in reports if of == [240, "classifying", "rows"]]
    assert len(counts) > 2
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 240)


def test_evaluating_answers_to_the_classes_by_name(run, write_rows, tmp_path):
    subset = write_rows(tmp_path / "subset.csv", [("Sports", TEXTS[0]), ("Business", TEXTS[1])])
    evaluation = newsdesk.evaluate(run, str(subset), with_text=True)
    assert evaluation.metrics.accuracy == 1.0
    assert evaluation.metrics.label_names == ("Business", "Science", "Sports")
    with (run / "predictions-test.csv").open(newline="") as stream:
        assert [row["text"] for row in csv.DictReader(stream)] == TEXTS[:2]


@pytest.fixture
def baseline_rows(monkeypatch):
    """What the baseline was given to learn from, call by call; none is fitted."""
    seen = []
    monkeypatch.setattr(rows_of_runs, "linear_baseline", lambda rows, *_test, **_seed: seen.append(rows))
    return seen


def test_the_baseline_learns_from_what_the_run_has_seen(run, topical_csv, baseline_rows):
    newsdesk.evaluate(run, str(topical_csv), baseline=True)
    (rows,) = baseline_rows
    with topical_csv.open(newline="") as stream:
        expected = sorted((row["text"], row["label"]) for row in csv.DictReader(stream))
    labels = [rows.label_names[label] for label in rows.labels]
    assert sorted(zip(rows.texts, labels, strict=True)) == expected


def test_the_baseline_of_a_run_on_a_sample_learns_from_that_sample(
    tiny_base, topical_csv, tmp_path, baseline_rows
):
    overrides = ("training.epochs=0.1", "data.train_rows=30")
    run = train(tiny_base("bert"), topical_csv, tmp_path / "run", *overrides)
    newsdesk.evaluate(run.path, str(topical_csv), baseline=True)
    assert len(baseline_rows[0]) == 30 + 48  # the validation rows, a fifth of so few, are split off before


def test_a_run_trained_on_two_columns_predicts_from_these_or_from_one(tiny_base, tmp_path):
    data = tmp_path / "two.csv"
    words = {"Sports": ("goal", "coach league"), "Business": ("bank", "profit market")}
    rows = [(label, *words[label]) for label in ("Sports", "Business") for _ in range(20)]
    with data.open("w", newline="") as stream:
        csv.writer(stream).writerows([("label", "headline", "body"), *rows])
    overrides = ("data.template={headline}: {body}", "training.epochs=4")
    predictor = newsdesk.load(train(tiny_base("bert"), data, tmp_path / "run", *overrides).path)
    assert predictor.layout.text_columns == ("headline", "body")

    one = tmp_path / "one.txt"
    one.write_text("goal coach\nbank market\n")
    from_one = api.predict_table(predictor, read_table(one)).probabilities
    assert np.allclose(from_one, predictor.predict_probabilities(["goal coach", "bank market"]), atol=1e-6)
    table = read_table(data)
    whole = api.predict_table(predictor, table)
    assert whole.labels == ("Sports",) * 20 + ("Business",) * 20
    expected = predictor.predict_probabilities(["goal: coach league"])[0]
    assert np.allclose(whole.probabilities[0], expected, atol=1e-6)
    other = api.predict_table(predictor, table, text=("label",))
    assert not np.allclose(other.probabilities[0], expected, atol=1e-6)


def test_a_missing_package_is_named_and_a_missing_module_of_ours_is_a_defect(monkeypatch, tmp_path):
    from newsdesk.config import load_recipe
    from newsdesk.training import run as training

    def importing(name):
        def fail(*_arguments: object, **_named: object) -> None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return fail

    monkeypatch.setattr(training, "run_training", importing("peft.tuners"))
    with pytest.raises(UserError, match="training needs the package peft\n"):
        api.train(load_recipe(), out=tmp_path)
    monkeypatch.setattr(training, "run_training", importing("newsdesk.model.nothing"))
    with pytest.raises(ModuleNotFoundError):
        api.train(load_recipe(), out=tmp_path)


def test_an_unfinished_run_is_no_run(run):
    (run / "manifest.json").unlink()
    for use in (lambda: newsdesk.load(run), lambda: newsdesk.evaluate(run, "x.csv"), lambda: open_run(run)):
        with pytest.raises(UserError, match="is unfinished"):
            use()
