"""Examples line up, select, and are told apart by their fingerprint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from newsdesk.data.examples import Examples, joined


def examples(texts=("a", "b", "c"), labels=(0, 1, 0), names=("x", "y"), source="here") -> Examples:
    ids = None if labels is None else np.array(labels, dtype=np.int64)
    return Examples(tuple(texts), ids, tuple(names), source)


def test_texts_and_labels_that_do_not_line_up_are_a_defect():
    with pytest.raises(ValueError, match="3 texts but 2 labels"):
        examples(labels=(0, 1))


def test_selection_keeps_texts_with_their_labels_in_the_order_asked_for():
    chosen = examples().select([2, 1])
    assert chosen.texts == ("c", "b")
    assert chosen.labels is not None
    assert chosen.labels.tolist() == [0, 1]
    assert chosen.label_names == ("x", "y")
    assert len(chosen) == 2
    assert examples(labels=None).select(np.array([1])).labels is None
    assert len(examples().select([])) == 0


def test_the_fingerprint_ignores_the_source_alone():
    assert examples().fingerprint() == examples(source="elsewhere").fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"texts": ("a", "b", "d")},
        {"texts": ("b", "a", "c")},
        {"texts": ("ab", "", "c")},
        {"labels": (0, 1, 1)},
        {"labels": None},
        {"names": ("x", "z")},
        {"names": ("x", "y", "z")},
    ],
)
def test_the_fingerprint_changes_with_everything_that_training_would_see(change):
    assert examples(**change).fingerprint() != examples().fingerprint()


def test_text_that_is_no_unicode_still_has_a_fingerprint():
    assert examples(texts=("\ud83d", "b", "c")).fingerprint()


def test_a_label_name_is_not_mistaken_for_a_text():
    one = examples(texts=("y", "a", "b"), names=("x",))
    other = examples(texts=("a", "b"), labels=(0, 0), names=("x", "y"))
    assert one.fingerprint() != other.fingerprint()


def test_parts_are_joined_in_turn_if_they_know_the_same_classes():
    one = Examples(("a", "b"), np.array([0, 1]), ("x", "y"), "one.csv")
    other = Examples(("c",), np.array([1]), ("x", "y"), "other.csv")
    both = joined([one, other, one])
    assert both.texts == ("a", "b", "c", "a", "b")
    assert both.labels.tolist() == [0, 1, 1, 0, 1]
    assert both.source == "one.csv, other.csv"
    for stranger in (replace(other, label_names=("y", "x")), replace(other, labels=None)):
        with pytest.raises(ValueError, match="same classes"):
            joined([one, stranger])
