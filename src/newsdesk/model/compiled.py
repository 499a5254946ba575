"""torch.compile for the fused encoder's layers while they train: pointwise work joins in fewer kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
