"""An audit as plain lines for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len

from newsdesk.data.words import isolated
from newsdesk.errors import counted
from newsdesk.evaluation.audit.changes import Changes
from newsdesk.evaluation.audit.findings import DUPLICATES, LABEL_ERRORS, LEAKAGE, QUALITY, AuditReport
from newsdesk.evaluation.tables import WIDTH, cut

_CONFUSIONS_SHOWN = 6
_NAME_WIDTH = 28


def render_audit(report: AuditReport, *, top: int) -> list[str]:
    """Counts, the labels confused most, and the ``top`` suspects, two lines each."""
    return [
        f"{report.source}: {counted(report.rows, 'row')}, {counted(len(report.label_counts), 'label')}",
        "",
        *_counts(report),
        *_confusions(report),
        *_suspects(report, top),
    ]


def render_changes(changes: Changes, rows: int, target: str) -> list[str]:
    """What a cleaned copy has of the data's ``rows``, and what was done to the others."""
    done = changes.to_dict()
    lines = [f"{target}: {rows - len(changes.drop):,} of {counted(rows, 'row')}"]
    lines += [f"  {count:,} dropped: {reason}" for reason, count in done["dropped"].items()]
    return lines + ([f"  {done['relabelled']:,} given another label"] if changes.relabel else [])


def _counts(report: AuditReport) -> Iterator[str]:
    places = {"label errors": LABEL_ERRORS, "exact duplicates": DUPLICATES, "leaked exactly": LEAKAGE}
    yield from _judgement(report)
    if report.unjudged:
        yield _figure("not judged", f"{counted(report.unjudged, 'row')}: no other text has their label")
    for name, count in report.counts.items():
        if report.against is None and name.startswith("leaked"):
            continue
        where = f"  ({places[name]})" if name in places else ""
        if name == "label errors" and not report.can_judge:
            where += ", most of them probably right"
        yield _figure(name, f"{count:>7,}{where}")
    yield _figure("all rows by label quality", f"{report.rows:>7,}  ({QUALITY})")
    if report.against is not None:
        yield _figure("compared for leaks with", report.against)


def _judgement(report: AuditReport) -> Iterator[str]:
    """How many labels are wrong, and whether that can be told."""
    if report.vocabulary is not None and report.vocabulary.warning is not None:
        yield from (f"warning: {report.vocabulary.warning}", "")
    accuracy = f"{report.accuracy:.2%} of the labels as they are"
    if not report.can_judge:
        yield _figure("held-out accuracy", f"{report.accuracy:.2%}: too low to judge the labels")
        yield _figure("", f"always the most frequent label: {report.majority:.2%}")
        yield _figure("", f"needed, half of the way to 100 %: {report.least_accuracy:.2%}")
        yield _figure("", "below it, try another --base")
        yield _figure("estimated wrong labels", "not known")
        return
    yield _figure("estimated wrong labels", f"{report.noise:.2%}, a lower bound: errors that are made")
    yield _figure("", "the same way every time look right")
    yield _figure("held-out accuracy", accuracy)


def _confusions(report: AuditReport) -> Iterator[str]:
    if report.confusions:
        yield from ("", "labelled -> likely, estimated rows")
    for confusion in report.confusions[:_CONFUSIONS_SHOWN]:
        pair = f"  {isolated(confusion.given)} -> {isolated(confusion.likely)}"
        yield pair + " " * (_NAME_WIDTH + 2 - cell_len(pair)) + f"{confusion.rows:>9,.0f}"


def _suspects(report: AuditReport, top: int) -> Iterator[str]:
    if report.suspects and top:
        yield from ("", "labels most likely wrong" if report.can_judge else "labels that fit least")
    for suspect in report.suspects[:top]:
        labels = f"{isolated(suspect.given)} -> {isolated(suspect.suggested)}"
        yield f"  line {suspect.line}: {labels} (probability {suspect.probability:.3f})"
        yield f"    {isolated(cut(suspect.text, WIDTH - 4))}"


def _figure(name: str, value: str) -> str:
    return f"{name:<{_NAME_WIDTH}}{value}"
