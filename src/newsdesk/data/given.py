"""Rows that a program gives: texts and labels from lists, arrays, Series, matrices and frames to a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from newsdesk.data.table import IN_MEMORY, Table

TEXT, LABEL = "text", "label"
"""The columns of the table."""

_SETS = (list, tuple, set, frozenset, np.ndarray)


@dataclass(frozen=True)
class GivenLabels:
    """The labels of rows as a program gives them.

    Attributes:
        values: of each row its label, None for a missing one; where ``is_multi``, a tuple of labels.
        is_multi: whether a row may have several.
        names: what the columns of a 0/1 matrix are called, whether or not a row has them; empty for others.
    """

    values: Sequence[Any]
    is_multi: bool = False
    names: tuple[Any, ...] = ()

    def flat(self) -> list[Any]:
        """Every label of every row."""
        return [label for labels in self.values for label in labels] if self.is_multi else list(self.values)


def given_texts(given: Any) -> list[Any]:
    """The texts as a list. Raises TypeError for what holds anything else, ValueError for missing ones."""
    texts = one_each(given, "texts")
    for number, text in enumerate(texts):
        if text is None:
            raise ValueError(f"texts[{number}] is missing: leave such rows out, or fill them with ''")
        if not isinstance(text, str):
            raise TypeError(f"texts[{number}] is no text but {type(text).__name__}: {text!r:.60}")
    return texts


def given_labels(given: Any) -> GivenLabels:
    """The labels of a list, array, Series or column; several a row where its entries are lists or sets.

    Or of a 0/1 matrix, (rows, labels): an array, a sparse one, or a frame, whose columns name the labels;
    else they are called 0 to labels - 1. Raises TypeError for others, and ValueError for a matrix that holds
    anything else, or is written as lists, which might as well be of the labels 0 and 1.
    """
    if hasattr(given, "toarray"):
        given = given.toarray()
    shape: tuple[int, ...] = getattr(given, "shape", ())
    if len(shape) == 2 and shape[1] != 1:
        names = [_plain(name) for name in getattr(given, "columns", range(shape[1]))]
        return _of_matrix(np.asarray(given), names)
    values = one_each(given, "labels")
    if not any(isinstance(value, _SETS) for value in values):
        return GivenLabels(values)
    sets = []
    for number, value in enumerate(values):
        if not isinstance(value, _SETS):
            raise TypeError(
                f"labels[{number}] is no list of labels but {type(value).__name__}, where others are lists"
            )
        labels = [_plain(label) for label in value]
        if None in labels:
            raise ValueError(f"labels[{number}] has a missing label among others: leave it out")
        sets.append(tuple(sorted(labels, key=str) if isinstance(value, set | frozenset) else labels))
    if len({*map(len, sets)}) == 1 < len(sets[0]) and {label for each in sets for label in each} <= {0, 1}:
        raise ValueError("lists of 0 and 1 may be a matrix, or the labels 0 and 1: give numpy.array(labels)")
    return GivenLabels(sets, is_multi=True)


def _of_matrix(matrix: np.ndarray[Any, Any], names: Sequence[Any]) -> GivenLabels:
    if len(set(map(str, names))) < len(names):
        raise ValueError(f"two columns of the labels are called the same: {', '.join(map(str, names))}")
    try:
        is_set, is_other = (np.asarray(matrix == value, dtype=np.bool_) for value in (1, 0))
    except (TypeError, ValueError):  # pandas' missing values are neither equal nor not
        raise ValueError("the labels have missing values: fill them with 0") from None
    wrong = np.argwhere(~(is_set | is_other))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise ValueError(f"labels[{row}, {column}] is {matrix[row, column]!r:.60}, neither 0 nor 1")
    values = [tuple(names[place] for place in np.flatnonzero(row).tolist()) for row in is_set]
    return GivenLabels(values, is_multi=True, names=tuple(names))


def one_each(given: Any, what: str) -> list[Any]:
    """The values of a list, array, Series or column, missing ones as None. Raises TypeError for others."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise TypeError(
            f"{what} are a list, array or Series, not {type(given).__name__}: for one, write [one]"
        )
    shape: tuple[int, ...] = getattr(given, "shape", ())
    if len(shape) == 2 and shape[1] == 1:  # a table of one column, as some pipelines hand on
        given = np.asarray(given)[:, 0]
    elif len(shape) > 1:
        raise TypeError(f"{what} have one dimension, not the shape {tuple(shape)}; choose one column")
    values = given.tolist() if isinstance(given, np.ndarray) else list(given)
    return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    """A value as Python's own type; None for NaN, and for pandas' missing values."""
    if isinstance(value, np.generic):
        value = value.item()
    missing = type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and isnan(value))
    return None if missing else value


def given_table(texts: Sequence[Any], labels: GivenLabels) -> Table:
    """Texts and labels as the table of a file. Raises ValueError unless they are as many."""
    if len(texts) != len(labels.values):
        raise uneven(len(texts), len(labels.values))
    cells = [list(map(str, each)) if labels.is_multi else _cell(each) for each in labels.values]
    rows = tuple(zip(texts, cells, strict=True))
    declared = {LABEL: tuple(map(str, labels.names))} if labels.names else {}
    lines = tuple(range(1, len(rows) + 1))
    return Table(Path(IN_MEMORY), (TEXT, LABEL), rows, lines, has_header=True, class_names=declared)


def _cell(label: Any) -> Any:
    return str(label) if isinstance(label, bool) else label


def uneven(texts: int, labels: int) -> ValueError:
    """The error for another number of labels than of texts."""
    return ValueError(f"as many labels as texts are needed: {texts:,} texts, {labels:,} labels")
