"""Embedded rows to findings: likely label errors, duplicates, conflicts, leaks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.columns import TextLayout, label_column, labels_with_faults, text_layout, to_examples
from newsdesk.data.datasets import DATA_SETS, has_test_rows
from newsdesk.data.dialect import Dialect
from newsdesk.data.duplicates import NearDuplicate, duplicate_groups, near_copies, shared_texts
from newsdesk.data.examples import Examples
from newsdesk.data.labels import LabelMatcher
from newsdesk.data.load import load_split, require_two_classes
from newsdesk.data.table import Table
from newsdesk.data.words import VocabularyFit
from newsdesk.errors import UserError
from newsdesk.evaluation.audit.findings import AuditReport, Confusion, Judgement, Twin
from newsdesk.evaluation.audit.label_issues import (
    LabelErrors,
    Rows,
    clusters_of,
    out_of_sample_probabilities,
    rank_label_errors,
)
from newsdesk.progress import Progress

_SPLITS = ("train", "test")


@dataclass(frozen=True)
class AuditedData:
    """Rows to be audited, and the other split of the same data, if there is one.

    Attributes:
        table: the rows as the file has them.
        layout: how they became texts.
        examples: texts and class ids, in the same order.
        label_column: the column that holds the class.
        other: the split whose texts must not be among these.
    """

    table: Table
    layout: TextLayout
    examples: Examples
    label_column: str
    other: Table | None

    @property
    def labels(self) -> list[str]:
        """The label of each row by name."""
        assert self.examples.labels is not None  # load_audited demands them
        return [self.examples.label_names[label] for label in self.examples.labels]

    def other_rows(self) -> tuple[Sequence[str], Sequence[str]]:
        """Texts and labels of the other split; labels are empty where it has no such column.

        Labels that stand for a class of the audited rows are called as there, others as they are.
        """
        if self.other is None:
            return (), ()
        texts = self.layout.for_table(self.other).texts(self.other)
        if self.label_column not in self.other.columns:
            return texts, [""] * len(texts)
        labels = labels_with_faults(self.other, self.label_column)[0]
        matcher = LabelMatcher(self.examples.label_names)
        ids = matcher.positions(set(labels) - {""}) or matcher.matches(set(labels))
        return texts, [matcher.names[ids[label]] if label in ids else label for label in labels]


def load_audited(
    data: str,
    *,
    split: str,
    test: str | None,
    text: Sequence[str] | None,
    label: str | None,
    template: str | None,
    normaliser: str,
    dialect: Dialect,
    progress: Progress | None,
) -> AuditedData:
    """Read and lay out the rows that the flags of an audit name; they mean what they mean to ``audit``.

    Raises UserError for anything that keeps the rows from being read, and unless two classes have rows.
    """
    dialect = dialect.asking(text, label, template)
    found = load_split(data, split, dialect=dialect, progress=progress)
    layout = text_layout(found.table, text=text, label=label, template=template, normaliser=normaliser)
    examples = to_examples(
        found.table,
        text=layout.text_columns,
        label=label,
        template=layout.template,
        normaliser=layout.normaliser,
        labelled=True,
    )
    require_two_classes(examples)
    column = label_column(found.table, label, layout.text_columns)
    assert column is not None  # or the rows had no labels
    other = _other_split(data, split, test, dialect, progress)
    if other is not None and other.path.samefile(found.table.path):
        raise UserError(
            "the audited rows and those they are compared with are the same file",
            found=str(other.path),
            fix="give another file with --test, or leave it out",
        )
    return AuditedData(found.table, layout, examples, column, other)


def _other_split(
    data: str, split: str, test: str | None, dialect: Dialect, progress: Progress | None
) -> Table | None:
    """The table that ``--test`` names; without it the other split of the data, where it has one."""
    folder = Path(data).expanduser()
    if test is None:
        has_other = data in DATA_SETS or (folder.is_dir() and has_test_rows(folder))
        test = next(name for name in _SPLITS if name != split) if has_other else None
    if test is None:
        return None
    source = data if test in _SPLITS and not Path(test).exists() else test
    return load_split(source, test if source == data else "test", dialect=dialect, progress=progress).table


_Groups = tuple[tuple[int, ...], ...]


class Timer:
    """Wall time by step.

    Attributes:
        seconds: of each step that ended.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time the block."""
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


def examine(
    rows: AuditedData,
    embeddings: NDArray[np.float32],
    vocabulary: VocabularyFit,
    *,
    folds: int,
    seed: int,
    timer: Timer,
) -> AuditReport:
    """All that texts (rows,), labels and embeddings (rows, dimensions) say of the data.

    A row whose label has only one text (copies not counted) is not judged: without it nobody knows the label.
    Raises UserError where that leaves nothing to judge.
    """
    texts, labels = rows.examples.texts, rows.examples.labels
    assert labels is not None  # load_audited demands them
    with timer.step("duplicates"):
        groups, near = duplicate_groups(texts), near_copies(texts)
    with timer.step("leakage"):
        leaks = _leaks(rows)
    clusters = clusters_of(len(texts), chain(groups, ((one.match, one.row) for one in near)))
    judged = _judged(labels, clusters, rows.table.path.name)
    with timer.step("heads"):
        probabilities = out_of_sample_probabilities(
            texts,
            embeddings,
            labels,
            clusters,
            classes=len(rows.examples.label_names),
            folds=folds,
            seed=seed,
        )
    found = rank_label_errors(probabilities[judged], labels[judged])
    names = rows.examples.label_names
    counts = Counter(rows.labels)
    conflicts = _conflicts(rows, groups)
    return AuditReport(
        source=str(rows.table.path),
        rows=len(texts),
        label_counts={name: counts[name] for name in names if counts[name]},
        unjudged=len(texts) - len(judged),
        accuracy=found.accuracy,
        majority=found.majority,
        noise=found.noise,
        confusions=tuple(Confusion(names[g], names[t], n) for g, t, n in found.confused_pairs()),
        judgements=_judgements(rows, found, judged, probabilities[judged]),
        duplicates=_duplicates(rows, groups, near, conflicts),
        conflicting_rows=tuple(sorted(row for group in conflicts for row in group)),
        against=None if rows.other is None else str(rows.other.path),
        leaks=leaks,
        seconds=timer.seconds,
        vocabulary=vocabulary,
    )


def _judged(labels: Rows, clusters: Rows, file: str) -> Rows:
    """The rows whose label at least two different texts carry."""
    pairs = np.unique(np.stack([labels, clusters]), axis=1)
    texts_of_label = np.bincount(pairs[0], minlength=int(labels.max()) + 1)
    judged = np.flatnonzero(texts_of_label[labels] >= 2)
    if not len(judged):
        raise UserError(
            "too few texts to tell which labels are wrong",
            found=f"no label of {file} has two different texts",
            fix="audit more rows",
        )
    return judged


def _judgements(
    rows: AuditedData, found: LabelErrors, judged: Rows, probabilities: NDArray[np.float64]
) -> tuple[Judgement, ...]:
    """Every row, the least fitting label first, then those that were not judged."""
    names, labels, suspects = rows.examples.label_names, rows.labels, set(found.suspects.tolist())

    def judgement(row: int, place: int | None) -> Judgement:
        suspect = place in suspects
        suggested = None
        if place is not None:
            suggested = int(found.suggested[place] if suspect else probabilities[place].argmax())
        return Judgement(
            row=row,
            line=rows.table.lines[row],
            given=labels[row],
            suggested="" if suggested is None else names[suggested],
            probability=None if suggested is None else float(probabilities[place, suggested]),
            quality=None if place is None else float(found.quality[place]),
            text=rows.examples.texts[row],
            suspect=suspect,
        )

    ranked = (judgement(int(judged[place]), place) for place in found.ranking.tolist())
    unjudged = np.setdiff1d(np.arange(len(labels)), judged).tolist()
    return (*ranked, *(judgement(row, None) for row in unjudged))


def _conflicts(rows: AuditedData, groups: _Groups) -> _Groups:
    labels = rows.labels
    return tuple(group for group in groups if len({labels[row] for row in group}) > 1)


def _duplicates(
    rows: AuditedData, groups: _Groups, near: tuple[NearDuplicate, ...], conflicts: _Groups
) -> tuple[Twin, ...]:
    labels, lines, texts = rows.labels, rows.table.lines, rows.examples.texts

    def twin(row: int, other: int, similarity: float, *, exact: bool, conflict: bool) -> Twin:
        here, there = (row, lines[row], labels[row]), (other, lines[other], labels[other])
        return Twin(*here, *there, similarity, exact, conflict, texts[row])

    conflicting = {group[0] for group in conflicts}
    exact = (
        twin(row, group[0], 1.0, exact=True, conflict=group[0] in conflicting)
        for group in groups
        for row in group[1:]
    )
    nearly = (
        twin(n.row, n.match, n.similarity, exact=False, conflict=labels[n.row] != labels[n.match])
        for n in near
    )
    return (*exact, *nearly)


def _leaks(rows: AuditedData) -> tuple[Twin, ...]:
    """The audited rows whose text is in the other split, exactly or nearly."""
    if rows.other is None:
        return ()
    there, other_labels = rows.other_rows()
    labels, lines, texts = rows.labels, rows.table.lines, rows.examples.texts
    exact, near = shared_texts(there, texts)
    return tuple(
        Twin(
            *(one.row, lines[one.row], labels[one.row]),
            *(one.match, rows.other.lines[one.match], other_labels[one.match]),
            similarity=one.similarity,
            exact=is_exact,
            conflict=other_labels[one.match] not in ("", labels[one.row]),
            text=texts[one.row],
        )
        for found, is_exact in ((exact, True), (near, False))
        for one in found
    )
