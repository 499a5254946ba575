"""Embedded rows to findings: likely label errors, duplicates, conflicts, leaks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.duplicates import NearDuplicate, duplicate_groups, near_copies, shared_texts
from newsdesk.data.words import VocabularyFit
from newsdesk.errors import UserError
from newsdesk.evaluation.audit.audited_data import AuditedData
from newsdesk.evaluation.audit.findings import AuditReport, Confusion, Judgement, Twin
from newsdesk.evaluation.audit.label_errors import LabelErrors, rank_label_errors
from newsdesk.evaluation.audit.out_of_sample import Rows, clusters_of, out_of_sample_probabilities

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
