"""What long work shows: plain lines where they are kept, a bar where it can be redrawn."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from consoles import Clock, file_console, screen_console, shown
from newsdesk.cli import display
from newsdesk.cli.display import ProgressDisplay, TrainingDisplay
from newsdesk.cli.predict import render_predictions
from newsdesk.prediction.predictions import Predictions
from newsdesk.runs.log import Finished, Interrupted, Remark, Resumed, Started, Step, Validation

STARTED = Started(
    steps=100,
    epochs=2.0,
    rows=1600,
    validation_rows=120,
    choosing_rows=60,
    device="cpu",
    precision="float32",
    engine="fused",
)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    return clock


@pytest.fixture
def file():
    return file_console()


@pytest.fixture
def screen():
    return screen_console()


def step(number, loss=0.5, tokens=320):
    return Step(number, number / 50, loss, 1e-3, 1.0, 16, tokens, tokens + 10)


def finished(**changes):
    values = {"step": 100, "epoch": 2.0, "reason": "completed", "best_step": 100, "padding_share": 0.031}
    return Finished(**{**values, **changes})


def train_for(training, clock, steps, seconds_each=1.0):
    training.show(STARTED)
    for number in range(1, steps + 1):
        clock.now += seconds_each
        training.show(step(number))


def test_a_file_gets_a_line_now_and_then_with_loss_rate_speed_and_time_left(file, clock):
    train_for(TrainingDisplay(file), clock, steps=31)
    first, second, *steps = shown(file).splitlines()
    assert first == "1,600 training rows, 120 validation rows, 100 steps (2 epochs)"
    assert second == "on cpu in float32, fused"
    assert steps == [
        "step 15/100  loss 0.5000  learning rate 1.00e-03  320 tokens/s  1:25 left",
        "step 30/100  loss 0.5000  learning rate 1.00e-03  320 tokens/s  1:10 left",
    ]


def test_a_file_gets_no_control_characters(file, clock):
    training = TrainingDisplay(file)
    train_for(training, clock, steps=31)
    training.show(Validation(50, 1.0, 0.4, 0.9, 0.8, True, 60, 4, 4))
    training.show(finished())
    training.close()
    assert all(letter.isprintable() or letter == "\n" for letter in shown(file))


def test_validation_scores_are_shown_and_the_best_is_marked(file):
    training = TrainingDisplay(file)
    training.show(STARTED)
    training.show(Validation(50, 1.0, 0.3456, 0.9123, 0.8765, True, 60, 4, 4))
    training.show(Validation(100, 2.0, 0.4, 0.9, 0.85, False, 60, 3, 4))
    best, other = shown(file).splitlines()[2:]
    assert best == (
        "epoch 1.00  validation: accuracy 91.23%, macro F1 87.65% over 4 classes, loss 0.3456  (best so far)"
    )
    assert (
        other == "epoch 2.00  validation: accuracy 90.00%, macro F1 85.00% over 3 of 4 classes, loss 0.4000"
    )


def test_where_no_row_chooses_no_state_is_called_the_best(file):
    training = TrainingDisplay(file)
    training.show(replace(STARTED, choosing_rows=0))
    training.show(Validation(50, 1.0, 0.3456, 0.9123, 0.8765, True, 120, 4, 4))
    assert "best" not in shown(file)


def test_one_of_anything_is_shown_without_an_s(file):
    training = TrainingDisplay(file)
    training.show(replace(STARTED, steps=1, epochs=1.0, rows=1, validation_rows=1))
    training.show(Validation(1, 1.0, 0.3, 1.0, 1.0, True, 1, 1, 2))
    training.show(finished(step=1, epoch=1.0, best_step=1))
    first, _, validation, last = shown(file).splitlines()
    assert first == "1 training row, 1 validation row, 1 step (1 epoch)"
    assert "over 1 of 2 classes" in validation
    assert last.startswith("finished after 1 step in")


def test_what_to_know_of_a_training_is_shown_as_a_note(file):
    TrainingDisplay(file).show(Remark("no validation row for 1 of 3 classes: ship (1 row)"))
    assert shown(file) == "note: no validation row for 1 of 3 classes: ship (1 row)\n"


def test_time_spent_validating_does_not_slow_the_speed_shown(file, clock):
    training = TrainingDisplay(file)
    train_for(training, clock, steps=10)
    clock.now += 500
    training.show(Validation(10, 0.2, 0.4, 0.9, 0.8, True, 60, 4, 4))
    clock.now += 1
    training.show(step(11))
    assert shown(file).splitlines()[-1].endswith("320 tokens/s  1:29 left")


def test_the_loss_shown_is_smoothed(file, clock):
    training = TrainingDisplay(file)
    training.show(STARTED)
    training.show(step(1, loss=1.0))
    clock.now += 60
    training.show(step(2, loss=0.0))
    assert "loss 0.9500" in shown(file)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "finished after 100 steps in 2:05; padding 3.1% of tokens"),
        ({"best_step": 50}, "finished after 100 steps in 2:05, kept the state of step 50; padding"),
        ({"reason": "early-stopping"}, "stopped early: no gain in validation after 100 steps"),
        ({"reason": "interrupted"}, "interrupted; what was learned so far is kept after 100 steps"),
    ],
)
def test_the_end_says_why_and_what_was_kept(file, clock, changes, said):
    training = TrainingDisplay(file)
    training.show(STARTED)
    clock.now += 125
    training.show(finished(**changes))
    assert said in shown(file).splitlines()[-1]


def test_a_resumed_training_says_from_where_and_estimates_by_its_own_steps(file, clock):
    training = TrainingDisplay(file)
    training.show(STARTED)
    training.show(Resumed(60, 1.2, ("step-00000070-abc.safetensors",)))
    for number in range(61, 76):
        clock.now += 1.0
        training.show(step(number))
    training.show(Interrupted(75, 1.5))
    text = shown(file)
    assert "checkpoint step-00000070-abc.safetensors is damaged and was skipped" in text
    assert "resuming after step 60 (epoch 1.20)" in text
    assert "0:25 left" in text  # 25 steps of a second each
    assert "a checkpoint of step 75 is kept" in text


def test_a_resumed_bar_begins_where_training_was(screen, clock):
    training = TrainingDisplay(screen)
    training.show(STARTED)
    training.show(Resumed(60, 1.2, ()))
    clock.now += 1.0
    training.show(step(61))
    training.close()
    assert "61/100" in shown(screen)


def test_hours_are_shown_as_hours(file, clock):
    training = TrainingDisplay(file)
    training.show(STARTED)
    clock.now += 3725
    training.show(finished())
    assert "in 1:02:05" in shown(file)


def test_a_terminal_gets_a_bar_with_the_same_figures(screen, clock):
    training = TrainingDisplay(screen)
    train_for(training, clock, steps=31)
    training.show(finished(step=31))
    training.close()
    assert "\x1b[" in shown(screen)
    assert "31/100" in shown(screen)
    assert "loss 0.5000  learning rate 1.00e-03  320 tokens/s" in shown(screen)
    assert "finished after 31 steps" in shown(screen).splitlines()[-1]


def test_closing_a_display_that_never_started_is_nothing(screen):
    TrainingDisplay(screen).close()
    assert shown(screen) == ""


def test_every_download_is_one_line_in_a_file(file):
    with closing(ProgressDisplay(file)) as display:
        display.show(0, None, "asking the Hub for [it]")
        for done in (0, 50, 100):
            display.show(done, 100, "fetching a")
        display.show(0, None, "unpacking a")
        display.show(7, None, "unpacking a")
    assert shown(file) == "asking the Hub for [it]\nfetching a\nunpacking a\n"


def test_a_download_on_a_terminal_is_a_bar_that_vanishes_when_it_is_whole(screen):
    with closing(ProgressDisplay(screen)) as display:
        display.show(0, 1000, "fetching a")
        display.show(500, 1000, "fetching a")
        display.show(1000, 1000, "fetching a")
        display.show(1000, 1000, "fetching a")  # a late report changes nothing
        whole = shown(screen)
        assert "1.0/1.0 kB" in whole
        for done in (0, 4, 10):
            display.show(done, 10, "classifying", "rows")
    assert "10/10" in shown(screen)


def test_a_download_that_failed_leaves_no_bar_behind(screen):
    with closing(ProgressDisplay(screen)) as display:
        display.show(0, 1000, "from the Hub")
        display.show(0, None, "unpacking")
        display.show(0, 1000, "from PyPI")
        assert shown(screen).count("unpacking") == 1
    with closing(ProgressDisplay(screen)) as display:  # the screen is free again
        display.show(0, 10, "next")
    assert "next" in shown(screen)


def test_rows_are_not_counted_in_a_file(file):
    with closing(ProgressDisplay(file)) as display:
        display.show(0, 10, "classifying", "rows")
        display.show(10, 10, "classifying", "rows")
    assert shown(file) == ""


def test_the_same_work_done_again_gets_a_bar_of_its_own(screen):
    with closing(ProgressDisplay(screen)) as display:
        for done in (0, 10, 0, 7):
            display.show(done, 10, "classifying", "rows")
    assert "7/10" in shown(screen)


def test_predictions_are_lines_of_classes_and_texts():
    predictions = Predictions(np.array([[0.9, 0.1], [0.25, 0.75]], np.float32), ("Sports", "World"))
    assert render_predictions(["goal", "war"], predictions, 1) == ["Sports 90.0%  goal", "World 75.0%   war"]
    assert render_predictions(["goal", "war"], predictions, 2) == [
        "Sports 90.0%, World 10.0%  goal",
        "World 75.0%, Sports 25.0%  war",
    ]


def test_right_to_left_labels_keep_their_probabilities_at_their_side():
    predictions = Predictions(np.array([[0.9, 0.1]], np.float32), ("سياسة", "ספורט"))
    (line,) = render_predictions(["أعلن الرئيس 12"], predictions, 2)
    assert line == "\u2068سياسة\u2069 90.0%, \u2068ספורט\u2069 10.0%  \u2068أعلن الرئيس 12\u2069"


def test_texts_begin_in_one_column_whatever_letters_the_labels_have():
    names = ("goal", "体育", "cafe\u0301", "กี")
    predictions = Predictions(np.eye(4, dtype=np.float32), names)
    lines = render_predictions(["x"] * 4, predictions, 1)
    assert [line.index("  ") - len(name) for line, name in zip(lines, names, strict=True)] == [7] * 4
    assert [line.count(" ") for line in lines] == [3, 3, 3, 6]
