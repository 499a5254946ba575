"""What a report tells is what the run's files say, with intervals, and it says what is not there."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from newsdesk.errors import UserError
from newsdesk.evaluation.evaluate import evaluate_examples, read_metrics, write_metrics
from newsdesk.evaluation.predicted_rows import write_evaluated_rows
from newsdesk.metrics import evaluate_probabilities, expected_calibration_error
from newsdesk.reports.content import (
    EvaluationContent,
    ReportContent,
    evaluated_texts,
    gather,
    without_temperature,
)
from newsdesk.reports.parts import QUOTED, Lengths, Missing
from report_runs import EvaluatedRun, build_run, softmax


def no_classifier():
    raise UserError("there is no base model here", fix="fetch it")


def gathered(made: EvaluatedRun, split: str = "test", *, quote: bool = True) -> ReportContent:
    return gather(made.run, split, texts=made.rows.texts, classifier=no_classifier, quote=quote)


def evaluation_in(content: ReportContent) -> EvaluationContent:
    assert isinstance(content.evaluation, EvaluationContent)
    return content.evaluation


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> EvaluatedRun:
    return build_run(tmp_path_factory.mktemp("run") / "wire")


@pytest.fixture(scope="module")
def told(made) -> EvaluationContent:
    return evaluation_in(gathered(made))


def test_figures_are_those_of_the_rows_and_lie_in_their_intervals(made, told):
    expected = evaluate_probabilities(made.probabilities, made.rows.labels, made.rows.label_names)
    assert told.measured.metrics == expected
    assert set(told.intervals) == {"macro_f1", "negative_log_likelihood", "brier_score"}
    for name, interval in told.intervals.items():
        low, high = interval
        assert low < getattr(expected, name) < high
        assert 0.01 < high - low < 0.3  # of 400 rows


def test_macro_f1s_interval_is_about_accuracys_where_classes_are_equal(told):
    assert told.intervals["macro_f1"] == pytest.approx(told.measured.metrics.accuracy_interval, abs=0.01)


def test_the_most_confident_errors_come_first_with_their_texts(made, told):
    rows = [error.row for error in told.errors]
    assert rows == list(told.measured.metrics.most_confident_errors[:QUOTED])
    assert all(error.text == made.rows.texts[error.row] for error in told.errors)
    for error in told.errors:
        assert error.predicted_probability == pytest.approx(made.probabilities[error.row].max(), abs=1e-6)


def test_a_row_labelled_against_all_evidence_is_suspected_most(tmp_path):
    made = build_run(tmp_path / "wire")
    names = made.rows.label_names
    row = int(np.flatnonzero(made.probabilities.argmax(axis=1) != made.rows.labels)[-1])
    predicted = int(made.probabilities[row].argmax())
    made.probabilities[row] = np.where(np.arange(4) == predicted, 0.997, 0.001)
    write_evaluated_rows(made.probabilities, made.rows, names, made.run.path / "predictions-test.csv")
    told = evaluation_in(gathered(made))
    first = told.suspects.rows[0]
    assert (first.row, first.predicted_label) == (row, names[predicted])
    assert first.true_label == names[int(made.rows.labels[row])]
    assert 0 < told.suspects.noise < 0.2


def test_lengths_part_all_rows_and_count_what_is_cut(made, told):
    assert isinstance(told.lengths, Lengths)
    bins = told.lengths.bins
    assert sum(one.rows for one in bins) == 400
    assert sum(one.rows * one.accuracy for one in bins) == pytest.approx(told.measured.metrics.correct)
    assert all(one.longest < other.shortest for one, other in pairwise(bins))
    lengths = np.array([len(text.split()) for text in made.rows.texts])
    assert told.lengths.cut == pytest.approx((lengths > 16).mean())


def test_texts_that_may_not_be_copied_are_left_out_but_their_lengths_count(made):
    content = gathered(made, quote=False)
    told = evaluation_in(content)
    assert [row.text for row in (*told.errors, *told.suspects.rows)] == [None] * (
        len(told.errors) + len(told.suspects.rows)
    )
    assert isinstance(told.lengths, Lengths)
    assert told.texts not in content.missing  # nobody needs to be told what they asked for


def test_without_the_classifier_the_words_are_missing_and_the_report_says_why(told):
    assert told.words == Missing(
        "the words that decided are not shown: there is no base model here; fetch it"
    )
    assert all(error.words is None for error in told.errors)


def test_a_run_that_was_not_evaluated_says_what_to_run(made, tmp_path):
    bare = build_run(tmp_path / "wire")
    bare.run.metrics.unlink()
    content = gathered(bare)
    assert isinstance(content.evaluation, Missing)
    assert f"newsdesk report {bare.run.path} --split test --data" in str(content.evaluation.command)


def test_another_split_than_the_evaluated_ones_is_refused(made):
    with pytest.raises(UserError, match="not evaluated on a split called 'tset'") as caught:
        gathered(made, "tset")
    assert "test" in str(caught.value.found)


def test_predictions_of_another_evaluation_are_refused(tmp_path):
    made = build_run(tmp_path / "wire")
    path = made.run.path / "predictions-test.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-3]))
    with pytest.raises(UserError, match="predictions"):
        gathered(made)


def test_predictions_without_a_classs_column_are_damaged(tmp_path):
    made = build_run(tmp_path / "wire")
    path = made.run.path / "predictions-test.csv"
    path.write_text(path.read_text().replace("p(Sports)", "p(Sport)"))
    with pytest.raises(UserError, match="damaged"):
        gathered(made)


def test_damaged_metrics_are_reported(tmp_path):
    made = build_run(tmp_path / "wire")
    content = json.loads(made.run.metrics.read_text())
    del content["test"]["metrics"]["confusion"]
    made.run.metrics.write_text(json.dumps(content))
    with pytest.raises(UserError, match="damaged"):
        gathered(made)


def test_an_adapter_trained_elsewhere_has_no_training_to_repeat(tmp_path):
    made = build_run(tmp_path / "wire")
    made.run.log.unlink()
    made.run.seal(replace(made.run.manifest, data=None, training=None))
    content = gathered(made)
    assert isinstance(content.training, Missing)
    assert content.origin in content.missing
    assert not any(" train " in command for command in content.commands)


def test_probabilities_before_the_temperature_are_found_again():
    logits = np.random.default_rng(1).normal(size=(500, 3)) * 4
    found = without_temperature(softmax(logits / 2.5).round(6), 2.5)
    assert found == pytest.approx(softmax(logits), abs=2e-3)


def test_confidence_before_the_temperature_is_shown_beside_that_after_it(made, tmp_path):
    scaled = build_run(tmp_path / "wire")
    logits = 3 * np.log(scaled.probabilities)
    calibrated, raw = softmax(logits / 3), softmax(logits)
    names = scaled.rows.label_names
    evaluation = evaluate_examples(
        calibrated, scaled.rows, names, split="test", model="wire", temperature=3.0, uncalibrated=raw
    )
    write_metrics(evaluation, scaled.run.metrics)
    told = evaluation_in(gathered(scaled))
    assert not isinstance(told.uncalibrated, Missing)
    for bins, probabilities in ((told.calibrated, calibrated), (told.uncalibrated, raw)):
        assert sum(one.rows for one in bins) == 400
        gap = sum(one.rows * abs(one.mean_confidence - one.accuracy) for one in bins) / 400
        correct = probabilities.argmax(axis=1) == scaled.rows.labels
        assert gap == pytest.approx(expected_calibration_error(probabilities.max(axis=1), correct), abs=2e-3)


def test_a_run_without_a_temperature_says_how_to_fit_one(made, told):
    assert isinstance(told.uncalibrated, Missing)
    assert told.uncalibrated.command == f"newsdesk calibrate {made.run.path}"


def test_rows_that_are_not_the_evaluated_ones_are_never_quoted(tmp_path):
    made = build_run(tmp_path / "wire")
    path = tmp_path / "rows.csv"
    texts, names = list(made.rows.texts), made.rows.label_names
    measured = replace(read_metrics(made.run.metrics)["test"], source=str(path))
    for text, is_evaluated in ((texts[0], True), ("another", False)):
        labels = [names[label] for label in made.rows.labels]
        write_rows(path, [("text", "label"), *zip([text, *texts[1:]], labels, strict=True)])
        for data in (None, str(path)):
            if is_evaluated:
                assert evaluated_texts(made.run, measured, data) == made.rows.texts
            elif data is None:
                found = evaluated_texts(made.run, measured, data)
                assert isinstance(found, Missing)
                assert "not the rows" in found.reason
            else:
                with pytest.raises(UserError, match="not the rows") as caught:
                    evaluated_texts(made.run, measured, data)
                assert "--data" in str(caught.value.fix)


def write_rows(path: Path, rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def test_texts_kept_by_the_evaluation_serve_where_its_rows_are_gone(tmp_path):
    made = build_run(tmp_path / "wire")
    path = made.run.path / "predictions-test.csv"
    write_evaluated_rows(made.probabilities, made.rows, made.rows.label_names, path, with_text=True)
    content = gather(made.run, "test", texts=Missing("gone"), classifier=no_classifier, quote=True)
    told = evaluation_in(content)
    assert told.errors[0].text == made.rows.texts[told.errors[0].row]


def test_commands_to_repeat_it_name_recipe_rows_and_split(made):
    first, second, third = gathered(made).commands
    assert first == f"newsdesk train --recipe {made.run.recipe} --out wire-again"
    assert second == "newsdesk evaluate wire-again --data wire-test.csv --split test"
    assert third == "newsdesk report wire-again --split test"
    assert Path(made.run.recipe).is_file()
