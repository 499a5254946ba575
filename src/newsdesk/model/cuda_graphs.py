"""Recorded work: a function of tensors captured as a CUDA graph once a shape, then replayed at one launch.

A step of a small encoder is several hundred kernels of a few microseconds each; launching them one by one
takes the processor longer than computing them takes the GPU. (NVIDIA, 2019: CUDA graphs; PyTorch 1.10.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from newsdesk.model.encoder import FusedClassifier

COMPILE_FROM_STEPS = 5_000
"""Steps from which ``training.compile = "auto"`` compiles: an estimate, to be replaced by a measurement."""

Backend = str | Callable[..., Any]

# Two shapes of which no two sizes are alike, and unlike the heads and hidden sizes in use: equal sizes would
# be taken for one symbol, and other batches would be compiled anew.
_TRIAL_SHAPES = ((5, 40), (7, 24))


class CompiledInTraining(nn.Module):
    """A layer of the fused encoder: compiled while it trains, as it is when it predicts.

    Predicting a few rows must not wait for a compiler. All layers of one form share one compiled program,
    whose lengths and batch sizes are symbols; so compiling takes as long as one layer, not as twelve.
    """

    def __init__(self, layer: nn.Module, backend: Backend) -> None:
        """Wrap ``layer``, whose parameters stay its own."""
        super().__init__()
        self.layer = layer
        self._compiled = torch.compile(layer.forward, dynamic=True, fullgraph=True, backend=backend)

    def forward(self, x: Tensor, batch: int, bias: Tensor | None) -> Tensor:
        """As the layer."""
        compute = self._compiled if self.training else self.layer
        y: Tensor = compute(x, batch, bias)
        return y


def compile_layers(
    classifier: FusedClassifier, device: torch.device, *, backend: Backend = "inductor"
) -> str | None:
    """Compile the layers for training, or leave them as they are and return why as part of a sentence.

    Tried out at once, forward and backward, so that it is known before the first step whether it works; a
    whole graph is demanded, since a break would cost more than compiling gains. Random states and gradients
    are left as they were.
    """
    layers = classifier.layers
    classifier.layers = nn.ModuleList(CompiledInTraining(layer, backend) for layer in layers)
    try:
        _try_out(classifier, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler, its linker or its cache may raise
        classifier.layers = layers
        cause = getattr(error, "inner_exception", error)  # torch wraps it in pages of text
        first_line = next(iter(str(cause).strip().splitlines()), "no reason given")
        return f"{type(cause).__name__}: {first_line}"
    return None


def _try_out(classifier: FusedClassifier, device: torch.device) -> None:
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    was_training = classifier.training
    classifier.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for shape in _TRIAL_SHAPES:
            input_ids = torch.full(shape, 2, device=device)
            attention_mask = torch.ones_like(input_ids)
            attention_mask[0, -1] = 0  # training on a GPU always has a mask
            logits = classifier(input_ids, attention_mask)
            torch.autograd.grad(logits.sum(), trained)
    classifier.train(was_training)


Work = Callable[..., Tensor]
Key = tuple[tuple[torch.Size, torch.dtype], ...]

_DIRECT_CALLS = 2


class RecordingError(RuntimeError):
    """The device refused to record; what it refused has not been done."""


class Capture(Protocol):
    """How work is done directly, and how it is recorded."""

    def run(self, work: Work, arguments: Sequence[Tensor]) -> Tensor:
        """Do the work once, now."""
        ...

    def record(self, work: Work, arguments: Sequence[Tensor]) -> Callable[[], Tensor]:
        """Take the work down without doing it; calling what is returned does it once, on ``arguments``."""
        ...


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
        """Capture the work's kernels without running them. Raises RecordingError where that cannot be."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                output = work(*arguments)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RecordingError(str(error)) from error

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


class Recorder:
    """Calls a function of tensors, replaying it from the third call of a shape on.

    Every call does the work exactly once, whatever it changes besides its result (gradients, an optimiser's
    state): the first two directly, which is also what CUDA libraries and compilers need to settle; the third
    takes it down, which computes nothing, and replays. A shape met once or twice is never recorded.

    The function must not wait for the device, nor do on the processor anything that has to happen every time.
    """

    def __init__(self, work: Work, capture: Capture) -> None:
        """Record ``work``, which takes and returns tensors on one device."""
        self._work, self._capture = work, capture
        self._calls: Counter[Key] = Counter()
        self._recordings: dict[Key, tuple[tuple[Tensor, ...], Callable[[], Tensor]]] = {}

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
