"""Embeddings kept piece by piece, so that a second audit is quick and a kill costs one piece."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from newsdesk.files import write_bytes
from newsdesk.progress import Progress, counting

PIECE_ROWS = 1024
"""Texts a file holds; what a kill loses at most."""

_TENSOR = "embeddings"
_ENDING = ".safetensors"
_OWN_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")


Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""What turns texts into vectors, (rows, dimensions), such as ``TextEmbedder.embed``."""


def embed_stored(
    texts: Sequence[str],
    folder: Path,
    embedder: Callable[[], Embed],
    *,
    identity: str,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """The embedding of each text, float32 (rows, dimensions), read from ``folder`` where it is there.

    Each piece of 1,024 texts is a file named by the hash of its texts and of ``identity`` (the base model's
    hash), written when it is computed: change a text, and its piece alone is computed anew. A damaged file
    counts as none. ``embedder`` is called once, and only if something is missing. In the end ``folder`` holds
    these pieces and no others. ``progress`` is called with the rows done.
    """
    count = counting(progress, len(texts), "embedding")
    made: list[Embed] = []
    pieces, names = [], set()
    for start in range(0, len(texts), PIECE_ROWS):
        part = texts[start : start + PIECE_ROWS]
        path = folder / (_fingerprint(part, identity) + _ENDING)
        piece = _read(path, len(part))
        if piece is None:
            if not made:
                made.append(embedder())
            piece = made[0](part)
            _write(path, piece)
        count(len(part))
        pieces.append(piece)
        names.add(path.name)
    for stale in folder.glob(f"*{_ENDING}"):
        if stale.name not in names and _OWN_NAME.fullmatch(stale.name):
            stale.unlink()
    return np.concatenate(pieces)


def _fingerprint(texts: Sequence[str], identity: str) -> str:
    digest = hashlib.sha256(identity.encode())
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()[:32]


def _read(path: Path, rows: int) -> NDArray[np.float32] | None:
    """The piece, or None where it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    with suppress(FileNotFoundError, SafetensorError, KeyError):
        piece = load(path.read_bytes())[_TENSOR]
        if piece.ndim == 2 and len(piece) == rows:
            return np.asarray(piece, dtype=np.float32)
    return None


def _write(path: Path, piece: NDArray[np.float32]) -> None:
    from safetensors.numpy import save

    write_bytes(path, save({_TENSOR: np.ascontiguousarray(piece)}))
