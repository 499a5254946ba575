"""``predict --engine cascade``: the linear model first, with promises, files, exports and kills."""

from __future__ import annotations

import csv
import io
import json
import random
import shutil

import numpy as np
import pytest

import newsdesk as package
from newsdesk.prediction.bulk import WindowWritten, predict_file
from newsdesk.prediction.cascade import open_cascade
from newsdesk.runs.calibration import CALIBRATION_ROWS, read_held_out_rows, softmax, store_calibration
from newsdesk.runs.folder import RunFolder

onnx = pytest.importorskip("onnx")

WORDS = {"Business": "bank profit market", "Science": "orbit genome laser", "Sports": "goal coach league"}
CLEAR, DIM = "goal coach league striker", "the of a"


@pytest.fixture(scope="module")
def more_rows(tmp_path_factory):
    """900 texts: of two thirds the words tell the class, of one third next to nothing does."""
    generator = random.Random(4)
    rows = []
    for number in range(900):
        label = generator.choice(list(WORDS))
        words = WORDS[label].split() if number % 3 else ["the", "of", "a"]
        rows.append((number, " ".join(generator.choices(words, k=4)), label))
    path = tmp_path_factory.mktemp("more") / "more.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("number", "words", "desk"), *rows])
    return path


@pytest.fixture(scope="module")
def judged(trained, more_rows, tmp_path_factory):
    """A run with a linear model beside it and a float32 export, both calibrated on those rows."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("judged") / "run")
    package.calibrate(run, stack=True)
    package.export(run, "onnx-fp32")
    package.calibrate(run, [str(more_rows)], stack=False)
    return run


def test_sure_texts_are_answered_by_the_linear_model_and_others_as_without_it(newsdesk, judged):
    cascade, whole = open_cascade(judged, loss=0.02), package.load(judged)
    ids = cascade.token_ids([CLEAR, DIM])
    sure, unsure = cascade.predict_probabilities([CLEAR, DIM])
    np.testing.assert_array_equal(sure, softmax(whole.linear.scores(ids), cascade.rule.temperature)[0])
    np.testing.assert_allclose(unsure, whole.predict_probabilities([DIM])[0], atol=1e-6)
    assert (cascade.texts, cascade.by_linear) == (2, 1)
    outcome = newsdesk("predict", judged, CLEAR, DIM, "--engine", "cascade", "--loss", "0.02")
    assert outcome.lines[0].startswith("Sports")
    assert "the linear model answered 1 of 2 texts (50.0%)" in outcome.err
    assert "at most 2 points of accuracy are lost to the encoder alone, with 95 % confidence" in outcome.err
    notes = newsdesk("predict", judged, CLEAR, "--engine", "cascade", "--loss", "0.02", "--json").json[
        "notes"
    ]
    assert notes[0] == "the linear model answered 1 of 1 text (100.0%)"


def test_what_rows_cannot_promise_is_refused_with_what_they_can_and_estimated_if_asked(newsdesk, judged):
    refused = newsdesk("predict", judged, CLEAR, "--engine", "cascade")
    assert (refused.code, refused.out) == (1, "")
    assert "900 calibration rows, which can promise 0.0038 at best" in refused.err
    assert "ask for --loss 0.0038" in refused.err
    estimated = newsdesk("predict", judged, CLEAR, "--engine", "cascade", "--estimated")
    assert estimated.code == 0
    assert "estimated on 900 calibration rows, not promised" in estimated.err


@pytest.mark.parametrize("asked", [["--abstain", "0.1"], ["--sets", "0.8"]])
def test_promises_rest_on_the_half_that_the_threshold_was_not_found_on(newsdesk, judged, more_rows, asked):
    outcome = newsdesk("predict", judged, CLEAR, DIM, "--engine", "cascade", "--loss", "0.02", *asked)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("450 calibration rows") == 2
    cascade = open_cascade(judged, loss=0.02, halves=True)
    texts = [row["words"] for row in csv.DictReader(io.StringIO(more_rows.read_text()))]
    kept, all_rows = cascade.held_out_rows(), cascade.predict_logits(texts)
    same = {tuple(row) for row in np.round(all_rows, 3).tolist()}
    assert {tuple(row) for row in np.round(kept.logits, 3).tolist()} <= same


def test_of_topics_it_can_say_nothing_and_says_so(newsdesk, judged):
    refused = newsdesk(
        "predict", judged, CLEAR, "--engine", "cascade", "--loss", "0.02", "--off-topic", "0.1"
    )
    assert refused.code == 1
    assert "leave out --off-topic, or --engine cascade" in refused.err


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_files_are_written_and_resumed_byte_for_byte(
    newsdesk, judged, more_rows, tmp_path, form, monkeypatch
):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.setattr("newsdesk.prediction.bulk.ROWS_PER_WINDOW", 200)
    flags = ["--input", more_rows, "--engine", "cascade", "--loss", "0.02"]
    outcome = newsdesk("predict", judged, *flags, "--output", tmp_path / f"whole.{form}")
    assert outcome.code == 0, outcome.err
    assert "the linear model answered " in outcome.err

    def killed(event):
        if isinstance(event, WindowWritten) and event.checkpoint.rows_read >= 400:
            raise KeyboardInterrupt

    target = tmp_path / f"again.{form}"
    with pytest.raises(KeyboardInterrupt):
        predict_file(open_cascade(judged, loss=0.02), more_rows, target, observe=killed)
    resumed = newsdesk("predict", judged, *flags, "--output", target)
    assert "resuming after row 400" in resumed.err
    assert target.read_bytes() == (tmp_path / f"whole.{form}").read_bytes()


def test_another_loss_or_engine_is_another_output(judged):
    fingerprints = {open_cascade(judged, loss=loss).fingerprint for loss in (0.005, 0.3)}
    assert len({*fingerprints, package.load(judged).fingerprint}) == 3


def test_a_run_computes_it_with_its_export_and_without_one_with_torch(judged, tmp_path):
    run = shutil.copytree(judged, tmp_path / "run")
    assert "onnxruntime" in open_cascade(run, loss=0.02).engine
    assert "onnxruntime" in open_cascade(run / "export" / "onnx-fp32", loss=0.02).engine
    shutil.rmtree(run / "export")
    cascade = open_cascade(run, loss=0.02)
    assert "torch" in cascade.engine
    expected = open_cascade(judged, loss=0.02).predict_probabilities([CLEAR, DIM])
    np.testing.assert_allclose(cascade.predict_probabilities([CLEAR, DIM]), expected, atol=1e-3)


def test_stacked_the_encoder_with_the_linear_model_answers_the_rest(judged, more_rows, tmp_path):
    run = shutil.copytree(judged, tmp_path / "run")
    package.calibrate(run, [str(more_rows)], stack=True)
    cascade = open_cascade(run, loss=0.02)
    expected = package.load(run).predict_probabilities([DIM])
    np.testing.assert_allclose(cascade.predict_probabilities([DIM]), expected, atol=1e-6)


def test_runs_without_a_linear_model_or_without_its_scores_say_what_to_do(newsdesk, run, judged, tmp_path):
    refused = newsdesk("predict", run, CLEAR, "--engine", "cascade")
    assert refused.code == 1
    assert "newsdesk calibrate RUN --stack adds one" in refused.err
    old = shutil.copytree(judged, tmp_path / "old")
    shutil.rmtree(old / "export")
    rows = read_held_out_rows(old)
    store_calibration(old, type(rows)(rows.logits, rows.labels, rows.sha256), "an older version")
    RunFolder(old).reseal()
    refused = newsdesk("predict", old, CLEAR, "--engine", "cascade")
    assert "calibration rows without its scores" in refused.err
    assert (old / CALIBRATION_ROWS).exists()


def test_its_flags_need_the_engine(newsdesk, trained):
    for flags in (["--loss", "0.01"], ["--estimated"]):
        assert newsdesk("predict", trained, CLEAR, *flags).code == 2
    assert json.dumps(newsdesk("predict", trained, CLEAR, "--json").json).count("notes") == 0


def test_the_benchmark_prints_speeds_accuracies_and_the_loss(
    judged, more_rows, benchmark_script, monkeypatch, capsys
):
    flags = [judged, "--data", more_rows, "--loss", "0.02", "--rows", "90", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["cascade.py", *map(str, flags)])
    benchmark_script("cascade").main()
    printed = capsys.readouterr().out
    assert "x faster" in printed
    assert "points lost [" in printed
    assert " of 90 texts (" in printed
