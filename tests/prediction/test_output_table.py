from __future__ import annotations

import csv
import gzip
import io
import json
import os
import stat
import sys
import threading
from datetime import date

import numpy as np
import pytest

pytest.importorskip("onnx")
from newsdesk.data.table import Row
from newsdesk.errors import UserError
from newsdesk.prediction.bulk import Classified, predict_file
from newsdesk.prediction.open_model import open_model
from newsdesk.prediction.output_formats import OUTPUT_TABLES
from newsdesk.prediction.output_table import (
    Piece,
    check_destination,
    output_format,
    output_names,
)
from newsdesk.prediction.predictions import Predictions
from tiny_exports import build_exported

NAMES = ("World", "Sci/Tech")
HOSTILE = (
    "",
    " padded ",
    '"',
    'a "quoted", word',
    "line\nbreak",
    "carriage\rreturn",
    "both\r\nof them",
    "tab\there",
    "\\back\\slash",
    "株価 🗞️ e\u0301",
    "\u2028\x85\x0b",
    "=1+1",
    "null",
    "\ufeffbom",
    "x" * 70_000,
)


def predictions(rows=2, names=NAMES):
    generator = np.random.default_rng(rows)
    return Predictions(generator.dirichlet(np.ones(len(names)), rows).astype(np.float32), names)


SURE = Predictions(np.array([[0.9, 0.1], [0.25, 0.75]]), NAMES)
COLUMNS, ROWS = ("id", "title"), (("7", "Rain"), ("3", "Chips"))


def written(rows=ROWS, columns=COLUMNS, given=SURE, format="csv", **options):
    """The bytes of a file of these rows and predictions."""
    table, file = OUTPUT_TABLES[format](columns, given.label_names, **options), io.BytesIO()
    numbered = [Row(number, tuple(cells)) for number, cells in enumerate(rows)]
    content, refused = table.write(Piece(numbered, given, range(len(rows))))
    assert not refused
    table.convert(io.BytesIO(content), file)
    return file.getvalue()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return open_model(build_exported(tmp_path_factory.mktemp("built") / "exported"))


@pytest.fixture
def predict(classifier):
    """Classify two texts into a file."""
    return lambda output, **options: predict_file(classifier, io.BytesIO(b"goal\nbank\n"), output, **options)


PREDICTED = b"text,label,probability,reason\ngoal,Sports,"


def read_csv(content, delimiter=","):
    return list(csv.reader(io.StringIO(content.decode(), newline=""), delimiter=delimiter, strict=True))


def test_label_and_probability_are_appended_to_the_inputs_own_columns_in_order():
    assert written() == b"id,title,label,probability\n7,Rain,World,0.9\n3,Chips,Sci/Tech,0.75\n"


def test_top_k_appends_the_runners_up():
    header, first, second = read_csv(written(top_k=5))
    assert header == ["id", "title", "label", "probability", "label_2", "probability_2"]
    assert first[2:] == ["World", "0.9", "Sci/Tech", "0.1"]
    assert second[2:] == ["Sci/Tech", "0.75", "World", "0.25"]


def test_all_probabilities_come_last_in_the_order_of_the_classes():
    header, _, second = read_csv(written(all_probabilities=True))
    assert header[2:] == ["label", "probability", "p(World)", "p(Sci/Tech)"]
    assert second[2:] == ["Sci/Tech", "0.75", "0.25", "0.75"]


def test_input_columns_are_never_overwritten():
    columns = ("label", "predicted_label", "probability", "label_2", "p(World)")
    rows = [("a", "b", "c", "d", "e")] * 2
    for format in ("csv", "jsonl"):
        content = written(rows, columns, top_k=2, all_probabilities=True, format=format)
        row = (
            json.loads(content.splitlines()[0])
            if format == "jsonl"
            else dict(zip(*read_csv(content)[:2], strict=True))
        )
        assert [row[name] for name in columns] == list("abcde")
        assert list(row)[5:] == [
            "predicted_predicted_label",
            "predicted_probability",
            "predicted_label_2",
            "probability_2",
            "predicted_p(World)",
            "p(Sci/Tech)",
        ]
        assert row["predicted_predicted_label"] == "World"


def test_output_names_are_free_and_distinct_whatever_the_input_calls_its_columns():
    wanted = ["label", "probability", "label_2", "predicted_label"]
    pool = [f"{'predicted_' * depth}{name}" for depth in range(3) for name in ("label", "probability")]
    for chosen in range(2 ** len(pool)):
        taken = [name for bit, name in enumerate(pool) if chosen >> bit & 1]
        names = output_names(wanted, taken)
        assert len({*names, *taken}) == len(names) + len(taken)


@pytest.mark.parametrize(("format", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_hostile_texts_come_back_from_delimited_files(format, delimiter):
    rows = [(text, other) for text in HOSTILE for other in HOSTILE]
    header, *back = read_csv(written(rows, ("a\nb", 'c"d'), predictions(len(rows)), format=format), delimiter)
    assert header == ["a\nb", 'c"d', "label", "probability"]
    assert [tuple(row[:2]) for row in back] == rows


def test_hostile_texts_come_back_from_json_lines_even_lone_surrogates():
    rows = [(text,) for text in (*HOSTILE, "lone \ud800 surrogate", "\\ud800 spelt out")]
    lines = written(rows, ("text",), predictions(len(rows)), format="jsonl").decode().split("\n")
    assert [json.loads(line)["text"] for line in lines[:-1]] == [text for (text,) in rows]
    assert lines[-1] == ""


def test_hostile_texts_come_back_from_parquet():
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [(text, i) for i, text in enumerate(HOSTILE)]
    given = predictions(len(rows))
    table = parquet.read_table(io.BytesIO(written(rows, ("text", "n"), given, format="parquet")))
    assert table.column_names == ["text", "n", "label", "probability"]
    assert list(zip(table["text"].to_pylist(), table["n"].to_pylist(), strict=True)) == rows
    assert table["label"].to_pylist() == list(given.labels)


def test_parquet_columns_without_a_common_type_become_text():
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [(1, "\ud800", 2**70), ("two", None, None)]
    table = parquet.read_table(io.BytesIO(written(rows, ("mixed", "surrogate", "big"), format="parquet")))
    assert table["mixed"].to_pylist() == ["1", "two"]
    assert table["surrogate"].to_pylist() == ["\\ud800", None]
    assert table["big"].to_pylist() == [str(2**70), None]


def test_json_lines_keep_the_types_of_the_input_and_are_strict_json():
    rows = [(1, None, [1, float("nan")]), (2.5, True, {"when": date(2004, 8, 1), "x": float("inf")})]
    lines = written(rows, ("n", "flag", "more"), format="jsonl").splitlines()
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in lines)
    assert first == {"n": 1, "flag": None, "more": [1, None], "label": "World", "probability": 0.9}
    assert second["more"] == {"when": "2004-08-01", "x": None}
    assert (second["n"], second["flag"]) == (2.5, True)


def test_a_submission_holds_row_numbers_and_class_ids_only():
    content = written(format="submission", top_k=3, all_probabilities=True)
    assert content == b"ID,Label\n0,0\n1,1\n"


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.csv", "csv"),
        ("a.tsv.gz", "tsv"),
        ("A.JSONL", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.b.parquet", "parquet"),
        ("a.CSV.GZ", "csv"),
    ],
)
def test_the_format_follows_the_files_ending(tmp_path, name, format):
    assert output_format(tmp_path / name) == format


@pytest.mark.parametrize("name", ["a", "a.gz", "a.xlsx", "csv", ".gz"])
def test_an_ending_that_names_no_format_needs_the_flag(tmp_path, name, predict):
    with pytest.raises(UserError, match="names no format") as caught:
        predict(tmp_path / name)
    assert "--format csv|tsv|jsonl|parquet|ninjs|submission" in str(caught.value.fix)
    assert list(tmp_path.iterdir()) == []
    predict(tmp_path / name, format="jsonl")
    assert (tmp_path / name).stat().st_size > 0


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_compressed_output_is_the_same_bytes_every_time(tmp_path, monkeypatch, predict, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    contents = []
    for name, clock in ((f"a.{ending}.gz", 1.0), (f"b.{ending}.gz", 2e9)):
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        predict(tmp_path / name)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    predict(tmp_path / f"c.{ending}")
    assert gzip.decompress(contents[0]) == (tmp_path / f"c.{ending}").read_bytes()


def test_a_lone_surrogate_is_written_as_its_escape():
    assert written([("\ud800",), ("ü",)], ("t",)).startswith(b"t,label,probability\n\\ud800,World")


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch, predict):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pyarrow") as caught:
        predict(tmp_path / "out.parquet")
    assert caught.value.fix == "pip install 'newsdesk[parquet]'"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("link", [None, "symlink", "hardlink"])
def test_the_input_file_cannot_be_the_output_file_by_any_name(tmp_path, link):
    source = tmp_path / "wire.csv"
    source.write_text("title\nRain\n")
    output = tmp_path / "sub" / ".." / "wire.csv"
    (tmp_path / "sub").mkdir()
    if link:
        output = tmp_path / "other.csv"
        (output.symlink_to if link == "symlink" else output.hardlink_to)(source)
    with pytest.raises(UserError, match="input file") as caught:
        check_destination(output, source=source)
    assert "--output" in str(caught.value.fix)
    assert source.read_text() == "title\nRain\n"


def test_another_file_than_the_input_may_be_written(tmp_path):
    source = tmp_path / "wire.csv"
    source.write_text("title\n")
    assert check_destination(tmp_path / "out.tsv", source=source) == "tsv"
    assert check_destination(tmp_path / "out.tsv", source=tmp_path / "gone.csv", format="csv") == "csv"


def test_an_empty_file_may_be_written_over(tmp_path, predict):
    (tmp_path / "out.csv").touch()
    predict(tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes().startswith(PREDICTED)


def test_a_folder_cannot_be_the_output(tmp_path):
    with pytest.raises(UserError, match="a folder"):
        check_destination(tmp_path)


def test_a_row_of_another_width_is_refused():
    with pytest.raises(ValueError, match="line 1 has 1 cells for 2 columns"):
        written([("7", "Rain"), ("3",)])


def test_a_failure_in_the_middle_leaves_the_old_file_and_no_other(tmp_path, predict):
    path = tmp_path / "out.csv"
    predict(path)
    old = path.read_bytes()

    def fail(event):
        if isinstance(event, Classified):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        predict(path, observe=fail)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "csv.gz", "parquet"])
def test_predictions_are_replaced_and_what_predict_did_not_write_is_not(tmp_path, ending, predict):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"out.{ending}"
    predict(path)
    once = path.read_bytes()
    predict(path)
    assert path.read_bytes() == once
    for mine in (b"id,title\n1,years of work\n", gzip.compress(b"id,title\n1,years of work\n"), b"\x1f\x8b"):
        path.write_bytes(mine)
        with pytest.raises(UserError, match="newsdesk predict did not write it") as refused:
            predict(path)
        assert "--output" in str(refused.value.fix)
        assert path.read_bytes() == mine


def test_a_place_that_cannot_be_written_is_one_clear_sentence(tmp_path, predict):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write") as caught:
        predict(tmp_path / "file" / "out.csv")
    assert "--output" in caught.value.fix


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path, predict):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    predict(pipe, format="csv")
    reader.join(timeout=10)
    assert read[0].startswith(PREDICTED)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path, predict):
    target, link = tmp_path / "target.csv", tmp_path / "link.csv"
    predict(target, top_k=2)
    link.symlink_to(target)
    predict(link)
    assert link.is_symlink()
    assert target.read_bytes().startswith(PREDICTED)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_two_input_columns_of_one_name_are_not_merged_into_one(format):
    pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match="two columns of one name") as caught:
        written(columns=("title", "title"), format=format)
    assert "'title'" in str(caught.value.found)
    assert read_csv(written(columns=("title", "title")))[0][:2] == ["title", "title"]


def test_rows_and_predictions_must_be_equally_many():
    with pytest.raises(ValueError, match="1 rows but 2 predictions"):
        written(ROWS[:1])


def test_no_rows_give_a_header_alone():
    assert written((), given=predictions(0)) == b"id,title,label,probability\n"
    assert written((), given=predictions(0), format="jsonl") == b""


def test_less_than_one_class_is_refused_before_anything_is_written(tmp_path, predict):
    with pytest.raises(UserError, match="--top-k"):
        predict(tmp_path / "out.csv", top_k=0)
    assert list(tmp_path.iterdir()) == []
