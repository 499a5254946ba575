"""The cache: entries are whole or absent, whatever happens and however many fill it."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from newsdesk.errors import UserError
from newsdesk.hub.cache import RECORD, Slot, cache_folder, resolve
from newsdesk.hub.source import Fetched, SourceUnavailableError
from newsdesk.progress import silent

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SLOT = Slot("models", "desk/tiny")


@dataclass
class FakeSource:
    """Writes one file, as slowly as asked, and notes each call in a log."""

    log: Path
    seconds: float = 0.0
    failure: Exception | None = None
    origin: str = "hub"

    def fetch(self, into, _progress):
        with self.log.open("a") as log:
            log.write(f"{self.origin}\n")
        (into / "model.safetensors").write_bytes(CONTENT)
        time.sleep(self.seconds)
        if self.failure is not None:
            raise self.failure
        return Fetched({"model.safetensors": SHA256}, revision="1", licence="mit")


@pytest.fixture
def source(tmp_path):
    return FakeSource(tmp_path / "log")


def fill(*sources, **options):
    return resolve(SLOT, sources, pins={}, flag="--base", **options)


def fill_in_process(log, results):
    results.put(fill(FakeSource(Path(log), seconds=0.5))[1])


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NEWSDESK_CACHE", "~/desk")
    assert cache_folder() == Path.home() / "desk"
    monkeypatch.delenv("NEWSDESK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "newsdesk"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "newsdesk"


def test_an_entry_holds_its_files_and_their_record_and_nothing_else(source):
    entry, where = fill(source)
    assert where == "hub"
    assert entry.folder == cache_folder() / "models" / "desk--tiny"
    assert sorted(path.name for path in entry.folder.iterdir()) == ["model.safetensors", RECORD]
    assert SLOT.entry() == entry


def test_two_processes_at_once_fetch_once_and_both_succeed(source):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=fill_in_process, args=(str(source.log), results)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(results.get(timeout=5) for _ in processes) == ["cache", "hub"]
    assert source.log.read_text() == "hub\n"


def test_who_waits_is_told_so_and_takes_what_the_other_fetched(source):
    reports = []
    with SLOT.filling(silent) as staging:
        waiting = threading.Thread(
            target=fill, args=(source,), kwargs={"progress": lambda *report: reports.append(report)}
        )
        waiting.start()
        while not reports:
            time.sleep(0.01)
        SLOT.publish(staging, Fetched({}), "hub")
    waiting.join()
    assert reports[0][2] == "waiting for another newsdesk that is fetching desk/tiny"
    assert not source.log.exists()


def test_what_a_killed_process_left_is_cleaned_up_by_the_next(source):
    script = (
        "from newsdesk.hub.cache import Slot; import time\n"
        "with Slot('data', 'large').filling(lambda *_: None) as staged:\n"
        "    (staged / 'half').write_bytes(b'x'); print('ready', flush=True); time.sleep(60)"
    )
    half = cache_folder() / ".staging" / "data--large" / "half"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        with SLOT.filling(silent):
            assert half.exists(), "a living process keeps its staging folder"
        os.kill(process.pid, signal.SIGKILL)
    assert half.exists()
    half_deleted = cache_folder() / ".staging" / "discarded-1"
    half_deleted.mkdir()
    fill(source)
    assert not half.parent.exists()
    assert not half_deleted.exists()


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("defect"), UserError("wrong bytes")])
def test_whatever_breaks_a_fetch_nothing_half_written_stays(source, failure):
    source.failure = failure
    with pytest.raises(type(failure)):
        fill(source)
    assert SLOT.entry() is None
    assert [path for path in cache_folder().rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_the_next_source_starts_from_an_empty_folder(source, tmp_path):
    source.failure = SourceUnavailableError("no Hub", found="nobody", fix="network")
    entry, where = fill(source, FakeSource(tmp_path / "log", origin="pypi"))
    assert where == entry.origin == "pypi"
    assert source.log.read_text() == "hub\npypi\n"


def test_when_no_source_answers_each_one_is_named_with_its_remedy(source, tmp_path):
    source.failure = SourceUnavailableError("no Hub", found="refused", fix="fix the Hub")
    other = FakeSource(tmp_path / "log", origin="pypi")
    other.failure = SourceUnavailableError("no PyPI", found="refused too", fix="fix PyPI")
    with pytest.raises(UserError) as caught:
        fill(source, other)
    assert caught.value.found == "no Hub (refused); no PyPI (refused too)"
    assert caught.value.fix == "fix the Hub; fix PyPI; or give a local copy with --base PATH"


def test_wrong_bytes_are_not_answered_by_asking_elsewhere(source, tmp_path):
    source.failure = UserError("wrong bytes")
    with pytest.raises(UserError, match="wrong bytes"):
        fill(source, FakeSource(tmp_path / "log", origin="pypi"))
    assert source.log.read_text() == "hub\n"


def test_offline_asks_no_source(source):
    with pytest.raises(UserError, match="--base PATH"):
        fill(source, offline=True)
    assert not source.log.exists()
    fill(source)
    assert fill(source, offline=True)[1] == "cache"


@pytest.mark.parametrize("fault", ["changed", "missing"])
def test_a_damaged_entry_is_deleted_said_and_fetched_anew(source, fault):
    entry, _ = fill(source)
    weights = entry.folder / "model.safetensors"
    weights.write_bytes(b"other") if fault == "changed" else weights.unlink()
    with pytest.raises(UserError, match="damaged") as caught:
        fill(source)
    assert (SHA256 if fault == "changed" else "missing") in str(caught.value)
    assert not entry.folder.exists()
    assert fill(source)[1] == "hub"


def test_a_pin_is_believed_over_the_record(source):
    fill(source)
    with pytest.raises(UserError, match="damaged"):
        resolve(SLOT, [source], pins={"model.safetensors": "0" * 64}, flag="--base")


@pytest.mark.parametrize("record", [b"", b"[]", b"{}", b"\xff"])
def test_a_folder_without_a_readable_record_is_no_entry_and_is_replaced(source, record):
    SLOT.folder.mkdir(parents=True)
    (SLOT.folder / RECORD).write_bytes(record)
    (SLOT.folder / "half").write_bytes(b"x")
    assert SLOT.entry() is None
    assert fill(source)[1] == "hub"
    assert not (SLOT.folder / "half").exists()


def test_a_full_disk_while_fetching_is_said_to_be_full(source):
    source.failure = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match="no space left"):
        fill(source)
    assert SLOT.entry() is None


def test_a_cache_that_cannot_be_written_names_the_variable(source):
    source.failure = PermissionError(errno.EACCES, "Permission denied", "somewhere")
    with pytest.raises(UserError, match="NEWSDESK_CACHE"):
        fill(source)


def test_other_faults_of_the_system_stay_as_they_are(source):
    source.failure = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output"):
        fill(source)
