"""Labels that a program gives become a table's, several a row from lists, sets and 0/1 matrices."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.data.given import given_labels, given_table
from newsdesk.data.labelled import to_examples

TEXTS = ["a", "b", "c"]
MATRIX = np.array([[1, 0, 1], [0, 0, 0], [0, 0, 1]])


def examples_of(labels):
    given = given_labels(labels)
    return to_examples(given_table(TEXTS, given), task="multi" if given.is_multi else "single")


def frame(matrix):
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(matrix, columns=["sport", "rain", "money"])


def sparse(matrix):
    return pytest.importorskip("scipy.sparse").csr_matrix(matrix)


@pytest.mark.parametrize("make", [np.asarray, sparse, lambda matrix: matrix.astype(bool), np.float32])
def test_a_matrix_without_names_counts_its_columns_and_keeps_those_that_no_row_has(make):
    examples = examples_of(make(MATRIX))
    assert examples.label_names == ("0", "1", "2")
    assert examples.labels.astype(int).tolist() == MATRIX.tolist()
    assert given_labels(make(MATRIX)).names == (0, 1, 2)


def test_the_columns_of_a_frame_name_the_labels_in_their_order():
    examples = examples_of(frame(MATRIX))
    assert examples.label_names == ("sport", "rain", "money")
    assert examples.labels.astype(int).tolist() == MATRIX.tolist()


def test_what_a_multi_label_binarizer_gives_is_taken_with_its_classes():
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    lists = [["sport", "money"], [], ["money"]]
    for is_sparse in (False, True):
        binarizer = preprocessing.MultiLabelBinarizer(sparse_output=is_sparse)
        matrix = binarizer.fit_transform(lists)
        assert examples_of(matrix).labels.tolist() == examples_of(lists).labels.tolist()
        assert examples_of(lists).label_names == tuple(binarizer.classes_)


@pytest.mark.parametrize(
    "labels",
    [
        [["sport", "money"], [], ["money"]],
        [("money", "sport"), (), ("money",)],
        [{"sport", "money"}, set(), frozenset({"money"})],
        np.array([["sport", "money"], [], ["money"]], dtype=object),
    ],
)
def test_lists_tuples_and_sets_are_labels_of_a_text(labels):
    examples = examples_of(labels)
    assert examples.label_names == ("money", "sport")
    assert examples.labels.astype(int).tolist() == [[1, 1], [0, 0], [1, 0]]


def test_a_series_of_lists_has_several_labels_a_text_and_one_of_names_one():
    pandas = pytest.importorskip("pandas")
    assert examples_of(pandas.Series([["x"], ["x", "y"], []])).is_multi
    assert not examples_of(pandas.Series(["x", "y", "x"])).is_multi
    assert not examples_of(np.array([[1], [0], [1]])).is_multi


@pytest.mark.parametrize(
    ("labels", "error", "said"),
    [
        (np.array([[0, 1], [2, 0], [0, 0]]), ValueError, r"labels\[1, 0\] is .*2.*neither 0 nor 1"),
        ([[0, 1], [1, 1], [1, 0]], ValueError, r"give numpy\.array\(labels\)"),
        ([["x"], "y", ["x"]], TypeError, r"labels\[1\] is no list of labels but str"),
        ([["x"], ["y", None], []], ValueError, r"labels\[1\] has a missing label"),
        (np.zeros((3, 2, 2)), TypeError, "one dimension"),
    ],
)
def test_what_cannot_be_labels_says_where(labels, error, said):
    with pytest.raises(error, match=said):
        given_labels(labels)


def test_two_columns_of_one_name_are_refused():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match="called the same"):
        given_labels(pandas.DataFrame(MATRIX, columns=["x", "y", "x"]))
