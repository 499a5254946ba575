"""The report of a data check as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from newsdesk.data.check import CheckReport, LineGroups, Places
from newsdesk.data.label_faults import LabelFault
from newsdesk.data.table import Fault
from newsdesk.errors import counted

_SHOWN = 10
_LABELS_SHOWN = 20


def render_check(report: CheckReport) -> list[str]:
    """What was found, the worst first; lists are cut and say so."""
    return [
        f"{report.path}: {counted(report.rows, 'row')}, columns {', '.join(report.columns) or 'none'}",
        f"text: {' + '.join(report.text_columns) or 'none'}    label: {report.label_column or 'none'}",
        *([f"read as: {report.read_as}"] if report.read_as else []),
        *_faults("malformed rows", report.malformed),
        *_faults("encoding faults", report.encoding),
        *_places("rows without a label", report.unlabelled, "label these rows, or leave them out"),
        *_places("rows without text", report.empty, "write their texts, or leave these rows out"),
        *_label_faults(report.label_faults),
        *_groups(
            "texts under two labels", report.conflicts, fix="decide on one label, or leave these rows out"
        ),
        *_groups("texts more than once", report.duplicates),
        *_leakage(report),
        *_labels(report),
        *_lengths(report),
        *_vocabulary(report),
        "OK" if report.is_ok else "problems found",
    ]


def _faults(title: str, faults: Sequence[Fault]) -> Iterator[str]:
    if faults:
        yield f"{title}: {len(faults):,}"
        for fault in faults[:_SHOWN]:
            yield f"  line {fault.line}: {fault.wrong}" + (f" ({fault.found})" if fault.found else "")
        yield from _more(len(faults))
        yield from (f"  fix: {fix}" for fix in dict.fromkeys(fault.fix for fault in faults) if fix)


def _label_faults(faults: Sequence[LabelFault]) -> Iterator[str]:
    for fault in faults:
        yield str(fault)
        if fault.lines:
            yield f"  lines {_joined(fault.lines)}"
        yield f"  fix: {fault.fix}"


def _places(title: str, places: Places, fix: str) -> Iterator[str]:
    if places.count:
        yield f"{title}: {places.count:,}, line {_joined(places.lines)}"
        yield f"  fix: {fix}"


def _groups(title: str, groups: LineGroups, fix: str | None = None) -> Iterator[str]:
    if groups.groups:
        yield f"{title}: {groups.groups:,} ({counted(groups.rows, 'row')})"
        for lines in groups.lines[:_SHOWN]:
            yield f"  lines {_joined(lines)}"
        yield from _more(groups.groups, listed=len(groups.lines))
        yield from [f"  fix: {fix}"] if fix else []


def _leakage(report: CheckReport) -> Iterator[str]:
    leakage = report.leakage
    if leakage is None:
        return
    yield (
        f"rows of {leakage.against} that are here too: {leakage.exact:,} exactly, {leakage.near:,} nearly, "
        f"of {leakage.rows:,}"
    )
    for leak in leakage.leaks[:_SHOWN]:
        yield f"  line {leak.line} here, line {leak.other_line} there, similarity {leak.similarity:.2f}"
    yield from _more(leakage.exact + leakage.near, listed=len(leakage.leaks))
    if leakage.leaks:
        yield "  fix: leave these rows out of one of the two files"


def _labels(report: CheckReport) -> Iterator[str]:
    if not report.label_counts:
        return
    yield f"labels: {len(report.label_counts)}"
    width = max(len(label) for label in report.label_counts)
    for label, count in list(report.label_counts.items())[:_LABELS_SHOWN]:
        yield f"  {label:<{width}} {count:>9,}  {count / report.rows:>6.1%}"
    yield from _more(len(report.label_counts), shown=_LABELS_SHOWN)


def _lengths(report: CheckReport) -> Iterator[str]:
    lengths = report.token_lengths
    if lengths is None:
        return
    quantiles = ", ".join(f"{share} {tokens}" for share, tokens in lengths.quantiles.items())
    yield f"tokens a text: mean {lengths.mean:.1f}; at most: {quantiles}"
    if lengths.truncated is not None:
        yield f"  cut at {lengths.max_length}: {lengths.truncated:.1%} of the texts"


def _vocabulary(report: CheckReport) -> Iterator[str]:
    if (fit := report.vocabulary) is None:
        return
    yield f"unknown tokens: {fit.unknown:.1%}; letters a token: {fit.letters_per_token:.1f}"
    if fit.warning is not None:
        yield f"  {fit.warning}"


def _more(count: int, *, shown: int = _SHOWN, listed: int | None = None) -> Iterator[str]:
    """A last line for what is not ``shown``; ``listed`` are in the report itself, None for all."""
    if count > shown:
        where = "lists them" if listed in (None, count) else f"lists the first {listed:,}"
        yield f"  and {count - shown:,} more (--json {where})"


def _joined(lines: Sequence[int]) -> str:
    shown = ", ".join(str(line) for line in lines[:_SHOWN])
    return shown + (" ..." if len(lines) > _SHOWN else "")
