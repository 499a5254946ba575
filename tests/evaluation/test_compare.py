"""Comparisons of runs, from the files that evaluations leave."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

import newsdesk
from newsdesk.data.examples import Examples
from newsdesk.errors import UserError
from newsdesk.evaluation.compare import ChangedRow, write_changed_rows
from newsdesk.evaluation.evaluate import evaluate_examples, write_metrics
from newsdesk.evaluation.predicted_rows import write_evaluated_rows
from newsdesk.files import write_json

NAMES = ("Business", "Science", "Sports")
ROWS = 300
EXAMPLES = Examples(tuple(f"text {row}" for row in range(ROWS)), np.arange(ROWS) % 3, NAMES, "wire.csv")


def probabilities(wrong, surely=0.8):
    """Of a classifier that takes these rows for the class after the true one."""
    predicted = EXAMPLES.labels.copy()
    predicted[list(wrong)] = (predicted[list(wrong)] + 1) % 3
    given = np.full((ROWS, 3), (1 - surely) / 2)
    given[np.arange(ROWS), predicted] = surely
    return given


@pytest.fixture
def evaluated(tmp_path):
    """``evaluated("a", wrong=range(9))``: a folder as ``newsdesk evaluate`` leaves it."""

    def build(name, wrong, *, examples=EXAMPLES, split="test", with_text=False, surely=0.8, given=None):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        given = probabilities(wrong, surely) if given is None else given
        evaluation = evaluate_examples(given, examples, NAMES, split=split, model=name)
        file = folder / f"predictions-{split}.csv"
        write_evaluated_rows(given, examples, NAMES, file, with_text=with_text)
        write_metrics(evaluation, folder / "metrics.json")
        return folder

    return build


def test_a_large_difference_is_called_one(evaluated):
    first, other = evaluated("a", range(60)), evaluated("b", range(40, 60))
    (found,) = newsdesk.compare(first, [other])
    assert (found.rows, found.paired.only_baseline_wrong, found.paired.only_model_wrong) == (ROWS, 40, 0)
    assert found.accuracy.difference == pytest.approx(40 / ROWS)
    assert found.accuracy.excludes_zero
    assert not found.is_noise
    assert found.verdict.startswith(f"{other} is better than {first} by 13.33 points of accuracy: [")
    (turned,) = newsdesk.compare(other, [first])
    assert turned.verdict.startswith(f"{other} is better than {first} by 13.33 points")


def test_a_small_difference_is_called_noise_and_how_many_rows_would_tell(evaluated):
    (found,) = newsdesk.compare(evaluated("a", range(20)), [evaluated("b", range(3, 22))])
    assert found.is_noise
    assert "the difference of +0.33 points is within noise: [" in found.verdict
    assert found.rows_needed > ROWS
    assert f"about {found.rows_needed:,} rows" in found.verdict


def test_equal_accuracies_and_equal_predictions_are_told_apart(evaluated):
    first = evaluated("a", range(10))
    (swapped,) = newsdesk.compare(first, [evaluated("b", range(10, 20))])
    assert "as many rows were fixed as broken" in swapped.verdict
    (same,) = newsdesk.compare(first, [evaluated("c", range(10))])
    assert same.verdict == "both predict the same classes for all 300 rows"
    assert same.accuracy.difference == 0
    assert not same.accuracy.excludes_zero


def test_changed_rows_are_named_with_what_changed(evaluated, tmp_path):
    first, other = probabilities([0, 1, 2]), probabilities([2, 5])
    other[1] = [0.9, 0.05, 0.05]  # wrong before, and now wrong in another way: row 1 is Science
    found = newsdesk.compare(
        evaluated("a", (), given=first, with_text=True), [evaluated("b", (), given=other)]
    )
    assert found[0].changed == (
        ChangedRow("0", "fixed", "Business", "Science", "Business", "text 0"),
        ChangedRow("1", "other error", "Science", "Sports", "Business", "text 1"),
        ChangedRow("5", "broken", "Sports", "Sports", "Business", "text 5"),
    )
    business, science, sports = found[0].per_class
    assert (business.fixed, business.broken, business.support) == (1, 0, 100)
    assert (science.fixed, science.broken) == (0, 0)
    assert (sports.fixed, sports.broken) == (0, 1)
    write_changed_rows(found, tmp_path / "changed.csv")
    with (tmp_path / "changed.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["change"] for row in rows] == ["fixed", "other error", "broken"]
    assert (rows[2]["other"], rows[2]["text"]) == (str(tmp_path / "b"), "text 5")


def test_per_class_f1_and_likelihood_are_those_of_the_evaluations(evaluated):
    first, other = evaluated("a", range(30)), evaluated("b", range(12), surely=0.95)
    (found,) = newsdesk.compare(first, [other])
    for folder, side in ((first, "first"), (other, "other")):
        metrics = json.loads((folder / "metrics.json").read_text())["test"]["metrics"]
        assert getattr(found.accuracy, side) == pytest.approx(metrics["accuracy"])
        assert getattr(found.macro_f1, side) == pytest.approx(metrics["macro_f1"])
        assert getattr(found.negative_log_likelihood, side) == pytest.approx(
            metrics["negative_log_likelihood"], abs=1e-5
        )
        f1 = {entry["label"]: entry["f1"] for entry in metrics["per_class"]}
        assert {entry.label: getattr(entry, f"{side}_f1") for entry in found.per_class} == pytest.approx(f1)


def test_a_probability_written_as_zero_costs_half_a_digit_not_infinity(evaluated):
    certain = probabilities([0], surely=1.0)
    (found,) = newsdesk.compare(evaluated("a", ()), [evaluated("b", (), given=certain)])
    assert found.negative_log_likelihood.other == pytest.approx(-np.log(5e-7) / ROWS)


def test_several_are_compared_with_the_first_and_p_values_adjusted(evaluated):
    first = evaluated("a", range(30))
    others = [evaluated("b", range(10, 30)), evaluated("c", range(9, 33))]
    found = newsdesk.compare(first, others)
    assert [each.other for each in found] == list(map(str, others))
    assert found[0].adjusted_p_value == pytest.approx(2 * found[0].paired.p_value)
    alone = newsdesk.compare(first, [others[1]])[0]
    assert found[1].rows_needed > alone.rows_needed


def test_the_dictionary_is_json_without_texts(evaluated):
    pair = evaluated("a", range(30), with_text=True), [evaluated("b", range(12))]
    content = json.loads(json.dumps(newsdesk.compare(*pair)[0].to_dict()))
    assert content["accuracy"]["difference"] == pytest.approx(0.06)
    assert content["changed"][0]["change"] == "fixed"
    assert "text 12" not in json.dumps(content)


def test_files_that_stand_alone_are_compared_by_their_rows(evaluated, tmp_path):
    first = shutil.copy(evaluated("a", range(9)) / "predictions-test.csv", tmp_path / "mine.csv")
    text = (evaluated("b", range(12)) / "predictions-test.csv").read_text()
    other = tmp_path / "theirs.csv"
    other.write_text("\n".join(",".join(line.split(",")[:3]) for line in text.splitlines()))
    (found,) = newsdesk.compare(first, [other])
    assert found.paired.only_model_wrong == 3
    assert found.negative_log_likelihood is None
    assert found.to_dict()["negative_log_likelihood"] is None


@pytest.mark.parametrize("as_file", [False, True])
def test_other_rows_are_refused_by_their_fingerprint(evaluated, as_file):
    changed = Examples(("another", *EXAMPLES.texts[1:]), EXAMPLES.labels, NAMES, "desk.csv")
    first, other = evaluated("a", ()), evaluated("b", (), examples=changed)
    if as_file:
        other = other / "predictions-test.csv"
    with pytest.raises(UserError, match="not evaluated on the same rows") as refusal:
        newsdesk.compare(first, [other])
    assert "--data" in str(refusal.value)
    assert "desk.csv" in str(refusal.value)


def test_rows_without_fingerprint_are_refused_by_their_classes(evaluated, tmp_path):
    file = shutil.copy(evaluated("a", ()) / "predictions-test.csv", tmp_path / "mine.csv")
    file.write_text(file.read_text().replace("7,Science,Science", "7,Sports,Science"))
    with pytest.raises(UserError, match="not evaluated on the same rows"):
        newsdesk.compare(tmp_path / "a", [file])


def test_a_run_that_was_not_evaluated_says_how(evaluated):
    first, other = evaluated("a", ()), evaluated("b", (), split="dev")
    with pytest.raises(UserError, match="no predictions on 'test'") as refusal:
        newsdesk.compare(first, [other])
    assert "evaluated on dev" in str(refusal.value)
    assert "newsdesk evaluate" in str(refusal.value)
    assert newsdesk.compare(other, [other], split="dev")[0].rows == ROWS


def test_what_is_no_evaluation_is_refused(evaluated, tmp_path):
    first = evaluated("a", ())
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no predictions on 'test'"):
        newsdesk.compare(first, [empty])
    with pytest.raises(UserError, match="nothing to compare at"):
        newsdesk.compare(first, [tmp_path / "missing"])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("row,label\n0,Sports\n", "no column predicted_label, true_label"),
        ("row,true_label,predicted_label\n", "no rows"),
        ("row,true_label,predicted_label,p(Sports)\n0,Sports,Sports,much\n", "could not convert"),
    ],
)
def test_a_file_that_no_evaluation_wrote_is_refused(evaluated, tmp_path, content, found):
    (tmp_path / "other.csv").write_text(content)
    with pytest.raises(UserError, match="is not a file of predictions") as refusal:
        newsdesk.compare(evaluated("a", ()), [tmp_path / "other.csv"])
    assert found in str(refusal.value)


def test_predictions_that_are_not_those_measured_are_refused(evaluated):
    first, other = evaluated("a", range(9)), evaluated("b", range(12))
    shutil.copy(first / "predictions-test.csv", other / "predictions-test.csv")
    with pytest.raises(UserError, match=r"metrics.json has 96.00%"):
        newsdesk.compare(first, [other])
    write_json(other / "metrics.json", {})
    with pytest.raises(UserError, match="it was not evaluated"):
        newsdesk.compare(first, [other])
