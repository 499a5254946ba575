"""A text's words, its script and its direction, in any language."""

from __future__ import annotations

import html
import html.entities
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from newsdesk.errors import UserError

Span = tuple[int, int]
"""A part of a text: ``text[start:end]``, counted in characters."""

# Unicode's word boundaries (Standard Annex 29), as far as finding words needs them.
_JOINS_LETTERS = "'’.\u00ad\u200c\u200d"  # don't, U.S., 3.5; soft hyphen, and what Persian and Hindi join by
_ASCII_WORD = re.compile(r"\w+")
# Thai and Lao, Myanmar, Khmer, hiragana, Han: written without spaces, so every character is a word.
# fmt: off
_UNSPACED = (
    (0xE00, 0xEFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3041, 0x309F), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)
LANGUAGE_OF_SCRIPT = {
    "ARABIC": "ar", "ARMENIAN": "hy", "BENGALI": "bn", "CJK": "zh", "CYRILLIC": "und-Cyrl",
    "DEVANAGARI": "und-Deva", "ETHIOPIC": "und-Ethi", "GEORGIAN": "ka", "GREEK": "el", "GUJARATI": "gu",
    "GURMUKHI": "pa", "HANGUL": "ko", "HEBREW": "he", "HIRAGANA": "ja", "KANNADA": "kn", "KATAKANA": "ja",
    "KHMER": "km", "LAO": "lo", "MALAYALAM": "ml", "MYANMAR": "my", "ORIYA": "or", "SINHALA": "si",
    "TAMIL": "ta", "TELUGU": "te", "THAI": "th",
}
# fmt: on
"""The BCP 47 tag of the language that news in a script is most likely written in, by Unicode's name of it."""
_URDU, _PERSIAN = set("ٹڈڑںے"), set("پچژگکی")
_LETTERS_LOOKED_AT, _TEXTS_LOOKED_AT = 1000, 2000


@dataclass(frozen=True)
class Reading:
    """What is read of some texts, and computed for it.

    Attributes:
        choice: how long texts are read, a value of ``model.long_texts``.
        tokens: of all texts, special ones included.
        read: of these, what is read.
        computed: tokens that the encoder computes for that, padding aside: those of windows that overlap
            count twice.
    """

    choice: str
    tokens: int
    read: int
    computed: int

    @property
    def share(self) -> float:
        """Share of the tokens that is read, 0 to 1."""
        return self.read / self.tokens if self.tokens else 1.0

    def times(self, other: Reading) -> float:
        """How many times the tokens of another choice are computed: about the time that it takes."""
        return self.computed / max(1, other.computed)


def word_spans(text: str) -> tuple[Span, ...]:
    """Where the words of a text begin and end, in reading order.

    Words are runs of letters, digits and the marks on them; in scripts written without spaces, single
    characters. A text without any, such as one of emoji, is taken apart into the characters that show.
    """
    spans = tuple(match.span() for match in _patterns()[0].finditer(text))
    return spans or tuple((i, i + 1) for i, character in enumerate(text) if not character.isspace())


def without(text: str, spans: Iterable[Span]) -> str:
    """The text with these parts, which do not overlap, deleted; of two spaces that meet, one stays."""
    for start, end in sorted(spans, reverse=True):
        before, after = text[:start], text[end:]
        if after[:1].isspace() and (not before or before[-1].isspace()):
            after = after[1:]
        text = before + after
    return text


_FOLDED = 10_000  # characters at least; one may become 18, words of which are not worth their time


def words_of(text: str) -> list[str]:
    """The words of a text in reading order, without regard to case, punctuation and ways to encode a letter.

    Words are those of ``word_spans``, but that no punctuation joins them: quick enough for millions of texts.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()[: max(_FOLDED, 4 * len(text))]
    return (_ASCII_WORD if folded.isascii() else _patterns()[1]).findall(folded)


def is_ideograph(word: str) -> bool:
    """Whether a word is a single Chinese character or hiragana, each of which says about half a word."""
    return len(word) == 1 and any(max(first, 0x3041) <= ord(word) <= last for first, last in _UNSPACED)


def language_tag(text: str) -> str | None:
    """The language of a text by its script, as a BCP 47 tag such as ``ar``, ``zh`` or ``und-Cyrl``.

    None for Latin letters, which too many languages share, and where there are none. Arabic letters count as
    Persian or Urdu where letters of these languages' own are among them, Han as Japanese beside kana.
    """
    letters = [character for character in text if character.isalpha()][:_LETTERS_LOOKED_AT]
    scripts = Counter(unicodedata.name(letter, "").partition(" ")[0] for letter in letters)
    if not scripts or "LATIN" in (script := scripts.most_common(1)[0][0]):
        return None
    if script == "ARABIC":
        return "ur" if _URDU & set(letters) else "fa" if _PERSIAN & set(letters) else "ar"
    if script == "CJK" and any(kana in scripts for kana in ("HIRAGANA", "KATAKANA")):
        return "ja"
    return LANGUAGE_OF_SCRIPT.get(script)


def language_of(texts: Sequence[str]) -> str | None:
    """The language of most of the texts, by ``language_tag``; of many, of 2,000 spread evenly over them.

    None where most are in Latin letters, or in a script of several languages.
    """
    tags = Counter(map(language_tag, texts[:: max(1, -(-len(texts) // _TEXTS_LOOKED_AT))]))
    tag, count = tags.most_common(1)[0] if tags else (None, 0)
    return None if tag is None or tag.startswith("und") or 2 * count <= tags.total() else tag


def isolated(text: str) -> str:
    """The text, set apart by Unicode's isolates if it holds right-to-left letters.

    Within a line of left-to-right text, numbers and punctuation around it then keep their places (Unicode
    Standard Annex 9). Any other text comes back as it is.
    """
    if text.isascii() or not any(unicodedata.bidirectional(character) in ("R", "AL") for character in text):
        return text
    return f"\N{FIRST STRONG ISOLATE}{text}\N{POP DIRECTIONAL ISOLATE}"


def printable(text: str, instead: str = "?") -> str:
    """The text for one line of a terminal, table or drawing, with ``instead`` for what cannot be shown.

    Spaces of any width become plain ones. The joiners of Persian, Hindi and emoji stay: they are invisible,
    and what they join reads wrong without them.
    """
    if text.isprintable():
        return text
    return "".join(
        letter
        if letter.isprintable() or letter in "\u200c\u200d"
        else " "
        if unicodedata.category(letter) == "Zs"
        else instead
        for letter in text
    )


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A word of ``word_spans``, and one of ``words_of``.

    Each is one letter of an unspaced script or a run of others, with their marks.
    """
    alone = "".join(f"{chr(first)}-{chr(last)}" for first, last in _UNSPACED)
    # Python's own word characters leave out marks, and so would take Hindi or vowelled Arabic apart.
    marks = "".join(chr(code) for code in range(0x300, 0x20000) if unicodedata.category(chr(code))[0] == "M")
    single = rf"(?=\w)[{alone}][{marks}]*"
    run = rf"(?![{alone}_])\w(?:[{marks}]|(?![{alone}_])\w)*"
    joined = rf"{run}(?:(?:[{_JOINS_LETTERS}]|(?<=\d),(?=\d)){run})*"
    plain = rf"(?![{alone}])\w(?:(?![{alone}])[\w{marks}])*"
    return re.compile(f"{single}|{joined}"), re.compile(f"{single}|{plain}")


# AG News turned the ampersand of HTML escapes into a space: "Oracle&#39;s" became "Oracle #39;s". So a bare
# escape swallows one space before it. Only names that are not English words may be bare: "euro;" and
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
    if name not in NORMALISERS:
        raise UserError(
            f"there is no text normaliser {name!r}",
            found=f"known are {', '.join(NORMALISERS)}",
            fix="choose one of them with --normaliser",
        )
    return NORMALISERS[name](text)


def _whitespace(text: str) -> str:
    """Every run of white space becomes one space; none at the ends."""
    return " ".join(text.split())


def _ag_news(text: str) -> str:
    """AG News (Zhang et al., 2015) as its editors wrote it: escapes undone, tags dropped, lines joined.

    Escapes occur with or without their ampersand (``&lt;``, `` #39;``, `` quot;``) and may be escaped
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
    "none": str,
    "whitespace": _whitespace,
    "ag_news": _ag_news,
}
"""The normalisers by name; each is idempotent."""
