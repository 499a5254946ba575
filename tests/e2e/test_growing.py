"""A run that grows: trained further on new rows, it keeps what it knows and learns classes that are new."""

from __future__ import annotations

import csv
import json
from shutil import copytree

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import newsdesk as package
from newsdesk.config import TrainingSection
from newsdesk.errors import UserError
from newsdesk.runs.calibration import read_calibration
from newsdesk.runs.folder import open_run
from newsdesk.runs.log import Remark, Validation, read_log
from topics import topical_rows

pytest.importorskip("torch")

from newsdesk.training.growing import drawn_rows

OLD, NEW = ("Business", "Science"), "Sports"
SHORT = (
    "training.growing_rows=320",
    "training.new_share=0.25",
    "training.precision=float32",
    "training.baseline=false",
)


def write(path, rows):
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(
            [("number", "words", "desk"), *((i, *row) for i, row in enumerate(rows))]
        )
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Rows of two classes, then a third with some of the first ones again, and rows of all three."""
    folder = tmp_path_factory.mktemp("rows")
    every = [(text, label) for label, text in topical_rows(260, seed=3)]
    old, new = ([row for row in every if (row[1] == NEW) == is_new] for is_new in (False, True))
    write(folder / "first.csv", old)
    write(folder / "more.csv", [*new[:60], *old[:20]])
    write(folder / "test.csv", [(text, label) for label, text in topical_rows(90, seed=4)])
    return folder


@pytest.fixture(scope="module")
def first(desk, files, tmp_path_factory):
    """A run of two classes; nobody may change it."""
    overrides = [flag.removeprefix("--set=") for flag in desk.flags if flag.startswith("--set=")]
    flags = {"data.train": str(files / "first.csv"), "data.text": ("words",), "data.label": "desk"}
    flags |= {"model.base": str(desk.base), "training.epochs": 10.0, "data.validation_share": 0.2}
    return package.train(out=tmp_path_factory.mktemp("first") / "run", flags=flags, overrides=overrides)


def grow(start, data, out, *overrides, **settings):
    flags = {"training.start_from": str(start), "data.train": str(data)}
    return package.train(out=out, flags=flags, overrides=[*SHORT, *overrides], **settings)


@pytest.fixture(scope="module")
def grown(first, files, tmp_path_factory):
    """The run, trained further on the third class; nobody may change it."""
    return grow(first.path, files / "more.csv", tmp_path_factory.mktemp("grown") / "run")


def remarks(run):
    return [logged.event.text for logged in read_log(run.log, Remark)]


def test_it_knows_what_it_knew_and_the_new_class_and_says_what_it_began_from(first, grown, files):
    assert (first.labels.names, grown.labels.names) == (OLD, (*OLD, NEW))
    assert grown.labels.layout == first.labels.layout
    figures = package.evaluate(copytree(grown.path, grown.path.parent / "evaluated"), str(files / "test.csv"))
    recalls = {entry.label: entry.recall for entry in figures.metrics.per_class}
    assert min(recalls.values()) > 0.8, recalls
    began = grown.manifest.grown
    assert (began.run, began.label_names) == (str(first.path), OLD)
    assert began.sha256 == first.manifest.files["adapter/adapter_model.safetensors"]
    assert began.rows == grown.manifest.data.train.rows - 48 - 16  # six new rows held out, 16 again
    said = remarks(grown)
    assert f"trained further from {first.path}, with 80 new rows; new classes: {NEW} (60 rows)" in said
    assert any("stay held out" in text for text in said)
    card = (grown.path / "README.md").read_text()
    assert f"trained further from {first.path.name}, which had 2 classes" in card
    recipe = (grown.path / "recipe.toml").read_text()
    assert f'start_from = "{first.path}"  # flag' in recipe
    assert f"rank = 8  # run {first.path}" in recipe


def test_what_was_held_out_stays_so_and_rows_that_are_in_both_count_once(first, grown, files):
    before, now = first.known_texts(), grown.known_texts()
    assert np.isin(before.validation, now.validation).all()
    assert not np.isin(now.training, before.validation).any()
    with (files / "first.csv").open() as stream, (files / "more.csv").open() as more:
        texts = {row["words"] for file in (stream, more) for row in csv.DictReader(file)}
    facts = grown.manifest.data
    assert facts.train.rows + facts.validation.rows == len(texts)
    (validation,) = (logged.event for logged in read_log(grown.log, Validation))
    assert validation.rows == facts.validation.rows == first.manifest.data.validation.rows + 12


def test_the_known_rows_of_the_head_stay_and_the_new_one_fits_from_the_start(first, files, tmp_path):
    still = grow(first.path, files / "more.csv", tmp_path / "still", "training.learning_rate=1e-12")
    texts = [text for _, text in topical_rows(60, seed=9)]
    one, other = (package.load(run.path).predict_logits(texts) for run in (first, still))
    np.testing.assert_allclose(other[:, :2], one, atol=1e-5)
    labels = [label for label, _ in topical_rows(60, seed=9)]
    given = [(*OLD, NEW)[best] for best in other.argmax(axis=1)]
    assert np.mean([label == found for label, found in zip(labels, given, strict=True)]) > 0.8


def test_its_rows_are_found_again_by_every_verb_and_by_the_next_to_grow(newsdesk, grown, files, tmp_path):
    run = copytree(grown.path, tmp_path / "run")
    before = read_calibration(run)
    assert newsdesk("calibrate", run).code == 0
    assert read_calibration(run).sha256 == before.sha256
    assert read_calibration(run).temperature == pytest.approx(before.temperature, rel=1e-3)
    assert newsdesk("evaluate", run, "--data", files / "test.csv", "--baseline").code == 0
    third = write(tmp_path / "third.csv", [(text, label.upper()) for label, text in topical_rows(30, seed=8)])
    again = grow(run, third, tmp_path / "again")
    assert again.labels.names == (*OLD, NEW)  # matched without regard to case
    assert again.manifest.grown.rows == grown.manifest.data.train.rows
    assert len(again.manifest.grown.replayed) == 2
    assert newsdesk("calibrate", again.path).code == 0
    counts = newsdesk("labels", again.path, "--json").json["labels"]
    assert sum(entry["training rows"] for entry in counts) == again.manifest.data.train.rows


def test_rows_that_are_not_there_or_have_changed_are_said_not_to_be_replayed(first, files, tmp_path):
    start, gone = copytree(first.path, tmp_path / "start"), tmp_path / "gone.csv"
    recipe = (start / "recipe.toml").read_text()
    (start / "recipe.toml").write_text(recipe.replace(str(files / "first.csv"), str(gone)))
    found = grow(start, files / "more.csv", tmp_path / "alone")
    assert any("are not replayed" in text and "unlearn" not in text for text in remarks(found))
    assert found.manifest.grown.replayed == ()
    assert not np.isin(found.known_texts().training, first.known_texts().validation).any()
    package.calibrate(found.path)  # its own rows are found again
    write(gone, [("other words", OLD[0]), ("some more", OLD[1])])
    changed = grow(start, files / "more.csv", tmp_path / "changed")
    assert any("are no longer those" in text for text in remarks(changed))
    only = write(tmp_path / "only.csv", [(f"goal {number}", NEW) for number in range(9)])
    with pytest.raises(UserError, match="unlearn all others"):
        grow(start, only, tmp_path / "only")


@pytest.mark.parametrize(
    ("overrides", "wrong"),
    [
        (["lora.rank=4"], "keeps its base, adapters"),
        (['lora.targets=["attention"]'], "keeps its base, adapters"),
        (["model.base=all-mpnet-base-v2"], "keeps its base, adapters"),
        (["data.task=multi"], "keeps its base, adapters"),
        (["data.folds=3"], "cannot be cross-validated"),
    ],
)
def test_what_its_weights_or_rows_do_not_allow_is_refused(first, files, tmp_path, overrides, wrong):
    with pytest.raises(UserError, match=wrong):
        grow(first.path, files / "more.csv", tmp_path / "out", *overrides)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", [(), (5,), (2, 2)])
def test_a_head_whose_parts_do_not_fit_each_other_is_one_sentence(first, files, tmp_path, shape):
    start = copytree(first.path, tmp_path / "start")
    weights = start / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    (name,) = (name for name in tensors if name.endswith("classifier.bias"))
    save_file({**tensors, name: np.zeros(shape, np.float32)}, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="missing or damaged"):
        grow(start, files / "more.csv", tmp_path / "out")


def test_mistakes_are_one_sentence(newsdesk, first, files, tmp_path):
    flags = ("--out", tmp_path / "out")
    outcome = newsdesk("train", "--from", first.path, *flags)
    assert (outcome.code, "--data FILE" in outcome.err) == (1, True)
    outcome = newsdesk("train", "--from", tmp_path, "--data", files / "more.csv", *flags)
    assert (outcome.code, "is not a run" in outcome.err) == (1, True)
    numbers = write(tmp_path / "numbers.csv", [("goal one", "7"), ("goal two", "8")])
    outcome = newsdesk("train", "--from", first.path, "--data", numbers, *flags)
    assert (outcome.code, "no label in numbers.csv is a class of the run" in outcome.err) == (1, True)
    vary = ("--vary", "lora.rank=4,8", "--set", f"training.start_from={first.path}", *flags)
    outcome = newsdesk("sweep", "--recipe", "quick", "--data", files / "more.csv", *vary)
    assert (outcome.code, "a sweep cannot go on from a run" in outcome.err) == (1, True)


def test_a_dry_run_shows_the_short_training(newsdesk, first, files):
    outcome = newsdesk("train", "--from", first.path, "--data", files / "more.csv", "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    plan = outcome.json
    assert plan["steps"]["total"] == 12
    assert plan["rows"]["classes"] == 3
    assert any("trained further" in text for text in plan["remarks"])


def test_interrupted_it_continues_to_the_same_bit(first, files, grown, tmp_path, monkeypatch):
    from contextlib import nullcontext

    steps = iter(range(1000))
    monkeypatch.setattr("newsdesk.training.run.interruptible", lambda: nullcontext(lambda: next(steps) >= 7))
    half = grow(first.path, files / "more.csv", tmp_path / "run")
    assert half.manifest.is_interrupted
    monkeypatch.undo()
    whole = package.train(out=tmp_path / "run", resume=True)
    name = "adapter/adapter_model.safetensors"
    assert (whole.path / name).read_bytes() == (grown.path / name).read_bytes()
    assert whole.manifest.files[name] == grown.manifest.files[name]


def test_it_may_take_the_place_of_the_run_that_it_began_from(newsdesk, first, files, tmp_path):
    run = copytree(first.path, tmp_path / "run")
    flags = ("--from", run, "--data", files / "more.csv", "--out", run, "--set", SHORT[0], "--no-baseline")
    refused = newsdesk("train", *flags)
    assert (refused.code, "not empty" in refused.err) == (1, True)
    outcome = newsdesk("train", *flags, "--overwrite")
    assert outcome.code == 0, outcome.err
    assert open_run(run).labels.names == (*OLD, NEW)
    assert newsdesk("calibrate", run).code == 0


def test_compare_shows_what_the_known_classes_lost(newsdesk, first, grown, files, tmp_path):
    one, other = (copytree(run.path, tmp_path / name) for run, name in ((first, "old"), (grown, "new")))
    outcome = newsdesk("compare", one, other, "--data", files / "test.csv")
    assert outcome.code == 0, outcome.err
    assert "on the same 60 rows" in outcome.out
    assert f"note: 30 rows of classes that only {other} has: it finds" in outcome.out
    (head,) = (line for line in outcome.lines if line.startswith("class "))
    assert "recall first" in head
    assert "lost" in head
    (found,) = newsdesk("compare", one, other, "--data", files / "test.csv", "--json").json["comparisons"]
    assert found["rows"] == 60
    assert found["per_class"][0]["first_recall"] > 0.85
    turned = newsdesk("compare", other, one, "--data", files / "test.csv")
    assert "on the same 60 rows" in turned.out


def test_several_labels_in_windows_of_long_texts_grow_too(newsdesk, desk, files, tmp_path):
    def rows(count, seed, names):
        pairs = zip(topical_rows(count, seed=seed), topical_rows(count + 1, seed=seed + 1)[1:], strict=True)
        found = [(f"{one[1]} {two[1]}", sorted({one[0], two[0]} & set(names))) for one, two in pairs]
        return [(text, json.dumps(labels)) for text, labels in found if labels]

    flags = {"data.train": str(write(tmp_path / "old.csv", rows(120, 20, OLD))), "data.text": ("words",)}
    flags |= {"data.label": "desk", "model.base": str(desk.base), "training.epochs": 8.0}
    overrides = [flag.removeprefix("--set=") for flag in desk.flags if flag.startswith("--set=")]
    overrides += ["model.long_texts=windows", "model.max_length=16", "data.validation_share=0.2"]
    start = package.train(out=tmp_path / "start", flags=flags, overrides=overrides)
    more = write(tmp_path / "more.csv", [row for row in rows(90, 40, (*OLD, NEW)) if NEW in row[1]])
    found = grow(start.path, more, tmp_path / "grown", "training.epochs=6", "training.learning_rate=2e-2")
    assert (found.labels.task, found.labels.names) == ("multi", (*OLD, NEW))
    assert any("count as having none of the new labels" in text for text in remarks(found))
    figures = package.evaluate(found.path, str(write(tmp_path / "test.csv", rows(60, 60, (*OLD, NEW)))))
    assert min(entry.recall for entry in figures.metrics.per_label) > 0.6
    assert newsdesk("calibrate", found.path).code == 0
    assert newsdesk("labels", found.path, "--retire", NEW, "--out", tmp_path / "less").code == 0
    texts = [text for text, _ in rows(20, 70, OLD)]
    more_labels, less = (package.load(tmp_path / name).predict_logits(texts) for name in ("grown", "less"))
    np.testing.assert_array_equal(more_labels[:, :2], less)


def test_a_classifier_in_a_notebook_goes_on_from_another(first, files):
    with (files / "more.csv").open() as stream:
        rows = [(row["words"], row["desk"]) for row in csv.DictReader(stream)]
    texts, labels = zip(*rows, strict=True)
    settings = {"training.growing_rows": 320, "training.new_share": 0.25}
    grown = package.TextClassifier(start_from=first.path, settings=settings).fit(texts[:60], labels[:60])
    assert grown.classes_.tolist() == sorted((*OLD, NEW))  # of which these rows have the new one alone
    test = topical_rows(60, seed=9)
    assert grown.score([text for _, text in test], [label for label, _ in test]) > 0.8
    again = package.TextClassifier(start_from=grown, settings=settings).fit(texts[50:], labels[50:])
    assert again.path_ != grown.path_
    with pytest.raises(ValueError, match="not fitted"):
        package.TextClassifier(start_from=package.TextClassifier()).fit(texts, labels)


def test_numbers_stay_numbers_only_where_all_labels_are(desk, files, tmp_path):
    texts, numbers = [text for _, text in topical_rows(90, seed=2)], [row % 3 for row in range(90)]
    settings = {"model.base": str(desk.base), "model.max_length": 32}
    first = package.TextClassifier(validation_share=0.1, settings=settings).fit(texts, numbers)
    more = package.TextClassifier(start_from=first).fit(["opera stage", "opera", texts[0]], [7, 7, 0])
    assert more.classes_.tolist() == [0, 1, 2, 7]
    named = first.save(tmp_path / "run")
    assert package.TextClassifier(start_from=named).fit(texts[:3], [0, 1, 2]).classes_.tolist() == [0, 1, 2]


def test_from_a_cross_validated_run_nothing_is_held_out(newsdesk, desk, files, tmp_path):
    flags = [flag for flag in desk.flags if flag != "--set=data.folds=0"]
    flags[flags.index("--data") + 1] = str(files / "first.csv")
    assert newsdesk("train", *flags, "--folds", "2", "--epochs", "3", "--out", tmp_path / "folds").code == 0
    found = grow(tmp_path / "folds", files / "more.csv", tmp_path / "grown")
    assert (found.manifest.data.validation.rows, found.manifest.training.folds) == (0, 0)
    assert found.manifest.grown.rows == open_run(tmp_path / "folds").manifest.data.train.rows - 20
    assert any("none are held out: it learned from all of its rows" in text for text in remarks(found))
    assert newsdesk("calibrate", found.path, "--data", files / "test.csv").code == 0


def test_an_epoch_repeats_few_new_rows_and_draws_from_many_earlier_ones():
    training = TrainingSection(growing_rows=1000, new_share=0.25)
    drawn = drawn_rows(5000, 5016, training)
    assert len(drawn) == 1000
    assert sorted(np.bincount(drawn[drawn >= 5000] - 5000).tolist()) == [15] * 6 + [16] * 10
    assert len(set(drawn[drawn < 5000].tolist())) == 750
    many = drawn_rows(50, 2050, training)
    assert np.bincount(many, minlength=2050).tolist() == [1] * 2050
    assert len(drawn_rows(70_000, 71_000, TrainingSection())) == 4000
    assert set(drawn_rows(0, 20, training).tolist()) == set(range(20))
