"""The rows of a sweep: split once, so that every trial is measured on the same; test rows are refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.config import DataSection
from newsdesk.data.duplicates import fold
from newsdesk.data.examples import aligned_labels
from newsdesk.data.folds import fold_of_rows
from newsdesk.data.load import (
    DATA_SETS,
    TrainingData,
    dialect_of,
    first_rows,
    folder_splits,
    load_split,
    load_training_data,
)
from newsdesk.errors import UserError, counted
from newsdesk.hub.cache import Slot
from newsdesk.metrics import wilson_interval
from newsdesk.progress import Progress
from newsdesk.runs.manifest import SPLIT_OFF, RowFacts
from newsdesk.training.linear_baseline import BaselineResult, linear_baseline


class SweepRows:
    """The rows of a sweep, split once: what every trial learns from and is measured on."""

    def __init__(self, data: DataSection, seed: int, folds: int, progress: Progress | None) -> None:
        """Read and split the rows that a recipe names.

        Raises UserError for a test split, without validation rows, and with folds that cannot be filled.
        """
        self._data, self._seed, self._folds, self._progress = data, seed, folds, progress
        if folds and data.validation is not None:
            raise UserError(
                "--folds validates on the training rows, each of them once",
                found=f"--valid {data.validation}",
                fix="leave out --folds or --valid",
            )
        _refuse_test_split(data)
        self._loaded: dict[str, TrainingData] = {}
        whole = data.model_copy(update={"train_rows": None})
        first = self._load(whole)
        validation = first.train if folds else first.validation
        if not len(validation):
            raise UserError(
                "a sweep needs validation rows to measure trials on",
                found=f"data.validation_share = {data.validation_share}",
                fix="leave it out, give validation rows with --valid, or cross-validate with --folds 5",
            )
        if data.validation is not None:
            _refuse_test_rows(data, first)
        self.label_names = first.train.label_names
        source = data.validation or f"{SPLIT_OFF}{data.train}"
        self.train_facts = RowFacts(data.train, len(first.train), first.train.fingerprint())
        self.validation_facts = RowFacts(source, len(validation), validation.fingerprint())
        ids = aligned_labels(validation, self.label_names)
        self._fold_of = np.zeros(len(validation), dtype=np.int64)
        self.labels = ids
        if folds:
            self._fold_of = fold_of_rows(validation, folds, seed=seed) + 1
            _require_filled(self._fold_of, ids, folds)
            self.labels = np.concatenate([ids[self._fold_of == number] for number in range(1, folds + 1)])

    def of(self, data: DataSection, of_fold: int) -> TrainingData:
        """What a trial's training learns from and is measured on: the same rows whatever else it varies."""
        if not of_fold:
            return self._load(data)
        whole = self._load(data.model_copy(update={"train_rows": None}))
        held_out = self._fold_of == of_fold
        train = whole.train.select(np.flatnonzero(~held_out))
        first = first_rows(train, data.train_rows, self._seed)
        return replace(whole, train=first, validation=whole.train.select(np.flatnonzero(held_out)))

    def baseline(self, progress: Progress | None) -> BaselineResult | None:
        """What a linear model reaches on the rows that trials are measured on; None if it cannot."""
        found: list[tuple[BaselineResult, int]] = []
        truth: list[NDArray[Any]] = []
        folds = range(1, self._folds + 1) if self._folds else (0,)
        try:
            for number in folds:
                data = self.of(self._data, number)
                result = linear_baseline(data.train, data.validation, seed=self._seed, progress=progress)
                found.append((result, len(data.validation)))
                truth.append(aligned_labels(data.validation, self.label_names))
        except UserError:  # a single class, or not one word
            return None
        rows = sum(count for _, count in found)
        correct = sum(round(result.accuracy * count) for result, count in found)
        first = found[0][0]
        if first.assigned is not None:
            assigned = np.concatenate([one.assigned for one, _ in found if one.assigned is not None])
            first = first.with_sets(assigned, np.concatenate(truth))
        return replace(
            first,
            accuracy=correct / rows,
            accuracy_interval=wilson_interval(correct, rows),
            seconds=round(sum(result.seconds for result, _ in found), 1),
        )

    def _load(self, data: DataSection) -> TrainingData:
        """The rows of a data section, read once. Raises UserError unless they are those of the sweep."""
        key = repr(data)
        if key not in self._loaded:
            shared = {"folds": 0, **({"validation_share": 0.0} if self._folds else {})}
            found = load_training_data(
                data.model_copy(update=shared), seed=self._seed, progress=self._progress
            )
            if self._loaded:
                first = next(iter(self._loaded.values()))
                _require_same_rows(first, found, cross_validated=bool(self._folds))
            self._loaded[key] = found
        return self._loaded[key]


def _require_same_rows(first: TrainingData, other: TrainingData, *, cross_validated: bool) -> None:
    """Raise UserError unless a trial's validation rows are those of the sweep, with the same classes."""
    before, now = (one.train if cross_validated else one.validation for one in (first, other))
    classes = [None if one.labels is None else one.labels.tolist() for one in (before, now)]
    if before.label_names != now.label_names or classes[0] != classes[1]:
        raise UserError(
            "trials have to be measured on the same rows",
            found=f"{counted(len(now), 'validation row')} where the recipe itself has {len(before):,}, "
            "or other classes",
            fix="do not vary what decides which rows there are",
        )


def _require_filled(fold_of: NDArray[np.int64], labels: NDArray[Any], folds: int) -> None:
    """Raise UserError unless every fold has rows, and what is left has every class.

    Where a text may have several labels, one whose rows are all in a fold has no right answer there.
    """
    for number in range(1, folds + 1):
        held_out = fold_of == number
        lacking = labels.ndim == 1 and len(np.unique(labels[~held_out])) < len(np.unique(labels))
        if not held_out.any() or lacking:
            raise UserError(
                f"the rows cannot be dealt to {folds} folds",
                found=f"fold {number} has {counted(int(held_out.sum()), 'row')}, and a class would be left "
                "without a row to learn from, or the fold without any",
                fix="use fewer folds, or leave out classes whose rows are all of one text",
            )


_WHY = (
    "what is chosen by test rows is better on them than on new texts, so that they can tell nothing any more"
)


def _refuse_test_split(data: DataSection) -> None:
    """Raise UserError where training or validation rows are a test split, by their name or place."""
    for flag, source in (("--data", data.train), ("--valid", data.validation)):
        if source is None:
            continue
        path, found = Path(source).expanduser(), None
        if path.is_file():
            found = _test_file(path)
        elif flag == "--valid" and (source in DATA_SETS or (path.is_dir() and "test" in folder_splits(path))):
            found = "its test split"
        if found is not None:
            raise _test_rows(flag, source, found)


def _test_rows(flag: str, source: str, found: str) -> UserError:
    return UserError(
        "a sweep does not use test rows: what is chosen by them tells nothing about new texts any more",
        found=f"{flag} {source}: {found}",
        fix="give training rows alone; validation rows are split off, or every row is one with --folds 5",
    )


def _test_file(path: Path) -> str | None:
    """What makes a file one of test rows; None where nothing does."""
    for name, known in DATA_SETS.items():
        entry = Slot("data", name).entry()
        place = None if entry is None else entry.folder / known.test
        if place is not None and place.exists() and path.resolve() == place.resolve():
            return f"the test split of {name}"
    stem = path.name.partition(".")[0].lower()
    return "a file of that name" if re.fullmatch(r"(.*[-_ ])?test([-_ ].*)?", stem) else None


def _refuse_test_rows(data: DataSection, given: TrainingData) -> None:
    """Raise UserError where most given validation rows are in the test split beside the training rows."""
    path = Path(data.train).expanduser()
    source = str(path.parent) if path.is_file() else data.train
    try:
        table = load_split(source, "test", dialect=dialect_of(data)).table
        known = set(map(fold, given.layout.for_table(table).texts(table)))
    except (UserError, OSError):  # there is none, or it cannot be read as these rows are
        return
    shared = sum(fold(text) in known for text in given.validation.texts)
    if 2 * shared > len(given.validation):
        found = f"{shared:,} of {counted(len(given.validation), 'row')} are in {table.path}"
        raise _test_rows("--valid", str(data.validation), found)
