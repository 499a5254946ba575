"""newsdesk audit, from rows with known faults to a cleaned copy."""

from __future__ import annotations

import csv
import json
import random

import pytest

from newsdesk.cli.audit import _KINDS
from newsdesk.data.columns import text_layout
from newsdesk.data.labelled import to_examples
from newsdesk.data.load import load_split
from newsdesk.evaluation.audit.cleaned_copy import KINDS
from topics import rows_with_several, written

WRONG = {8: "Science", 30: "Science", 61: "Business"}
"""Rows of the topical ones, and the label of another topic that they get."""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory, topical_csv):
    """232 rows and 11 test rows: three wrong labels, a copy under another label, a copy, a leak."""
    folder = tmp_path_factory.mktemp("faulty")
    with topical_csv.open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    topics = [label for label, _ in rows]
    for row, label in WRONG.items():
        assert topics[row] != label
        rows[row][0] = label
    test = [*rows[200:210], rows[12]]
    rows = [*rows[:200], *rows[210:], [topics[0], rows[0][1].upper()], ["Sports", rows[3][1]]]
    for name, part in (("train.csv", rows), ("test.csv", test)):
        with (folder / name).open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([header, *part])
    return folder


@pytest.fixture
def flags(faulty, tiny_base, tmp_path):
    return ["audit", "--data", faulty, "--base", tiny_base("bert"), "--out", tmp_path / "out"]


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_flag_knows_every_kind():
    assert _KINDS == KINDS


def test_planted_faults_are_found_written_and_shown(newsdesk, flags, tmp_path):
    done = newsdesk(*flags, "--top", "2")
    assert done.code == 0, done.err
    suspects = rows_of(tmp_path / "out" / "label-errors.csv")
    assert set(WRONG) <= {int(row["row"]) for row in suspects[:5]}
    assert all(int(row["line"]) == int(row["row"]) + 2 and row["decision"] == "" for row in suspects)
    copies = rows_of(tmp_path / "out" / "duplicates.csv")
    assert [(row["row"], row["other_row"], row["conflict"]) for row in copies if row["kind"] == "exact"] == [
        ("230", "0", "no"),
        ("231", "3", "yes"),
    ]
    (leak,) = [row for row in rows_of(tmp_path / "out" / "leakage.csv") if row["kind"] == "exact"]
    assert (leak["row"], leak["other_row"]) == ("12", "10")
    quality = rows_of(tmp_path / "out" / "quality.csv")
    assert sorted(int(row["row"]) for row in quality) == list(range(232))
    assert [float(row["quality"]) for row in quality] == sorted(float(row["quality"]) for row in quality)
    assert [row["row"] for row in quality if row["suspect"] == "yes"] == [row["row"] for row in suspects]
    figures = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert (figures["can_judge"], figures["noise_is"]) == (True, "a lower bound")
    assert f"{figures['noise']:.2%}, a lower bound" in done.out
    assert figures["rows"] == 232
    assert figures["counts"]["conflicting duplicates"] == 2
    assert figures["command"].startswith("newsdesk audit --data")
    assert {"torch", "scikit-learn"} <= set(figures["versions"])
    assert done.out.count("(probability") == 2
    assert max(map(len, done.lines)) <= 80 or str(tmp_path.parent) in done.out


def test_an_editors_decisions_make_a_cleaned_copy_and_the_data_stays(newsdesk, flags, faulty, tmp_path):
    before = (faulty / "train.csv").read_bytes()
    assert newsdesk(*flags).code == 0
    suspects = rows_of(tmp_path / "out" / "label-errors.csv")
    (wrong,) = [row for row in suspects if row["row"] == "8"]
    wrong["decision"] = "relabel"
    with (tmp_path / "decisions.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(wrong))
        writer.writeheader()
        writer.writerows(suspects)
    target = tmp_path / "clean.csv"
    done = newsdesk(
        *flags, "--decisions", tmp_path / "decisions.csv", "--drop", "leaks", "--apply", target, "--json"
    )
    assert done.code == 0, done.err
    assert done.json["cleaned"] == {"path": str(target), "dropped": {"leaks": 1}, "relabelled": 1}
    expected = rows_of(faulty / "train.csv")
    expected[8]["label"] = wrong["suggested"]
    del expected[12]
    assert rows_of(target) == expected
    assert (faulty / "train.csv").read_bytes() == before
    again = newsdesk(*flags, "--drop", "leaks", "--apply", faulty / "train.csv")
    assert again.code == 1
    assert "never changed" in again.err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--drop", "leaks"], "no --apply"),
        (["--apply", "new.csv"], "--drop label-errors"),
        (["--test", "none.csv"], "there is no file none.csv"),
        (["--label", "text", "--text", "text", "--split", "nightly"], "no split 'nightly'"),
    ],
)
def test_what_cannot_be_done_is_said(newsdesk, flags, extra, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = newsdesk(*flags, *extra)
    assert done.code == 1
    assert message in done.err
    assert not (tmp_path / "new.csv").exists()


def test_data_against_itself_is_refused(newsdesk, flags, faulty):
    done = newsdesk(*flags, "--test", faulty / "train.csv")
    assert (done.code, "same file" in done.err) == (1, True)


def test_a_folder_is_compared_with_its_other_split_and_a_lonely_label_is_not_judged(
    newsdesk, faulty, tiny_base, tmp_path
):
    rows = [["", "text"], *([label, text] for label, text in csv.reader((faulty / "train.csv").open()))][2:]
    with (tmp_path / "train.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("label", "text"), *rows, ("Weather", "rain said over the orbit")])
    texts = [[text] for _, text in csv.reader((faulty / "test.csv").open())]
    with (tmp_path / "test.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(texts)
    base, target = tiny_base("bert"), tmp_path / "clean.csv"
    data = ["audit", "--data", tmp_path, "--base", base, "--out", tmp_path / "out"]
    done = newsdesk(*data, "--drop", "duplicates", "--drop", "leaks", "--apply", target)
    assert done.code == 0, done.err
    assert "not judged" in done.out
    assert f"{target}: 231 of 233 rows" in done.out
    assert "1 dropped: leaks" in done.out
    assert "Weather" not in {row["given"] for row in rows_of(tmp_path / "out" / "label-errors.csv")}
    assert {row["other_label"] for row in rows_of(tmp_path / "out" / "leakage.csv")} == {""}


def test_an_audit_replaces_neither_decisions_nor_files_that_no_audit_wrote(newsdesk, flags, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "duplicates.csv").write_text("mine\n")
    refused = newsdesk(*flags)
    assert refused.code == 1
    assert f"{out / 'duplicates.csv'} is there already, and no audit wrote it" in refused.err
    assert [path.name for path in out.iterdir()] == ["duplicates.csv"]
    (out / "duplicates.csv").unlink()
    assert newsdesk(*flags).code == 0
    assert newsdesk(*flags).code == 0  # what an audit wrote is replaced
    (out / "embeddings" / "mine.safetensors").write_text("mine")
    errors = out / "label-errors.csv"
    rows = rows_of(errors)
    rows[0]["decision"] = "drop"
    with errors.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    decided = errors.read_bytes()
    for more in ((), ("--decisions", errors, "--apply", tmp_path / "clean.csv")):
        refused = newsdesk(*flags, *more)
        assert refused.code == 1
        assert "holds decisions that someone filled in" in refused.err
        assert errors.read_bytes() == decided
    errors.rename(tmp_path / "decided.csv")
    done = newsdesk(*flags, "--decisions", tmp_path / "decided.csv", "--apply", tmp_path / "clean.csv")
    assert done.code == 0, done.err
    assert (out / "embeddings" / "mine.safetensors").read_text() == "mine"


@pytest.fixture(scope="module")
def several():
    """Rows with several labels as they should be, the same with faults, and where these are."""
    true = [(text, sorted(topics)) for text, topics in rows_with_several(240, seed=3)]
    lost = [row for row, (_, topics) in enumerate(true) if topics][::9]
    added = [row for row, (_, topics) in enumerate(true) if not topics][::5]
    faulty = list(true)
    for row in lost:
        faulty[row] = (true[row][0], true[row][1][1:])
    for row in added:
        faulty[row] = (true[row][0], ["Science"])
    faulty += [(true[lost[0]][0].upper(), true[lost[0]][1])]
    return true, faulty, lost, added


def sets_of(path, *flags):
    """The label sets of a file, by the reader that training uses."""
    table = load_split(str(path), "train").table
    examples = to_examples(table, text_layout(table, text=["words"]), **dict(flags))
    return [
        {name for name, has in zip(examples.label_names, row, strict=True) if has} for row in examples.labels
    ]


FORMS = {
    "rows.jsonl": {"label": "desks"},
    "rows.csv": {"label": "desks", "label_separator": ";"},
    "rows-columns.csv": {"label_columns": ["Business", "Science", "Sports"]},
}


@pytest.mark.parametrize("name", FORMS)
def test_wrong_and_missing_labels_are_found_apart_and_corrected_as_decided(
    newsdesk, several, name, tiny_base, tmp_path
):
    true, faulty, lost, added = several
    rows, form, out = written(tmp_path / name, faulty), FORMS[name], tmp_path / "out"
    flags = ["audit", "--data", rows, "--text", "words", "--base", tiny_base("bert"), "--out", out]
    for key, value in form.items():
        flags += [f"--{key.replace('_', '-')}", value if isinstance(value, str) else ",".join(value)]
    done = newsdesk(*flags, "--top", "2")
    assert done.code == 0, done.err
    assert "labels most likely wrong" in done.out
    assert "labels most likely missing" in done.out
    findings = rows_of(out / "label-errors.csv")
    planted = {(row, "missing", true[row][1][0]) for row in lost} | {
        (row, "wrong", "Science") for row in added
    }
    found = [(int(each["row"]), each["finding"], each["label"]) for each in findings]
    assert len(set(found) & planted) > 0.7 * len(planted)
    assert len(set(found) - planted) < 0.2 * len(planted)
    figures = json.loads((out / "audit.json").read_text())
    assert figures["counts"]["wrong labels"] + figures["counts"]["missing labels"] == len(findings)
    assert figures["counts"]["conflicting duplicates"] == 2
    assert {one["label"]: one["judged"] for one in figures["several"]["labels"]} == dict.fromkeys(
        ("Business", "Science", "Sports"), True
    )
    assert len(rows_of(out / "quality.csv")) == len(faulty)
    for each, fault in zip(findings, found, strict=True):
        each["decision"] = "relabel" if fault in planted else ""
    decided = saved(tmp_path / "decided.csv", findings)
    cleaned = tmp_path / f"cleaned-{name}"
    done = newsdesk(*flags, "--decisions", decided, "--apply", cleaned)
    assert done.code == 0, done.err
    corrected = {fault[0] for fault in set(found) & planted}
    expected = [
        set(true[row][1]) if row in corrected else set(topics) for row, (_, topics) in enumerate(faulty)
    ]
    assert sets_of(cleaned, *form.items()) == expected
    before, after = (path.read_text().splitlines() for path in (rows, cleaned))
    assert sum(one != other for one, other in zip(before, after, strict=True)) == len(corrected)


def saved(path, rows):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_decisions_on_one_text_are_put_together_and_may_not_contradict(
    newsdesk, several, tiny_base, tmp_path
):
    _, faulty, lost, added = several
    rows, out = written(tmp_path / "rows.jsonl", faulty), tmp_path / "out"
    flags = ["audit", "--data", rows, "--text", "words", "--label", "desks"]
    flags += ["--base", tiny_base("bert"), "--out", out]
    assert newsdesk(*flags).code == 0
    quality = {int(each["row"]): each for each in rows_of(out / "quality.csv")}
    one, other = quality[lost[1]], quality[added[1]]
    decisions = [one | {"decision": "relabel to sports; Business"}, other | {"decision": "relabel to []"}]

    def applied(decided, target):
        return newsdesk(
            *flags, "--decisions", saved(tmp_path / "d.csv", decided), "--apply", tmp_path / target
        )

    done = applied(decisions, "a.jsonl")
    assert done.code == 0, done.err
    found = sets_of(tmp_path / "a.jsonl", ("label", "desks"))
    assert (found[lost[1]], found[added[1]]) == ({"Business", "Sports"}, set())
    finding = rows_of(out / "label-errors.csv")[0]
    for second, message in {
        "drop": "another line decides otherwise on the same text",
        "keep": "another line decides otherwise on the same text",
        "relabel to Weather": "no row is labelled 'Weather'",
        "relabel to [": "no row is labelled '['",
        "perhaps": "is not a decision",
    }.items():
        done = applied([finding | {"decision": "relabel"}, finding | {"decision": second}], "b.jsonl")
        assert done.code == 1
        assert message in " ".join(done.err.split())
        assert done.err.count("error:") == 1
    done = applied([finding | {"decision": "drop"}] * 2, "c.jsonl")
    assert done.code == 0, done.err
    assert len(sets_of(tmp_path / "c.jsonl", ("label", "desks"))) == len(faulty) - 1


def test_leaks_with_other_labels_are_conflicts_and_what_cannot_be_judged_is_not_dropped(
    newsdesk, tiny_base, tmp_path
):
    rows = list(rows_with_several(120, seed=6))
    shuffled = random.Random(1).sample([topics for _, topics in rows], k=len(rows))
    texts = [text for text, _ in rows]
    train = written(tmp_path / "train.jsonl", list(zip(texts, shuffled, strict=True)))
    other = ["Sports"] if shuffled[4] == ["Business"] else ["Business"]
    held_out = [(texts[4], other), (texts[5], shuffled[5]), ("alone", ["Sports", "Business"])]
    test = written(tmp_path / "test.jsonl", held_out)
    flags = ["audit", "--data", train, "--test", test, "--text", "words", "--label", "desks"]
    flags += ["--base", tiny_base("bert"), "--out", tmp_path / "out"]
    done = newsdesk(*flags)
    assert done.code == 0, done.err
    assert "too low to judge the labels" in done.out
    leaks = rows_of(tmp_path / "out" / "leakage.csv")
    assert [(leak["row"], leak["conflict"]) for leak in leaks] == [("4", "yes"), ("5", "no")]
    assert leaks[0]["other_label"] == other[0]
    refused = newsdesk(*flags, "--drop", "label-errors", "--apply", tmp_path / "clean.jsonl")
    assert refused.code == 1
    assert "cannot tell which labels are wrong" in refused.err
    assert "micro F1" in refused.err
