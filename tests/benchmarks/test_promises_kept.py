"""Promises on simulated rows: kept for each feature and pair of features, and the simulation would tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from newsdesk.runs.off_topic import OffTopicScore

DRAWS = 120
LAWS = (
    "unsure where wrong, few rows",
    "off-topic texts are right",
    "off-topic texts are wrong and sure",
    "empty texts are right",
    "many ties, far ones right",
)


@pytest.fixture(scope="module")
def promises(benchmark_script: Callable[[str], Any]) -> Any:
    return benchmark_script("promises")


def law_of(promises: Any, name: str) -> Any:
    return next(law for law in promises.LAWS if law.name == name)


@pytest.fixture(autouse=True)
def small_populations(promises: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promises, "POPULATION", 3000)


@pytest.mark.parametrize("name", LAWS)
def test_every_pair_of_features_keeps_its_promises(promises: Any, name: str) -> None:
    lines = list(promises.simulate(law_of(promises, name), DRAWS, seed=1))
    assert {line["asked for"] for line in lines} == set(promises.ASKED)
    assert [line for line in lines if line["kept"] != "yes"] == []


def test_an_export_that_was_chosen_on_its_calibration_rows_keeps_its_promises(promises: Any) -> None:
    lines = list(promises.simulate_export(DRAWS))
    assert [line["kept"] for line in lines] == ["yes"] * 4


@pytest.mark.parametrize("knows", [0.0, 2.0])
def test_with_a_linear_model_on_it_or_before_it_promises_are_kept(promises: Any, knows: float) -> None:
    lines = list(promises.simulate_linear_model(knows, 20))
    assert {line["asked for"] for line in lines} >= {"stacked --abstain", "stacked --sets", "cascade --loss"}
    assert [line for line in lines if line["kept"] != "yes"] == []


def test_a_cascade_that_takes_an_estimate_for_a_promise_would_be_noticed(
    promises: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = promises.cascade_rule
    monkeypatch.setattr(promises, "cascade_rule", lambda rows, loss: rule(rows, loss, estimated=True))
    loss = [line for line in promises.simulate_linear_model(2.0, 20) if line["asked for"] == "cascade --loss"]
    assert [line["kept"] for line in loss] == ["NO"]


@pytest.mark.parametrize("asked", ["--abstain --off-topic", "--sets --off-topic"])
def test_calibrating_on_rows_that_the_filter_stops_would_be_noticed(
    promises: Any, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setattr(OffTopicScore, "on_topic", lambda _self, distances, _level: np.isfinite(distances))
    law = law_of(promises, "off-topic texts are right")
    (line,) = promises.simulate(law, DRAWS, asked={asked: promises.ASKED[asked]})
    assert line["kept"] == "NO"


@pytest.mark.parametrize("asked", ["--abstain", "--sets"])
def test_calibrating_on_rows_that_say_nothing_would_be_noticed(
    promises: Any, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    rule = promises.decision_rule
    monkeypatch.setattr(
        promises,
        "decision_rule",
        lambda rows, *given, **flags: rule(replace(rows, readable=None), *given, **flags),
    )
    (line,) = promises.simulate(
        law_of(promises, "empty texts are right"), DRAWS, asked={asked: promises.ASKED[asked]}
    )
    assert line["kept"] == "NO"


def test_a_hint_that_costs_nothing_would_be_noticed(promises: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from newsdesk.prediction import abstention as decision

    def anything_goes(promise_at: Any, _above: float, _confidence: float) -> Any:
        rates = np.arange(1, 500) / 1000
        found = (promise_at(float(rate), 0.3) for rate in rates)
        return next(promise for promise in found if promise is not None)

    monkeypatch.setattr(decision, "lowest_promise", anything_goes)
    law = law_of(promises, "unsure where wrong, few rows")
    (line,) = promises.simulate(law, DRAWS, asked={"the hint": ("abstain", "hint")})
    assert line["kept"] == "NO"


@pytest.mark.parametrize("states", [10, 30])
def test_choosing_the_best_of_many_states_breaks_no_promise_but_on_the_same_rows_it_does(
    promises: Any, states: int
) -> None:
    lines = {line["asked for"]: line for line in promises.simulate_choice(states, 0.02, 200)}
    assert lines[promises.HALVES]["kept"] == "yes"
    assert lines[promises.SAME_ROWS]["kept"] == "NO"
