"""What runs and exported models have in common: texts in, predictions out; only the engine differs."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.columns import TextLayout
from newsdesk.data.words import normalise
from newsdesk.errors import UserError
from newsdesk.files import damaged
from newsdesk.model.tokenizer import Encoded, TextTokenizer, TokenIds
from newsdesk.prediction.abstention import DecisionRule, Promises, decision_rule
from newsdesk.prediction.label_promises import label_rule
from newsdesk.prediction.predictions import Predictions
from newsdesk.progress import Progress
from newsdesk.runs.calibration import (
    CALIBRATION,
    CALIBRATION_ROWS,
    Calibration,
    HeldOutRows,
    read_calibration,
    read_held_out_rows,
    softmax,
)
from newsdesk.runs.label_decisions import LabelDecisions
from newsdesk.runs.labels import Labels
from newsdesk.runs.linear_model import LINEAR_MODEL, LinearModel
from newsdesk.runs.off_topic import OFF_TOPIC, OffTopicScore

_DECIDES_NOTHING = (
    *("metrics.json", "quality.json", "log.jsonl", "predictions-", "report-", "export/", "README.md"),
)


class Classifier(ABC):
    """A classifier of texts, whatever computes it.

    Attributes:
        path, files: the folder it was loaded from, and the sha256 of each file by its manifest.
        label_names: class names in id order.
        task: whether each text has one of them (``single``), or any number (``multi``).
        layout: how rows of a file become texts.
        engine: what computes it, in a few words.
        tokenizer: what makes token ids of texts.
        off_topic: measures how untypical a text is of the training topics; None: there is no such score.
        calibration: the temperature it predicts with, and how that was found; None: it predicts with 1.
        linear: the linear model beside the encoder, whose scores are a part of the answers where they are
            stacked; None: there is none.
    """

    def __init__(
        self, path: Path, labels: Labels, files: Mapping[str, str], tokenizer: TextTokenizer, engine: str
    ) -> None:
        self.path = path
        self.files = files
        self._labels = labels
        self.label_names = labels.names
        self.task = labels.task
        self.layout: TextLayout = labels.layout
        self.engine = engine
        self.calibration: Calibration | None = read_calibration(path)
        self.off_topic = OffTopicScore.of_folder(path)
        self.linear = LinearModel.of_folder(path, len(labels.names))
        self.tokenizer = tokenizer

    @property
    def max_length(self) -> int | None:
        """Tokens that it reads of a text at most, special ones included."""
        return self.tokenizer.windows.reach

    @property
    def special_tokens(self) -> tuple[int, int]:
        """How many special tokens begin and end every text."""
        return self.tokenizer.opening, len(self.tokenizer.closing_ids)

    @abstractmethod
    def encoder_outputs(
        self, sequences: Sequence[TokenIds], *, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Logits (rows, classes) of texts' token ids, in their order, and distances (rows,) by ``off_topic``.

        Those of a long text are pooled from its windows. The distances are None where ``off_topic`` is.
        """

    def outputs(
        self, sequences: Sequence[TokenIds], *, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """What the encoder computes, with the scores of a linear model added where one is stacked."""
        self.require_linear_model()
        logits, distances = self.encoder_outputs(sequences, progress=progress)
        return self.with_linear_model(logits, sequences), distances

    def require_linear_model(self) -> None:
        """Raise UserError where a linear model that may have been a part of the answers is not there."""
        if self.linear is None:
            self._require_unlisted(
                LINEAR_MODEL, "newsdesk calibrate RUN --stack or --no-stack makes it again"
            )

    def with_linear_model(
        self, logits: NDArray[np.float32], sequences: Sequence[TokenIds]
    ) -> NDArray[np.float32]:
        """The encoder's logits (rows, classes) of token ids, with a linear model's scores where due."""
        if self.linear is None or not self.linear.stack:
            return logits
        return self.linear.stacked(logits, self.linear.scores(sequences))

    def linear_scores(self, sequences: Sequence[TokenIds]) -> NDArray[np.float32] | None:
        """The linear model's scores of token ids, (rows, classes); None where there is none."""
        return None if self.linear is None else self.linear.scores(sequences)

    def require_numbers(self, logits: NDArray[np.float32]) -> None:
        """Raise UserError where the classifier computes what is no finite number: its weights are damaged."""
        if not np.isfinite(logits).all():
            found = "it computes logits that are no finite numbers"
            raise damaged(self.path, found, fix="copy it again from an undamaged copy, or train it again")

    @property
    def fingerprint(self) -> str:
        """sha256 of the engine and of all files that decide what it predicts."""
        deciding = sorted(item for item in self.files.items() if not item[0].startswith(_DECIDES_NOTHING))
        return hashlib.sha256(repr((self.engine, deciding)).encode()).hexdigest()

    @property
    def temperature(self) -> float:
        """What logits are divided by before they become probabilities.

        Raises UserError where the manifest lists a calibration that is not there: probabilities would differ.
        """
        if self.calibration is None:
            self._require_unlisted(CALIBRATION, "newsdesk calibrate makes it again")
            return 1.0
        return self.calibration.temperature

    @property
    def decisions(self) -> LabelDecisions | None:
        """Which labels a text gets by its logits; None where each has one.

        Of a run that was not calibrated: those more probable than not. Raises UserError where the manifest
        lists a calibration that is not there, and where it is of other labels.
        """
        if self.task == "single":
            return None
        if self.calibration is None:
            self._require_unlisted(CALIBRATION, "newsdesk calibrate makes it again")
            labels = len(self.label_names)
            return LabelDecisions((1.0,) * labels, (0.0,) * labels, (0.5,) * labels, at_least_one=False)
        found = self.calibration.decisions
        if found is None or len(found) != len(self.label_names):
            wrong = f"decisions of {len(found or ())} labels, not {len(self.label_names)}"
            raise damaged(self.path / CALIBRATION, wrong, fix=f"newsdesk calibrate {self.path}")
        return found

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Calibrated probabilities of logits, both (rows, classes).

        Rows sum to one; where a text may have several labels, each label has a probability of its own.
        """
        decisions = self.decisions
        return softmax(logits, self.temperature) if decisions is None else decisions.probabilities(logits)

    def _require_unlisted(self, name: str, fix: str) -> None:
        """Raise UserError for a file that is not there, if the manifest lists it."""
        if name in self.files:
            raise damaged(self.path / name, "listed in manifest.json, and not there", fix=fix)

    @property
    def folded(self) -> float:
        """What the weights of its last layer are divided by; its logits are given as before that."""
        return 1.0 if self.calibration is None else self.calibration.folded

    def describe(self) -> list[str]:
        """What to know of how it answered the texts so far, a line each."""
        return []

    def held_out_rows(self) -> HeldOutRows | None:
        """The rows that its promises rest on; None where there are none. Raises UserError if damaged."""
        return read_held_out_rows(self.path, self._labels)

    def decision_rule(self, **asked: Unpack[Promises]) -> DecisionRule | None:
        """What it answers to keep the promises asked for; None: it answers every text.

        Raises UserError where its calibration rows cannot promise as much, or it has none, or no off-topic
        score.
        """
        if asked.get("off_topic") is not None and self.off_topic is None:
            raise UserError(
                f"{self.path} cannot say which texts are off topic",
                found=f"no {OFF_TOPIC} in it",
                fix="newsdesk calibrate RUN makes one from a run's own rows; exports get it from their run",
            )
        rows = None
        if asked.get("abstain") is not None or asked.get("sets") is not None:
            rows = self.held_out_rows()
            if rows is None:
                raise UserError(
                    f"{self.path} has no calibration rows, which are needed to estimate the error rate",
                    found=f"no {CALIBRATION_ROWS} in it",
                    fix=f"newsdesk calibrate {self.path}, with labelled rows by --data if its own are not "
                    "known",
                )
        if self.decisions is not None:
            return label_rule(rows, self.decisions, self.off_topic, **asked)
        return decision_rule(rows, self.temperature, self.off_topic, **asked)

    def predict(
        self, texts: Sequence[str], *, progress: Progress | None = None, **asked: Unpack[Promises]
    ) -> Predictions:
        """Classify raw texts: a sequence of predictions in their order, each with all probabilities.

        Texts pass through the run's normaliser first, as the rows of its training file did.

        Args:
            texts: any number of them.
            progress: called with the rows done.
            asked: ``abstain``, ``confidence``, ``sets``, ``off_topic``, ``answer_empty``: see `Promises`.

        Raises:
            TypeError: for a single str, which would be taken for a sequence of letters.
            UserError: when the calibration rows cannot promise what is asked, or there is no off-topic score.
        """
        _refuse_one_text(texts, "predict")
        cleaned = [normalise(text, self.layout.normaliser) for text in texts]
        answer_empty = asked.get("answer_empty", False)
        rule = self.decision_rule(**asked)
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
        return self.predictions(encoded, logits, distances, rule, answer_empty=answer_empty)

    def predictions(
        self,
        encoded: Encoded,
        logits: NDArray[np.float32],
        distances: NDArray[np.float32] | None,
        rule: DecisionRule | None = None,
        *,
        answer_empty: bool = False,
    ) -> Predictions:
        """What follows from what ``outputs`` computed of texts that ``encode`` tokenised, by a rule."""
        return Predictions(
            self.probabilities(logits),
            self.label_names,
            rule,
            None if distances is None or not self.off_topic else self.off_topic.p_values(distances),
            None if answer_empty else encoded.unreadable,
            encoded.truncation,
            self.decisions,
        )

    def predict_probabilities(
        self, texts: Sequence[str], *, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Calibrated probabilities, (texts, classes); ``texts`` as for the logits.

        Raises TypeError for a single str.
        """
        _refuse_one_text(texts, "predict_probabilities")
        return self.probabilities(self.predict_logits(texts, progress=progress))

    def predict_logits(
        self, texts: Sequence[str], *, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Logits of shape (texts, classes), in the texts' order, which ``layout`` has normalised already.

        Raises TypeError for a single str.
        """
        _refuse_one_text(texts, "predict_logits")
        return self.outputs(self.token_ids(texts), progress=progress)[0]

    def token_ids(self, texts: Sequence[str]) -> list[TokenIds]:
        """The token ids of normalised texts, cut where the model stops reading: what ``outputs`` takes."""
        return self.encode(texts).ids

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The token ids of normalised texts, with what was cut off and which texts say nothing."""
        return self.tokenizer.encode_whole(texts)


def _refuse_one_text(texts: Sequence[str], method: str) -> None:
    """Raise TypeError for a single str, which would be taken for a sequence of letters."""
    if isinstance(texts, str):
        raise TypeError(f"{method} takes a sequence of texts; for one text write {method}([text])")
