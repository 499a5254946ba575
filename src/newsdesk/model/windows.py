"""Long texts: what is read of them, in how many windows, and how the windows' outputs become one answer.

A text that fits into one row of the encoder is one window, and is computed as if there were no windows. A
longer one is divided evenly: its windows are of equal length and overlap, and each has the special tokens of
a text of its own. So no window is a scrap of a few tokens, all count the same, and rows of a batch are alike.
No torch in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.words import Reading
from newsdesk.errors import UserError, counted

if TYPE_CHECKING:
    from newsdesk.config import ModelSection

Read = Literal["cut", "head-tail", "windows"]
Pooling = Literal["mean", "max"]
Ids = NDArray[np.int64]
Floats = NDArray[np.float32]

MOST_WINDOWS = 1024


@dataclass(frozen=True)
class LongTexts:
    """How texts are read that do not fit into one row of the encoder: a part of labels.json.

    Attributes:
        read: the beginning (cut); the first and the last tokens (head-tail; Sun et al., 2019), half each; or
            the text window after window (windows).
        overlap: tokens that neighbouring windows have in common at least.
        max_windows: of a text; what is beyond them is not read.
        pooling: what the logits of a text are of those of its windows.
    """

    read: Read = "cut"
    overlap: int = 0
    max_windows: int = 1
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        """Raise ValueError for several windows where there can be one, and for too many."""
        if not 1 <= self.max_windows <= (MOST_WINDOWS if self.read == "windows" else 1):
            raise ValueError(f"max_windows is {self.max_windows}, for texts read by {self.read}")

    @classmethod
    def of(cls, model: ModelSection) -> LongTexts | None:
        """As a recipe has it; None where texts are cut, of which labels.json says nothing."""
        if model.long_texts != "windows":
            return None if model.long_texts == "cut" else cls(model.long_texts)
        overlap = model.window_overlap
        tokens = overlap if isinstance(overlap, int) else int(overlap * model.max_length)
        return cls("windows", tokens, model.max_windows, model.pooling)

    def describe(self, length: int) -> str:
        """What is read of a text where the encoder computes ``length`` tokens at once, part of a sentence."""
        if self.read == "windows":
            windows = f"{counted(self.max_windows, 'window')} of {length:,} tokens at most"
            overlap = f"which overlap by {self.overlap:,} or more"
            return f"read in {windows}, {overlap}; {self.pooling} of their logits"
        return f"cut at {length} tokens" if self.read == "cut" else f"first and last tokens, {length} in all"


CUT = LongTexts()


@dataclass(frozen=True)
class Windows:
    """Token ids of texts to windows.

    Attributes:
        length: tokens of a window at most, special ones included; None: a text is one window.
        opening, closing: how many special tokens begin and end every text, and every window.
        long_texts: what becomes of texts that are longer.
    """

    length: int | None = None
    opening: int = 0
    closing: int = 0
    long_texts: LongTexts = CUT

    def __post_init__(self) -> None:
        """Raise UserError where windows would not get ahead."""
        if self.length is not None and self.long_texts.read == "windows" and self._step < 1:
            raise UserError(
                "windows that overlap so far never reach the end of a text",
                found=f"{self.long_texts.overlap} of the {self._room} tokens of text in each window, which "
                f"model.max_length = {self.length} leaves",
                fix="use a smaller --set model.window_overlap, in tokens (16) or as a share (0.125)",
            )

    @property
    def _room(self) -> int:
        """Tokens of text in a window: its length without special ones."""
        return (self.length or 0) - self.opening - self.closing

    @property
    def _step(self) -> int:
        """Tokens by which full windows are apart."""
        return self._room - self.long_texts.overlap

    @property
    def reach(self) -> int | None:
        """Tokens that are read of a text at most, special ones included; None: all of them."""
        return None if self.length is None else self.length + (self.long_texts.max_windows - 1) * self._step

    def read(self, ids: list[int]) -> list[int]:
        """Of all token ids of a text those that are read, with the special tokens around them."""
        reach = self.reach
        if reach is None or len(ids) <= reach:
            return ids
        end = len(ids) - self.closing
        tail = (reach - self.opening - self.closing) // 2 if self.long_texts.read == "head-tail" else 0
        return ids[: reach - self.closing - tail] + ids[end - tail :]

    def shapes(self, lengths: Ids) -> tuple[Ids, Ids]:
        """How many windows texts of these ``lengths`` are, and the tokens of each of a text's, both (texts,).

        ``lengths`` counts the tokens that are read, special ones included.
        """
        if self.length is None or self.long_texts.max_windows == 1:
            return np.ones_like(lengths), lengths
        special, overlap = self.opening + self.closing, self.long_texts.overlap
        text = lengths - special
        counts = np.where(lengths <= self.length, 1, -(-(text - overlap) // self._step))
        return counts, special - (-(text + (counts - 1) * overlap) // counts)

    def split(self, sequences: Sequence[Ids]) -> Windowed:
        """The windows of texts, given by the token ids that are read of them."""
        counts, sizes = self.shapes(np.array([len(ids) for ids in sequences], dtype=np.int64))
        windows: list[Ids] = []
        for ids, count, size in zip(sequences, counts.tolist(), sizes.tolist(), strict=True):
            windows += [ids] if count == 1 else self._of_one(ids, count, size)
        return Windowed(windows, counts, self.long_texts.pooling)

    def _of_one(self, ids: Ids, count: int, size: int) -> Iterable[Ids]:
        """``count`` windows of ``size`` tokens each, spread evenly from the first token to the last."""
        first, last = ids[: self.opening], ids[len(ids) - self.closing :]
        text = ids[self.opening : len(ids) - self.closing]
        room = size - self.opening - self.closing
        for number in range(count):
            start = number * (len(text) - room) // (count - 1)
            yield np.concatenate([first, text[start : start + room], last])

    def reading(self, lengths: Ids) -> Reading:
        """How much is read and computed of texts of so many tokens, special ones included, (texts,)."""
        read = lengths if self.reach is None else np.minimum(lengths, self.reach)
        counts, sizes = self.shapes(read)
        return Reading(self.long_texts.read, int(lengths.sum()), int(read.sum()), int((counts * sizes).sum()))


@dataclass(frozen=True, eq=False)
class Windowed:
    """Some texts as windows.

    Attributes:
        ids: token ids of every window, those of one text together, in the texts' order.
        counts: how many windows each text has, (texts,).
        pooling: what the logits of a text are of those of its windows.
    """

    ids: list[Ids]
    counts: Ids
    pooling: Pooling

    @property
    def is_single(self) -> bool:
        """Whether every text is one window."""
        return len(self.ids) == len(self.counts)

    @cached_property
    def _firsts(self) -> Ids:
        """The first window of each text, (texts,)."""
        return np.cumsum(self.counts) - self.counts

    @cached_property
    def _begins(self) -> NDArray[np.bool_]:
        """Which windows are the first of their text, (windows,)."""
        begins = np.zeros(len(self.ids), dtype=np.bool_)
        begins[self._firsts] = True
        return begins

    def texts_in(self, rows: Ids) -> int:
        """How many texts begin in these windows: what progress counts."""
        return int(self._begins[rows].sum())

    def pooled(self, logits: Floats) -> Floats:
        """The logits of the texts, (texts, classes), from those of the windows, (windows, classes)."""
        if self.is_single or self.pooling == "mean":
            return self.mean(logits)
        return np.maximum.reduceat(logits, self._firsts)

    def mean(self, values: Floats) -> Floats:
        """The mean over the windows of each text, (texts, n), of (windows, n)."""
        if self.is_single:
            return values
        sums: Floats = np.add.reduceat(values, self._firsts)
        return np.divide(sums, self.counts[:, None], dtype=np.float32)


def readings(model: ModelSection, opening: int, closing: int, lengths: Ids) -> tuple[Reading, ...]:
    """How much each choice of ``model.long_texts`` reads of texts of these lengths; the recipe's own first.

    ``lengths`` are tokens of each text before anything is cut, special ones included, (texts,).
    """
    choices = sorted(get_args(Read), key=lambda choice: choice != model.long_texts)
    return tuple(
        Windows(
            model.max_length,
            opening,
            closing,
            LongTexts.of(model.model_copy(update={"long_texts": choice})) or CUT,
        ).reading(lengths)
        for choice in choices
    )
