"""newsdesk sweep from the command line: what it prints, and how it goes on."""

from __future__ import annotations

import signal
import time

import pytest

pytest.importorskip("optuna")

from test_processes import PATIENCE

from consoles import file_console, screen_console, shown
from newsdesk.cli.display import SweepDisplay
from newsdesk.experiments.study import Trial
from newsdesk.experiments.sweep import TrainingBegun, TrialBegun, TrialEnded
from newsdesk.runs.log import Remark, Started, Step


def test_a_sweep_prints_its_points_and_the_command_of_the_winner_which_trains_it(newsdesk, desk, tmp_path):
    out = tmp_path / "sweep"
    vary = ("--vary", "lora.rank=1,8", "--epochs", "0.5", "--seeds", "2")
    outcome = newsdesk("sweep", *desk.flags, *vary, "--out", out)
    assert outcome.code == 0, outcome.err
    assert "on 36 validation rows, 2 seeds" in outcome.lines
    assert "of 1 other point cannot be told from the best one" in outcome.out
    assert outcome.err.count("complete") == 2
    again = newsdesk("sweep", "--out", out, "--resume", "--json")
    assert [point["is_noise"] for point in again.json["points"]] == [False, True]
    assert f"  {again.json['command']}" in outcome.lines
    command = again.json["command"].split()[1:]
    trained = newsdesk(*command)
    assert trained.code == 0, trained.err
    assert newsdesk("evaluate", f"{out}/best", "--data", desk.test).code == 0


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(newsdesk, start, desk, tmp_path):
    out = tmp_path / "sweep"
    process = start("sweep", *desk.flags, "--epochs", "3", "--vary", "lora.rank=1,8", "--out", out)
    try:
        log = out / "trials" / "0000" / "seed-42" / "run" / "log.jsonl"
        deadline = time.monotonic() + PATIENCE
        while not log.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert f"go on with newsdesk sweep --out {out} --resume" in stderr
    assert "Traceback" not in stderr
    assert "trial 0 in work" in stdout


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        (["--vary", "lora.rank=1"], "Missing option '--out'"),
        (["quick.toml", "--recipe", "quick", "--out", "x"], "give it, or --recipe and --vary"),
        (["--resume", "--vary", "lora.rank=1", "--out", "x"], "--resume takes recipe and space from --out"),
    ],
)
def test_flags_that_do_not_go_together_are_wrong_usage(newsdesk, flags, wrong):
    outcome = newsdesk("sweep", *flags)
    assert (outcome.code, outcome.out) == (2, "")
    assert wrong in outcome.err


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        (["--out", "x"], "a sweep needs keys to vary"),
        (["--out", "x", "--resume"], "there is no sweep to resume at x"),
        (["lesson", "--out", "x"], "there is no sweep called 'lesson'"),
        (
            ["--vary", "lora.rank=1", "--epochs", "1", "--prune", "--out", "x"],
            "of which each training has only",
        ),
        (["--vary", "lora.rank=1", "--budget", "soon", "--out", "x"], "neither a time nor tokens"),
        (["--vary", "lora.rank=0", "--out", "x"], "has 1 fault"),
    ],
)
def test_what_cannot_be_swept_is_a_sentence(newsdesk, monkeypatch, tmp_path, flags, wrong):
    monkeypatch.chdir(tmp_path)
    outcome = newsdesk("sweep", *flags)
    assert (outcome.code, outcome.out) == (1, "")
    assert wrong in outcome.err.splitlines()[0]
    assert not list(tmp_path.iterdir())


STARTED = Started(10, 1.0, 160, 48, "cpu", "float32", "fused")


@pytest.mark.parametrize("console", [file_console(), screen_console()])
def test_the_display_says_which_trial_is_at_work_and_what_is_left(console):
    trial = Trial(0, {"lora.rank": "1"}, "complete", 0.9)
    with SweepDisplay(console) as display:
        display.show(TrialBegun(0, 3, "lora.rank=1", trainings=2))
        display.show(TrainingBegun(1, 42, 0))
        display.show(STARTED)
        display.show(Remark("few rows"))
        display.show(Step(5, 0.5, 0.25, 1e-3, 1.0, 16, 320, 320))
        display.show(TrialEnded(trial, "lora.rank=1", is_best=True, left=2))
    told = shown(console)
    assert "trial 0 (1 of 3): lora.rank=1" in told
    assert "note: few rows" in told
    assert "trial 0 complete 0.9000 (best so far); 2 trials left, about" in told
