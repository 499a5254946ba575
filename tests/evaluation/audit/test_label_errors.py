"""Confident learning counts and ranks as its paper says, and as the reference implementation does."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.evaluation.audit.label_issues import rank_label_errors

# Mean probability of the own class: 0.7 among rows 0-2, 0.65 among rows 3-6.
PROBABILITIES = np.array(
    [[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.1, 0.9], [0.9, 0.1], [0.2, 0.8]], dtype=np.float32
)
LABELS = np.array([0, 0, 0, 1, 1, 1, 1])


def noisy_data(seed: int, rows: int = 600, classes: int = 4):
    """Probabilities of a decent model, and labels of which a tenth were changed."""
    generator = np.random.default_rng(seed)
    true = generator.integers(classes, size=rows)
    logits = generator.normal(size=(rows, classes)) + 3 * np.eye(classes)[true]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    changed = generator.permutation(rows)[: rows // 10]
    labels = true.copy()
    labels[changed] = (labels[changed] + generator.integers(1, classes, size=len(changed))) % classes
    return probabilities, labels, changed


def test_a_small_case_comes_out_as_counted_by_hand():
    found = rank_label_errors(PROBABILITIES, LABELS)
    assert found.confident_joint.tolist() == [[2, 1], [1, 3]]
    assert found.suspects.tolist() == [5, 2]
    assert found.suggested.tolist() == [0, 0, 1, 1, 1, 0, 1]
    assert found.quality == pytest.approx([0.9, 0.9, 0.3, 0.8, 0.9, 0.1, 0.8])
    assert found.joint == pytest.approx(np.array([[2.0, 1.0], [1.0, 3.0]]))
    assert found.noise == pytest.approx(2 / 7)
    assert found.confused_pairs() == [(0, 1, pytest.approx(1.0)), (1, 0, pytest.approx(1.0))]
    assert found.ranking.tolist() == [5, 2, 3, 6, 0, 1, 4]


def test_a_row_that_reaches_no_class_is_not_counted_but_scaled_up_from_those_that_do():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.55, 0.45], [0.1, 0.9], [0.1, 0.9]])
    found = rank_label_errors(probabilities, np.array([0, 0, 0, 1, 1]))
    assert found.confident_joint.tolist() == [[2, 0], [0, 2]]
    assert found.joint.tolist() == [[3.0, 0.0], [0.0, 2.0]]
    assert (found.noise, len(found.suspects), found.suggested[2]) == (0.0, 0, 0)


def test_the_only_class_that_a_row_reaches_is_suggested_even_if_another_is_more_probable():
    # Class 0 needs 0.95, which 0.6 is not; class 1 needs 0.35, which 0.4 is.
    probabilities = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    found = rank_label_errors(probabilities, np.array([0, 0, 0, 0, 1, 1]))
    assert found.suggested.tolist()[-1] == 1


def test_a_class_without_rows_is_never_suggested():
    probabilities = np.array([[0.6, 0.1, 0.3], [0.7, 0.1, 0.2], [0.1, 0.2, 0.7], [0.0, 0.1, 0.9]])
    found = rank_label_errors(probabilities, np.array([0, 0, 1, 1]))
    assert set(found.suggested[found.suspects]) <= {0, 1}
    assert found.joint.sum() == pytest.approx(4)


def test_wrong_labels_come_first():
    probabilities, labels, changed = noisy_data(1)
    found = rank_label_errors(probabilities, labels)
    assert np.isin(found.ranking[: len(changed)], changed).mean() > 0.75
    assert found.noise == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [(np.ones((2, 2)), [0]), (np.ones((0, 2)), []), (np.ones((2, 1)), [0, 0]), (np.ones(2), [0, 0])],
)
def test_shapes_that_do_not_fit_are_refused(probabilities, labels):
    with pytest.raises(ValueError, match="probabilities of shape"):
        rank_label_errors(probabilities, np.array(labels, dtype=np.int64))


@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_cleanlab(seed):
    count = pytest.importorskip("cleanlab.count", reason="cleanlab, the reference, is not installed")
    from cleanlab.rank import get_label_quality_scores

    probabilities, labels, _ = noisy_data(seed)
    ours = rank_label_errors(probabilities, labels)
    joint, suspects = count.compute_confident_joint(
        labels, probabilities, calibrate=False, return_indices_of_off_diagonals=True
    )
    assert ours.confident_joint.tolist() == joint.tolist()
    assert sorted(ours.suspects) == sorted(suspects)
    theirs = get_label_quality_scores(labels, probabilities, method="self_confidence")
    assert ours.quality == pytest.approx(theirs)
    calibrated = count.compute_confident_joint(labels, probabilities, calibrate=True)
    assert np.abs(ours.joint - calibrated).max() <= 1  # theirs is rounded to whole rows
