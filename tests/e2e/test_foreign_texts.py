"""``predict --off-topic``: foreign texts stay unanswered in every form of output, by runs and by exports."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

import newsdesk as library

OWN, FOREIGN = "goal coach league", "qwzx qwzx qwzx qwzx 7 7 7 7"
LEVEL = ("--off-topic", "0.1")


def test_every_prediction_has_its_share_and_foreign_ones_no_label(newsdesk, trained):
    own, foreign = newsdesk("predict", trained, OWN, FOREIGN, "--json").json["predictions"]
    assert own["off_topic"] > 0.1 >= foreign["off_topic"] > 0
    assert None not in (own["label"], foreign["label"])
    held = newsdesk("predict", trained, OWN, FOREIGN, "--json", *LEVEL).json
    assert [one["label"] for one in held["predictions"]] == ["Sports", None]
    assert [one["reason"] for one in held["predictions"] if "reason" in one] == ["off topic"]
    assert held["rule"]["off_topic"] == 0.1
    shown = newsdesk("predict", trained, OWN, FOREIGN, *LEVEL)
    assert shown.lines[1].startswith("? off topic ")
    assert "less typical of the training topics than 90 % of the calibration rows" in shown.err


def test_python_and_the_command_line_agree(trained):
    predictions = library.load(trained).predict([OWN, FOREIGN], off_topic=0.1)
    assert predictions.labels == ("Sports", None)
    assert predictions.reasons == (None, "off topic")


def test_files_get_reason_and_share_and_another_level_is_another_job(newsdesk, trained, tmp_path):
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text(f"number,words\n1,{OWN}\n2,{FOREIGN}\n")
    outcome = newsdesk("predict", trained, "--input", source, "--output", target, *LEVEL)
    assert outcome.code == 0, outcome.err
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    assert list(rows[0]) == ["number", "words", "label", "probability", "reason", "off_topic"]
    assert [(row["label"], row["reason"]) for row in rows] == [("Sports", ""), ("", "off topic")]
    assert float(rows[0]["off_topic"]) > 0.1 >= float(rows[1]["off_topic"])
    plain = newsdesk("predict", trained, "--input", source, "--output", tmp_path / "plain.csv")
    assert plain.code == 0
    assert (tmp_path / "plain.csv").read_text().splitlines()[0] == "number,words,label,probability,reason"


def test_it_combines_with_abstain(newsdesk, trained):
    both = newsdesk("predict", trained, OWN, FOREIGN, "--json", *LEVEL, "--abstain", "0.4").json
    assert [one["reason"] for one in both["predictions"]][1] == "off topic"
    assert both["predictions"][1]["candidates"] == []


@pytest.mark.parametrize("kind", ["onnx-fp32", "onnx-int8", "merged"])
def test_an_export_compares_with_what_it_computes_itself(kind, newsdesk, run):
    pytest.importorskip("onnx")
    few = ["--max-loss-upper", "10"] if kind == "onnx-int8" else []  # rows
    assert newsdesk("export", run, "--to", kind, *few).code == 0
    exported = library.load(run / "export" / kind)
    of_run = library.load(run, engine="torch")
    assert exported.predict([OWN, FOREIGN], off_topic=0.1).labels == ("Sports", None)
    own, theirs = exported.off_topic.reference, of_run.off_topic.reference
    assert len(own) == len(theirs)
    np.testing.assert_allclose(own, theirs, rtol=0.5 if kind == "onnx-int8" else 1e-3)


def test_an_old_run_predicts_as_it_did_and_calibrate_gives_it_a_score(newsdesk, run):
    (run / "off_topic.safetensors").unlink()
    (prediction,) = newsdesk("predict", run, OWN, "--json").json["predictions"]
    assert "off_topic" not in prediction
    refused = newsdesk("predict", run, OWN, *LEVEL)
    assert refused.code == 1
    assert "cannot say which texts are off topic" in refused.err
    assert newsdesk("calibrate", run).code == 0
    assert newsdesk("predict", run, FOREIGN, "--json", *LEVEL).json["predictions"][0]["label"] is None


def test_a_level_below_what_the_rows_can_tell_is_refused(newsdesk, trained):
    refused = newsdesk("predict", trained, OWN, "--off-topic", "0.001")
    assert refused.code == 1
    assert "rows to compare with" in refused.err
