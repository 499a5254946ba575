"""From a path to a classifier: a run or an exported model, and the engine that computes it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import UserError, missing_package
from newsdesk.files import damaged
from newsdesk.model.tokenizer import TextTokenizer, TokenIds, batches_by_tokens, lengths_of, pad
from newsdesk.model.windows import Windowed
from newsdesk.prediction.classifier import Classifier
from newsdesk.prediction.onnx_check import TOKENS, Port
from newsdesk.prediction.onnx_session import OnnxGraph, default_threads
from newsdesk.progress import Progress, counting
from newsdesk.runs.exported import (
    FEATURES,
    LOGITS,
    PREFERRED,
    ExportedModel,
    find_exported,
    preferred_export,
)
from newsdesk.runs.folder import RunFolder, open_run
from newsdesk.runs.off_topic import OFF_TOPIC
from newsdesk.runs.ready_made import name_of, require_own

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

Engine = Literal["auto", "onnx", "torch", "own"]
Checks = Literal["read", "all", "none"]
"""Files of an exported model checked against its manifest: those that predictions rest on, all, none."""
Outputs = Sequence[NDArray[np.float32]]

TOKENS_PER_BATCH = 2048
"""Rows of a batch times its longest row: beyond it a processor gains nothing."""
INPUTS = {"input_ids": TOKENS, "attention_mask": TOKENS}
"""The inputs of every graph that computes token ids."""
_BATCHES_PER_THREAD = 2  # with fewer, threads that finish early wait for long


def open_model(
    path: str | Path | RunFolder | ExportedModel,
    *,
    engine: Engine = "auto",
    device: str = "auto",
    threads: int | None = None,
    checks: Checks = "read",
    progress: Progress | None = None,
) -> Classifier:
    """The run or exported model at ``path``, ready to classify texts.

    Args:
        path: a run's folder or an exported model's, or the name of a ready-made classifier.
        engine: an exported model is computed by what it was made for. A run with an export (onnx-int8 before
            onnx-fp32) predicts with that under "auto", else with PyTorch; "onnx" and "torch" insist on one.
            "own" computes what ``path`` itself is: a run by PyTorch, never by its export.
        device: for PyTorch: "auto", "cpu", "cuda" or "mps".
        threads: for ONNX Runtime, that compute one batch; None: ``OMP_NUM_THREADS``, else the physical cores.
        checks: which files of an exported model are checked against the sha256 in its manifest.
        progress: called while a run's base model is fetched.

    Raises UserError when there is neither run nor exported model, when it is damaged, the engine cannot
    compute it or a package is missing, or the base model is not the one that the run was trained on.
    """
    found = find_model(path)
    if isinstance(found, RunFolder) and engine in ("auto", "onnx"):
        export = preferred_export(found.path)
        if export is None and engine == "onnx":
            require_own(found.path, "an ONNX export")
            raise UserError(
                f"the run {found.path} has no ONNX export",
                found=f"neither export/{PREFERRED[0]} nor export/{PREFERRED[1]} in it",
                fix=f"newsdesk export {found.path} --to {PREFERRED[0]}",
            )
        found = export or found
    if isinstance(found, RunFolder):
        return RunClassifier(found, device=device, progress=progress)
    if engine not in ("auto", "own", "torch" if found.kind == "merged" else "onnx"):
        raise UserError(
            f"--engine {engine} cannot compute {found.path}",
            found=f"an exported model of kind {found.kind}",
            fix=f"leave --engine out, or make one with newsdesk export RUN --to "
            f"{'merged' if engine == 'torch' else PREFERRED[0]}",
        )
    if found.kind == "merged":
        return MergedClassifier(found, device=device, checks=checks)
    if found.kind == "onnx-shared":
        from newsdesk.prediction.shared_model import SharedClassifier

        return SharedClassifier(found, threads=threads, checks=checks)
    return OnnxClassifier(found, threads=threads, checks=checks)


def find_model(path: str | Path | RunFolder | ExportedModel) -> RunFolder | ExportedModel:
    """The finished run or exported model in a folder, or a ready-made one by its name.

    Raises UserError where there is none.
    """
    if isinstance(path, RunFolder | ExportedModel):
        return path
    return find_exported(Path(path)) or open_run(Path(path))


class ExportedClassifier(Classifier):
    """A classifier from an exported model: length-sorted batches, padded and handed to its engine."""

    tokens_per_batch = TOKENS_PER_BATCH
    _shape_is_known = False

    def __init__(self, exported: ExportedModel, tokenizer: TextTokenizer, engine: str) -> None:
        engine = f"{engine}, {exported.kind}"
        super().__init__(exported.path, exported.labels, exported.manifest.files, tokenizer, engine)
        self.exported = exported
        # The outputs of a graph that a batch is computed for.
        self._wanted: tuple[str, ...] = (LOGITS,) if self.off_topic is None else (LOGITS, FEATURES)

    def encoder_outputs(
        self, sequences: Sequence[TokenIds], *, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """See Classifier; windows of like length share a batch."""
        windowed = self.tokenizer.windows.split(sequences)
        logits = np.zeros((len(windowed.ids), len(self.label_names)), dtype=np.float32)
        distances = features = None
        if self.off_topic is not None:
            distances = np.zeros(len(sequences), dtype=np.float32)
            if not windowed.is_single:  # a text's distance is that of its windows' mean
                features = np.zeros((len(windowed.ids), len(self.off_topic.projection)), dtype=np.float32)
        lengths = lengths_of(windowed.ids)
        batches = batches_by_tokens(lengths, self.tokens_per_batch)
        count = counting(progress, len(sequences), "classifying")
        inputs = [pad([windowed.ids[row] for row in rows], self.exported.pad_id) for rows in batches]
        if batches and not self._shape_is_known and all(len(rows) == logits.shape[1] for rows in batches):
            self._require_plausible(self._compute(inputs[0][0][:1], inputs[0][1][:1]), 1)
        for rows, outputs in zip(batches, self._compute_all(inputs), strict=True):
            self._require_plausible(outputs, len(rows))
            logits[rows] = outputs[0]
            if features is not None:
                features[rows] = outputs[1]
            elif self.off_topic is not None and distances is not None:
                distances[rows] = self.off_topic.distances(outputs[1], lengths[rows])
            count(windowed.texts_in(rows))
        pooled, of_windows = self.pooled(sequences, windowed, logits, features)
        return pooled, distances if of_windows is None else of_windows

    def pooled(
        self,
        sequences: Sequence[TokenIds],
        windowed: Windowed,
        logits: NDArray[np.float32],
        features: NDArray[np.float32] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Logits (texts, classes) and distances (texts,) from (windows, ...): what it answers of its texts.

        The distances are None without features, and where there is no off-topic score.
        """
        self.require_numbers(logits)
        distances = None
        if self.off_topic is not None and features is not None:
            distances = self.off_topic.distances(windowed.mean(features), lengths_of(sequences))
        return windowed.pooled(logits) * np.float32(self.folded), distances

    def _require_plausible(self, outputs: Outputs, rows: int) -> None:
        """Raise UserError where the model was made for other classes or features than its folder says.

        And where what it computes are no numbers. Rows and classes that are as many could be exchanged.
        """
        wanted = [(rows, len(self.label_names))]
        if self.off_topic is not None:
            wanted.append((rows, len(self.off_topic.projection)))
        shapes = [output.shape for output in outputs]
        if shapes != wanted:
            fault = f"it computes {shapes} where {wanted} is expected"
        elif any(output.dtype != np.float32 or not np.isfinite(output).all() for output in outputs):
            fault = f"it computes {outputs[0].dtype} where finite float32 numbers are expected"
        else:
            self._shape_is_known |= rows != len(self.label_names)
            return
        raise damaged(self.exported.model, fault, fix=self.exported.fix)

    def _compute_all(self, batches: Sequence[tuple[TokenIds, TokenIds]]) -> Iterable[Outputs]:
        """Outputs of each batch in turn; an engine that computes several at once may override this."""
        return starmap(self._compute, batches)

    @abstractmethod
    def _compute(self, input_ids: TokenIds, attention_mask: TokenIds) -> Outputs:
        """What is wanted of one batch, each (rows, ...); both inputs int64 of shape (rows, longest row)."""


def _check(exported: ExportedModel, checks: Checks) -> None:
    """Compare files with the manifest's sha256. Raises UserError for the first that is missing or differs."""
    if checks == "all":
        exported.verify()
    elif checks == "read":
        exported.verify_model()
        exported.verify_calibration()


class OnnxClassifier(ExportedClassifier):
    """An exported graph, ready to classify texts."""

    tokens_per_batch = 512  # what passes from operator to operator stays in a core's cache

    def __init__(
        self, exported: ExportedModel, *, threads: int | None = None, checks: Checks = "read"
    ) -> None:
        """Load tokenizer and graph, and check the files' sha256 meanwhile. Raises as `open_model` does."""
        self._threads = threads or default_threads()
        with ThreadPoolExecutor(1) as helper:  # hashing lets the other threads run
            verified = helper.submit(self._verify, exported, checks)
            tokenizer = self._open_tokenizer(exported)
            try:
                self._open_graphs(exported)
            except OSError as error:
                raise damaged(exported.model, str(error), fix=exported.fix) from None
            except UserError:
                verified.result()  # a damaged file is the better explanation
                raise
            verified.result()
        super().__init__(exported, tokenizer, "onnxruntime")

    def _verify(self, exported: ExportedModel, checks: Checks) -> None:
        _check(exported, checks)

    def _open_tokenizer(self, exported: ExportedModel) -> TextTokenizer:
        labels = exported.labels
        return TextTokenizer.from_folder(exported.path, labels.max_length, long_texts=labels.long_texts)

    def _open_graphs(self, exported: ExportedModel) -> None:
        """Open what computes it. Raises UserError for a graph that newsdesk does not run, and OSError."""
        logits = Port("float32", (None, len(exported.labels.names)))
        self._graph = OnnxGraph(exported.model, INPUTS, {LOGITS: logits}, threads=self._threads)

    def _compute(self, input_ids: TokenIds, attention_mask: TokenIds, *, alone: bool = False) -> Outputs:
        inputs = dict(zip(INPUTS, (input_ids, attention_mask), strict=True))
        return self._graph.run(self._wanted, inputs, tokens=input_ids.size, alone=alone)

    def _compute_all(self, batches: Sequence[tuple[TokenIds, TokenIds]]) -> Iterable[Outputs]:
        """Many batches are computed by one thread each, several at a time.

        Threads that share a batch wait for each other after every operator, and for those that use one
        thread alone.
        """
        if self._threads == 1 or len(batches) < _BATCHES_PER_THREAD * self._threads:
            yield from super()._compute_all(batches)
            return
        compute = partial(self._compute, alone=True)
        with ThreadPoolExecutor(self._threads) as pool:
            yield from pool.map(compute, *zip(*batches, strict=True))


class MergedClassifier(ExportedClassifier):
    """A merged model, ready to classify texts."""

    def __init__(self, exported: ExportedModel, *, device: str = "auto", checks: Checks = "read") -> None:
        """Load model and tokenizer in float32 after checking the files. Raises as `open_model` does."""
        with needing_train_extra("a merged model"):
            from newsdesk.model.architectures import vocabulary_of
            from newsdesk.model.classifier import load_merged
            from newsdesk.model.network import choose_device

        _check(exported, checks)
        self._device = choose_device(device)
        merged: Any = load_merged(exported.path, len(exported.labels.names))
        self._model = merged.to(self._device)
        known = vocabulary_of(self._model.config)
        labels = exported.labels
        tokenizer = TextTokenizer.from_folder(
            exported.path, labels.max_length, long_texts=labels.long_texts, vocabulary=known
        )
        super().__init__(exported, tokenizer, "transformers")

    def _compute(self, input_ids: TokenIds, attention_mask: TokenIds) -> Outputs:
        import torch

        from newsdesk.model.network import logits_and_features

        ids, mask = (torch.from_numpy(array).to(self._device) for array in (input_ids, attention_mask))
        with torch.inference_mode():
            computed = logits_and_features(self._model, ids, mask)
        return [tensor.cpu().numpy() for tensor in computed[: len(self._wanted)]]


class RunClassifier(Classifier):
    """A trained run, ready to classify texts."""

    def __init__(self, run: RunFolder, *, device: str = "auto", progress: Progress | None = None) -> None:
        """Load base model, adapter and tokenizer. Raises as `open_model` does."""
        labels = run.labels
        exported = f"newsdesk export {name_of(run.path) or run.path} --to onnx-int8 --data FILE --out FOLDER"
        with needing_train_extra(
            "predicting from a run folder",
            otherwise=f"where it is installed, {exported}; the exported model needs no torch",
        ):
            from newsdesk.model.architectures import vocabulary_of
            from newsdesk.model.classifier import load_classifier
            from newsdesk.model.network import Network, choose_device

            model = load_classifier(_base_of(run, progress), run.adapter, labels.names)
            tokenizer = TextTokenizer.from_folder(
                run.tokenizer,
                labels.max_length,
                long_texts=labels.long_texts,
                vocabulary=vocabulary_of(model.config),
            )
            # Evaluation figures must not depend on the machine: float32 everywhere.
            self._network = Network(model, choose_device(device), "float32", windows=tokenizer.windows).eval()
        engine = f"torch, {self._network.engine}"
        super().__init__(run.path, labels, run.manifest.files, tokenizer, engine)
        self.run = run

    def encoder_outputs(
        self, sequences: Sequence[TokenIds], *, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """See Classifier."""
        from newsdesk.model.network import predict_logits, predict_with_features

        if self.off_topic is None:
            logits = predict_logits(self._network, sequences, progress=progress)
            self.require_numbers(logits)
            return logits, None
        logits, features = predict_with_features(self._network, sequences, progress=progress)
        self.require_numbers(logits)
        if features.shape[1] != len(self.off_topic.projection):
            found = f"it is of {len(self.off_topic.projection)} features, the model of {features.shape[1]}"
            raise damaged(self.path / OFF_TOPIC, found, fix=self.run.fix)
        return logits, self.off_topic.distances(features, lengths_of(sequences))

    def features(self, sequences: Sequence[TokenIds]) -> NDArray[np.float32]:
        """What ``off_topic`` is fitted on: (rows, features) of token ids."""
        from newsdesk.model.network import predict_with_features

        return predict_with_features(self._network, sequences)[1]

    def adapted(self) -> PeftModel:
        """The classifier with its adapters, on the CPU."""
        adapted = self._network.model.to("cpu")
        classifier: Any = adapted.get_base_model()
        classifier.config.architectures = [type(classifier).__name__]  # the base's own may name another head
        return adapted

    def merged(self) -> PreTrainedModel:
        """The classifier as plain transformers, its adapters merged into float32 weights on the CPU.

        This uses the classifier up: it cannot predict afterwards.
        """
        merged: Any = self._network.model.to("cpu").merge_and_unload()
        for parameter in merged.parameters():  # the fused encoder made views of one matrix of some
            parameter.data = parameter.data.clone()
        merged.config.architectures = [type(merged).__name__]  # the base's own may name another head
        return merged.eval()  # type: ignore[no-any-return]


@contextmanager
def needing_train_extra(purpose: str, *, otherwise: str = "") -> Iterator[None]:
    """Turn the failing import of a package that only the extra ``train`` installs into a UserError.

    ``otherwise`` is what to do in place of installing it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "newsdesk"):
            raise
        raise missing_package(package, "train", purpose, otherwise=otherwise) from None


def _base_of(run: RunFolder, progress: Progress | None) -> Path:
    """The base model's folder, its weights checked against what the manifest says the run was trained on."""
    from newsdesk.model.catalog import resolve_base

    recorded = run.manifest.base
    # The name of a local folder may be relative to where the training was started; its reference is not.
    base = resolve_base(recorded.reference, progress=progress, flag=None)
    if recorded.sha256 is not None and base.sha256 != recorded.sha256:
        raise UserError(
            f"the base model {recorded.name} is not the one that {run.path} was trained on",
            found=f"sha256 {base.sha256}, trained on {recorded.sha256}",
            fix="put the original weights back, or train again on these",
        )
    return base.path
