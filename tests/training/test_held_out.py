"""What validation rows are for is settled before training, and said where they are too few."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.config import TrainingSection
from newsdesk.data.examples import Examples
from newsdesk.training.held_out import HeldOut, classes_not_held_out

TRAINING = TrainingSection()


def labels_of(*sizes: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


def test_where_there_is_a_choice_half_of_each_class_chooses_and_the_other_half_calibrates():
    labels = labels_of(100, 50, 7, 2)
    parts = HeldOut.of(labels, 3, TRAINING)
    both = np.concatenate([parts.choosing, parts.calibrating])
    assert sorted(both.tolist()) == list(range(159))
    by_class = [np.bincount(labels[part], minlength=4) for part in (parts.choosing, parts.calibrating)]
    assert np.abs(by_class[0] - by_class[1]).max() <= 1
    assert all(counts.min() >= 1 for counts in by_class)
    assert parts.measured is parts.choosing


def test_the_seed_decides_which_half_is_which():
    labels = labels_of(60, 60)
    first, again, other = (
        HeldOut.of(labels, 2, TrainingSection(seed=seed)).choosing.tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(("rows", "states"), [(99, 5), (400, 1), (0, 5)])
def test_too_few_rows_or_a_single_state_leave_all_rows_to_calibrate(rows: int, states: int):
    parts = HeldOut.of(labels_of(rows), states, TRAINING)
    assert (len(parts.choosing), len(parts.calibrating)) == (0, rows)
    assert parts.measured is parts.calibrating


def test_how_little_few_rows_say_is_said():
    """Of 42 rows 38 right: 77.9 to 96.2 %; none of 42 wrong: at most 6.9 % with 95 % confidence."""
    (few, worth) = HeldOut.of(labels_of(21, 21), 3, TRAINING).remarks(TRAINING)
    assert few.startswith("42 validation rows are too few to choose the best state by (100 are needed)")
    assert "with 42, an accuracy near 90 % is known to within 9 points (95 %)" in worth
    assert "--abstain can promise 0.069 at best" in worth
    patient = TrainingSection(patience=2)
    assert "patience does not end the training" in HeldOut.of(labels_of(42), 3, patient).remarks(patient)[0]
    (choose, worth) = HeldOut.of(labels_of(120), 3, TRAINING).remarks(TRAINING)
    assert choose == "60 validation rows choose the best of 3 states, the other 60 calibrate it"
    assert "with 60" in worth
    assert "promise nothing" in HeldOut.of(labels_of(2), 1, TRAINING).remarks(TRAINING)[0]
    assert "no figures" in HeldOut.of(labels_of(0), 1, TRAINING).remarks(TRAINING)[0]
    assert HeldOut.of(labels_of(200), 1, TRAINING).remarks(TRAINING) == []


def test_classes_without_a_validation_row_are_named_with_their_rows():
    def examples(*labels: int) -> Examples:
        names = ("acq", "grain", "ship")
        return Examples(tuple(map(str, labels)), np.array(labels, dtype=np.int64), names, "test")

    (remark,) = classes_not_held_out(examples(0, 0, 0, 1, 2, 2), examples(0))
    assert "no validation row for 2 of 3 classes: grain (1 row), ship (2 rows)" in remark
    assert classes_not_held_out(examples(0, 1, 2), examples(2, 1, 0)) == []
    assert classes_not_held_out(examples(0, 1, 2), examples()) == []
