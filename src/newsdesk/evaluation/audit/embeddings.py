"""The embeddings of the audited texts by a frozen encoder, kept beside the findings."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.config import ModelSection
from newsdesk.errors import missing_package
from newsdesk.files import read_regular, write_bytes
from newsdesk.model.catalog import ResolvedBase
from newsdesk.model.windows import LongTexts, Read
from newsdesk.progress import Progress, counting

LONGEST_TEXT = 128
"""Tokens a text is cut to, unless asked otherwise: a news text says at its beginning what it is about."""
EMBEDDINGS = "embeddings"
"""The folder of the embeddings, inside that of the findings."""
PIECE_ROWS = 1024
"""Texts that a file of embeddings holds; what a kill loses at most."""

_OWN_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""What turns texts into vectors, (rows, dimensions), such as ``TextEmbedder.embed``."""


def embed(
    texts: Sequence[str],
    base: ResolvedBase,
    folder: Path | None,
    *,
    long_texts: Read = "cut",
    purpose: str = "an audit",
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """The texts' embeddings by the frozen base, float32 (rows, dimensions), kept in a ``folder`` if named.

    ``long_texts`` is how texts of more tokens are read. ``progress`` is called with the rows done. Raises
    UserError where torch is missing, which ``purpose`` needs.
    """
    read = LongTexts.of(ModelSection(max_length=LONGEST_TEXT, long_texts=long_texts))

    def embedder() -> Embed:
        try:
            from newsdesk.model.network import TextEmbedder
        except ImportError:
            raise missing_package("torch", "train", purpose) from None
        return TextEmbedder(base.path, max_length=LONGEST_TEXT, long_texts=read).embed

    identity = f"{base.sha256 or base.path}, mean of {LONGEST_TEXT} tokens"
    if read is not None:
        identity += f", {read.describe(LONGEST_TEXT)}"
    return embed_stored(texts, folder, embedder, identity=identity, progress=progress)


def embed_stored(
    texts: Sequence[str],
    folder: Path | None,
    embedder: Callable[[], Embed],
    *,
    identity: str,
    columns: int | None = None,
    what: str = "embedding",
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """The embedding of each text, float32 (rows, dimensions), read from ``folder`` where it is there.

    Or other vectors, such as probabilities, of so many ``columns``: ``what`` is shown as being done.

    Each piece of 1,024 texts is a file named by the hash of its texts and of ``identity`` (the base model's
    hash), written when it is computed: change a text, and only its piece is computed again. A damaged file
    counts as none. ``embedder`` is called once, and only if something is missing. In the end ``folder`` holds
    these pieces and no others. ``progress`` is called with the rows done.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load, save

    count = counting(progress, len(texts), what)
    compute: Embed | None = None
    pieces, names = [], set()
    for start in range(0, len(texts), PIECE_ROWS):
        part = texts[start : start + PIECE_ROWS]
        digest = hashlib.sha256(identity.encode())
        for text in part:
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        path, piece = None if folder is None else folder / f"{digest.hexdigest()[:32]}.safetensors", None
        with suppress(OSError, SafetensorError, KeyError, TypeError):
            piece = None if path is None else load(read_regular(path))[EMBEDDINGS]
        if piece is None or not _is_usable(piece, len(part), columns):
            compute = compute or embedder()
            piece = compute(part)
            if path is not None:
                write_bytes(path, save({EMBEDDINGS: np.ascontiguousarray(piece)}))
        columns = piece.shape[1]
        count(len(part))
        pieces.append(np.asarray(piece, dtype=np.float32))
        names.add(path.name if path else "")
    for stale in folder.glob("*.safetensors") if folder else ():
        if stale.name not in names and _OWN_NAME.fullmatch(stale.name):
            stale.unlink()
    return np.concatenate(pieces)


def _is_usable(piece: NDArray[Any], rows: int, columns: int | None) -> bool:
    """Whether what a file holds are vectors of so many rows, and as long as others."""
    if piece.ndim != 2 or piece.dtype.kind != "f" or not np.isfinite(piece).all():
        return False
    return len(piece) == rows and piece.shape[1] == (columns or max(1, piece.shape[1]))
