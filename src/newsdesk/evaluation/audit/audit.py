"""The audit: embed once, judge every row by heads that did not learn from it, look for copies."""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from newsdesk import __version__
from newsdesk.config import ModelSection
from newsdesk.data.columns import TextLayout, label_column, text_layout
from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.data.duplicates import NearDuplicate, duplicate_groups, near_copies, shared_texts
from newsdesk.data.examples import Examples, aligned_labels
from newsdesk.data.labelled import Task, labels_with_faults, to_examples
from newsdesk.data.labels import LabelMatcher
from newsdesk.data.load import DATA_SETS, folder_splits, load_split, require_two_classes
from newsdesk.data.table import Table
from newsdesk.data.words import VocabularyFit
from newsdesk.errors import UserError, counted, missing_package
from newsdesk.evaluation.audit.cleaned_copy import (
    Changes,
    decide,
    read_decisions,
    require_free_target,
    write_cleaned,
)
from newsdesk.evaluation.audit.findings import (
    AuditReport,
    Confusion,
    Judgement,
    Twin,
    require_free_folder,
    write_findings,
)
from newsdesk.evaluation.audit.label_issues import (
    LabelErrors,
    Rows,
    clusters_of,
    out_of_sample_probabilities,
    rank_label_errors,
)
from newsdesk.files import read_regular, write_bytes
from newsdesk.model.catalog import ResolvedBase, resolve_base
from newsdesk.model.tokenizer import TextTokenizer
from newsdesk.model.windows import LongTexts, Read
from newsdesk.progress import Progress, counting
from newsdesk.runs.manifest import base_facts, installed_versions
from newsdesk.stored import to_content

LONGEST_TEXT = 128
"""Tokens a text is cut to, unless asked otherwise: a news text says at its beginning what it is about."""
EMBEDDINGS = "embeddings"
"""The folder of the embeddings, inside that of the findings."""
PIECE_ROWS = 1024
"""Texts that a file of embeddings holds; what a kill loses at most."""

_SEED = 0
_SPLITS = ("train", "test")
_OWN_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""What turns texts into vectors, (rows, dimensions), such as ``TextEmbedder.embed``."""


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
    _write_copy(rows, changes, target)
    return AuditOutcome(report, changes)


def _write_copy(rows: AuditedData, changes: Changes, target: Path) -> None:
    """Write a label as the first row that carries it does."""
    column = rows.label_column
    cells = dict(zip(reversed(rows.labels), reversed(rows.table.column(column)), strict=True))
    relabel = {row: cells[name] for row, name in changes.relabel.items()}
    if relabel and column not in rows.table.columns:
        raise UserError(
            f"labels within {column} cannot be rewritten",
            found=f"{counted(len(relabel), 'row')} to relabel in {rows.table.path.name}",
            fix="drop these rows instead, or correct their items by hand",
        )
    write_cleaned(rows.table, target, drop=changes.drop, relabel=relabel, column=column)


def _provenance(base: ResolvedBase) -> dict[str, Any]:
    return {
        "seed": _SEED,
        "newsdesk": __version__,
        "versions": {**installed_versions(), "scikit-learn": version("scikit-learn")},
        "base": to_content(base_facts(base)),
    }


@dataclass(frozen=True)
class AuditedData:
    """Rows to be audited, and the other split of the same data, if there is one.

    Attributes:
        table: the rows as the file has them.
        layout: how they became texts.
        examples: texts and class ids, in the same order.
        labels: the label of each row by name.
        label_column: the column that holds the class.
        other: the split whose texts must not be among these.
    """

    table: Table
    layout: TextLayout
    examples: Examples
    labels: tuple[str, ...]
    label_column: str
    other: Table | None


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
    if examples.is_multi:
        raise UserError(
            "an audit cannot judge several labels a text yet",
            found=f"{table.path.name}, whose texts may have several labels",
            fix="newsdesk data check finds faults of its labels",
        )
    require_two_classes(examples)
    column = label_column(table, label, layout.text_columns)
    assert column is not None  # or the rows had no labels
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
    labels = tuple(examples.label_names[number] for number in aligned_labels(examples, examples.label_names))
    return AuditedData(table, layout, examples, labels, column, other)


def embed(
    texts: Sequence[str],
    base: ResolvedBase,
    folder: Path,
    *,
    long_texts: Read = "cut",
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """The texts' embeddings by the frozen base, float32 (rows, dimensions), kept in ``folder``.

    ``long_texts`` is how texts of more tokens are read. ``progress`` is called with the rows done. Raises
    UserError where torch is missing.
    """
    read = LongTexts.of(ModelSection(max_length=LONGEST_TEXT, long_texts=long_texts))

    def embedder() -> Embed:
        try:
            from newsdesk.model.network import TextEmbedder
        except ImportError:
            raise missing_package("torch", "train", "an audit") from None
        return TextEmbedder(base.path, max_length=LONGEST_TEXT, long_texts=read).embed

    identity = f"{base.sha256 or base.path}, mean of {LONGEST_TEXT} tokens"
    if read is not None:
        identity += f", {read.describe(LONGEST_TEXT)}"
    return embed_stored(texts, folder, embedder, identity=identity, progress=progress)


def embed_stored(
    texts: Sequence[str],
    folder: Path,
    embedder: Callable[[], Embed],
    *,
    identity: str,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """The embedding of each text, float32 (rows, dimensions), read from ``folder`` where it is there.

    Each piece of 1,024 texts is a file named by the hash of its texts and of ``identity`` (the base model's
    hash), written when it is computed: change a text, and only its piece is computed again. A damaged file
    counts as none. ``embedder`` is called once, and only if something is missing. In the end ``folder`` holds
    these pieces and no others. ``progress`` is called with the rows done.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load, save

    count = counting(progress, len(texts), "embedding")
    compute: Embed | None = None
    pieces, names = [], set()
    for start in range(0, len(texts), PIECE_ROWS):
        part = texts[start : start + PIECE_ROWS]
        digest = hashlib.sha256(identity.encode())
        for text in part:
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        path, piece = folder / f"{digest.hexdigest()[:32]}.safetensors", None
        with suppress(OSError, SafetensorError, KeyError, TypeError):
            piece = load(read_regular(path))[EMBEDDINGS]
        if piece is None or piece.shape[:-1] != (len(part),) or not np.isfinite(piece).all():
            compute = compute or embedder()
            piece = compute(part)
            write_bytes(path, save({EMBEDDINGS: np.ascontiguousarray(piece)}))
        count(len(part))
        pieces.append(np.asarray(piece, dtype=np.float32))
        names.add(path.name)
    for stale in folder.glob("*.safetensors"):
        if stale.name not in names and _OWN_NAME.fullmatch(stale.name):
            stale.unlink()
    return np.concatenate(pieces)


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
    judged = _judged(ids, clusters, rows.table.path.name)
    with _timed(seconds, "heads"):
        probabilities = out_of_sample_probabilities(
            texts, embeddings, ids, clusters, classes=len(names), folds=folds, seed=_SEED
        )
    found = rank_label_errors(probabilities[judged], ids[judged])
    counts = Counter(rows.labels)
    copies = [(NearDuplicate(row, group[0], 1.0), group) for group in groups for row in group[1:]]
    exact = (_twin(rows, copy, exact=True, conflict=group in conflicts) for copy, group in copies)
    nearly = (
        _twin(rows, copy, exact=False, conflict=rows.labels[copy.row] != rows.labels[copy.match])
        for copy in near
    )
    return AuditReport(
        source=str(rows.table.path),
        rows=len(texts),
        label_counts={name: counts[name] for name in names if counts[name]},
        unjudged=len(texts) - len(judged),
        accuracy=found.accuracy,
        majority=found.majority,
        noise=found.noise,
        confusions=tuple(Confusion(names[g], names[t], round(n, 1)) for g, t, n in found.confused_pairs()),
        judgements=_judgements(rows, found, judged, probabilities[judged]),
        duplicates=(*exact, *nearly),
        conflicting_rows=tuple(sorted(row for group in conflicts for row in group)),
        against=None if rows.other is None else str(rows.other.path),
        leaks=leaks,
        seconds=seconds,
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
    labels = [""] * len(texts)
    if rows.label_column in rows.other.columns:
        labels = list(labels_with_faults(rows.other, rows.label_column)[0])
        matcher = LabelMatcher(rows.examples.label_names)
        ids = matcher.positions(set(labels) - {""}) or matcher.matches(set(labels))
        labels = [matcher.names[ids[label]] if label in ids else label for label in labels]
    exact, near = shared_texts(texts, rows.examples.texts)
    return tuple(
        _twin(
            rows,
            copy,
            other=(rows.other.lines, labels),
            exact=is_exact,
            conflict=labels[copy.match] not in ("", rows.labels[copy.row]),
        )
        for found, is_exact in ((exact, True), (near, False))
        for copy in found
    )


def _twin(
    rows: AuditedData,
    copy: NearDuplicate,
    *,
    exact: bool,
    conflict: bool,
    other: tuple[Sequence[int], Sequence[str]] | None = None,
) -> Twin:
    """A row that is a copy of another: of one of the same rows, or of the ``other`` lines and labels."""
    lines, labels = other or (rows.table.lines, rows.labels)
    return Twin(
        row=copy.row,
        line=rows.table.lines[copy.row],
        label=rows.labels[copy.row],
        other_row=copy.match,
        other_line=lines[copy.match],
        other_label=labels[copy.match],
        similarity=round(copy.similarity, 4),
        exact=exact,
        conflict=conflict,
        text=rows.examples.texts[copy.row],
    )
