"""The rows that an audit judges: read once, with their labels by name and how they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.columns import TextLayout, text_layout
from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.data.examples import Examples, aligned_labels
from newsdesk.data.labelled import (
    LabelFormat,
    LabelSet,
    Task,
    is_of_subjects,
    rewritten_cells,
    table_labels,
    to_examples,
)
from newsdesk.data.load import DATA_SETS, folder_splits, load_split, require_two_classes
from newsdesk.data.table import Cell, Table
from newsdesk.errors import UserError, counted
from newsdesk.prediction.output_formats import joined_labels
from newsdesk.progress import Progress

_SPLITS = ("train", "test")


class Layout(TypedDict, total=False):
    """How the rows of a file become texts and classes: arguments of `audit`, as in training."""

    text: Sequence[str] | None
    label: str | None
    label_separator: str | None
    label_columns: Sequence[str] | None
    task: Task
    template: str | None
    normaliser: str
    dialect: Dialect


@dataclass(frozen=True)
class AuditedData:
    """Rows to be audited, and the other split of the same data, if there is one.

    Attributes:
        table: the rows as the file has them.
        layout: how they became texts.
        examples: texts and class ids, in the same order.
        labels: the label of each row by name; of rows that may have several all of them, joined.
        columns: that hold the labels: one, or a 0/1 column for each.
        form: how they are written.
        other: the split whose texts must not be among these.
    """

    table: Table
    layout: TextLayout
    examples: Examples
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    form: LabelFormat
    other: Table | None

    def cells(self, relabel: Mapping[int, str | LabelSet]) -> dict[int, dict[str, Cell]]:
        """The cells that give rows these labels, by row and column, written as the file writes labels.

        Raises UserError where the labels are within a cell that holds more than them.
        """
        table, column = self.table, self.columns[0]
        within = not set(self.columns) <= set(table.columns)
        if relabel and (within or (self.examples.is_multi and is_of_subjects(column))):
            raise UserError(
                f"labels within {column} cannot be rewritten",
                found=f"{counted(len(relabel), 'row')} to relabel in {table.path.name}",
                fix="drop these rows instead, or correct their items by hand",
            )
        if not self.examples.is_multi:
            cells = dict(zip(reversed(self.labels), reversed(table.column(column)), strict=True))
            return {row: {column: cells[name]} for row, name in relabel.items() if isinstance(name, str)}
        found = table_labels(table, self.form, self.layout.text_columns)
        assert found is not None  # or the rows had no labels
        names = {} if self.examples.matching is None else self.examples.matching.respelled
        return rewritten_cells(table, self.form, found, names, relabel)


def load_audited(
    data: str,
    *,
    split: str,
    test: str | None = None,
    progress: Progress | None = None,
    dialect: Dialect = DETECTED,
    label_separator: str | None = None,
    task: Task = "auto",
    **columns: Any,
) -> AuditedData:
    """Read the rows that the arguments of ``audit`` name, and make texts of them.

    Raises UserError for anything that keeps the rows from being read, and unless two classes have rows.
    """
    label, label_columns = columns.get("label"), columns.get("label_columns")
    dialect = dialect.asking(
        (*(columns.get("text") or ()), *(label_columns or ())), label, columns.get("template")
    )
    table = load_split(data, split, dialect=dialect, progress=progress).table
    layout = text_layout(table, **columns)
    examples = to_examples(
        table,
        layout,
        label=label,
        label_separator=label_separator,
        label_columns=label_columns,
        task=task,
        labelled=True,
    )
    require_two_classes(examples)
    form = LabelFormat.of(label, label_separator, label_columns, examples.task)
    found = table_labels(table, form, layout.text_columns)
    assert found is not None  # or the rows had no labels
    folder = Path(data).expanduser()
    if test is None and (data in DATA_SETS or (folder.is_dir() and "test" in folder_splits(folder))):
        test = next(name for name in _SPLITS if name != split)
    other = None
    if test is not None:
        own = test in _SPLITS and not Path(test).exists()
        source, name = (data, test) if own else (test, "test")
        other = load_split(source, name, dialect=dialect, progress=progress).table
        if other.path.samefile(table.path):
            raise UserError(
                "the audited rows and those they are compared with are the same file",
                found=str(other.path),
                fix="give another file with --test, or leave it out",
            )
    names, ids = examples.label_names, aligned_labels(examples, examples.label_names)
    labels = tuple(joined_names(each, names) if examples.is_multi else names[each] for each in ids)
    return AuditedData(table, layout, examples, labels, found.columns, form, other)


def joined_names(given: NDArray[np.bool_], names: Sequence[str]) -> str:
    """The names of a text's labels, which are bool (labels,), as predictions join them."""
    return joined_labels([names[label] for label in np.flatnonzero(given).tolist()])
