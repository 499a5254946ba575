"""From what ``--data`` says to examples: named data sets, folders and files, by one path."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from newsdesk.config import DataSection
from newsdesk.data.columns import TextLayout, label_column, text_layout, to_examples
from newsdesk.data.datasets import DATA_SETS, class_folders, dataset_files, folder_files, split_folder
from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.data.examples import Examples, hold_out, split
from newsdesk.data.label_faults import label_faults
from newsdesk.data.stream import read_table
from newsdesk.data.table import IN_MEMORY, Table
from newsdesk.errors import UserError, counted
from newsdesk.files import write_bytes
from newsdesk.progress import Progress

_SPLIT_FOLDERS = ("train", "test", "validation", "valid", "dev")


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from and picks its best checkpoint by.

    Attributes:
        train: rows to learn from.
        validation: rows held out of learning; may be empty.
        layout: how rows became texts, which prediction repeats.
        licence: of the texts, as far as it is known.
        choosing: positions of the validation rows that chose the best state, as far as it is known.
        read_as: for each file how it was read, for people and logs.
        notes: what a person should know of their labels, a sentence each.
    """

    train: Examples
    validation: Examples
    layout: TextLayout
    licence: str | None
    choosing: tuple[int, ...] = ()
    read_as: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def calibrating(self) -> Examples:
        """The validation rows that the kept state was not chosen by: what promises may stand on."""
        return self.validation.select(np.setdiff1d(np.arange(len(self.validation)), self.choosing))


@dataclass(frozen=True)
class SplitTable:
    """One split of some data as a table, with what is known of where it came from."""

    table: Table
    licence: str | None


def load_split(
    name_or_path: str | Table,
    split_name: str,
    *,
    dialect: Dialect = DETECTED,
    offline: bool = False,
    progress: Progress | None = None,
) -> SplitTable:
    """Read the ``train`` or ``test`` split of a named data set or folder; a file is its own only split,
    and so is a table that a program gives.

    Raises UserError when there is no such data, or it has no such split.
    """
    if isinstance(name_or_path, Table):
        return SplitTable(name_or_path, None)
    if name_or_path == IN_MEMORY:
        raise UserError(
            "the rows that this run learned from are not kept",
            found="they were given by a program, not as a file",
            fix="give labelled rows with --data",
        )
    path = Path(name_or_path).expanduser()
    if path.is_file() or (name_or_path not in DATA_SETS and not path.is_dir() and path.suffix):
        return SplitTable(_read(path, dialect, progress), None)
    if name_or_path in DATA_SETS:
        files = dataset_files(name_or_path, offline=offline, progress=progress)
        if files.train.suffix == ".tab":  # Orange's, whatever flags say of other files
            dialect = Dialect(delimiter="\t", quote='"', encoding="utf-8")
    elif splits := [name for name in _SPLIT_FOLDERS if split_folder(path, name)]:
        if split_name not in splits:
            raise _no_such_split(name_or_path, split_name, splits)
        return SplitTable(_read(path / split_name, dialect, progress), None)
    elif class_folders(path):
        return SplitTable(_read(path, dialect, progress), None)
    elif path.is_dir():
        files = folder_files(path)
    else:
        files = dataset_files(name_or_path)  # not known either: its error names the closest
    chosen = {"train": files.train, "test": files.test}.get(split_name)
    if chosen is None:
        raise _no_such_split(name_or_path, split_name, ["train", "test"] if files.test else ["train"])
    return SplitTable(_naming(_read(chosen, dialect, progress), files.label_names), files.licence)


def _read(path: Path, dialect: Dialect, progress: Progress | None) -> Table:
    """The table, and a word to ``progress`` where it is not read as anyone would expect."""
    table = read_table(path, dialect)
    if progress is not None and table.is_noteworthy:
        progress(0, None, f"{path} is read as: {table.read_as}")
    return table


def _naming(table: Table, label_names: tuple[str, ...] | None) -> Table:
    """The table with these class names declared for its label column, where the file itself declares none."""
    column = label_column(table) if label_names else None
    if column is None or column in table.class_names:
        return table
    return replace(table, class_names={**table.class_names, column: label_names or ()})


def _no_such_split(data: str, split_name: str, splits: Sequence[str]) -> UserError:
    return UserError(
        f"{data} has no split {split_name!r}",
        found=f"splits: {', '.join(splits)}",
        fix="name one of these with --split, or give a file with --data",
    )


def write_csv_copy(name: str, folder: Path, *, progress: Progress | None = None) -> tuple[Path, Path]:
    """Write a named data set as ``train.csv`` and ``test.csv``, UTF-8 with a header, and return both paths.

    Raises UserError when the data set cannot be had, or one of the two files is there already.
    """
    paths = (folder / "train.csv", folder / "test.csv")
    for path in paths:
        if path.exists():
            raise UserError(
                f"{path} exists already", fix="name another folder with --out, or move the file away"
            )
    for path in paths:
        table = load_split(name, path.stem, progress=progress).table
        content = io.StringIO()
        csv.writer(content, lineterminator="\n").writerows([table.columns, *table.rows])
        write_bytes(path, content.getvalue().encode())
    return paths


def load_training_data(
    data: DataSection,
    *,
    seed: int,
    offline: bool = False,
    progress: Progress | None = None,
    proportional: bool = False,
    tables: tuple[Table, Table | None] | None = None,
) -> TrainingData:
    """Read, lay out and split the rows that a recipe's data section names.

    ``tables`` are training and validation rows that a program gives, where the section says that they are.
    ``proportional`` splits as version 0.1 did, without regard to rare classes: for the rows of its runs.
    Raises UserError for anything that keeps the rows from being learned from.
    """
    dialect = dialect_of(data)
    given, given_validation = (None, None) if tables is None else tables
    found = load_split(
        data.train if given is None else given, "train", dialect=dialect, offline=offline, progress=progress
    )
    layout = text_layout(
        found.table, text=data.text, label=data.label, template=data.template, normaliser=data.normaliser
    )
    train = _examples(found.table, data, layout, None)
    require_two_classes(train)
    notes = _notes_on_labels(train, label_column(found.table, data.label, layout.text_columns) or "")
    if data.validation is not None:
        source = data.validation if given_validation is None else given_validation
        table = load_split(source, "test", dialect=dialect, offline=offline, progress=progress).table
        validation = _examples(table, data, layout.for_table(table), train.label_names)
        notes += [] if validation.matching is None else validation.matching.notes()
    else:
        if proportional:
            splits = split(train, validation=data.validation_share or 0.0, seed=seed)
        else:
            splits = hold_out(train, data.validation_share, seed=seed)
        train, validation = splits.train, splits.validation
    read = [found.table] if data.validation is None else [found.table, table]
    read_as = tuple(f"{each.path}: {each.read_as}" for each in read if each.read_as)
    first = _first_rows(train, data.train_rows, seed)
    return TrainingData(first, validation, layout, found.licence, (), read_as, tuple(notes))


def _notes_on_labels(train: Examples, column: str) -> list[str]:
    """What looks wrong with the labels that are to be learned."""
    assert train.labels is not None  # require_two_classes saw to it
    counts = Counter(train.label_names[label] for label in train.labels)
    faults = (f"{fault}; fix: {fault.fix}" for fault in label_faults(counts, column))
    return [*([] if train.matching is None else train.matching.notes()), *faults]


def dialect_of(data: DataSection) -> Dialect:
    """How a recipe says that its files are written, and the columns that it will ask them for.

    Raises UserError for characters and encodings that cannot be used.
    """
    dialect = Dialect(data.header, data.delimiter, data.quote, data.encoding)
    return dialect.asking(data.text, data.label, data.template)


def require_two_classes(train: Examples) -> None:
    """Raise UserError unless at least two classes have rows."""
    classes = [] if train.labels is None else [train.label_names[label] for label in np.unique(train.labels)]
    if len(classes) < 2:
        raise UserError(
            "a classifier needs rows of at least two classes",
            found=f"only {''.join(classes) or 'unlabelled rows'} in {train.source}",
            fix="name the column that holds the class with --label, or give other data with --data",
        )


def _examples(
    table: Table, data: DataSection, layout: TextLayout, label_names: Sequence[str] | None
) -> Examples:
    return to_examples(
        table,
        text=layout.text_columns,
        label=data.label,
        label_names=label_names,
        template=layout.template,
        normaliser=layout.normaliser,
        labelled=True,
        unknown_labels=data.unknown_labels,
        merge_case=data.merge_case,
    )


def _first_rows(train: Examples, rows: int | None, seed: int) -> Examples:
    """A stratified sample of ``rows`` rows that leaves no class out; all where there are no more.

    Raises UserError when there are more classes than rows asked for.
    """
    if rows is None or rows >= len(train):
        return train
    classes = len(np.unique(train.labels)) if train.labels is not None else 1
    if rows < classes:
        raise UserError(
            f"{counted(rows, 'training row')} cannot cover {counted(classes, 'class')}",
            found=f"data.train_rows = {rows}",
            fix=f"use --set data.train_rows={classes} or more",
        )
    return split(train, validation=len(train) - rows, seed=seed).train
