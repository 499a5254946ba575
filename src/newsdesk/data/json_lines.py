"""Lines of JSON: one object a line, each with keys of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NoReturn

from newsdesk.data.lines import LineReader
from newsdesk.data.table import BadRow, Cell, Fault, Row, RowStream, Table, sample_of


def json_rows(lines: LineReader, *, sample: int | None) -> RowStream:
    """The objects that the lines hold, each row under its own keys; blank lines are no rows.

    The columns are the keys of the first ``sample`` rows (None: of all), in the order in which they first
    appear.
    """
    sampled, rest = sample_of(_parse(lines), sample)
    keys = (key for row in sampled if isinstance(row, Row) for key in row.keys or ())
    head = Table(lines.path, tuple(dict.fromkeys(keys)), (), (), has_header=True)
    return RowStream(head, chain(sampled, rest))


def _parse(lines: LineReader) -> Iterator[Row | BadRow]:
    for line in lines:
        if line.fault is not None:
            yield BadRow(line.fault, line.raw)
        elif line.text.strip():
            record = _json_object(line.number, line.text)
            if isinstance(record, Fault):
                yield BadRow(record, line.raw)
            else:
                yield Row(line.number, tuple(record.values()), tuple(record))


def _json_object(number: int, text: str) -> dict[str, Cell] | Fault:
    """The object that a line of jsonl holds, or why it holds none that can be used."""
    try:
        value = json.loads(text, object_pairs_hook=_without_repeated_keys, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        return Fault(
            number,
            "broken JSON",
            f"{error.msg} at character {error.pos + 1}",
            "write one whole JSON object a line; jq -c . FILE rewrites objects that span lines",
        )
    except ValueError as error:
        return Fault(number, "JSON that cannot be read unambiguously", str(error), "fix the line")
    except RecursionError:
        return Fault(number, "JSON nested too deeply", None, "keep the text and label at the top level")
    if not isinstance(value, dict):
        return Fault(
            number,
            "not a JSON object",
            f"a JSON {'array' if isinstance(value, list) else type(value).__name__}",
            'write one object a line, as {"text": "...", "label": "..."}; jq -c .[] FILE unpacks an array',
        )
    if "\\u" in text and not _encodable(value):
        return Fault(
            number,
            "half of a surrogate pair, which is no character",
            None,
            "remove the \\ud8xx to \\udfxx that stands alone",
            encoding=True,
        )
    return value


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
