"""Where the process itself matters: signals, broken pipes, and machines without PyTorch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from textwrap import dedent

import pytest

PATIENCE = 300
"""Seconds until a process is given up: far more than it takes, for machines that are busy."""


def steps_logged(out):
    log = out / "log.jsonl"
    return log.read_text().count('"step"') if log.is_file() else 0


def test_ctrl_c_in_the_middle_of_training_leaves_a_usable_run(newsdesk, start, desk, tmp_path):
    out = tmp_path / "run"
    process = start("train", *desk.flags, "--epochs", "100000", "--out", out)
    try:
        deadline = time.monotonic() + PATIENCE
        while steps_logged(out) < 5 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert stdout == f"interrupted; a usable run was saved to {out}; continue it with --resume\n"
    assert "interrupted; what was learned so far is kept" in stderr
    assert "Traceback" not in stderr
    assert json.loads((out / "manifest.json").read_text())["training"]["finished"] == "interrupted"
    assert newsdesk("predict", out, "goal coach").code == 0


def test_ctrl_c_while_a_run_is_replaced_leaves_the_old_one_and_says_where_the_new_one_is(
    newsdesk, start, desk, run
):
    before = (run / "manifest.json").read_bytes()
    process = start("train", *desk.flags, "--epochs", "100000", "--out", run, "--overwrite")
    try:
        deadline = time.monotonic() + PATIENCE
        while steps_logged(run / ".next") < 5 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert stdout == (
        f"interrupted; a usable run was saved to {run / '.next'}, and {run} is unchanged; "
        "--resume continues the new one, which replaces it when finished\n"
    )
    assert (run / "manifest.json").read_bytes() == before
    assert newsdesk("predict", run, "goal coach").code == 0


def test_a_reader_that_has_seen_enough_is_no_failure(start, trained, desk):
    process = start("predict", trained, "--input", desk.test, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=PATIENCE) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


def test_a_table_whose_reader_is_gone_ends_quietly(start):
    process = start("models", "list")
    process.stdout.close()
    assert process.wait(timeout=PATIENCE) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_training_goes_on_when_nobody_reads_its_progress(start, desk, tmp_path):
    process = start("train", *desk.flags, "--out", tmp_path / "run")
    process.stderr.close()
    assert process.stdout.read() == f"run saved to {tmp_path / 'run'}\n"
    assert process.wait(timeout=PATIENCE) == 0
    process.stdout.close()
    assert (tmp_path / "run" / "manifest.json").is_file()


def test_a_mistake_shows_no_traceback_and_debug_does(start):
    for flags, shown in (((), False), (("--debug",), True)):
        process = start("predict", "no-run", "a text", *flags)
        _, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert "there is no run at no-run" in stderr
        assert ("Traceback" in stderr) is shown


WITHOUT_TORCH = dedent(
    """
    import sys

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("torch", "transformers", "peft"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Blocked())
    from newsdesk.cli import main
    main()
    """
)


def call_without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("verb", [["models", "list"], ["data", "list"], ["train", "--help"]])
def test_what_needs_no_torch_works_without(verb):
    result = call_without_torch(*verb)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_file_is_checked_without_torch(desk):
    flags = ["--text", "words", "--label", "desk", "--base", desk.base]
    result = call_without_torch("data", "check", desk.test, *flags)
    assert "tokens a text" in result.stdout
    assert result.stderr == ""


def test_what_needs_torch_says_how_to_get_it(desk, trained, tmp_path):
    verbs = {
        "predicting from a run folder": ["predict", trained, "goal"],
        "training": ["train", *desk.flags, "--out", tmp_path / "run"],
        "a dry run": ["train", *desk.flags, "--dry-run"],
        "importing an adapter": ["import-adapter", trained / "adapter", "--out", tmp_path / "run"],
    }
    for purpose, verb in verbs.items():
        result = call_without_torch(*verb)
        assert result.returncode == 1
        exported = (
            f", or where it is installed, newsdesk export {trained} --to onnx-int8 --data FILE --out FOLDER"
        )
        exported += "; the exported model needs no torch"
        assert result.stderr.splitlines() == [
            f"error: {purpose} needs the package torch",
            "found: it is not installed in this environment",
            f"fix:   pip install 'newsdesk[train]'{exported if verb[0] == 'predict' else ''}",
        ]
    assert "newsdesk export ag-news --to onnx-int8" in call_without_torch("predict", "ag-news", "goal").stderr
    assert list(tmp_path.iterdir()) == []
