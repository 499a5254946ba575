"""What more rows would bring: said by the folds' answers and the curve of heads on frozen features."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from newsdesk.data.folds import assign_folds
from newsdesk.training.folds import OutOfFold
from newsdesk.training.learning_curve import LearningCurve, remark_on_more_rows

NAMES = ("Business", "Science", "Sports")


def clusters(rows, distance, seed, classes=3, width=96):
    """Features around a centre for each class, and the classes."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(classes, width)) * distance
    labels = np.arange(rows) % classes
    return centres[labels] + generator.normal(size=(rows, width)), labels


def answered(labels, right, seed=0):
    """Class ids of which such a share is right."""
    wrong = np.random.default_rng(seed).random(len(labels)) >= right
    return np.where(wrong, (labels + 1) % 3, labels)


def curve(rows=300, right=0.8, distance=0.2, seed=1):
    features, labels = clusters(rows, distance, seed)
    fold_of = assign_folds(labels, np.arange(rows), 5, seed)
    return LearningCurve.of(features, answered(labels, right), labels, fold_of)


def test_heads_get_better_with_rows_and_so_will_what_is_said_of_more():
    found = curve()
    assert found.heads[0] > found.heads[1] > found.heads[2]
    assert (found.rows, found.learned) == (300, 240.0)
    twice, tenfold = found.at(600), found.at(3000)
    assert 1 - found.wrong < twice.score < tenfold.score < 1
    assert twice.interval[0] < twice.score < twice.interval[1]
    assert 0 <= twice.gain_interval[0] < twice.gain < twice.gain_interval[1]
    assert tenfold.interval[1] - tenfold.interval[0] > twice.interval[1] - twice.interval[0]


def test_where_heads_learn_nothing_more_little_is_expected_of_more_rows():
    steep, flat = curve(distance=0.2), curve(distance=3.0)
    assert flat.heads[-1] < 0.01
    assert flat.exponent < steep.exponent
    assert flat.at(600).gain < steep.at(600).gain


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_answers_that_are_all_right_or_all_wrong_give_finite_figures(right):
    ahead = curve(right=right).at(600)
    assert 0 < ahead.interval[0] <= ahead.score <= ahead.interval[1] < 1
    assert np.isfinite([*ahead.gain_interval, ahead.gain]).all()


def test_the_error_of_sets_of_one_label_each_is_that_of_classes():
    features, labels = clusters(120, 0.2, seed=2)
    fold_of, given = assign_folds(labels, np.arange(120), 5, 0), answered(labels, 0.75)
    of_classes = LearningCurve.of(features, given, labels, fold_of)
    sets, given_sets = (np.arange(3) == ids[:, None] for ids in (labels, given))
    of_sets = LearningCurve.of(features, given_sets, sets, fold_of)
    assert (of_sets.wrong, of_sets.error) == pytest.approx((of_classes.wrong, of_classes.error))
    assert of_sets.heads[0] > of_sets.heads[-1]


def said_of(logits, labels):
    features, _ = clusters(len(labels), 0.2, seed=3)
    fold_of = np.arange(len(labels)) % 5
    found = OutOfFold(logits, labels, fold_of, {1.0: logits}, 1.0, None, None, None)
    return remark_on_more_rows(features, found, NAMES)


def test_the_sentence_names_the_classes_of_which_too_few_rows_are_found():
    labels = np.arange(300) % 3
    given = np.where((labels == 1) & (np.arange(300) % 2 == 0), 2, labels)
    said = said_of(np.eye(3, dtype=np.float32)[given], labels)
    assert said.startswith("with twice the rows, 600, accuracy would be about 8")
    assert said.endswith("rows are needed most of Science (50% [39%, 62%] of 100 rows found)")
    even = said_of(np.eye(3, dtype=np.float32)[answered(labels, 0.8)], labels)
    assert even.endswith("no class is clearly behind the others")


def test_several_labels_are_said_in_micro_f1():
    labels = np.random.default_rng(4).random((200, 3)) < 0.4
    logits = np.where(labels, 1.0, -1.0).astype(np.float32)
    logits[::3, 2] = -1.0
    said = said_of(logits, labels)
    assert "micro F1 would be about" in said
    assert "rows are needed most of Sports" in said
    nothing = said_of(-np.ones((200, 3), dtype=np.float32), labels)
    assert "micro F1 would be about" in nothing
