"""Recorded work: a function of tensors captured as a CUDA graph once a shape, then replayed at one launch.

A step of a small encoder is several hundred kernels of a few microseconds each; launching them one by one
takes the processor longer than computing them takes the GPU. (NVIDIA, 2019: CUDA graphs; PyTorch 1.10.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

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
