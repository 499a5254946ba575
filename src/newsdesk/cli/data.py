"""The verbs about data and things known by name: audit, data and models."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from newsdesk.cli.shared import (
    JSON_FLAG,
    PATH,
    Verbs,
    flag,
    note,
    reading_flags,
    say,
    shown_progress,
    verb,
)
from newsdesk.data.words import isolated
from newsdesk.errors import counted

if TYPE_CHECKING:
    from newsdesk.evaluation.audit.cleaned_copy import Changes
    from newsdesk.evaluation.audit.findings import AuditReport

_CONFUSIONS_SHOWN = 6
# Kept in step with evaluation.audit.cleaned_copy by a test: importing it here would slow down --help.
_KINDS = ("label-errors", "duplicates", "near-duplicates", "conflicts", "leaks")


@verb()
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
@flag("--out", type=PATH, required=True, help="Folder to write the findings to.", metavar="FOLDER")
@flag("--apply", type=PATH, help="Write a cleaned copy of the data to this file.", metavar="FILE")
@flag(
    "--decisions",
    type=PATH,
    help="A copy of label-errors.csv or quality.csv with its column 'decision' filled in.",
    metavar="FILE",
)
@flag("--drop", multiple=True, type=click.Choice(_KINDS), help="Findings to leave out without a review.")
@reading_flags("text", "label", "template", "normaliser", "dialect")
@JSON_FLAG
def audit(
    out: Path,
    top: int,
    apply: Path | None,
    drop: tuple[str, ...],
    normaliser: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Find likely label errors, duplicates and leakage; on request, write a cleaned copy."""
    from newsdesk.evaluation.audit.audit import audit as auditing

    with shown_progress() as progress:
        outcome = auditing(
            out=out,
            apply=apply,
            drop=drop,
            normaliser=normaliser or "none",
            command=shlex.join(["newsdesk", *sys.argv[1:]]),
            progress=progress,
            **settings,
        )
    changes = outcome.changes
    if as_json:
        cleaned = None if changes is None else {"path": str(apply), **changes.to_dict()}
        say({**outcome.report.to_dict(), "cleaned": cleaned})
        return
    applied = [] if changes is None else ["", *render_changes(changes, outcome.report.rows, str(apply))]
    say([*render_audit(outcome.report, top=top), *applied])
    note(f"findings saved to {out}")


def render_audit(report: AuditReport, *, top: int) -> list[str]:
    """Counts, the labels confused most, and the ``top`` suspects, two lines each."""
    from newsdesk.cli.tables import WIDTH, cut, figure
    from newsdesk.evaluation.audit.findings import PLACES, QUALITY

    rows, labels = counted(report.rows, "row"), counted(len(report.label_counts), "label")
    lines = [f"{report.source}: {rows}, {labels}", "", *_judgement(report)]
    if report.unjudged:
        lines.append(
            figure("not judged", f"{counted(report.unjudged, 'row')}: no other text has their label")
        )
    for name, count in report.counts.items():
        if report.against is not None or not name.startswith("leaked"):
            where = f"  ({PLACES[name]})" if name in PLACES else ""
            doubt = ", most of them probably right" if name == "label errors" and not report.can_judge else ""
            lines.append(figure(name, f"{count:>7,}{where}{doubt}"))
    lines.append(figure("all rows by label quality", f"{report.rows:>7,}  ({QUALITY})"))
    if report.against is not None:
        lines.append(figure("compared for leaks with", report.against))
    lines += ["", "labelled -> likely, estimated rows"] if report.confusions else []
    for confusion in report.confusions[:_CONFUSIONS_SHOWN]:
        pair = f"  {isolated(confusion.given)} -> {isolated(confusion.likely)}"
        lines.append(figure(pair, f"{confusion.rows:>11,.0f}"))
    suspects = report.suspects[:top]
    if suspects:
        lines += ["", "labels most likely wrong" if report.can_judge else "labels that fit least"]
    for suspect in suspects:
        labels = f"{isolated(suspect.given)} -> {isolated(suspect.suggested)}"
        lines.append(f"  line {suspect.line}: {labels} (probability {suspect.probability:.3f})")
        lines.append(f"    {cut(suspect.text, WIDTH - 4)}")
    return lines


def _judgement(report: AuditReport) -> list[str]:
    """How many labels are wrong, and whether that can be told."""
    from newsdesk.cli.tables import figure

    warning = None if report.vocabulary is None else report.vocabulary.warning
    lines = [] if warning is None else [f"warning: {warning}", ""]
    if report.can_judge:
        return [
            *lines,
            figure("estimated wrong labels", f"{report.noise:.2%}, a lower bound: errors that are made"),
            figure("", "the same way every time look right"),
            figure("held-out accuracy", f"{report.accuracy:.2%} of the labels as they are"),
        ]
    return [
        *lines,
        figure("held-out accuracy", f"{report.accuracy:.2%}: too low to judge the labels"),
        figure("", f"always the most frequent label: {report.majority:.2%}"),
        figure("", f"needed, half of the way to 100 %: {report.least_accuracy:.2%}"),
        figure("", "below it, try another --base"),
        figure("estimated wrong labels", "not known"),
    ]


def render_changes(changes: Changes, rows: int, target: str) -> list[str]:
    """What a cleaned copy has of the data's ``rows``, and what was done to the others."""
    done = changes.to_dict()
    lines = [f"{target}: {rows - len(changes.drop):,} of {counted(rows, 'row')}"]
    lines += [f"  {count:,} dropped: {reason}" for reason, count in done["dropped"].items()]
    return lines + ([f"  {done['relabelled']:,} given another label"] if changes.relabel else [])


@click.group(cls=Verbs)
def models() -> None:
    """Named base models, and classifiers that come with newsdesk."""


@models.command("list")
@JSON_FLAG
def list_models(as_json: bool) -> None:
    """Classifiers that need no training, and base models to train on, by name.

    Every verb takes such a classifier in place of a run. Any Hub id or folder works as --base, too.
    """
    from newsdesk.cli.tables import render_columns
    from newsdesk.model.catalog import BASE_MODELS

    bases = [
        {
            "name": base.name,
            "parameters": base.parameters,
            "licence": base.licence,
            "cached": base.is_cached,
            "sources": ["hub", *(["pypi"] if base.pypi else [])],
            "description": base.description,
        }
        for base in BASE_MODELS.values()
    ]
    classifiers = list(_ready_made_rows())
    if as_json:
        say({"classifiers": classifiers, "base_models": bases})
        return
    for row in classifiers:
        low, high = (100 * share for share in row.pop("accuracy_interval"))
        row["accuracy"] = f"{100 * row['accuracy']:.2f} % [{low:.2f}, {high:.2f}] of {row.pop('rows'):,} rows"
    say(["classifiers", *render_columns(classifiers), "", "base models", *render_columns(bases)])


def _ready_made_rows() -> Iterator[dict[str, Any]]:
    """What the classifiers that come with newsdesk say of themselves."""
    from newsdesk.evaluation.evaluate import read_metrics
    from newsdesk.runs.folder import open_run
    from newsdesk.runs.ready_made import ready_made

    for name, known in ready_made().items():
        run = open_run(known.path)
        measured = read_metrics(run.metrics)["test"].metrics
        yield {
            "name": name,
            "accuracy": measured.accuracy,
            "accuracy_interval": measured.accuracy_interval,
            "rows": measured.rows,
            "base": run.manifest.base.name,
            "data licence": run.manifest.data.licence if run.manifest.data else None,
            "description": known.description,
        }


@models.command("pull")
@click.argument("name")
@flag("--out", type=PATH, metavar="FOLDER", help="Of a classifier: also copy it here, as a run of your own.")
def pull_model(name: str, out: Path | None) -> None:
    """Fetch a base model, or that of a classifier, into the cache and check its files."""
    from newsdesk import api
    from newsdesk.model.catalog import resolve_base
    from newsdesk.runs.folder import open_run
    from newsdesk.runs.ready_made import ready_made

    known = ready_made().get(name)
    if known is None and out is not None:
        raise click.UsageError(f"--out copies a classifier: {', '.join(ready_made())}.")
    wanted = name
    if known is not None:
        known.verify()
        wanted = open_run(known.path).manifest.base.reference
    with shown_progress() as progress:
        base = resolve_base(wanted, progress=progress, flag=None)
    lines = [f"{base.name} is in {base.path} (from: {base.source})"]
    if known is not None and out is not None:
        note(f"note: {known.notice}")
        lines.append(f"run saved to {api.copy_run(known.path, out).path}")
    say(lines)


@click.group(cls=Verbs)
def data() -> None:
    """Named data sets, and checks of your own files."""


@data.command("list")
@JSON_FLAG
def list_data(as_json: bool) -> None:
    """The data sets known by name; any file or folder works as --data too."""
    from newsdesk.cli.tables import render_columns
    from newsdesk.data.load import DATA_SETS

    rows = [
        {
            "name": known.name,
            "train rows": known.rows[0],
            "test rows": known.rows[1],
            "licence": known.licence,
            "cached": known.is_cached,
            "description": known.description,
        }
        for known in DATA_SETS.values()
    ]
    say(rows if as_json else render_columns(rows))


@data.command("pull")
@click.argument("name")
@flag("--out", type=PATH, metavar="FOLDER", help="Also write it here as train.csv and test.csv.")
def pull_data(name: str, out: Path | None) -> None:
    """Fetch a data set into the cache and check its files."""
    from newsdesk.data.load import pull, write_csv_copy

    with shown_progress() as progress:
        folder = pull(name, progress=progress)
        copies = () if out is None else write_csv_copy(name, out, progress=progress)
    say([f"{name} is in {folder}", *(f"copied to {path}" for path in copies)])


@data.command("check")
@click.argument("path", type=PATH)
@flag("--against", type=PATH, help="A test file whose texts must not be in PATH.")
@reading_flags("text", "label", "template", "normaliser", "dialect")
@flag("--base", help="Count tokens as this base model does.", metavar="NAME|PATH")
@flag("--max-length", type=click.IntRange(min=2), help="Tokens a text would be cut to.")
@JSON_FLAG
def check_data(path: Path, base: str | None, normaliser: str | None, as_json: bool, **settings: Any) -> None:
    """Check a file: faults by line, labels, duplicates, leakage. Exit code 1 if problems are found."""
    from newsdesk.data.check import check, render_check
    from newsdesk.model.catalog import resolve_base
    from newsdesk.model.tokenizer import TextTokenizer

    tokenizer = None
    if base is not None:
        with shown_progress() as progress:
            tokenizer = TextTokenizer.from_folder(resolve_base(base, progress=progress).path, None)
    report = check(
        path,
        normaliser=normaliser or "none",
        tokenizer=None if tokenizer is None else tokenizer.lengths,
        vocabulary=None if tokenizer is None else tokenizer.fit,
        **settings,
    )
    say(report.to_dict() if as_json else render_check(report))
    if not report.is_ok:
        click.get_current_context().exit(1)
