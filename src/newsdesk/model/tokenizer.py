"""Texts to token ids, without torch or transformers: the same code at training and at prediction time."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Regex, Tokenizer, normalizers

from newsdesk.data.table import LONGEST_TEXT
from newsdesk.data.vocabulary import ENGLISH, Piece, VocabularyFit, vocabulary_fit
from newsdesk.data.words import Reading
from newsdesk.errors import UserError
from newsdesk.model.tokenizer_file import TOKENIZER, WORD_LIMIT, explained_panics, open_tokenizer, word_limit
from newsdesk.model.windows import CUT, LongTexts, Windows, readings

if TYPE_CHECKING:
    from newsdesk.config import ModelSection

TokenIds = NDArray[np.int64]

_TEXTS_MEASURED = 2000
_CHARACTERS_AT_ONCE = 4_000_000
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # what SentencePiece falls back to for characters that it lacks

EMPTY_TEXT, NO_KNOWN_TOKEN = "empty text", "no known token"
"""Why a text cannot be classified: the reasons that `TextTokenizer.encode_whole` finds."""

_PROBES = ("a", "0", ".", "\u7684")  # one of them is a token in any vocabulary


@dataclass(frozen=True)
class Truncation:
    """How many texts were longer than the model reads, and how much of them it did not read.

    Attributes:
        texts: how many texts there were.
        cut: how many of them were cut.
        tokens: tokens of all texts before cutting, special tokens included.
        lost: how many of these were not read.
    """

    texts: int = 0
    cut: int = 0
    tokens: int = 0
    lost: int = 0

    def __add__(self, other: Truncation) -> Truncation:
        """The counts of both."""
        return Truncation(
            self.texts + other.texts, self.cut + other.cut, self.tokens + other.tokens, self.lost + other.lost
        )

    @property
    def share_cut(self) -> float:
        """Share of the texts that were cut, 0 to 1."""
        return self.cut / self.texts if self.texts else 0.0

    @property
    def share_lost(self) -> float:
        """Share of the tokens that were not read, 0 to 1."""
        return self.lost / self.tokens if self.tokens else 0.0

    def describe(self, max_length: int) -> str:
        """A line for people."""
        return (
            f"{self.cut:,} of {self.texts:,} texts ({self.share_cut:.1%}) cut to {max_length:,} tokens; "
            f"{self.share_lost:.1%} of all tokens not read"
        )

    def to_dict(self) -> dict[str, float]:
        """Counts and shares."""
        return {**asdict(self), "share_cut": self.share_cut, "share_lost": self.share_lost}


@dataclass(frozen=True, eq=False)
class Encoded:
    """Some texts as token ids, and what became of each.

    Attributes:
        ids: token ids of each text, special tokens included, cut to what the model reads; of a text that is
            read in windows, those of all windows, once.
        lengths: tokens of each text before cutting, (texts,).
        unreadable: of each text, why there is nothing in it to classify; None where there is something.
        unknown_id: the token for what the vocabulary lacks; None where it lacks nothing.
        special: how many special tokens every text has.
        reach: tokens that are read of a text at most; None: all of them.
    """

    ids: list[TokenIds]
    lengths: NDArray[np.int64]
    unreadable: tuple[str | None, ...]
    unknown_id: int | None
    special: int
    reach: int | None = None

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Which texts can be classified, (texts,)."""
        return np.array([reason is None for reason in self.unreadable], dtype=np.bool_)

    @property
    def truncation(self) -> Truncation:
        """How much was cut off."""
        lost = self.lengths - lengths_of(self.ids)
        return Truncation(len(lost), int((lost > 0).sum()), int(self.lengths.sum()), int(lost.sum()))

    @property
    def unknown_share(self) -> float:
        """Share of the tokens read, special ones not counted, that the vocabulary does not know, 0 to 1."""
        tokens = sum(len(ids) - self.special for ids in self.ids)
        unknown = sum(int((ids == self.unknown_id).sum()) for ids in self.ids)
        return unknown / tokens if tokens else 0.0


class TextTokenizer:
    """A fast tokenizer with its special tokens, cutting texts to what is read of them and never padding.

    Attributes:
        max_length: tokens of a row that the encoder computes, special ones included; None: any number.
        windows: what is read of texts that are longer, and the rows that their token ids are computed in.
        opening: how many special tokens begin every text.
        closing_ids: ids of the special tokens that end it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_length: int | None,
        *,
        long_texts: LongTexts | None = None,
        vocabulary: int | None = None,
        path: Path = Path(TOKENIZER),
    ) -> None:
        """Take ``tokenizer`` over; its own truncation and padding settings are replaced.

        ``max_length`` is how many tokens a row of the encoder has, special ones included (None: any number),
        ``long_texts`` how texts of more are read (None: cut), ``vocabulary`` how many tokens the model knows,
        if that is to be checked, ``path`` for messages. Raises UserError when ``max_length`` leaves no room
        for a token of the text itself, or windows overlap too far.
        """
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
        if max_length is not None and max_length <= special:
            raise UserError(
                f"a maximum length of {max_length} leaves no room for text",
                found=f"{special} tokens of every text are this tokenizer's special ones; "
                f"model.max_length must be {special + 1} or more",
                fix="use --set model.max_length=128, or another number that your texts fit in",
            )
        tokenizer.no_padding()
        tokenizer.no_truncation()  # `encode_whole` cuts, and so knows how long a text was
        self._tokenizer = tokenizer
        self.opening, self.closing_ids = _special_tokens_around_text(tokenizer)
        # The mark that SentencePiece puts before a word says as little as the unknown token.
        self._unknown = {_unknown_id(tokenizer), tokenizer.token_to_id("\u2581")}
        self.max_length, closing = max_length, len(self.closing_ids)
        self.windows = Windows(max_length, self.opening, closing, long_texts or CUT)
        self._vocabulary, self._path = vocabulary, path

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        max_length: int | None,
        *,
        long_texts: LongTexts | None = None,
        vocabulary: int | None = None,
    ) -> TextTokenizer:
        """Read ``tokenizer.json`` of a run or base model; the other arguments are as for the class.

        ``vocabulary`` is how many tokens the model knows, where texts go to one that does not check it.
        Raises UserError when it is missing or broken, or ``max_length`` too small for it.
        """
        tokenizer = open_tokenizer(folder)
        with explained_panics(folder / TOKENIZER):
            steps = tokenizer.normalizer
            if isinstance(steps, normalizers.Sequence) and WORD_LIMIT in repr(steps):  # see `limit_words`
                tokenizer.normalizer = normalizers.Sequence([steps[place] for place in range(1, len(steps))])
            path = folder / TOKENIZER
            return cls(tokenizer, max_length, long_texts=long_texts, vocabulary=vocabulary, path=path)

    @classmethod
    def of_recipe(cls, folder: Path, model: ModelSection, *, vocabulary: int | None = None) -> TextTokenizer:
        """As ``from_folder``, for texts that are read as a recipe says."""
        long_texts = LongTexts.of(model)
        return cls.from_folder(folder, model.max_length, long_texts=long_texts, vocabulary=vocabulary)

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """Token ids of each text, special tokens included: int64 arrays of what is read of it."""
        return self.encode_whole(texts).ids

    def encode_whole(self, texts: Sequence[str]) -> Encoded:
        """Token ids as by ``encode``, the lengths before cutting, and which texts are unreadable.

        Raises UserError for a text of more than `LONGEST_TEXT` characters, and tokens that the model lacks.
        """
        cleaned = list(map(_encodable, texts))
        ids, lengths = [], np.empty(len(cleaned), dtype=np.int64)
        for place, encoding in enumerate(self._encodings(cleaned)):
            whole = encoding.ids
            lengths[place] = len(whole)
            ids.append(np.array(self.windows.read(whole), dtype=np.int64))
        self._require_known(ids)
        reasons = tuple(map(self._reason_unreadable, cleaned, ids))
        special = self.opening + len(self.closing_ids)
        return Encoded(ids, lengths, reasons, _unknown_id(self._tokenizer), special, self.windows.reach)

    def _encodings(self, texts: Sequence[str], *, with_offsets: bool = False) -> Iterator[Encoding]:
        """The library's encodings, of so many characters at once that memory does not grow with the texts."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        encode = self._tokenizer.encode_batch if with_offsets else self._tokenizer.encode_batch_fast
        start = 0
        while start < len(texts):
            end, characters = start, 0
            while end < len(texts) and (end == start or characters + len(texts[end]) <= _CHARACTERS_AT_ONCE):
                characters += len(texts[end])
                end += 1
            if characters > LONGEST_TEXT:
                raise UserError(
                    "a text is too long to be classified",
                    found=f"{characters:,} characters; the model reads a few thousand at most",
                    fix=f"cut it to {LONGEST_TEXT:,} characters or fewer",
                )
            with explained_panics(self._path):
                found = encode(texts[start:end])
            yield from found
            start = end

    def _require_known(self, ids: Sequence[TokenIds]) -> None:
        """Raise UserError for a token that is not in the model's table."""
        if self._vocabulary is None or not ids:
            return
        highest = int(np.concatenate(ids).max(initial=0))
        if highest >= self._vocabulary:
            raise UserError(
                f"{self._path} makes tokens that the model does not have",
                found=f"token {highest:,} ({self._tokenizer.id_to_token(highest)!r:.40}); "
                f"the model has {self._vocabulary:,}, from 0",
                fix="take tokenizer and model from the same base",
            )

    def fit(self, texts: Sequence[str]) -> VocabularyFit:
        """How well the vocabulary covers the texts; of more than 2,000, of 2,000 spread evenly over them."""
        from newsdesk.model.catalog import bases_that_read

        every = max(1, -(-len(texts) // _TEXTS_MEASURED))
        sample = [_encodable(text) for text in texts[::every]]
        return vocabulary_fit(
            self._pieces(sample),
            english=next(self._pieces([ENGLISH])),
            drops_accents=self._tokenizer.encode("\u00e9a").ids == self._tokenizer.encode("ea").ids,
            bases=bases_that_read,
        )

    def _pieces(self, texts: Sequence[str]) -> Iterator[tuple[str, list[Piece]]]:
        """Each text with its tokens, special ones left out."""
        unknown_id = _unknown_id(self._tokenizer)
        for text, encoding in zip(texts, self._encodings(texts, with_offsets=True), strict=True):
            spans, ids, tokens = encoding.offsets, encoding.ids, encoding.tokens
            yield (
                text,
                [
                    (*spans[i], ids[i] == unknown_id or _BYTE.fullmatch(tokens[i]) is not None)
                    for i, special in enumerate(encoding.special_tokens_mask)
                    if not special
                ],
            )

    def choices(self, model: ModelSection, lengths: NDArray[np.int64]) -> tuple[Reading, ...]:
        """What each value of ``model.long_texts`` reads and computes of texts, the given one first.

        ``lengths`` are the texts' tokens before anything is cut, special ones included, (texts,).
        """
        return readings(model, self.opening, len(self.closing_ids), lengths)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, as many as ``encode`` gives."""
        return [len(ids) for ids in self.encode(texts)]

    def _reason_unreadable(self, text: str, ids: TokenIds) -> str | None:
        """Why a text has nothing to classify; None where it has."""
        if all(unicodedata.category(character)[0] in "ZC" for character in text):
            return EMPTY_TEXT  # spaces, control characters and the like
        content = ids[self.opening : len(ids) - len(self.closing_ids)].tolist()
        return NO_KNOWN_TOKEN if all(token in self._unknown for token in content) else None


def lengths_of(sequences: Sequence[Sequence[int] | TokenIds]) -> NDArray[np.int64]:
    """Tokens of each text, (rows,)."""
    return np.array([len(sequence) for sequence in sequences], dtype=np.int64)


def limit_words(tokenizer: Tokenizer, max_length: int) -> None:
    """Let a tokenizer drop the words after the ``max_length``-th, which a model of that length cannot read.

    For programs that do not truncate, such as transformers' pipeline. Every word, and for BERT's tokenizers
    every punctuation mark and ideograph, is one token or more, so nothing is dropped that would be read.
    `TextTokenizer` lifts the limit, to count what it cuts off.
    """
    words = max_length - tokenizer.num_special_tokens_to_add(is_pair=False)
    bert = isinstance(tokenizer.normalizer, normalizers.BertNormalizer)
    limit = normalizers.Replace(Regex(word_limit(words, bert=bert)), "")
    others = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([limit, *others])


def _special_tokens_around_text(tokenizer: Tokenizer) -> tuple[int, list[int]]:
    """How many special tokens begin every text, and the ids of those that end it."""
    for probe in _PROBES:
        encoding = tokenizer.encode(probe)
        content = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
        if content:
            return content[0], encoding.ids[content[-1] + 1 :]
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    opening = (special + 1) // 2
    return opening, tokenizer.encode("").ids[opening:]


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of the token for what the vocabulary lacks; a model of unigrams has no name for it."""
    found: int | None = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "<unk>")
    return found


def _encodable(text: str) -> str:
    """The text with its lone surrogates (from broken JSON escapes) replaced: they have no UTF-8 form."""
    return text.encode("utf-8", "replace").decode("utf-8")


def pad(
    sequences: Sequence[TokenIds], pad_id: int, to_length: int | None = None
) -> tuple[TokenIds, TokenIds]:
    """Lay token ids of unequal length out in one matrix.

    Returns (input_ids, attention_mask), both int64 of shape (rows, longest or ``to_length``).
    """
    width = to_length or max(len(sequence) for sequence in sequences)
    input_ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    attention_mask = np.zeros((len(sequences), width), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = sequence
        attention_mask[row, : len(sequence)] = 1
    return input_ids, attention_mask


def length_sorted_batches(lengths: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Row positions in batches of similar length, longest first so that too large a batch fails at once."""
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def batches_by_tokens(lengths: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Row positions in batches of similar length, longest first, each of about ``budget`` padded tokens.

    A batch holds as many rows as fit when all are padded to its longest, and at least one.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        rows = max(1, budget // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + rows])
        start += rows
    return batches
