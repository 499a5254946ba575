"""From a path to a classifier: a run or an exported model, and the engine that computes it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import UserError, missing_package
from newsdesk.model.tokenizer import TextTokenizer, TokenIds
from newsdesk.prediction.classifier import Classifier, ExportedClassifier, Outputs
from newsdesk.runs.exported import PREFERRED, ExportedModel, find_exported, preferred_export
from newsdesk.runs.folder import RunFolder, open_run
from newsdesk.runs.off_topic import lengths_of

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from newsdesk.progress import Progress


_BATCHES_PER_THREAD = 2  # with fewer, threads that come to their end early wait for long
_TOPOLOGY = Path("/sys/devices/system/cpu")


class OnnxClassifier(ExportedClassifier):
    """An exported graph, ready to classify texts."""

    tokens_per_batch = 512  # what passes from operator to operator stays in a core's cache

    def __init__(self, exported: ExportedModel, *, threads: int | None = None) -> None:
        """Load tokenizer and graph, and check the graph's sha256 meanwhile.

        ``threads`` compute one batch; None takes ``OMP_NUM_THREADS``, else the physical cores. Raises
        UserError when a file is missing, damaged or no graph that onnxruntime can run.
        """
        self._threads = threads or default_threads()
        with ThreadPoolExecutor(1) as helper:  # hashing lets the other threads run
            verified = helper.submit(exported.verify_model)
            tokenizer = TextTokenizer.from_folder(exported.path, exported.labels.max_length)
            try:
                self._session = _open_session(exported.model, self._threads)
            except Exception as error:  # onnxruntime's own classes derive from Exception alone
                verified.result()  # a damaged file is the better explanation
                raise UserError(
                    f"onnxruntime cannot run {exported.model}",
                    found=(str(error).splitlines() or ["no reason given"])[0],
                    fix="export it again with newsdesk export, and with the versions installed here",
                ) from error
            verified.result()
        super().__init__(exported, tokenizer, "onnxruntime")

    def _compute(self, input_ids: TokenIds, attention_mask: TokenIds) -> Outputs:
        return _run(self._session, self._wanted, input_ids, attention_mask)

    def _compute_all(self, batches: Sequence[tuple[TokenIds, TokenIds]]) -> Iterable[Outputs]:
        """Many batches go through a session of one thread, several at a time.

        Threads that share a batch wait for each other after every operator, and for those that use one
        thread alone. The second session is opened when it is first needed, its weights held once more.
        """
        if self._threads == 1 or len(batches) < _BATCHES_PER_THREAD * self._threads:
            return super()._compute_all(batches)
        return self._computed_at_once(batches)

    def _computed_at_once(self, batches: Sequence[tuple[TokenIds, TokenIds]]) -> Iterator[Outputs]:
        run = partial(_run, self._bulk_session, self._wanted)
        with ThreadPoolExecutor(self._threads) as pool:
            yield from pool.map(run, *zip(*batches, strict=True))

    @cached_property
    def _bulk_session(self) -> InferenceSession:
        return _open_session(self.exported.model, 1)


def default_threads() -> int:
    """Threads for one batch: ``OMP_NUM_THREADS`` where it is a number, else the cores we may run on.

    Two hardware threads of one core share its arithmetic units and count as one.
    """
    stated = os.environ.get("OMP_NUM_THREADS", "")
    if stated.isdigit() and int(stated):
        return int(stated)
    if not hasattr(os, "sched_getaffinity"):  # macOS, Windows
        return os.cpu_count() or 1
    siblings = (_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list" for cpu in os.sched_getaffinity(0))
    return len({path.read_text() if path.is_file() else str(path) for path in siblings})


def _run(
    session: InferenceSession, wanted: Sequence[str], input_ids: TokenIds, attention_mask: TokenIds
) -> Outputs:
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    outputs: Outputs = session.run(list(wanted), inputs)
    return outputs


def _open_session(model: Path, threads: int) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it serves batches of one shape; ours differ
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


class MergedClassifier(ExportedClassifier):
    """A merged model, ready to classify texts."""

    def __init__(self, exported: ExportedModel, *, device: str = "auto") -> None:
        """Load model and tokenizer in float32 after checking the weights' sha256.

        Raises UserError when a file is missing or damaged, or torch and transformers are not installed.
        """
        try:
            import torch
            import transformers
        except ModuleNotFoundError as error:
            raise UserError(
                f"a merged model needs the package {error.name}",
                found="it is not installed in this environment",
                fix=f"pip install 'newsdesk[train]', or export what needs neither: --to {PREFERRED[0]}",
            ) from None
        from newsdesk.model.network import choose_device

        exported.verify_model()
        self._device = choose_device(device)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            exported.path, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
        self._model = model.to(self._device).eval()
        tokenizer = TextTokenizer.from_folder(exported.path, exported.labels.max_length)
        super().__init__(exported, tokenizer, "transformers")

    def _compute(self, input_ids: TokenIds, attention_mask: TokenIds) -> Outputs:
        import torch

        from newsdesk.model.network import logits_and_features

        ids, mask = (torch.from_numpy(array).to(self._device) for array in (input_ids, attention_mask))
        with torch.inference_mode():
            computed = logits_and_features(self._model, ids, mask)
        return [tensor.cpu().numpy() for tensor in computed[: len(self._wanted)]]


class RunClassifier(Classifier):
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
            from newsdesk.model.network import Network, choose_device

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
        self, sequences: Sequence[TokenIds], *, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """See Classifier."""
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


Engine = Literal["auto", "onnx", "torch"]


def load(
    path: str | Path,
    *,
    engine: Engine = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> Classifier:
    """The run or exported model at ``path``, ready to classify texts.

    An exported model is computed by what it was made for. A run with an export (onnx-int8 before onnx-fp32)
    predicts with that, else with PyTorch; ``engine`` "onnx" or "torch" insists on one. ``device`` and
    ``progress`` concern PyTorch alone. Raises UserError when there is neither run nor exported model, or none
    that the engine can compute.
    """
    folder = Path(path)
    exported = find_exported(folder)
    if exported is not None:
        return _from_exported(exported, engine, device)
    run = open_run(folder)
    export = None if engine == "torch" else preferred_export(folder)
    if export is not None:
        return _from_exported(export, engine, device)
    if engine == "onnx":
        raise UserError(
            f"the run {folder} has no ONNX export",
            found=f"neither export/{PREFERRED[0]} nor export/{PREFERRED[1]} in it",
            fix=f"newsdesk export {folder} --to {PREFERRED[0]}",
        )

    return RunClassifier(run, device=device, progress=progress)


def _from_exported(exported: ExportedModel, engine: Engine, device: str) -> Classifier:
    computed_by = "torch" if exported.kind == "merged" else "onnx"
    if engine not in ("auto", computed_by):
        raise UserError(
            f"--engine {engine} cannot compute {exported.path}",
            found=f"an exported model of kind {exported.kind}",
            fix=f"leave --engine out, or make one with newsdesk export RUN --to "
            f"{'merged' if engine == 'torch' else PREFERRED[0]}",
        )
    if exported.kind == "merged":
        return MergedClassifier(exported, device=device)

    return OnnxClassifier(exported)
