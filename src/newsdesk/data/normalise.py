"""Named text normalisers: what undoes the damage that a data set is known to carry."""

from __future__ import annotations

import html
import html.entities
import re
from collections.abc import Callable

from newsdesk.errors import UserError

# AG News turned the ampersand of HTML escapes into a space: "Oracle&#39;s" became "Oracle #39;s". So a bare
# escape swallows one space before it. Only names that are no English words may stand bare: "euro;" and
# "pound;" end clauses in ordinary news.
_BARE_NAMES = "quot|nbsp|hellip|mdash|ndash|lsquo|rsquo|ldquo|rdquo|eacute|lt|gt"
_CODE = r"#(?:3[2-9]|[4-9]\d|1\d\d|\d{4,6}|[2-9]\d\d|0\d{2,3}|[xX][0-9a-fA-F]{2,5})"
_WITH_AMPERSAND = re.compile(rf"&(?:amp;)*((?:{_CODE}|[A-Za-z][A-Za-z0-9]{{1,30}});)")
_BARE = re.compile(rf"(?:(?<!\w)|\s)((?:{_CODE}|{_BARE_NAMES});)")
# "an amp; it hums" is about music; the escape has the ampersand's own space before it or a letter after it.
_BARE_AMPERSAND = re.compile(r"(?:(?<=\s)\s|^)amp;|\samp;(?=\w)")
_BLOCK_TAG = re.compile(r"</?(?:p|br|div|li|ul|ol|td|tr|table|img|hr|h[1-6])\b[^<>]*>", re.IGNORECASE)
_INLINE_TAG = re.compile(
    r"</?(?:a|b|i|u|em|strong|cite|span|font|small|big|sup|sub|nobr|code|pre|blockquote|strike|tt|script)"
    r"(?:\s[^<>]*)?/?>|<!--[^<>]*-->",
    re.IGNORECASE,
)


def normalise(text: str, name: str) -> str:
    """``text`` after the normaliser called ``name`` (one of ``NORMALISERS``); a second time changes nothing.

    Raises UserError for a name that is not known.
    """
    return normaliser(name)(text)


def normaliser(name: str) -> Callable[[str], str]:
    """The normaliser called ``name``. Raises UserError for a name that is not known."""
    if name not in NORMALISERS:
        raise UserError(
            f"there is no text normaliser {name!r}",
            found=f"known are {', '.join(NORMALISERS)}",
            fix="choose one of them with --normaliser",
        )
    return NORMALISERS[name]


def _unchanged(text: str) -> str:
    return text


def _whitespace(text: str) -> str:
    """Every run of white space becomes one space; none at the ends."""
    return " ".join(text.split())


def _ag_news(text: str) -> str:
    """AG News (Zhang et al., 2015) as its editors wrote it: escapes undone, tags dropped, lines joined.

    Escapes stand with or without their ampersand (``&lt;``, `` #39;``, `` quot;``) and may be escaped
    twice, hence the repetition; every pass that changes the text makes it shorter or takes a backslash
    away, so it ends.
    """
    previous = None
    while text != previous:
        previous, text = text, _ag_news_once(text)
    return text


def _ag_news_once(text: str) -> str:
    if ";" in text:
        text = _WITH_AMPERSAND.sub(_unescaped, text)
        text = _BARE_AMPERSAND.sub("&", text)
        text = _BARE.sub(lambda match: html.unescape("&" + match[1]), text)
    if "<" in text:
        text = _INLINE_TAG.sub("", _BLOCK_TAG.sub(" ", text))
    if "\\" in text:
        text = text.replace("\\$", "$").replace("\\", " ")
    return _whitespace(text)


def _unescaped(match: re.Match[str]) -> str:
    escape = match[1]
    known = escape.startswith("#") or escape in html.entities.html5
    return html.unescape(f"&{escape}") if known else match[0]


NORMALISERS: dict[str, Callable[[str], str]] = {
    "none": _unchanged,
    "whitespace": _whitespace,
    "ag_news": _ag_news,
}
"""The normalisers by name; each is idempotent."""
