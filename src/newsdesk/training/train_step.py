"""One optimiser step: the gradients of its batches, the update, and what goes wrong in it.

On a GPU a step can be recorded as CUDA graphs, one for each shape, and replayed at one launch: a step of a
small encoder is several hundred kernels of a few microseconds each, and launching them one by one takes the
processor longer than computing them takes the GPU (NVIDIA, 2019). Not measured on a card yet: off by default.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from newsdesk.config import ModelSection, TrainingSection
from newsdesk.errors import UserError, counted
from newsdesk.model.classifier import OUTPUT_LAYERS
from newsdesk.model.network import Network
from newsdesk.model.tokenizer import TokenIds, pad


def build_optimiser(model: nn.Module, training: TrainingSection) -> torch.optim.AdamW:
    """AdamW over all trainable parameters, adapters and head each with their learning rate.

    Biases and one-dimensional parameters are not decayed.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_head = "modules_to_save" in name
        rate = (
            training.head_learning_rate if is_head and training.head_learning_rate else training.learning_rate
        )
        decay = training.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": ps, "lr": rate, "weight_decay": decay, "full": rate}
            for (rate, decay), ps in groups.items()
        ],
        fused=True,
    )


_OUTPUT_BIASES = tuple(
    name
    for layer in OUTPUT_LAYERS
    for name in (
        f"{layer}.modules_to_save.default.bias",
        f"modules_to_save.default.{layer.split('.')[-1]}.bias",
    )
)
_LEAST_SHARE = 1e-3


def start_at_shares(classifier: nn.Module, shares: Sequence[float] | NDArray[np.floating]) -> None:
    """Let a fresh head of several labels a text begin at each label's share of the rows, (labels,).

    Else it begins at a half for all of them, and spends its first steps on unlearning it (Lin et al., 2017).
    """
    inside = np.clip(np.asarray(shares, dtype=np.float64), _LEAST_SHARE, 1 - _LEAST_SHARE)
    biases = [
        parameter
        for name, parameter in classifier.named_parameters()
        if parameter.requires_grad and parameter.ndim == 1 and name.endswith(_OUTPUT_BIASES)
    ]
    with torch.no_grad():
        for bias in biases:
            bias.copy_(torch.from_numpy(np.log(inside / (1 - inside))))


class LabelSetLoss(nn.BCEWithLogitsLoss):
    """Binary cross-entropy of every label of every text, as a sum; takes truth values, (rows, labels)."""

    def __init__(self, positive_weights: Tensor | None, smoothing: float) -> None:
        """Weigh the texts that have a label by ``positive_weights`` (labels,); smooth truth toward a half."""
        super().__init__(pos_weight=positive_weights, reduction="sum")
        self.smoothing = smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (rows, labels), a scalar."""
        truth = labels.to(logits.dtype)
        return super().forward(logits, truth * (1 - self.smoothing) + self.smoothing / 2)


def build_loss(
    training: TrainingSection, labels: NDArray[Any], classes: int
) -> nn.CrossEntropyLoss | LabelSetLoss:
    """Cross-entropy as a sum, with the recipe's label smoothing (Szegedy et al., 2016) or class weights.

    Of class ids (rows,) over all classes, of truth values (rows, labels) binary, label by label; then
    balanced weights give a text that has a label the square root of what evens out those without it, since
    the whole of it makes labels of a few texts drown all others.

    Balanced weights are inversely proportional to class frequency, mean 1 over the rows (King & Zeng, 2001);
    a class without rows gets 0. The mean of a step is this sum over the sum of its rows' weights
    (``row_weights``): the same whether the rows are computed in one batch, in several, or by several
    processes.
    """
    weight = None
    if labels.ndim == 2:
        if training.class_weights == "balanced":
            having = labels.sum(axis=0)
            evening = (len(labels) - having) / np.maximum(having, 1)
            weight = torch.tensor(np.where(having > 0, np.sqrt(evening), 1.0), dtype=torch.float32)
        return LabelSetLoss(weight, training.label_smoothing)
    if training.class_weights == "balanced":
        counts = np.bincount(labels, minlength=classes)
        balanced = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
        weight = torch.tensor(np.where(counts > 0, balanced, 0.0), dtype=torch.float32)
    return nn.CrossEntropyLoss(weight=weight, label_smoothing=training.label_smoothing, reduction="sum")


def row_weights(loss: nn.CrossEntropyLoss | LabelSetLoss, labels: NDArray[Any]) -> NDArray[np.float64]:
    """What each row counts in the mean loss, (rows,): its class's weight, or one; the labels of a set."""
    if labels.ndim == 2:
        return np.full(len(labels), float(labels.shape[1]))
    if loss.weight is None:
        return np.ones(len(labels))
    weights: NDArray[np.float64] = loss.weight.double().cpu().numpy()[labels]
    return weights


def cuda_graphs(network: Network) -> CudaCapture | None:
    """What records the network's steps as CUDA graphs; None off a GPU, or without the fused encoder."""
    return CudaCapture(network.device) if network.device.type == "cuda" and network.is_fused else None


class StepArithmetic:
    """Gradients and updates of one network, none of which waits for the device.

    Any number of ``add_gradients`` and then one ``update`` make a step. Losses and norms stay on the device
    until they are read. With a ``capture``, batches are padded to few widths, and work on a shape met before
    is replayed as one graph. Both ways give the same gradients.

    Attributes:
        scaler: scales losses in float16; does nothing in other precisions.
    """

    def __init__(
        self,
        network: Network,
        loss: nn.Module,
        optimiser: torch.optim.Optimizer,
        clip: float,
        capture: CudaCapture | None = None,
    ) -> None:
        """Take what a step needs: ``loss`` sums over a batch, ``clip`` is the largest gradient norm (0: any).

        The optimiser's state can be restored before the first step only: a recording keeps its tensors.
        """
        self.network, self.loss, self.optimiser, self.clip = network, loss, optimiser, clip or math.inf
        self.scaler = torch.amp.GradScaler(network.device.type, enabled=network.precision == "float16")
        self._trained: list[Tensor] = [p for group in optimiser.param_groups for p in group["params"]]
        self._recorders: tuple[Recorder, Recorder] | None = None
        if capture is not None:
            self._recorders = Recorder(self._add_gradients, capture), Recorder(self._update, capture)
            self._gradients = [torch.zeros_like(parameter) for parameter in self._trained]
            self._rates = [torch.zeros((), device=network.device) for _ in optimiser.param_groups]
            for parameter, gradient in zip(self._trained, self._gradients, strict=True):
                parameter.grad = gradient

    @property
    def recordings(self) -> int:
        """Number of graphs recorded so far: one a width, and one for the update."""
        return sum(recorder.recordings for recorder in self._recorders or ())

    def set_learning_rates(self, factor: float) -> None:
        """Give every parameter group this share of its full rate."""
        for number, group in enumerate(self.optimiser.param_groups):
            rate = factor * group["full"]
            group["lr"] = self._rates[number].fill_(rate) if self._recorders else rate

    def width(self, longest: int, to_length: int | None = None) -> int:
        """Tokens that a batch is computed at whose longest row has ``longest``."""
        if to_length is None and self._recorders is not None:
            return bucket_length(longest, self.network.model.config.max_position_embeddings)
        return to_length or longest

    def add_gradients(
        self,
        sequences: Sequence[TokenIds],
        labels: NDArray[Any],
        total_weight: float,
        to_length: int | None = None,
    ) -> Tensor:
        """Add the gradients of a batch's loss over ``total_weight``; returns that part of the loss, a scalar.

        Raises UserError where the device cannot record it.
        """
        network = self.network
        facts = network.on_device(labels), network.on_device(np.array(total_weight, dtype=np.float32))
        if self._recorders is None:
            return self._backward(*facts, network(sequences, to_length))
        width = to_length or self.width(max(len(sequence) for sequence in sequences))
        padded = (network.on_device(array) for array in pad(sequences, network.pad_id, width))
        return self._recorders[0](*facts, *padded)  # always masked: one form for each width

    def update(self) -> Tensor:
        """Clip the gradients, let the optimiser step, clear them; returns their norm before, a scalar.

        Raises UserError where the device cannot record it.
        """
        if self._recorders is None:
            return self._update()
        for parameter, gradient in zip(self._trained, self._gradients, strict=True):
            if parameter.grad is not gradient:  # exchanged for a sum over processes, say
                gradient.zero_() if parameter.grad is None else gradient.copy_(parameter.grad)
                parameter.grad = gradient
        return self._recorders[1]()

    def _add_gradients(
        self, labels: Tensor, total_weight: Tensor, input_ids: Tensor, attention_mask: Tensor | None
    ) -> Tensor:
        return self._backward(labels, total_weight, self.network.logits(input_ids, attention_mask))

    def _backward(self, labels: Tensor, total_weight: Tensor, logits: Tensor) -> Tensor:
        loss: Tensor = self.loss(logits, labels) / total_weight
        self.scaler.scale(loss).backward()
        return loss.detach()

    def _update(self) -> Tensor:
        if self.network.device.type == "cuda":  # torch demands it while capturing, and warns of it otherwise
            for group in self.optimiser.param_groups:
                group["capturable"] = torch.cuda.is_current_stream_capturing()
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=self._recorders is None)
        return norm


_FINEST = 8


def bucket_length(length: int, longest: int) -> int:
    """The width, in tokens, that rows of ``length`` tokens are padded to; at most ``longest``, the positions.

    Multiples of 8 up to 64 tokens (a batch of 16 rows then fills whole tiles of 128 in every matrix
    product), of 16 up to 128, of 32 up to 256 and so on: 20 widths up to 512, beyond 32 tokens at most a
    quarter more than ``length``. Raises ValueError when ``length`` exceeds ``longest`` or is not positive.
    """
    if not 0 < length <= longest:
        raise ValueError(f"{length} tokens do not fit the encoder's {longest} positions")
    octave = (length - 1).bit_length()  # 2 ** octave is the smallest power of two not below length
    step = max(_FINEST, (1 << octave) // _FINEST)
    return min(-(-length // step) * step, longest)


Work = Callable[..., Tensor]

_DIRECT_CALLS = 2


class CudaCapture:
    """CUDA graphs of one device, which share one pool of memory since only one replays at a time."""

    def __init__(self, device: torch.device) -> None:
        """Open a stream and a memory pool on ``device``."""
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = torch.cuda.graph_pool_handle()

    def run(self, work: Work, arguments: Sequence[Tensor]) -> Tensor:
        """On the stream that is captured later: autograd sums a gradient where it first did."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            output = work(*arguments)
        current.wait_stream(self._stream)
        return output

    def record(self, work: Work, arguments: Sequence[Tensor]) -> Callable[[], Tensor]:
        """Capture the work's kernels without running them; calling what is returned runs them once.

        Raises UserError where the device refuses.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                output = work(*arguments)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UserError(
                "this GPU could not record the training step as a CUDA graph",
                found=str(error),
                fix="use --set training.compile=off, and tell us: it should have worked",
            ) from error

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


class Recorder:
    """Calls a function of tensors, replaying it from the third call of a shape on.

    Every call does the work exactly once, whatever it changes besides its result (gradients, an optimiser's
    state): the first two calls directly, which CUDA libraries and compilers need for their set-up; the third
    records it, which computes nothing, and replays. The function must not wait for the device, nor do on the
    processor anything that has to happen every time.
    """

    def __init__(self, work: Work, capture: CudaCapture) -> None:
        """Record ``work``, which takes and returns tensors on one device."""
        self._work, self._capture = work, capture
        self._calls: Counter[object] = Counter()
        self._recordings: dict[object, tuple[tuple[Tensor, ...], Callable[[], Tensor]]] = {}

    @property
    def recordings(self) -> int:
        """Number of shapes recorded so far."""
        return len(self._recordings)

    def __call__(self, *arguments: Tensor) -> Tensor:
        """The function's result, which later calls leave as it is."""
        key = tuple((argument.shape, argument.dtype) for argument in arguments)
        if key not in self._recordings:
            self._calls[key] += 1
            if self._calls[key] <= _DIRECT_CALLS:
                return self._capture.run(self._work, arguments)
            held = tuple(argument.clone() for argument in arguments)
            self._recordings[key] = held, self._capture.record(self._work, held)
        held, replay = self._recordings[key]
        for place, argument in zip(held, arguments, strict=True):
            place.copy_(argument)
        return replay().clone()  # the next replay of any shape may overwrite what it returned


_RECENT = 25
"""Steps over which the loss is averaged before it is called diverging: single batches jump."""

_TOO_HIGH = 5.0
"""Times the loss of guessing: no training that will still learn is so wrong for so long."""


class DivergenceWatch:
    """Notices by its losses that a training diverged.

    Attributes:
        recent: the losses of the last steps, oldest first; what a checkpoint has to keep.
    """

    def __init__(self, classes: int, training: TrainingSection) -> None:
        """Compare with the loss of guessing among ``classes``, its natural logarithm."""
        self._limit = _TOO_HIGH * math.log(max(2, classes))
        self._training = training
        self.recent: list[float] = []

    def check(self, step: int, loss: float, rows: str) -> None:
        """Take the loss of one step; ``rows`` names what it was computed on.

        Raises UserError when it is not a number, or the mean of the last 25 is five times that of guessing.
        """
        self.recent = [*self.recent[1 - _RECENT :], loss]
        mean = sum(self.recent) / len(self.recent)
        if not math.isfinite(loss):
            raise self.error(step, f"the loss is {loss}", rows)
        if len(self.recent) == _RECENT and mean > self._limit:
            raise self.error(step, f"the mean loss of the last {_RECENT} steps is {mean:.3g}", rows)

    def error(self, step: int, what: str, rows: str) -> UserError:
        """The error for a training that diverged at ``step``."""
        rate = self._training.learning_rate
        return UserError(
            f"training diverged: {what} at step {step}",
            found=f"{rows}, learning rate {rate:g}",
            fix=f"lower it, for example --set training.learning_rate={rate / 3:.1g}, "
            "or use --set training.precision=float32",
        )


_SIGNS_OF_TOO_LITTLE_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@contextmanager
def explaining_memory(training: TrainingSection, model: ModelSection) -> Iterator[None]:
    """Turn the failure to allocate memory, on a CPU or a GPU, into a UserError that suggests smaller batches.

    Of windows a batch is computed in parts; but those of one text are computed together.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        message = str(error)
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(sign in message for sign in _SIGNS_OF_TOO_LITTLE_MEMORY):
            raise
        size, fix = training.batch_size, "use a smaller base model, or a machine with more memory"
        shorter = "a lower --set model.max_length"
        if model.long_texts == "windows":
            shorter += f", or fewer windows a text than --set model.max_windows={model.max_windows}"
            fix = f"use {shorter}"
        if size > 1:
            half, twice = -(-size // 2), 2 * training.accumulation
            fix = (
                f"use --set training.batch_size={half} --set training.accumulation={twice}: "
                f"as many rows a step, about half the memory; or {shorter}"
            )
        said = message.strip().splitlines()[0] if message else "no more"
        raise UserError(
            "out of memory while training", found=f"batches of {counted(size, 'row')}; {said}", fix=fix
        ) from error
