"""The texts a run learned from, as 64-bit hashes: enough to recognise them, not to read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.duplicates import fold
from newsdesk.errors import counted
from newsdesk.files import damaged, write_bytes

KNOWN_TEXTS = "known_texts.safetensors"

_FORMAT = "1"
_FIX = "copy it anew from where it is whole, or train the run again"

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class LearnedRows:
    """How many of some rows a run already knows; their texts are compared without regard to case and space.

    Attributes:
        rows: how many were looked at.
        training: those whose text is among the run's training rows.
        validation: those whose text is among its validation rows, and not among the training rows.
        share: the share of the rows that the run knows, 0 to 1.
    """

    rows: int
    training: int
    validation: int
    share: float

    def note(self) -> str:
        """How many rows were not new to the run, and what that does to their figures, in a sentence."""
        if not self.training + self.validation:
            rows = counted(self.rows, "row")
            return f"no text of these {rows} is among the run's training or validation texts"
        return (
            f"{100 * self.share:.2f} % of these rows are not new to the run: the texts of {self.training:,} "
            f"of {self.rows:,} are among its training texts, of {self.validation:,} among its validation "
            "texts; on new texts it is likely to do worse"
        )


@dataclass(frozen=True, eq=False)
class KnownTexts:
    """The training and validation texts of a run.

    Of each text the file keeps 64 bits of its BLAKE2b hash, folded (``duplicates.fold``): 8 bytes a text.
    A new text is taken for a known one with a probability of texts / 2**64. Whoever has a text can tell
    whether it is among them; the texts themselves cannot be had from it. Empty texts are not kept.

    Attributes:
        training: sorted hashes of what was learned from, uint64, without repetition.
        validation: sorted hashes of the validation rows, likewise.
    """

    training: Hashes
    validation: Hashes

    @classmethod
    def of(cls, training: Sequence[str], validation: Sequence[str]) -> Self:
        """The known texts of these rows."""
        return cls(_distinct(training), _distinct(validation))

    def in_training(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Which of the texts are among the training rows, shape (texts,)."""
        return np.isin(_hashes(texts), self.training)

    def in_validation(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Which of the texts are among the validation rows and not among the training rows, (texts,)."""
        hashes = _hashes(texts)
        return np.isin(hashes, self.validation) & ~np.isin(hashes, self.training)

    def learned_rows(self, texts: Sequence[str]) -> LearnedRows:
        """How many of the texts the run learned from, or was validated on."""
        training, validation = self.in_training(texts), self.in_validation(texts)
        rows, known = len(texts), int((training | validation).sum())
        return LearnedRows(rows, int(training.sum()), int(validation.sum()), known / rows if rows else 0.0)

    def save(self, folder: Path) -> None:
        """Write it into a run or an export, atomically."""
        from safetensors.numpy import save

        tensors = {"training": self.training, "validation": self.validation}
        write_bytes(folder / KNOWN_TEXTS, save(tensors, metadata={"format": _FORMAT}))

    @classmethod
    def of_folder(cls, folder: Path) -> Self | None:
        """Those that a run or an export carries; None where it has none. Raises UserError if damaged."""
        from safetensors import SafetensorError, safe_open

        file = folder / KNOWN_TEXTS
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="numpy") as content:
                if (content.metadata() or {}).get("format") != _FORMAT:
                    raise ValueError(f"a format other than {_FORMAT}")
                return cls(content.get_tensor("training"), content.get_tensor("validation"))
        except (OSError, SafetensorError, ValueError) as error:
            raise damaged(file, str(error), fix=_FIX) from None


def _distinct(texts: Sequence[str]) -> Hashes:
    return np.setdiff1d(_hashes(texts), _hashes([""]))


def _hashes(texts: Iterable[str]) -> Hashes:
    """The hash of each folded text, uint64 (texts,)."""
    digests = b"".join(_digest(fold(text)) for text in texts)
    hashes: Hashes = np.frombuffer(digests, dtype="<u8").astype(np.uint64)
    return hashes


def _digest(folded: str) -> bytes:
    return blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=8).digest()
