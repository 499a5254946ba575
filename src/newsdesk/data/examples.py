"""Examples: texts with their class ids, the one thing that flows from the data room to the others."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.duplicates import fold
from newsdesk.data.labels import LabelMatcher, LabelMatching
from newsdesk.errors import UserError, counted


@dataclass(frozen=True)
class Examples:
    """Texts and, where known, their classes.

    Attributes:
        texts: one string a row, ready for the tokenizer (template and normaliser applied).
        labels: int64 class ids of shape (rows,), or None for unlabelled texts.
        label_names: class names in id order; empty when unlabelled.
        source: where the rows came from, for messages and manifests.
        matching: how the file's labels became these classes, where they are those of a run.
    """

    texts: tuple[str, ...]
    labels: NDArray[np.int64] | None
    label_names: tuple[str, ...]
    source: str
    matching: LabelMatching | None = None

    def __post_init__(self) -> None:
        """Refuse rows and labels that do not line up; that is a defect of the caller."""
        if self.labels is not None and len(self.labels) != len(self.texts):
            raise ValueError(f"{len(self.texts)} texts but {len(self.labels)} labels")

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.texts)

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
        digest.update(b"unlabelled" if self.labels is None else self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


def joined(parts: Sequence[Examples]) -> Examples:
    """The labelled rows of several parts, in turn. Raises ValueError unless they have the same classes."""
    first = parts[0]
    labels = [part.labels for part in parts if part.labels is not None]
    if len(labels) < len(parts) or any(part.label_names != first.label_names for part in parts):
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
    same seed gives the same split on every platform. ``share`` 0 holds nothing out.

    Raises UserError when training would be left without some class.
    """
    if share == 0 or len(examples) < 2:
        return _parted(examples, [])
    size = validation_size(len(examples), share)
    return _parted(examples, _Pool(examples, size, seed).take_of_every_class(size))


def _parted(examples: Examples, aside: Sequence[int]) -> Splits:
    taken = set(aside)
    rest = [row for row in range(len(examples)) if row not in taken]
    return Splits(examples.select(rest), examples.select(sorted(taken)))


Group = list[int]
"""Rows with the same text."""


class _Pool:
    """Groups not yet set aside, in random order, and what each class still has for training."""

    def __init__(self, examples: Examples, aside: int, seed: int) -> None:
        labels = np.zeros(len(examples), np.int64) if examples.labels is None else examples.labels
        classes = len(np.unique(labels))
        if aside > len(examples) - classes:
            raise UserError(
                "too few rows would be left for training",
                found=f"{counted(len(examples), 'row')} of {counted(classes, 'class')}; {aside:,} set aside",
                fix="set aside fewer rows for validation; each class keeps at least one for training",
            )
        groups: dict[str, Group] = defaultdict(list)
        for row, text in enumerate(examples.texts):
            groups[fold(text) or f"\0{row}"].append(row)  # empty texts are not copies of each other
        ordered = list(groups.values())
        shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(len(ordered))
        self._groups = [ordered[position] for position in shuffled]
        self._labels = labels.tolist()
        self._left = np.bincount(labels)

    def take_of_every_class(self, size: int) -> Group:
        """Set about ``size`` rows aside, whole groups, with some of every class that can spare any."""
        least = np.where(self._left >= _OF_ROWS, _ROWS_A_CLASS, self._left >= 2)
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


def aligned_labels(examples: Examples, label_names: Sequence[str]) -> NDArray[np.int64]:
    """The class of every row as an id into ``label_names``, shape (rows,); matched as by `LabelMatcher`.

    Raises UserError when there are no rows, no labels, or a row's class is not among ``label_names``.
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
    labels = ids_here[examples.labels]
    if (unknown := labels < 0).any():
        name = examples.label_names[int(examples.labels[unknown][0])]
        raise UserError(
            f"{examples.source} has rows of the class {name!r}, which the model does not know",
            found=f"{counted(int(unknown.sum()), 'row')} of unknown classes; "
            f"the model knows {', '.join(label_names)}",
            fix="rename the classes or drop those rows; to learn new classes, train on them",
        )
    return labels
