"""Fields: what a row holds under a name, which may be a path into nested values or a part of a news item."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from newsdesk.data.news import prose, subjects
from newsdesk.data.ninjs import body_of, headline_of, is_item, is_markup_key, text_in

_STEP = re.compile(r"\.?([^.\[\]]+)|\[([^=\[\]]+)=([^\[\]]*)\]")
SUBJECTS = ("subject", "subjects")
"""Names under which news formats keep what an item is about."""

Step = str | tuple[str, str]
"""A key or place, or a condition ``[key=value]``."""


def _subjects_of(item: Mapping[str, object]) -> object:
    return item.get("subjects") or item.get("subject")


NEWS_FIELDS: Mapping[str, Callable[[Mapping[str, object]], object]] = {
    "headline": headline_of,
    "body": body_of,
    "subject": _subjects_of,
}
"""The parts of a news item that have one name in every format and version."""


def value_at(record: Mapping[str, object], name: str) -> object:
    """What a record holds under a column's name or a path; None where there is nothing.

    A path leads into nested values by keys and places from 0: ``headlines.0.value``. Of a list, a key takes
    what every object in it has there (``subject.code``), and a condition those objects whose key has that
    value (``subject[scheme=medtop].0.name``). A column that is called so comes first. In ninjs items
    ``headline``, ``body`` and ``subject`` are those of whatever version, and markup becomes text.
    """
    cell = record.get(name)
    if isinstance(cell, str):
        return prose(cell) if is_markup_key(name) and is_item(record) else cell
    if cell is not None and name not in SUBJECTS:
        return cell
    head, steps = parsed(name)
    cell = record.get(head)
    if cell is None and head in NEWS_FIELDS and is_item(record):
        cell = NEWS_FIELDS[head](record)
    if head in SUBJECTS and isinstance(cell, list):
        cell = subjects(cell)
    return walked(cell, steps)


def walked(cell: object, steps: Sequence[Step]) -> object:
    """What steps from a cell lead to; None where there is nothing."""
    for step in steps:
        cell = _stepped(cell, step)
    return cell


@lru_cache(maxsize=256)
def parsed(name: str) -> tuple[str, tuple[Step, ...]]:
    """A path as the column that it begins with and its steps; a name that is no path has none."""
    steps: list[Step] = []
    at = 0
    while match := _STEP.match(name, at):
        steps.append(match[1] or (match[2], match[3]))
        at = match.end()
    if at < len(name) or not steps or not isinstance(steps[0], str) or name.startswith("."):
        return name, ()
    return steps[0], tuple(steps[1:])


def _stepped(cell: object, step: Step) -> object:
    if isinstance(step, tuple):
        key, value = step
        entries = cell if isinstance(cell, list) else [cell]
        return [entry for entry in entries if isinstance(entry, Mapping) and str(entry.get(key)) == value]
    if isinstance(cell, Mapping):
        inner = cell.get(step)
        return text_in(cell) if step == "value" and isinstance(inner, str) else inner
    if not isinstance(cell, list):
        return None
    if step.isdecimal() and len(step) < 10:
        return cell[int(step)] if int(step) < len(cell) else None
    return [inner for entry in cell if (inner := _stepped(entry, step)) is not None]
