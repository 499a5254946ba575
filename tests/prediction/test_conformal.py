"""Prediction sets: the definition, and how often simulated rows find the truth in them."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.prediction.abstention import highest_coverage, prediction_sets, set_threshold


def simulated(rows, generator):
    """Distributions over 5 classes and labels that follow others: a classifier that is much too sure."""
    honest = generator.dirichlet(np.full(5, 0.5), rows)
    labels = (generator.random((rows, 1)) * honest.sum(axis=1, keepdims=True) > honest.cumsum(axis=1)).sum(
        axis=1
    )
    overconfident = honest**4
    return overconfident / overconfident.sum(axis=1, keepdims=True), labels


def test_the_threshold_is_the_rank_that_split_conformal_prediction_takes():
    probabilities = np.column_stack([np.arange(1, 10) / 10, 1 - np.arange(1, 10) / 10])
    labels = np.zeros(9, dtype=int)
    assert set_threshold(probabilities, labels, 0.5) == 0.5  # the 5th of 9 from above
    assert set_threshold(probabilities, labels, 0.9) == 0.1  # the 9th
    assert set_threshold(probabilities, labels, 0.91) == 0.0  # there is no 10th
    assert highest_coverage(9) == 0.9


def test_the_most_probable_class_belongs_to_every_set():
    sets = prediction_sets(np.array([[0.6, 0.3, 0.1], [0.4, 0.4, 0.2]]), 0.9)
    assert sets.tolist() == [[True, False, False], [True, True, False]]
    assert prediction_sets(np.array([[0.6, 0.3, 0.1]]), 0.3).tolist() == [[True, True, False]]
    assert prediction_sets(np.array([[0.6, 0.4, 0.0]]), 0.0).all()


@pytest.mark.parametrize(("rows", "coverage"), [(60, 0.9), (400, 0.95)])
def test_sets_hold_the_truth_as_often_as_promised_though_the_classifier_is_too_sure(rows, coverage):
    generator = np.random.default_rng(3)
    held = []
    for _ in range(300):
        threshold = set_threshold(*simulated(rows, generator), coverage)
        probabilities, labels = simulated(200, generator)
        held.append(prediction_sets(probabilities, threshold)[np.arange(200), labels].mean())
    assert np.mean(held) == pytest.approx(coverage, abs=0.02)
    assert np.mean(held) > coverage - 0.006


@pytest.mark.parametrize("coverage", [0, 1, -1])
def test_a_coverage_outside_0_to_1_is_refused(coverage):
    with pytest.raises(ValueError, match="coverage"):
        set_threshold(np.ones((2, 1)), np.zeros(2, dtype=int), coverage)
