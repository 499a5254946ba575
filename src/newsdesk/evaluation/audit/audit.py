"""The audit: embed once, judge every row by heads that did not learn from it, look for copies."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from newsdesk import __version__
from newsdesk.data.duplicates import NearDuplicate, duplicate_groups, near_copies, shared_texts
from newsdesk.data.examples import aligned_labels
from newsdesk.data.folds import clusters_of
from newsdesk.data.labelled import labels_with_faults, table_labels
from newsdesk.data.labels import LabelMatcher
from newsdesk.data.table import Table
from newsdesk.data.vocabulary import VocabularyFit
from newsdesk.errors import UserError
from newsdesk.evaluation.audit.audited_rows import AuditedData, Layout, load_audited
from newsdesk.evaluation.audit.cleaned_copy import (
    Changes,
    decide,
    read_decisions,
    require_free_target,
    write_cleaned,
)
from newsdesk.evaluation.audit.embeddings import EMBEDDINGS, embed
from newsdesk.evaluation.audit.findings import (
    AuditReport,
    Confusion,
    Judgement,
    Twin,
    Verdict,
    require_free_folder,
    too_few,
    write_findings,
)
from newsdesk.evaluation.audit.label_issues import (
    LabelErrors,
    Rows,
    out_of_sample_probabilities,
    rank_label_errors,
)
from newsdesk.evaluation.audit.pair_issues import judge_sets
from newsdesk.model.catalog import ResolvedBase, resolve_base
from newsdesk.model.tokenizer import TextTokenizer
from newsdesk.model.windows import Read
from newsdesk.prediction.output_formats import joined_labels
from newsdesk.progress import Progress
from newsdesk.runs.manifest import base_facts, installed_versions
from newsdesk.stored import to_content

_SEED = 0


@dataclass(frozen=True)
class AuditOutcome:
    """What was found, and what was done to a cleaned copy, if one was asked for."""

    report: AuditReport
    changes: Changes | None


def audit(
    data: str,
    *,
    out: str | Path,
    split: str = "train",
    test: str | None = None,
    base: str = "all-MiniLM-L6-v2",
    long_texts: Read = "cut",
    folds: int = 5,
    apply: str | Path | None = None,
    decisions: str | Path | None = None,
    drop: Collection[str] = (),
    command: str | None = None,
    progress: Progress | None = None,
    **layout: Unpack[Layout],
) -> AuditOutcome:
    """Check labelled rows for wrong labels, copies, conflicts and leakage; write the findings to ``out``.

    ``newsdesk.audit("wire.csv", out="audits/wire").report.suspects[:20]``

    Args:
        data: named data set, folder or file; nothing of it is ever changed.
        out: folder for the csv files (see docs/trust.md), audit.json and the embeddings.
        split: which split of the data is audited.
        test: a file or split whose texts must not be among these; None: the other split, if there is one.
        base: the encoder that embeds the texts, frozen.
        long_texts: how it reads texts of more than 128 tokens, as in a recipe; of windows the mean is taken.
        folds: of the cross-validation.
        apply: where to write a cleaned copy of the data, in its own format; None: nowhere.
        decisions: a filled copy of label-errors.csv or quality.csv that says what becomes of the rows.
        drop: of ``KINDS``, the findings whose rows the cleaned copy leaves out without a review.
        command: what was typed, for audit.json.
        progress: called while things are fetched, and with the rows embedded.
        layout: ``text``, ``label``, ``dialect`` and so on: how rows become texts and classes, as in training.

    Raises UserError when data, base or packages do not allow it, or the copy cannot go where it should.
    """
    folder, target = Path(out), None if apply is None else Path(apply)
    require_free_folder(folder)
    if target is None and (decisions is not None or drop):
        raise UserError(
            "--decisions and --drop need --apply, the file that the cleaned copy is written to",
            found="no --apply",
            fix="add --apply FILE; the data itself is never changed",
        )
    rows = load_audited(data, split=split, test=test, progress=progress, **layout)
    if target is not None:
        require_free_target(rows.table, target)
    resolved, seconds = resolve_base(base, progress=progress), dict[str, float]()
    texts = rows.examples.texts
    with _timed(seconds, "embedding"):
        embeddings = embed(texts, resolved, folder / EMBEDDINGS, long_texts=long_texts, progress=progress)
    vocabulary = TextTokenizer.from_folder(resolved.path, None).fit(texts)
    report = examine(rows, embeddings, vocabulary, folds=folds, seconds=seconds)
    write_findings(report, folder, {"command": command, "folds": folds, **_provenance(resolved)})
    if target is None:
        return AuditOutcome(report, None)
    changes = decide(report, drop, None if decisions is None else read_decisions(Path(decisions), report))
    write_cleaned(rows.table, target, drop=changes.drop, relabel=rows.cells(changes.relabel))
    return AuditOutcome(report, changes)


def _provenance(base: ResolvedBase) -> dict[str, Any]:
    return {
        "seed": _SEED,
        "newsdesk": __version__,
        "versions": {**installed_versions(), "scikit-learn": version("scikit-learn")},
        "base": to_content(base_facts(base)),
    }


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Put the wall time of the block into ``seconds``."""
    began = time.perf_counter()
    yield
    seconds[step] = round(time.perf_counter() - began, 1)


def examine(
    rows: AuditedData,
    embeddings: NDArray[np.float32],
    vocabulary: VocabularyFit,
    *,
    folds: int,
    seconds: dict[str, float],
) -> AuditReport:
    """All that texts (rows,), labels and embeddings (rows, dimensions) show.

    A row whose label has only one text (copies not counted) is not judged: it cannot be predicted.
    ``seconds`` takes the wall time of each step. Raises UserError where that leaves nothing to judge.
    """
    texts, names = rows.examples.texts, rows.examples.label_names
    ids = aligned_labels(rows.examples, names)
    with _timed(seconds, "duplicates"):
        groups, near = duplicate_groups(texts), near_copies(texts)
    conflicts = {group for group in groups if len({rows.labels[row] for row in group}) > 1}
    with _timed(seconds, "leakage"):
        leaks = _leaks(rows)
    clusters = clusters_of(len(texts), chain(groups, ((one.match, one.row) for one in near)))
    judge = judge_sets if rows.examples.is_multi else _judge_labels
    with _timed(seconds, "heads"):
        verdict = judge(rows, ids, embeddings, clusters, folds=folds, seed=_SEED)
    copies = [(NearDuplicate(row, group[0], 1.0), group) for group in groups for row in group[1:]]
    exact = (_twin(rows, copy, exact=True, conflict=group in conflicts) for copy, group in copies)
    nearly = (
        _twin(rows, copy, exact=False, conflict=rows.labels[copy.row] != rows.labels[copy.match])
        for copy in near
    )
    return AuditReport(
        source=str(rows.table.path),
        rows=len(texts),
        label_counts={
            name: count
            for name, count in zip(names, rows.examples.label_rows().tolist(), strict=True)
            if count
        },
        unjudged=verdict.unjudged,
        accuracy=verdict.accuracy,
        majority=verdict.majority,
        noise=verdict.noise,
        confusions=verdict.confusions,
        judgements=verdict.judgements,
        duplicates=(*exact, *nearly),
        conflicting_rows=tuple(sorted(row for group in conflicts for row in group)),
        against=None if rows.other is None else str(rows.other.path),
        leaks=leaks,
        seconds=seconds,
        vocabulary=vocabulary,
        several=verdict.several,
    )


def _judge_labels(
    rows: AuditedData,
    ids: Rows,
    embeddings: NDArray[np.float32],
    clusters: Rows,
    *,
    folds: int,
    seed: int,
) -> Verdict:
    """Confident learning where each row has one label."""
    texts, names = rows.examples.texts, rows.examples.label_names
    judged = _judged(ids, clusters, rows.table.path.name)
    probabilities = out_of_sample_probabilities(
        texts, embeddings, ids, clusters, classes=len(names), folds=folds, seed=seed
    )
    found = rank_label_errors(probabilities[judged], ids[judged])
    return Verdict(
        unjudged=len(texts) - len(judged),
        accuracy=found.accuracy,
        majority=found.majority,
        noise=found.noise,
        confusions=tuple(Confusion(names[g], names[t], round(n, 1)) for g, t, n in found.confused_pairs()),
        judgements=_judgements(rows, found, judged, probabilities[judged]),
    )


def _judged(labels: Rows, clusters: Rows, file: str) -> Rows:
    """The rows whose label at least two different texts carry."""
    pairs = np.unique(np.stack([labels, clusters]), axis=1)
    texts_of_label = np.bincount(pairs[0], minlength=int(labels.max()) + 1)
    judged = np.flatnonzero(texts_of_label[labels] >= 2)
    if not len(judged):
        raise too_few(f"no label of {file} has two different texts")
    return judged


def _judgements(
    rows: AuditedData, found: LabelErrors, judged: Rows, probabilities: NDArray[np.float64]
) -> tuple[Judgement, ...]:
    """Every row, the least fitting label first, then those that were not judged."""
    names, texts = rows.examples.label_names, rows.examples.texts
    suspects, best = set(found.suspects.tolist()), probabilities.argmax(axis=1)

    def judgement(row: int, place: int | None) -> Judgement:
        line, given, suspect = rows.table.lines[row], rows.labels[row], place in suspects
        if place is None:
            return Judgement(row, line, given, "", None, None, texts[row], suspect=False)
        suggested = found.suggested[place] if suspect else best[place]
        probability, quality = float(probabilities[place, suggested]), float(found.quality[place])
        return Judgement(row, line, given, names[suggested], probability, quality, texts[row], suspect)

    ranked = (judgement(int(judged[place]), place) for place in found.ranking.tolist())
    unjudged = np.setdiff1d(np.arange(len(texts)), judged).tolist()
    return (*ranked, *(judgement(row, None) for row in unjudged))


def _leaks(rows: AuditedData) -> tuple[Twin, ...]:
    """The audited rows whose text is in the other split, exactly or nearly.

    Labels there that stand for a class of the audited rows are called as here, others as they are; without
    such a column they are empty.
    """
    if rows.other is None:
        return ()
    texts = rows.layout.for_table(rows.other).texts(rows.other)
    labels = _other_labels(rows, rows.other)
    exact, near = shared_texts(texts, rows.examples.texts)
    return tuple(
        _twin(
            rows,
            copy,
            other=(rows.other.lines, labels),
            exact=is_exact,
            conflict=labels[copy.match] not in (None, rows.labels[copy.row]),
        )
        for found, is_exact in ((exact, True), (near, False))
        for copy in found
    )


def _other_labels(rows: AuditedData, other: Table) -> list[str | None]:
    """The label of each row of the other split, or all of them, joined; None where it is not known."""
    if not set(rows.columns) <= set(other.columns):
        return [None] * len(other)
    names = rows.examples.label_names
    matcher = LabelMatcher(names)
    if rows.examples.is_multi:
        found = table_labels(other, rows.form)
        sets = () if found is None else found.sets
        ids = matcher.matches({label for labels in sets for label in labels})
        order = {name: place for place, name in enumerate(names)}
        known = ({names[ids[label]] if label in ids else label for label in labels} for labels in sets)
        return [
            joined_labels(sorted(each, key=lambda name: order.get(str(name), len(order)))) for each in known
        ]
    labels = labels_with_faults(other, rows.columns[0])[0]
    ids = matcher.positions(set(labels) - {""}) or matcher.matches(set(labels))
    return [(names[ids[label]] if label in ids else label) or None for label in labels]


def _twin(
    rows: AuditedData,
    copy: NearDuplicate,
    *,
    exact: bool,
    conflict: bool,
    other: tuple[Sequence[int], Sequence[str | None]] | None = None,
) -> Twin:
    """A row that is a copy of another: of one of the same rows, or of the ``other`` lines and labels."""
    lines, labels = other or (rows.table.lines, rows.labels)
    return Twin(
        row=copy.row,
        line=rows.table.lines[copy.row],
        label=rows.labels[copy.row],
        other_row=copy.match,
        other_line=lines[copy.match],
        other_label=labels[copy.match] or "",
        similarity=round(copy.similarity, 4),
        exact=exact,
        conflict=conflict,
        text=rows.examples.texts[copy.row],
    )
