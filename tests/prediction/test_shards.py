"""Files to files: names, what is refused, and publishing whole."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("pyarrow")
from pyarrow import fs

from newsdesk.errors import UserError
from newsdesk.prediction.ray_bulk import Shard, Storage, begin_job, done_before, finish_shard, shards_of
from newsdesk.prediction.resumable_output import Counts


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in" / "below").mkdir(parents=True)
    for name in ("a.csv", "below/b.jsonl.gz", "c.txt", "_SUCCESS", ".hidden.csv", "d.parquet"):
        (tmp_path / "in" / name).write_bytes(b"x")
    return tmp_path / "in"


@pytest.fixture
def object_store(tmp_path, monkeypatch):
    """A storage that is no local folder: bytes go through its file system, which knows no folders."""

    def storage(name="store"):
        (tmp_path / name).mkdir(exist_ok=True)
        built = Storage(str(tmp_path / name))
        built._filesystem, built._base = fs.SubTreeFileSystem(str(tmp_path / name), fs.LocalFileSystem()), ""
        built.local = False
        return built

    return storage


def outputs(folder, format):
    return {shard.source: (shard.output, shard.format) for shard in shards_of(Storage(str(folder)), format)}


def test_every_data_file_gets_an_output_of_its_own_format(folder):
    assert outputs(folder, None) == {
        "a.csv": ("a.csv", "csv"),
        "below/b.jsonl.gz": ("below/b.jsonl.gz", "jsonl"),
        "c.txt": ("c.txt.csv", "csv"),
        "d.parquet": ("d.parquet", "parquet"),
    }


def test_a_format_asked_for_is_every_outputs(folder):
    assert {name for name, _ in outputs(folder, "parquet").values()} == {
        *("a.csv.parquet", "below/b.jsonl.gz.parquet", "c.txt.parquet", "d.parquet")
    }
    assert outputs(folder, "submission")["a.csv"] == ("a.csv", "submission")


def test_news_gets_lines_of_json_and_ninjs_its_own_names(tmp_path):
    for name in ("a.xml", "b.json", "c.jsonl.gz", "d.rss.gz"):
        (tmp_path / name).write_bytes(b"x")
    assert outputs(tmp_path, None) == {
        "a.xml": ("a.xml.jsonl", "jsonl"),
        "b.json": ("b.json.jsonl", "jsonl"),
        "c.jsonl.gz": ("c.jsonl.gz", "jsonl"),
        "d.rss.gz": ("d.rss.gz.jsonl", "jsonl"),
    }
    assert outputs(tmp_path, "ninjs")["b.json"] == ("b.json", "ninjs")


def test_one_file_is_a_job_too(folder):
    (shard,) = shards_of(Storage(str(folder / "a.csv")), None)
    assert (shard.output, shard.size) == ("a.csv", 1)
    assert Storage(str(folder / "a.csv")).fetch(shard.source, folder) == folder / "a.csv"


def test_a_uri_is_a_location_too(folder):
    assert len(shards_of(Storage((folder).as_uri()), None)) == 4


@pytest.mark.parametrize("location", ["nowhere://bucket/folder", "://"])
def test_a_location_that_is_not_understood_is_refused(location):
    with pytest.raises(UserError, match="cannot be opened"):
        Storage(location)


def test_a_folder_without_data_is_refused(tmp_path):
    with pytest.raises(UserError, match="no data files"):
        shards_of(Storage(str(tmp_path / "missing")), None)


def test_two_inputs_for_one_output_are_refused(folder):
    (folder / "a.csv.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match=r"share the output file a\.csv\.parquet"):
        outputs(folder, "parquet")


def test_an_unknown_format_is_not_passed_over(folder):
    (folder / "notes.md").write_bytes(b"x")
    with pytest.raises(UserError, match=r"notes\.md"):
        outputs(folder, None)


def test_an_output_inside_the_input_is_refused(folder):
    with pytest.raises(UserError, match="outside"):
        begin_job(Storage(str(folder)), Storage(str(folder / "out")), {}, [])
    begin_job(Storage(str(folder)), Storage(str(folder.parent / "out")), {}, [])


SHARD = Shard("a.csv", "a.csv", "csv", 1, 5)


def test_two_jobs_do_not_share_a_folder(tmp_path):
    source, output = Storage(str(tmp_path / "in")), Storage(str(tmp_path / "out"))
    begin_job(source, output, {"model": "one", "text": ("a", "b")}, [SHARD])
    begin_job(source, output, {"model": "one", "text": ("a", "b")}, [SHARD])
    with pytest.raises(UserError, match="it differs in model"):
        begin_job(source, output, {"model": "two", "text": ("a", "b")}, [SHARD])


@pytest.mark.parametrize("name", ["a.csv", "other.csv"])
def test_files_of_others_are_never_overwritten(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(UserError, match="does not write"):
        begin_job(Storage(str(tmp_path / "in")), Storage(str(tmp_path / "out")), {}, [SHARD])


@pytest.mark.parametrize("kind", ["local", "object store"])
def test_a_finished_shard_is_known_by_its_note(tmp_path, kind, object_store):
    output = Storage(str(tmp_path / "out")) if kind == "local" else object_store()
    if kind != "local":
        for part in ("_done", "_rejects"):
            (tmp_path / "store" / part).mkdir()
    written, rejects = tmp_path / "written.csv", tmp_path / "rejects"
    written.write_text("rows")
    rejects.write_text("bad")
    assert done_before(output, [SHARD]) == {}
    finish_shard(output, SHARD, written, rejects, Counts(9, 2, 4))
    assert done_before(output, [SHARD]) == {"a.csv": Counts(9, 2, 4)}
    assert (output.read("a.csv"), output.read("_rejects/a.csv.jsonl")) == (b"rows", b"bad")
    note = output.read(SHARD.note)
    for damaged in (b"{torn", b"[]", note.replace(b": 9", b": -9")):
        output.publish(damaged, SHARD.note)
        assert done_before(output, [SHARD]) == {}
    rejects.unlink()
    finish_shard(output, SHARD, written, rejects, Counts(9, 0))
    assert output.read("_rejects/a.csv.jsonl") is None
    assert done_before(output, [Shard("a.csv", "a.csv", "csv", 2, 5)]) == {}  # the input grew
    assert [name for name, _, _ in output.files("_done")] == ["_done/a.csv.json"]


def test_a_storage_that_may_not_be_written_is_explained(tmp_path):
    (tmp_path / "out").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="cannot write"):
        Storage(str(tmp_path / "out")).publish(tmp_path / "out", "a.csv")


def test_without_pyarrow_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"newsdesk\[ray\]"):
        Storage("in")


def test_objects_are_copied_to_be_read(tmp_path, object_store):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.csv").write_text("rows")
    copy = object_store().fetch("a.csv", tmp_path)
    assert copy.read_text() == "rows"
    with pytest.raises(UserError, match="cannot read"):
        object_store().fetch("missing.csv", tmp_path)


def test_packed_inputs_get_outputs_of_a_format_that_can_be_written(tmp_path):
    for name in ("a.json", "b.json.gz", "c.zip", "d.xlsx"):
        (tmp_path / name).write_bytes(b"x")
    shards = shards_of(Storage(str(tmp_path)), None)
    assert [(shard.output, shard.format) for shard in shards] == [
        ("a.json.jsonl", "jsonl"),
        ("b.json.gz.jsonl", "jsonl"),
        ("c.zip.csv", "csv"),
        ("d.xlsx.csv", "csv"),
    ]
