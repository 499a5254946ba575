"""``newsdesk predict --watch``: what a person, cron or systemd sees of it."""

from __future__ import annotations

import json
import re
import signal
import time

import pytest

pytest.importorskip("onnx")
from tiny_exports import build_exported

PATIENCE = 60


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return build_exported(tmp_path_factory.mktemp("built") / "exported")


@pytest.fixture
def watch(exported, tmp_path):
    """The arguments of a watched folder, and the folder itself."""
    (tmp_path / "in").mkdir()
    arguments = (
        "predict",
        exported,
        "--watch",
        tmp_path / "in",
        "--output",
        tmp_path / "out",
        "--settle",
        "0.05",
    )
    return arguments, tmp_path / "in"


def without_time(err):
    return [re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", "", line) for line in err.splitlines()]


def test_once_says_a_line_a_file_and_whether_all_went_well(newsdesk, watch):
    arguments, folder = watch
    (folder / "a.csv").write_text("n,text\n1,goal\n2,bank\n3,goal,more\n")
    (folder / "wire").mkdir()
    (folder / "wire" / "b.jsonl").write_text('{"text": "orbit"}\n')
    (folder / "c.csv").write_text("x,y\n1,2\n")
    first = newsdesk(*arguments, "--once", "--abstain", "0.5", "--format", "jsonl")
    assert (first.code, "calibrat" in first.err) == (1, True)  # the tiny model has no calibration rows
    first = newsdesk(*arguments, "--once", "--format", "jsonl", "--top-k", "2")
    assert (first.code, first.out) == (1, "")
    lines = without_time(first.err)
    assert lines[0] == f"watching {folder.resolve()}: 0 done and 0 failed before"
    assert set(lines[1:4]) == {
        "done a.csv: 3 rows, 1 rejected",
        "done wire/b.jsonl: 1 row",
        "failed c.csv: which column of c.csv holds the text?; found: x, y; "
        "fix: name the text columns, for example --text x",
    }
    assert lines[4] == "2 files, 4 rows, 1 failed"
    written = (folder.parent / "out" / "a.csv.jsonl").read_text().splitlines()
    assert [json.loads(line)["label"] for line in written] == ["Sports", "Business"]
    assert "label_2" in json.loads(written[0])
    again = newsdesk(*arguments, "--once", "--format", "jsonl", "--top-k", "2")
    assert (again.code, without_time(again.err)[0]) == (
        0,
        f"watching {folder.resolve()}: 2 done and 1 failed before",
    )


def test_a_signal_ends_it_with_status_zero(start, watch):
    arguments, folder = watch
    process = start(*arguments, "--interval", "0.05")
    output = folder.parent / "out" / "a.csv"
    try:
        (folder / "a.csv").write_text("text\ngoal\n")
        end = time.monotonic() + PATIENCE
        while not output.exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0
    assert without_time(err)[1:] == ["done a.csv: 1 row", "1 file, 1 row"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["a text"], "--watch FOLDER takes --output FOLDER"),
        (["--input", "a.csv"], "--watch FOLDER takes --output FOLDER"),
        (["--rejects", "a.jsonl"], "--watch FOLDER takes --output FOLDER"),
        (["--engine", "ray"], "--watch FOLDER takes --output FOLDER"),
        (["--output", "-"], "--watch FOLDER takes --output FOLDER"),
        (["--json"], "--watch FOLDER takes --output FOLDER"),
        (["--interval", "0"], "'--interval'"),
        (["--indicators"], "columns of 0 and 1 are for texts that may have several labels"),
    ],
)
def test_what_does_not_go_with_it_is_refused(newsdesk, watch, more, said):
    arguments, folder = watch
    outcome = newsdesk(*arguments, "--once", *more)
    assert (outcome.code, said in outcome.err) == (1 if "--indicators" in more else 2, True)
    assert not (folder.parent / "out").exists()


def test_its_flags_say_nothing_without_a_folder(newsdesk, exported):
    for flags in (["--once"], ["--interval", "2"], ["--settle", "2"]):
        outcome = newsdesk("predict", exported, "a text", *flags)
        assert (outcome.code, f"{flags[0]} needs --watch" in outcome.err) == (2, True)
