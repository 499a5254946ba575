"""How long a training would take here: what it computes, against how fast this machine multiplies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from newsdesk.config import TrainingSection
from newsdesk.model.network import Precision, choose_device, choose_precision

if TYPE_CHECKING:
    from peft import PeftModel

# Which share of the plain matrix-product rate a training step is assumed to reach, with attention,
# normalisation, dropout and the optimiser in it. CPU: a few steps on one busy core (16 rows of 53 tokens,
# fused encoder, float32) reached 0.7 to 0.8 with MiniLM and 1.1 to 1.2 with four of RoBERTa's layers, as the
# fused encoder computes less than is counted; many layers dilute that, and transformers + peft has none of
# it. An accelerator waits for the launch of many small kernels: a rule of thumb, not measured.
_CPU_EFFICIENCY = (0.5, 1.0)
_ACCELERATOR_EFFICIENCY = (0.03, 0.4)


@dataclass(frozen=True)
class TimeEstimate:
    """How long the training steps would take on this machine; validation and start-up come on top.

    Attributes:
        device: where it would run, as torch names it.
        precision: of the frozen encoder's products.
        threads: processor threads that torch uses.
        matmul_rate: measured rate of matrix products of the encoder's shapes, in FLOP/s.
        flops_per_token: see ``training_flops_per_token``.
        tokens: computed in the whole training, padding included.
        efficiency: (low, high) share of ``matmul_rate`` that steps are assumed to reach.
        seconds: (low, high).
    """

    device: str
    precision: Precision
    threads: int
    matmul_rate: float
    flops_per_token: int
    tokens: int
    efficiency: tuple[float, float]
    seconds: tuple[float, float]


def estimate_time(
    model: PeftModel, training: TrainingSection, *, tokens: int, tokens_per_batch: int
) -> TimeEstimate:
    """Measure this machine for a moment and estimate the time to train on ``tokens`` tokens.

    Args:
        model: the classifier, whose shapes alone are looked at.
        training: names the device and the precision.
        tokens: computed in the whole training, padding included.
        tokens_per_batch: of one forward pass; small products run at a lower rate.

    Raises:
        UserError: when the device asked for is not there.
    """
    device = choose_device(training.device)
    precision = choose_precision(training.precision, device)
    widest = max(_encoder_linears(model), key=lambda linear: linear.weight.numel())
    rate = matmul_rate((tokens_per_batch, widest.in_features, widest.out_features), device, precision)
    flops = training_flops_per_token(model)
    slow, fast = _CPU_EFFICIENCY if device.type == "cpu" else _ACCELERATOR_EFFICIENCY
    return TimeEstimate(
        device=str(device),
        precision=precision,
        threads=torch.get_num_threads(),
        matmul_rate=rate,
        flops_per_token=flops,
        tokens=tokens,
        efficiency=(slow, fast),
        seconds=(tokens * flops / (rate * fast), tokens * flops / (rate * slow)),
    )


def training_flops_per_token(model: PeftModel) -> int:
    """Floating-point operations to train on one token: four per weight of the encoder's linear layers.

    Two are the forward product and two the gradient of its input; a frozen weight needs no gradient of its
    own, which would be two more (Kaplan et al., 2020). Adapters, head and attention scores are left out.
    """
    weights = sum(linear.weight.numel() for linear in _encoder_linears(model))
    # ALBERT passes through the same few layers again and again.
    distinct = getattr(model.config, "num_hidden_groups", None)
    passes = model.config.num_hidden_layers // distinct if distinct else 1
    return 4 * weights * passes


def matmul_rate(
    shape: tuple[int, int, int], device: torch.device, precision: Precision, seconds: float = 0.3
) -> float:
    """Measured FLOP/s of products (rows, inner) x (inner, columns); ``shape`` is (rows, inner, columns).

    On a CPU this thread's own time counts, so that whatever else the machine is doing does not.
    """
    rows, inner, columns = shape
    dtype = getattr(torch, precision)
    left = torch.ones(rows, inner, device=device, dtype=dtype)
    right = torch.ones(inner, columns, device=device, dtype=dtype)
    on_cpu = device.type == "cpu"
    clock = time.thread_time if on_cpu else time.perf_counter
    # An accelerator is asked for many products at a time: to wait for each would measure the waiting.
    burst = 1 if on_cpu else 64
    wait = getattr(torch, device.type).synchronize
    torch.mm(left, right)
    wait()
    products, start = 0, clock()
    while (elapsed := clock() - start) < seconds:
        for _ in range(burst):
            torch.mm(left, right)
        wait()
        products += burst
    return 2.0 * rows * inner * columns * products / elapsed


def _encoder_linears(model: PeftModel) -> Iterator[nn.Linear]:
    """The frozen linear layers in the encoder's numbered stack, which every token passes."""
    for name, module in model.named_modules():
        numbered = any(part.isdigit() for part in name.split("."))
        if isinstance(module, nn.Linear) and numbered and "lora_" not in name:
            yield module
