"""Files as people have them: the same rows give the same figures, however they are written."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import zipfile

import pytest

from newsdesk.runs.folder import RunFolder

HEADER = ("Haber Metni", "Kategori", "Größe")
NAMED = ("--text", "Haber Metni", "--label", "Kategori")


@pytest.fixture(scope="module")
def rows(desk):
    """Text, class, and a cell with letters beyond ASCII, of the rows to test on."""
    with desk.test.open(newline="", encoding="utf-8") as stream:
        return [(row["words"], row["desk"], f"schön {n}; ja") for n, row in enumerate(csv.DictReader(stream))]


def delimited(rows, delimiter, quote, end="\n", header=HEADER):
    lines = [header, *rows] if header else rows
    return "".join(delimiter.join(f"{quote}{cell}{quote}" for cell in row) + end for row in lines)


def records(rows):
    return [dict(zip(HEADER, row, strict=True)) for row in rows]


def zipped(name, content):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(name, content)
    return sink.getvalue()


def workbook(rows):
    openpyxl = pytest.importorskip("openpyxl")
    book, sink = openpyxl.Workbook(), io.BytesIO()
    for row in (HEADER, *rows):
        book.active.append(row)
    book.save(sink)
    return sink.getvalue()


WRITERS = {
    "cp1252 with semicolons.csv": lambda rows: delimited(rows, ";", '"', "\r\n").encode("cp1252"),
    "single quotes.csv": lambda rows: delimited(rows, ";", "'").encode(),
    "pipes.txt": lambda rows: delimited(rows, "|", "").encode(),
    "tabs.csv": lambda rows: delimited(rows, "\t", "").encode(),
    "commas.tsv": lambda rows: delimited(rows, ",", '"').encode(),
    "Excel.csv": lambda rows: delimited(rows, "\t", "", "\r\n").encode("utf-16"),
    "Macintosh.csv.gz": lambda rows: gzip.compress(delimited(rows, ",", '"', "\r").encode("utf-8-sig")),
    "array.json": lambda rows: json.dumps(records(rows), indent=1).encode(),
    "lines.json": lambda rows: "".join(json.dumps(row) + "\n" for row in records(rows)).encode(),
    "archive.zip": lambda rows: zipped("in/rows.csv", delimited(rows, ";", '"')),
    "book.xlsx": workbook,
}


@pytest.mark.parametrize("name", WRITERS)
def test_evaluate_and_predict_read_the_same_rows_in_every_guise(newsdesk, desk, run, rows, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(WRITERS[name](rows))
    expected = newsdesk("evaluate", run, "--data", desk.test, "--json").json["metrics"]
    evaluated = newsdesk("evaluate", run, "--data", path, *NAMED, "--json")
    assert evaluated.json["metrics"] == expected
    output = tmp_path / "out.jsonl"
    predicted = newsdesk("predict", run, "--input", path, "--text", "Haber Metni", "--output", output)
    assert predicted.code == 0, predicted.err
    answers = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [tuple(answer[column] for column in HEADER) for answer in answers] == rows
    checked = newsdesk("data", "check", path, *NAMED)
    assert "read as: " in checked.out
    assert f"{len(rows)} rows" in checked.out


def ninjs(rows):
    """An item a row: a headline or a title; the class is a subject, behind one of another scheme."""
    return [
        {
            "uri": f"urn:x:{n}",
            "versionCreated": "2026-05-01T08:00:00Z",
            **({"headlines": [{"role": "main", "value": words}]} if n % 2 else {"title": words}),
            "subjects": [{"name": "Wire", "literal": "w"}, {"name": desk, "literal": f"desk:{n % 3}"}],
        }
        for n, (words, desk, _) in enumerate(rows)
    ]


def newsml(rows):
    items = "".join(
        f'<newsItem guid="urn:x:{n}"><contentMeta><subject qcode="wire:w"><name>Wire</name></subject>'
        f'<subject qcode="desk:{n % 3}"><name>{desk}</name></subject></contentMeta><contentSet><inlineXML>'
        f"<html><body><p>{words}</p></body></html></inlineXML></contentSet></newsItem>"
        for n, (words, desk, _) in enumerate(rows)
    )
    return (
        f'<newsMessage xmlns="http://iptc.org/std/nar/2006-10-01/"><itemSet>{items}</itemSet></newsMessage>'
    )


def rss(rows):
    items = "".join(
        f"<item><title>{words}</title><category domain='wire'>Wire</category>"
        f"<category domain='desk'>{desk}</category></item>"
        for words, desk, _ in rows
    )
    return f"<rss version='2.0'><channel>{items}</channel></rss>"


RULE = "subject[scheme=desk].name"


def test_news_formats_give_the_figures_of_the_same_rows_in_a_table(newsdesk, desk, run, rows, tmp_path):
    expected = newsdesk("evaluate", run, "--data", desk.test, "--json").json["metrics"]
    contents = {"a.json": json.dumps(ninjs(rows)), "a.xml": newsml(rows), "a.rss": rss(rows)}
    for name, content in contents.items():
        path = tmp_path / name
        path.write_text(content)
        evaluated = newsdesk("evaluate", run, "--data", path, "--label", RULE, "--json")
        assert evaluated.json["metrics"] == expected
        refused = newsdesk("evaluate", run, "--data", path)
        assert (refused.code, refused.out) == (1, "")
        assert "the row has several labels" in refused.err
        assert "subject.0.name" in refused.err
        report = newsdesk("data", "check", path, "--label", RULE)
        assert f"label: {RULE}" in report.out
        assert "2 subjects" not in report.out
        assert f"{2 * len(rows)} subjects, by scheme: " in report.out


def test_a_run_learns_from_ninjs_and_sorts_ninjs_for_the_next(newsdesk, desk, tmp_path):
    with desk.train.open(newline="", encoding="utf-8") as stream:
        learned = [(row["words"], row["desk"], "") for row in csv.DictReader(stream)]
    train, test, run = tmp_path / "train.jsonl", tmp_path / "test.json", tmp_path / "run"
    train.write_text("".join(f"{json.dumps(item)}\n" for item in ninjs(learned)))
    test.write_text(json.dumps(ninjs(learned[:40]), indent=1))
    settings = [flag for flag in desk.flags if flag.startswith("--set")]
    flags = ["--label", RULE, "--base", desk.base, "--epochs", "3", *settings]
    trained = newsdesk("train", "--data", train, "--out", run, *flags)
    assert trained.code == 0, trained.err
    assert RunFolder(run).labels.layout.text_columns == ("headline", "body")
    output = tmp_path / "sorted.json"
    predicted = newsdesk("predict", run, "--input", test, "--format", "ninjs", "--output", output)
    assert predicted.code == 0, predicted.err
    after = json.loads(output.read_text())
    added = [item["subjects"].pop() for item in after]
    assert after == ninjs(learned[:40])
    assert {tuple(subject) for subject in added} == {("name", "creator", "confidence")}
    predicted = newsdesk(
        "predict", run, "--input", test, "--format", "ninjs", "--output", "-", "--off-topic", "0.2"
    )
    shown = [item["subjects"][2:] for item in predicted.json]
    assert [subjects for subjects in shown if subjects] == [
        [one] for one, left in zip(added, shown, strict=True) if left
    ]


def test_a_run_learns_from_a_file_without_a_header_and_finds_its_rows_again(newsdesk, desk, tmp_path):
    with desk.train.open(newline="", encoding="utf-8") as stream:
        learned = [(row["desk"], f"{row['words']}; börse, {row['number']}") for row in csv.DictReader(stream)]
    train, test, run = tmp_path / "train.csv", tmp_path / "test.csv", tmp_path / "run"
    train.write_bytes(delimited(learned, ";", "'", "\r\n", header=None).encode("cp1252"))
    test.write_bytes(delimited(learned[:40], ";", "'", "\r\n", header=None).encode("cp1252"))
    flags = ["--base", desk.base, "--epochs", "2", "--set", "training.min_steps=0"]
    settings = [flag for flag in desk.flags if flag.startswith("--set")]
    trained = newsdesk("train", "--data", train, "--out", run, *flags, *settings)
    assert trained.code == 0, trained.err
    assert "encoding cp1252 (lines" in trained.err or "encoding cp1252" in trained.err
    assert "columns called label, text" in trained.err
    assert "delimiter ';'" in (run / "log.jsonl").read_text()
    evaluated = newsdesk("evaluate", run, "--data", test, "--baseline", "--json")
    assert evaluated.json["metrics"]["rows"] == 40
    output = tmp_path / "out.csv"
    predicted = newsdesk("predict", run, "--input", test, "--output", output)
    assert predicted.code == 0, predicted.err
    assert "reading " in predicted.err
    assert output.read_text(encoding="utf-8").splitlines()[0].startswith("label,text,predicted_label")


def test_what_flags_state_is_in_the_recipe_and_read_so_again(newsdesk, desk, tmp_path):
    with desk.train.open(newline="", encoding="utf-8") as stream:
        learned = [(row["number"], row["words"], row["desk"]) for row in csv.DictReader(stream)]
    train, run = tmp_path / "train.dat.csv", tmp_path / "run"
    train.write_bytes(delimited(learned, "~", "*", header=None).encode("utf-16-le"))
    stated = ["--delimiter", "~", "--quote", "*", "--encoding", "utf-16-le", "--no-header"]
    settings = [flag for flag in desk.flags if flag.startswith("--set")]
    flags = ["--text", "2", "--label", "3", "--base", desk.base, "--epochs", "1"]
    trained = newsdesk("train", "--data", train, "--out", run, *stated, *flags, *settings)
    assert trained.code == 0, trained.err
    recipe = (run / "recipe.toml").read_text()
    assert 'delimiter = "~"  # flag' in recipe
    assert 'encoding = "utf-16-le"  # flag' in recipe
    again = newsdesk("evaluate", run, "--data", train, *stated, "--baseline", "--json")
    assert again.json["metrics"]["rows"] == len(learned)
    assert newsdesk("train", "--out", run, "--resume").code == 0


def test_a_folder_for_each_class_is_trained_on_and_checked(newsdesk, desk, tmp_path):
    with desk.train.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            for split in ("train", "test"):
                folder = tmp_path / "desk" / split / row["desk"].replace("/", "-")
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{row['number']}.txt").write_text(row["words"])
    settings = [flag for flag in desk.flags if flag.startswith("--set")]
    run, data = tmp_path / "run", tmp_path / "desk"
    trained = newsdesk("train", "--data", data, "--out", run, "--base", desk.base, "--epochs", "1", *settings)
    assert trained.code == 0, trained.err
    assert newsdesk("evaluate", run, "--data", data, "--json").json["metrics"]["rows"] == 180
    assert "180 rows" in newsdesk("data", "check", data).out
    refused = newsdesk("predict", run, "--input", data, "--output", tmp_path / "out.csv")
    assert (refused.code, "is a folder" in refused.err) == (1, True)


def test_predict_refuses_a_file_that_is_not_read_right_and_leaves_nothing(newsdesk, run, tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("words,desk\n" + "Oil, up, and so on, further,Business\n" * 240 + "goal,Sports\n")
    refused = newsdesk("predict", run, "--input", path, "--output", tmp_path / "out.csv")
    assert refused.code == 1
    assert "240 of the 241 rows of in.csv cannot be classified" in refused.err
    assert "too many fields, first in line 2" in refused.err
    assert "--delimiter" in refused.err
    assert [each.name for each in tmp_path.iterdir() if each != run] == ["in.csv"]


@pytest.mark.parametrize("name", ["old.xls", "story.docx", "page.html", "rows.zip"])
def test_other_files_are_answered_with_one_sentence_and_the_fix(newsdesk, run, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(zipped("photo.jpg", b"x"))
    for verb in (["evaluate", run, "--data"], ["predict", run, "--input"], ["data", "check"]):
        refused = newsdesk(*verb, path)
        assert refused.code == 1
        assert "fix:" in refused.err
        assert "Traceback" not in refused.err


def test_every_verb_that_reads_files_takes_the_flags_of_their_dialect(
    newsdesk, desk, run, trained, rows, tmp_path
):
    path = tmp_path / "rows.txt"
    path.write_bytes(delimited(rows, "~", "*", header=None).encode("utf-16-be"))
    stated = ["--delimiter", "~", "--quote", "*", "--encoding", "utf-16-be", "--no-header"]
    columns = ["--text", "1", "--label", "2"]
    other = shutil.copytree(trained, tmp_path / "other")
    verbs = [
        ["data", "check", path, *columns],
        ["evaluate", run, "--data", path, "--split", "odd", *columns],
        ["report", run, "--data", path, "--split", "odd", *columns],
        ["compare", run, other, "--data", path, "--split", "odd", *columns],
        ["calibrate", run, "--data", path, *columns],
        ["export", run, "--to", "merged", "--data", path, *columns],
        ["predict", run, "--input", path, "--output", tmp_path / "out.csv", "--text", "1"],
        ["predict", run, "--input", path, "--text", "1", "--json"],
        ["audit", "--data", path, "--base", desk.base, "--out", tmp_path / "audit", "--folds", "2", *columns],
    ]
    for verb in verbs:
        outcome = newsdesk(*verb, *stated)
        assert outcome.code in ((0, 1) if verb[0] == "data" else (0,)), (verb, outcome.err)
        assert newsdesk(*verb, "--delimiter", "~~").code == 1
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as stream:
        assert [row["column_3"] for row in csv.DictReader(stream)] == [row[2] for row in rows]
