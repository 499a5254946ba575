"""How many numbers a model holds, part by part, and how many of them are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class ParameterGroup:
    """A row of the parameter table: one part of the model and how many of its numbers are trained."""

    name: str
    trainable: int
    total: int


def parameter_table(model: PeftModel) -> list[ParameterGroup]:
    """Trainable and total parameters by part: encoder, adapters, head, and PEFT's frozen copy of the head.

    The sums are what ``print_trainable_parameters`` of PEFT counts.
    """
    sizes: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            part = "LoRA adapters"
        elif ".modules_to_save." in name:
            part = "classification head"
        elif ".original_module." in name:
            part = "untrained copy of the head"
        else:
            part = "frozen encoder"
        counts = sizes.setdefault(part, [0, 0])
        counts[0] += parameter.numel() if parameter.requires_grad else 0
        counts[1] += parameter.numel()
    return [ParameterGroup(name, *counts) for name, counts in sizes.items()]
