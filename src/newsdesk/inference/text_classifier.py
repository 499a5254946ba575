"""What a run and an artefact have in common: texts go in, predictions come out; only the engine differs."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import starmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.layout import TextLayout
from newsdesk.data.normalise import normalise
from newsdesk.inference.artefact import ArtefactFolder
from newsdesk.inference.predictions import Predictions, softmax
from newsdesk.model.tokenizer import TextTokenizer, TokenIds, batches_by_tokens, pad
from newsdesk.training.run_folder import Labels

TOKENS_PER_BATCH = 2048
"""Rows of a batch times its longest row: beyond it a processor gains nothing."""

_DECIDES_NOTHING = (
    *("metrics.json", "quality.json", "log.jsonl", "predictions-", "report-", "export/", "README.md"),
)


class TextClassifier(ABC):
    """A classifier of texts, whatever computes it.

    Attributes:
        path: the folder it was loaded from.
        label_names: class names in id order.
        layout: how rows of a file become texts.
        engine: what computes it, in a few words.
    """

    def __init__(self, path: Path, labels: Labels, tokenizer: TextTokenizer, engine: str) -> None:
        self.path = path
        self.label_names = labels.names
        self.layout: TextLayout = labels.layout
        self.engine = engine
        self._tokenizer = tokenizer

    @property
    @abstractmethod
    def files(self) -> Mapping[str, str]:
        """The sha256 of each of its files, as its manifest has them."""

    @abstractmethod
    def logits(
        self, sequences: Sequence[TokenIds], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Logits of shape (rows, classes) of token ids, in their order.

        ``progress`` is called with the number of rows of every batch done.
        """

    @property
    def fingerprint(self) -> str:
        """sha256 of the engine and of all files that decide what it predicts."""
        deciding = sorted(item for item in self.files.items() if not item[0].startswith(_DECIDES_NOTHING))
        return hashlib.sha256(repr((self.engine, deciding)).encode()).hexdigest()

    def predict(self, texts: Sequence[str]) -> Predictions:
        """Classify raw texts: a sequence of predictions in their order, each with all probabilities.

        Texts pass through the run's normaliser first, as the rows of its training file did. Raises TypeError
        for a single str, which would be taken for a sequence of letters.
        """
        if isinstance(texts, str):
            raise TypeError("predict takes a sequence of texts; for one text write predict([text])")
        cleaned = [normalise(text, self.layout.normaliser) for text in texts]
        return Predictions(self.predict_probabilities(cleaned), self.label_names)

    def predict_probabilities(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Probabilities of shape (texts, classes), each row summing to one; ``texts`` as for the logits."""
        return softmax(self.predict_logits(texts, progress=progress))

    def predict_logits(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Logits of shape (texts, classes), in the texts' order, which ``layout`` has normalised already."""
        return self.logits(self.token_ids(texts), progress=progress)

    def token_ids(self, texts: Sequence[str]) -> list[TokenIds]:
        """The token ids of normalised texts, cut where the model stops reading: what ``logits`` takes."""
        return self._tokenizer.encode(texts)


class ArtefactPredictor(TextClassifier):
    """A classifier from an artefact: length-sorted batches, padded and handed to its engine.

    Attributes:
        artefact: the folder it was loaded from.
        tokens_per_batch: rows of a batch times its longest row, at most.
    """

    tokens_per_batch = TOKENS_PER_BATCH

    def __init__(self, artefact: ArtefactFolder, tokenizer: TextTokenizer, engine: str) -> None:
        super().__init__(artefact.path, artefact.labels, tokenizer, f"{engine}, {artefact.kind}")
        self.artefact = artefact
        self._pad_id = artefact.pad_id

    @property
    def files(self) -> Mapping[str, str]:
        """The sha256 of each file of the artefact."""
        files: Mapping[str, str] = self.artefact.manifest["files"]
        return files

    def logits(
        self, sequences: Sequence[TokenIds], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Logits of shape (rows, classes) of token ids, in their order; rows of like length share a batch."""
        logits = np.zeros((len(sequences), len(self.label_names)), dtype=np.float32)
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        batches = batches_by_tokens(lengths, self.tokens_per_batch)
        inputs = [pad([sequences[row] for row in rows], self._pad_id) for rows in batches]
        for rows, computed in zip(batches, self._compute_all(inputs), strict=True):
            logits[rows] = computed
            if progress is not None:
                progress(len(rows))
        return logits

    def _compute_all(self, batches: Sequence[tuple[TokenIds, TokenIds]]) -> Iterable[NDArray[np.float32]]:
        """Logits of each batch in turn; an engine that computes several at once may override this."""
        return starmap(self._compute, batches)

    @abstractmethod
    def _compute(self, input_ids: TokenIds, attention_mask: TokenIds) -> NDArray[np.float32]:
        """Logits (rows, classes) of one batch; both inputs int64 of shape (rows, longest row)."""
