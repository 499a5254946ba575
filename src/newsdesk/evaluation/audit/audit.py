"""The audit: embed once, judge every row by heads that did not learn from it, look for copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk import __version__
from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.errors import UserError, missing_package
from newsdesk.evaluation.audit.changes import (
    Changes,
    Kind,
    decide,
    label_cells,
    read_decisions,
    require_free_target,
    write_cleaned,
)
from newsdesk.evaluation.audit.embeddings import Embed, embed_stored
from newsdesk.evaluation.audit.examine import AuditedData, Timer, examine, load_audited
from newsdesk.evaluation.audit.findings import AuditReport, require_free_folder, write_findings
from newsdesk.model.catalog import ResolvedBase, resolve_base
from newsdesk.model.tokenizer import TextTokenizer
from newsdesk.progress import Progress
from newsdesk.runs.manifest import base_facts, installed_versions
from newsdesk.stored import to_content

LONGEST_TEXT = 128
"""Tokens a text is cut to: a news text says at its beginning what it is about."""

EMBEDDINGS = "embeddings"
"""The folder of the embeddings, inside that of the findings."""

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
    folds: int = 5,
    apply: str | Path | None = None,
    decisions: str | Path | None = None,
    drop: Sequence[Kind] = (),
    text: Sequence[str] | None = None,
    label: str | None = None,
    template: str | None = None,
    normaliser: str = "none",
    dialect: Dialect = DETECTED,
    command: str | None = None,
    progress: Progress | None = None,
) -> AuditOutcome:
    """Look labelled rows over for wrong labels, copies, conflicts and leakage; write the findings to ``out``.

    ``newsdesk.audit("wire.csv", out="audits/wire").report.suspects[:20]``

    Args:
        data: named data set, folder or file; nothing of it is ever changed.
        out: folder for the csv files (see docs/trust.md), audit.json and the embeddings.
        split: which split of the data is audited.
        test: a file or split whose texts must not be among these; None: the other split, if there is one.
        base: the encoder that embeds the texts, frozen.
        folds: of the cross-validation.
        apply: where to write a cleaned copy of the data, in its own format; None: nowhere.
        decisions: a filled copy of label-errors.csv or quality.csv that says what becomes of the rows.
        drop: kinds of findings whose rows the cleaned copy leaves out without anyone having looked at them.
        text, label, template, normaliser, dialect: how rows become texts and classes, as in training.
        command: what was typed, for audit.json.
        progress: called while things are fetched, and with the rows embedded.

    Raises UserError when data, base or packages do not allow it, or the copy cannot go where it should.
    """
    _require_somewhere_to_go(Path(out), apply, decisions, drop)
    layout: dict[str, Any] = {
        "text": text,
        "label": label,
        "template": template,
        "normaliser": normaliser,
        "dialect": dialect,
    }
    rows = load_audited(data, split=split, test=test, progress=progress, **layout)
    if (target := None if apply is None else Path(apply)) is not None:
        require_free_target(rows.table, target)
    resolved, timer = resolve_base(base, progress=progress), Timer()
    with timer.step("embedding"):
        embeddings = embed(rows.examples.texts, resolved, Path(out) / EMBEDDINGS, progress=progress)
    vocabulary = TextTokenizer.from_folder(resolved.path, None).fit(rows.examples.texts)
    report = examine(rows, embeddings, vocabulary, folds=folds, seed=_SEED, timer=timer)
    write_findings(report, Path(out), _provenance(resolved, command, folds))
    return AuditOutcome(report, None if target is None else _apply(rows, report, target, decisions, drop))


def _apply(
    rows: AuditedData, report: AuditReport, target: Path, decisions: str | Path | None, drop: Sequence[Kind]
) -> Changes:
    """Write the cleaned copy; what was done to which rows."""
    decided = None if decisions is None else read_decisions(Path(decisions), report)
    changes = decide(report, drop, decided)
    cells = label_cells(rows.table, rows.labels, rows.label_column)
    relabel = {row: cells[label] for row, label in changes.relabel.items()}
    write_cleaned(rows.table, target, drop=changes.drop, relabel=relabel, column=rows.label_column)
    return changes


def _require_somewhere_to_go(
    out: Path, apply: str | Path | None, decisions: str | Path | None, drop: Sequence[Kind]
) -> None:
    require_free_folder(out)
    if apply is None and (decisions is not None or drop):
        raise UserError(
            "--decisions and --drop need --apply, the file that the cleaned copy is written to",
            found="no --apply",
            fix="add --apply FILE; the data itself is never changed",
        )


def embed(
    texts: Sequence[str], base: ResolvedBase, folder: Path, *, progress: Progress | None = None
) -> NDArray[np.float32]:
    """The texts' embeddings by the frozen base, float32 (rows, dimensions), kept in ``folder``.

    ``progress`` is called with the rows done. Raises UserError where torch is missing.
    """

    def embedder() -> Embed:
        try:
            from newsdesk.model.network import TextEmbedder
        except ImportError:
            raise missing_package("torch", "train", "an audit") from None
        return TextEmbedder(base.path, max_length=LONGEST_TEXT).embed

    identity = f"{base.sha256 or base.path}, mean of {LONGEST_TEXT} tokens"
    return embed_stored(texts, folder, embedder, identity=identity, progress=progress)


def _provenance(base: ResolvedBase, command: str | None, folds: int) -> dict[str, Any]:
    return {
        "command": command,
        "folds": folds,
        "seed": _SEED,
        "newsdesk": __version__,
        "versions": {**installed_versions(), "scikit-learn": version("scikit-learn")},
        "base": to_content(base_facts(base)),
    }
