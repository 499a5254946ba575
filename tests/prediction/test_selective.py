"""Risk and coverage as the definitions have them, and promises that simulated rows find kept."""

from __future__ import annotations

from functools import partial
from math import comb

import numpy as np
import pytest

from newsdesk.prediction.abstention import (
    THRESHOLDS,
    CoverageAt,
    binomial_tail,
    lowest_promise,
    promised_threshold,
    risk_coverage,
)
from newsdesk.runs.calibration import fit_temperature, softmax

SCORE = np.array([0.9, 0.8, 0.7, 0.6])


def test_the_curve_is_the_share_wrong_among_the_surest():
    found = risk_coverage(SCORE, np.array([True, False, True, False]), (0.0, 0.4, 0.5))
    assert found.curve == ((0.25, 0.0), (0.5, 0.5), (0.75, pytest.approx(1 / 3)), (1.0, 0.5))
    assert found.area == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert found.excess_area == pytest.approx(found.area - (0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert found.coverage_at == (CoverageAt(0.0, 0.25), CoverageAt(0.4, 0.75), CoverageAt(0.5, 1.0))


def test_nothing_can_be_saved_where_the_wrong_rows_come_last():
    found = risk_coverage(SCORE, np.array([True, True, False, False]))
    assert found.excess_area == 0
    assert found.coverage_at[0] == CoverageAt(0.01, 0.5)


def test_equally_sure_rows_are_answered_together_in_whatever_order():
    correct = np.array([True, True, False, True])
    ties = np.array([0.9, 0.5, 0.5, 0.5])
    one, other = risk_coverage(ties, correct), risk_coverage(ties[::-1], correct[::-1])
    assert one == other
    assert one.curve[1] == (0.5, pytest.approx(1 / 6))  # a third of an error in two rows
    assert one.coverage_at[-1] == CoverageAt(0.05, 0.25)


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    generator = np.random.default_rng(0)
    found = risk_coverage(generator.random(5000), generator.random(5000) < 0.9)
    assert len(found.curve) == 200
    assert (found.curve[0][0], found.curve[-1][0]) == (1 / 5000, 1.0)


def test_a_curve_without_rows_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        risk_coverage(np.array([]), np.array([], dtype=bool))


@pytest.mark.parametrize(
    ("most", "trials", "share"), [(0, 149, 0.02), (3, 50, 0.3), (7, 7, 0.5), (9, 7, 0.1)]
)
def test_the_binomial_tail_is_exact(most, trials, share):
    exact = sum(
        comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(min(most, trials) + 1)
    )
    assert binomial_tail(most, trials, share) == pytest.approx(exact, rel=1e-10)


def test_the_binomial_tail_does_not_vanish_for_many_trials():
    assert binomial_tail(2000, 100_000, 0.02) == pytest.approx(0.505947, abs=1e-6)


def test_as_many_right_rows_as_the_promise_needs_are_enough_and_one_less_is_not():
    # 0.98 ** 149 = 0.0493, 0.98 ** 148 = 0.0503
    assert promised_threshold(np.full(149, 0.9), np.full(149, True), 0.02).coverage == 1
    assert promised_threshold(np.full(148, 0.9), np.full(148, True), 0.02) is None


def test_the_threshold_stops_before_the_errors_begin():
    score = np.concatenate([np.full(400, 0.99), np.full(400, 0.6)])
    correct = np.arange(800) < 400
    promise = promised_threshold(score, correct, 0.02)
    assert 0.6 < promise.threshold <= 0.99
    assert promise.threshold in THRESHOLDS
    assert (promise.coverage, promise.rows) == (0.5, 800)
    assert promised_threshold(score, correct, 0.55).threshold == 0


def test_a_surer_promise_answers_less():
    generator = np.random.default_rng(1)
    score = generator.random(3000)
    correct = generator.random(3000) < 0.7 + 0.3 * score
    shares = [promised_threshold(score, correct, 0.1, level).coverage for level in (0.5, 0.95, 0.999)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]


def test_the_lowest_promise_pays_for_the_search():
    score, correct = np.full(300, 0.9), np.full(300, True)
    promised = partial(promised_threshold, score, correct)
    found = lowest_promise(promised, above=0.001)
    assert found.confidence == 0.9962  # 1 - 0.05 / 13
    assert found.error_rate == 0.02  # 0.98 ** 300 = 0.002; 0.985 ** 300 = 0.011 is more than 0.0038
    assert found == promised_threshold(score, correct, 0.02, 0.9962)
    assert lowest_promise(promised, above=0.02).error_rate == 0.03
    assert lowest_promise(partial(promised_threshold, score, ~correct), above=0.001) is None
    assert lowest_promise(promised, above=0.4) is None
    assert lowest_promise(promised, above=0.001, confidence=0.99999) is None


@pytest.mark.parametrize(("rate", "confidence"), [(0, 0.9), (1, 0.9), (0.1, 0), (0.1, 1)])
def test_shares_outside_0_to_1_are_refused(rate, confidence):
    with pytest.raises(ValueError, match="error rate"):
        promised_threshold(SCORE, SCORE > 0, rate, confidence)


DRAWS = 400
CONFIDENCE = 0.9
MOST_BROKEN = DRAWS * (1 - CONFIDENCE) + 2.6 * (DRAWS * CONFIDENCE * (1 - CONFIDENCE)) ** 0.5
"""Promises that may break: the tenth that is allowed, and what 400 draws of it spread by."""


@pytest.mark.parametrize(
    ("law", "rows", "rate"),
    [
        ("errors where it is unsure", 600, 0.05),
        ("errors where it is unsure", 150, 0.1),
        ("errors anywhere, at just the rate", 400, 0.1),
        ("errors where it is surest, too", 500, 0.1),
    ],
)
def test_the_promise_is_kept_as_often_as_it_says(law, rows, rate):
    """Calibration rows are drawn from a population; the threshold's true error rate is that of all of it."""
    generator = np.random.default_rng(5)
    score = 1 - 0.5 * generator.random(100_000) ** 2
    wrong_at = {
        "errors where it is unsure": 1 - score,
        "errors anywhere, at just the rate": np.full(len(score), rate * 1.02),
        "errors where it is surest, too": np.where(score > 0.98, 0.12, 1 - score),
    }[law]
    correct = generator.random(len(score)) >= wrong_at
    broken = 0
    for _ in range(DRAWS):
        drawn = generator.integers(0, len(score), rows)
        promise = promised_threshold(score[drawn], correct[drawn], rate, CONFIDENCE)
        broken += promise is not None and (~correct)[score >= promise.threshold].mean() > rate
    assert broken <= MOST_BROKEN


def test_fitting_the_temperature_on_the_same_rows_does_not_break_it():
    generator = np.random.default_rng(6)
    honest = generator.normal(scale=3.0, size=(10_000, 3))
    cumulative = softmax(honest).astype(np.float64).cumsum(axis=1)
    labels = (generator.random((len(honest), 1)) * cumulative[:, -1:] > cumulative).sum(axis=1)
    logits, correct = honest * 3, honest.argmax(axis=1) == labels
    broken = answered = 0
    for _ in range(DRAWS // 2):
        drawn = generator.integers(0, len(logits), 500)
        temperature = fit_temperature(logits[drawn], labels[drawn])
        confidence = softmax(logits, temperature).max(axis=1).astype(np.float64)
        promise = promised_threshold(confidence[drawn], correct[drawn], 0.05, CONFIDENCE)
        if promise is not None:
            answered += 1
            broken += (~correct)[confidence >= promise.threshold].mean() > 0.05
    assert answered > 0.8 * DRAWS / 2  # else the promise is kept by silence
    assert broken <= MOST_BROKEN / 2 + 5
