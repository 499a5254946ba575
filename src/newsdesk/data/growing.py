"""Rows of a classifier that grows: those that it learned from before, and new ones, some of new classes.

What was held out before stays held out, whatever a new file says of it, and what was learned from is never
measured on: a text is known by its hash even where the earlier rows themselves are no longer there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.config import DataSection
from newsdesk.data.columns import TextLayout, column_named
from newsdesk.data.duplicates import KnownTexts, fold
from newsdesk.data.examples import Examples, Splits, Task, joined
from newsdesk.data.labels import LabelMatcher, class_names, number_of
from newsdesk.data.table import Table
from newsdesk.errors import UserError, counted, listed

RETIRED = ""
"""What a label is called that is no class any more."""


@dataclass(frozen=True, eq=False)
class Earlier:
    """What a classifier knows that is trained further.

    Attributes:
        name: what it is called in messages.
        label_names: its classes in id order; new ones follow them.
        task: whether a text has one label.
        layout: how rows become texts.
        columns: the data section it was trained by: its label columns are looked for in new files, too.
        texts: hashes of what it learned from and was validated on.
        rows: the training and validation rows themselves; None where they are not there.
        missing: why not, part of a sentence.
        is_again: whether this is the same training's rows read once more, all of which ``texts`` knows.
    """

    name: str
    label_names: tuple[str, ...]
    task: Task
    layout: TextLayout
    columns: DataSection
    texts: KnownTexts
    rows: Splits | None
    missing: str = ""
    is_again: bool = False

    def label_format(self, table: Table, asked: DataSection) -> dict[str, Any]:
        """How a new file writes labels: as the recipe says, else as the earlier one where it can."""
        return columns_as_learned(
            table,
            self.columns,
            label=None if asked.label == self.columns.label else asked.label,
            label_separator=asked.label_separator,
            label_columns=None if asked.label_columns == self.columns.label_columns else asked.label_columns,
        )

    def split(
        self, new: Examples, hold_out: Callable[[Examples], Splits], first: Callable[[Examples], Examples]
    ) -> Splits:
        """New rows to learn from and to hold out; ``first`` takes those of the former that are wanted.

        Texts that are known stay on their side, and the others are divided by ``hold_out``.
        """
        learned, validated = self.texts.in_training(new.texts), self.texts.in_validation(new.texts)
        learned |= np.array([not fold(text) for text in new.texts], dtype=np.bool_)
        fresh = np.flatnonzero(~(learned | validated))
        if self.is_again:
            learned[fresh] = False
        elif len(fresh):
            aside = set(map(fold, hold_out(new.select(fresh)).validation.texts))
            validated |= np.array([fold(text) in aside for text in new.texts], dtype=np.bool_) & ~learned
            learned = ~validated
        return Splits(first(new.select(np.flatnonzero(learned))), new.select(np.flatnonzero(validated)))

    def unlearned(self, given: Examples, train: Examples) -> Examples:
        """Those of the validation rows that were given whose texts are not learned from, before or now."""
        now = set(map(fold, train.texts))
        learned = self.texts.in_training(given.texts)
        learned |= np.array([fold(text) in now for text in given.texts], dtype=np.bool_)
        return given if not learned.any() else given.select(np.flatnonzero(~learned))

    def joined(self, new: Splits) -> tuple[Splits, int]:
        """Earlier rows, then new ones; of texts that are in both the new row. And how many came from before.

        These are the first of the training rows.
        """
        if self.rows is None:
            return new, 0
        taken = {fold(text) for part in new for text in part.texts} - {""}
        names = new.train.label_names
        kept = [_without(with_names(part, names), taken) for part in self.rows]
        parts = (joined([before, part]) for before, part in zip(kept, new, strict=True))
        return Splits(*parts), len(kept[0])

    def require_two_classes(self, new: Examples) -> None:
        """Raise UserError for new rows of a single class, where no earlier ones are there."""
        classes = int((new.label_rows() > 0).sum())
        if classes < 2:
            raise UserError(
                "rows of one class alone would make a run unlearn all others",
                found=f"{counted(len(new), 'new row')} of {counted(classes, 'class')}; the rows that "
                f"{self.name} learned from are not replayed: {self.missing}",
                fix="give rows of the classes that it knows, too",
            )

    def notes(self, new: Splits, replayed: int, given: int) -> list[str]:
        """What to know of the rows, a sentence each; ``given`` is how many new ones were in the file."""
        rows = new.train.label_rows() + new.validation.label_rows()
        names, known = new.train.label_names, len(self.label_names)
        found = [
            f"{name} ({counted(int(count), 'row')})"
            for name, count in zip(names[known:], rows[known:], strict=True)
        ]
        notes = [f"trained further from {self.name}, with {counted(given, 'new row')}"]
        notes[0] += f"; new classes: {listed(found)}" if found else "; no new classes"
        if self.rows is None:
            lacking = [name for name, count in zip(names, rows, strict=True) if not count]
            forgets = f", and may unlearn what these do not show: {listed(lacking)}" if lacking else ""
            notes.append(
                f"the rows that {self.name} learned from are not replayed: {self.missing}; it learns from "
                f"the new rows alone{forgets}"
            )
            return notes
        held_out, rows_of = len(self.rows.validation), counted(replayed, "earlier training row")
        stays = f"and its {counted(held_out, 'validation row')} stay held out"
        if not held_out:
            stays = (
                "but none are held out: it learned from all of its rows. For figures and promises, calibrate "
                "on rows that it did not learn from, or train anew on all rows"
            )
        notes.append(f"{rows_of} of {self.name} are replayed, {stays}")
        before = len(self.rows.train) + held_out
        gone = before - replayed - len(_without(self.rows.validation, _texts(new)))
        if gone:
            notes.append(f"{counted(gone, 'earlier row')} are among the new rows, too, whose labels count")
        if self.task == "multi" and found:
            notes.append(
                "earlier rows count as having none of the new labels: label those again that have one"
            )
        return notes


def columns_as_learned(
    table: Table,
    own: DataSection,
    *,
    label: str | None,
    label_separator: str | None,
    label_columns: Sequence[str] | None,
) -> dict[str, Any]:
    """How a file writes labels: as is said of it, else as the training file did where it has these columns.

    The result is what `to_examples` takes.
    """
    in_table = partial(column_named, table)
    if not (label or label_separator or label_columns):
        label_columns = own.label_columns if any(map(in_table, own.label_columns)) else None
    if not label_columns:
        if label is None and own.label is not None:
            label = column_named(table, own.label)
        label_separator = own.label_separator if label_separator is None else label_separator
    return {"label": label, "label_separator": label_separator, "label_columns": label_columns}


def with_new_classes(
    labels: Sequence[str], label_names: Sequence[str], *, merge_case: bool = False
) -> tuple[str, ...]:
    """A run's classes, then those of a file's labels that it does not have.

    What stands for no class because it may stand for several is no new one, and neither are numbers where the
    run's classes have names: `match_labels` refuses them.
    """
    matcher, names = LabelMatcher(label_names), tuple(label_names)
    if matcher.positions(dict.fromkeys(labels)) is not None:
        return names
    new = [label for label in labels if not matcher.candidates(label)]
    if all(map(number_of, new)) and not any(map(number_of, names)):
        return names
    return (*names, *dict.fromkeys(class_names(new, merge_case=merge_case).values()))


def with_names(examples: Examples, names: tuple[str, ...]) -> Examples:
    """The rows under more classes, whose first ones are theirs."""
    labels = examples.labels
    if labels is not None and labels.ndim == 2:
        labels = np.pad(labels, ((0, 0), (0, len(names) - labels.shape[1])))
    return replace(examples, labels=labels, label_names=names)


def relabelled(examples: Examples, now: Mapping[str, str]) -> Examples:
    """The rows with the labels that ``now`` gives each of their classes; without those of retired ones.

    Of several labels a text has those that are left, and perhaps none.
    """
    names = tuple(dict.fromkeys(now.get(name, name) for name in examples.label_names))
    names = tuple(name for name in names if name != RETIRED)
    number = {name: i for i, name in enumerate(names)} | {RETIRED: -1}
    ids = np.array([number[now.get(name, name)] for name in examples.label_names], dtype=np.int64)
    if examples.labels is None or examples.labels.ndim == 1:
        labels = None if examples.labels is None else ids[examples.labels]
        kept = np.flatnonzero(np.ones(len(examples), dtype=np.bool_) if labels is None else labels >= 0)
        return replace(examples, labels=labels, label_names=names).select(kept)
    sets: NDArray[np.bool_] = np.zeros((len(examples), len(names)), dtype=np.bool_)
    for column in np.flatnonzero(ids >= 0):
        sets[:, ids[column]] |= examples.labels[:, column]
    return replace(examples, labels=sets, label_names=names)


def _texts(splits: Splits) -> set[str]:
    return {fold(text) for part in splits for text in part.texts} - {""}


def _without(examples: Examples, texts: set[str]) -> Examples:
    """The rows whose text is none of these, which are folded."""
    kept = [row for row, text in enumerate(examples.texts) if fold(text) not in texts]
    return examples if len(kept) == len(examples) else examples.select(kept)
