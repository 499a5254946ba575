"""Whether a tokenizer's vocabulary covers some texts: their scripts, their words, and what to do if not."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from typing import Any

from newsdesk.data.words import LANGUAGE_OF_SCRIPT, words_of

Piece = tuple[int, int, bool]
"""A token of a text, ``text[start:end]``, and whether it stands for what the vocabulary lacks."""

ENGLISH = (
    "The European Central Bank left interest rates unchanged on Wednesday, saying that inflation in the euro "
    "zone had slowed to 2.3 percent but was still above target. Shares of Vodafone and Rolls-Royce rose in "
    "London, while sterling fell against the dollar. Arsenal's Thierry Henry scored twice in the last ten "
    "minutes to beat Fenerbahce 3-1 at Highbury. Researchers at Johns Hopkins University said the vaccine "
    "protected nine of ten patients from malaria. Prime Minister Silvio Berlusconi told parliament that "
    "Italian troops would leave Nasiriyah by December, Reuters reported. Qualcomm said hackers had stolen "
    "passwords of 40,000 subscribers in Bangalore."
)
"""English news with its names, to compare a vocabulary's reading of other texts with."""

_UNKNOWN_AT_MOST, _SCRIPT_FROM = 0.05, 0.05
_LETTERS_AT_LEAST, _SYLLABLES_AT_LEAST = 1.5, 0.8
_TIMES_ENGLISH, _WORDS_AT_LEAST = 1.45, 100
_ACCENTS_LOST_AT_MOST = 0.1
_LATIN, _HAN, _KANA, _HANGUL = "LATIN", "CJK", "KATAKANA", "HANGUL"
_KANA_FROM = 0.05  # in Japanese they are about as frequent as Chinese characters
_NO_SCRIPT = ("", "MATHEMATICAL", "DOUBLE-STRUCK", "SCRIPT", "MODIFIER", "MICRO", "FEMININE", "MASCULINE")


@dataclass(frozen=True)
class ScriptFit:
    """How well a vocabulary covers one script of some texts.

    Attributes:
        name: for people, such as ``Arabic``; Chinese characters with kana among them are ``Japanese``.
        language: the BCP 47 tag of the language that news in it is most likely written in, ``und`` where
            that is not known; None for Latin letters.
        share: share of all letters that are of it, 0 to 1.
        unknown: share of its tokens that stand for what the vocabulary lacks, 0 to 1.
        letters_per_token: its letters for each token that holds any.
    """

    name: str
    language: str | None
    share: float
    unknown: float
    letters_per_token: float

    @property
    def is_unread(self) -> bool:
        """Whether the vocabulary lacks it or spells it out.

        It does where more than 5 % of the tokens are unknown, or words are spelled out: fewer than 1.5
        letters a token (0.8 in syllabic scripts); the lowest seen where a model knows the script is 1.9.
        """
        return self.unknown > _UNKNOWN_AT_MOST or self._spelled

    @property
    def _spelled(self) -> bool:
        syllabic = self.name in ("Chinese", "Japanese", "Korean")
        return self.letters_per_token < (_SYLLABLES_AT_LEAST if syllabic else _LETTERS_AT_LEAST)

    def fault(self) -> str:
        """What is wrong with it, half a sentence; it is named where the texts hold others, too."""
        among = self.share < 1 - _SCRIPT_FROM
        letters = f"{self.share:.0%} of the letters are {self.name}"
        if self.unknown > _UNKNOWN_AT_MOST:
            which = f"{letters}, and {self.unknown:.0%} of their tokens" if among else ""
            return f"{which or f'{self.unknown:.0%} of the tokens'} are unknown to the base model"
        spelled = f"letter by letter ({self.letters_per_token:.1f} letters a token)"
        if among:
            return f"{letters}, which the base model spells {spelled}"
        return f"the base model spells words {spelled}"


@dataclass(frozen=True)
class VocabularyFit:
    """How well a tokenizer's vocabulary covers texts.

    Attributes:
        unknown: share of their tokens, special ones not counted, that stand for characters which the
            vocabulary lacks, in [0, 1]. A byte-level vocabulary lacks none.
        letters_per_token: letters for each token that holds any; 0 without letters. English news has 4.5
            with all-MiniLM-L6-v2; Arabic has 1.0 there, since every letter is a token of its own.
        syllabic: whether most letters are Chinese characters, kana or Korean syllables, of which each says
            more than a letter.
        scripts: those that at least 5 % of the letters are of, the most frequent first.
        words: how many words in Latin letters there were.
        pieces_per_word: tokens for each of these; 0 without them.
        english: tokens for each word of plain English news, by the same vocabulary.
        accents_lost: share of the Latin letters whose accent the tokenizer drops, 0 to 1.
        bases: base models that read these texts, each as a flag; none where they are read well enough.
    """

    unknown: float
    letters_per_token: float
    syllabic: bool = False
    scripts: tuple[ScriptFit, ...] = ()
    words: int = 0
    pieces_per_word: float = 0.0
    english: float = 0.0
    accents_lost: float = 0.0
    bases: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All fields and the warning as JSON types."""
        return {**asdict(self), "warning": self.warning}

    @property
    def unread(self) -> ScriptFit | None:
        """The most frequent script that the vocabulary does not read, by ``ScriptFit.is_unread``."""
        return next((script for script in self.scripts if script.is_unread), None)

    @property
    def is_foreign(self) -> bool:
        """Whether the words are in Latin letters, but hardly those that the vocabulary was made for.

        Of at least 100 words, each takes 1.45 times the tokens that an English one takes, or more; or the
        accents of more than 10 % of the letters are lost.

        Measured on manuals and news: English has 1.0 times the tokens of ``ENGLISH`` with all-MiniLM-L6-v2,
        code 1.2, eighteen other languages 1.5 (Spanish, French) to 2.5 (Turkish); with XLM-R's vocabulary
        all have 0.9 to 1.3. Vietnamese, 1.3 to 1.4 with all-MiniLM-L6-v2, is found by its accents.
        """
        if self.words < _WORDS_AT_LEAST:
            return False
        many = self.pieces_per_word >= _TIMES_ENGLISH * self.english
        return many or self.accents_lost > _ACCENTS_LOST_AT_MOST

    @property
    def warning(self) -> str | None:
        """What is wrong and what to do, in a line; None where the vocabulary fits the texts."""
        use = " or ".join(self.bases)
        if (unread := self.unread) is not None:
            advice = f"use {use}" if use else f"no base model known by name reads {unread.name}"
            return f"{unread.fault()}: {advice}"
        if self.is_foreign:
            found = (
                f"words fall into {self.pieces_per_word:.1f} tokens each, those of English news into "
                f"{self.english:.1f}"
            )
            if self.accents_lost > _ACCENTS_LOST_AT_MOST:
                found = f"the accents of {self.accents_lost:.0%} of the letters are not read"
            return f"{found}: where these texts are not English, {use} should read them better"
        return None


def vocabulary_fit(
    texts: Iterable[tuple[str, Sequence[Piece]]],
    *,
    english: tuple[str, Sequence[Piece]],
    drops_accents: bool,
    bases: Callable[[str | None], tuple[str, ...]],
) -> VocabularyFit:
    """How well a vocabulary covers texts, given each with its tokens, special ones left out.

    ``english`` is ``ENGLISH`` with its tokens, ``drops_accents`` says whether the tokenizer does that,
    ``bases`` gives the flags of base models that read a language (None: one in Latin letters).
    """
    letters, tokens, unknown = Counter[str](), Counter[str](), Counter[str]()
    words = accented = 0
    for text, pieces in texts:
        read = text[: max((end for _, end, _ in pieces), default=0)]
        for character, count in Counter(read).items():
            if script := _script(character):
                letters[script] += count
                accented += count * _is_accented(character)
        words += sum(_script_of(word) == _LATIN for word in words_of(read.replace("_", " ")))
        for start, end, is_unknown in pieces:
            script = _script_of(text[start:end])
            tokens[script] += 1
            unknown[script] += is_unknown
    total, all_letters = tokens.total(), letters.total()
    fit = VocabularyFit(
        unknown=unknown.total() / total if total else 0.0,
        letters_per_token=all_letters / (total - tokens[""]) if all_letters else 0.0,
        syllabic=2 * (letters[_HAN] + letters[_KANA] + letters[_HANGUL]) > all_letters,
        scripts=tuple(_script_fits(letters, tokens, unknown)),
        words=words,
        pieces_per_word=tokens[_LATIN] / words if words else 0.0,
        english=len([piece for piece in english[1] if _script_of(english[0][slice(*piece[:2])])])
        / len(words_of(english[0])),
        accents_lost=accented / letters[_LATIN] if drops_accents and accented else 0.0,
    )
    if fit.warning is None:
        return fit
    unread = fit.unread
    return replace(fit, bases=bases(None if unread is None else unread.language))


def _script_fits(letters: Counter[str], tokens: Counter[str], unknown: Counter[str]) -> Iterator[ScriptFit]:
    """The fit of each frequent script, by the counts of each; kana go with Chinese characters."""
    is_japanese = letters[_KANA] > _KANA_FROM * letters[_HAN]
    names = {**dict.fromkeys((_KANA, _HAN), "Japanese" if is_japanese else "Chinese"), _HANGUL: "Korean"}
    languages = {**LANGUAGE_OF_SCRIPT, **dict.fromkeys((_KANA, _HAN), "ja" if is_japanese else "zh")}
    merged = {script: _HAN if script == _KANA else script for script in letters}
    of_letters, of_tokens, of_unknown = Counter[str](), Counter[str](), Counter[str]()
    for script, into in merged.items():
        of_letters[into] += letters[script]
        of_tokens[into] += tokens[script]
        of_unknown[into] += unknown[script]
    for script, count in of_letters.most_common():
        if count >= _SCRIPT_FROM * letters.total():
            in_tokens = max(1, of_tokens[script])
            yield ScriptFit(
                name=names.get(script, script.capitalize()),
                language=None if script == _LATIN else languages.get(script, "und"),
                share=count / letters.total(),
                unknown=of_unknown[script] / in_tokens,
                letters_per_token=count / in_tokens,
            )


@lru_cache(maxsize=1 << 17)
def _script_of(piece: str) -> str:
    """The script of the first letter, by Unicode's name; empty without letters."""
    return next(filter(None, map(_script, piece)), "")


@cache
def _script(character: str) -> str:
    """The script of a letter, as Unicode's name of it begins; empty for what is none, such as digits."""
    if not character.isalpha():
        return ""
    name = unicodedata.name(character, "").partition(" ")[0]
    if name in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HALFWIDTH"):
        return _KANA
    return "" if name in _NO_SCRIPT else _LATIN if name == "FULLWIDTH" else name


@cache
def _is_accented(character: str) -> bool:
    """Whether it is a Latin letter with a mark that can be taken off."""
    first = unicodedata.normalize("NFD", character)[0]
    return not character.isascii() and first.isascii() and first.isalpha()
