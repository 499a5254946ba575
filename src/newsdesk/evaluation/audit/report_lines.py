"""An audit as plain lines for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from newsdesk.evaluation.audit.changes import Changes
from newsdesk.evaluation.audit.findings import DUPLICATES, LABEL_ERRORS, LEAKAGE, AuditReport
from newsdesk.evaluation.tables import WIDTH, cut

_CONFUSIONS_SHOWN = 6
_NAME_WIDTH = 28


def render_audit(report: AuditReport, *, top: int) -> list[str]:
    """Counts, the labels confused most, and the ``top`` suspects, two lines each."""
    return [
        f"{report.source}: {report.rows:,} rows, {len(report.label_counts)} labels",
        "",
        *_counts(report),
        *_confusions(report),
        *_suspects(report, top),
    ]


def render_changes(changes: Changes, rows: int, target: str) -> list[str]:
    """What a cleaned copy has of the data's ``rows``, and what was done to the others."""
    done = changes.to_dict()
    lines = [f"{target}: {rows - len(changes.drop):,} of {rows:,} rows"]
    lines += [f"  {count:,} dropped: {reason}" for reason, count in done["dropped"].items()]
    return lines + ([f"  {done['relabelled']:,} given another label"] if changes.relabel else [])


def _counts(report: AuditReport) -> Iterator[str]:
    places = {"label errors": LABEL_ERRORS, "exact duplicates": DUPLICATES, "leaked exactly": LEAKAGE}
    yield _figure("estimated wrong labels", f"{report.noise:.2%}")
    yield _figure("held-out accuracy", f"{report.accuracy:.2%} of the labels as they are")
    if report.unjudged:
        yield _figure("not judged", f"{report.unjudged:,} rows: no other text has their label")
    for name, count in report.counts.items():
        if report.against is None and name.startswith("leaked"):
            continue
        where = f"  ({places[name]})" if name in places else ""
        yield _figure(name, f"{count:>7,}{where}")
    if report.against is not None:
        yield _figure("leaks looked for in", report.against)


def _confusions(report: AuditReport) -> Iterator[str]:
    if report.confusions:
        yield from ("", "labelled -> likely, estimated rows")
    for confusion in report.confusions[:_CONFUSIONS_SHOWN]:
        yield f"  {confusion.given} -> {confusion.likely}".ljust(_NAME_WIDTH + 2) + f"{confusion.rows:>9,.0f}"


def _suspects(report: AuditReport, top: int) -> Iterator[str]:
    if report.suspects and top:
        yield from ("", "labels most likely wrong")
    for suspect in report.suspects[:top]:
        yield (
            f"  line {suspect.line}: {suspect.given} -> {suspect.suggested} "
            f"(probability {suspect.probability:.3f})"
        )
        yield f"    {cut(suspect.text, WIDTH - 4)}"


def _figure(name: str, value: str) -> str:
    return f"{name:<{_NAME_WIDTH}}{value}"
