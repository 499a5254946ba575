"""No row is judged by what learned from it or its copies; every class is in every fold."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.evaluation.audit.out_of_sample import assign_folds, clusters_of, out_of_sample_probabilities


def test_links_join_clusters_however_they_come():
    clusters = clusters_of(7, [(0, 1), (2, 3, 4), (4, 1)])
    assert len({clusters[row] for row in range(5)}) == 1
    assert len(set(clusters)) == 3


def test_copies_share_a_fold_and_classes_are_spread_evenly():
    labels = np.repeat([0, 1], [40, 10])
    clusters = np.arange(50) // 2
    folds = assign_folds(labels, clusters, 5, seed=3)
    assert (folds[::2] == folds[1::2]).all()
    assert [np.bincount(folds[labels == k], minlength=5).tolist() for k in (0, 1)] == [[8] * 5, [2] * 5]
    assert (folds != assign_folds(labels, clusters, 5, seed=4)).any()


def test_a_row_has_no_say_in_its_own_probabilities():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 2
    vectors = (np.eye(2)[labels] + 0.1 * generator.normal(size=(60, 2))).astype(np.float32)
    labels[7] = 1 - labels[7]
    alone = out_of_sample_probabilities(vectors, labels, np.arange(60), classes=2, folds=3, seed=0)
    assert alone.sum(axis=1) == pytest.approx(1)
    assert alone[7, labels[7]] < 0.5
    assert (alone.argmax(axis=1) == labels).sum() == 59


def test_a_class_that_a_fold_does_not_know_has_probability_0_there():
    vectors = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 2]]
    labels = np.array([0, 0, 1, 1, 2])
    found = out_of_sample_probabilities(vectors, labels, np.arange(5), classes=3, folds=2, seed=0)
    assert found[4, 2] == 0
    assert found.sum(axis=1) == pytest.approx(1)


def test_where_only_one_class_is_known_it_is_certain():
    vectors, labels = np.eye(2, dtype=np.float32), np.array([0, 1])
    found = out_of_sample_probabilities(vectors, labels, np.arange(2), classes=2, folds=3, seed=0)
    assert found.tolist() == [[0.0, 1.0], [1.0, 0.0]]
