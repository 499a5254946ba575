from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from newsdesk.data.examples import Examples
from newsdesk.errors import UserError
from newsdesk.evaluation.evaluate import (
    evaluate_examples,
    read_metrics,
    write_metrics,
)
from newsdesk.evaluation.predicted_rows import predictions_path, write_evaluated_rows
from newsdesk.metrics import evaluate_probabilities
from newsdesk.training.linear_baseline import BaselineResult

NAMES = ("Sports", 'Sci,"Tech"')
ROWS = Examples(("one, two", 'three\n"four"', "five"), np.array([0, 1, 0]), NAMES, "wire.csv")
PROBABILITIES = np.array([[0.9, 0.1], [0.25, 0.75], [1 / 3, 2 / 3]], dtype=np.float32)
BASELINE = BaselineResult(1 / 3, (0.06, 0.79), 1.23, "TF-IDF", ("Sports", "Sports", "weather"))


def evaluation(split="test", **changes):
    arguments = {"split": split, "model": "runs/first"} | changes
    return evaluate_examples(PROBABILITIES, ROWS, NAMES, **arguments)


def test_an_evaluation_says_what_was_measured_on_what():
    content = evaluation().to_dict()
    assert content["split"] == "test"
    assert content["source"] == "wire.csv"
    assert content["fingerprint"] == ROWS.fingerprint()
    assert content["model"] == "runs/first"
    assert content["metrics"]["accuracy"] == pytest.approx(2 / 3)
    assert content["metrics"]["most_confident_errors"] == [2]
    assert "baseline" not in content


def test_calibration_is_told_without_and_with_the_temperature():
    flatter = np.array([[0.6, 0.4], [0.4, 0.6], [0.5, 0.5]])
    content = evaluation(temperature=1.7, uncalibrated=flatter).to_dict()
    assert content["calibration"]["temperature"] == 1.7
    expected = evaluate_probabilities(flatter, ROWS.labels, NAMES)
    loss = content["calibration"]["negative_log_likelihood"]
    assert loss["before"] == expected.negative_log_likelihood
    assert loss["after"] == content["metrics"]["negative_log_likelihood"] != loss["before"]
    assert [entry["rows"] for entry in content["calibration"]["reliability"]] == [1, 1, 1]
    assert content["risk_coverage"]["curve"][-1] == [1.0, pytest.approx(1 / 3)]
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_data_may_name_the_classes_in_another_order_than_the_model():
    turned = Examples(ROWS.texts, 1 - ROWS.labels, NAMES[::-1], "wire.csv")
    metrics = evaluate_examples(PROBABILITIES, turned, NAMES, split="test", model="m").metrics
    assert metrics == evaluation().metrics


def test_a_baseline_is_compared_row_by_row():
    content = evaluation(baseline=BASELINE).to_dict()
    assert content["baseline"]["accuracy"] == pytest.approx(1 / 3)
    comparison = content["comparison"]
    assert (comparison["both_right"], comparison["both_wrong"]) == (1, 1)
    assert (comparison["only_model_wrong"], comparison["only_baseline_wrong"]) == (0, 1)


def test_the_most_confident_errors_are_named_with_their_texts_but_not_stored():
    (error,) = evaluation().errors
    assert (error.row, error.true_label, error.predicted_label) == (2, "Sports", 'Sci,"Tech"')
    assert error.probability == pytest.approx(2 / 3)
    assert error.text == "five"
    assert "errors" not in evaluation().to_dict()


def test_metrics_are_kept_by_split_and_an_earlier_one_of_the_same_split_is_replaced(tmp_path):
    path = tmp_path / "metrics.json"
    assert read_metrics(path) == {}
    write_metrics(evaluation("validation"), path)
    write_metrics(evaluation("test", model="old"), path)
    write_metrics(evaluation("test", model="new", baseline=BASELINE), path)
    content = read_metrics(path)
    assert list(content) == ["validation", "test"]
    assert content["test"].model == "new"
    assert content["test"].baseline == replace(BASELINE, predicted=())
    assert content["validation"] == replace(evaluation("validation"), errors=())
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("damaged", ["{", "[1, 2]", "", "\udcff"])
def test_a_file_that_is_not_ours_is_reported_and_left_alone(tmp_path, damaged):
    path = tmp_path / "metrics.json"
    content = damaged.encode(errors="surrogateescape")
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.json is missing or damaged") as caught:
        write_metrics(evaluation(), path)
    assert "move it away" in str(caught.value.fix)
    assert path.read_bytes() == content


def test_every_rows_probabilities_are_written(tmp_path):
    path = tmp_path / "predictions-test.csv"
    write_evaluated_rows(PROBABILITIES, ROWS, NAMES, path)
    with path.open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream, strict=True)
    assert header == ["row", "true_label", "predicted_label", "p(Sports)", 'p(Sci,"Tech")']
    assert rows == [
        ["0", "Sports", "Sports", "0.9", "0.1"],
        ["1", NAMES[1], NAMES[1], "0.25", "0.75"],
        ["2", "Sports", NAMES[1], "0.333333", "0.666667"],
    ]


def test_texts_are_written_only_when_asked_for(tmp_path):
    path = tmp_path / "rows.csv"
    write_evaluated_rows(PROBABILITIES, ROWS, NAMES, path)
    assert "one, two" not in path.read_text()
    write_evaluated_rows(PROBABILITIES, ROWS, NAMES, path, with_text=True)
    with path.open(newline="", encoding="utf-8") as stream:
        assert [row["text"] for row in csv.DictReader(stream)] == list(ROWS.texts)


def test_a_failure_while_writing_rows_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("old")
    with pytest.raises(ValueError, match="shorter"):
        write_evaluated_rows(PROBABILITIES[:2], ROWS, NAMES, path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.csv"]


def test_the_predictions_file_is_named_for_its_split(tmp_path):
    assert predictions_path(tmp_path, "test-2.0_é").name == "predictions-test-2.0_é.csv"


@pytest.mark.parametrize("split", ["", "a/b", "../up", "train[:10%]", "a b", "a\n"])
def test_a_split_name_that_makes_no_file_name_is_refused(tmp_path, split):
    with pytest.raises(UserError, match="part of a file's name"):
        predictions_path(tmp_path, split)


def test_a_split_cannot_take_the_name_of_the_files_own_version(tmp_path):
    with pytest.raises(UserError, match="cannot be called 'format'"):
        predictions_path(tmp_path, "format")


def test_the_content_is_json_without_special_numbers():
    certain = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    content = evaluate_examples(certain, ROWS, NAMES, split="test", model="m", baseline=BASELINE).to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
