"""What is one run's own where many share an encoder: the factors of its adapters, its pooler and its head.

A graph of shared layers has an input for each of the tensors here, those of a batch along a first axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import UserError
from newsdesk.files import stored_tensors, write_bytes

ADAPTER = "adapter.safetensors"
_FORMAT = "2"
_FIX = "copy the exported model again from an undamaged copy, or export the run again"
_MOST_RANK, _MOST_WIDTH = 8192, 1 << 26

Bytes = NDArray[np.int8]
Halves = NDArray[np.float16]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ExportedAdapter:
    """Adapters and head of a run, over an encoder that is as it was.

    Attributes:
        factors: float16 (rank, width). Row k is, for one adapted linear layer after the other in the graph's
            order, row k of A (in,) and then column k of B times alpha / rank (out,).
        pooler_weight: int8 (hidden, hidden),
        pooler_scale: float32 (1, hidden), and
        pooler_bias: float32 (1, hidden): (x W) * s + b, of the first token's state, before the tanh. It is
            the largest part: 8 bits are what the encoder's own weights have.
        head_weight: float16 (hidden, classes), and
        head_bias: float32 (1, classes), which make the logits of it.
    """

    factors: Halves
    pooler_weight: Bytes
    pooler_scale: Floats
    pooler_bias: Floats
    head_weight: Halves
    head_bias: Floats

    @classmethod
    def of(cls, run: object, **tensors: NDArray[Any]) -> Self:
        """Round float32 tensors of these names to how they are kept; ``run`` is named where they cannot be.

        The scale of the pooler comes of its weight. Raises UserError for numbers that float16 has not.
        """
        peaks = np.abs(tensors["pooler_weight"]).max(axis=0, keepdims=True)
        scale = np.where(peaks, peaks / 127, 1).astype(np.float32)
        rounded = {"pooler_weight": np.rint(tensors["pooler_weight"] / scale), "pooler_scale": scale}
        with np.errstate(over="ignore", invalid="ignore"):
            kept = {
                name: np.ascontiguousarray({**tensors, **rounded}[name], dtype=kind)
                for name, kind in _KINDS.items()
            }
        for name, values in kept.items():
            if not np.isfinite(values).all():
                raise UserError(
                    f"{run} cannot share its encoder with other runs",
                    found=f"its {name} holds numbers up to {np.abs(tensors[name]).max():.3g}, where those of "
                    "16 bits end at 65,504",
                    fix="export it alone, with --to onnx-int8",
                )
        return cls(**kept)

    @property
    def width(self) -> int:
        """Numbers of a row of the factors: inputs and outputs of all adapted layers together."""
        return int(self.factors.shape[1])

    @property
    def axes(self) -> dict[str, tuple[int | None, ...]]:
        """Of each input of a graph that can take it; None where adapters and batches may differ."""
        hidden = self.hidden
        sizes = ((None, self.width), (hidden, hidden), (1, hidden), (1, hidden), (hidden, None), (1, None))
        return {name: (None, *size) for name, size in zip(_KINDS, sizes, strict=True)}

    @property
    def hidden(self) -> int:
        """Numbers of a token's state."""
        return len(self.pooler_weight)

    @property
    def tensors(self) -> dict[str, Floats]:
        """What `of` made it of, float32, as it was rounded."""
        found = {name: np.asarray(getattr(self, name), dtype=np.float32) for name in _KINDS}
        found["pooler_weight"] *= found.pop("pooler_scale")
        return found

    @property
    def classes(self) -> int:
        """Classes of the head."""
        return int(self.head_weight.shape[1])

    def save(self, folder: Path) -> None:
        """Write it into an exported model. Atomic; whoever calls this seals the folder afterwards."""
        from safetensors.numpy import save

        tensors = {name: getattr(self, name) for name in _KINDS}
        write_bytes(folder / ADAPTER, save(tensors, metadata={"format": _FORMAT}))

    @classmethod
    def of_folder(cls, folder: Path, classes: int) -> Self:
        """The one in an exported model of so many classes. Raises UserError when it is missing or damaged."""
        with stored_tensors(folder / ADAPTER, fix=_FIX) as content:
            if (found := (content.metadata() or {}).get("format")) != _FORMAT:
                raise ValueError(f"the format {found!r:.20}, not {_FORMAT}")
            rank, width = content.get_slice("factors").get_shape()
            hidden = content.get_slice("pooler_weight").get_shape()[0]
            if not (1 <= rank <= _MOST_RANK and 1 <= width <= _MOST_WIDTH):
                raise ValueError(f"factors of ({rank:,}, {width:,})")
            for name, shape in _shapes(rank, width, hidden, classes).items():
                stored = content.get_slice(name)
                if (stored.get_dtype(), tuple(stored.get_shape())) != (_STORED[name], shape):
                    is_there = f"{stored.get_dtype()} {tuple(stored.get_shape())}"
                    raise ValueError(f"{name} is {is_there}, not {_STORED[name]} {shape}")
            tensors: dict[str, Any] = {name: content.get_tensor(name) for name in _KINDS}
            for name, values in tensors.items():
                if not np.isfinite(values).all():
                    raise ValueError(f"{name} holds numbers that are not finite")
            return cls(**tensors)


_KINDS = {
    "factors": np.float16,
    "pooler_weight": np.int8,
    "pooler_scale": np.float32,
    "pooler_bias": np.float32,
    "head_weight": np.float16,
    "head_bias": np.float32,
}
_NAMED = {np.int8: "I8", np.float16: "F16", np.float32: "F32"}
_STORED = {name: _NAMED[kind] for name, kind in _KINDS.items()}


def _shapes(rank: int, width: int, hidden: int, classes: int) -> dict[str, tuple[int, ...]]:
    shapes = ((rank, width), (hidden, hidden), (1, hidden), (1, hidden), (hidden, classes), (1, classes))
    return dict(zip(_KINDS, shapes, strict=True))


INPUTS: dict[str, Literal["float16", "float32", "int8"]] = {
    "factors": "float16",
    "pooler_weight": "int8",
    "pooler_scale": "float32",
    "pooler_bias": "float32",
    "head_weight": "float16",
    "head_bias": "float32",
}
"""The inputs of a graph that takes adapters, and the type of each."""


def stacked(adapters: Sequence[ExportedAdapter]) -> dict[str, NDArray[Any]]:
    """The inputs of a graph for a batch, by their names: an adapter for each row, or one for all.

    The largest rank and the largest head set the shapes; what others have less is zero, and so are their
    logits beyond their classes.
    """
    first = adapters[0]
    if all(each is first for each in adapters):
        return {name: getattr(first, name)[None] for name in _KINDS}
    rank = max(len(each.factors) for each in adapters)
    classes = max(each.classes for each in adapters)
    found: dict[str, NDArray[Any]] = {}
    for name, shape in _shapes(rank, first.width, first.hidden, classes).items():
        found[name] = rows = np.zeros((len(adapters), *shape), dtype=_KINDS[name])
        for row, adapter in zip(rows, adapters, strict=True):
            values = getattr(adapter, name)
            row[: values.shape[0], : values.shape[1]] = values
    return found
