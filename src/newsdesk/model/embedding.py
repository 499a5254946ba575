"""Texts to vectors by a frozen encoder: no adapter, no head, nothing trained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from newsdesk.model.classifier import quiet_transformers
from newsdesk.model.network import choose_device
from newsdesk.model.tokenizer import TextTokenizer, TokenIds, batches_by_tokens, pad

Rows = NDArray[np.int64]

_BATCH_TOKENS = 512  # fit into a core's cache; more take longer a token
_POSITIONS_FOR_PADDING = 2  # RoBERTa and MPNet number the tokens of a text from there


class TextEmbedder:
    """A base model as it is, in float32: a text becomes the mean of its tokens' last hidden states.

    The mean over all tokens, scaled to length 1, is what sentence encoders such as all-MiniLM were trained on
    (Reimers & Gurevych, 2019).

    Attributes:
        dimensions: length of a text's vector.
    """

    def __init__(self, base: Path, *, max_length: int, device: str = "auto") -> None:
        """Load encoder and tokenizer from the folder of a base model; texts are cut to ``max_length`` tokens.

        Raises UserError when the folder has no fast tokenizer, or the device is not there.
        """
        from transformers import AutoModel

        self._device = choose_device(device)
        with quiet_transformers():
            self._model = AutoModel.from_pretrained(base, dtype=torch.float32).to(self._device).eval()
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        positions = config.get("max_position_embeddings") or max_length + _POSITIONS_FOR_PADDING
        longest = min(max_length, positions - _POSITIONS_FOR_PADDING)
        self._tokenizer = TextTokenizer.from_folder(base, longest)
        self._pad_id = int(config.get("pad_token_id") or 0)
        self.dimensions = int(self._model.config.hidden_size)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """A vector of length 1 for each text, float32 (rows, dimensions), in the texts' order.

        Computed in batches of like length.
        """
        sequences = self._tokenizer.encode(texts)
        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        for rows, means in self._computed(sequences, batches_by_tokens(lengths, _BATCH_TOKENS)):
            vectors[rows] = means
        return vectors

    def _computed(
        self, sequences: Sequence[TokenIds], batches: Sequence[Rows]
    ) -> Iterator[tuple[Rows, NDArray[np.float32]]]:
        """Each batch's rows and vectors; on a CPU every core computes batches of its own."""

        def vectors_of(rows: Rows) -> tuple[Rows, NDArray[np.float32]]:
            return rows, self._vectors([sequences[row] for row in rows])

        if self._device.type != "cpu":
            yield from map(vectors_of, batches)
            return
        cores = torch.get_num_threads()
        torch.set_num_threads(1)  # cores that share a small batch's products wait for each other
        try:
            with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                yield from pool.map(vectors_of, batches)
        finally:
            torch.set_num_threads(cores)

    @torch.inference_mode()
    def _vectors(self, sequences: Sequence[TokenIds]) -> NDArray[np.float32]:
        """One batch, (rows, dimensions)."""
        input_ids, mask = (torch.from_numpy(array).to(self._device) for array in pad(sequences, self._pad_id))
        hidden = self._model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        total = (mask.unsqueeze(1).float() @ hidden).squeeze(1)  # the mean but for its length
        vectors: NDArray[np.float32] = F.normalize(total, dim=1).cpu().numpy()
        return vectors
