"""What the device computes in one optimiser step: the gradients of its batches, then the update."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from newsdesk.errors import UserError
from newsdesk.model.cuda_graphs import Capture, CudaCapture, Recorder, RecordingError
from newsdesk.model.network import Network
from newsdesk.model.tokenizer import TokenIds


def cuda_graphs(network: Network) -> CudaCapture | None:
    """What records the network's steps as CUDA graphs; None off a GPU, or without the fused encoder."""
    return CudaCapture(network.device) if network.device.type == "cuda" and network.is_fused else None


class StepArithmetic:
    """Gradients and updates of one network, none of which waits for the device.

    Any number of ``add_gradients`` and then one ``update`` make a step. Losses and norms stay on the device
    until somebody reads them. With a ``capture``, work on a shape met before is replayed as one graph, on
    widths of which there are few; without, each batch is computed as it is. Both give the same gradients.

    Attributes:
        scaler: scales losses in float16; does nothing in other precisions.
    """

    def __init__(
        self,
        network: Network,
        loss: nn.Module,
        optimiser: torch.optim.Optimizer,
        clip: float,
        capture: Capture | None = None,
    ) -> None:
        """Take what a step needs: ``loss`` sums over a batch, ``clip`` is the largest gradient norm (0: any).

        Restore the optimiser's state, if at all, before the first step: a recording keeps to its tensors.
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
            return self.network.bucket(longest)
        return to_length or longest

    def add_gradients(
        self,
        sequences: Sequence[TokenIds],
        labels: NDArray[np.int64],
        total_weight: float,
        to_length: int | None = None,
    ) -> Tensor:
        """Add the gradients of a batch's loss over ``total_weight``; returns that part of the loss, a scalar.

        Raises UserError where the device cannot record it.
        """
        network = self.network
        facts = network.on_device(labels), network.on_device(np.array(total_weight, dtype=np.float32))
        if self._recorders is None:
            return self._add_gradients(*facts, *network.batch(sequences, to_length))
        return _recorded(self._recorders[0], *facts, *network.bucketed_batch(sequences, to_length))

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
        return _recorded(self._recorders[1])

    def _add_gradients(
        self, labels: Tensor, total_weight: Tensor, input_ids: Tensor, attention_mask: Tensor | None
    ) -> Tensor:
        logits = self.network.logits(input_ids, attention_mask)
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


def _recorded(recorder: Recorder, *arguments: Tensor) -> Tensor:
    try:
        return recorder(*arguments)
    except RecordingError as error:
        raise UserError(
            "this GPU could not record the training step as a CUDA graph",
            found=str(error),
            fix="use --set training.compile=off, and tell us: it should have worked",
        ) from error
