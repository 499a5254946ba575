"""Texts with several labels: from a file to training, answers, figures, explanations and exports."""

from __future__ import annotations

import csv
import json
import re
from shutil import copytree, ignore_patterns

import numpy as np
import pytest

import newsdesk as package
from newsdesk.prediction.cascade import open_cascade
from newsdesk.runs.calibration import read_held_out_rows
from topics import FILLER_WORDS, TOPIC_WORDS, rows_with_several, written

pytest.importorskip("torch")

NAMES = tuple(TOPIC_WORDS)
NAMES_IN_ORDER = tuple(sorted(NAMES))
ROWS = 240
TEXTS = [
    "bank profit market shares goal coach league striker the of a in on and",
    "orbit genome telescope laser the of a in on and",
    "the of a in on and",
]
TRAINING = ("--epochs", "24", "--set", "data.validation_share=0.3", "--set", "training.metric=accuracy")


@pytest.fixture(scope="module")
def sets(desk, tmp_path_factory):
    """A run whose texts may have several labels, and the file of its test rows; nobody may change them."""
    folder = tmp_path_factory.mktemp("sets")
    settings = [flag.removeprefix("--set=") for flag in desk.flags if flag.startswith("--set=")]
    settings += ["data.validation_share=0.3", "training.metric=accuracy", "training.epochs=24"]
    rows = written(folder / "train.jsonl", rows_with_several(ROWS, seed=3))
    flags = {
        "data.train": str(rows),
        "data.text": ("words",),
        "data.label": "desks",
        "model.base": str(desk.base),
    }
    run = package.train(out=folder / "run", flags=flags, overrides=settings)
    return run.path, written(folder / "test.jsonl", rows_with_several(80, seed=4))


def test_a_file_with_lists_trains_a_run_that_knows_it(sets):
    run, _ = sets
    assert json.loads((run / "labels.json").read_text())["task"] == "multi"
    assert package.load(run).task == "multi"
    kept = read_held_out_rows(run)
    assert kept.labels.dtype == np.bool_
    assert kept.labels.shape[1] == len(NAMES)
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert any("a text may have several labels" in event.get("text", "") for event in events)
    best = max(event["micro_f1"] for event in events if event["event"] == "validation")
    assert best > 0.9


@pytest.mark.parametrize("form", ["rows.csv", "rows-columns.csv"])
def test_other_ways_to_write_the_same_labels_train_the_same_adapter(sets, form, desk, newsdesk, tmp_path):
    """And a linear model that is stacked on it does not change the adapter, but what is answered."""
    run, _ = sets
    rows = written(tmp_path / form, rows_with_several(ROWS, seed=3))
    flags = ["--label-separator", ";", "--label", "desks"]
    if "columns" in form:
        flags = ["--label-columns", ",".join(NAMES)]
    given = ["--data", rows, "--text", "words", *flags, "--base", desk.base]
    settings = [flag for flag in desk.flags if flag.startswith("--set=")]
    outcome = newsdesk("train", *given, *settings, *TRAINING, "--stack", "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "stacked with a linear model: " in (tmp_path / "run" / "log.jsonl").read_text()
    own, stacked = (package.load(folder) for folder in (run, tmp_path / "run"))
    expected = own.predict_logits(TEXTS) + stacked.linear.stack * stacked.linear.scores(own.token_ids(TEXTS))
    np.testing.assert_allclose(stacked.predict_logits(TEXTS), expected, rtol=1e-5)
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (run / weights).read_bytes()


def test_answers_are_sets_and_agree_with_the_probabilities(sets):
    run, _ = sets
    classifier = package.load(run)
    answers = classifier.predict(TEXTS)
    assert answers[0].labels is not None
    assert set(answers[0].labels) == {"Business", "Sports"}
    assert answers[1].labels[0] == answers[1].label == "Science"
    assert answers[2].labels == ()
    assert answers[2].label is None
    np.testing.assert_array_equal(
        answers.assigned, classifier.decisions.assigned(classifier.predict_probabilities(TEXTS))
    )


def test_the_terminal_shows_the_labels_of_each_text(sets, newsdesk):
    shown = newsdesk("predict", sets[0], *TEXTS).lines
    assert shown[0].count("%") == 2
    assert shown[1].startswith("Science ")
    assert shown[2].startswith("no label ")


def test_predictions_in_every_format_say_the_same(sets, newsdesk, tmp_path):
    run, test = sets
    parquet = pytest.importorskip("pyarrow.parquet")
    for form in ("csv", "jsonl", "parquet"):
        assert newsdesk("predict", run, "--input", test, "--output", tmp_path / f"out.{form}").code == 0
    wide = tmp_path / "wide.csv"
    assert newsdesk("predict", run, "--input", test, "--output", wide, "--indicators").code == 0
    of_jsonl = [json.loads(line)["labels"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert parquet.read_table(tmp_path / "out.parquet")["labels"].to_pylist() == of_jsonl
    with (tmp_path / "out.csv").open(newline="") as stream:
        assert [
            row["labels"].split(";") if row["labels"] else [] for row in csv.DictReader(stream)
        ] == of_jsonl
    with wide.open(newline="") as stream:
        rows = [{name for name in NAMES if row[name] == "1"} for row in csv.DictReader(stream)]
    assert rows == list(map(set, of_jsonl))
    assert {len(labels) for labels in of_jsonl} >= {0, 1, 2}


def test_what_predict_wrote_is_what_train_reads(sets, newsdesk, tmp_path, desk):
    run, test = sets
    out = tmp_path / "out.csv"
    assert newsdesk("predict", run, "--input", test, "--output", out).code == 0
    checked = newsdesk(
        "evaluate",
        run,
        "--data",
        out,
        "--label",
        "labels",
        "--label-separator",
        ";",
        "--json",
        "--split",
        "own",
    )
    assert checked.code == 0, checked.err
    assert checked.json["label_sets"]["subset_accuracy"] == 1.0


def test_evaluation_is_kept_shown_and_in_the_card(sets, newsdesk, tmp_path):
    from newsdesk.evaluation.label_sets import read_label_set_metrics

    run, test = sets
    copy = copytree(run, tmp_path / "run")
    shown = newsdesk("evaluate", copy, "--data", test)
    assert shown.code == 0, shown.err
    assert shown.lines[0].startswith("micro F1")
    found = read_label_set_metrics(copy / "metrics.json")["test"].metrics
    with (copy / "predictions-test.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    same = sum(set(row["true_labels"].split(";")) == set(row["predicted_labels"].split(";")) for row in rows)
    assert found.subset_accuracy == same / len(rows)
    assert f"{found.micro_f1:.4f}" in (copy / "README.md").read_text()


def cells_of(page, heading):
    """The rows of the first table after a heading, as lists of words."""
    table = page[page.index(f">{heading}</h3>") :].partition("</table>")[0]
    rows = table.partition("<tbody>")[2].split("<tr>")[1:]
    return [[re.sub(r"<[^>]+>", " ", cell).split() for cell in re.split(r"</t[hd]>", row)] for row in rows]


def test_the_report_shows_labels_thresholds_promises_and_errors_as_evaluated(sets, newsdesk, tmp_path):
    pytest.importorskip("matplotlib")
    from newsdesk.evaluation.label_sets import read_label_set_metrics
    from newsdesk.runs.calibration import read_calibration

    run = copytree(sets[0], tmp_path / "run")
    rows = [*rows_with_several(80, seed=4), ("goal coach league striker goal", ["Science"])]
    test = written(tmp_path / "mislabelled.jsonl", rows)
    done = newsdesk("report", run, "--data", test, "--plots", tmp_path / "plots")
    assert done.code == 0, done.err
    page = (run / "report-test.html").read_text()
    assert newsdesk("report", run).code == 0  # as evaluate left it
    again = (run / "report-test.html").read_text()
    assert again.partition("<svg")[0] == page.partition("<svg")[0]
    assert again.rpartition("</svg>")[2] == page.rpartition("</svg>")[2]
    found = read_label_set_metrics(run / "metrics.json")["test"].metrics
    assert f"{100 * found.micro_f1:.2f}\xa0%" in page
    thresholds = dict(zip(NAMES_IN_ORDER, read_calibration(run).decisions.thresholds, strict=True))
    for (name,), precision, recall, f1, support, threshold, _ in cells_of(page, "By label"):
        (of,) = (one for one in found.per_label if one.label == name)
        shown = [float(cell[0]) for cell in (precision, recall, f1, threshold)]
        wanted = [100 * share for share in (of.precision, of.recall, of.f1, thresholds[name])]
        assert shown == pytest.approx(wanted, abs=0.051)
        assert int(support[0]) == of.support
    promised = {row[0][0]: row[1:-1] for row in cells_of(page, "What can be promised")}
    sure = package.load(run).predict([text for text, _ in rows], abstain=0.2)
    wrong = sum(
        label not in topics for answer, (_, topics) in zip(sure, rows, strict=True) for label in answer.labels
    )
    assert promised["20"][2][2:] == [str(wrong), "of", str(sum(len(one.labels) for one in sure))]
    quotes = page[page.index("Assigned, and not true") :].partition("</ol>")[0].split("</li>")
    (quote,) = (each for each in quotes if ">row 80<" in each)
    assert "assigned wrongly: <strong><bdi>Sports</bdi>" in quote
    assert ">goal</mark>" in quote
    assert "<script" not in page
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {
        *("f1-by-label", "reliability", "risk-coverage", "length-accuracy"),
        *("loss", "validation-f1", "learning-rate"),
    }


def test_a_report_names_no_threshold_that_did_not_assign_its_labels(sets, newsdesk, tmp_path):
    """A run may be calibrated again after it was evaluated; and its texts may be left out."""
    pytest.importorskip("matplotlib")
    run = copytree(sets[0], tmp_path / "run")
    assert newsdesk("evaluate", run, "--data", sets[1], "--with-text").code == 0
    stored = json.loads((run / "calibration.json").read_text())
    stored["decisions"]["thresholds"] = [0.999] * len(NAMES)
    (run / "calibration.json").write_text(json.dumps(stored))
    done = newsdesk("report", run, "--without-texts")
    assert done.code == 0, done.err
    assert "not the one that these probabilities were made with" in " ".join(done.err.split())
    page = (run / "report-test.html").read_text()
    assert {row[5][0] for row in cells_of(page, "By label")} == {"–"}
    assert "<blockquote" not in page


def test_a_report_before_any_evaluation_says_what_to_run(sets, newsdesk, tmp_path):
    pytest.importorskip("matplotlib")
    evaluations = ignore_patterns("metrics.json", "predictions-*.csv")
    run = copytree(sets[0], tmp_path / "run", ignore=evaluations)
    done = newsdesk("report", run)
    assert done.code == 0, done.err
    assert f"newsdeskreport{run}--splittest--data" in "".join(done.err.split())  # lines are wrapped anywhere


def test_an_export_answers_as_the_run(sets, newsdesk, tmp_path):
    pytest.importorskip("onnx")
    run, test = sets
    for kind in ("onnx-fp32", "merged"):
        done = newsdesk("export", run, "--to", kind, "--out", tmp_path / kind)
        assert done.code == 0, done.err
        texts = [json.loads(line)["words"] for line in test.read_text().splitlines()]
        own, its = (package.load(folder).predict(texts) for folder in (run, tmp_path / kind))
        assert (own.assigned != its.assigned).mean() < 0.01
        np.testing.assert_allclose(own.probabilities, its.probabilities, atol=0.03)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"


def test_an_int8_export_is_gated_by_micro_f1(sets, newsdesk, tmp_path):
    pytest.importorskip("onnx")
    run, _ = sets
    rows = written(tmp_path / "more.jsonl", rows_with_several(400, seed=9))
    done = newsdesk(
        "export", run, "--to", "onnx-int8", "--data", rows, "--max-loss-upper", "3", "--max-loss", "2",
        "--out", tmp_path / "int8",
    )  # fmt: skip
    assert done.code == 0, done.err
    quality = json.loads((tmp_path / "int8" / "quality.json").read_text())["tried"][-1]
    assert quality["f1_lost"]["interval"][1] <= 0.03
    assert quality["accuracy"] > 0.9


def test_words_of_a_label_are_explained_beside_others(sets):
    explained = package.explain(package.load(sets[0]), TEXTS[0], target="Sports")
    assert set(explained.label.split(", ")) == {"Business", "Sports"}
    weights = {word.text: word.weight for word in explained.words}
    assert min(weights[word] for word in ("goal", "coach", "league")) > max(
        weights["bank"], weights["profit"]
    )


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "RUN", "--sets", "0.9", "goal"),
        ("predict", "RUN", "--input", "TEST", "--output", "OUT", "--top-k", "2"),
    ],
)
def test_what_does_not_know_label_sets_yet_says_so_in_a_sentence(sets, command, newsdesk, tmp_path):
    places = {"RUN": sets[0], "TEST": sets[1], "OUT": tmp_path / "out.csv"}
    done = newsdesk(*(places.get(part, part) for part in command))
    assert done.code == 1
    assert "several labels" in done.err
    assert done.err.count("error:") == 1


@pytest.fixture(scope="module")
def stacked(sets, tmp_path_factory):
    """A copy of the run with a linear model stacked on it and its export, and what was said of that."""
    pytest.importorskip("onnx")
    run, notes = copytree(sets[0], tmp_path_factory.mktemp("stacked") / "run"), []
    package.export(run, "onnx-fp32")
    package.calibrate(run, stack=True, notice=notes.append)
    return run, notes


def test_a_linear_model_is_stacked_in_the_run_and_its_export(stacked, newsdesk):
    run, notes = stacked
    assert [note for note in notes if note.startswith("stacked with a linear model: ") and "micro F1" in note]
    for folder in (run, run / "export" / "onnx-fp32"):
        classifier = package.load(folder, engine="own")
        assert classifier.linear.stack > 0
        ids = classifier.token_ids(TEXTS)
        logits = classifier.encoder_outputs(ids)[0] + classifier.linear.stack * classifier.linear.scores(ids)
        np.testing.assert_allclose(classifier.predict_logits(TEXTS), logits, rtol=1e-5)
        kept = read_held_out_rows(folder)
        assert kept.linear.shape == kept.labels.shape
    shown = newsdesk("export", run, "--to", "merged")
    assert "without the linear model stacked on it: " in shown.out
    assert "points of micro F1 lost" in shown.out
    assert json.loads((run / "export" / "merged" / "quality.json").read_text())["f1_without_linear"]["rows"]


def test_stacked_answers_are_evaluated_promised_and_explained(stacked, sets, newsdesk):
    run, test = stacked[0], sets[1]
    assert newsdesk("evaluate", run, "--data", test, "--json").json["label_sets"]["micro_f1"] > 0.9
    answers = package.load(run).predict(TEXTS, abstain=0.2, confidence=0.8)
    assert {*answers[0].labels, *answers[0].unsure} == {"Business", "Sports"}
    explained = package.explain(package.load(run), TEXTS[0], target="Sports")
    assert max(explained.words, key=lambda word: word.weight).text in TOPIC_WORDS["Sports"]
    assert "`linear_model.safetensors`" in (run / "README.md").read_text()


def test_in_a_cascade_the_linear_model_answers_texts_whose_labels_it_is_sure_of(stacked, newsdesk, tmp_path):
    run, more = stacked[0], written(tmp_path / "more.jsonl", rows_with_several(600, seed=7))
    assert newsdesk("calibrate", run, "--no-stack", "--data", more).code == 0
    flags = ("--engine", "cascade", "--loss", "0.05")
    done = newsdesk("predict", run, "--input", more, "--output", tmp_path / "out.jsonl", *flags)
    assert done.code == 0, done.err
    assert "at most 5 points of micro F1 are lost to the encoder alone" in done.err
    cascade, whole = open_cascade(run, loss=0.05), package.load(run)
    texts = [text for text, _ in rows_with_several(600, seed=7)]
    sure = cascade.rule.answers(whole.linear.scores(whole.token_ids(texts)))
    assert sure.mean() > 0.2
    given = [json.loads(line)["labels"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert given == [list(answer.labels) for answer in cascade.predict(texts)]
    expected = [list(answer.labels) for answer in whole.predict(texts)]
    assert [each for each, by in zip(given, sure, strict=True) if not by] == [
        each for each, by in zip(expected, sure, strict=True) if not by
    ]
    promised = newsdesk("predict", run, *TEXTS, *flags, "--abstain", "0.1")
    assert promised.code == 0, promised.err
    assert promised.err.count("calibration rows") == 2
    refused = newsdesk("predict", run, *TEXTS, *flags, "--off-topic", "0.1")
    assert "leave out --off-topic, or --engine cascade" in refused.err


def test_a_classifier_for_notebooks_learns_lists_and_matrices_alike(desk):
    """As scikit-learn's do: 0 and 1 for each label come out, whichever way they went in."""
    sklearn = pytest.importorskip("sklearn.preprocessing")
    texts, topics = zip(*rows_with_several(ROWS, seed=3), strict=True)
    binarizer = sklearn.MultiLabelBinarizer()
    matrix = binarizer.fit_transform(topics)
    settings = dict(
        flag.removeprefix("--set=").split("=", 1) for flag in desk.flags if flag.startswith("--set=")
    )
    settings = {key: value for key, value in settings.items() if key != "lora.targets"}
    learned = [
        package.TextClassifier(
            base=str(desk.base), epochs=24, settings=settings | {"lora.targets": ("all-linear",)}
        ).fit(texts, labels)
        for labels in (topics, matrix)
    ]
    assert list(learned[0].classes_) == sorted(NAMES)
    assert list(learned[1].classes_) == [0, 1, 2]
    answers = [one.predict(list(texts)) for one in learned]
    assert answers[0].shape == matrix.shape
    np.testing.assert_array_equal(*answers)
    assert learned[0].score(texts, topics) == np.mean((answers[0] == matrix).all(axis=1))
    assert learned[1].score(texts, matrix) == learned[0].score(texts, topics)
    assert learned[0].evaluate(texts, topics).metrics.micro_f1 > 0.8


def test_a_promise_leaves_labels_unsure_and_says_what_it_promises(sets, newsdesk, tmp_path):
    run, test = sets
    promised = package.load(run).predict(TEXTS, abstain=0.2, confidence=0.8)
    likely = package.load(run).predict(TEXTS)
    for sure, given in zip(promised, likely, strict=True):
        assert {*sure.labels, *sure.unsure} == set(given.labels)
    flags = ("--abstain", "0.2", "--confidence", "0.8")
    done = newsdesk("predict", run, "--input", test, "--output", tmp_path / "out.jsonl", *flags)
    assert done.code == 0, done.err
    assert "of the assigned labels are wrong, with 80 % confidence" in " ".join(done.err.split())
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {"labels", "probabilities", "unsure", "reason"} <= rows[0].keys()


def test_the_baseline_is_one_svm_a_label_on_the_same_rows(sets, newsdesk, tmp_path):
    run, test = sets
    copy = copytree(run, tmp_path / "run")
    shown = newsdesk("evaluate", copy, "--data", test, "--baseline")
    assert shown.code == 0, shown.err
    assert any("micro F1 gained over it" in line for line in shown.lines)
    kept = json.loads((copy / "metrics.json").read_text())["test"]
    low, high = kept["comparison"]["micro_f1"]["interval"]
    assert low <= kept["label_sets"]["micro_f1"] - kept["baseline"]["micro_f1"] <= high


def test_windows_of_long_texts_have_their_labels_together(sets, desk, newsdesk, tmp_path):
    """A label whose words stand behind the cut is found with windows, and by the export as by the run."""
    pytest.importorskip("onnx")
    rows = written(tmp_path / "train.jsonl", rows_with_several(ROWS, seed=3))
    given = ["--data", rows, "--text", "words", "--label", "desks", "--base", desk.base]
    settings = [flag for flag in desk.flags if flag.startswith("--set=")]
    windows = ["--set", "model.long_texts=windows", "--set", "model.max_length=12"]
    done = newsdesk("train", *given, *settings, *TRAINING, *windows, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    filler = " ".join(FILLER_WORDS)
    text = f"goal coach league striker {filler} bank profit market shares"
    run = package.load(tmp_path / "run")
    assert {"Sports", "Business"} <= {*run.predict([text])[0].labels}
    assert newsdesk("export", tmp_path / "run", "--to", "onnx-fp32").code == 0
    export = package.load(tmp_path / "run" / "export" / "onnx-fp32")
    np.testing.assert_allclose(export.predict_logits([text]), run.predict_logits([text]), atol=0.05)


def test_two_runs_are_compared_by_their_sets(sets, newsdesk, tmp_path):
    run, test = sets
    assert newsdesk("evaluate", run, "--data", test, "--split", "compared").code == 0
    file = run / "predictions-compared.csv"
    with file.open(newline="") as stream:
        header, *rows = csv.reader(stream)
    names = header[2], header.index("true_labels")
    worse = tmp_path / "predictions-worse.csv"
    with worse.open("w", newline="") as stream:  # another program that gives every text all labels
        csv.writer(stream).writerows([header, *([*row[:2], ";".join(NAMES), *row[3:]] for row in rows)])
    done = newsdesk("compare", run, worse, "--split", "compared", "--json")
    assert done.code == 0
    (found,) = done.json["comparisons"]
    assert names == ("predicted_labels", 1)
    assert found["verdict"].startswith(f"{run} is better than {worse} by ")
    assert found["rows"] == 80
    told = newsdesk("compare", run, file, "--split", "compared")
    assert f"both give the same labels to all {found['rows']} rows" in told.out
    short = tmp_path / "short.csv"
    short.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    refused = newsdesk("compare", run, short, "--split", "compared")
    assert (refused.code, refused.err.count("error:")) == (1, 1)
    assert "not evaluated on the same rows" in refused.err
    short.write_text("row,true_labels,predicted_labels\n0,[no,Sports\n")
    refused = newsdesk("compare", run, short, "--split", "compared")
    assert (refused.code, refused.err.count("error:")) == (1, 1)
    assert "not a file of predictions" in refused.err


def test_the_texts_that_get_other_labels_are_shown_and_written(sets, newsdesk, tmp_path):
    run, test = sets
    first, other = (copytree(run, tmp_path / name) for name in ("first", "other"))
    stored = json.loads((other / "calibration.json").read_text())
    stored["decisions"]["thresholds"] = [1.0] * len(NAMES)  # so that it gives no text any label
    stored["decisions"]["at_least_one"] = False
    (other / "calibration.json").write_text(json.dumps(stored))
    done = newsdesk("compare", first, other, "--data", test, "--csv", tmp_path / "changed.csv")
    assert done.code == 0, done.err
    with (tmp_path / "changed.csv").open(newline="") as stream:
        changed = list(csv.DictReader(stream))
    wanted = [json.loads(line) for line in test.read_text().splitlines()]
    answers = package.load(run).predict([row["words"] for row in wanted])
    kept = [number for number, answer in enumerate(answers) if answer.labels]
    assert [int(row["row"]) for row in changed] == kept
    for row in changed:
        number = int(row["row"])
        labels = set(row["first_label"].split(";"))
        assert labels == set(answers[number].labels)
        assert row["other_label"] == ""
        assert row["text"] == wanted[number]["words"]
        assert row["change"] == (
            "broken"
            if labels == set(wanted[number]["desks"])
            else "fixed"
            if not wanted[number]["desks"]
            else "other error"
        )
    assert " -> no label, labelled " in done.out
    assert f"{first} is better than {other} by " in done.out
    (by_label,) = package.compare(first, [other])
    assert {label.label: label.broken for label in by_label.per_class} == {
        name: sum(name in answers[i].labels and name in wanted[i]["desks"] for i in range(len(wanted)))
        for name in NAMES
    }


def test_runs_of_one_label_and_of_several_are_not_compared(sets, newsdesk, tmp_path):
    run, test = copytree(sets[0], tmp_path / "run"), sets[1]
    assert newsdesk("evaluate", run, "--data", test, "--split", "kinds").code == 0
    single = tmp_path / "single.csv"
    single.write_text("row,true_label,predicted_label\n0,Sports,Sports\n")
    refused = newsdesk("compare", run, single, "--split", "kinds")
    assert (refused.code, refused.err.count("error:")) == (1, 1)
    assert "one label cannot be compared with those that may give several" in refused.err


def test_a_run_is_calibrated_again_on_other_rows_and_compared_from_python(sets, newsdesk, tmp_path):
    from newsdesk.reports.trackers import Ending
    from newsdesk.runs.folder import RunFolder

    run, test = sets
    copies = [copytree(run, tmp_path / name) for name in ("a", "b")]
    rows = written(tmp_path / "more.jsonl", rows_with_several(200, seed=11))
    done = newsdesk("calibrate", copies[1], "--data", rows)
    assert done.code == 0, done.err
    assert "probabilities and thresholds of 3 labels" in done.out
    before, after = (package.load(copy).decisions for copy in copies)
    assert before != after
    for copy in copies:
        assert newsdesk("evaluate", copy, "--data", test).code == 0
    assert Ending.of(RunFolder(copies[0]), tmp_path).figures["test/micro_f1"] > 0.8  # what trackers show
    (found,) = package.compare(copies[0], [copies[1]])
    low, high = found.micro_f1.interval
    assert low <= found.micro_f1.other - found.micro_f1.first <= high
