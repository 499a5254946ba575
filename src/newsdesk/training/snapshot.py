"""The state of a training between two steps, as tensors and plain numbers that safetensors and JSON hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from newsdesk.model.classifier import restore_state, trainable_state

if TYPE_CHECKING:
    from peft import PeftModel

_TRAINED, _BEST, _OPTIMISER = "trained", "best", "optimiser"


@dataclass(frozen=True)
class Snapshot:
    """All that the rest of a training depends on.

    Attributes:
        tensors: trained parameters, the best ones so far, the optimiser's moments; by name, on the CPU.
        counters: JSON types: steps and tokens done, scores, patience.
    """

    tensors: Mapping[str, Tensor]
    counters: Mapping[str, Any]


def gather_state(
    model: PeftModel, optimiser: torch.optim.Optimizer, best: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Copies of the trained parameters, the best ones and the optimiser's state, under flat names."""
    tensors = {f"{_TRAINED}/{name}": tensor for name, tensor in trainable_state(model).items()}
    tensors |= {f"{_BEST}/{name}": tensor for name, tensor in best.items()}
    for number, values in optimiser.state_dict()["state"].items():
        tensors |= {f"{_OPTIMISER}/{number}/{name}": value for name, value in values.items()}
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def hand_out_state(
    snapshot: Snapshot, model: PeftModel, optimiser: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Put a snapshot's tensors back in place, and return the best parameters so far.

    Raises ValueError when they do not belong to this model.
    """
    parts: dict[str, dict[str, Tensor]] = {_TRAINED: {}, _BEST: {}, _OPTIMISER: {}}
    for full_name, tensor in snapshot.tensors.items():
        part, _, name = full_name.partition("/")
        parts[part][name] = tensor
    shapes = {name: tensor.shape for name, tensor in trainable_state(model).items()}
    if {name: tensor.shape for name, tensor in parts[_TRAINED].items()} != shapes:
        raise ValueError("the snapshot is of another model: its trained parameters differ")
    restore_state(model, parts[_TRAINED])
    moments: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in parts[_OPTIMISER].items():
        number, _, name = full_name.partition("/")
        moments.setdefault(int(number), {})[name] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    return parts[_BEST]
