"""No row is judged by what learned from it or its copies; every class is in every fold."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.data.folds import assign_folds, clusters_of
from newsdesk.evaluation.audit.label_issues import out_of_sample_probabilities


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


WORDLESS = "..."


def probabilities_of(vectors, labels, clusters=None, *, texts=None, folds=3):
    clusters = np.arange(len(labels)) if clusters is None else clusters
    texts = [WORDLESS] * len(labels) if texts is None else texts
    classes = int(labels.max()) + 1
    vectors = vectors.astype(np.float32)
    return out_of_sample_probabilities(texts, vectors, labels, clusters, classes=classes, folds=folds, seed=0)


@pytest.mark.parametrize("sees", ["vectors", "words"])
def test_a_row_has_no_say_in_its_own_probabilities(sees):
    generator = np.random.default_rng(0)
    topics = np.arange(60) % 2
    labels = topics.copy()
    labels[7] = 1 - labels[7]
    vectors, texts = np.ones((60, 2)), [WORDLESS] * 60
    if sees == "vectors":
        vectors = np.eye(2)[topics] + 0.1 * generator.normal(size=(60, 2))
    else:
        texts = [f"{('goal', 'bank')[topic]} w{row}" for row, topic in enumerate(topics)]
    alone = probabilities_of(vectors, labels, texts=texts)
    assert alone.sum(axis=1) == pytest.approx(1)
    assert alone[7, labels[7]] < 0.5
    if sees == "vectors":
        assert (alone.argmax(axis=1) == topics).all()


def test_copies_do_not_vouch_for_each_other():
    directions = np.array([[1, 0, 0], [0, 1, 0], [0.9, 0, 0.4]])
    vectors, labels = directions[np.repeat([0, 1, 2], [20, 20, 4])], np.repeat([0, 1, 1], [20, 20, 4])
    strangers = probabilities_of(vectors, labels)
    copies = probabilities_of(vectors, labels, np.minimum(np.arange(44), 40))
    assert (copies[40:, 1] < strangers[40:, 1]).all()
    assert copies[40:, 1] == pytest.approx(0)


def test_a_class_that_a_fold_does_not_know_has_probability_0_there():
    found = probabilities_of(np.eye(3)[[0, 0, 1, 1, 2]], np.array([0, 0, 1, 1, 2]), folds=2)
    assert found[4, 2] == 0
    assert found.sum(axis=1) == pytest.approx(1)


def test_where_only_one_class_is_known_it_is_certain():
    found = probabilities_of(np.eye(2), np.array([0, 1]))
    assert found.tolist() == [[0.0, 1.0], [1.0, 0.0]]
