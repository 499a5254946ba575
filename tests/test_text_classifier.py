"""The scikit-learn-like front: real pandas, polars, datasets and scikit-learn against tiny trainings."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import random

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

import newsdesk
from newsdesk import TextClassifier
from newsdesk.errors import UserError
from newsdesk.runs.calibration import read_held_out_rows
from newsdesk.runs.folder import open_run
from topics import topical_rows

ROWS = topical_rows(240, seed=3)
TEXTS, LABELS = ([text for _, text in ROWS], [label for label, _ in ROWS])
NEW = ["goal coach league", "bank profit market", "orbit genome quantum"]
ANSWERS = ["Sports", "Business", "Science"]
NUMBERS = [ANSWERS.index(label) for label in LABELS]


@pytest.fixture(scope="module")
def quick(tiny_base):
    """What every classifier here is made with: 60 steps that learn the topics."""
    return {
        "base": str(tiny_base("bert")),
        "epochs": 5,
        "learning_rate": 2e-2,
        "max_length": 32,
        "device": "cpu",
        "folds": 0,
        "settings": {"lora.targets": ("all-linear",), "training.precision": "float32"},
    }


@pytest.fixture(scope="module")
def fitted(quick):
    return TextClassifier(**quick).fit(TEXTS, LABELS)


@pytest.fixture(scope="module")
def briefly_fitted(quick):
    return TextClassifier(**{**quick, "epochs": 1}).fit(TEXTS, LABELS)


def test_it_learns_and_answers_in_the_words_that_it_was_given(fitted):
    assert fitted.classes_.tolist() == sorted(ANSWERS)
    assert fitted.predict(NEW).tolist() == ANSWERS
    probabilities = fitted.predict_proba(NEW)
    assert probabilities.shape == (3, 3)
    assert probabilities.dtype == np.float64
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    assert fitted.classes_[probabilities.argmax(axis=1)].tolist() == ANSWERS
    assert fitted.score(NEW, ANSWERS) == 1.0
    assert fitted.score(NEW, ["Sports", "Business", "Opinion"]) == pytest.approx(2 / 3)


def test_it_says_no_more_than_other_estimators(quick, capfd):
    TextClassifier(**quick).fit(TEXTS, LABELS)
    assert capfd.readouterr() == ("", "")  # no terminal, no bar
    TextClassifier(**quick, progress=True).fit(TEXTS, LABELS)
    assert "60/60" in capfd.readouterr().err
    TextClassifier(**{**quick, "epochs": 1, "folds": 2}, progress=True).fit(TEXTS, LABELS)
    notes, shown = capfd.readouterr()
    assert shown.index("fold 1 of 2") < shown.index("fold 2 of 2") < shown.index("training: 100%")
    assert "note: with twice the rows" in notes


@pytest.mark.parametrize(
    "column",
    [
        tuple,
        np.array,
        lambda values: np.array(values, dtype=object),
        lambda values: np.array(values).reshape(-1, 1),
        lambda values: pd.Series(values, index=range(1000, 1000 + len(values))),
        lambda values: pd.Series(values, dtype="category"),
        lambda values: pd.Series(values, dtype="string"),
        pl.Series,
        lambda values: datasets.Dataset.from_dict({"column": values})["column"],
        lambda values: (value for value in values),
    ],
    ids=[
        "tuple",
        "array",
        "object",
        "column",
        "series",
        "category",
        "string",
        "polars",
        "dataset",
        "generator",
    ],
)
def test_every_kind_of_column_gives_the_same_classifier(quick, briefly_fitted, column):
    found = TextClassifier(**{**quick, "epochs": 1}).fit(column(TEXTS), column(LABELS))
    assert np.array_equal(found.predict_proba(column(TEXTS)), briefly_fitted.predict_proba(TEXTS))
    assert found.classes_.tolist() == briefly_fitted.classes_.tolist()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([10, 2, 33], "integer"),
        ([True, False, True], "boolean"),
        ([0.5, 2.0, -1.5], "number"),
        (["01", "2", "x"], "text"),
        (["True", "7", "x"], "text"),
    ],
)
def test_labels_come_back_as_they_were_given_even_from_disk(quick, tmp_path, values, kind):
    labels = [values[number] for number in NUMBERS]
    classifier = TextClassifier(**quick).fit(TEXTS, labels)
    assert classifier.classes_.tolist() == sorted(set(values))
    answers = classifier.predict(NEW).tolist()
    assert answers == values
    assert {type(answer) for answer in answers} == {type(value) for value in values}
    assert classifier.score(NEW, values) == 1.0
    loaded = TextClassifier.load(classifier.save(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "labels.json").read_text())["kind"] == kind
    assert np.array_equal(loaded.predict_proba(NEW), classifier.predict_proba(NEW))
    if kind != "text":  # there the run has the number's one name
        assert loaded.predict(NEW).tolist() == values


def test_true_beside_numbers_is_a_name(quick, tmp_path):
    values = [True, 7, 8]
    classifier = TextClassifier(**{**quick, "epochs": 1}).fit(TEXTS, [values[n] for n in NUMBERS])
    run = classifier.save(tmp_path / "run")
    assert set(TextClassifier.load(run).classes_) == {"True", "7", "8"}


def test_labels_that_are_not_of_their_kind_are_a_damaged_file(fitted, tmp_path):
    run = fitted.save(tmp_path / "run")
    labels = json.loads((run / "labels.json").read_text())
    (run / "labels.json").write_text(json.dumps(labels | {"kind": "integer"}))
    with pytest.raises(UserError, match="labels of the kind integer"):
        TextClassifier.load(run)


def test_given_validation_rows_choose_and_calibrate(quick):
    labels, texts = zip(*topical_rows(120, seed=8), strict=True)
    classifier = TextClassifier(**quick).fit(TEXTS, LABELS, validation=(texts, labels))
    facts = open_run(classifier.path_).manifest.data
    assert (facts.train.rows, facts.validation.rows) == (240, 120)
    with pytest.raises(UserError, match="Opinion"):
        TextClassifier(**quick).fit(TEXTS, LABELS, validation=(NEW, ["Sports", "Business", "Opinion"]))


def test_what_it_saves_is_the_run_that_the_command_line_makes(quick, fitted, tmp_path, write_rows):
    held_out = topical_rows(60, seed=9)
    labels, texts = zip(*held_out, strict=True)
    evaluation = fitted.evaluate(texts, labels)
    run = fitted.save(tmp_path / "runs" / "wire")
    assert newsdesk.load(run).predict(NEW).labels == tuple(ANSWERS)
    rows = write_rows(tmp_path / "test.csv", held_out)
    assert newsdesk.evaluate(run, str(rows)).metrics == evaluation.metrics
    assert "# wire" in (run / "README.md").read_text()
    newsdesk.export(run, "onnx-fp32", data=str(rows))
    exported = TextClassifier.load(run / "export" / "onnx-fp32")
    assert exported.predict(NEW).tolist() == ANSWERS
    with pytest.raises(UserError, match="not kept"):
        newsdesk.evaluate(run, str(rows), baseline=True)
    with pytest.raises(UserError, match="is not empty"):
        fitted.save(run)
    assert fitted.save(run, overwrite=True) == run
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        fitted.save(tmp_path / "mine", overwrite=True)


def test_it_trains_the_adapter_that_the_command_line_trains(quick, fitted, tmp_path, write_rows):
    flags = {"model.base": quick["base"], "training.epochs": 5.0, "training.learning_rate": 2e-2}
    more = {"model.max_length": 32, "training.device": "cpu", "data.folds": 0, **quick["settings"]}
    rows = write_rows(tmp_path / "train.csv", ROWS)
    run = newsdesk.train("quick", out=tmp_path / "run", flags={**flags, **more, "data.train": str(rows)})
    name = "adapter/adapter_model.safetensors"
    assert (run.path / name).read_bytes() == (fitted.path_ / name).read_bytes()


def test_it_says_when_it_does_not_know(fitted):
    answers = fitted.answers(NEW, sets=0.9)
    assert answers.labels == tuple(ANSWERS)
    assert all(label in prediction.candidates for label, prediction in zip(ANSWERS, answers, strict=True))
    assert fitted.answers(["", NEW[0]]).labels == (None, "Sports")
    assert fitted.predict(["", NEW[0]])[1] == "Sports"


def test_cross_validation_in_processes_of_their_own(quick):
    classifier = TextClassifier(**quick)
    scores = cross_val_score(classifier, np.array(TEXTS), NUMBERS, cv=3)
    assert scores.min() > 0.6
    losses = cross_val_score(classifier, TEXTS, NUMBERS, cv=3, scoring="neg_log_loss", n_jobs=2)
    assert losses.min() > -0.9
    found = cross_validate(classifier, TEXTS, LABELS, cv=2, n_jobs=2, return_estimator=True)
    gc.collect()
    for estimator, score in zip(found["estimator"], found["test_score"], strict=True):
        assert estimator.score(TEXTS, LABELS) >= score / 2  # its files came along


def test_a_grid_in_a_pipeline_finds_what_learns(quick):
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    steps = Pipeline([("lower", lower), ("classifier", TextClassifier(**quick))])
    grid = GridSearchCV(steps, {"classifier__learning_rate": [1e-7, 2e-2], "classifier__rank": [4]}, cv=2)
    grid.fit(TEXTS, LABELS)
    assert grid.best_params_ == {"classifier__learning_rate": 2e-2, "classifier__rank": 4}
    assert grid.predict(NEW).tolist() == ANSWERS
    assert grid.score(NEW, ANSWERS) == 1.0


def test_clones_and_copies_are_independent(fitted, quick):
    fresh = clone(fitted)
    assert fresh.get_params() == fitted.get_params()
    assert not hasattr(fresh, "classes_")
    copied = copy.deepcopy(fitted)
    again = pickle.loads(pickle.dumps(fitted))
    assert len({fitted.path_, copied.path_, again.path_}) == 3
    for other in (copied, again):
        assert np.array_equal(other.predict_proba(NEW), fitted.predict_proba(NEW))
    folder = copied.path_
    del copied
    gc.collect()
    assert not folder.exists()
    assert fitted.path_.exists()


def test_fitting_anew_forgets_the_earlier_fit(quick):
    classifier = TextClassifier(**quick).fit(TEXTS, LABELS)
    earlier = classifier.path_
    two = [index for index, label in enumerate(LABELS) if label != "Science"]
    classifier.fit([TEXTS[i] for i in two], [LABELS[i] for i in two])
    assert classifier.classes_.tolist() == ["Business", "Sports"]
    assert not earlier.exists()


def test_a_loaded_run_is_left_where_it_is(fitted, tmp_path):
    run = fitted.save(tmp_path / "run")
    loaded = TextClassifier.load(run)
    assert loaded.predict(NEW).tolist() == ANSWERS
    del loaded
    gc.collect()
    assert open_run(run).is_complete()


def test_parameters_are_shown_and_checked(quick):
    assert repr(TextClassifier(epochs=3, recipe="best")) == "TextClassifier(recipe='best', epochs=3)"
    with pytest.raises(ValueError, match="no parameter 'ranks'"):
        TextClassifier().set_params(ranks=4)
    with pytest.raises(UserError, match=r"training\.epochs"):
        TextClassifier(**{**quick, "epochs": -1}).fit(TEXTS, LABELS)
    with pytest.raises(UserError, match="did you mean lora"):
        TextClassifier(**{**quick, "settings": {"lora.rnak": 4}}).fit(TEXTS, LABELS)


@pytest.mark.parametrize(
    ("texts", "labels", "error", "says"),
    [
        ("one text", ["a"], TypeError, r"write \[one\]"),
        (TEXTS, LABELS[:-1], ValueError, "240 texts, 239 labels"),
        ([*TEXTS[:-1], None], LABELS, ValueError, r"texts\[239\] is missing"),
        ([*TEXTS[:-1], float("nan")], LABELS, ValueError, r"texts\[239\] is missing"),
        ([*TEXTS[:-1], 3], LABELS, TypeError, r"texts\[239\] is no text but int"),
        (np.array([TEXTS, TEXTS]), LABELS, TypeError, "one dimension"),
        (TEXTS, [*LABELS[:-1], None], UserError, "has no label"),
        (TEXTS, ["a"] * 240, UserError, "two classes"),
        ([], [], UserError, "no rows"),
        (TEXTS, [["a", "b"], *LABELS[1:]], TypeError, r"labels\[1\] is no list of labels"),
    ],
)
def test_bad_rows_are_refused_in_one_sentence(quick, texts, labels, error, says):
    with pytest.raises(error, match=says):
        TextClassifier(**quick).fit(texts, labels)


def test_nothing_is_answered_before_it_is_fitted(tmp_path):
    for act in (
        lambda: TextClassifier().predict(NEW),
        lambda: TextClassifier().score(NEW, ANSWERS),
        lambda: TextClassifier().evaluate(NEW, ANSWERS),
        lambda: TextClassifier().save(tmp_path / "run"),
    ):
        with pytest.raises(NotFittedError, match=r"call fit\(texts, labels\) or load"):
            act()
    with pytest.raises(UserError, match="no run at"):
        TextClassifier.load(tmp_path / "nothing")


def test_the_order_of_classes_is_scikit_learns_whatever_comes_first(quick):
    rows = list(zip(TEXTS, NUMBERS, strict=True))
    random.Random(1).shuffle(rows)
    texts, labels = zip(*rows, strict=True)
    classifier = TextClassifier(**quick).fit(texts, [label * -7 for label in labels])
    assert classifier.classes_.tolist() == [-14, -7, 0]
    assert classifier.predict(NEW).tolist() == [0, -7, -14]


def test_few_rows_are_cross_validated_where_that_is_asked_for(quick):
    settings = {**quick, "epochs": 2, "folds": 3}
    classifier = TextClassifier(**settings).fit(TEXTS, LABELS)
    assert open_run(classifier.path_).manifest.training.folds == 3
    assert read_held_out_rows(classifier.path_).labels.shape == (len(TEXTS),)
    with pytest.raises(UserError, match="folds and validation cannot be combined"):
        TextClassifier(**settings).fit(TEXTS, LABELS, validation=(NEW, ANSWERS))
