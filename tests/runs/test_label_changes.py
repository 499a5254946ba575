"""Labels renamed and retired in a finished run: what is exact stays exact, and everything else follows."""

from __future__ import annotations

from shutil import copytree

import numpy as np
import pytest

import newsdesk as package
from newsdesk.errors import UserError
from newsdesk.runs.calibration import read_calibration, read_held_out_rows
from newsdesk.runs.folder import open_run
from newsdesk.runs.label_changes import LabelChanges, change_labels
from newsdesk.runs.labels import Labels
from newsdesk.runs.linear_model import LinearModel
from topics import topical_rows

pytest.importorskip("torch")

NAMES = ("Business", "Science", "Sports")
TEXTS = [text for _, text in topical_rows(30, seed=12)]


@pytest.fixture(scope="module")
def run(tiny_base, topical_csv, tmp_path_factory):
    """A run of three classes with all that a run can hold; nobody may change it."""
    flags = {
        "data.train": str(topical_csv),
        "data.validation_share": 0.3,
        "model.base": str(tiny_base("bert")),
    }
    flags |= {"model.max_length": 32, "model.dropout": 0.0, "model.linear": "stack", "training.epochs": 2.0}
    flags |= {"training.learning_rate": 2e-2, "training.precision": "float32", "training.baseline": False}
    made = package.train(out=tmp_path_factory.mktemp("run") / "run", flags=flags)
    package.evaluate(made.path, str(topical_csv))
    return open_run(made.path)


def changed(run, out, *, renamed=(), retired=(), overwrite=False):
    changes = LabelChanges.of(run.labels, renamed, retired)
    return change_labels(run, out, changes, overwrite=overwrite)


def test_renamed_every_answer_is_the_same_under_another_name(run, tmp_path):
    made, notes = changed(run, tmp_path / "out", renamed=["sports=Sport = \u00fcberall"])
    assert made.labels.names == ("Business", "Science", "Sport = \u00fcberall")
    assert made.labels.was == dict(zip(NAMES, made.labels.names, strict=True))
    before, after = package.load(run.path), package.load(made.path)
    np.testing.assert_array_equal(before.predict_probabilities(TEXTS), after.predict_probabilities(TEXTS))
    assert before.decision_rule(abstain=0.2) == after.decision_rule(abstain=0.2)
    same = ("adapter/adapter_model.safetensors", "calibration.json", "linear_model.safetensors", "log.jsonl")
    assert all(run.manifest.files[name] == made.manifest.files[name] for name in same)
    (note,) = notes
    assert "its figures: newsdesk evaluate measures it again" in note
    assert not made.metrics.exists()
    assert open_run(run.path).labels.names == NAMES


def test_retired_the_others_keep_their_conditional_probabilities(run, tmp_path):
    made, notes = changed(run, tmp_path / "out", retired=["Science"])
    assert made.labels.names == ("Business", "Sports")
    before, after = package.load(run.path), package.load(made.path)
    logits = before.predict_logits(TEXTS)
    np.testing.assert_array_equal(after.predict_logits(TEXTS), logits[:, [0, 2]])
    kept, rows = read_held_out_rows(made.path), read_held_out_rows(run.path)
    stays = rows.labels != 1
    np.testing.assert_array_equal(kept.logits, rows.logits[stays][:, [0, 2]])
    np.testing.assert_array_equal(kept.labels, rows.labels[stays] // 2)
    np.testing.assert_array_equal(kept.distances, rows.distances[stays])
    np.testing.assert_array_equal(kept.linear, rows.linear[stays][:, [0, 2]])
    calibration = read_calibration(made.path)
    assert calibration.rows == stays.sum()
    assert calibration.source.endswith(", without Science")
    linear = LinearModel.of_folder(made.path, 2)
    assert linear.stack == LinearModel.of_folder(run.path, 3).stack
    assert "texts of Science still count as on topic" in notes
    assert after.decision_rule(abstain=0.2) is not None


def test_its_training_rows_are_read_with_the_labels_of_now(run, tmp_path):
    once, _ = changed(run, tmp_path / "once", renamed=["Sports=Games"], retired=["Science"])
    made, _ = changed(once, tmp_path / "twice", renamed=["games=Play"])
    assert made.labels.was == {"Business": "Business", "Science": "", "Sports": "Play"}
    rows = read_calibration(made.path).rows
    package.calibrate(made.path)
    assert read_calibration(made.path).rows == rows
    (tmp_path / "more.csv").write_text("label,text\nPlay,goal coach\nArts,opera stage\nArts,opera\n")
    grown = package.train(
        out=tmp_path / "grown",
        flags={"training.start_from": str(made.path), "data.train": str(tmp_path / "more.csv")},
        overrides=["training.growing_rows=32", "training.baseline=false"],
    )
    assert grown.labels.names == ("Business", "Play", "Arts")
    assert grown.manifest.grown.rows > 50
    package.calibrate(grown.path)


def test_in_place_only_where_it_is_asked_for(run, tmp_path):
    copy = open_run(copytree(run.path, tmp_path / "run"))
    with pytest.raises(UserError, match="not empty"):
        changed(copy, copy.path, renamed=["Sports=Games"])
    made, _ = changed(copy, copy.path, renamed=["Sports=Games"], overwrite=True)
    assert open_run(copy.path).labels.names == ("Business", "Science", "Games")
    assert not (made.path / "predictions-test.csv").exists()


@pytest.mark.parametrize(
    ("renamed", "retired", "wrong"),
    [
        (["Arts=Culture"], [], "no label 'Arts'"),
        ([], ["Arts"], "no label 'Arts'"),
        (["Sports=Business"], [], "cannot get one name"),
        (["Sports=X", "Science=X"], [], "cannot get one name"),
        (["Sports="], [], "needs a name"),
        (["Sports"], [], "takes OLD=NEW"),
        ([], ["Sports", "Science"], "2 labels at least"),
    ],
)
def test_what_makes_no_sense_is_refused(run, renamed, retired, wrong):
    with pytest.raises(UserError, match=wrong):
        LabelChanges.of(run.labels, renamed, retired)


def test_numbers_that_become_names_are_read_as_text(run):
    numbers = Labels(("1", "2", "3"), run.labels.layout, 32, kind="integer")
    assert LabelChanges.of(numbers, ["1=4"]).of_labels(numbers).kind == "integer"
    assert LabelChanges.of(numbers, ["1=one"]).of_labels(numbers).kind == "text"


def test_the_verb_shows_changes_and_refuses_to_merge(run, tmp_path, monkeypatch, capsys):
    from newsdesk import cli

    def verb(*arguments):
        monkeypatch.setattr("sys.argv", ["newsdesk", "labels", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    code, out, _ = verb(run.path)
    assert (code, out.splitlines()[0]) == (0, "3 labels")
    assert out.splitlines()[1].split()[:3] == ["label", "training", "rows"]
    code, out, err = verb(run.path, "--rename", "Sports=Games", "--out", tmp_path / "out")
    assert (code, out) == (0, f"run saved to {tmp_path / 'out'}; its labels are Business, Science, Games\n")
    code, _, err = verb(run.path, "--merge", "Sports,Science=Other", "--out", tmp_path / "merged")
    assert (code, "a merge is not exact without training" in err) == (1, True)
    assert verb(run.path, "--rename", "Sports=Games")[0] == 2
    assert verb(run.path, "--out", tmp_path / "none")[0] == 2
