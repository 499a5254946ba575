"""Predictions from a run folder, computed with PyTorch; torch is imported when one is made, not before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import UserError, missing_package
from newsdesk.inference.text_classifier import TextClassifier
from newsdesk.model.tokenizer import TextTokenizer, TokenIds
from newsdesk.off_topic import lengths_of
from newsdesk.training.run_folder import RunFolder

if TYPE_CHECKING:
    from newsdesk.sources.source import Progress


class RunPredictor(TextClassifier):
    """A trained run, ready to classify texts.

    Attributes:
        run: the folder it was loaded from.
    """

    def __init__(self, run: RunFolder, *, device: str = "auto", progress: Progress | None = None) -> None:
        """Load base model, adapter and tokenizer.

        Raises UserError when torch is missing, or the base model is not the one the run was trained on.
        """
        labels = run.labels
        with needing_train_extra("predicting from a run folder"):
            from newsdesk.model.classifier import load_classifier
            from newsdesk.model.device import choose_device
            from newsdesk.model.network import Network

            model = load_classifier(base_of(run, progress), run.adapter, labels.names)
            # Evaluation figures must not depend on the machine: float32 everywhere.
            self._network = Network(model, choose_device(device), "float32").eval()
        tokenizer = TextTokenizer.from_folder(run.tokenizer, labels.max_length)
        super().__init__(run.path, labels, tokenizer, f"torch, {self._network.engine}")
        self.run = run

    @property
    def files(self) -> Mapping[str, str]:
        """The sha256 of each file of the run."""
        return self.run.manifest.files

    def outputs(
        self, sequences: Sequence[TokenIds], *, progress: Callable[[int], None] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """See TextClassifier."""
        from newsdesk.model.network import predict_logits, predict_with_features

        if self.off_topic is None:
            return predict_logits(self._network, sequences, progress=progress), None
        logits, features = predict_with_features(self._network, sequences, progress=progress)
        return logits, self.off_topic.distances(features, lengths_of(sequences))

    def features(self, sequences: Sequence[TokenIds]) -> NDArray[np.float32]:
        """What ``off_topic`` is fitted on: (rows, features) of token ids."""
        from newsdesk.model.network import predict_with_features

        return predict_with_features(self._network, sequences)[1]


@contextmanager
def needing_train_extra(purpose: str) -> Iterator[None]:
    """Turn the failing import of a package that only the extra ``train`` installs into a UserError."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "newsdesk"):
            raise
        raise missing_package(package, "train", purpose) from None


def base_of(run: RunFolder, progress: Progress | None) -> Path:
    """The base model's folder, its weights checked against what the manifest says the run was trained on."""
    from newsdesk.model.catalog import resolve_base

    recorded = run.manifest.base
    # The name of a local folder may be relative to where the training was started; its reference is not.
    base = resolve_base(recorded.reference, progress=progress)
    if recorded.sha256 is not None and base.sha256 != recorded.sha256:
        raise UserError(
            f"the base model {recorded.name} is not the one that {run.path} was trained on",
            found=f"sha256 {base.sha256}, trained on {recorded.sha256}",
            fix="put the original weights back, or train again on these",
        )
    return base.path
