from __future__ import annotations

import numpy as np
import pytest

from newsdesk.evaluation.bootstrap import accuracy_and_macro_f1, mean_difference

CLASSES = 3


@pytest.fixture(scope="module")
def predicted():
    """True and twice predicted ids of 400 rows; the second classifier errs less."""
    generator = np.random.default_rng(3)
    labels = generator.integers(0, CLASSES, 400)

    def erring(share):
        return np.where(generator.random(400) < share, generator.integers(0, CLASSES, 400), labels)

    return labels, erring(0.3), erring(0.15)


def macro_f1_of(labels, predicted):
    confusion = np.zeros((CLASSES, CLASSES))
    np.add.at(confusion, (labels, predicted), 1)
    return (2 * np.diag(confusion) / (confusion.sum(axis=0) + confusion.sum(axis=1))).mean()


def test_figures_and_intervals_are_those_of_resampling_rows_one_by_one(predicted):
    metrics = pytest.importorskip("sklearn.metrics")
    labels, first, other = predicted
    accuracy, macro_f1 = accuracy_and_macro_f1(labels, first, other, CLASSES)
    assert accuracy.first == (first == labels).mean()
    assert accuracy.difference == pytest.approx((other == labels).mean() - (first == labels).mean())
    assert macro_f1.other == pytest.approx(metrics.f1_score(labels, other, average="macro"))
    generator = np.random.default_rng(8)
    drawn = [generator.integers(0, 400, 400) for _ in range(600)]
    f1s = [macro_f1_of(labels[rows], other[rows]) - macro_f1_of(labels[rows], first[rows]) for rows in drawn]
    gains = [((other == labels)[rows].mean() - (first == labels)[rows].mean()) for rows in drawn]
    assert macro_f1.interval == pytest.approx(np.quantile(f1s, [0.025, 0.975]), abs=0.012)
    assert accuracy.interval == pytest.approx(np.quantile(gains, [0.025, 0.975]), abs=0.012)
    assert accuracy.excludes_zero


def test_macro_f1_leaves_out_classes_that_do_not_occur(predicted):
    labels, first, other = predicted
    assert accuracy_and_macro_f1(labels, first, other, CLASSES + 4) == accuracy_and_macro_f1(
        labels, first, other, CLASSES
    )


def test_equal_predictions_differ_by_nothing(predicted):
    labels, first, _ = predicted
    for figure in accuracy_and_macro_f1(labels, first, first, CLASSES):
        assert figure.interval == (0.0, 0.0)
        assert not figure.excludes_zero


def test_the_interval_of_a_mean_is_that_of_the_normal_law_for_many_rows():
    generator = np.random.default_rng(1)
    first = generator.normal(0, 1, 2000)
    other = first + generator.normal(0.5, 2, 2000)
    found = mean_difference(first, other)
    gains = other - first
    half = 1.96 * gains.std() / np.sqrt(2000)
    assert found.interval == pytest.approx((gains.mean() - half, gains.mean() + half), abs=0.01)
    assert found == mean_difference(first, other)
    assert found.interval != mean_difference(first, other, seed=1).interval
    assert found.to_dict()["difference"] == found.difference == pytest.approx(gains.mean())
