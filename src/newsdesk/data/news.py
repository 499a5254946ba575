"""What news formats have in common: text with markup, and subjects with codes of a scheme."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_HIDDEN = frozenset({"head", "script", "style", "template"})
# fmt: off
_BLOCKS = frozenset({
    "address", "article", "aside", "blockquote", "block", "body", "body.content", "body.head", "br",
    "caption", "dd", "div", "dl", "dt", "figcaption", "figure", "footer", "h1", "h2", "h3", "h4", "h5", "h6",
    "header", "hl1", "hl2", "hr", "li", "main", "nav", "ol", "p", "pre", "section", "table", "td", "th", "tr",
    "ul",
})
# fmt: on
_MARKUP = re.compile(  # each alternative ends where it begins or reads on to the end: linear in any text
    r"<!--.*?(?:-->|\Z)"
    r"|<!\[CDATA\[(?P<text>.*?)(?:\]\]>|\Z)"
    r"|<(?P<raw>script|style|template)\b[^<>]*+(?<!/)>.*?(?:</(?P=raw)\s*+>|\Z)"
    r"""|<(?P<end>/?)(?P<tag>[a-z][^\s<>/"']*+)(?:"[^"]*+"|'[^']*+'|[^<>"'])*+>"""
    r"|<[!?][^<>]*+>",
    re.DOTALL | re.IGNORECASE,
)
_REFERENCE = re.compile(
    r"&(?:#[0-9]{1,8}(?![0-9])|#x[0-9a-f]{1,8}(?![0-9a-f])|[a-z][a-z0-9]{1,31});?", re.IGNORECASE
)
_NITF_BODY = re.compile(r"<body\.content\b[^<>]*+>(.*?)(?:</body\.content\s*+>|\Z)", re.DOTALL)


class _Prose:
    """Collects the text between tags: blocks become lines, white space is single, what is hidden left out."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._hidden = 0

    def tag(self, name: str, *, end: bool = False) -> None:
        if name in _HIDDEN:
            self._hidden = max(0, self._hidden + (-1 if end else 1))
        elif name in _BLOCKS:
            self._hidden = 0 if name == "body" else self._hidden  # whose head need not have been closed
            self._parts.append("\n")

    def text(self, text: str | None) -> None:
        if text and not self._hidden:
            self._parts.append(re.sub(r"\s+", " ", text))

    def result(self) -> str:
        lines = "".join(self._parts).replace("\u00ad", "").split("\n")
        return "\n".join(line for line in (re.sub(" +", " ", each).strip() for each in lines) if line)


def prose(markup: str) -> str:
    """The text of HTML, XHTML or NITF: a line for each block, entities as characters, white space single.

    Broken markup is read as browsers do, as far as it goes. Linear in the length of any text.
    """
    if body := _NITF_BODY.search(markup):
        markup = body[1]
    found, at = _Prose(), 0
    for match in _MARKUP.finditer(markup):
        found.text(_unescaped(markup[at : match.start()]))
        at = match.end()
        if match["tag"]:
            name, empty = match["tag"].lower(), match[0].endswith("/>")
            found.tag(name, end=bool(match["end"]) or empty)
        found.text(match["text"])
    found.text(_unescaped(markup[at:]))
    return found.result()


def _unescaped(text: str) -> str:
    return _REFERENCE.sub(lambda match: html.unescape(match[0]), text)  # which fails on endless numbers


def element_prose(element: Element | None) -> str:
    """As ``prose``, of a parsed element, whose nesting is bounded; empty for None."""
    found = _Prose()

    def walk(each: Element) -> None:
        name = local_name(each.tag)
        found.tag(name)
        found.text(each.text)
        for child in each:
            walk(child)
            found.text(child.tail)
        found.tag(name, end=True)

    if element is not None:
        walk(next((each for each in element.iter() if local_name(each.tag) == "body.content"), element))
    return found.result()


def local_name(tag: str) -> str:
    """An element's name without its namespace, in lower case."""
    return tag.rpartition("}")[2].lower()


# --- subjects: https://iptc.org/standards/newscodes/

IPTC_SCHEMES = {
    "medtop": "http://cv.iptc.org/newscodes/mediatopic/",
    "subj": "http://cv.iptc.org/newscodes/subjectcode/",
}
"""IPTC's Media Topics and the Subject Codes before them, by their alias."""

_IPTC_CODE = re.compile(
    r"(?:(medtop|subj):|https?://cv\.iptc\.org/newscodes/(mediatopic|subjectcode)/)?(\d{8})"
)
_ALIASES = {"mediatopic": "medtop", "subjectcode": "subj"} | {name: name for name in IPTC_SCHEMES}
_TOP = re.compile(r"\d\d0{6}")


def subjects(entries: Iterable[object]) -> list[object]:
    """The subjects of an item, each with ``name``, ``code``, ``scheme`` and ``level`` where these are known.

    Entries that are no objects stay as they are.
    """
    return [_subject(entry) if isinstance(entry, Mapping) else entry for entry in entries]


def _subject(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry says, its code as IPTC writes it (``medtop:15000000``) where it is one of IPTC's.

    ``level`` is 1 for IPTC's top level; Subject Codes have 2 and 3, too. The scheme of another code is what
    the entry names, or what its URI or qcode begins with.
    """
    found = {key: value for key, value in entry.items() if value is not None}
    scheme, uri = str(found.get("scheme") or ""), str(found.get("uri") or "")
    code = str(found.get("qcode") or found.get("code") or found.get("literal") or "")
    for written in (code, uri):
        if match := _IPTC_CODE.fullmatch(written):
            named = match[1] or match[2] or scheme.rstrip("/").rpartition("/")[2]
            if alias := _ALIASES.get(named.lower()):
                return found | {"code": f"{alias}:{match[3]}", "scheme": alias, **_level(alias, match[3])}
    start, separator, rest = uri.rpartition("#" if "#" in uri else "/")
    if not code and rest:
        code = rest
    if not scheme and separator:
        scheme = start + separator
    if not scheme and ":" in code:
        scheme = code.partition(":")[0]
    return found | {key: value for key, value in (("code", code), ("scheme", scheme)) if value}


def _level(alias: str, digits: str) -> dict[str, int]:
    if _TOP.fullmatch(digits):
        return {"level": 1}
    if alias == "medtop":  # the codes below the top do not say where
        return {}
    return {"level": 2 if digits.endswith("000") else 3}


def labels_of_subjects(cell: object) -> object:
    """A cell with its subjects, one or a list, as their names, or their codes where they have none."""
    if isinstance(cell, list):
        return [labels_of_subjects(entry) for entry in cell]
    if not isinstance(cell, Mapping):
        return cell
    written = (cell.get(key) for key in ("name", "code", "qcode", "literal"))
    return next((label for label in written if isinstance(label, str) and label.strip()), cell)
