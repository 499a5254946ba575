"""``newsdesk compare``: on a terminal, as JSON, and with ``--data`` for runs that were not evaluated yet."""

from __future__ import annotations

import csv
import shutil

import pytest


@pytest.fixture
def pair(newsdesk, desk, run, tmp_path):
    """An evaluated run, and a copy some of whose predictions were made wrong by hand."""
    assert newsdesk("evaluate", run, "--data", desk.test, "--with-text").code == 0
    file = tmp_path / "altered.csv"
    with (run / "predictions-test.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows[:20]:
        row["predicted_label"] = "Science" if row["true_label"] == "Sports" else "Sports"
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return run, file


def test_the_table_ends_in_a_verdict_and_shows_rows_that_changed(newsdesk, pair, tmp_path):
    outcome = newsdesk("compare", *pair, "--csv", tmp_path / "changed.csv")
    assert outcome.code == 0, outcome.err
    assert f"{pair[0]} is better than {pair[1]} by 33.33 points of accuracy" in outcome.lines[-1]
    assert sum(line.startswith("broken, row ") for line in outcome.lines) == 3
    assert any(line.startswith("accuracy") and "-33.33 points" in line for line in outcome.lines)
    with (tmp_path / "changed.csv").open(newline="") as stream:
        texts = [row["text"] for row in csv.DictReader(stream)]
    assert len(texts) == 20
    assert f"  {texts[0]}" in outcome.lines
    several = newsdesk("compare", pair[0], pair[1], pair[0])
    assert "(Holm)" in several.out
    assert "both predict the same classes for all 60 rows" in several.out


def test_json_is_one_document(newsdesk, pair):
    outcome = newsdesk("compare", *pair, "--json")
    (found,) = outcome.json["comparisons"]
    assert (found["rows"], found["is_noise"], found["paired"]["only_model_wrong"]) == (60, False, 20)
    assert (outcome.code, outcome.err) == (0, "")


def test_data_evaluates_what_was_not_evaluated_yet_and_nothing_else(newsdesk, desk, run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    refused = newsdesk("compare", run, other)
    assert (refused.code, "--data" in refused.err) == (1, True)
    outcome = newsdesk("compare", run, other, "--data", desk.test)
    assert outcome.code == 0, outcome.err
    assert outcome.lines[-1] == "both predict the same classes for all 60 rows"
    evaluated = (run / "metrics.json").stat().st_mtime_ns
    assert newsdesk("compare", run, other, "--data", desk.test, "--json").code == 0
    assert (run / "metrics.json").stat().st_mtime_ns == evaluated
    assert newsdesk("compare", run, other).code == 0


def test_data_that_a_run_was_not_evaluated_on_replaces_nothing(newsdesk, desk, pair):
    run, _ = pair
    before = (run / "metrics.json").read_bytes()
    outcome = newsdesk("compare", run, run, "--data", desk.train)
    assert (outcome.code, outcome.out) == (1, "")
    assert "evaluated on other rows under the name 'test'" in outcome.err
    assert (run / "metrics.json").read_bytes() == before


def test_texts_of_the_data_are_shown_beside_a_file_of_predictions(newsdesk, desk, pair):
    run, file = pair
    outcome = newsdesk("compare", run, file, "--data", desk.test)
    assert outcome.code == 0
    assert outcome.lines[-1].startswith(f"{run} is better")


def test_one_run_alone_is_wrong_usage(newsdesk, run):
    assert newsdesk("compare", run).code == 2


def test_a_run_that_learned_from_the_rows_is_named(newsdesk, desk, run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    (other / "known_texts.safetensors").unlink()
    outcome = newsdesk("compare", run, other, "--data", desk.train, "--split", "learned")
    assert outcome.code == 0, outcome.err
    assert f"note: {run}: 100.00 % of these rows are not new to the run" in outcome.out
