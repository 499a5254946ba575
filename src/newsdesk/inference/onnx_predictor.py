"""Predictions from an exported graph: tokenizers, onnxruntime and numpy; neither torch nor transformers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from newsdesk.errors import UserError
from newsdesk.inference.artefact import ArtefactFolder
from newsdesk.inference.text_classifier import ArtefactPredictor, Outputs
from newsdesk.model.tokenizer import TextTokenizer, TokenIds

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_BATCHES_PER_THREAD = 2  # with fewer, threads that come to their end early wait for long
_TOPOLOGY = Path("/sys/devices/system/cpu")


class OnnxPredictor(ArtefactPredictor):
    """An exported graph, ready to classify texts."""

    tokens_per_batch = 512  # what passes from operator to operator stays in a core's cache

    def __init__(self, artefact: ArtefactFolder, *, threads: int | None = None) -> None:
        """Load tokenizer and graph, and check the graph's sha256 meanwhile.

        ``threads`` compute one batch; None takes ``OMP_NUM_THREADS``, else the physical cores. Raises
        UserError when a file is missing, damaged or no graph that onnxruntime can run.
        """
        self._threads = threads or default_threads()
        with ThreadPoolExecutor(1) as helper:  # hashing lets the other threads run
            verified = helper.submit(artefact.verify_model)
            tokenizer = TextTokenizer.from_folder(artefact.path, artefact.labels.max_length)
            try:
                self._session = _open_session(artefact.model, self._threads)
            except Exception as error:  # onnxruntime's own classes derive from Exception alone
                verified.result()  # a damaged file is the better explanation
                raise UserError(
                    f"onnxruntime cannot run {artefact.model}",
                    found=(str(error).splitlines() or ["no reason given"])[0],
                    fix="export it again with newsdesk export, and with the versions installed here",
                ) from error
            verified.result()
        super().__init__(artefact, tokenizer, "onnxruntime")

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
        return _open_session(self.artefact.model, 1)


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
