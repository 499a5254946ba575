"""The log holds every event as a line of its own before the next one happens."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from newsdesk.errors import UserError
from newsdesk.runs.log import EventLog, Finished, Step

STEP = Step(1, 0.5, 1.25, 2e-4, 0.75, 16, 400, 410)
FINISHED = Finished(9, 1.5, "completed", 3, 0.02)


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_each_event_is_on_disk_before_the_next(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    with EventLog(path) as log:
        for count, event in enumerate((STEP, FINISHED), start=1):
            log.write(event)
            assert len(records(path)) == count
    assert [record["event"] for record in records(path)] == ["step", "finished"]


def test_seconds_count_from_the_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = iter([100.0, 100.5, 107.25])
    monkeypatch.setattr("newsdesk.runs.log.time.monotonic", lambda: next(clock))
    with EventLog(tmp_path / "log.jsonl") as log:
        log.write(STEP)
        log.write(FINISHED)
    assert [record["seconds"] for record in records(tmp_path / "log.jsonl")] == [0.5, 7.25]


def test_what_was_logged_before_a_failure_stays(tmp_path: Path):
    def fail() -> None:
        with EventLog(tmp_path / "log.jsonl") as log:
            log.write(STEP)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with EventLog(tmp_path / "log.jsonl") as log:
        log.write(FINISHED)
    assert [record["event"] for record in records(tmp_path / "log.jsonl")] == ["step", "finished"]


def test_a_log_goes_on_behind_what_still_holds(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    with EventLog(path) as log:
        log.write(STEP)
        kept = log.secure()
        log.write(FINISHED)
    assert kept == path.read_bytes().index(b"\n") + 1
    lines = path.read_text().splitlines()
    path.write_text(lines[0].replace('"seconds": ', '"seconds": 90') + "\n" + lines[1] + "\n")
    kept = path.read_bytes().index(b"\n") + 1
    with EventLog(path, keep=kept) as log:
        log.write(FINISHED)
    assert [record["event"] for record in records(path)] == ["step", "finished"]
    first, last = (record["seconds"] for record in records(path))
    assert first >= 90
    assert last >= first  # the time that was trained before counts on


def test_a_log_on_a_full_disk_says_so(tmp_path: Path):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with EventLog(tmp_path / "log.jsonl") as log:
        log._stream.close()
        log._stream = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115
        with pytest.raises(UserError, match="no space left to write log"):
            log.write(STEP)
        log._stream = (tmp_path / "log.jsonl").open("a", encoding="utf-8")


def test_the_log_of_a_run_that_was_copied_by_hard_links_goes_on_alone(tmp_path: Path):
    path, copied = tmp_path / "log.jsonl", tmp_path / "copied.jsonl"
    with EventLog(path) as log:
        log.write(STEP)
    os.link(path, copied)
    with EventLog(copied) as log:
        log.write(FINISHED)
    assert [record["event"] for record in records(path)] == ["step"]
    assert [record["event"] for record in records(copied)] == ["step", "finished"]
