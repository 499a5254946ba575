"""The verb that checks labelled data: audit."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from newsdesk.cli.shared import (
    JSON_FLAG,
    Verb,
    data_flags,
    flag,
    note,
    say,
    shown_progress,
    terminal,
)

# Kept in step with evaluation.audit.changes by a test: importing it here would slow down --help.
_KINDS = ("label-errors", "duplicates", "near-duplicates", "conflicts", "leaks")


@click.command(cls=Verb)
@flag(
    "--data", required=True, help="Labelled rows: a named data set, a file, or a folder.", metavar="NAME|PATH"
)
@flag("--split", default="train", show_default=True, help="Which split of it to audit.")
@flag(
    "--test",
    help="Rows that must share no text with the audited ones; default: the other split.",
    metavar="PATH|SPLIT",
)
@flag(
    "--base",
    default="all-MiniLM-L6-v2",
    show_default=True,
    help="The encoder that embeds the texts, frozen.",
    metavar="NAME|PATH",
)
@flag(
    "--folds",
    type=click.IntRange(min=2),
    default=5,
    show_default=True,
    help="Folds of the cross-validation: each is judged by a classifier trained on the others.",
)
@flag("--top", type=click.IntRange(min=0), default=10, show_default=True, help="Suspects to show.")
@flag(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to write the findings to.",
    metavar="FOLDER",
)
@flag(
    "--apply",
    "target",
    type=click.Path(path_type=Path),
    help="Write a cleaned copy of the data to this file.",
    metavar="FILE",
)
@flag(
    "--decisions",
    type=click.Path(path_type=Path),
    help="A copy of label-errors.csv or quality.csv with its column 'decision' filled in.",
    metavar="FILE",
)
@flag("--drop", multiple=True, type=click.Choice(_KINDS), help="Findings to leave out without a review.")
@data_flags("text", "label", "template", "normaliser", "dialect")
@JSON_FLAG
def audit(
    data: str,
    split: str,
    test: str | None,
    base: str,
    folds: int,
    top: int,
    out: Path,
    target: Path | None,
    decisions: Path | None,
    drop: tuple[str, ...],
    as_json: bool,
    columns: Mapping[str, Any],
) -> None:
    """Find likely label errors, duplicates and leakage; on request, write a cleaned copy."""
    from newsdesk.evaluation.audit.audit import audit as auditing
    from newsdesk.evaluation.audit.changes import kinds_of, render_audit, render_changes

    console = terminal()
    with shown_progress(console) as progress:
        outcome = auditing(
            data,
            out=out,
            split=split,
            test=test,
            base=base,
            folds=folds,
            apply=target,
            decisions=decisions,
            drop=kinds_of(drop),
            **{**columns, "normaliser": columns["normaliser"] or "none"},
            command=shlex.join(["newsdesk", *sys.argv[1:]]),
            progress=progress,
        )
    changes = outcome.changes
    if as_json:
        cleaned = None if changes is None else {"path": str(target), **changes.to_dict()}
        say({**outcome.report.to_dict(), "cleaned": cleaned})
        return
    applied = [] if changes is None else ["", *render_changes(changes, outcome.report.rows, str(target))]
    say([*render_audit(outcome.report, top=top), *applied])
    note(console, f"findings saved to {out}")
