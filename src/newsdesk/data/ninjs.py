"""ninjs, IPTC's news in JSON, versions 1.0 to 3.x: items recognised, their texts by role, subjects added.

https://iptc.org/standards/ninjs/
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from newsdesk.data.news import IPTC_SCHEMES, prose

_CREATOR = "newsdesk"
CREATED_HERE = f'"creator": "{_CREATOR}"'.encode()
"""What tells that newsdesk has added subjects to items."""

_CODE = re.compile(r"[\w.-]+:\S+|\d+")
_JSON = json.JSONDecoder()
_CREATED = ("versioncreated", "versionCreated", "pubstatus", "pubStatus")
_TEXT_LISTS = ("headlines", "bodies", "descriptions")
_OLD_TEXT = re.compile(r"(?P<what>headline|body|description)_(?P<form>[a-zA-Z0-9_]+)")
_OLD_BODY = re.compile(r"(?:body|description)_(?:text|x?html5?|nitf)")
_OLD_KEYS = ("headline", "subject", "byline", "person", "organisation", "place", "$standard")
_LOOKS_LIKE_HTML = re.compile(
    r"</(?:p|div|span|b|i|em|strong|a|li|h[1-6]|body)>|<(?:br|p)\s*/?>", re.IGNORECASE
)
_HTML_FORM = re.compile(r"x?html?5?|nitf|xml", re.IGNORECASE)
_MAIN_ROLES = ("", "main", "text", "plain", "body")


def is_item(record: Mapping[str, object]) -> bool:
    """Whether an object has what ninjs items have: an identifier, and properties of that standard's names."""
    if not (isinstance(record.get("uri"), str) or isinstance(record.get("guid"), str)):
        return False
    if any(key in record for key in _CREATED) or "ninjs" in _standard(record)[0]:
        return True
    lists = any(_entries(record.get(key)) for key in _TEXT_LISTS)
    return lists or any(_OLD_BODY.fullmatch(key) for key in record)


def ninjs_version(item: Mapping[str, object]) -> int:
    """The major version of a ninjs item: what it states, else by the names of its properties."""
    name, version = _standard(item)
    if name == "ninjs" and version[:1] in ("1", "2", "3"):
        return int(version[0])
    if any(key in item for key in _OLD_KEYS) or any(_OLD_TEXT.fullmatch(key) for key in item):
        return 1
    inside = (key for name in _TEXT_LISTS for entry in _entries(item.get(name)) for key in entry)
    return 3 if any(key != key.lower() for key in (*item, *inside)) else 2


def _takes_provenance(item: Mapping[str, object]) -> bool:
    """Whether subjects of the item may say who set them, and how surely: not in ninjs 1.0 to 1.4, and 2.0."""
    return _standard(item)[1] not in ("1.0", "1.1", "1.2", "1.3", "1.4", "2.0")


def _standard(item: Mapping[str, object]) -> tuple[str, str]:
    """Name, in lower case, and version of the standard that an item names."""
    found = item.get("standard") or item.get("$standard")
    if not isinstance(found, Mapping):
        return "", ""
    return str(found.get("name") or "").lower(), str(found.get("version") or "")


def _entries(cell: object) -> list[Mapping[str, Any]]:
    return [entry for entry in cell if isinstance(entry, Mapping)] if isinstance(cell, list) else []


def headline_of(item: Mapping[str, object]) -> str | None:
    """An item's main headline, else its title."""
    title = item.get("title")
    return _text_of(item, "headline", "headlines") or (title if isinstance(title, str) else None)


def body_of(item: Mapping[str, object]) -> str | None:
    """An item's body: plain text if it has that, else the text of its HTML or NITF; else its description."""
    return _text_of(item, "body", "bodies") or _text_of(item, "description", "descriptions")


def _text_of(item: Mapping[str, object], what: str, plural: str) -> str | None:
    """The best text among the entries of a list (2.x, 3.x), or the properties of one name (1.x)."""
    found = _entries(item.get(plural))
    for key, value in item.items():
        if key == what or ((old := _OLD_TEXT.fullmatch(key)) and old["what"] == what):
            found.append({"role": key.removeprefix(what).strip("_"), "value": value})
    found.sort(key=lambda entry: (_is_aside(entry), _is_markup(entry)))
    return next(filter(None, map(text_in, found)), None)


def _is_aside(entry: Mapping[str, Any]) -> bool:
    """Whether the role is another than that of the main text, in whatever form."""
    role = str(entry.get("role") or "")
    return role.lower() not in _MAIN_ROLES and _HTML_FORM.search(role) is None


def text_in(entry: Mapping[str, Any]) -> str | None:
    """The text of an entry with a ``value`` and, perhaps, a content type or a role that says it is markup."""
    value = entry.get("value")
    if not isinstance(value, str):
        return None
    return prose(value) if _is_markup(entry) else value.strip()


def _is_markup(entry: Mapping[str, Any]) -> bool:
    kind = str(entry.get("contentType") or entry.get("contenttype") or "").lower()
    if kind:
        return "html" in kind or "xml" in kind or "nitf" in kind
    if _HTML_FORM.search(str(entry.get("role") or "")):
        return True
    value = entry.get("value")
    return isinstance(value, str) and _LOOKS_LIKE_HTML.search(value) is not None


def is_markup_key(key: str) -> bool:
    """Whether a property of ninjs 1.x holds markup, by its name: ``body_xhtml``."""
    old = _OLD_TEXT.fullmatch(key)
    return old is not None and _HTML_FORM.search(old["form"]) is not None


def with_subjects(item: Mapping[str, object], source: str | None, labels: Sequence[tuple[str, float]]) -> str:
    """The JSON of a ninjs item with more subjects, each a class and its probability; nothing else changes.

    ``source`` is the JSON that ``item`` was read from, None for what is no item. Raises ValueError, which
    says why, where no subjects can be added.
    """
    if source is None:
        raise ValueError("no ninjs item: no uri, or no property of ninjs beside it")
    if not labels:
        return source
    version, key = ninjs_version(item), "subjects"
    if version == 1:
        key = "subject"
    entries = [_subject(label, share, version, _takes_provenance(item)) for label, share in labels]
    added = ", ".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    before, place = _place_of(source, key)
    if place is None:
        space = source[1 : _after_space(source, 1)] or " "
        return f'{source[:before]},{space}"{key}": [{added}]{source[before:]}'
    present = item[key]
    if present is None:
        return f"{source[: place[0]]}[{added}]{source[place[1] :]}"
    if not isinstance(present, list):
        raise ValueError(f"{key} is no list, but a value of type {type(present).__name__}")
    start, end = place[0] + 1, place[1] - 1
    last = len(source[:end].rstrip())
    between = f",{source[start : _after_space(source, start)] or ' '}" if present else ""
    return f"{source[:last]}{between}{added}{source[last:]}"


def _subject(label: str, share: float, version: int, provenance: bool) -> dict[str, object]:
    """A subject in the words of a version: IPTC's and other codes as codes, all else as names."""
    alias, _, digits = label.partition(":")
    entry: dict[str, object]
    if not _CODE.fullmatch(label):
        entry = {"name": label}
    elif alias in IPTC_SCHEMES:
        uri = IPTC_SCHEMES[alias]
        entry = {"scheme": uri, "code": digits} if version == 1 else {"uri": uri + digits, "literal": label}
    else:
        entry = {"code" if version == 1 else "literal": label}
    return entry | ({"creator": _CREATOR, "confidence": round(100 * share)} if provenance else {})


def _place_of(source: str, key: str) -> tuple[int, tuple[int, int] | None]:
    """Where the last member of an object's JSON ends, and from where to where the value of a key is."""
    at, end, place = _after_space(source, 1), 1, None
    while source[at] != "}":
        name, at = _JSON.raw_decode(source, at)
        start = _after_space(source, _after_space(source, at) + 1)
        _, end = _JSON.raw_decode(source, start)
        if name == key:
            place = (start, end)
        at = _after_space(source, end)
        if source[at] == ",":
            at = _after_space(source, at + 1)
    return end, place


def _after_space(source: str, at: int) -> int:
    while source[at] in " \t\r\n":
        at += 1
    return at
