"""The check of a data file: everything in it that would harm training or flatter an evaluation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.columns import TextLayout, text_layout
from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.data.duplicates import conflicting_groups, duplicate_groups, shared_texts
from newsdesk.data.labelled import LabelFormat, TableLabels, Task, table_labels
from newsdesk.data.labels import LabelFault, LabelMatcher, class_names, folded, label_faults
from newsdesk.data.stream import read_table, read_with_faults
from newsdesk.data.table import Fault, Table
from newsdesk.data.vocabulary import VocabularyFit
from newsdesk.data.words import Reading
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
        choices: what each way to read long texts reads of all tokens, and computes for it; none without
            max_length.
    """

    mean: float
    quantiles: dict[str, int]
    max_length: int | None
    truncated: float | None
    choices: tuple[Reading, ...] = ()


@dataclass(frozen=True)
class Together:
    """Two labels that texts have together: ``share`` of the ``rows`` with ``label`` have ``other``, too."""

    label: str
    other: str
    rows: int
    share: float


@dataclass(frozen=True)
class SeveralLabels:
    """How many labels texts have that may have several.

    Attributes:
        mean: of all texts.
        most: of a text.
        without: texts without any.
        together: labels most of whose texts have another one, too, the surest first; five texts at least.
    """

    mean: float
    most: int
    without: int
    together: tuple[Together, ...] = ()


@dataclass(frozen=True)
class CheckReport:
    """What the check of a file found.

    Attributes:
        path: the file.
        rows: rows that could be read.
        columns: all its columns.
        text_columns: those that make the text.
        label_column: the one that holds the class, or all 0/1 columns; None if there is none.
        label_counts: rows of each class, the largest first; empty without labels.
        malformed: rows that could not be read, and labels beyond the classes, by line.
        encoding: bytes and characters that are not what was written, by line.
        unlabelled: rows without a label although there is a label column, and a text has to have one.
        empty: rows without text.
        duplicates: the same text (but for case and white space) more than once.
        conflicts: duplicates that do not all carry the same label.
        leakage: texts shared with a second file; None if none was given.
        token_lengths: None without a tokenizer.
        vocabulary: how well the base model's vocabulary covers the texts; None without one.
        read_as: encoding, delimiter, quote and header that the file was read with, for people.
        label_faults: what is wrong with the labels, each with its fix and lines.
        news: of news items, their format and the schemes of their subjects, for people.
        several: how many labels texts have; None where each has one.
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
    several: SeveralLabels | None = None

    @property
    def is_ok(self) -> bool:
        """Whether nothing was found that someone should fix; duplicates and long texts are no problem."""
        leaks = self.leakage is not None and bool(self.leakage.leaks)
        lists = (self.malformed, self.encoding, self.label_faults)
        counts = (self.unlabelled.count, self.empty.count, self.conflicts.rows)
        return not leaks and not any(lists) and not any(counts)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        content = asdict(self) | {
            "vocabulary": None if self.vocabulary is None else self.vocabulary.to_dict()
        }
        if self.several is None:
            del content["several"]
        return content


def check(
    path: Path,
    *,
    against: Path | None = None,
    dialect: Dialect = DETECTED,
    text: Sequence[str] | None = None,
    label: str | None = None,
    label_separator: str | None = None,
    label_columns: Sequence[str] | None = None,
    task: Task = "auto",
    template: str | None = None,
    normaliser: str = "none",
    tokenizer: Callable[[Sequence[str]], Sequence[int]] | None = None,
    vocabulary: Callable[[Sequence[str]], VocabularyFit] | None = None,
    max_length: int | None = None,
    choices: Callable[[NDArray[np.int64]], tuple[Reading, ...]] = lambda _lengths: (),
) -> CheckReport:
    """Look a data file over, and for texts that it shares with the file ``against`` (its test set, say).

    Layout flags mean what they mean to ``read_table`` and ``to_examples``. ``tokenizer`` maps texts to
    their numbers of tokens, special tokens included and nothing cut off, ``vocabulary`` to how well a base
    model's covers them, ``choices`` such numbers to what each way to read long texts reads. Raises UserError
    when the file cannot be read as a table at all, its text column is not known, or ``against`` is malformed.
    """
    form = LabelFormat.of(label, label_separator, label_columns, task)
    dialect = dialect.asking((*(text or ()), *form.columns), label, template)
    other = None if against is None else read_table(against, dialect)
    table, faults = read_with_faults(path, dialect)
    malformed = [fault for fault in faults if not fault.encoding]
    encoding = [*(fault for fault in faults if fault.encoding), *_character_faults(table)]
    report = CheckReport(str(path), encoding=_by_line(encoding), read_as=table.read_as)
    if not table.columns:  # no row could be read
        return replace(report, malformed=_by_line(malformed))
    layout = text_layout(
        table, text=text, label=label, label_columns=form.columns, template=template, normaliser=normaliser
    )
    texts = layout.texts(table)
    report = _with_labels(replace(report, rows=len(table)), table, texts, form, layout, other)
    return replace(
        report,
        columns=table.columns,
        text_columns=layout.text_columns,
        malformed=_by_line([*malformed, *report.malformed]),
        empty=_places([line for line, each in zip(table.lines, texts, strict=True) if not each.strip()]),
        duplicates=_line_groups(table, duplicate_groups(texts)),
        leakage=None if other is None else _leakage(table, texts, layout, other),
        token_lengths=None if tokenizer is None else _token_lengths(tokenizer(texts), max_length, choices),
        vocabulary=None if vocabulary is None else vocabulary(texts),
        news=_recognised(table),
    )


def _with_labels(
    report: CheckReport,
    table: Table,
    texts: Sequence[str],
    form: LabelFormat,
    layout: TextLayout,
    other: Table | None,
) -> CheckReport:
    """The report with what there is to say of labels."""
    found = table_labels(table, form, layout.text_columns)
    if found is None:
        return report
    told = {fault.line for fault in found.faults}
    without = [
        line for line, each in zip(table.lines, found.sets, strict=True) if not each and line not in told
    ]
    counts = Counter(label for _, label in found.flat())
    return replace(
        report,
        label_column=listed(found.columns),
        label_counts=dict(counts.most_common()),
        malformed=found.faults,
        unlabelled=Places() if found.is_multi else _places(without),
        several=_several(found, counts, len(without)) if found.is_multi else None,
        conflicts=_line_groups(
            table, conflicting_groups(texts, [frozenset(map(folded, each)) for each in found.sets])
        ),
        label_faults=tuple(_label_faults(table, found, form, other)),
    )


def _several(found: TableLabels, counts: Mapping[str, int], without: int) -> SeveralLabels:
    """How many labels texts have, and which go together far more often than by chance."""
    each, pairs = [len(labels) for labels in found.sets], Counter[tuple[str, str]]()
    for labels in found.sets:
        pairs.update((label, other) for label in labels for other in labels if label != other)
    together = [
        Together(label, other, counts[label], rows / counts[label])
        for (label, other), rows in pairs.items()
        if counts[label] >= _FOLDS and rows > max(0.5, 2 * counts[other] / len(each)) * counts[label]
    ]
    together.sort(key=lambda pair: (-pair.share, -pair.rows, pair.label, pair.other))
    return SeveralLabels(sum(each) / max(len(each), 1), max(each, default=0), without, tuple(together))


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
    table: Table, found: TableLabels, form: LabelFormat, other: Table | None
) -> Iterator[LabelFault]:
    """What is wrong with the labels, and the lines of the rows concerned, of ``other`` for classes there."""
    flat = found.flat()
    lines, labels = [table.lines[row] for row, _ in flat], [label for _, label in flat]
    column = "" if form.columns else found.columns[0]
    written = [*labels]
    if not found.is_multi:  # with the white space around them, where the file names the classes itself
        cells = table.column(column)
        for place, (row, label) in enumerate(flat):
            cell = cells[row]
            written[place] = cell if isinstance(cell, str) and cell.strip() == label else label
    faults = label_faults(Counter(written), column)
    yield from (fault.at(lines, written) for fault in faults)
    if any(not fault.labels for fault in faults):  # no column of classes at all
        return
    told = {label.strip() for fault in faults for label in fault.odd}
    odd = [(_rare_classes(Counter(each for each in labels if each not in told)), lines, labels)]
    there, there_lines = _labels_of_other(other, form, found.columns[0])
    if other is not None and there:
        missing, untested = _absent_classes(labels, there, other.path)
        odd += [(missing, there_lines, there), (untested, lines, labels)]
    yield from (fault.at(at, each) for fault, at, each in odd if fault.labels)


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
    here, there = Counter(labels), Counter(other_labels)
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


def _labels_of_other(other: Table | None, form: LabelFormat, column: str) -> tuple[list[str], list[int]]:
    """The labels of the other file, in the column of that name or one with a usual name, and their lines."""
    if other is None:
        return [], []
    if not form.columns:
        form = replace(form, column=column if column in other.columns else None)
    try:
        found = table_labels(other, form)
    except UserError:  # several columns could be the class, or the label columns are not there
        found = None
    flat = [] if found is None else found.flat()
    return [label for _, label in flat], [other.lines[row] for row, _ in flat]


def _leakage(table: Table, texts: Sequence[str], layout: TextLayout, other: Table) -> Leakage:
    other_texts = layout.for_table(other).texts(other)
    exact, near = shared_texts(texts, other_texts)
    shown = (*exact[:_SHOWN], *near[:_SHOWN])
    leaks = tuple(Leak(table.lines[one.match], other.lines[one.row], one.similarity) for one in shown)
    return Leakage(str(other.path), len(other), len(exact), len(near), leaks)


def _token_lengths(
    lengths: Sequence[int],
    max_length: int | None,
    choices: Callable[[NDArray[np.int64]], tuple[Reading, ...]],
) -> TokenLengths | None:
    if not len(lengths):
        return None
    counts = np.asarray(lengths)
    values = np.quantile(counts, _QUANTILES, method="inverted_cdf")
    return TokenLengths(
        mean=float(counts.mean()),
        quantiles={f"{share:.0%}": int(value) for share, value in zip(_QUANTILES, values, strict=True)},
        max_length=max_length,
        truncated=None if max_length is None else float((counts > max_length).mean()),
        choices=choices(counts),
    )


def _by_line(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    return tuple(sorted(faults, key=lambda fault: fault.line))


def _places(lines: Sequence[int]) -> Places:
    return Places(len(lines), tuple(lines[:_SHOWN]))


def _line_groups(table: Table, groups: Sequence[Sequence[int]]) -> LineGroups:
    lines = tuple(tuple(table.lines[row] for row in group) for group in groups[:_SHOWN])
    return LineGroups(len(groups), sum(map(len, groups)), lines)
