"""JSON: one object a line, or one array of objects, each with keys of its own."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from typing import Any, NoReturn

from newsdesk.data.bounds import hopeful
from newsdesk.data.encoding import MARK, UTF8, LineReader, not_decoded
from newsdesk.data.ninjs import is_item, ninjs_version
from newsdesk.data.table import BadRow, Cell, Fault, Limits, Row, RowStream, Table, too_deep
from newsdesk.errors import UserError

HEAD = 1 << 16
"""Bytes from a file's beginning that tell its shape."""

_SPACE = " \t\r\n"
_LEADING = b"\xef\xbb\xbf \t\r\n"
_SPACES = re.compile(f"[{_SPACE}]+")
_MARKS = {
    "value": re.compile(r'["{}\[\]]'),
    "text": re.compile(r'["\\]'),
    "number": re.compile(r"[,\]\s]"),
}
"""What to look for within a value that is skipped: where its parts begin and end."""
_BLOCK = 1 << 20


def json_rows(lines: LineReader, head: bytes, *, sample: int | None) -> RowStream:
    """The objects of a file, each row under its own keys.

    An array's objects are rows, and so are objects that span lines, one after the other; otherwise each
    line holds one, and blank lines are skipped: ``head``, the file's beginning, decides. The columns are the
    keys of the first ``sample`` rows (None: of all), in the order in which they first appear. Raises
    UserError for a single object that holds the rows, or columns, within.
    """
    are_lines = _is_lines(head)
    found = hopeful(_lines(lines) if are_lines else _values(lines), lines.path)
    rows = _within(found, lines.limits, sample)
    if sample is None:  # to be kept, which takes no second copy of them
        rows = (replace(row, source=None) if isinstance(row, Row) else row for row in rows)
    sampled = list(islice(rows, sample))
    records = [row.record(()) for row in sampled if isinstance(row, Row)]
    items = list(filter(is_item, records))
    if len(records) == len(sampled) == 1 and not items:
        _refuse_wrapped(records[0], lines)
    columns = tuple(dict.fromkeys(key for record in records for key in record))
    versions = sorted({str(ninjs_version(item)) for item in items})
    news = f"ninjs {', '.join(versions)}" if 2 * len(items) > len(records) else ""
    table = Table(lines.path, columns, news=news, notes=tuple(filter(None, [news])))
    in_array = not are_lines and head.lstrip(_LEADING).startswith(b"[")
    return RowStream(table, chain(sampled, rows), in_array=in_array)


def _within(rows: Iterator[Row | BadRow], limits: Limits, sample: int | None) -> Iterator[Row | BadRow]:
    """The rows; of those that columns are read off, one that would bring too many new keys is a bad one."""
    known: set[str] = set()
    keys: tuple[str, ...] = ()
    for row in islice(rows, sample):
        if isinstance(row, Row) and row.keys != keys:
            keys = row.keys or ()
            if len(known.union(keys)) > limits.columns:
                fault = limits.too_wide(row.line, len(known.union(keys)))
                yield BadRow(fault, json.dumps(row.record(()), default=str).encode())
                keys = ()
                continue
            known.update(keys)
        yield row
    yield from rows


def _is_lines(head: bytes) -> bool:
    """Whether each line is a value of its own, going by the first one."""
    text = head.decode(errors="replace").lstrip("\ufeff" + _SPACE)
    first, _, others = text.partition("\n")
    if text.startswith("["):
        return _holds_value(first) and bool(others.strip())  # else it is the array that holds all rows
    if not text.startswith("{") or _holds_value(first):
        return True
    spans_the_head = first.strip() == "{" and len(head) >= HEAD
    return not (spans_the_head or _holds_value(text, json.JSONDecoder().raw_decode))


def _holds_value(text: str, decode: Callable[[str], object] = json.loads) -> bool:
    try:
        decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(lines: LineReader) -> Iterator[Row | BadRow]:
    for line in lines:
        if line.fault is not None:
            yield BadRow(line.fault, line.raw)
        elif line.text.strip():
            try:
                yield _row(line.number, _DECODER.decode(line.text), line.text, lines.limits)
            except json.JSONDecodeError as error:
                found = f"{error.msg} at character {error.pos + 1}"
                fix = "write one whole JSON object a line; jq -c . FILE rewrites objects that span lines"
                yield BadRow(Fault(line.number, "broken JSON", found, fix), line.raw)
            except (ValueError, RecursionError) as error:
                yield BadRow(_unusable(line.number, error), line.raw)


class _TooLongError(Exception):
    """A value is longer than any row."""


class _Text:
    """The text of a file from block to block: no more of it in memory than a value takes."""

    def __init__(self, lines: LineReader) -> None:
        self.text = ""
        self.at = 0
        self._blocks, self._longest = lines.blocks(), lines.longest
        self._decoder = codecs.getincrementaldecoder("utf-8")("newsdesk-mark")
        self._line, self._counted = 1, 0

    @property
    def line(self) -> int:
        """The line of the position, from 1."""
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def more(self) -> bool:
        """Read on, and drop what is before the position; False at the end."""
        assert self.line
        blocks = list(islice(self._blocks, max(1, (len(self.text) - self.at) // _BLOCK)))
        self.text = self.text[self.at :] + self._decoder.decode(b"".join(blocks), final=not blocks)
        self.at = self._counted = 0
        return bool(blocks)

    def character(self) -> str:
        """The next character that is not space, which the position is put on; empty at the end."""
        while True:
            if spaces := _SPACES.match(self.text, self.at):
                self.at = spaces.end()
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def value(self, decoder: json.JSONDecoder) -> tuple[Any, str]:
        """The value at the position, and its text; the position is put after it."""
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                at_the_end = error.msg.startswith("Unterminated") or error.pos + 1000 > len(self.text)
                if at_the_end and len(self.text) - self.at > self._longest:
                    raise _TooLongError from None
                if not at_the_end or not self.more():
                    raise
                continue
            text, self.at = self.text[self.at : end], end
            return value, text

    def skip(self) -> None:
        """Put the position after the value there, or at the file's end, without keeping or reading it."""
        depth, within = 0, "value" if self.character() in '{["' else "number"
        while self.at < len(self.text) or self.more():
            found = _MARKS[within].search(self.text, self.at)
            self.at = len(self.text) if found is None else found.end()
            if found is None:
                continue
            if within == "number":
                self.at = found.start()
                return
            if found[0] == "\\":  # and what it stands before
                if self.at == len(self.text):
                    self.more()
                self.at += 1
            elif found[0] == '"':
                within = "value" if within == "text" else "text"
            else:
                depth += 1 if found[0] in "{[" else -1
            if depth <= 0 and within == "value":
                return


def _values(lines: LineReader) -> Iterator[Row | BadRow]:
    """The objects of an array, or objects one after the other, on as many lines as they take."""
    source = _Text(lines)
    array = source.character() == "["
    source.at += array
    while (character := source.character()) and not (array and character == "]"):
        if character == ",":
            source.at += 1
            continue
        line = source.line
        try:
            value, text = source.value(_DECODER)
        except json.JSONDecodeError as error:
            if not lines.broken_off:
                found = f"{error.msg}, {error.lineno - 1:,} lines below" if error.lineno > 1 else error.msg
                fault = Fault(line, "broken JSON", found, "fix it there, or write one object a line")
                yield BadRow(fault, b"", ends_file=True)
            return
        except _TooLongError:
            found = f"more than {lines.longest:,} characters in one object"
            fix = "cut its texts, or raise the limit: --max-characters"
            source.skip()
            yield BadRow(Fault(line, "a row is too long", found, fix), b"")
        except (ValueError, RecursionError) as error:
            yield BadRow(_unusable(line, error), _raw(source))
        else:
            yield _row(line, value, text, lines.limits)
    if array and not lines.broken_off:
        source.at += 1
        if not character or source.character():
            wrong = "something follows the array" if character else "the array is never closed"
            yield BadRow(Fault(source.line, wrong, None, "write the file again"), b"", ends_file=True)


def _raw(source: _Text) -> bytes:
    """The value at the position, which is put after it; nothing of one that cannot be read at all."""
    try:
        _, text = source.value(json.JSONDecoder())
    except (ValueError, RecursionError, _TooLongError):
        source.skip()
        return b""
    return text.encode(errors="replace")


def _refuse_wrapped(record: Mapping[str, Cell], lines: LineReader) -> None:
    """Raise UserError for a file's only object if the rows are within: as a list, or by column."""
    lists = [
        key
        for key, cell in record.items()
        if isinstance(cell, list) and any(isinstance(entry, dict) for entry in cell)
    ]
    columns = len(record) > 1 and all(
        isinstance(cell, dict | list) and len(cell) > 1 for cell in record.values()
    )
    if not lists and not columns:
        return
    name = lines.path.name
    raise UserError(
        f"{name} is one JSON object, not a list of rows",
        found=f"keys: {', '.join(list(record)[:8])}",
        fix=f"jq -c '.{lists[0]}[]' {name} > rows.jsonl"
        if lists
        else "write rows instead, as pandas does: to_json('rows.jsonl', orient='records', lines=True)",
    )


def _row(line: int, value: object, text: str, limits: Limits) -> Row | BadRow:
    """The row of a value that was decoded from this text, or why it cannot be one."""
    beyond = limits.fault(line, tuple(value.values())) if isinstance(value, dict) else None
    if beyond is not None:
        return BadRow(beyond, text.encode(errors="replace"))
    if isinstance(value, dict) and MARK not in text and ("\\u" not in text or _encodable(value)):
        source = text.strip() if is_item(value) else None
        return Row(line, tuple(value.values()), tuple(value), source)
    if not isinstance(value, dict):
        found = f"a JSON {'array' if isinstance(value, list) else type(value).__name__}"
        fix = 'write one object a line, as {"text": "...", "label": "..."}; jq -c .[] FILE unpacks an array'
        fault = Fault(line, "not a JSON object", found, fix)
    elif MARK in text:
        fault = not_decoded(line, UTF8)
    else:
        wrong = "half of a surrogate pair, which is not a character"
        fix = "remove the \\ud8xx to \\udfxx that is alone"
        fault = Fault(line, wrong, None, fix, encoding=True)
    return BadRow(fault, text.encode(errors="replace"))


def _unusable(line: int, error: ValueError | RecursionError) -> Fault:
    if isinstance(error, RecursionError):
        return too_deep(line)
    return Fault(line, "JSON that cannot be read unambiguously", str(error), "fix the line")


def _without_repeated_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for key, value in pairs:
        if key in record:
            raise ValueError(f"the key {key!r} twice in one object")
        record[key] = value
    return record


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is not JSON")


def _encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeated_keys, parse_constant=_no_constant)
