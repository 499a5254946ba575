"""``newsdesk predict``: from texts, standard input and files of every kind, to the same kinds."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle

import pytest

TEXTS = ("goal coach league", "bank profit market")
LABELS = ["Sports", "Business"]


def rows_of(text, delimiter=","):
    return list(csv.DictReader(io.StringIO(text), delimiter=delimiter))


def labels_of(text):
    return [row["label"] for row in rows_of(text)]


def test_texts_are_answered_a_line_each_in_order(newsdesk, trained):
    outcome = newsdesk("predict", trained, *TEXTS)
    assert outcome.code == 0
    assert [line.split()[0] for line in outcome.lines] == LABELS
    assert [line.endswith(text) for line, text in zip(outcome.lines, TEXTS, strict=True)] == [True, True]
    assert outcome.err == ""


def test_top_k_and_probabilities_name_more_classes(newsdesk, trained):
    (line,) = newsdesk("predict", trained, TEXTS[0], "--top-k", "2").lines
    assert line.startswith("Sports ")
    assert line.count("%") == 2
    (line,) = newsdesk("predict", trained, TEXTS[0], "--probabilities").lines
    assert line.count("%") == 3


def test_json_holds_the_ranked_classes_or_all_of_them(newsdesk, trained):
    ranked = newsdesk("predict", trained, *TEXTS, "--top-k", "2", "--json").json["predictions"]
    assert [prediction["label"] for prediction in ranked] == LABELS
    assert [len(prediction["top_k"]) for prediction in ranked] == [2, 2]
    (every,) = newsdesk("predict", trained, TEXTS[0], "--probabilities", "--json").json["predictions"]
    assert set(every["probabilities"]) == {"Business", "Science", "Sports"}
    assert sum(every["probabilities"].values()) == pytest.approx(1, abs=1e-5)


class Terminal(io.BytesIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("flags", [[], ["--input", "-"], ["--input", "-", "--output", "-"]])
def test_standard_input_is_a_text_a_line(newsdesk, trained, flags):
    outcome = newsdesk("predict", trained, *flags, stdin="\n".join(TEXTS).encode())
    assert [row["text"] for row in rows_of(outcome.out)] == list(TEXTS)
    assert labels_of(outcome.out) == LABELS


def test_nothing_to_classify_is_wrong_usage_at_a_terminal_and_a_failure_in_a_pipe(newsdesk, trained):
    assert newsdesk("predict", trained, stdin=b"").code == 1
    outcome = newsdesk("predict", trained, stdin=Terminal())
    assert outcome.code == 2
    assert "Nothing to classify" in outcome.err


def test_columns_and_order_of_a_file_are_kept(newsdesk, trained, desk, tmp_path):
    out = tmp_path / "out.csv"
    assert newsdesk("predict", trained, "--input", desk.test, "--output", out).code == 0
    given, predicted = rows_of(desk.test.read_text()), rows_of(out.read_text())
    assert list(predicted[0]) == ["number", "words", "desk", "label", "probability", "reason"]
    assert [{key: row[key] for key in given[0]} for row in predicted] == given
    right = sum(row["label"] == row["desk"] for row in predicted)
    assert right > 0.9 * len(given)


def parquet_rows(path):
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def write_input(path):
    """The two texts with another column, in the kind of file that the name tells."""
    records = [{"number": str(number), "words": text} for number, text in enumerate(TEXTS)]
    kind = path.name.split(".")[1]
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(records), path)
        return
    if kind == "jsonl":
        text = "".join(json.dumps(record) + "\n" for record in records)
    else:
        tab = "," if kind == "csv" else "\t"
        text = "".join(f"{a}{tab}{b}\n" for a, b in [("number", "words"), *(r.values() for r in records)])
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def read_output(path):
    kind = path.name.split(".")[1]
    if kind == "parquet":
        return parquet_rows(path)
    text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    if kind == "jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return rows_of(text, "," if kind == "csv" else "\t")


@pytest.mark.parametrize("source", ["in.csv", "in.csv.gz", "in.tsv", "in.jsonl", "in.jsonl.gz", "in.parquet"])
@pytest.mark.parametrize("target", ["out.csv", "out.tsv.gz", "out.jsonl", "out.parquet"])
def test_every_kind_of_file_becomes_every_kind(newsdesk, predicting, tmp_path, source, target):
    write_input(tmp_path / source)
    outcome = newsdesk("predict", predicting, "--input", tmp_path / source, "--output", tmp_path / target)
    assert (outcome.code, outcome.out) == (0, "")
    rows = read_output(tmp_path / target)
    assert [list(row) for row in rows] == [["number", "words", "label", "probability", "reason"]] * 2
    assert [(row["number"], row["words"], row["label"]) for row in rows] == [
        (str(number), text, label) for number, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True))
    ]


@pytest.fixture
def predicting(trained, monkeypatch):
    """The trained run, loaded once for many commands: here it matters what they read and write."""
    from newsdesk.prediction import open_model as loading

    if not _LOADED:
        _LOADED.append(loading.open_model(trained))
    monkeypatch.setattr(loading, "open_model", lambda *_arguments, **_named: _LOADED[0])
    return trained


_LOADED: list[object] = []


def test_a_submission_is_number_and_class_id_on_standard_output(newsdesk, predicting):
    assert newsdesk("predict", predicting, *TEXTS, "--format", "submission").lines == [
        "ID,Label",
        "0,2",
        "1,0",
    ]


def test_bytes_reach_standard_output_unharmed(newsdesk, predicting, tmp_path):
    pytest.importorskip("pyarrow")
    outcome = newsdesk("predict", predicting, *TEXTS, "--format", "parquet", "--output", "-")
    (tmp_path / "out.parquet").write_bytes(outcome.stdout)
    assert [row["label"] for row in parquet_rows(tmp_path / "out.parquet")] == LABELS


def test_ranked_classes_and_all_probabilities_become_columns(newsdesk, predicting):
    flags = ["--format", "csv", "--top-k", "2", "--probabilities"]
    (row,) = rows_of(newsdesk("predict", predicting, TEXTS[0], *flags).out)
    assert list(row) == [
        *("text", "label", "probability", "label_2", "probability_2"),
        *("p(Business)", "p(Science)", "p(Sports)", "reason"),
    ]
    assert row["label"] == "Sports"


def test_text_columns_can_be_named(newsdesk, predicting, tmp_path):
    (tmp_path / "in.csv").write_text("first,second\nbank,goal coach league\n")
    refused = newsdesk("predict", predicting, "--input", tmp_path / "in.csv")
    assert refused.code == 1
    assert "--text" in refused.err
    named = newsdesk("predict", predicting, "--input", tmp_path / "in.csv", "--text", "second")
    assert labels_of(named.out) == ["Sports"]
    templated = newsdesk("predict", predicting, "--input", tmp_path / "in.csv", "--template", "{second}")
    assert labels_of(templated.out) == ["Sports"]


def test_a_header_that_looks_like_a_row_is_taken_as_told(newsdesk, predicting, tmp_path):
    (tmp_path / "in.csv").write_text("title\ngoal coach\n")
    outcome = newsdesk("predict", predicting, "--input", tmp_path / "in.csv", "--no-header")
    assert len(rows_of(outcome.out)) == 2


def test_a_file_without_rows_gives_a_header_and_no_rows(newsdesk, predicting, tmp_path):
    (tmp_path / "in.csv").write_text("number,words\n")
    outcome = newsdesk("predict", predicting, "--input", tmp_path / "in.csv", "--header")
    assert (outcome.code, outcome.out.strip()) == (0, "number,words,label,probability,reason")


def test_an_argument_that_is_no_utf_8_is_classified_and_shown(newsdesk, predicting):
    outcome = newsdesk("predict", predicting, "goal coach \udcff")
    assert outcome.code == 0
    assert outcome.lines[0].endswith("goal coach \\udcff")


def test_the_input_is_never_overwritten(newsdesk, trained, tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("words\ngoal\n")
    (tmp_path / "link.csv").symlink_to(path)
    for output in (path, tmp_path / "." / "in.csv", tmp_path / "link.csv"):
        outcome = newsdesk("predict", trained, "--input", path, "--output", output)
        assert outcome.code == 1
        assert "would be lost" in outcome.err
    assert path.read_text() == "words\ngoal\n"


def test_a_pickle_is_refused_unread(newsdesk, trained, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('the pickle was loaded')",))

    content = pickle.dumps(Bomb())
    for name in ("in.pkl", "in.csv", "in.parquet"):
        (tmp_path / name).write_bytes(content)
        outcome = newsdesk("predict", trained, "--input", tmp_path / name)
        assert outcome.code == 1
        assert "pickle" in outcome.err


def test_an_output_that_could_not_be_written_is_refused_before_the_work(
    newsdesk, trained, monkeypatch, tmp_path
):
    from newsdesk.prediction import open_model as loading

    monkeypatch.setattr(loading, "open_model", lambda *_, **_named: pytest.fail("the model was loaded"))
    for output in (tmp_path, tmp_path / "out.xlsx"):
        assert newsdesk("predict", trained, "goal", "--output", output).code == 1


@pytest.mark.parametrize(
    ("path", "said"), [("nowhere", "no such folder"), ("file", "a file"), ("empty", "empty")]
)
def test_what_is_no_run_is_refused(newsdesk, tmp_path, path, said):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    outcome = newsdesk("predict", tmp_path / path, "goal")
    assert outcome.code == 1
    assert said in outcome.err


SILENT = ("", " \t", "\u200b")


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.jsonl", "out.parquet"])
def test_an_empty_text_gets_no_label_but_the_reason_in_every_kind_of_file(
    newsdesk, predicting, tmp_path, name
):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with (tmp_path / "in.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("number", "words"), (1, "goal coach"), *enumerate(SILENT, 2)])
    outcome = newsdesk("predict", predicting, "--input", tmp_path / "in.csv", "--output", tmp_path / name)
    assert outcome.code == 0, outcome.err
    assert "3 texts have no label: empty, or without a known token; --answer-empty" in outcome.err
    rows = read_rows(tmp_path / name)
    assert [row["label"] or None for row in rows] == ["Sports", None, None, None]
    assert [row["reason"] or None for row in rows] == [None, *["empty text"] * 3]
    flags = ["--output", tmp_path / name, "--answer-empty"]
    answered = newsdesk("predict", predicting, "--input", tmp_path / "in.csv", *flags)
    assert answered.err == ""
    rows = read_rows(tmp_path / name)
    assert all(row["label"] for row in rows)
    assert "reason" not in rows[0]


def test_an_empty_text_gets_no_answer_on_the_command_line_in_a_pipe_and_in_a_submission(
    newsdesk, predicting, tmp_path
):
    outcome = newsdesk("predict", predicting, "goal coach", " ")
    assert outcome.lines[1].split("  ")[0].strip() == "? empty text"
    found = newsdesk("predict", predicting, "goal coach", " ", "--json").json["predictions"]
    assert [(one["label"], one.get("reason")) for one in found] == [("Sports", None), (None, "empty text")]
    piped = rows_of(newsdesk("predict", predicting, stdin=b"goal coach\n\nbank\n").out)
    assert [(row["label"], row["reason"]) for row in piped][:2] == [("Sports", ""), ("", "empty text")]
    (tmp_path / "in.csv").write_text('number,words\n1,goal\n2," "\n')
    flags = ["--format", "submission", "--output", tmp_path / "out.csv"]
    assert newsdesk("predict", predicting, "--input", tmp_path / "in.csv", *flags).code == 0
    assert (tmp_path / "out.csv").read_text() == "ID,Label\n0,2\n1,\n"


def test_the_share_of_cut_texts_is_said(newsdesk, predicting, tmp_path):
    long = "goal coach " * 40
    outcome = newsdesk("predict", predicting, "goal coach", long)
    assert "1 of 2 texts (50.0%) cut to" in outcome.err
    told = newsdesk("predict", predicting, "goal coach", long, "--json").json["truncation"]
    assert (told["texts"], told["cut"], told["share_cut"]) == (2, 1, 0.5)
    assert told["lost"] == told["tokens"] - 4 - told["max_length"]
    (tmp_path / "in.csv").write_text(f"number,words\n1,goal\n2,{long}\n")
    streamed = newsdesk("predict", predicting, "--input", tmp_path / "in.csv", "--output", tmp_path / "o.csv")
    assert "1 of 2 texts (50.0%) cut to" in streamed.err


def read_rows(path):
    if path.suffix == ".parquet":
        return parquet_rows(path)
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return rows_of(path.read_text(), "\t" if path.suffix == ".tsv" else ",")
