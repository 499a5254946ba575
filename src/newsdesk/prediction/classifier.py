"""What runs and exported models have in common: texts in, predictions out; only the engine differs."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import starmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.columns import TextLayout
from newsdesk.data.words import normalise
from newsdesk.errors import UserError
from newsdesk.model.tokenizer import Encoded, TextTokenizer, TokenIds, batches_by_tokens, pad
from newsdesk.prediction.abstention import DecisionRule, decision_rule
from newsdesk.prediction.predictions import Predictions
from newsdesk.progress import Progress, counting
from newsdesk.runs.calibration import (
    CALIBRATION_ROWS,
    Calibration,
    HeldOutRows,
    read_calibration,
    read_held_out_rows,
    softmax,
)
from newsdesk.runs.exported import FEATURES, LOGITS, ExportedModel
from newsdesk.runs.folder import Labels
from newsdesk.runs.off_topic import OFF_TOPIC, OffTopicScore

Outputs = Sequence[NDArray[np.float32]]
TOKENS_PER_BATCH = 2048
"""Rows of a batch times its longest row: beyond it a processor gains nothing."""

_DECIDES_NOTHING = (
    *("metrics.json", "quality.json", "log.jsonl", "predictions-", "report-", "export/", "README.md"),
)


class Classifier(ABC):
    """A classifier of texts, whatever computes it.

    Attributes:
        path: the folder it was loaded from.
        label_names: class names in id order.
        layout: how rows of a file become texts.
        engine: what computes it, in a few words.
        off_topic: how foreign a text is to it; None: it cannot say.
        calibration: the temperature it predicts with, and how that was found; None: it predicts with 1.
    """

    def __init__(self, path: Path, labels: Labels, tokenizer: TextTokenizer, engine: str) -> None:
        self.path = path
        self.label_names = labels.names
        self.layout: TextLayout = labels.layout
        self.engine = engine
        self.calibration: Calibration | None = read_calibration(path)
        self.off_topic = OffTopicScore.of_folder(path)
        self._tokenizer = tokenizer

    @property
    def max_length(self) -> int | None:
        """Tokens that it reads of a text, special ones included."""
        return self._tokenizer.max_length

    @property
    @abstractmethod
    def files(self) -> Mapping[str, str]:
        """The sha256 of each of its files, as its manifest has them."""

    @abstractmethod
    def outputs(
        self, sequences: Sequence[TokenIds], *, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Logits (rows, classes) of token ids, in their order, and distances (rows,) by ``off_topic``.

        The latter are None where that is. ``progress`` is called with the rows done.
        """

    def logits(
        self, sequences: Sequence[TokenIds], *, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Logits of shape (rows, classes) of token ids, as ``outputs`` gives them."""
        return self.outputs(sequences, progress=progress)[0]

    @property
    def fingerprint(self) -> str:
        """sha256 of the engine and of all files that decide what it predicts."""
        deciding = sorted(item for item in self.files.items() if not item[0].startswith(_DECIDES_NOTHING))
        return hashlib.sha256(repr((self.engine, deciding)).encode()).hexdigest()

    @property
    def temperature(self) -> float:
        """What logits are divided by before they become probabilities."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    @property
    def folded(self) -> float:
        """What the weights of its last layer are divided by; its logits are given as before that."""
        return 1.0 if self.calibration is None else self.calibration.folded

    def decision_rule(
        self,
        *,
        abstain: float | None = None,
        confidence: float = 0.95,
        sets: float | None = None,
        off_topic: float | None = None,
        answer_empty: bool = False,
    ) -> DecisionRule | None:
        """What it may answer so that at most the share ``abstain`` of the answered is wrong, and what not
        because it is ``off_topic``.

        See `newsdesk.prediction.abstention`. Raises UserError where its calibration rows cannot promise as
        much, or it has none, or no off-topic score.
        """
        if off_topic is not None and self.off_topic is None:
            raise UserError(
                f"{self.path} cannot say which texts are off topic",
                found=f"no {OFF_TOPIC} in it",
                fix="newsdesk calibrate RUN makes one from a run's own rows; exports get it from their run",
            )
        rows = None if abstain is None and sets is None else self._calibration_rows()
        return decision_rule(
            rows,
            self.temperature,
            abstain=abstain,
            confidence=confidence,
            sets=sets,
            off_topic=off_topic,
            score=self.off_topic,
            answer_empty=answer_empty,
        )

    def _calibration_rows(self) -> HeldOutRows:
        rows = read_held_out_rows(self.path)
        if rows is None:
            raise UserError(
                f"{self.path} has no calibration rows, which are needed to estimate the error rate",
                found=f"no {CALIBRATION_ROWS} in it",
                fix=f"newsdesk calibrate {self.path}, with labelled rows by --data if its own are not known",
            )
        return rows

    def predict(
        self,
        texts: Sequence[str],
        *,
        abstain: float | None = None,
        confidence: float = 0.95,
        sets: float | None = None,
        off_topic: float | None = None,
        answer_empty: bool = False,
        progress: Progress | None = None,
    ) -> Predictions:
        """Classify raw texts: a sequence of predictions in their order, each with all probabilities.

        Texts pass through the run's normaliser first, as the rows of its training file did.

        Args:
            texts: as they are; any number.
            abstain: answer only so much that, of the answered, at most this share is wrong ...
            confidence: ... with this probability over the draw of the calibration rows.
            sets: name for each text the classes that hold the true one with this probability.
            off_topic: do not answer texts where at most this share of its own looks as foreign.
            answer_empty: classify empty texts too, and those without a known token, which else get no label.
            progress: called with the rows done.

        Raises:
            TypeError: for a single str, which would be taken for a sequence of letters.
            UserError: when the calibration rows cannot promise what is asked, or there is no off-topic score.
        """
        _refuse_one_text(texts, "predict")
        rule = self.decision_rule(
            abstain=abstain, confidence=confidence, sets=sets, off_topic=off_topic, answer_empty=answer_empty
        )
        cleaned = [normalise(text, self.layout.normaliser) for text in texts]
        return self.classify(cleaned, rule, answer_empty=answer_empty, progress=progress)

    def classify(
        self,
        texts: Sequence[str],
        rule: DecisionRule | None = None,
        *,
        answer_empty: bool = False,
        progress: Progress | None = None,
    ) -> Predictions:
        """What it says of texts that ``layout`` has normalised already, by a rule from `decision_rule`.

        Raises TypeError for a single str.
        """
        _refuse_one_text(texts, "classify")
        encoded = self.encode(texts)
        logits, distances = self.outputs(encoded.ids, progress=progress)
        return Predictions(
            softmax(logits, self.temperature),
            self.label_names,
            rule,
            None if distances is None or not self.off_topic else self.off_topic.p_values(distances),
            None if answer_empty else encoded.unreadable,
            encoded.truncation,
        )

    def predict_probabilities(
        self, texts: Sequence[str], *, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Calibrated probabilities, (texts, classes), rows summing to one; ``texts`` as for the logits.

        Raises TypeError for a single str.
        """
        _refuse_one_text(texts, "predict_probabilities")
        return softmax(self.predict_logits(texts, progress=progress), self.temperature)

    def predict_logits(
        self, texts: Sequence[str], *, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Logits of shape (texts, classes), in the texts' order, which ``layout`` has normalised already.

        Raises TypeError for a single str.
        """
        _refuse_one_text(texts, "predict_logits")
        return self.logits(self.token_ids(texts), progress=progress)

    def token_ids(self, texts: Sequence[str]) -> list[TokenIds]:
        """The token ids of normalised texts, cut where the model stops reading: what ``logits`` takes."""
        return self.encode(texts).ids

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The token ids of normalised texts, with what was cut off and which texts say nothing."""
        return self._tokenizer.encode_whole(texts)


def _refuse_one_text(texts: Sequence[str], method: str) -> None:
    """Raise TypeError for a single str, which would be taken for a sequence of letters."""
    if isinstance(texts, str):
        raise TypeError(f"{method} takes a sequence of texts; for one text write {method}([text])")


class ExportedClassifier(Classifier):
    """A classifier from an exported model: length-sorted batches, padded and handed to its engine.

    Attributes:
        exported model: the folder it was loaded from.
        tokens_per_batch: rows of a batch times its longest row, at most.
    """

    tokens_per_batch = TOKENS_PER_BATCH

    def __init__(self, exported: ExportedModel, tokenizer: TextTokenizer, engine: str) -> None:
        exported.verify_calibration()
        super().__init__(exported.path, exported.labels, tokenizer, f"{engine}, {exported.kind}")
        self.exported = exported
        self._pad_id = exported.pad_id

    @property
    def files(self) -> Mapping[str, str]:
        """The sha256 of each file of the exported model."""
        return self.exported.manifest.files

    def outputs(
        self, sequences: Sequence[TokenIds], *, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """See Classifier; rows of like length share a batch."""
        logits = np.zeros((len(sequences), len(self.label_names)), dtype=np.float32)
        distances = None if self.off_topic is None else np.zeros(len(sequences), dtype=np.float32)
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        batches = batches_by_tokens(lengths, self.tokens_per_batch)
        count = counting(progress, len(sequences), "classifying")
        inputs = [pad([sequences[row] for row in rows], self._pad_id) for rows in batches]
        for rows, outputs in zip(batches, self._compute_all(inputs), strict=True):
            logits[rows] = outputs[0]
            if self.off_topic is not None and distances is not None:
                distances[rows] = self.off_topic.distances(outputs[1], lengths[rows])
            count(len(rows))
        return logits * np.float32(self.folded), distances

    @property
    def _wanted(self) -> tuple[str, ...]:
        """The outputs that a batch is computed for, by their names in a graph."""
        return (LOGITS,) if self.off_topic is None else (LOGITS, FEATURES)

    def _compute_all(self, batches: Sequence[tuple[TokenIds, TokenIds]]) -> Iterable[Outputs]:
        """Outputs of each batch in turn; an engine that computes several at once may override this."""
        return starmap(self._compute, batches)

    @abstractmethod
    def _compute(self, input_ids: TokenIds, attention_mask: TokenIds) -> Outputs:
        """What is wanted of one batch, each (rows, ...); both inputs int64 of shape (rows, longest row)."""
