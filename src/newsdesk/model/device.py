"""Where the arithmetic runs and in which precision: what ``auto`` stands for on this machine."""

from __future__ import annotations

from typing import Literal

import torch

from newsdesk.errors import UserError

Precision = Literal["float32", "bfloat16", "float16"]


def choose_device(name: str = "auto") -> torch.device:
    """CUDA, else Apple's MPS, else the CPU; or the device named. Raises UserError where it is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        there = ", ".join(device for device, is_there in available.items() if is_there)
        raise UserError(
            f"device {name} was asked for and torch sees none",
            found=f"devices here: {there}",
            fix="use --set training.device=auto, or install a torch built for your card",
        )
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> Precision:
    """Bfloat16 where the processor or card multiplies it natively, float16 on older CUDA cards, else float32.

    An explicitly named precision is taken as it is, except float16 on a CPU, which no kernel serves well:
    that raises UserError.
    """
    if name == "float16" and device.type == "cpu":
        raise UserError(
            "float16 training needs a GPU",
            found="training.precision = float16 on the CPU",
            fix="use --set training.precision=auto",
        )
    if name in ("float32", "bfloat16", "float16"):
        return name  # type: ignore[return-value]
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if device.type == "cpu" and cpu_has_bfloat16() else "float32"


def cpu_has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products (AVX512-BF16 or AMX; Arm's BF16).

    Without them bfloat16 is emulated, several times slower than float32. A torch too old to say is taken
    to have none.
    """
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))
