"""A linear model stacked on the encoder: in training or later, taken off again, and in all a run becomes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import newsdesk as package
from newsdesk.files import sha256_of
from newsdesk.prediction.explanation import log_odds
from newsdesk.runs.calibration import read_held_out_rows, softmax
from newsdesk.runs.exported import MODEL_FILES
from newsdesk.runs.linear_model import LINEAR_MODEL, LinearModel

onnx = pytest.importorskip("onnx")

TEXTS = ["goal coach league striker", "bank profit the orbit", "the of a", ""]
EVERY_RUN = ("--set", "training.min_steps=30", "--set", "data.validation_share=0.3")


def trained_with(newsdesk, desk, out, *flags):
    outcome = newsdesk("train", *desk.flags, *EVERY_RUN, "--out", out, *flags)
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.fixture(scope="module")
def stacked(desk, tmp_path_factory):
    """A short training with ``--stack``; nobody may change it."""
    settings = [flag.removeprefix("--set=") for flag in desk.flags if flag.startswith("--set=")]
    flags = {
        "data.train": str(desk.train),
        "data.text": ("words",),
        "data.label": "desk",
        "model.base": str(desk.base),
        "model.linear": "stack",
    }
    overrides = [*settings, *(setting for setting in EVERY_RUN if setting != "--set")]
    return package.train(
        out=tmp_path_factory.mktemp("stacked") / "run", flags=flags, overrides=overrides
    ).path


def parts_of(folder, **how):
    """The classifier in a folder, with what its encoder and its linear model give for the texts."""
    classifier = package.load(folder, **how)
    ids = classifier.token_ids(TEXTS)
    return classifier, classifier.encoder_outputs(ids)[0], classifier.linear.scores(ids)


def test_a_stacked_run_answers_by_both_and_is_calibrated_so(newsdesk, stacked, desk):
    classifier, logits, scores = parts_of(stacked)
    assert classifier.linear.stack > 0
    answered = classifier.predict_logits(TEXTS)
    np.testing.assert_allclose(answered, logits + classifier.linear.stack * scores, rtol=1e-5)
    temperature = json.loads((stacked / "calibration.json").read_text())["temperature"]
    np.testing.assert_allclose(
        classifier.predict_probabilities(TEXTS), softmax(answered, temperature), atol=1e-6
    )
    kept = read_held_out_rows(stacked)
    assert kept.linear.shape == kept.logits.shape
    remark = [
        record
        for line in (stacked / "log.jsonl").read_text().splitlines()
        if (record := json.loads(line))["event"] == "remark"
    ][-1]["text"]
    assert remark.startswith("stacked with a linear model: ")
    found = newsdesk("calibrate", shutil.copytree(stacked, stacked.parent / "again"), "--json").json
    (again,) = found.values()
    assert again["temperature"] == pytest.approx(temperature, rel=1e-3)
    same = read_held_out_rows(stacked.parent / "again")
    np.testing.assert_allclose(same.logits, kept.logits, atol=1e-4)
    np.testing.assert_array_equal(same.linear, kept.linear)


@pytest.mark.parametrize(("missing", "again"), [("calibration.json", ()), (LINEAR_MODEL, ("--stack",))])
def test_what_a_run_answers_with_cannot_be_left_out_unnoticed(newsdesk, stacked, tmp_path, missing, again):
    run = shutil.copytree(stacked, tmp_path / "run")
    before = newsdesk("predict", run, *TEXTS, "--json").json["predictions"]
    (run / missing).unlink()
    refused = newsdesk("predict", run, *TEXTS)
    assert refused.code == 1
    assert f"{missing} is missing or damaged" in refused.err
    assert "newsdesk calibrate" in refused.err
    assert newsdesk("calibrate", run, *again).code == 0
    after = newsdesk("predict", run, *TEXTS, "--json").json["predictions"]
    for old, new in zip(before, after, strict=True):
        assert new["label"] == old["label"]
        assert new["probability"] == pytest.approx(old["probability"], abs=1e-3)


@pytest.mark.parametrize("kind", ["onnx-fp32", "merged"])
def test_exports_answer_as_the_run_and_other_programs_are_told_what_they_lose(
    newsdesk, stacked, tmp_path, kind
):
    run = shutil.copytree(stacked, tmp_path / "run")
    outcome = newsdesk("export", run, "--to", kind)
    assert outcome.code == 0, outcome.err
    assert "programs other than newsdesk compute the encoder without the linear model" in outcome.out
    export = run / "export" / kind
    exported, of_encoder, _scores = parts_of(export)
    whole, logits, _scores = parts_of(run, engine="torch")
    np.testing.assert_allclose(of_encoder, logits, atol=1e-3)
    np.testing.assert_allclose(exported.predict_logits(TEXTS), whole.predict_logits(TEXTS), atol=1e-3)
    lost = json.loads((export / "quality.json").read_text())["without_linear"]
    assert lost["rows"] == len(read_held_out_rows(export).labels)
    if kind == "onnx-fp32":
        import onnxruntime

        ids = exported.token_ids(TEXTS[:1])[0][None]
        session = onnxruntime.InferenceSession(export / MODEL_FILES[kind])
        (alone,) = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        np.testing.assert_allclose(alone * exported.folded, of_encoder[:1], atol=1e-3)
    (export / LINEAR_MODEL).write_bytes(b"")
    assert f"{LINEAR_MODEL} is missing or damaged" in newsdesk("predict", export, "goal").err


def test_it_can_be_stacked_and_taken_off_after_training_in_the_run_and_its_exports(newsdesk, run):
    package.export(run, "onnx-fp32")
    export = run / "export" / "onnx-fp32"
    before = {
        folder: package.load(folder, engine="own").predict_probabilities(TEXTS) for folder in (run, export)
    }
    nothing = newsdesk("calibrate", run, "--no-stack")
    assert (nothing.code, (run / LINEAR_MODEL).exists()) == (0, False)
    outcome = newsdesk("calibrate", run, "--stack")
    assert outcome.code == 0, outcome.err
    assert "note: stacked with a linear model: " in outcome.err
    for folder in (run, export):
        classifier, logits, scores = parts_of(folder, engine="own")
        expected = logits + classifier.linear.stack * scores
        np.testing.assert_allclose(classifier.predict_logits(TEXTS), expected, rtol=1e-5)
        assert sha256_of(folder / LINEAR_MODEL) == classifier.files[LINEAR_MODEL]
    assert newsdesk("evaluate", run, "--data", run.parent / "none.csv").code == 1
    assert newsdesk("calibrate", run, "--no-stack").code == 0
    for folder, probabilities in before.items():
        classifier = package.load(folder, engine="own")
        assert classifier.linear.stack == 0
        np.testing.assert_allclose(classifier.predict_probabilities(TEXTS), probabilities, atol=1e-5)
    refused = newsdesk("calibrate", export, "--stack")
    assert refused.code == 1
    assert "an exported model, which does not know them" in refused.err


def test_an_explanation_takes_words_from_both(newsdesk, stacked):
    classifier, logits, scores = parts_of(stacked)
    explained = newsdesk("explain", stacked, TEXTS[0], "--json").json["explanations"][0]
    target = classifier.label_names.index(explained["target"])
    expected = log_odds((logits + classifier.linear.stack * scores)[:1], target)[0]
    assert explained["log_odds"] == pytest.approx(expected, rel=1e-4)
    shorter = classifier.predict_logits([TEXTS[0].partition(" ")[2]])
    assert explained["words"][0]["weight"] == pytest.approx(expected - log_odds(shorter, target)[0], rel=1e-3)


def test_by_default_it_is_kept_beside_the_encoder_and_without_the_baseline_it_is_not(
    newsdesk, desk, tmp_path
):
    trained_with(newsdesk, desk, tmp_path / "auto", "--set", "training.baseline=true")
    assert LinearModel.of_folder(tmp_path / "auto", 3).stack == 0
    assert read_held_out_rows(tmp_path / "auto").linear is not None
    trained_with(newsdesk, desk, tmp_path / "off", "--set", "training.baseline=true", "--no-stack")
    assert not (tmp_path / "off" / LINEAR_MODEL).exists()
    trained_with(newsdesk, desk, tmp_path / "none")
    assert not (tmp_path / "none" / LINEAR_MODEL).exists()


def test_what_validates_better_with_it_is_told_so(newsdesk, desk, tmp_path):
    weak = ("--set", "training.baseline=true", "--set", "training.learning_rate=1e-6")
    told = trained_with(newsdesk, desk, tmp_path / "run", *weak)
    assert "newsdesk calibrate RUN --stack" in told.err
    assert newsdesk("calibrate", tmp_path / "run", "--stack").code == 0
    assert package.load(tmp_path / "run").predict(TEXTS[:1]).labels == ("Sports",)


@pytest.mark.parametrize("layers", ["lora.dora=true", "lora.layers=top-1"])
def test_killed_while_it_is_fitted_a_training_ends_as_if_it_had_not_been(
    newsdesk, desk, tmp_path, monkeypatch, layers
):
    flags = ("--stack", "--set", layers)
    trained_with(newsdesk, desk, tmp_path / "whole", *flags)

    def killed(*_given, **_settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(LinearModel, "save", killed)
        assert newsdesk("train", *desk.flags, *EVERY_RUN, "--out", tmp_path / "run", *flags).code == 130
    assert not (tmp_path / "run" / "manifest.json").exists()
    assert newsdesk("train", "--out", tmp_path / "run", "--resume").code == 0
    for name in (LINEAR_MODEL, "calibration.safetensors"):
        assert sha256_of(tmp_path / "run" / name) == sha256_of(tmp_path / "whole" / name)


def test_without_rows_to_find_its_part_by_it_is_refused_before_training(newsdesk, desk, tmp_path):
    flags = [*desk.flags, "--set", "data.validation_share=0.0", "--out", tmp_path / "run", "--stack"]
    refused = newsdesk("train", *flags)
    assert refused.code == 1
    assert "leave out --stack" in refused.err
    assert not (tmp_path / "run").exists()


def test_card_and_push_say_that_peft_alone_answers_otherwise(newsdesk, stacked, trained):
    assert "`linear_model.safetensors`" in (stacked / "README.md").read_text()
    assert "linear_model" not in (trained / "README.md").read_text()
    planned = newsdesk("push", stacked, "desk/wire", "--dry-run", "--json").json
    assert LINEAR_MODEL in {file["path"] for file in planned["files"]}
    assert any("peft alone answers without it" in note for note in planned["notes"])


def test_a_notebook_stacks_with_one_argument(desk, stacked):
    from newsdesk.data.load import load_split

    table = load_split(str(desk.train), "train").table
    texts, labels = ([row[place] for row in table.rows] for place in (1, 2))
    settings = {"training.precision": "float32", "training.min_steps": 0, "lora.targets": ("all-linear",)}
    classifier = package.TextClassifier(
        base=str(desk.base),
        stack=True,
        epochs=2,
        max_length=32,
        learning_rate=2e-2,
        folds=0,
        settings=settings,
    ).fit(texts, labels)
    assert classifier.classifier.linear.stack > 0
    assert classifier.predict(TEXTS[:1]).tolist() == ["Sports"]
    assert package.TextClassifier.load(stacked).predict(TEXTS[:1]).tolist() == ["Sports"]
