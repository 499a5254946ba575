"""A log becomes curves that can be drawn, and the cost of what it tells."""

from __future__ import annotations

import json

import pytest

from newsdesk.errors import UserError
from newsdesk.reports.parts import POINTS, Missing, TrainingContent, training_story
from report_runs import write_log


def test_a_long_training_is_told_in_few_points_that_keep_its_mean_loss(tmp_path):
    write_log(tmp_path / "log.jsonl", steps=1000)
    story = training_story(tmp_path / "log.jsonl")
    assert isinstance(story, TrainingContent)
    assert story.steps_per_point == 7
    assert len(story.points) == 143 <= POINTS
    assert story.points[0].loss == pytest.approx(1 - 4 / 1000)  # the mean of steps 1 to 7
    assert story.points[-1].epoch == 2.0
    assert [one.epoch for one in story.validations] == [1.0, 2.0]
    totals = [story.total(of) for of in ("rows", "tokens", "padded_tokens")]
    assert totals == [16_000, 300_000, 320_000]
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert (story.seconds, story.started.device) == (last["seconds"], "cpu")


@pytest.mark.parametrize("content", [None, ""])
def test_a_run_without_steps_says_so(tmp_path, content):
    if content is not None:
        (tmp_path / "log.jsonl").write_text(content)
    assert isinstance(training_story(tmp_path / "log.jsonl"), Missing)


@pytest.mark.parametrize(("line", "found"), [("{", "line 2"), ('{"event": "step", "seconds": 1}', "no step")])
def test_a_damaged_log_is_reported(tmp_path, line, found):
    write_log(tmp_path / "log.jsonl", steps=2)
    first, *_ = (tmp_path / "log.jsonl").read_text().splitlines()
    (tmp_path / "log.jsonl").write_text(f"{first}\n{line}\n")
    with pytest.raises(UserError, match="damaged") as caught:
        training_story(tmp_path / "log.jsonl")
    assert found in str(caught.value.found)
