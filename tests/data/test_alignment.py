from __future__ import annotations

import numpy as np
import pytest

from newsdesk.data.examples import Examples, aligned_labels
from newsdesk.errors import UserError


def examples(labels, names):
    return Examples(
        tuple(f"text {i}" for i in range(len(labels))), np.array(labels, dtype=np.int64), names, "wire.csv"
    )


def test_classes_are_matched_by_name_whatever_their_order():
    assert aligned_labels(examples([0, 1, 0], ("b", "a")), ("a", "b", "c")).tolist() == [1, 0, 1]


def test_a_named_class_without_rows_need_not_be_known():
    assert aligned_labels(examples([1], ("unheard of", "a")), ("a",)).tolist() == [0]


def test_rows_of_an_unknown_class_are_reported_by_name_and_number():
    with pytest.raises(UserError) as caught:
        aligned_labels(examples([0, 1, 1], ("a", "weather")), ("a", "b"))
    assert "wire.csv" in caught.value.wrong
    assert "'weather'" in caught.value.wrong
    assert caught.value.found == "2 rows of unknown classes; the model knows a, b"


def test_unlabelled_rows_cannot_be_evaluated():
    with pytest.raises(UserError, match="no labels") as caught:
        aligned_labels(Examples(("x",), None, (), "wire.csv"), ("a",))
    assert "newsdesk predict" in str(caught.value.fix)


def test_an_empty_split_cannot_be_evaluated():
    with pytest.raises(UserError, match="no rows"):
        aligned_labels(examples([], ("a",)), ("a",))
