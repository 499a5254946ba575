"""Texts to token ids, without torch or transformers: the same code at training and at prediction time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from newsdesk.errors import UserError

TokenIds = NDArray[np.int64]


class TextTokenizer:
    """A fast tokenizer with its special tokens, cutting texts to ``max_length`` and never padding."""

    def __init__(self, tokenizer: Tokenizer, max_length: int | None) -> None:
        """Take ``tokenizer`` over; its own truncation and padding settings are replaced.

        Raises UserError when ``max_length`` leaves no room for a token of the text itself.
        """
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
        if max_length is not None and max_length <= special:
            raise UserError(
                f"max_length leaves no room for text: {special} tokens of every text are special ones",
                found=f"model.max_length = {max_length}",
                fix="use --set model.max_length=128, or another number that your texts fit in",
            )
        tokenizer.no_padding()
        if max_length is None:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(max_length)
        self._tokenizer = tokenizer
        self.max_length = max_length

    @classmethod
    def from_folder(cls, folder: Path, max_length: int | None) -> TextTokenizer:
        """Read ``tokenizer.json`` of a run or base model. Raises UserError when it is missing or broken."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(
                f"there is no tokenizer.json in {folder}",
                fix="newsdesk needs a fast tokenizer: load the base with transformers' AutoTokenizer "
                "and save_pretrained() it into that folder",
            )
        try:
            return cls(Tokenizer.from_file(str(path)), max_length)
        except Exception as error:  # tokenizers raises bare Exception for a file it cannot parse
            raise UserError(f"{path} is not a tokenizer file", found=str(error)) from None

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """Token ids of each text, special tokens included: int64 arrays of at most ``max_length``."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        # Lone surrogates (from broken JSON escapes) have no UTF-8 form, which the tokenizer needs.
        cleaned = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        encodings = self._tokenizer.encode_batch_fast(cleaned)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, as many as ``encode`` gives."""
        return [len(ids) for ids in self.encode(texts)]


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
    """Row positions in batches of like length, longest first so that too large a batch fails at once."""
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def batches_by_tokens(lengths: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Row positions in batches of like length, longest first, each of about ``budget`` padded tokens.

    A batch holds as many rows as fit when all are padded to its longest, and at least one.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        rows = max(1, budget // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + rows])
        start += rows
    return batches
