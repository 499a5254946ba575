"""The optimiser, the learning-rate schedule, and the loss that a recipe asks for."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from newsdesk.config import TrainingSection


def warmup_steps(warmup: int | float, steps: int) -> int:
    """Warm-up in steps: an int is steps, a float a share of all; at most half of them, so that the full rate
    is reached and left again in a training that is shorter than its recipe's.
    """
    return min(steps // 2, warmup if isinstance(warmup, int) else math.ceil(warmup * steps))


def rate_factor(step: int, *, steps: int, warmup: int, schedule: str) -> float:
    """The share of the full learning rate that optimiser step ``step`` (0-based) uses.

    Rises linearly over ``warmup`` steps; then ``cosine`` (Loshchilov & Hutter, 2017) and ``linear`` fall
    to zero at ``steps``, ``constant`` stays. The same curves as transformers' schedules.
    """
    if step < warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    falling = max(1, steps - warmup)
    if schedule == "linear":
        return max(0.0, (steps - step) / falling)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / falling)))


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


def class_weights(labels: NDArray[np.int64], classes: int) -> torch.Tensor:
    """Weights inversely proportional to class frequency, mean 1 over the rows (King & Zeng, 2001).

    A class without rows gets weight 0: no row asks for it.
    """
    counts = np.bincount(labels, minlength=classes)
    weights = np.where(counts > 0, len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0.0)
    return torch.tensor(weights, dtype=torch.float32)


def build_loss(training: TrainingSection, labels: NDArray[np.int64], classes: int) -> nn.CrossEntropyLoss:
    """Cross-entropy with the recipe's label smoothing (Szegedy et al., 2016) or class weights, as a sum.

    The mean of a step is this sum over the sum of its rows' weights (``row_weights``): so it comes out the
    same whether the rows are computed in one batch, in several, or by several processes.
    """
    weight = class_weights(labels, classes) if training.class_weights == "balanced" else None
    return nn.CrossEntropyLoss(weight=weight, label_smoothing=training.label_smoothing, reduction="sum")


def row_weights(loss: nn.CrossEntropyLoss, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """What each row counts in the mean loss, (rows,): its class's weight, or one."""
    if loss.weight is None:
        return np.ones(len(labels))
    weights: NDArray[np.float64] = loss.weight.double().cpu().numpy()[labels]
    return weights
