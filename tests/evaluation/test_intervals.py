"""Intervals of figures and of differences: what they are by definition, and that they hold on few rows."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.evaluation.significance import (
    accuracy_difference,
    macro_f1_difference,
    macro_f1_interval,
    mean_difference,
    mean_interval,
)
from newsdesk.metrics import wilson_interval

CLASSES = 3


@pytest.fixture(scope="module")
def predicted():
    """True and twice predicted ids of 400 rows; the second classifier errs less."""
    generator = np.random.default_rng(3)
    labels = generator.integers(0, CLASSES, 400)

    def erring(share):
        return np.where(generator.random(400) < share, generator.integers(0, CLASSES, 400), labels)

    return labels, erring(0.3), erring(0.15)


def test_figures_are_those_of_scikit_learn(predicted):
    metrics = pytest.importorskip("sklearn.metrics")
    labels, first, other = predicted
    accuracy = accuracy_difference(labels, first, other)
    assert (accuracy.first, accuracy.other) == ((first == labels).mean(), (other == labels).mean())
    macro_f1 = macro_f1_difference(labels, first, other, CLASSES)
    assert macro_f1.first == pytest.approx(metrics.f1_score(labels, first, average="macro"))
    assert macro_f1.other == pytest.approx(metrics.f1_score(labels, other, average="macro"))


def test_on_many_rows_intervals_are_those_of_resampling_rows(predicted):
    metrics = pytest.importorskip("sklearn.metrics")
    labels, first, other = predicted
    generator = np.random.default_rng(8)
    drawn = [generator.integers(0, 400, 400) for _ in range(600)]
    f1s, other_f1s = (
        np.array([metrics.f1_score(labels[rows], given[rows], average="macro") for rows in drawn])
        for given in (first, other)
    )
    ends = [0.025, 0.975]
    assert macro_f1_interval(labels, first, CLASSES) == pytest.approx(np.quantile(f1s, ends), abs=0.012)
    difference = macro_f1_difference(labels, first, other, CLASSES)
    assert difference.interval == pytest.approx(np.quantile(other_f1s - f1s, ends), abs=0.012)
    gains = [((other == labels)[rows].mean() - (first == labels)[rows].mean()) for rows in drawn]
    accuracy = accuracy_difference(labels, first, other)
    assert accuracy.interval == pytest.approx(np.quantile(gains, ends), abs=0.012)
    assert accuracy.excludes_zero


def test_leaving_out_a_row_is_what_computing_anew_without_it_gives(predicted):
    from newsdesk.evaluation.significance import macro_f1_without_each

    metrics = pytest.importorskip("sklearn.metrics")
    # The last row is the only one that names class 2, the first is the only one right in class 1.
    labels, given = np.array([1, 0, 0, 0, 0]), np.array([1, 0, 0, 1, 2])
    figure, left_out = macro_f1_without_each(labels, given, 4)
    assert figure == pytest.approx(metrics.f1_score(labels, given, average="macro", zero_division=0))
    for row in range(5):
        others = np.arange(5) != row
        anew = metrics.f1_score(labels[others], given[others], average="macro", zero_division=0)
        assert left_out[row] == pytest.approx(anew)


def test_macro_f1_leaves_out_classes_that_do_not_occur(predicted):
    labels, first, other = predicted
    assert macro_f1_interval(labels, first, CLASSES + 4) == macro_f1_interval(labels, first, CLASSES)
    assert macro_f1_difference(labels, first, other, CLASSES + 4) == macro_f1_difference(
        labels, first, other, CLASSES
    )


def test_no_error_seen_is_not_certainty(predicted):
    labels, first, _ = predicted
    low, high = macro_f1_interval(labels[:25], labels[:25], CLASSES)
    assert high == 1.0
    assert 0.8 < low < wilson_interval(25, 25)[0]
    assert macro_f1_interval(labels[:1], labels[:1], CLASSES)[0] < 0.3
    for difference in (
        accuracy_difference(labels, first, first),
        macro_f1_difference(labels, first, first, CLASSES),
    ):
        assert difference.difference == 0
        assert difference.interval[0] < 0 < difference.interval[1]
        assert not difference.excludes_zero


def test_the_interval_of_a_mean_follows_its_skewness_and_its_bounds():
    generator = np.random.default_rng(1)
    skewed = generator.exponential(size=40) ** 2
    low, high = mean_interval(skewed)
    assert high - skewed.mean() > 1.3 * (skewed.mean() - low)
    assert mean_interval(skewed, least=low + 0.1, most=high - 0.1) == (low + 0.1, high - 0.1)
    assert mean_interval(skewed) == (low, high)
    assert mean_interval(skewed, seed=1) != (low, high)
    assert mean_interval(skewed[:1]) is None
    assert mean_interval(np.full(5, 0.25)) == (0.25, 0.25)


@pytest.mark.parametrize("rows", [5000, 50_000])
def test_the_interval_of_a_mean_of_many_is_that_of_the_normal_law(rows):
    values = np.random.default_rng(2).normal(5, 2, rows)
    half = 1.96 * values.std() / np.sqrt(rows)
    expected = (values.mean() - half, values.mean() + half)
    assert mean_interval(values) == pytest.approx(expected, abs=0.15 * half)
    other = values + 1
    assert mean_difference(values, other).interval == pytest.approx((1, 1))


def test_students_quantile_is_scipys():
    from newsdesk.evaluation.significance import _student

    stats = pytest.importorskip("scipy.stats")
    assert _student(2) == pytest.approx(stats.t.ppf(0.975, 2), rel=0.04)
    for degrees in (4.5, 9, 24, 400):
        assert _student(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=0.003)


def test_a_difference_of_single_rows_is_anything():
    assert mean_difference(np.array([1.0]), np.array([2.0])).interval == (-np.inf, np.inf)
