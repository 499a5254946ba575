"""Examples: texts with their class ids, the one thing that flows from the data room to the others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.labels import LabelMatching


@dataclass(frozen=True)
class Examples:
    """Texts and, where known, their classes.

    Attributes:
        texts: one string a row, ready for the tokenizer (template and normaliser applied).
        labels: int64 class ids of shape (rows,), or None for unlabelled texts.
        label_names: class names in id order; empty when unlabelled.
        source: where the rows came from, for messages and manifests.
        matching: how the file's labels became these classes, where they are those of a run.
    """

    texts: tuple[str, ...]
    labels: NDArray[np.int64] | None
    label_names: tuple[str, ...]
    source: str
    matching: LabelMatching | None = None

    def __post_init__(self) -> None:
        """Refuse rows and labels that do not line up; that is a defect of the caller."""
        if self.labels is not None and len(self.labels) != len(self.texts):
            raise ValueError(f"{len(self.texts)} texts but {len(self.labels)} labels")

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.texts)

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> Examples:
        """The rows at these positions, in this order."""
        index = np.asarray(rows, dtype=np.int64)
        labels = None if self.labels is None else self.labels[index]
        return replace(self, texts=tuple(self.texts[i] for i in index), labels=labels)

    def fingerprint(self) -> str:
        """A sha256 over texts, labels and label names: equal only where training sees the same rows."""
        digest = hashlib.sha256(len(self.label_names).to_bytes(8, "little"))
        for part in (*self.label_names, *self.texts):
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
        digest.update(b"unlabelled" if self.labels is None else self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


def joined(parts: Sequence[Examples]) -> Examples:
    """The labelled rows of several parts, in turn. Raises ValueError unless they have the same classes."""
    first = parts[0]
    labels = [part.labels for part in parts if part.labels is not None]
    if len(labels) < len(parts) or any(part.label_names != first.label_names for part in parts):
        raise ValueError("rows to be joined carry labels of the same classes")
    return Examples(
        tuple(text for part in parts for text in part.texts),
        np.concatenate(labels),
        first.label_names,
        ", ".join(dict.fromkeys(part.source for part in parts)),
        next((part.matching for part in parts if part.matching and part.matching.positions), None),
    )
