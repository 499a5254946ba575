"""What ``auto`` stands for on each machine."""

from __future__ import annotations

import pytest
import torch

from newsdesk.errors import UserError
from newsdesk.model import network as module
from newsdesk.model.network import choose_device, choose_precision, cpu_has_bfloat16

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def has(*, cuda: bool = False, mps: bool = False, bfloat16: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_kind: bfloat16)
        monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: bfloat16)

    return has


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, CUDA), (False, True, MPS), (False, False, CPU), (True, False, CUDA)],
)
def test_auto_is_cuda_then_mps_then_the_cpu(machine, cuda, mps, chosen):
    machine(cuda=cuda, mps=mps)
    assert choose_device("auto") == chosen
    assert choose_device("cpu") == CPU


def test_a_device_that_is_not_there_is_refused_and_those_that_are_named(machine):
    machine(mps=True)
    with pytest.raises(UserError, match="device cuda was asked for") as raised:
        choose_device("cuda")
    assert raised.value.found == "devices here: mps, cpu"


@pytest.mark.parametrize(
    ("device", "bfloat16", "chosen"),
    [
        (CUDA, True, "bfloat16"),
        (CUDA, False, "float16"),
        (CPU, True, "bfloat16"),
        (CPU, False, "float32"),
        (MPS, True, "float32"),
    ],
)
def test_auto_precision_is_what_the_device_multiplies_natively(machine, device, bfloat16, chosen):
    machine(cuda=True, mps=True, bfloat16=bfloat16)
    assert choose_precision("auto", device) == chosen


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_named_precision_is_taken(machine, name):
    machine(bfloat16=False)
    assert choose_precision(name, CPU) == name
    assert choose_precision("float16", CUDA) == "float16"


def test_float16_on_the_cpu_is_refused():
    with pytest.raises(UserError, match="float16 training needs a GPU"):
        choose_precision("float16", CPU)


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),
        ({"avx2": True}, False),
    ],
)
def test_bfloat16_is_native_where_the_processor_has_instructions_for_it(monkeypatch, capabilities, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert cpu_has_bfloat16() is native


def test_a_torch_too_old_to_say_has_none(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert cpu_has_bfloat16() is False
