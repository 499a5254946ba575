"""The check of a data file: everything in it that would harm training or flatter an evaluation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from newsdesk.data.columns import TextLayout, label_column, labels_with_faults, text_layout
from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.data.duplicates import conflicting_groups, duplicate_groups, shared_texts
from newsdesk.data.labels import LabelFault, LabelMatcher, class_names, folded, label_faults
from newsdesk.data.stream import read_table, read_with_faults
from newsdesk.data.table import Fault, Table
from newsdesk.data.words import VocabularyFit
from newsdesk.errors import UserError, counted, listed

_SHOWN = 100  # places listed of each kind; counts are always complete
_FOLDS = 5  # of a cross-validation: a class with fewer rows is missing from some of them
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

    count: int = 0
    lines: tuple[int, ...] = ()


@dataclass(frozen=True)
class LineGroups:
    """Rows that belong together: how many groups and rows, and the lines of the first hundred groups."""

    groups: int = 0
    rows: int = 0
    lines: tuple[tuple[int, ...], ...] = ()


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
        label_faults: what is wrong with the labels, each with its fix and lines.
        news: of news items, their format and the schemes of their subjects, for people.
    """

    path: str
    rows: int = 0
    columns: tuple[str, ...] = ()
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    label_counts: dict[str, int] = field(default_factory=dict)
    malformed: tuple[Fault, ...] = ()
    encoding: tuple[Fault, ...] = ()
    unlabelled: Places = Places()
    empty: Places = Places()
    duplicates: LineGroups = LineGroups()
    conflicts: LineGroups = LineGroups()
    leakage: Leakage | None = None
    token_lengths: TokenLengths | None = None
    vocabulary: VocabularyFit | None = None
    read_as: str = ""
    label_faults: tuple[LabelFault, ...] = ()
    news: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether nothing was found that someone should fix; duplicates and long texts are no problem."""
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
    malformed = [fault for fault in faults if not fault.encoding]
    encoding = [*(fault for fault in faults if fault.encoding), *_character_faults(table)]
    report = CheckReport(str(path), encoding=_by_line(encoding), read_as=table.read_as)
    if not table.columns:  # no row could be read
        return replace(report, malformed=_by_line(malformed))
    layout = text_layout(table, text=text, label=label, template=template, normaliser=normaliser)
    texts = layout.texts(table)
    column = label_column(table, label, layout.text_columns)
    labels, not_labels = labels_with_faults(table, column) if column else ((), ())
    told = {fault.line for fault in not_labels}
    unlabelled = [
        line for line, each in zip(table.lines, labels, strict=False) if not each and line not in told
    ]
    return replace(
        report,
        rows=len(table),
        columns=table.columns,
        text_columns=layout.text_columns,
        label_column=column,
        label_counts=dict(Counter(filter(None, labels)).most_common()),
        malformed=_by_line([*malformed, *not_labels]),
        unlabelled=_places(unlabelled),
        empty=_places([line for line, each in zip(table.lines, texts, strict=True) if not each.strip()]),
        duplicates=_line_groups(table, duplicate_groups(texts)),
        conflicts=_line_groups(table, conflicting_groups(texts, [*map(folded, labels)]) if column else ()),
        leakage=None if other is None else _leakage(table, texts, layout, other),
        token_lengths=None if tokenizer is None else _token_lengths(tokenizer(texts), max_length),
        vocabulary=None if vocabulary is None else vocabulary(texts),
        label_faults=() if column is None else tuple(_label_faults(table, column, labels, other)),
        news=_recognised(table),
    )


def _recognised(table: Table) -> str:
    """What is known of news items: their format, and how many subjects they have of which scheme."""
    if not table.news:
        return ""
    entries = [entry for cell in table.column("subject") if isinstance(cell, list) for entry in cell]
    schemes = Counter(
        str(entry.get("scheme") or "none" if isinstance(entry, Mapping) else "none") for entry in entries
    )
    shown = listed([f"{scheme} ({number:,})" for scheme, number in schemes.most_common()], 8)
    return f"{table.news}; {counted(len(entries), 'subject')}" + (f", by scheme: {shown}" if shown else "")


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
    """What is wrong with the labels, and the lines of the rows concerned, of ``other`` for classes there."""
    # With the white space around them, where the file names the classes itself.
    cells = zip(table.column(column), labels, strict=True)
    written = [cell if isinstance(cell, str) and cell.strip() == label else label for cell, label in cells]
    faults = label_faults(Counter(filter(None, written)), column)
    yield from (fault.at(table.lines, written) for fault in faults)
    if any(not fault.labels for fault in faults):  # no column of classes at all
        return
    told = {label.strip() for fault in faults for label in fault.odd}
    found = [(_rare_classes(Counter(each for each in labels if each and each not in told)), table, labels)]
    there = () if other is None else _labels_of_other(other, column)
    if other is not None and any(there):
        missing, untested = _absent_classes(labels, there, other.path)
        found += [(missing, other, there), (untested, table, labels)]
    yield from (fault.at(rows.lines, each) for fault, rows, each in found if fault.labels)


def _rare_classes(counts: Mapping[str, int]) -> LabelFault:
    """Classes with fewer rows than ``_FOLDS``."""
    return LabelFault.of(
        counts,
        [label for label, rows in counts.items() if rows < _FOLDS],
        f"classes with fewer than {_FOLDS} rows: too few to learn from, and to cross-validate by",
        "label more of these, merge them into another class, or leave them out",
    )


def _absent_classes(
    labels: Sequence[str], other_labels: Sequence[str], other: Path
) -> tuple[LabelFault, LabelFault]:
    """Classes of the file ``other`` that this one does not have, and the other way round."""
    here, there = (Counter(filter(None, every)) for every in (labels, other_labels))
    names = tuple(class_names(tuple(here)))
    positions = LabelMatcher(names).positions(there) or {}  # numbers there may count the classes here
    there = Counter({names[positions[each]] if each in positions else each: n for each, n in there.items()})
    return (
        LabelFault.of(
            there,
            _unmatched(there, here),
            f"classes of {other.name} that are absent here, so that they cannot be learned",
            "correct these labels, or add rows of these classes here",
        ),
        LabelFault.of(
            here,
            _unmatched(here, there),
            f"classes that are absent from {other.name}, whose figures say nothing of them",
            "correct these labels, or add rows of these classes there",
        ),
    )


def _unmatched(labels: Collection[str], classes: Collection[str]) -> list[str]:
    matcher = LabelMatcher(tuple(classes))
    return [label for label in labels if not matcher.candidates(label)]


def _labels_of_other(other: Table, column: str) -> Sequence[str]:
    """The labels of the other file, in the column of the same name or one with a usual name."""
    if column not in other.columns:
        try:
            column = label_column(other) or ""
        except UserError:  # several could be
            return ()
    return labels_with_faults(other, column)[0] if column else ()


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


def _places(lines: Sequence[int]) -> Places:
    return Places(len(lines), tuple(lines[:_SHOWN]))


def _line_groups(table: Table, groups: Sequence[Sequence[int]]) -> LineGroups:
    lines = tuple(tuple(table.lines[row] for row in group) for group in groups[:_SHOWN])
    return LineGroups(len(groups), sum(map(len, groups)), lines)


_LINES_SHOWN = 10
_LABELS_SHOWN = 20


def render_check(report: CheckReport) -> list[str]:
    """What was found, the worst first; lists are cut and say so."""
    leave_out = "leave these rows out"
    return [
        f"{report.path}: {counted(report.rows, 'row')}, columns {', '.join(report.columns) or 'none'}",
        f"text: {' + '.join(report.text_columns) or 'none'}    label: {report.label_column or 'none'}",
        *([f"read as: {report.read_as}"] if report.read_as else []),
        *([f"news: {report.news}"] if report.news else []),
        *_faults("malformed rows", report.malformed),
        *_faults("encoding faults", report.encoding),
        *_places_found("rows without a label", report.unlabelled, f"label these rows, or {leave_out}"),
        *_places_found("rows without text", report.empty, f"write their texts, or {leave_out}"),
        *(line for fault in report.label_faults for line in _label_fault(fault)),
        *_groups("texts under two labels", report.conflicts, f"decide on one label, or {leave_out}"),
        *_groups("texts more than once", report.duplicates),
        *_leaks(report.leakage),
        *_labels(report),
        *_lengths_and_vocabulary(report),
        "OK" if report.is_ok else "problems found",
    ]


def _section(
    title: str,
    entries: Sequence[str],
    *,
    fixes: Iterable[str | None] = (),
    count: int | None = None,
    shown: int = _LINES_SHOWN,
) -> Iterator[str]:
    """A title, the first entries below it, how many more there are, and the fixes.

    ``count`` is how many were found, where the report itself lists only the first of them.
    """
    yield title
    yield from (f"  {entry}" for entry in entries[:shown])
    found = len(entries) if count is None else count
    if found > shown:
        where = "lists them" if found == len(entries) else f"lists the first {len(entries):,}"
        yield f"  and {found - shown:,} more (--json {where})"
    yield from (f"  fix: {fix}" for fix in dict.fromkeys(fixes) if fix)


def _faults(title: str, faults: Sequence[Fault]) -> Iterator[str]:
    if faults:
        found = [f"{fault.wrong} ({fault.found})" if fault.found else fault.wrong for fault in faults]
        entries = [f"line {fault.line}: {each}" for fault, each in zip(faults, found, strict=True)]
        yield from _section(f"{title}: {len(faults):,}", entries, fixes=[fault.fix for fault in faults])


def _places_found(title: str, places: Places, fix: str) -> Iterator[str]:
    if places.count:
        yield from _section(f"{title}: {places.count:,}, line {_lines(places.lines)}", (), fixes=[fix])


def _label_fault(fault: LabelFault) -> Iterator[str]:
    lines = [f"lines {_lines(fault.lines)}"] if fault.lines else []
    return _section(str(fault), lines, fixes=[fault.fix])


def _groups(title: str, groups: LineGroups, fix: str | None = None) -> Iterator[str]:
    if groups.groups:
        title = f"{title}: {groups.groups:,} ({counted(groups.rows, 'row')})"
        entries = [f"lines {_lines(lines)}" for lines in groups.lines]
        yield from _section(title, entries, fixes=[fix], count=groups.groups)


def _leaks(leakage: Leakage | None) -> Iterator[str]:
    if leakage is None:
        return
    title = (
        f"rows of {leakage.against} that are here too: {leakage.exact:,} exactly, {leakage.near:,} nearly, "
        f"of {leakage.rows:,}"
    )
    entries = [
        f"line {leak.line} here, line {leak.other_line} there, similarity {leak.similarity:.2f}"
        for leak in leakage.leaks
    ]
    fixes = ["leave these rows out of one of the two files"] if entries else []
    yield from _section(title, entries, fixes=fixes, count=leakage.exact + leakage.near)


def _labels(report: CheckReport) -> Iterator[str]:
    if counts := report.label_counts:
        width = max(map(len, counts))
        entries = [
            f"{label:<{width}} {count:>9,}  {count / report.rows:>6.1%}" for label, count in counts.items()
        ]
        yield from _section(f"labels: {len(counts)}", entries, shown=_LABELS_SHOWN)


def _lengths_and_vocabulary(report: CheckReport) -> Iterator[str]:
    if (lengths := report.token_lengths) is not None:
        quantiles = ", ".join(f"{share} {tokens}" for share, tokens in lengths.quantiles.items())
        yield f"tokens a text: mean {lengths.mean:.1f}; at most: {quantiles}"
        if lengths.truncated is not None:
            yield f"  cut at {lengths.max_length}: {lengths.truncated:.1%} of the texts"
    if (fit := report.vocabulary) is not None:
        yield f"unknown tokens: {fit.unknown:.1%}; letters a token: {fit.letters_per_token:.1f}"
        yield from [f"  {fit.warning}"] if fit.warning else []


def _lines(lines: Sequence[int]) -> str:
    shown = ", ".join(map(str, lines[:_LINES_SHOWN]))
    return shown + (" ..." if len(lines) > _LINES_SHOWN else "")
