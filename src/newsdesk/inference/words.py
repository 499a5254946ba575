"""A text's words and where they stand, in any language."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

Span = tuple[int, int]
"""A part of a text: ``text[start:end]``, counted in characters."""

# Unicode's word boundaries (Standard Annex 29), as far as telling words apart needs them.
_JOINS_LETTERS = "'’.\u00ad\u200c\u200d"  # don't, U.S., 3.5; soft hyphen, and what Persian and Hindi join by
_JOINS_DIGITS = ",'’"
# Thai and Lao, Myanmar, Khmer, hiragana, Han: written without spaces, so every character stands alone.
_UNSPACED = ((0xE00, 0xEFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3041, 0x309F), (0x3400, 0x4DBF))
_HAN = ((0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


def word_spans(text: str) -> tuple[Span, ...]:
    """Where the words of a text begin and end, in reading order.

    Words are runs of letters, digits and the marks on them; in scripts written without spaces, single
    characters. A text without any, such as one of emoji, is taken apart into the characters that show.
    """
    spans: list[Span] = []
    for position, character in enumerate(text):
        if spans and _continues(text, spans[-1], position):
            spans[-1] = (spans[-1][0], position + 1)
        elif unicodedata.category(character)[0] in "LN":
            spans.append((position, position + 1))
    return tuple(spans) or tuple((i, i + 1) for i, character in enumerate(text) if not character.isspace())


def without(text: str, spans: Iterable[Span]) -> str:
    """The text with these parts, which do not overlap, deleted; of two spaces that meet, one stays."""
    for start, end in sorted(spans, reverse=True):
        before, after = text[:start], text[end:]
        if after[:1].isspace() and (not before or before[-1].isspace()):
            after = after[1:]
        text = before + after
    return text


def _continues(text: str, word: Span, position: int) -> bool:
    """Whether the character there belongs to the word before it."""
    gap, character = text[word[1] : position], text[position]
    kind = unicodedata.category(character)[0]
    if kind == "M":
        return gap == ""
    if kind not in "LN" or _stands_alone(text[word[0]]) or _stands_alone(character):
        return False
    if text[word[1] - 1].isdigit() and character.isdigit() and len(gap) == 1 and gap in _JOINS_DIGITS:
        return True
    return gap == "" or (len(gap) == 1 and gap in _JOINS_LETTERS)


def _stands_alone(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in (*_UNSPACED, *_HAN))
