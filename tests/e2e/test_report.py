"""``newsdesk report``: a page of a run, evaluated first where need be, its texts proven or left out."""

from __future__ import annotations

import csv
import json

import pytest

from newsdesk.prediction.classifier import Classifier


@pytest.fixture(scope="module")
def texts(desk):
    with desk.test.open(newline="", encoding="utf-8") as stream:
        return [row["words"] for row in csv.DictReader(stream)]


@pytest.fixture
def hard(desk, tmp_path):
    """The test rows, every tenth of them under a wrong class: so there are errors to be told."""
    with desk.test.open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    for row in rows[::10]:
        row[2] = "Sports" if row[2] != "Sports" else "Business"
    with (tmp_path / "hard.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return tmp_path / "hard.csv"


def test_a_run_is_evaluated_first_and_its_errors_are_quoted_with_the_words_that_decided(
    newsdesk, run, hard, texts, tmp_path
):
    outcome = newsdesk("report", run, "--data", hard, "--plots", tmp_path / "plots")
    assert outcome.code == 0, outcome.err
    page = (run / "report-test.html").read_text()
    assert f"{run / 'report-test.html'}" in outcome.out
    accuracy = json.loads((run / "metrics.json").read_text())["test"]["metrics"]["accuracy"]
    assert f"{100 * accuracy:.2f}\N{NO-BREAK SPACE}%" in page
    assert '<mark class="for' in page
    assert len(list((tmp_path / "plots").glob("*.png"))) == 7


def test_a_baseline_that_was_measured_is_told_in_report_and_card(newsdesk, run, hard):
    evaluated = newsdesk("evaluate", run, "--data", hard, "--baseline", "--json")
    outcome = newsdesk("report", run)
    assert outcome.code == 0, outcome.err
    page, card = (run / "report-test.html").read_text(), (run / "README.md").read_text()
    baseline = evaluated.json["baseline"]
    assert f"{100 * baseline['accuracy']:.2f}\N{NO-BREAK SPACE}%" in page
    for told in (page, card):
        assert "linear SVM" in told
    low, high = (f"{100 * end:.2f}" for end in baseline["accuracy_interval"])
    assert f"{low} to {high} %" in card


def test_rows_that_are_still_there_are_found_again(newsdesk, run, hard):
    newsdesk("evaluate", run, "--data", hard)
    outcome = newsdesk("report", run, "--json")
    assert outcome.code == 0
    assert not [gap for gap in outcome.json["missing"] if "text" in gap]
    assert "<blockquote dir=" in (run / "report-test.html").read_text()
    hard.unlink()
    gaps = newsdesk("report", run, "--json").json["missing"]
    assert [gap for gap in gaps if gap.startswith("the evaluated texts are not available")]
    assert "<blockquote" not in (run / "report-test.html").read_text()


def test_without_texts_no_text_is_copied(newsdesk, run, hard, texts, tmp_path):
    outcome = newsdesk(
        "report", run, "--data", hard, "--without-texts", "--out", tmp_path / "page.html", "--json"
    )
    assert outcome.code == 0
    page = (tmp_path / "page.html").read_text()
    assert "likely label error" in page
    assert not [text for text in texts if len(text.split()) > 2 and text in page]
    assert outcome.json["bytes"] == len(page.encode())


def test_other_rows_than_the_evaluated_ones_are_refused(newsdesk, run, desk, hard):
    newsdesk("evaluate", run, "--data", desk.test)
    outcome = newsdesk("report", run, "--data", hard)
    assert outcome.code == 1
    assert "not the rows that the run was evaluated on" in outcome.err
    assert not (run / "report-test.html").exists()


def test_a_run_never_evaluated_still_has_its_training_to_tell(newsdesk, run):
    outcome = newsdesk("report", run)
    assert outcome.code == 0
    assert f"newsdesk report {run} --split test --data NAME|PATH" in outcome.err
    assert 'id="loss-title"' in (run / "report-test.html").read_text()


def test_a_report_does_not_change_what_the_run_is_taken_for(newsdesk, run, desk):
    from newsdesk import load

    newsdesk("evaluate", run, "--data", desk.test)
    before: Classifier = load(run, engine="torch")
    newsdesk("report", run, "--without-texts")
    assert load(run, engine="torch").fingerprint == before.fingerprint
