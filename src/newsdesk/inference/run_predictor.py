"""Predictions from a run folder, computed with PyTorch; torch is imported when one is made, not before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.layout import TextLayout
from newsdesk.data.normalise import normalise
from newsdesk.errors import UserError, missing_package
from newsdesk.inference.predictions import Predictions, softmax
from newsdesk.model.catalog import resolve_base
from newsdesk.model.tokenizer import TextTokenizer
from newsdesk.sources.source import Progress
from newsdesk.training.run_folder import RunFolder, open_run


class RunPredictor:
    """A trained run, ready to classify texts.

    Attributes:
        run: the folder it was loaded from.
        label_names: class names in id order.
        layout: how rows of a file become texts.
    """

    def __init__(self, run: RunFolder, *, device: str = "auto", progress: Progress | None = None) -> None:
        """Load base model, adapter and tokenizer.

        Raises UserError when torch is missing, or the base model is not the one the run was trained on.
        """
        self.run = run
        self.label_names = run.labels.names
        self.layout: TextLayout = run.labels.layout
        with needing_train_extra("predicting from a run folder"):
            from newsdesk.model.classifier import load_classifier
            from newsdesk.model.device import choose_device
            from newsdesk.model.network import Network

            model = load_classifier(base_of(run, progress), run.adapter, self.label_names)
            # Evaluation figures must not depend on the machine: float32 everywhere.
            self._network = Network(model, choose_device(device), "float32").eval()
        self._tokenizer = TextTokenizer.from_folder(run.tokenizer, run.labels.max_length)

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
        """Logits of shape (texts, classes), in the texts' order, which ``layout`` has normalised already.

        ``progress`` is called with the number of texts of every batch done.
        """
        from newsdesk.model.network import predict_logits

        return predict_logits(self._network, self._tokenizer.encode(texts), progress=progress)


def load(path: str | Path, *, device: str = "auto", progress: Progress | None = None) -> RunPredictor:
    """The run at ``path``, ready to classify texts. Raises UserError when it is not a finished run."""
    return RunPredictor(open_run(Path(path)), device=device, progress=progress)


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
    recorded = run.manifest["base"]
    # The name of a local folder may be relative to where the training was started; its reference is not.
    base = resolve_base(recorded["reference"], progress=progress)
    if recorded["sha256"] is not None and base.sha256 != recorded["sha256"]:
        raise UserError(
            f"the base model {recorded['name']} is not the one that {run.path} was trained on",
            found=f"sha256 {base.sha256}, trained on {recorded['sha256']}",
            mend="put the original weights back, or train again on these",
        )
    return base.path
