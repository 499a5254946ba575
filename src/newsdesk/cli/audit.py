"""newsdesk audit: likely label errors, copies, conflicts and leaks of labelled rows."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from newsdesk.cli.shared import JSON_FLAG, PATH, flag, note, reading_flags, say, shown_progress, verb
from newsdesk.data.words import isolated
from newsdesk.errors import counted, listed

if TYPE_CHECKING:
    from newsdesk.evaluation.audit.cleaned_copy import Changes
    from newsdesk.evaluation.audit.findings import AuditReport, SeveralLabels

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
    "--long-texts",
    type=click.Choice(("cut", "head-tail", "windows")),
    default="cut",
    show_default=True,
    help="What is read of a text of more than 128 tokens: its beginning, both ends, or all in windows.",
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
@reading_flags("text", "label", "task", "template", "normaliser", "dialect")
@JSON_FLAG
def audit(
    out: Path,
    top: int,
    apply: Path | None,
    drop: tuple[str, ...],
    normaliser: str | None,
    task: Literal["auto", "single", "multi"] | None,
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
            task=task or "auto",
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
    judgement = _judgement(report) if report.several is None else _judgement_of_sets(report, report.several)
    lines = [f"{report.source}: {rows}, {labels}", "", *judgement]
    if report.unjudged:
        lines.append(
            figure("not judged", f"{counted(report.unjudged, 'row')}: no other text has their label")
        )
    for name, count in report.counts.items():
        if report.against is not None or not name.startswith("leaked"):
            where = f"  ({PLACES[name]})" if name in PLACES else ""
            labels_of = name in ("label errors", "wrong labels", "missing labels")
            doubt = ", most of them probably right" if labels_of and not report.can_judge else ""
            lines.append(figure(name, f"{count:>7,}{where}{doubt}"))
    lines.append(figure("all rows by label quality", f"{report.rows:>7,}  ({QUALITY})"))
    if report.against is not None:
        lines.append(figure("compared for leaks with", report.against))
    lines += ["", "labelled -> likely, estimated rows"] if report.confusions else []
    for confusion in report.confusions[:_CONFUSIONS_SHOWN]:
        pair = f"  {isolated(confusion.given)} -> {isolated(confusion.likely)}"
        lines.append(figure(pair, f"{confusion.rows:>11,.0f}"))
    if report.several is not None:
        return [*lines, *_pairs(report, report.several, top)]
    suspects = report.suspects[:top]
    if suspects:
        lines += ["", "labels most likely wrong" if report.can_judge else "labels that fit least"]
    for suspect in suspects:
        labels = f"{isolated(suspect.given)} -> {isolated(suspect.suggested)}"
        lines.append(f"  line {suspect.line}: {labels} (probability {suspect.probability:.3f})")
        lines.append(f"    {cut(suspect.text, WIDTH - 4)}")
    return lines


def _pairs(report: AuditReport, several: SeveralLabels, top: int) -> Iterator[str]:
    """The ``top`` labels most likely wrong and missing, two lines each."""
    from newsdesk.cli.tables import WIDTH, cut
    from newsdesk.evaluation.audit.findings import KINDS_OF_FINDING

    for kind in KINDS_OF_FINDING:
        found = several.of_kind(kind)[:top]
        if found:
            yield ""
            yield f"labels most likely {kind}" if report.can_judge else f"labels that look {kind} most"
        for one in found:
            given = f"given {isolated(one.given)}" if one.given else "given none"
            yield f"  line {one.line}: {isolated(one.label)} (probability {one.probability:.3f}), {given}"
            yield f"    {cut(one.text, WIDTH - 4)}"


def _judgement_of_sets(report: AuditReport, several: SeveralLabels) -> list[str]:
    """How many labels are wrong and missing, of the findings how many truly, and whether that can be told."""
    from newsdesk.cli.tables import figure

    warning = None if report.vocabulary is None else report.vocabulary.warning
    lines = [] if warning is None else [f"warning: {warning}", ""]
    unjudged = [one.label for one in several.labels if one.rows and not one.judged]
    if unjudged:
        lines.append(figure("not judged", f"{counted(len(unjudged), 'label')}: {listed(unjudged)}"))
    if not report.can_judge:
        return [
            *lines,
            figure("held-out micro F1", f"{report.accuracy:.4f}: too low to judge the labels"),
            figure("", f"always the most frequent label: {report.majority:.4f}"),
            figure("", f"needed, half of the way to 1: {report.least_accuracy:.4f}"),
            figure("", "below it, try another --base"),
        ]
    return [
        *lines,
        figure("estimated wrong labels", f"{report.noise:.2%} of those given"),
        figure("estimated missing labels", f"{several.missing:.2%} of those that texts should have"),
        figure("", "errors that are made the same way every time look right"),
        *(
            figure(f"{kind} labels expected", f"{expected:>7,.0f}  (of those found below, truly {kind})")
            for kind, expected in several.expected.items()
        ),
        figure("held-out micro F1", f"{report.accuracy:.4f} of the labels as they are"),
    ]


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
