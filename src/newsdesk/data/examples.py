"""Examples: texts with their class ids, the one thing that flows from the data room to the others."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.duplicates import fold
from newsdesk.data.labels import LabelMatcher, LabelMatching
from newsdesk.data.stratification import dealt, label_counts
from newsdesk.errors import UserError, counted

Task = Literal["single", "multi"]
"""Whether each text has one of the labels, or any number of them."""


@dataclass(frozen=True)
class Examples:
    """Texts and, where known, their classes.

    Attributes:
        texts: one string a row, ready for the tokenizer (template and normaliser applied).
        labels: int64 class ids, (rows,), where a text has one label; bool, (rows, classes), where it may have
            several and a row perhaps none; None for unlabelled texts.
        label_names: class names in id order; empty when unlabelled.
        source: where the rows came from, for messages and manifests.
        matching: how the file's labels became these classes, where they are those of a run.
    """

    texts: tuple[str, ...]
    labels: NDArray[Any] | None
    label_names: tuple[str, ...]
    source: str
    matching: LabelMatching | None = None

    def __post_init__(self) -> None:
        """Refuse rows and labels that do not line up; that is a defect of the caller."""
        if self.labels is not None and len(self.labels) != len(self.texts):
            raise ValueError(f"{len(self.texts)} texts but {len(self.labels)} labels")
        if self.is_multi and self.labels.shape[1:] != (len(self.label_names),):  # type: ignore[union-attr]
            raise ValueError(f"{len(self.label_names)} label names, but not as many columns of labels")

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.texts)

    @property
    def is_multi(self) -> bool:
        """Whether a text may have several labels."""
        return self.labels is not None and self.labels.ndim == 2

    @property
    def task(self) -> Task:
        """The same in a word."""
        return "multi" if self.is_multi else "single"

    def truth(self) -> NDArray[Any]:
        """Class ids (rows,), or truth values (rows, labels). Raises ValueError for rows without labels."""
        if self.labels is None:
            raise ValueError("training rows carry labels")
        return self.labels

    def label_rows(self) -> NDArray[np.int64]:
        """How many rows have each label, (classes,); zeros where they are not labelled."""
        if self.labels is None:
            return np.zeros(len(self.label_names), np.int64)
        if self.is_multi:
            return label_counts(self.labels)[:-1]
        return np.bincount(self.labels, minlength=len(self.label_names)).astype(np.int64)

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> Examples:
        """The rows at these positions, in this order."""
        index = np.asarray(rows, dtype=np.int64)
        labels = None if self.labels is None else self.labels[index]
        return replace(self, texts=tuple(self.texts[i] for i in index), labels=labels)

    def fingerprint(self) -> str:
        """A sha256 over texts, labels and label names: equal only where training sees the same rows."""
        digest = hashlib.sha256(len(self.label_names).to_bytes(8, "little"))
        for part in (*self.label_names, *self.texts):
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
        if self.labels is None:
            digest.update(b"unlabelled")
        elif self.is_multi:
            digest.update(b"several" + np.packbits(self.labels, axis=1).tobytes())
        else:
            digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


def joined(parts: Sequence[Examples]) -> Examples:
    """The labelled rows of several parts, in turn. Raises ValueError unless they have the same classes."""
    first = parts[0]
    labels = [part.labels for part in parts if part.labels is not None]
    others = any((part.label_names, part.is_multi) != (first.label_names, first.is_multi) for part in parts)
    if len(labels) < len(parts) or others:
        raise ValueError("rows to be joined carry labels of the same classes")
    return Examples(
        tuple(text for part in parts for text in part.texts),
        np.concatenate(labels),
        first.label_names,
        ", ".join(dict.fromkeys(part.source for part in parts)),
        next((part.matching for part in parts if part.matching and part.matching.positions), None),
    )


class Splits(NamedTuple):
    """Two disjoint parts of a set of examples, each in the original row order."""

    train: Examples
    validation: Examples


def split(examples: Examples, validation: int, *, seed: int) -> Splits:
    """Set so many rows aside for validation.

    Each class gives in proportion to its size and keeps at least one row for training. Rows of the same text
    (folded) stay together; a group of copies is divided only when no whole group fits the rows still wanted.
    The same seed gives the same split on every platform.

    Raises UserError when training would be left without some class.
    """
    if examples.is_multi:
        return _parted(examples, _exactly(examples, validation, seed))
    return _parted(examples, _Pool(examples, validation, seed).take(validation))


LEAST_FIGURES = 200
"""Validation rows that figures and promises need; of few rows a fifth is held out until there are so many."""
_SHARE, _MOST_SHARE, _MOST_ROWS = 0.05, 0.2, 2000
_ROWS_A_CLASS, _OF_ROWS = 5, 10


def validation_size(rows: int, share: float | None) -> int:
    """Rows to split off for validation: a share; without one 5 %, more where rows are few, at most 2,000."""
    if share is not None:
        return round(share * rows)
    return min(max(round(_SHARE * rows), min(LEAST_FIGURES, round(_MOST_SHARE * rows))), _MOST_ROWS)


def hold_out(examples: Examples, share: float | None, *, seed: int) -> Splits:
    """Split validation rows off, `validation_size` of them, or more where classes are rare.

    Every class of two rows or more is among them, with at least 5 rows where it has 10; beyond that each
    class gives in proportion to its size, and keeps a row for training. Rows of the same text (folded) stay
    together: so a class whose rows are all of one text stays out, and the size may not be met exactly. The
    same seed gives the same split on every platform. ``share`` 0 holds nothing out. Where texts may have
    several labels, these are what is said of classes, as far as `stratification.dealt` can meet it.

    Raises UserError when training would be left without some class.
    """
    if share == 0 or len(examples) < 2:
        return _parted(examples, [])
    size = validation_size(len(examples), share)
    if examples.is_multi:
        return _parted(examples, np.flatnonzero(_dealt(examples, size, seed, _least(examples.label_rows()))))
    return _parted(examples, _Pool(examples, size, seed).take_of_every_class(size))


def _least(rows: NDArray[Any]) -> NDArray[np.int64]:
    """Rows to hold out, at least, of classes with so many rows."""
    return np.where(rows >= _OF_ROWS, _ROWS_A_CLASS, rows >= 2).astype(np.int64)


def _parted(examples: Examples, aside: Sequence[int] | NDArray[np.int64]) -> Splits:
    taken = set(aside)
    rest = [row for row in range(len(examples)) if row not in taken]
    return Splits(examples.select(rest), examples.select(sorted(taken)))


Group = list[int]
"""Rows with the same text."""


def _groups_of(texts: Sequence[str]) -> list[Group]:
    """The rows of each text (folded), in row order; empty texts are not copies of each other."""
    groups: dict[str, Group] = defaultdict(list)
    for row, text in enumerate(texts):
        groups[fold(text) or f"\0{row}"].append(row)
    return list(groups.values())


def _dealt(examples: Examples, size: int, seed: int, least: NDArray[np.int64] | int = 0) -> NDArray[np.int64]:
    """1 for about ``size`` rows to set aside, 0 for the others, (rows,), in proportion by labels.

    ``least`` is how many rows of each label are to be set aside, (labels,). Every label keeps a row.
    """
    assert examples.labels is not None
    rows = label_counts(examples.labels)
    aside = rows * (size / len(examples))
    aside[:-1] = np.maximum(aside[:-1], least)
    sizes, groups = (len(examples) - size, size), _groups_of(examples.texts)
    return dealt(examples.labels, np.stack([rows - aside, aside]), sizes, groups, seed=seed, keeper=0)


def _exactly(examples: Examples, size: int, seed: int) -> NDArray[np.int64]:
    """The positions of ``size`` rows to set aside: as `_dealt`, then others, whole groups of copies first.

    Raises UserError when training would be left without some label.
    """
    labels = examples.labels
    assert labels is not None
    if not size:
        return np.zeros(0, np.int64)
    aside = _dealt(examples, min(size, len(examples)), seed).astype(bool)
    short, kept = size - int(aside.sum()), labels[~aside].sum(axis=0)
    whole = _groups_of(examples.texts)
    whole = [whole[place] for place in np.random.Generator(np.random.PCG64(seed)).permutation(len(whole))]
    for groups in (whole, [[row] for group in whole for row in group]):
        for group in groups:
            if not short:
                return np.flatnonzero(aside)
            to_aside = short > 0
            if len(group) > abs(short) or (aside[group] == to_aside).any():
                continue
            had = labels[group].sum(axis=0)
            if to_aside and np.any((had > 0) & (had >= kept)):
                continue
            aside[group] = to_aside
            kept = kept - had if to_aside else kept + had
            short += -len(group) if to_aside else len(group)
    if short:
        found = f"{counted(len(examples), 'row')} of {counted(len(kept), 'label')}; {size:,} set aside"
        raise _too_few_left(found, "label")
    return np.flatnonzero(aside)


def _too_few_left(found: str, noun: str) -> UserError:
    return UserError(
        "too few rows would be left for training",
        found=found,
        fix=f"set aside fewer rows for validation; each {noun} keeps at least one for training",
    )


class _Pool:
    """Groups not yet set aside, in random order, and what each class still has for training."""

    def __init__(self, examples: Examples, aside: int, seed: int) -> None:
        labels = np.zeros(len(examples), np.int64) if examples.labels is None else examples.labels
        classes = len(np.unique(labels))
        if aside > len(examples) - classes:
            found = f"{counted(len(examples), 'row')} of {counted(classes, 'class')}; {aside:,} set aside"
            raise _too_few_left(found, "class")
        ordered = _groups_of(examples.texts)
        shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(len(ordered))
        self._groups = [ordered[position] for position in shuffled]
        self._labels = labels.tolist()
        self._left = np.bincount(labels)

    def take_of_every_class(self, size: int) -> Group:
        """Set about ``size`` rows aside, whole groups, with some of every class that can spare any."""
        least = _least(self._left)
        quota = np.maximum(_proportional(self._left, size), least)
        above = quota - least  # what rare classes get more is taken from these, in proportion
        quota -= _proportional(above, min(int(quota.sum()) - size, int(above.sum())))
        size, left = int(quota.sum()), quota.tolist()
        taken = self._smallest_of_each_class(left)
        return taken + self._whole_groups(left, size - len(taken))

    def _smallest_of_each_class(self, quota: list[int]) -> Group:
        """One group of every class, rare classes first, and of its groups the smallest."""
        by_class: dict[int, list[Group]] = defaultdict(list)
        for group in self._groups:
            for label in {self._labels[row] for row in group}:
                by_class[label].append(group)
        taken: Group = []
        for label in sorted(by_class, key=lambda label: (len(by_class[label]), label)):
            if any(self._labels[row] == label for row in taken):
                continue
            for group in sorted(by_class[label], key=len):
                if self._spare(group):
                    self._groups.remove(group)
                    quota[self._labels[group[0]]] -= len(group)
                    taken += self._remove(group)
                    break
        return taken

    def take(self, size: int) -> Group:
        """Set ``size`` rows aside: by class in proportion, then of any class, then by dividing groups."""
        taken = self._whole_groups(_proportional(self._left, size), size)
        if len(taken) < size:
            divided = (self._divided(group, taken, size) for group in self._groups)
            self._groups = [rest for rest in divided if rest]
        return taken

    def _whole_groups(self, quota: list[int], size: int) -> Group:
        """Set up to ``size`` rows aside, whole groups alone: first within each class's quota, then of any."""
        taken: Group = []
        for within_class in (True, False):
            kept = []
            for group in self._groups:
                owner = self._labels[group[0]]
                room = size - len(taken)
                if len(group) <= (min(quota[owner], room) if within_class else room) and self._spare(group):
                    quota[owner] -= len(group)
                    taken += self._remove(group)
                else:
                    kept.append(group)
            self._groups = kept
        return taken

    def _divided(self, group: Group, taken: Group, size: int) -> Group:
        """Move rows of the group to ``taken`` while it is short of ``size``; the rest of the group."""
        rest = []
        for row in group:
            if len(taken) < size and self._spare([row]):
                taken += self._remove([row])
            else:
                rest.append(row)
        return rest

    def _spare(self, rows: Group) -> bool:
        """Whether every class would keep a row if these went."""
        needed = np.bincount([self._labels[row] for row in rows], minlength=len(self._left))
        return bool(np.all((needed == 0) | (needed < self._left)))

    def _remove(self, rows: Group) -> Group:
        for row in rows:
            self._left[self._labels[row]] -= 1
        return rows


def _proportional(available: np.ndarray, size: int) -> list[int]:
    """``size`` divided in proportion to ``available``, by largest remainders; ties go to the lower class."""
    if not available.sum():
        return [0] * len(available)
    exact = available * size / available.sum()
    quota = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - quota), kind="stable")
    quota[order[: size - quota.sum()]] += 1
    return [int(rows) for rows in quota]


def aligned_labels(examples: Examples, label_names: Sequence[str]) -> NDArray[Any]:
    """The class of every row as an id into ``label_names``, int64 (rows,); matched as by `LabelMatcher`.

    Where texts may have several labels: which of ``label_names`` each has, bool (rows, names). Raises
    UserError when there are no rows, no labels, or a row's class is not among ``label_names``.
    """
    if examples.labels is None:
        raise UserError(
            "these rows have no labels to compare with",
            found=f"{len(examples)} unlabelled texts in {examples.source}",
            fix="give labelled rows, or classify these with newsdesk predict",
        )
    if len(examples) == 0:
        raise UserError("there are no rows to evaluate", found=f"an empty split in {examples.source}")
    ids = LabelMatcher(label_names).matches(examples.label_names)
    ids_here = np.array([ids.get(name, -1) for name in examples.label_names], dtype=np.int64)
    if examples.is_multi:
        has_unknown = examples.labels & (ids_here < 0)
        unknown, first = has_unknown.any(axis=1), int(has_unknown.any(axis=0).argmax())
    else:
        labels = ids_here[examples.labels]
        unknown = labels < 0
        first = int(examples.labels[unknown][0]) if unknown.any() else 0
    if unknown.any():
        raise UserError(
            f"{examples.source} has rows of the class {examples.label_names[first]!r}, which the model does "
            "not know",
            found=f"{counted(int(unknown.sum()), 'row')} of unknown classes; "
            f"the model knows {', '.join(label_names)}",
            fix="rename the classes or drop those rows; to learn new classes, train on them",
        )
    if not examples.is_multi:
        return np.asarray(labels)
    sets = np.zeros((len(examples), len(label_names)), dtype=np.bool_)
    for column in np.flatnonzero(ids_here >= 0):
        sets[:, ids_here[column]] |= examples.labels[:, column]
    return sets
