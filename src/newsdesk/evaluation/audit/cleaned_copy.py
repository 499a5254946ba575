"""A cleaned copy of the data: what an editor decided, and which kinds of findings are dropped."""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from newsdesk.data.dialect import Dialect
from newsdesk.data.encoding import UTF8
from newsdesk.data.labelled import LabelSet
from newsdesk.data.labels import LabelMatcher
from newsdesk.data.stream import format_of, read_table
from newsdesk.data.table import Cell, Table
from newsdesk.errors import UserError
from newsdesk.evaluation.audit.findings import (
    DECISION,
    FINDING,
    LABEL_ERRORS,
    QUALITY,
    AuditReport,
    Judgement,
)
from newsdesk.evaluation.predicted_rows import labels_of
from newsdesk.files import write_bytes
from newsdesk.prediction.predictions import delimited_lines

KINDS = ("label-errors", "duplicates", "near-duplicates", "conflicts", "leaks")
"""What can be dropped without anyone having looked at it."""

_RELABEL = "relabel"
_RELABEL_TO = "relabel to "


@dataclass(frozen=True)
class Changes:
    """What happens to rows, by 0-based position.

    Attributes:
        drop: rows to leave out, and why.
        relabel: rows to give another label, and which; where a text may have several, all of them.
        keep: rows an editor decided to keep as they are; nothing drops them.
    """

    drop: dict[int, str]
    relabel: dict[int, str | LabelSet]
    keep: frozenset[int] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """How many rows were dropped for which reason, and how many given another label, as JSON values."""
        return {"dropped": dict(Counter(self.drop.values())), "relabelled": len(self.relabel)}


def decide(report: AuditReport, kinds: Collection[str], decisions: Changes | None) -> Changes:
    """The editor's decisions, and beyond them the rows of the ``kinds`` of findings to drop.

    A decision on a row stands whatever else was found of it. Of duplicates the first row is kept, and those
    of conflicting ones are no plain duplicates. Raises UserError when neither says anything, since nothing is
    dropped unasked, and when label errors are to be dropped that the audit could not judge.
    """
    if not kinds and decisions is None:
        raise UserError(
            "nothing says what the cleaned copy should leave out",
            found="--apply without --decisions and without --drop",
            fix=f"fill the column {DECISION!r} of {LABEL_ERRORS} and name it with --decisions, "
            f"or name what to drop: {', '.join(f'--drop {kind}' for kind in KINDS)}",
        )
    if "label-errors" in kinds and not report.can_judge:
        figure = "accuracy" if report.several is None else "micro F1"
        raise UserError(
            "this audit cannot tell which labels are wrong",
            found=f"held-out {figure} {report.accuracy:.1%}; {report.least_accuracy:.1%} or more is needed",
            fix="leave out --drop label-errors, or audit with another --base",
        )
    decided = decisions or Changes({}, {})
    copies = [twin for twin in report.duplicates if not twin.conflict]
    found: dict[str, Sequence[int]] = {
        "label-errors": [suspect.row for suspect in report.suspects],
        "duplicates": [twin.row for twin in copies if twin.exact],
        "near-duplicates": [twin.row for twin in copies if not twin.exact],
        "conflicts": report.conflicting_rows,
        "leaks": [twin.row for twin in report.leaks],
    }
    drop = dict(decided.drop)
    for kind in filter(set(kinds).__contains__, KINDS):
        for row in found[kind]:
            if row not in decided.relabel and row not in decided.keep:
                drop.setdefault(row, kind)
    return Changes(drop, decided.relabel, decided.keep)


def read_decisions(path: Path, report: AuditReport) -> Changes:
    """The decisions in a copy of label-errors.csv or quality.csv: keep, drop, relabel, relabel to LABEL.

    Where a text may have several labels, a decision on a finding is about its label alone, and LABEL is all
    labels of the text, as these files join them. Rows without a decision stay as they are. Raises UserError,
    by line, for any other decision, a label that the data does not have, rows that are not those of this
    audit, and decisions that contradict each other.
    """
    table = read_table(path, Dialect(header=True))
    missing = {"row", "line", "given", DECISION} - set(table.columns)
    if missing:
        raise UserError(
            f"{path.name} is not a list of decisions",
            found=f"columns {', '.join(table.columns)}; missing: {', '.join(sorted(missing))}",
            fix=f"give --decisions a filled copy of {LABEL_ERRORS} or {QUALITY}",
        )
    judgements = {(str(one.row), str(one.line), one.given): one for one in report.judgements}
    decided: list[_Decision] = []
    for line, record in zip(table.lines, table.records(), strict=True):
        decision = str(record[DECISION] or "").strip()
        if not decision:
            continue
        judgement = judgements.get((str(record["row"]), str(record["line"]), str(record["given"] or "")))
        label = str(record.get("label") or "") if FINDING in table.columns else None
        if judgement is None or (label is not None and label not in report.label_counts):
            raise UserError(
                f"{path.name}, line {line}: this row is not in the audited data",
                found="its row, line and given label match no row of it",
                fix=f"fill in the {LABEL_ERRORS} or {QUALITY} of an audit of this data as it is now",
            )
        decided.append(_Decision(f"{path.name}, line {line}", decision, judgement, label))
    labels = list(report.label_counts)
    return _of_single(decided, labels) if report.several is None else _of_sets(decided, labels)


@dataclass(frozen=True)
class _Decision:
    """What an editor wrote on a row: where, what, and on which label's finding, if on one."""

    place: str
    text: str
    row: Judgement
    label: str | None

    def __str__(self) -> str:
        return self.text.lower()


def _of_single(decided: Sequence[_Decision], labels: Sequence[str]) -> Changes:
    changes, keep = Changes({}, {}), set()
    for one in decided:
        if str(one) == "drop":
            changes.drop[one.row.row] = "decided"
        elif str(one) == "keep":
            keep.add(one.row.row)
        else:
            changes.relabel[one.row.row] = _new_label(one.place, one.text, one.row, labels)
    return replace(changes, keep=frozenset(keep))


def _of_sets(decided: Sequence[_Decision], labels: Sequence[str]) -> Changes:
    """What becomes of each row by all decisions on it and on its labels, which may not contradict."""
    wanted: dict[int, dict[str, bool] | None] = {}  # None: the row is dropped
    given: dict[int, LabelSet] = {}
    for one in decided:
        row = one.row.row
        given[row] = labels_of(one.row.given)
        now = None if str(one) == "drop" else _labels_wanted(one, given[row], labels)
        before = wanted.get(row, now)
        differs = any((before or {}).get(label, has) != has for label, has in (now or {}).items())
        if differs or (now is None) != (before is None):
            raise UserError(
                f"{one.place}: another line decides otherwise on the same text",
                found=f"the decision {one.text!r} on {one.label or one.row.given or 'a text without labels'}",
                fix="keep one of the two decisions",
            )
        wanted[row] = None if now is None else {**(before or {}), **now}
    changes, keep = Changes({}, {}), set()
    for row, of_labels in wanted.items():
        new = () if of_labels is None else _applied(of_labels, given[row], labels)
        if of_labels is None:
            changes.drop[row] = "decided"
        elif set(new) == set(given[row]):
            keep.add(row)
        else:
            changes.relabel[row] = new
    return replace(changes, keep=frozenset(keep))


def _applied(wanted: Mapping[str, bool], given: LabelSet, labels: Sequence[str]) -> LabelSet:
    return tuple(label for label in labels if wanted.get(label, label in given))


def _labels_wanted(one: _Decision, given: LabelSet, labels: Sequence[str]) -> dict[str, bool]:
    """Which labels the text of a decision should have, and which not, as far as it says."""
    keeps = str(one) == "keep"
    if one.label is not None and str(one) in ("keep", _RELABEL):
        return {one.label: (one.label in given) == keeps}
    new = given if keeps else _new_labels(one, labels)
    return {label: label in new for label in labels}


def _new_labels(one: _Decision, labels: Sequence[str]) -> LabelSet:
    """All labels that a decision to relabel names."""
    if str(one) == _RELABEL:
        return labels_of(_suggested(one.place, one.text, one.row))
    new = one.text[len(_RELABEL_TO) :].strip() if str(one).startswith(_RELABEL_TO) else None
    try:
        parts = () if new is None else tuple(filter(None, map(str.strip, labels_of(new))))
    except (ValueError, RecursionError):  # a [ that begins no list
        parts = (new or "",)
    matcher = LabelMatcher(labels)
    unknown = [part for part in parts if matcher.match(part) is None]
    if new is None or unknown:
        raise _no_decision(one.place, one.text, next(iter(unknown), None), labels)
    return tuple(labels[found] for found in map(matcher.match, parts) if found is not None)


def _new_label(place: str, decision: str, row: Judgement, labels: Sequence[str]) -> str:
    """The label that a decision to relabel names."""
    if decision.lower() == _RELABEL:
        return _suggested(place, decision, row)
    label = decision[len(_RELABEL_TO) :].strip() if decision.lower().startswith(_RELABEL_TO) else None
    found = None if label is None else LabelMatcher(labels).match(label)
    if found is not None:
        return labels[found]
    raise _no_decision(place, decision, label, labels)


def _suggested(place: str, decision: str, row: Judgement) -> str:
    if row.suggested == row.given or row.quality is None:
        raise UserError(
            f"{place}: the audit suggests no other label for this row",
            found=f"the decision {decision!r} on a row labelled {row.given!r}",
            fix="write relabel to LABEL, keep or drop",
        )
    return row.suggested


def _no_decision(place: str, decision: str, label: str | None, labels: Sequence[str]) -> UserError:
    unknown = f"{decision!r} is not a decision" if label is None else f"no row is labelled {label!r}"
    return UserError(
        f"{place}: {unknown}",
        found=None if label is None else f"labels of the data: {', '.join(labels)}",
        fix="write keep, drop, relabel (as suggested), or relabel to LABEL",
    )


_FORMATS = ("csv", "tsv", "tab", "txt", "jsonl", "ndjson", "parquet")


def require_free_target(table: Table, target: Path) -> None:
    """Raise UserError unless ``target`` is a new file of the same format as the table's own."""
    if target.exists() or target.is_symlink():
        own = target.exists() and target.samefile(table.path)
        raise UserError(
            "a cleaned copy is a new file" if own else f"there is something at {target} already",
            found=f"{target} is the data itself, which is never changed" if own else None,
            fix="give --apply a name that is free",
        )
    form = "a folder" if table.path.is_dir() else format_of(table.path)[0]
    if form not in _FORMATS or len(set(table.lines)) < len(table):
        raise UserError(
            "a cleaned copy can be written of a csv, tsv, jsonl or parquet file",
            found=f"{table.path} ({form})",
            fix="convert the data to one of these first, or leave --apply out",
        )
    if format_of(target)[0] != form:
        raise UserError(
            f"a cleaned copy has the format of the data, {form}",
            found=target.name,
            fix=f"name it, for example, --apply {target.with_suffix('').name}.{form}",
        )


def write_cleaned(
    table: Table, target: Path, *, drop: Collection[int], relabel: Mapping[int, Mapping[str, Cell]]
) -> None:
    """Write a copy of the table's file without the rows of ``drop``, and with other cells for the label.

    Positions are 0-based rows of ``table``, which must be the whole file. ``relabel`` gives rows other cells
    by column, as the file writes classes. Text formats keep every other line byte for byte, and the
    relabelled ones their delimiter, quote and encoding; parquet keeps columns, types and metadata. A target
    that ends in .gz is compressed. Raises UserError as ``require_free_target`` does.
    """
    require_free_target(table, target)
    form, compressed = format_of(target)
    if form == "parquet":
        content = _parquet(table.path, set(drop), relabel)
    else:
        content = _text(table, form, set(drop), relabel)
    write_bytes(target, gzip.compress(content, mtime=0) if compressed else content)


def _text(table: Table, form: str, drop: set[int], relabel: Mapping[int, Mapping[str, Cell]]) -> bytes:
    raw = table.path.read_bytes()
    raw = gzip.decompress(raw) if format_of(table.path)[1] else raw
    dialect = table.dialect or Dialect()
    encoding = original = dialect.encoding or UTF8
    if original.startswith(("utf-16", "utf-32")):  # in which a line feed is more than one byte
        raw, encoding = raw.decode(original).encode(), UTF8
    lines = raw.splitlines(keepends=True) if b"\n" not in raw else io.BytesIO(raw).readlines()
    starts = [line - 1 for line in table.lines]
    written = lines[: starts[0]]
    for row, (start, stop) in enumerate(zip(starts, [*starts[1:], len(lines)], strict=True)):
        if row in drop:
            continue
        if row not in relabel:
            written += lines[start:stop]
        elif form in ("jsonl", "ndjson"):
            values = json.loads(lines[start].decode(encoding).removeprefix("\ufeff")) | relabel[row]
            line = json.dumps(values, ensure_ascii=False) + "\n"
            written += [line.encode(encoding), *lines[start + 1 : stop]]  # blank lines after it stay
        else:
            named = zip(table.columns, table.rows[row], strict=True)
            cells = [relabel[row].get(name, cell) for name, cell in named]
            delimiter = dialect.delimiter or ("," if form == "csv" else "\t")
            (cleaned,) = delimited_lines([cells], delimiter, dialect.quote or '"')
            end = next((end for end in (b"\r\n", b"\r") if lines[stop - 1].endswith(end)), b"\n")
            written.append(cleaned[:-1].decode().encode(encoding) + end)
    content = b"".join(written)
    return content if encoding == original else content.decode().encode(original)


def _parquet(path: Path, drop: set[int], relabel: Mapping[int, Mapping[str, Cell]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    for column in dict.fromkeys(column for cells in relabel.values() for column in cells):
        position = table.schema.get_field_index(column)
        field, held = table.schema.field(position), table.column(position).to_pylist()
        cells = [relabel.get(row, {}).get(column, cell) for row, cell in enumerate(held)]
        table = table.set_column(position, field, pyarrow.array(cells, type=field.type))
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table.take([row for row in range(len(table)) if row not in drop]), buffer)
    return buffer.getvalue()
