"""The check of a data file: everything about it that would spoil training or flatter an evaluation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from newsdesk.data.columns import TextLayout, label_column, labels_with_faults, text_layout
from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.data.duplicates import conflicting_groups, duplicate_groups, shared_texts
from newsdesk.data.label_faults import LabelFault, absent_classes, label_faults, rare_classes
from newsdesk.data.labels import folded
from newsdesk.data.stream import read_table, read_with_faults
from newsdesk.data.table import Fault, Table
from newsdesk.data.words import VocabularyFit
from newsdesk.errors import UserError, counted

_SHOWN = 100  # places listed of each kind; counts are always complete
_QUANTILES = (0.5, 0.9, 0.95, 0.99, 1.0)

# UTF-8 that was read as Windows-1252 or Latin-1: a lead byte's character, then continuation bytes'.
_CONTINUATION = "[\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_CHARACTER_FAULTS = (
    (
        "UTF-8 read in another encoding",
        re.compile(
            f"[ÂÃÄÅ]{_CONTINUATION}|[âï]{_CONTINUATION}{{2}}|ð{_CONTINUATION}{{3}}|(?:[ÐÑ]{_CONTINUATION}){{2,}}"
        ),
    ),
    ("a replacement character, where a letter was lost", re.compile("\ufffd")),
    ("a control character", re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f]")),
)


@dataclass(frozen=True)
class Places:
    """How often something occurs, and the lines of its first hundred occurrences."""

    count: int
    lines: tuple[int, ...]


@dataclass(frozen=True)
class LineGroups:
    """Rows that belong together: how many groups and rows, and the lines of the first hundred groups."""

    groups: int
    rows: int
    lines: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Leak:
    """A row of the other file that is in this one too: both lines, and how similar the texts are (0 to 1)."""

    line: int
    other_line: int
    similarity: float


@dataclass(frozen=True)
class Leakage:
    """Texts that are in both files.

    Attributes:
        against: the other file.
        rows: number of rows in it.
        exact: its rows whose text is here too, but for case and white space.
        near: its rows whose text is nearly here (Jaccard similarity of shingles at least 0.8).
        leaks: both lines of the first hundred of each, exact ones first.
    """

    against: str
    rows: int
    exact: int
    near: int
    leaks: tuple[Leak, ...]


@dataclass(frozen=True)
class TokenLengths:
    """Token counts of the texts, special tokens included.

    Attributes:
        mean: average.
        quantiles: from ``50%`` to ``100%`` the number that this share of the texts does not exceed.
        max_length: where texts are cut off, if stated.
        truncated: share of the texts, in [0, 1], that are longer; None without max_length.
    """

    mean: float
    quantiles: dict[str, int]
    max_length: int | None
    truncated: float | None


@dataclass(frozen=True)
class CheckReport:
    """What the check of a file found.

    Attributes:
        path: the file.
        rows: rows that could be read.
        columns: all its columns.
        text_columns: those that make the text.
        label_column: the one that holds the class; None if there is none.
        label_counts: rows of each class, the largest first; empty without labels.
        malformed: rows that could not be read, and labels beyond the classes, by line.
        encoding: bytes and characters that are not what was written, by line.
        unlabelled: rows without a label although there is a label column.
        empty: rows without text.
        duplicates: the same text (but for case and white space) more than once.
        conflicts: duplicates that do not all carry the same label.
        leakage: texts shared with a second file; None if none was given.
        token_lengths: None without a tokenizer.
        vocabulary: how well the base model's vocabulary covers the texts; None without one.
        read_as: encoding, delimiter, quote and header that the file was read with, for people.
        label_faults: what spoils the labels, each with its fix and lines.
    """

    path: str
    rows: int
    columns: tuple[str, ...]
    text_columns: tuple[str, ...]
    label_column: str | None
    label_counts: dict[str, int]
    malformed: tuple[Fault, ...]
    encoding: tuple[Fault, ...]
    unlabelled: Places
    empty: Places
    duplicates: LineGroups
    conflicts: LineGroups
    leakage: Leakage | None
    token_lengths: TokenLengths | None
    vocabulary: VocabularyFit | None = None
    read_as: str = ""
    label_faults: tuple[LabelFault, ...] = ()

    @property
    def is_ok(self) -> bool:
        """Whether nothing was found that someone should fix; duplicates and long texts are no fault."""
        leaks = self.leakage is not None and bool(self.leakage.leaks)
        lists = (self.malformed, self.encoding, self.label_faults)
        counts = (self.unlabelled.count, self.empty.count, self.conflicts.rows)
        return not leaks and not any(lists) and not any(counts)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self) | {"vocabulary": None if self.vocabulary is None else self.vocabulary.to_dict()}


def check(
    path: Path,
    *,
    against: Path | None = None,
    dialect: Dialect = DETECTED,
    text: Sequence[str] | None = None,
    label: str | None = None,
    template: str | None = None,
    normaliser: str = "none",
    tokenizer: Callable[[Sequence[str]], Sequence[int]] | None = None,
    vocabulary: Callable[[Sequence[str]], VocabularyFit] | None = None,
    max_length: int | None = None,
) -> CheckReport:
    """Look a data file over, and for texts that it shares with the file ``against`` (its test set, say).

    Layout flags mean what they mean to ``read_table`` and ``to_examples``. ``tokenizer`` maps texts to
    their numbers of tokens, special tokens included and nothing cut off, ``vocabulary`` to how well a base
    model's covers them. Raises UserError when the file cannot be read as a table at all, its text column is
    not known, or ``against`` is malformed.
    """
    dialect = dialect.asking(text, label, template)
    other = None if against is None else read_table(against, dialect)
    table, faults = read_with_faults(path, dialect)
    if not table.columns:
        return _unreadable(table, faults)
    layout = text_layout(table, text=text, label=label, template=template, normaliser=normaliser)
    texts = layout.texts(table)
    column = label_column(table, label, layout.text_columns)
    labels, label_faults = labels_with_faults(table, column) if column else ((), ())
    beyond = {fault.line for fault in label_faults}
    missing = (line for line, one in zip(table.lines, labels, strict=False) if not one and line not in beyond)
    malformed = [*(fault for fault in faults if not fault.encoding), *label_faults]
    encoding = [*(fault for fault in faults if fault.encoding), *_character_faults(table)]
    return CheckReport(
        path=str(path),
        rows=len(table),
        columns=table.columns,
        text_columns=layout.text_columns,
        label_column=column,
        label_counts=dict(Counter(filter(None, labels)).most_common()),
        malformed=_by_line(malformed),
        encoding=_by_line(encoding),
        unlabelled=_places(missing),
        empty=_places(line for line, one in zip(table.lines, texts, strict=True) if not one.strip()),
        duplicates=_line_groups(table, duplicate_groups(texts)),
        conflicts=_line_groups(table, conflicting_groups(texts, [*map(folded, labels)]) if column else ()),
        leakage=None if other is None else _leakage(table, texts, layout, other),
        token_lengths=None if tokenizer is None else _token_lengths(tokenizer(texts), max_length),
        vocabulary=None if vocabulary is None else vocabulary(texts),
        read_as=table.read_as,
        label_faults=() if column is None else tuple(_label_faults(table, column, labels, other)),
    )


def _unreadable(table: Table, faults: Iterable[Fault]) -> CheckReport:
    """The report on a file of which no row could be read."""
    nowhere, no_groups = Places(0, ()), LineGroups(0, 0, ())
    return CheckReport(
        path=str(table.path),
        read_as=table.read_as,
        rows=0,
        columns=(),
        text_columns=(),
        label_column=None,
        label_counts={},
        malformed=_by_line(fault for fault in faults if not fault.encoding),
        encoding=_by_line(fault for fault in faults if fault.encoding),
        unlabelled=nowhere,
        empty=nowhere,
        duplicates=no_groups,
        conflicts=no_groups,
        leakage=None,
        token_lengths=None,
    )


def _character_faults(table: Table) -> Iterator[Fault]:
    """A fault for each kind of suspicious character in each row."""
    for line, row in zip(table.lines, table.rows, strict=True):
        whole = "\n".join(cell for cell in row if isinstance(cell, str))
        if whole.isascii() and whole.isprintable():
            continue
        for wrong, pattern in _CHARACTER_FAULTS:
            if match := pattern.search(whole):
                nearby = whole[max(0, match.start() - 20) : match.end() + 20]
                yield Fault(line, wrong, f"{match[0]!r} in {nearby!r}", "fix the text", encoding=True)


def _label_faults(
    table: Table, column: str, labels: Sequence[str], other: Table | None
) -> Iterator[LabelFault]:
    """What spoils the labels, with the lines of the rows concerned; lines of ``other`` for classes there."""
    written = _as_written(table, column, labels)
    counts = Counter(filter(None, written))
    faults = list(label_faults(counts, column))
    for fault in faults:
        yield fault.at(table.lines, written)
    if any(not fault.labels for fault in faults):  # no column of classes at all
        return
    told = {label.strip() for fault in faults for label in fault.odd}
    for fault in rare_classes(Counter(label for label in labels if label and label not in told)):
        yield fault.at(table.lines, labels)
    if other is None:
        return
    there = _labels_of_other(other, column)
    if not any(there):
        return
    missing, untested = absent_classes(
        Counter(filter(None, labels)), Counter(filter(None, there)), other.path
    )
    if missing.labels:
        yield missing.at(other.lines, there)
    if untested.labels:
        yield untested.at(table.lines, labels)


def _labels_of_other(other: Table, column: str) -> Sequence[str]:
    """The labels of the other file, in the column of the same name or one with a usual name."""
    if column not in other.columns:
        try:
            column = label_column(other) or ""
        except UserError:  # several could be
            return ()
    return labels_with_faults(other, column)[0] if column else ()


def _as_written(table: Table, column: str, labels: Sequence[str]) -> list[str]:
    """The labels with the white space around them, where the file names them itself."""
    cells = zip(table.column(column), labels, strict=True)
    return [cell if isinstance(cell, str) and cell.strip() == label else label for cell, label in cells]


def _leakage(table: Table, texts: Sequence[str], layout: TextLayout, other: Table) -> Leakage:
    other_texts = layout.for_table(other).texts(other)
    exact, near = shared_texts(texts, other_texts)
    shown = (*exact[:_SHOWN], *near[:_SHOWN])
    leaks = tuple(Leak(table.lines[one.match], other.lines[one.row], one.similarity) for one in shown)
    return Leakage(str(other.path), len(other), len(exact), len(near), leaks)


def _token_lengths(lengths: Sequence[int], max_length: int | None) -> TokenLengths | None:
    if not len(lengths):
        return None
    counts = np.asarray(lengths)
    values = np.quantile(counts, _QUANTILES, method="inverted_cdf")
    return TokenLengths(
        mean=float(counts.mean()),
        quantiles={f"{share:.0%}": int(value) for share, value in zip(_QUANTILES, values, strict=True)},
        max_length=max_length,
        truncated=None if max_length is None else float((counts > max_length).mean()),
    )


def _by_line(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    return tuple(sorted(faults, key=lambda fault: fault.line))


def _places(lines: Iterable[int]) -> Places:
    every = tuple(lines)
    return Places(len(every), every[:_SHOWN])


def _line_groups(table: Table, groups: Sequence[Sequence[int]]) -> LineGroups:
    lines = tuple(tuple(table.lines[row] for row in group) for group in groups[:_SHOWN])
    return LineGroups(len(groups), sum(map(len, groups)), lines)


_LINES_SHOWN = 10
_LABELS_SHOWN = 20


def render_check(report: CheckReport) -> list[str]:
    """What was found, the worst first; lists are cut and say so."""
    return [
        f"{report.path}: {counted(report.rows, 'row')}, columns {', '.join(report.columns) or 'none'}",
        f"text: {' + '.join(report.text_columns) or 'none'}    label: {report.label_column or 'none'}",
        *([f"read as: {report.read_as}"] if report.read_as else []),
        *_faults("malformed rows", report.malformed),
        *_faults("encoding faults", report.encoding),
        *_place_lines("rows without a label", report.unlabelled, "label these rows, or leave them out"),
        *_place_lines("rows without text", report.empty, "write their texts, or leave these rows out"),
        *_label_fault_lines(report.label_faults),
        *_groups(
            "texts under two labels", report.conflicts, fix="decide on one label, or leave these rows out"
        ),
        *_groups("texts more than once", report.duplicates),
        *_leakage_lines(report),
        *_labels(report),
        *_lengths(report),
        *_vocabulary(report),
        "OK" if report.is_ok else "problems found",
    ]


def _faults(title: str, faults: Sequence[Fault]) -> Iterator[str]:
    if faults:
        yield f"{title}: {len(faults):,}"
        for fault in faults[:_LINES_SHOWN]:
            yield f"  line {fault.line}: {fault.wrong}" + (f" ({fault.found})" if fault.found else "")
        yield from _more(len(faults))
        yield from (f"  fix: {fix}" for fix in dict.fromkeys(fault.fix for fault in faults) if fix)


def _label_fault_lines(faults: Sequence[LabelFault]) -> Iterator[str]:
    for fault in faults:
        yield str(fault)
        if fault.lines:
            yield f"  lines {_joined(fault.lines)}"
        yield f"  fix: {fault.fix}"


def _place_lines(title: str, places: Places, fix: str) -> Iterator[str]:
    if places.count:
        yield f"{title}: {places.count:,}, line {_joined(places.lines)}"
        yield f"  fix: {fix}"


def _groups(title: str, groups: LineGroups, fix: str | None = None) -> Iterator[str]:
    if groups.groups:
        yield f"{title}: {groups.groups:,} ({counted(groups.rows, 'row')})"
        for lines in groups.lines[:_LINES_SHOWN]:
            yield f"  lines {_joined(lines)}"
        yield from _more(groups.groups, listed=len(groups.lines))
        yield from [f"  fix: {fix}"] if fix else []


def _leakage_lines(report: CheckReport) -> Iterator[str]:
    leakage = report.leakage
    if leakage is None:
        return
    yield (
        f"rows of {leakage.against} that are here too: {leakage.exact:,} exactly, {leakage.near:,} nearly, "
        f"of {leakage.rows:,}"
    )
    for leak in leakage.leaks[:_LINES_SHOWN]:
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


def _more(count: int, *, shown: int = _LINES_SHOWN, listed: int | None = None) -> Iterator[str]:
    """A last line for what is not ``shown``; ``listed`` are in the report itself, None for all."""
    if count > shown:
        where = "lists them" if listed in (None, count) else f"lists the first {listed:,}"
        yield f"  and {count - shown:,} more (--json {where})"


def _joined(lines: Sequence[int]) -> str:
    shown = ", ".join(str(line) for line in lines[:_LINES_SHOWN])
    return shown + (" ..." if len(lines) > _LINES_SHOWN else "")
