"""Bulk prediction: every row once, in its place, the bad ones set aside, from and to every kind of file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os

import numpy as np
import pytest

pytest.importorskip("onnx")

from newsdesk.data.dialect import Dialect
from newsdesk.errors import UserError
from newsdesk.prediction import bulk
from newsdesk.prediction.bulk import Begun, Classified, MostlyRejectedError, WindowWritten, predict_file
from newsdesk.prediction.open_model import open_model
from newsdesk.prediction.resumable_output import PartFile
from newsdesk.runs.calibration import HeldOutRows, store_calibration
from newsdesk.runs.exported import ExportedModel
from tiny_exports import build_exported


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return open_model(build_exported(tmp_path_factory.mktemp("built") / "exported"))


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(bulk, "ROWS_PER_WINDOW", 4)


def rejects_of(output):
    path = output.with_name(output.name + ".rejects.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else None


def write_csv(path, rows=10):
    topics = ("goal coach", "bank market profit", "orbit")
    path.write_text("n,text\n" + "".join(f"{n},{topics[n % 3]}\n" for n in range(rows)))
    return path


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_rows_of_many_characters_are_classified_in_smaller_windows(predictor, tmp_path, monkeypatch):
    source, whole, output = write_csv(tmp_path / "in.csv"), tmp_path / "whole.csv", tmp_path / "out.csv"
    predict_file(predictor, source, whole)
    monkeypatch.setattr(bulk, "CHARACTERS_PER_WINDOW", 20)
    events = []
    predict_file(predictor, source, output, observe=events.append)
    assert output.read_bytes() == whole.read_bytes()
    assert sum(isinstance(event, WindowWritten) for event in events) == 4


def test_a_row_beyond_a_limit_is_set_aside_with_its_beginning(predictor, tmp_path):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text(f"text\ngoal\n{'x' * 1_000_001}\nbank\n")
    predict_file(predictor, source, output)
    (reject,) = rejects_of(output)
    assert (reject["line"], reject["reason"], reject["cut_from"]) == (3, "a cell is too long", 1_000_002)
    assert "1,000,001 characters" in reject["found"]
    assert len(rows_of(output)) == 2
    predict_file(predictor, source, tmp_path / "all.csv", dialect=Dialect(max_characters=2_000_000))
    assert len(rows_of(tmp_path / "all.csv")) == 3


def test_another_threshold_is_another_job(tmp_path):
    folder = build_exported(tmp_path / "exported")
    logits = (
        np.eye(3, dtype=np.float32)[np.arange(300) % 3] * np.linspace(1, 3, 300, dtype=np.float32)[:, None]
    )
    labels = np.where(np.arange(300) < 60, 0, np.arange(300) % 3)
    store_calibration(folder, HeldOutRows(logits, labels, "abc"), "rows of a test")
    ExportedModel(folder).seal_calibration()
    predictor, source, output = open_model(folder), write_csv(tmp_path / "in.csv"), tmp_path / "out.csv"

    def stopped_in_the_middle(**promise):
        def stop(event):
            if isinstance(event, WindowWritten):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            predict_file(predictor, source, output, observe=stop, **promise)

    begun = []
    see = lambda event: begun.append(event) if isinstance(event, Begun) else None  # noqa: E731
    stopped_in_the_middle(abstain=0.2)
    predict_file(predictor, source, output, abstain=0.3, observe=see)
    stopped_in_the_middle(abstain=0.2)
    done = predict_file(predictor, source, output, abstain=0.2, observe=see)
    assert begun == [Begun(0, left_over=True), Begun(4, left_over=False)]
    assert done.unanswered == sum(not row["label"] for row in rows_of(output))


def test_bad_rows_are_set_aside_with_line_reason_and_bytes_and_the_rest_goes_on(predictor, tmp_path):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(b'n,text\n0,goal\n1,caf\xe9\n2,a,b\n3,bank\n"4" x,y\n5,"orbit"\n6,\n')
    done = predict_file(predictor, source, output)
    assert [(row["n"], row["label"]) for row in rows_of(output)][:3] == [
        ("0", "Sports"),
        ("3", "Business"),
        ("5", "Science"),
    ]
    assert len(rows_of(output)) == 4  # an empty text is a text
    rejects = rejects_of(output)
    assert [reject["line"] for reject in rejects] == [3, 4, 6]
    assert rejects[0]["reason"] == "the bytes are not UTF-8"
    assert rejects[0]["raw"] == repr(b"1,caf\xe9\n")
    assert (done.rows_read, done.rejected, done.rows_written) == (7, 3, 4)


def test_json_rows_keep_their_own_keys_and_those_without_text_are_set_aside(predictor, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [
        {"text": "goal", "id": 1},
        {"id": 2},
        {"id": 3, "text": None},
        {"late": [1, {"x": None}], "text": "bank"},
        {"text": ["goal"], "id": 4},
        {"text": "orbit", "label": "mine"},
        {"text": "goal"},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    predict_file(predictor, source, output)
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [list(row) for row in written] == [
        ["text", "id", "predicted_label", "probability", "reason"],
        ["late", "text", "predicted_label", "probability", "reason"],
        ["text", "label", "predicted_label", "probability", "reason"],
        ["text", "predicted_label", "probability", "reason"],
    ]
    assert written[2]["label"] == "mine"
    assert [(reject["line"], reject.get("row")) for reject in rejects_of(output)] == [
        (2, {"id": 2}),
        (3, {"id": 3, "text": None}),
        (5, {"text": ["goal"], "id": 4}),
        (8, None),
    ]


def test_an_object_without_keys_is_set_aside_like_any_other_without_text(predictor, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "goal coach"}\n{}\n{"text": "orbit"}\n')
    done = predict_file(predictor, source, output)
    assert (done.rows_read, done.rejected) == (3, 1)
    assert [reject["line"] for reject in rejects_of(output)] == [2]
    assert len(output.read_text().splitlines()) == 2


def test_a_key_that_the_first_rows_did_not_have_is_lost_in_no_column(predictor, tmp_path, monkeypatch):
    from newsdesk.data import stream

    source, output = tmp_path / "in.jsonl", tmp_path / "out.csv"
    source.write_text('{"text": "goal"}\n' * 5000 + '{"text": "bank", "late": 1}\n')
    monkeypatch.setattr(bulk, "ROWS_PER_WINDOW", stream.SAMPLED_ROWS)
    predict_file(predictor, source, output)
    assert len(rows_of(output)) == 5000
    (reject,) = rejects_of(output)
    assert "'late'" in reject["reason"]
    assert reject["row"] == {"text": "bank", "late": 1}
    with pytest.raises(UserError, match="line 5001: the key 'late'"):
        predict_file(predictor, source, tmp_path / "strict.csv", strict=True)


def test_parquet_keeps_types_and_sets_aside_what_has_another(predictor, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    days = pyarrow.array([1, 2, None, 4, 5, 6], pyarrow.date32())
    kinds = pyarrow.array(["a", "b", "a", "b", "a", "b"]).dictionary_encode()
    parquet.write_table(pyarrow.table({"text": ["goal"] * 6, "day": days, "kind": kinds}), source)
    events = []
    predict_file(predictor, source, output, observe=events.append)
    table = parquet.read_table(output)
    assert table.column_names == ["text", "day", "kind", "label", "probability", "reason"]
    assert table.column("day").combine_chunks().equals(days)
    assert [event.share for event in events if isinstance(event, WindowWritten)] == [4 / 6, 1.0]

    mixed = tmp_path / "mixed.jsonl"
    values = [1, 2, 3, 4, 5, "six", 7]
    mixed.write_text("".join(json.dumps({"text": "goal", "v": v}) + "\n" for v in values))
    predict_file(predictor, mixed, tmp_path / "mixed.parquet")
    assert parquet.read_table(tmp_path / "mixed.parquet").column("v").to_pylist() == [1, 2, 3, 4, 5, 7]
    assert [reject["line"] for reject in rejects_of(tmp_path / "mixed.parquet")] == [6]


def test_a_file_that_breaks_off_is_never_a_shorter_output(predictor, tmp_path):
    source, output = tmp_path / "in.csv.gz", tmp_path / "out.csv"
    body = "text\n" + "".join(f"goal {n * 7919}\n" for n in range(900))
    source.write_bytes(gzip.compress(body.encode())[:-900])
    with pytest.raises(UserError, match="breaks off"):
        predict_file(predictor, source, output)
    assert not output.exists()


def test_strict_stops_at_the_first_bad_row_and_without_it_the_work_goes_on(predictor, tmp_path):
    source, output = write_csv(tmp_path / "in.csv"), tmp_path / "out.csv"
    source.write_text(source.read_text().replace("6,goal coach", "6,goal,coach"))
    with pytest.raises(UserError, match=r"in\.csv, line 8: too many fields"):
        predict_file(predictor, source, output, strict=True)
    assert not output.exists()
    events = []
    done = predict_file(predictor, source, output, observe=events.append)
    assert events[0] == Begun(rows_before=4, left_over=False)
    assert [event.rows for event in events if isinstance(event, Classified)][-1] == 10
    assert (done.rows_read, done.rejected) == (10, 1)
    assert [row["n"] for row in rows_of(output)] == [str(n) for n in range(10) if n != 6]


def interrupt(predictor, source, output, monkeypatch, **named):
    """Stop after the first window, as a kill would."""

    def stop(event):
        if isinstance(event, WindowWritten):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(predictor, source, output, observe=stop, **named)


@pytest.mark.parametrize("ending", ["csv.gz", "jsonl", "parquet", "parquet.gz"])
def test_what_is_resumed_is_byte_for_byte_what_was_never_interrupted(
    predictor, tmp_path, monkeypatch, ending
):
    if "parquet" in ending:
        pytest.importorskip("pyarrow")
    source, output = write_csv(tmp_path / "in.csv"), tmp_path / f"out.{ending}"
    interrupt(predictor, source, output, monkeypatch)
    events = []
    predict_file(predictor, source, output, observe=events.append)
    assert events[0].rows_before == 4
    predict_file(predictor, source, tmp_path / f"whole.{ending}")
    assert output.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()


@pytest.mark.parametrize("change", ["input", "settings", "journal", "counts", "part"])
def test_work_is_taken_up_only_where_nothing_has_changed(predictor, tmp_path, monkeypatch, change):
    source, output = write_csv(tmp_path / "in.csv"), tmp_path / "out.csv"
    interrupt(predictor, source, output, monkeypatch)
    named = {}
    if change == "input":
        write_csv(source, rows=11)
    elif change == "settings":
        named = {"top_k": 2}
    elif change == "journal":
        (tmp_path / "out.csv.part.json").write_text("{torn")
    elif change == "counts":
        journal = tmp_path / "out.csv.part.json"
        content = json.loads(journal.read_text())
        journal.write_text(json.dumps({**content, "checkpoint": {**content["checkpoint"], "rows_read": -5}}))
    else:
        (tmp_path / "out.csv.part").write_text("")
    events = []
    predict_file(predictor, source, output, observe=events.append, **named)
    assert events[0] == Begun(rows_before=0, left_over=True)
    assert len(rows_of(output)) == (11 if change == "input" else 10)


@pytest.mark.parametrize(
    "name", ["out.csv.part", "out.csv.part.json", "out.csv.rejects.jsonl.part", "out.csv.part.lock"]
)
def test_a_link_where_unfinished_output_goes_is_not_followed(predictor, tmp_path, name):
    theirs = tmp_path / "theirs"
    theirs.write_text("years of work")
    (tmp_path / name).symlink_to(theirs)
    with pytest.raises(UserError, match="is in the way"):
        predict_file(predictor, write_csv(tmp_path / "in.csv"), tmp_path / "out.csv")
    assert (theirs.read_text(), (tmp_path / name).is_symlink()) == ("years of work", True)


def test_a_kill_while_files_are_put_in_place_is_made_good(predictor, tmp_path, monkeypatch):
    source, output = write_csv(tmp_path / "in.csv"), tmp_path / "out.csv"
    source.write_text(source.read_text().replace("6,goal coach", "6,goal,coach"))
    finish = PartFile.finish

    def killed(self, convert=None):
        self._rejects_part.replace(self.rejects)
        raise KeyboardInterrupt

    monkeypatch.setattr(PartFile, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_file(predictor, source, output)
    monkeypatch.setattr(PartFile, "finish", finish)
    predict_file(predictor, source, output)
    assert len(rows_of(output)) == 9
    assert len(rejects_of(output)) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"in.csv", "out.csv", "out.csv.rejects.jsonl"}


def test_an_earlier_file_of_rejects_does_not_outlive_an_output_without_any(predictor, tmp_path):
    source, output = write_csv(tmp_path / "in.csv"), tmp_path / "out.csv"
    (tmp_path / "out.csv.rejects.jsonl").write_text("old")
    predict_file(predictor, source, output)
    assert rejects_of(output) is None


def test_rejects_overwrite_neither_input_nor_output_and_two_processes_not_each_other(predictor, tmp_path):
    source, output = write_csv(tmp_path / "in.csv"), tmp_path / "out.csv"
    for other in (source, output):
        with pytest.raises(UserError, match="the rejects would overwrite"):
            predict_file(predictor, source, output, rejects=other)
    with PartFile(output, tmp_path / "r", {}).opened(), pytest.raises(UserError, match="another process"):
        predict_file(predictor, source, output)


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet", "submission"])
def test_streams_give_what_files_give(predictor, tmp_path, format):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    lines = b"goal\nbank\n\xff\norbit\ngoal coach\nbank\n"
    sink, rejects = io.BytesIO(), tmp_path / "rejects.jsonl"
    predict_file(predictor, io.BytesIO(lines), sink, format=format, rejects=rejects)
    source, output = tmp_path / "in.txt", tmp_path / f"out.{format}"
    source.write_bytes(lines)
    predict_file(predictor, source, output, format=format)
    assert sink.getvalue() == output.read_bytes()
    assert [json.loads(line) for line in rejects.read_text().splitlines()] == rejects_of(output)
    if format == "submission":
        assert output.read_text().splitlines() == ["ID,Label", "0,2", "1,0", "3,1", "4,2", "5,0"]


def test_a_pipe_of_columns_is_read_with_the_delimiter_that_is_stated(predictor, tmp_path):
    sink = io.BytesIO()
    dialect = Dialect(delimiter=";")
    predict_file(predictor, io.BytesIO(b"n;text\n1;goal, coach\n2;bank\n"), sink, dialect=dialect)
    answers = list(csv.DictReader(io.StringIO(sink.getvalue().decode())))
    assert [(row["n"], row["text"], row["label"]) for row in answers] == [
        ("1", "goal, coach", "Sports"),
        ("2", "bank", "Business"),
    ]


def test_a_pipe_into_a_file_starts_over_and_takes_its_name_at_the_end(predictor, tmp_path):
    output = tmp_path / "out.jsonl.gz"
    for _ in range(2):
        predict_file(predictor, io.BytesIO(b"goal\n" * 9), output)
        assert gzip.decompress(output.read_bytes()).count(b"Sports") == 9
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.gz"]


def test_a_disk_that_refuses_says_how_to_go_on(predictor, tmp_path, monkeypatch):
    from newsdesk.prediction import resumable_output as part_file

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(part_file.os, "fsync", full)
    with pytest.raises(UserError, match="resumes where it stopped"):
        predict_file(predictor, write_csv(tmp_path / "in.csv"), tmp_path / "out.csv")


def bad_rows(count):
    return "".join(f"{n},goal,coach,too,many\n" for n in range(count))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("good", [1, 3, 8])
def test_a_file_of_which_most_rows_are_rejected_is_refused_and_leaves_nothing(
    predictor, tmp_path, good, compressed
):
    body = (write_csv(tmp_path / "in.csv", rows=good).read_text() + bad_rows(9)).encode()
    (tmp_path / "in.csv").unlink()
    source = tmp_path / ("in.csv.gz" if compressed else "in.csv")
    source.write_bytes(gzip.compress(body) if compressed else body)
    before, output = sorted(tmp_path.iterdir()), tmp_path / "new" / "folders" / "out.csv"
    computed = []
    with pytest.raises(MostlyRejectedError) as caught:
        predict_file(predictor, source, output, observe=lambda event: computed.append(type(event)))
    assert "cannot be classified" in caught.value.wrong
    assert f"too many fields, first in line {good + 2} (5 where the first row has 2)" in str(caught.value)
    assert "--delimiter" in str(caught.value.fix)
    assert sorted(tmp_path.iterdir()) == before
    assert (Classified in computed) is (good > 1)  # what the first window shows is not computed


def test_half_of_the_rows_may_be_rejected(predictor, tmp_path):
    source = write_csv(tmp_path / "in.csv", rows=5)
    source.write_text(source.read_text() + bad_rows(5))
    assert predict_file(predictor, source, tmp_path / "out.csv").rejected == 5


def test_rejects_before_a_kill_count_against_a_file_too(predictor, tmp_path, monkeypatch):
    source, output = write_csv(tmp_path / "in.csv", rows=4), tmp_path / "out.csv"
    source.write_text(source.read_text() + bad_rows(9))
    interrupt(predictor, source, output, monkeypatch)
    assert (tmp_path / "out.csv.part").exists()
    with pytest.raises(MostlyRejectedError, match="9 of the 13 rows"):
        predict_file(predictor, source, output)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_a_stream_of_which_most_rows_are_rejected_ends_in_an_error_and_is_not_begun(predictor, tmp_path):
    sink, rejects = io.BytesIO(), tmp_path / "rejects.jsonl"
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(b"g\xf6al\n" * 3 + b"bank\n")
    with os.fdopen(reading, "rb") as pipe, pytest.raises(MostlyRejectedError, match="--encoding"):
        predict_file(predictor, pipe, sink, rejects=rejects)
    assert sink.getvalue() == b""
    assert not rejects.exists()


@pytest.mark.parametrize("why", ["column", "strict", "empty", "broken", "format"])
def test_a_refusal_leaves_no_file_behind(predictor, tmp_path, why):
    source, named = write_csv(tmp_path / "in.csv"), {}
    if why == "column":
        named = {"text": ["nowhere"]}
    elif why == "strict":
        source.write_text(source.read_text().replace("0,goal coach", "0,goal,coach"))
        named = {"strict": True}
    elif why == "empty":
        source.write_text("")
    elif why == "broken":
        source = source.with_name("in.csv.gz")
        source.write_bytes(gzip.compress(b"text\ngoal\nbank\n")[:-9])
    else:
        source = source.with_name("in.jsonl")
        source.write_text('{"label": "a", "text": "goal", "predicted_label": 1, "label": 2}\n')
    before = {path.name for path in tmp_path.iterdir()} | {source.name}
    with pytest.raises(UserError):
        predict_file(
            predictor, source, tmp_path / "deep" / "out.jsonl", rejects=tmp_path / "r" / "x", **named
        )
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("encoding", "delimiter", "quote"), [("cp1252", ";", "'"), ("utf-16", "\t", '"'), ("utf-8", "|", '"')]
)
def test_work_goes_on_after_a_kill_in_the_dialect_it_began_in(
    predictor, tmp_path, monkeypatch, encoding, delimiter, quote
):
    rows = [(str(n), f"goal; t{n}, die Börse {n % 3}|\tx", "Börse") for n in range(11)]
    lines = [("n", "text", "wo"), *rows]
    source, output = tmp_path / "in.csv", tmp_path / "out.jsonl"
    source.write_text(
        "".join(delimiter.join(f"{quote}{cell}{quote}" for cell in row) + "\r\n" for row in lines), encoding
    )
    interrupt(predictor, source, output, monkeypatch)
    events = []
    predict_file(predictor, source, output, observe=events.append)
    assert events[0].rows_before == 4
    assert f"delimiter {'tab' if delimiter == chr(9) else repr(delimiter)}" in events[0].read_as
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["n"], row["text"], row["wo"]) for row in written] == rows


def test_a_file_without_one_readable_row_is_refused_for_its_rows(predictor, tmp_path):
    (tmp_path / "in.csv").write_bytes(bytes(range(256)) * 9)
    with pytest.raises(MostlyRejectedError, match="cannot be classified"):
        predict_file(predictor, tmp_path / "in.csv", tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
