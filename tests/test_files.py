"""Files are either whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
from pathlib import Path

import pytest

from newsdesk import files
from newsdesk.errors import UserError
from newsdesk.files import (
    atomic_writer,
    cut_to_whole_lines,
    disk_full,
    remove_leftovers,
    sha256_of,
    stored_tensors,
    take_own,
    write_bytes,
    write_json,
    write_text,
)


def test_what_is_written_is_read_back_and_nothing_else_is_left(tmp_path: Path):
    write_bytes(tmp_path / "deep" / "er" / "a.bin", b"\x00\r\n")
    write_text(tmp_path / "a.txt", "naïve\nlines\n")
    write_json(tmp_path / "a.json", {"label": "Größe", "ids": [1, 2]})
    assert (tmp_path / "deep" / "er" / "a.bin").read_bytes() == b"\x00\r\n"
    assert (tmp_path / "a.txt").read_bytes() == "naïve\nlines\n".encode()
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"label": "Größe", "ids": [1, 2]}
    assert "Größe" in (tmp_path / "a.json").read_text("utf-8")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.json", "a.txt", "deep"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path):
    path = tmp_path / "a"
    write_text(path, "old")
    with atomic_writer(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_an_interrupted_write_leaves_the_old_file_and_no_part_of_the_new(tmp_path: Path):
    path = tmp_path / "a"
    write_text(path, "old")

    def interrupted() -> None:
        with atomic_writer(path) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_in_a_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch, number: int):
    def full(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match=r"no space left to write model\.bin"):
        write_bytes(tmp_path / "model.bin", b"x")
    assert list(tmp_path.iterdir()) == []


def test_another_failure_of_the_disk_stays_what_it_is(tmp_path: Path, monkeypatch):
    def broken(_descriptor: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(files.os, "fsync", broken)
    with pytest.raises(OSError, match="input/output"):
        write_bytes(tmp_path / "a", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_vanished_part_is_no_second_error(tmp_path: Path):
    def swept_away() -> None:
        with atomic_writer(tmp_path / "a"):
            for part in tmp_path.iterdir():
                part.unlink()
            raise KeyError("the first")

    with pytest.raises(KeyError, match="the first"):
        swept_away()


def test_what_kills_left_half_written_is_removed_and_nothing_beside_it(tmp_path: Path):
    kept = {"wire.csv", ".wire.csv.lock", ".other.csv.k3j2.part", "wire.csv.part"}
    for name in (*kept, ".wire.csv.k3j2.part", ".wire.csv.x_1.part"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "wire.csv")
    assert {entry.name for entry in tmp_path.iterdir()} == kept


def test_permissions_follow_the_umask(tmp_path: Path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_the_hash_is_that_of_all_bytes(tmp_path: Path):
    content = os.urandom((1 << 20) + 17)
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read through for their hash, in order."""
    read: list[Path] = []
    original = files._read_sha256
    monkeypatch.setattr(files, "_read_sha256", lambda path: read.append(path) or original(path))
    return read


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.time_ns()
    monkeypatch.setattr(files.time, "time_ns", lambda: now + int(seconds * 1e9))


def test_a_file_that_stays_the_same_is_read_once_for_its_hash(tmp_path: Path, passes, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    later(monkeypatch, 3)
    first = sha256_of(path)
    monkeypatch.chdir(tmp_path)
    assert sha256_of(Path("a")) == sha256_of(path) == first
    assert passes == [path]
    before = path.stat()
    path.write_bytes(b"two")  # as long, and its time put back: the time of the inode's change tells
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    later(monkeypatch, 3)
    assert sha256_of(path) == hashlib.sha256(b"two").hexdigest()
    write_bytes(path, b"six")  # replaced by another file
    later(monkeypatch, 3)
    assert sha256_of(path) == hashlib.sha256(b"six").hexdigest()
    assert len(passes) == 3


def test_a_file_that_changed_a_moment_ago_is_read_each_time(tmp_path: Path, passes, monkeypatch):
    """Within the clock's granularity a second edit leaves every time and the size as they were."""
    path = tmp_path / "a"
    path.write_bytes(b"one")
    frozen = path.stat()
    monkeypatch.setattr(Path, "stat", lambda *_arguments, **_options: frozen)
    later(monkeypatch, 1.5)
    assert sha256_of(path) == hashlib.sha256(b"one").hexdigest()
    with path.open("r+b") as stream:
        stream.write(b"two")
    assert sha256_of(path) == hashlib.sha256(b"two").hexdigest()
    assert len(passes) == 2


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path: Path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    later(monkeypatch, 3)
    original = files._read_sha256

    def meanwhile(read: Path) -> str:
        found = original(read)
        path.write_bytes(b"longer")
        return found

    monkeypatch.setattr(files, "_read_sha256", meanwhile)
    sha256_of(path)
    monkeypatch.setattr(files, "_read_sha256", original)
    assert sha256_of(path) == hashlib.sha256(b"longer").hexdigest()


def test_a_full_disk_names_the_folder_and_what_to_do(tmp_path: Path):
    error = disk_full(tmp_path / "a")
    assert str(tmp_path) in (error.found or "")
    assert "--out" in (error.fix or "")


def test_tensors_that_are_not_what_their_reader_takes_them_for_are_one_sentence(tmp_path: Path):
    np = pytest.importorskip("numpy")
    save = pytest.importorskip("safetensors.numpy").save
    file = tmp_path / "some.safetensors"
    write_bytes(file, save({"number": np.array(1.0), "list": np.zeros(2, np.float32)}))
    wrongs = (
        lambda tensors: tensors.get_tensor("number")[0],
        lambda tensors: len(tensors.get_tensor("number")),
        lambda tensors: tensors.get_tensor("list")[5],
        lambda tensors: tensors.get_tensor("missing"),
        lambda _tensors: int("a"),
    )
    for wrong in wrongs:
        with pytest.raises(UserError, match="missing or damaged"), stored_tensors(file, fix="") as tensors:
            wrong(tensors)
    for content in (b"", b"\xff" * 100):
        file.write_bytes(content)
        with pytest.raises(UserError, match="missing or damaged"), stored_tensors(file, fix=""):
            pass


def test_a_file_that_has_other_names_too_is_copied_before_it_is_appended_to_or_cut(tmp_path: Path):
    """As in a copy of a folder by hard links."""
    other, journal, alone = (tmp_path / name for name in ("other", "journal", "alone"))
    other.write_text("a line\nand one without an end")
    os.link(other, journal)
    assert cut_to_whole_lines(journal, fix="") == 7
    with journal.open("a") as stream:
        stream.write("more\n")
    assert journal.read_text() == "a line\nmore\n"
    assert other.read_text() == "a line\nand one without an end"
    alone.write_text("x")
    inode = alone.stat().st_ino
    take_own(alone)
    assert alone.stat().st_ino == inode
    with pytest.raises(OSError, match="not a regular file"):
        take_own(tmp_path)


def test_a_line_of_a_journal_has_a_length(tmp_path: Path):
    journal = tmp_path / "journal"
    journal.write_text("a line\n")
    os.truncate(journal, 1 << 40)  # of zeros that take no space on the disk
    with pytest.raises(UserError, match="missing or damaged"):
        cut_to_whole_lines(journal, fix="")
