"""``newsdesk evaluate``: figures on standard output, and the same figures kept in the run."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import pytest

from newsdesk.runs.folder import RunFolder


def column(path, name):
    with path.open(newline="") as stream:
        return [row[name] for row in csv.DictReader(stream)]


def manifest_of(run):
    return json.loads((run / "manifest.json").read_text())


def test_the_table_shows_the_accuracy_and_the_run_keeps_what_was_found(newsdesk, desk, run):
    outcome = newsdesk("evaluate", run, "--data", desk.test)
    assert outcome.code == 0
    metrics = json.loads((run / "metrics.json").read_text())["test"]["metrics"]
    assert metrics["accuracy"] > 0.9
    assert outcome.lines[0].split()[:2] == ["accuracy", f"{100 * metrics['accuracy']:.2f}"]
    assert str(run / "predictions-test.csv") in outcome.err
    with (run / "predictions-test.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    right = sum(row["true_label"] == row["predicted_label"] for row in rows)
    assert right / len(rows) == metrics["accuracy"]
    assert [row["row"] for row in rows] == [str(number) for number in range(60)]


def test_the_run_is_sealed_again_with_its_new_files(newsdesk, desk, run, hashes_of):
    before = manifest_of(run)
    newsdesk("evaluate", run, "--data", desk.test)
    after = manifest_of(run)
    assert set(after["files"]) - set(before["files"]) == {"metrics.json", "predictions-test.csv"}
    assert after["files"] == hashes_of(run, after["files"])
    assert {key: after[key] for key in before if key != "files"} == {
        key: before[key] for key in before if key != "files"
    }


def test_json_is_one_document_and_nothing_else(newsdesk, desk, run):
    outcome = newsdesk("evaluate", run, "--data", desk.test, "--json")
    assert outcome.json == json.loads((run / "metrics.json").read_text())["test"]
    assert outcome.err == ""


def test_splits_stand_side_by_side(newsdesk, desk, run):
    newsdesk("evaluate", run, "--data", desk.test)
    newsdesk("evaluate", run, "--data", desk.train, "--split", "seen", "--with-text")
    assert set(json.loads((run / "metrics.json").read_text())) == {"format", "test", "seen"}
    assert column(run / "predictions-seen.csv", "text") == column(desk.train, "words")


def test_the_baseline_learns_from_the_runs_own_rows(newsdesk, desk, run):
    outcome = newsdesk("evaluate", run, "--data", desk.test, "--baseline", "--json")
    assert outcome.json["baseline"]["accuracy"] > 0.9
    assert "p_value" in outcome.json["comparison"]
    table = newsdesk("evaluate", run, "--data", desk.test, "--baseline").out
    assert "model minus baseline" in table


def test_a_baseline_on_other_rows_than_the_runs_is_refused(newsdesk, desk, run, tmp_path):
    changed = shutil.copy(desk.train, tmp_path / "train.csv")
    (run / "recipe.toml").write_text((run / "recipe.toml").read_text().replace(str(desk.train), str(changed)))
    assert newsdesk("evaluate", run, "--data", desk.test, "--baseline").code == 0
    with changed.open("a") as stream:
        stream.write("999,goal coach,Sports\n")
    outcome = newsdesk("evaluate", run, "--data", desk.test, "--baseline")
    assert outcome.code == 1
    assert "no longer those" in outcome.err


def test_columns_called_otherwise_are_named_by_flags(newsdesk, desk, run, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text(desk.test.read_text().replace("number,words,desk", "number,wording,section_name"))
    refused = newsdesk("evaluate", run, "--data", other)
    assert refused.code == 1
    assert "--text" in refused.err
    flags = ["--text", "wording", "--label", "section_name"]
    expected = newsdesk("evaluate", run, "--data", desk.test, "--json").json["metrics"]
    assert newsdesk("evaluate", run, "--data", other, *flags, "--json").json["metrics"] == expected


def test_a_file_with_the_usual_columns_needs_no_flags(newsdesk, desk, run, tmp_path):
    usual = tmp_path / "usual.csv"
    usual.write_text(desk.test.read_text().replace("number,words,desk", "number,title,category"))
    assert newsdesk("evaluate", run, "--data", usual, "--json").json["metrics"]["accuracy"] > 0.9


def test_a_file_without_header_is_read_as_told(newsdesk, run, tmp_path):
    (tmp_path / "bare.csv").write_text("goal coach league,Sports\nbank profit market,Business\n")
    flags = ["--no-header", "--template", "{column_1}", "--label", "column_2", "--json"]
    assert newsdesk("evaluate", run, "--data", tmp_path / "bare.csv", *flags).json["metrics"]["rows"] == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("words,desk\ngoal,Opera\n", "Opera"),
        ("words,number\ngoal,1\n", "--label"),
        ("title,label\n", "no rows"),
    ],
)
def test_rows_that_cannot_be_evaluated_are_refused_and_change_nothing(newsdesk, run, tmp_path, content, said):
    (tmp_path / "bad.csv").write_text(content)
    before = (run / "manifest.json").read_bytes()
    outcome = newsdesk("evaluate", run, "--data", tmp_path / "bad.csv")
    assert (outcome.code, outcome.out) == (1, "")
    assert said in outcome.err
    assert (run / "manifest.json").read_bytes() == before
    assert not (run / "metrics.json").exists()


def test_a_split_name_that_is_no_file_name_is_refused_before_the_work(newsdesk, desk, run):
    outcome = newsdesk("evaluate", run, "--data", desk.test, "--split", "../x")
    assert outcome.code == 1
    assert "--split" in outcome.err


def test_a_base_that_was_altered_after_training_is_refused(newsdesk, desk, run, tmp_path):
    base = shutil.copytree(desk.base, tmp_path / "base")
    known = RunFolder(run).manifest
    RunFolder(run).seal(replace(known, base=replace(known.base, name="base", reference=str(base))))
    assert newsdesk("evaluate", run, "--data", desk.test).code == 0
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    outcome = newsdesk("evaluate", run, "--data", desk.test)
    assert outcome.code == 1
    assert "sha256" in outcome.err
    assert known.base.sha256 in outcome.err


def test_an_unfinished_run_is_refused(newsdesk, desk, run):
    (run / "manifest.json").unlink()
    for verb in (["evaluate", run, "--data", desk.test], ["predict", run, "goal"]):
        outcome = newsdesk(*verb)
        assert outcome.code == 1
        assert "unfinished" in outcome.err


def test_tokens_that_the_base_does_not_know_are_said_and_kept(newsdesk, desk, run, tmp_path):
    (tmp_path / "rows.csv").write_text(
        "number,words,desk\n1,goal 国 安 coach,Sports\n2,bank 股 price,Business\n", "utf-8"
    )
    outcome = newsdesk("evaluate", run, "--data", tmp_path / "rows.csv", "--label", "desk")
    assert outcome.code == 0, outcome.err
    kept = json.loads((run / "metrics.json").read_text())["test"]["texts"]["unknown_tokens"]
    assert 0 < kept < 1
    (line,) = [line for line in outcome.lines if line.startswith("unknown tokens")]
    assert line.split()[2] == f"{100 * kept:.2f}"


def test_cut_and_empty_texts_are_said_and_kept_with_the_figures(newsdesk, desk, run, tmp_path):
    rows = [("number", "words", "desk"), (1, "goal coach " * 40, "Sports"), (2, "bank market", "Business")]
    rows += [(3, " ", "Sports"), (4, "", "Business"), (5, "orbit", "Science")]
    with (tmp_path / "rows.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    outcome = newsdesk("evaluate", run, "--data", tmp_path / "rows.csv", "--label", "desk")
    assert outcome.code == 0, outcome.err
    table = {line[:28].strip(): line[28:] for line in outcome.lines if line[:28].strip()}
    assert table["texts cut"].startswith("1 (20.00 %), which lost ")
    found = json.loads((run / "metrics.json").read_text())["test"]
    texts = found["texts"]
    assert (texts["texts"], texts["cut"], texts["unreadable"]) == (5, 1, 2)
    assert 0 < texts["lost"] < texts["tokens"]
    right = texts["unreadable_right"]
    assert texts["unknown_tokens"] == 0
    assert "unknown tokens" not in table
    assert table["empty or unknown texts"] == f"2, counted by the best guess: {right} right"
    assert found["metrics"]["rows"] == 5  # the guesses count, so that figures of two models compare
    assert newsdesk("evaluate", run, "--data", desk.test, "--json").json["texts"]["unreadable"] == 0
