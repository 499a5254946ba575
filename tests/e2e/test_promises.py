"""What predict promises, through the real command line: thresholds, sets, and what runs keep for them."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import shutil

import numpy as np
import pytest

import newsdesk as package
from newsdesk.data.duplicates import KNOWN_TEXTS, KnownTexts
from newsdesk.files import sha256_of, write_json
from newsdesk.runs.calibration import CALIBRATION, CALIBRATION_ROWS, softmax
from newsdesk.runs.folder import RunFolder

onnx = pytest.importorskip("onnx")

CLEAR, DIM = "goal coach league striker", "the of a"
WORDS = {"Business": "bank profit market", "Science": "orbit genome laser", "Sports": "goal coach league"}


@pytest.fixture(scope="module")
def more_rows(tmp_path_factory):
    """400 texts whose words tell the class, and 200 that any class may claim."""
    generator = random.Random(4)
    rows = []
    for number in range(600):
        label = generator.choice(list(WORDS))
        words = WORDS[label].split() if number % 3 else ["the", "of", "a"]
        rows.append((number, " ".join(generator.choices(words, k=4)), label))
    path = tmp_path_factory.mktemp("more") / "more.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("number", "words", "desk"), *rows])
    return path


@pytest.fixture(scope="module")
def judged(trained, more_rows, tmp_path_factory):
    """A run with an int8 export, both calibrated on those rows; nobody may change it."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("judged") / "run")
    package.export(run, "onnx-fp32")
    package.calibrate(run, [str(more_rows)])
    return run


def without_calibration(run):
    """The run as an earlier version left it."""
    for name in (CALIBRATION, CALIBRATION_ROWS):
        (run / name).unlink()
    RunFolder(run).reseal()
    return run


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_a_run_predicts_by_the_temperature_its_training_found(trained):
    predictor = package.load(trained)
    kept = json.loads((trained / CALIBRATION).read_text())
    assert kept["rows"] == json.loads((trained / "manifest.json").read_text())["data"]["validation"]["rows"]
    assert predictor.temperature == kept["temperature"] != 1
    logits = predictor.predict_logits([CLEAR, DIM])
    assert np.array_equal(predictor.predict_probabilities([CLEAR, DIM]), softmax(logits, kept["temperature"]))


def test_a_run_without_calibration_predicts_and_says_how_to_get_one(newsdesk, desk, run):
    old = without_calibration(run)
    predictor = package.load(old)
    assert predictor.temperature == 1
    assert newsdesk("predict", old, CLEAR).lines[0].startswith("Sports")
    refused = newsdesk("predict", old, CLEAR, "--abstain", "0.1")
    assert refused.code == 1
    assert f"newsdesk calibrate {old}" in refused.err
    assert "newsdesk calibrate" in newsdesk("evaluate", old, "--data", desk.test).out
    assert newsdesk("calibrate", old).code == 0
    assert package.load(old).fingerprint != predictor.fingerprint
    assert json.loads((old / CALIBRATION).read_text())["sha256"] in (old / "manifest.json").read_text()


def test_calibrating_again_by_its_own_rows_finds_what_training_found(newsdesk, run):
    before = json.loads((run / CALIBRATION).read_text())
    (after,) = newsdesk("calibrate", run, "--json").json.values()
    assert after["temperature"] == pytest.approx(before["temperature"], rel=1e-3)
    assert after["sha256"] == before["sha256"]


def test_rows_too_few_for_the_promise_are_told_with_what_they_can_promise(newsdesk, judged):
    refused = newsdesk("predict", judged, CLEAR, "--abstain", "0.001")
    assert (refused.code, refused.out) == (1, "")
    assert "no threshold promises an error rate of 0.001 with 0.95 confidence" in refused.err
    hint = re.search(r"ask for --abstain ([\d.]+) --confidence ([\d.]+)", refused.err)
    assert hint is not None
    followed = newsdesk("predict", judged, CLEAR, "--abstain", hint[1], "--confidence", hint[2])
    assert followed.code == 0, followed.err
    assert "--data FILE" in refused.err
    assert "would contain every class" in newsdesk("predict", judged, CLEAR, "--sets", "0.9999").err


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_unsure_texts_get_a_question_mark_and_their_candidates(newsdesk, judged, engine):
    outcome = newsdesk("predict", judged, CLEAR, DIM, "--abstain", "0.05", "--engine", engine)
    sure, unsure = outcome.lines
    assert sure.startswith("Sports ")
    assert unsure.startswith("? ")
    assert unsure.count(" or ") >= 1
    assert "1 of 2 left unanswered" in outcome.err
    assert "at most 5 % of the answered are wrong, with 95 % confidence" in outcome.err
    assert "600 calibration rows" in outcome.err


def test_json_says_null_with_candidates_reason_and_rule(newsdesk, judged):
    content = newsdesk(
        "predict", judged, CLEAR, DIM, "--abstain", "0.05", "--confidence", "0.9", "--json"
    ).json
    sure, unsure = content["predictions"]
    assert (sure["label"], sure["candidates"], sure["reason"]) == ("Sports", [], None)
    assert unsure["label"] is None
    assert len(unsure["candidates"]) >= 2
    assert unsure["reason"] == f"confidence below {content['rule']['promise']['threshold']:.4f}"
    assert content["rule"]["promise"]["confidence"] == 0.9


def test_sets_name_the_classes_in_question_beside_the_answer(newsdesk, judged):
    clear, dim = newsdesk("predict", judged, CLEAR, DIM, "--sets", "0.8", "--json").json["predictions"]
    assert (clear["label"], clear["candidates"]) == ("Sports", ["Sports"])
    assert dim["label"] == dim["candidates"][0]
    (line, _) = newsdesk("predict", judged, CLEAR, DIM, "--sets", "0.8").lines
    assert "of {Sports}" in line


def test_the_promise_is_kept_on_rows_drawn_alike_and_the_library_says_the_same(judged, more_rows):
    rows = rows_of(more_rows.read_text())
    predictions = package.load(judged).predict([row["words"] for row in rows], abstain=0.05)
    pairs = list(zip(predictions.labels, rows, strict=True))
    answered = [label == row["desk"] for label, row in pairs if label is not None]
    assert 150 < len(answered) < 420  # all others are dim
    assert np.mean(answered) >= 0.95


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_files_leave_unanswered_cells_empty_and_carry_candidates(newsdesk, judged, tmp_path, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    output = tmp_path / f"out.{form}"
    (tmp_path / "in.csv").write_text(f"n,words\n0,{CLEAR}\n1,{DIM}\n")
    flags = ["--input", tmp_path / "in.csv", "--output", output, "--abstain", "0.05"]
    outcome = newsdesk("predict", judged, *flags)
    assert outcome.code == 0
    assert "1 of 2 left unanswered" in outcome.err
    if form == "csv":
        sure, unsure = rows_of(output.read_text())
        assert (sure["label"], sure["candidates"], sure["reason"], unsure["label"]) == ("Sports", "", "", "")
        assert " | " in unsure["candidates"]
    else:
        if form == "jsonl":
            sure, unsure = map(json.loads, output.read_text().splitlines())
        else:
            import pyarrow.parquet

            sure, unsure = pyarrow.parquet.read_table(output).to_pylist()
        assert (sure["label"], sure["candidates"], sure["reason"]) == ("Sports", [], None)
        assert unsure["label"] is None
        assert len(unsure["candidates"]) >= 2
    assert unsure["reason"].startswith("confidence below")


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_beside_off_topic_promises_stand_on_the_rows_on_topic(newsdesk, judged, engine):
    flags = ["--abstain", "0.05", "--sets", "0.8", "--off-topic", "0.1", "--engine", engine]
    outcome = newsdesk("predict", judged, CLEAR, DIM, *flags)
    assert outcome.code == 0, outcome.err
    rule = newsdesk("predict", judged, CLEAR, DIM, *flags, "--json").json["rule"]
    assert rule["rows"] == rule["promise"]["rows"]
    assert 300 < rule["rows"] < 600  # at least the row that sets the cutoff does not count
    assert f"{rule['rows']:,} calibration rows that are on topic" in outcome.err
    assert "80 % of texts that are on topic, answered or not" in outcome.err


def test_standard_input_is_answered_by_the_same_rule(newsdesk, judged):
    outcome = newsdesk("predict", judged, "--abstain", "0.05", stdin=f"{CLEAR}\n{DIM}\n".encode())
    assert [row["label"] for row in rows_of(outcome.out)] == ["Sports", ""]
    submission = newsdesk("predict", judged, CLEAR, DIM, "--abstain", "0.05", "--format", "submission")
    assert submission.lines == ["ID,Label", "0,2", "1,"]


def test_an_export_is_calibrated_by_its_own_logits_and_notices_other_hands(newsdesk, judged, run):
    package.export(run, "onnx-int8", max_loss_upper=10)
    export = run / "export" / "onnx-int8"
    of_export, of_run = (json.loads((folder / CALIBRATION).read_text()) for folder in (export, run))
    assert of_export["rows"] == of_run["rows"]
    assert of_export["temperature"] != of_run["temperature"]
    assert package.load(export).temperature == of_export["temperature"]
    refused = newsdesk("calibrate", export)
    assert refused.code == 1
    assert "--data" in refused.err
    write_json(export / CALIBRATION, of_export | {"temperature": 0.5})
    assert f"{CALIBRATION} is missing or damaged" in newsdesk("predict", export, CLEAR).err


def test_an_export_is_calibrated_anew_on_given_rows(newsdesk, judged, more_rows, tmp_path):
    export = shutil.copytree(judged / "export" / "onnx-fp32", tmp_path / "exported")
    outcome = newsdesk("calibrate", export, "--data", more_rows, "--data", more_rows, "--label", "desk")
    assert outcome.code == 0
    assert "by 1,200 rows" in outcome.lines[0]
    assert newsdesk("predict", export, DIM, "--abstain", "0.05").lines[0].startswith("? ")


@pytest.mark.parametrize("kind", ["merged", "onnx-fp32", "onnx-int8"])
def test_an_exports_temperature_is_in_its_weights_and_a_later_one_beside_them(
    newsdesk, judged, more_rows, tmp_path, kind
):
    few = {"max_loss_upper": 10.0} if kind == "onnx-int8" else {}  # rows
    export = package.export(judged, kind, out=tmp_path / "export", **few).path
    first = package.load(export)
    assert first.folded == first.temperature != 1
    texts = [CLEAR, "bank orbit the goal"]
    (logits,) = (np.log(first.predict_probabilities(texts)),)
    told = newsdesk("calibrate", export, "--data", more_rows, "--label", "desk")
    assert told.code == 0, told.err
    again = package.load(export)
    assert (again.folded, again.temperature != first.temperature) == (first.folded, True)
    assert f"other programs keep the export's own temperature, {first.folded:.4f}" in told.out
    np.testing.assert_allclose(again.predict_logits(texts), first.predict_logits(texts), atol=1e-5)
    expected = softmax(logits, again.temperature / first.temperature)
    np.testing.assert_allclose(again.predict_probabilities(texts), expected, atol=1e-5)


def test_an_export_made_before_temperatures_went_into_weights_predicts_as_then(judged, tmp_path):
    from newsdesk.exports.onnx_conversion import dividing, write_onnx

    export = package.export(judged, "onnx-fp32", out=tmp_path / "export").path
    now = package.load(export)
    texts = [CLEAR, "bank orbit the goal"]
    expected = now.predict_probabilities(texts)
    model, content = export / "onnx" / "model.onnx", json.loads((export / CALIBRATION).read_text())
    write_onnx(dividing(onnx.load(model), 1 / now.folded), model)  # as exports were
    del content["folded"]
    write_json(export / CALIBRATION, content)
    manifest = json.loads((export / "manifest.json").read_text())
    manifest["files"] |= {name: sha256_of(export / name) for name in (CALIBRATION, "onnx/model.onnx")}
    write_json(export / "manifest.json", manifest)
    then = package.load(export)
    assert (then.folded, then.temperature) == (1, now.temperature)
    np.testing.assert_allclose(then.predict_probabilities(texts), expected, atol=1e-5)


def test_evaluate_tells_calibration_and_coverage(newsdesk, more_rows, judged, tmp_path):
    run = shutil.copytree(judged, tmp_path / "run")
    lines = newsdesk("evaluate", run, "--data", more_rows).lines
    content = json.loads((run / "metrics.json").read_text())["test"]
    assert any(line.startswith("calibration") and "temperature" in line for line in lines)
    assert any(line.startswith("answered at an error of") for line in lines)
    calibration = content["calibration"]
    assert calibration["temperature"] == package.load(run, engine="torch").temperature
    loss = calibration["negative_log_likelihood"]
    assert loss["after"] == content["metrics"]["negative_log_likelihood"] <= loss["before"]
    assert sum(entry["rows"] for entry in calibration["reliability"]) == 600
    assert [entry["error_rate"] for entry in content["risk_coverage"]["coverage_at"]] == [0.01, 0.02, 0.05]


@pytest.mark.parametrize(
    "flags", [["--confidence", "0.9"], ["--abstain", "0"], ["--sets", "1"], ["--abstain", "x"]]
)
def test_what_makes_no_promise_is_wrong_usage(newsdesk, trained, flags):
    assert newsdesk("predict", trained, CLEAR, *flags).code == 2


def test_rows_that_say_nothing_do_not_count_for_promises_unless_such_texts_are_answered(
    newsdesk, run, more_rows, tmp_path
):
    package.export(run, "onnx-fp32")
    with_empty = tmp_path / "rows.csv"
    empty = "".join(f"{number}, ,Sports\n" for number in range(50))
    with_empty.write_text(more_rows.read_text().strip() + "\n" + empty)
    package.calibrate(run, [str(with_empty)])
    for folder in (run, run / "export" / "onnx-fp32"):
        predictor = package.load(folder, engine="torch" if folder == run else "onnx")
        assert predictor.decision_rule(abstain=0.1).rows == 600
        assert predictor.decision_rule(abstain=0.1, answer_empty=True).rows == 650
    told = newsdesk("predict", run, CLEAR, "--abstain", "0.1")
    assert "600 calibration rows" in told.err
    told = newsdesk("predict", run, CLEAR, "--abstain", "0.1", "--answer-empty")
    assert "650 calibration rows" in told.err


@pytest.fixture
def partly_learned(desk, tmp_path):
    """All 60 test rows, and 20 that the run learned from or was validated on, in capitals."""
    lines = desk.train.read_text().splitlines()
    path = tmp_path / "partly.csv"
    learned = [line.replace(line.split(",")[1], line.split(",")[1].upper()) for line in lines[1:21]]
    path.write_text("\n".join([*desk.test.read_text().splitlines(), *learned]) + "\n")
    return path


def test_rows_that_the_run_learned_from_do_not_calibrate_it_unless_told(newsdesk, run, partly_learned):
    before = (run / CALIBRATION).read_bytes()
    refused = newsdesk("calibrate", run, "--data", partly_learned)
    assert refused.code == 1
    share = re.search(r"(\d+) of 80 rows \(([\d.]+)%\) with the text of a training row", refused.err)
    assert share is not None
    learned = int(share[1])
    assert float(share[2]) == pytest.approx(100 * learned / 80, abs=0.06)
    assert 10 <= learned <= 20  # the others are validation rows
    assert "--learned-rows drop" in refused.err
    assert (run / CALIBRATION).read_bytes() == before
    dropped = newsdesk("calibrate", run, "--data", partly_learned, "--learned-rows", "drop")
    assert f"by {80 - learned} rows" in dropped.lines[0]
    assert f"{learned} of 80 rows" in dropped.err
    assert f"{20 - learned} of 80 rows" in dropped.err  # of the validation rows
    kept = newsdesk("calibrate", run, "--data", partly_learned, "--learned-rows", "keep")
    assert "by 80 rows" in kept.lines[0]
    assert "for new texts, what is estimated on them is too optimistic" in kept.err


def test_a_file_of_nothing_but_learned_rows_is_refused_by_exports_too(newsdesk, run, desk, tmp_path):
    hashes = KnownTexts.of_folder(run)
    rows = rows_of(desk.train.read_text())
    learned = hashes.in_training([row["words"] for row in rows])
    source = tmp_path / "learned.csv"
    with source.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(row for row, known in zip(rows, learned, strict=True) if known)
    refused = newsdesk("export", run, "--to", "onnx-fp32", "--data", source)
    assert refused.code == 1
    assert "(100.0%)" in refused.err
    assert "drop" not in refused.err
    assert newsdesk("export", run, "--to", "onnx-fp32", "--data", source, "--learned-rows", "drop").code == 1
    assert not (run / "export").exists()
    told = newsdesk("export", run, "--to", "onnx-fp32", "--data", source, "--learned-rows", "keep")
    assert told.code == 0, told.err
    export = run / "export" / "onnx-fp32"
    again = newsdesk("calibrate", export, "--data", source, "--label", "desk")
    assert "learned from rows of" in again.err


def test_where_it_is_not_known_what_a_run_learned_from_it_says_so(newsdesk, run, desk):
    (run / KNOWN_TEXTS).unlink()
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["data"], manifest["files"][KNOWN_TEXTS]  # as an imported adapter has it
    write_json(run / "manifest.json", manifest)
    outcome = newsdesk("calibrate", run, "--data", desk.test, "--label", "desk")
    assert outcome.code == 0, outcome.err
    assert "not known which texts" in outcome.err
