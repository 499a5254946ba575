"""Cross-validation: every row answered by a model that did not learn from it, then a run of all rows."""

from __future__ import annotations

import csv
import json
import signal
from shutil import copytree

import numpy as np
import pytest

import newsdesk as package
from newsdesk.config import load_recipe
from newsdesk.data.load import load_training_data
from newsdesk.errors import UserError
from newsdesk.runs.calibration import read_calibration, read_held_out_rows
from newsdesk.runs.folder import open_run
from newsdesk.runs.log import Finished, Remark, Step, Validation, read_log
from topics import topical_rows

pytest.importorskip("torch")

from newsdesk.training.folds import kept_state, section_of

ROWS, FOLDS = 150, 3


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Files of rows to learn from, ten of them twice, and of others."""
    folder = tmp_path_factory.mktemp("rows")
    learned = topical_rows(ROWS - 10, seed=5)
    for name, some in (("train", [*learned, *learned[:10]]), ("test", topical_rows(200, seed=6))):
        with (folder / f"{name}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([("label", "text"), *some])
    return folder


@pytest.fixture(scope="module")
def settings(desk, rows):
    """What the trainings here have in common: flags and overrides."""
    flags = {"data.train": str(rows / "train.csv"), "model.base": str(desk.base), "data.folds": FOLDS}
    overrides = [flag.removeprefix("--set=") for flag in desk.flags if flag.startswith("--set=")]
    overrides.remove("data.folds=0")
    return flags, [*overrides, "training.epochs=8", "model.linear=stack"]


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    """A cross-validated run; nobody may change it."""
    flags, overrides = settings
    return package.train(out=tmp_path_factory.mktemp("folds") / "run", flags=flags, overrides=overrides)


def data_of(settings):
    recipe = load_recipe(None, *settings).recipe
    return load_training_data(recipe.data, seed=recipe.training.seed)


def test_all_rows_are_learned_and_all_calibrate(run, settings, rows):
    data, kept = data_of(settings), read_held_out_rows(run.path)
    assert run.manifest.data.train.rows == len(data.train) == ROWS
    assert (run.manifest.training.folds, kept.folds, data.folds) == (FOLDS, FOLDS, FOLDS)
    np.testing.assert_array_equal(kept.labels, data.train.labels)
    assert kept.distances is not None
    assert kept.linear is not None
    assert read_calibration(run.path).source.endswith("cross-validated in 3 folds, computed in float32")
    validations = [logged.event for logged in read_log(run.log, Validation)]
    assert len(validations) == 8
    assert {event.rows for event in validations} == {ROWS}
    assert validations[-1].accuracy == pytest.approx(
        ((kept.logits - package.load(run.path).linear.stack * kept.linear).argmax(1) == kept.labels).mean()
    )
    (remark,) = (text for text in run.manifest.training.remarks if "cross-validated" in text)
    assert f"of {ROWS} rows, each by a model that learned from neither it nor its copies" in remark
    *_, advice, finished = (logged.event for logged in read_log(run.log, Remark, Finished))
    assert isinstance(finished, Finished)  # what more rows would bring is the last thing said before the end
    assert advice.text.startswith(f"with twice the rows, {2 * ROWS}, accuracy would be about ")
    assert run.manifest.training.remarks[-1] == advice.text
    assert package.evaluate(run.path, str(rows / "test.csv")).metrics.accuracy > 0.9
    assert not (run.path / ".folds").exists()
    card = (run.path / "README.md").read_text()
    assert "training, cross-validated in 3 folds" in card
    assert "with twice the rows" in card


def test_a_row_is_answered_by_a_model_of_the_other_folds(run, settings, tmp_path):
    data, kept = data_of(settings), read_held_out_rows(run.path)
    alone = kept.logits - np.float32(package.load(run.path).linear.stack) * kept.linear
    fold = data.of_fold(1)
    with (tmp_path / "others.csv").open("w", newline="") as stream:
        names = [fold.train.label_names[label] for label in fold.train.labels]
        csv.writer(stream).writerows([("label", "text"), *zip(names, fold.train.texts, strict=True)])
    flags, overrides = settings
    without = {**flags, "data.train": str(tmp_path / "others.csv"), "data.folds": 0}
    overrides = [*overrides, "data.validation_share=0.0", "model.linear=off"]
    other = package.train(out=tmp_path / "run", flags=without, overrides=overrides)
    expected = package.load(other.path).predict_logits(fold.validation.texts)
    np.testing.assert_allclose(alone[data.fold_of == 1], expected, atol=1e-4)


def test_copies_of_a_text_and_near_ones_share_a_fold(settings):
    data = data_of(settings)
    assert all(data.fold_of[i] == data.fold_of[ROWS - 10 + i] for i in range(10))
    counts = [np.bincount(data.train.labels[data.fold_of == fold]) for fold in range(FOLDS)]
    assert np.ptp(counts, axis=0).max() <= 10


def test_what_was_interrupted_after_the_folds_goes_on_and_leaves_the_same_run(run, settings, tmp_path):
    flags, overrides = settings
    out = tmp_path / "run"

    def interrupt(event):
        if isinstance(event, Step) and event.step == 30:
            signal.raise_signal(signal.SIGTERM)

    package.train(out=out, flags=flags, overrides=overrides, observe=interrupt)
    assert open_run(out).manifest.is_interrupted
    folds = {file: file.stat().st_mtime_ns for file in (out / ".folds").rglob("log.jsonl")}
    seen = []

    def watch(event):
        if not seen:
            seen.append({file: file.stat().st_mtime_ns for file in folds})

    resumed = package.train(out=out, resume=True, observe=watch)
    assert seen == [folds]  # none was trained again
    for name in ("adapter/adapter_model.safetensors", "calibration.safetensors", "linear_model.safetensors"):
        assert (resumed.path / name).read_bytes() == (run.path / name).read_bytes(), name
    assert not (out / ".folds").exists()


def test_it_is_measured_tracked_and_reported_like_any_run(settings, rows, newsdesk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where its tracker writes
    pytest.importorskip("matplotlib")
    pytest.importorskip("onnx")
    flags, overrides = settings
    windows = [*overrides, "model.max_length=12", "model.long_texts=windows"]
    run = package.train(out=tmp_path / "run", flags=flags, overrides=windows, track="tensorboard")
    test = rows / "test.csv"
    for verb in (
        ("evaluate", run.path, "--data", test, "--baseline"),
        ("report", run.path, "--data", test),
        ("predict", run.path, "--input", test, "--output", tmp_path / "out.csv", "--abstain", "0.2"),
        ("explain", run.path, "goal coach league bank profit market orbit genome quantum season"),
        ("export", run.path, "--to", "onnx-int8", "--max-loss", "50", "--max-loss-upper", "60"),
        ("predict", run.path, "--engine", "cascade", "--loss", "0.3", "goal coach league"),
    ):
        done = newsdesk(*verb)
        assert done.code == 0, (verb, done.err)
    page = (run.path / "report-test.html").read_text()
    assert "cross-validated in 3 folds: accuracy" in page
    assert "with twice the rows, 300, accuracy would be about" in page
    assert read_held_out_rows(run.path / "export" / "onnx-int8").folds == FOLDS


@pytest.mark.parametrize("at", ["fold 1 of 3", "fold 2 of 3"])
def test_what_was_interrupted_in_a_fold_goes_on_and_leaves_the_same_run(run, settings, tmp_path, at):
    flags, overrides = settings
    out, steps = tmp_path / "run", []

    def interrupt(done, total, what, unit="bytes", /):
        if what.endswith(at) and done > total // 2 and not steps:
            steps.append(done)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(UserError, match="interrupted while it was cross-validated") as raised:
        package.train(out=out, flags=flags, overrides=overrides, progress=interrupt)
    assert f"--out {out} --resume" in raised.value.fix
    trained = []

    def count(done, total, what, unit="bytes", /):
        if "cross-validating" in what and done:
            trained.append(what)

    resumed = package.train(out=out, resume=True, progress=count)
    assert trained.count(f"cross-validating: {at}") < trained.count("cross-validating: fold 3 of 3")
    for name in ("adapter/adapter_model.safetensors", "calibration.safetensors", "calibration.json"):
        assert (resumed.path / name).read_bytes() == (run.path / name).read_bytes(), name
    np.testing.assert_array_equal(*(package.load(each.path).off_topic.reference for each in (resumed, run)))


def test_an_export_promises_what_the_run_promises(run, rows, newsdesk, tmp_path):
    copy = copytree(run.path, tmp_path / "run")
    assert newsdesk("export", copy, "--to", "onnx-fp32").code == 0
    export = copy / "export" / "onnx-fp32"
    own, its = read_held_out_rows(copy), read_held_out_rows(export)
    np.testing.assert_array_equal(own.logits, its.logits)
    assert its.folds == FOLDS
    texts = [text for _label, text in topical_rows(50, seed=9)]
    of_run, of_export = (package.load(folder) for folder in (copy, export))
    np.testing.assert_allclose(
        of_run.predict_probabilities(texts), of_export.predict_probabilities(texts), atol=1e-3
    )
    asked = ("--abstain", "0.2", "--off-topic", "0.05", "--output", tmp_path / "out.csv")
    done = newsdesk("predict", export, "--input", rows / "test.csv", *asked)
    assert done.code == 0, done.err


def test_it_is_calibrated_again_without_a_part_for_the_linear_model_and_with_it(run, newsdesk, tmp_path):
    copy = copytree(run.path, tmp_path / "run")
    assert newsdesk("export", copy, "--to", "onnx-fp32").code == 0
    before = (copy / "calibration.safetensors").read_bytes()
    done = newsdesk("calibrate", copy, "--no-stack")
    assert done.code == 0, done.err
    for folder in (copy, copy / "export" / "onnx-fp32"):
        assert package.load(folder).linear.stack == 0.0
    assert (copy / "calibration.safetensors").read_bytes() != before
    done = newsdesk("calibrate", copy, "--stack")
    assert done.code == 0, done.err
    again = read_held_out_rows(copy)
    np.testing.assert_allclose(again.logits, read_held_out_rows(run.path).logits, atol=1e-5)


def test_texts_with_several_labels_are_cross_validated_too(desk, settings, tmp_path):
    texts = [text for _label, text in topical_rows(180, seed=3)]
    labels = [label for label, _text in topical_rows(180, seed=3)]
    lines = [
        {"text": f"{a} {b}", "labels": sorted({of_a, of_b})}
        for a, b, of_a, of_b in zip(texts, texts[1:], labels, labels[2:], strict=False)
    ]
    path = tmp_path / "sets.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    flags, overrides = settings
    run = package.train(out=tmp_path / "run", flags={**flags, "data.train": str(path)}, overrides=overrides)
    kept = read_held_out_rows(run.path)
    assert kept.labels.shape == (len(lines), 3)
    assert kept.folds == FOLDS
    assert "micro F1 would be about" in run.manifest.training.remarks[-1]
    assert package.load(run.path).predict([texts[0]])[0].labels


def test_an_earlier_state_is_kept_where_it_is_clearly_better(settings, tmp_path):
    flags, overrides = settings
    spoiled = [*overrides, "training.schedule=constant", "training.learning_rate=0.2", "training.warmup=0"]
    run = package.train(out=tmp_path / "run", flags=flags, overrides=spoiled)
    validations = [logged.event for logged in read_log(run.log, Validation)]
    (kept,) = (event for event in validations if event.best)
    training = run.manifest.training
    assert (training.best_step, training.steps) == (kept.step, kept.step)
    by_loss = {event.step: event.loss for event in validations}
    assert by_loss[kept.step] <= by_loss[validations[-1].step]


def state(right, rows=200, seed=0):
    """Logits of which so large a share is right, and the labels, all of class 0."""
    answers = np.random.default_rng(seed).random(rows) >= right
    return np.where(np.stack([~answers, answers], axis=1), 2.0, 0.0).astype(np.float32)


def test_the_last_state_is_kept_unless_chance_rarely_makes_another_so_much_better():
    labels = np.zeros(200, dtype=np.int64)
    assert kept_state({0.5: state(0.97), 1.0: state(0.7, seed=1)}, labels) == 0.5
    assert kept_state({0.5: state(0.9), 1.0: state(0.89, seed=1)}, labels) == 1.0
    sets = np.stack([labels == 0, labels != 0], axis=1)
    assert kept_state({0.5: state(0.97) - 1, 1.0: state(0.6, seed=1) - 1}, sets) == 0.5


@pytest.mark.parametrize("spoil", ["file", "link", "garbage"])
def test_what_is_in_the_place_of_the_folds_is_removed_or_refused(settings, tmp_path, spoil):
    flags, overrides = settings
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"

    def interrupt(done, total, what, unit="bytes", /):
        if what.endswith("fold 1 of 3") and done == 5:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(UserError, match="interrupted"):
        package.train(out=out, flags=flags, overrides=overrides, progress=interrupt)
    if spoil == "garbage":
        (out / ".folds" / "identity").write_bytes(b"\xff\xfe")
    else:
        (out / ".folds").rename(elsewhere)
        if spoil == "file":
            (out / ".folds").write_text("mine")
        else:
            (out / ".folds").symlink_to(elsewhere)
    if spoil == "link":
        before = sorted(elsewhere.rglob("*"))
        with pytest.raises(UserError, match="a link to a place outside"):
            package.train(out=out, resume=True)
        assert sorted(elsewhere.rglob("*")) == before
    else:
        assert package.train(out=out, resume=True).manifest.training.finished == "completed"


def written(path, rows):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("label", "text"), *rows])
    return path


@pytest.mark.parametrize(
    ("rows", "setting", "folds", "said"),
    [
        (topical_rows(900, seed=2), None, 5, "cross-validated in 5 folds"),
        (topical_rows(1002, seed=2), None, 0, None),
        (topical_rows(90, seed=2), "data.folds=0", 0, "--folds 5 measures by all rows"),
        (topical_rows(90, seed=2), "data.validation_share=0.2", 0, "--folds 5 measures by all rows"),
        (topical_rows(90, seed=2), "training.patience=2", 0, "--folds 5 measures by all rows"),
        ([*topical_rows(90, seed=2), ("Weather", "rain")], None, 0, "one fold has all of Weather (1 row)"),
        (topical_rows(4, seed=2), None, 0, "held out instead of cross-validated"),
    ],
)
def test_few_rows_are_cross_validated_unless_asked_otherwise(
    desk, newsdesk, tmp_path, rows, setting, folds, said
):
    data = written(tmp_path / "rows.csv", rows)
    flags = ["--data", data, "--base", desk.base, "--set=model.max_length=32", "--dry-run", "--json"]
    plan = newsdesk("train", *flags, *([f"--set={setting}"] if setting else [])).json
    assert plan["rows"]["folds"] == folds
    assert (plan["rows"]["train"] == len(rows)) == (folds > 0)
    assert said is None or any(said in remark for remark in plan["remarks"])


def test_labels_of_one_text_alone_do_not_keep_texts_of_several_from_it(tmp_path):
    texts = topical_rows(60, seed=2)
    lines = [
        {"text": text, "labels": [label, *(["Weather"] if n == 7 else [])]}
        for n, (label, text) in enumerate(texts)
    ]
    path = tmp_path / "sets.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    data = load_training_data(load_recipe(None, {"data.train": str(path)}).recipe.data, seed=1)
    assert (data.folds, len(data.train), len(data.validation)) == (5, 60, 0)


def test_a_run_of_several_processes_is_resumed_by_one_without_folds(settings, tmp_path, monkeypatch):
    flags = {key: value for key, value in settings[0].items() if key != "data.folds"}
    overrides = [*settings[1], "training.epochs=1", "training.checkpoint_every=2"]

    def interrupt(event):
        if isinstance(event, Step) and event.step == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("newsdesk.training.run.section_of", lambda recipe, *_: section_of(recipe, 2))
        run = package.train(out=tmp_path / "run", flags=flags, overrides=overrides, observe=interrupt)
    assert run.manifest.is_interrupted
    training = package.train(out=run.path, resume=True).manifest.training
    assert (training.finished, training.folds) == ("completed", 0)


def test_the_dry_run_counts_the_folds(desk, rows, newsdesk):
    flags = [
        "--data",
        rows / "train.csv",
        "--base",
        desk.base,
        "--set=model.max_length=32",
        "--dry-run",
        "--json",
    ]
    plans = [newsdesk("train", *flags, "--folds", folds).json for folds in (0, 3)]
    assert [plan["rows"]["folds"] for plan in plans] == [0, 3]
    told = newsdesk("train", *flags[:-1], "--folds", 3).out
    assert "in 3 folds, then trained on all rows" in told


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--folds", "1"), "use 2 or more"),
        (("--folds", "3", "--valid", "test.csv"), "leave out --folds or --valid"),
        (("--folds", "18"), "cannot be dealt to 18 folds"),
    ],
)
def test_what_cannot_be_cross_validated_is_refused(desk, rows, newsdesk, tmp_path, monkeypatch, flags, said):
    monkeypatch.chdir(rows)
    few = tmp_path / "few.csv"
    few.write_text("\n".join((rows / "train.csv").read_text().splitlines()[:13]))
    refused = newsdesk("train", "--data", few, "--base", desk.base, *flags, "--out", tmp_path / "run")
    assert (refused.code, refused.err.count("error:")) == (1, 1)
    assert said in refused.err
    assert not (tmp_path / "run").exists()
