"""Compiled layers compute what the layers do, are one program, and never wait for the device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from newsdesk.config import LoraSection, ModelSection  # noqa: E402
from newsdesk.model.classifier import build_classifier  # noqa: E402
from newsdesk.model.encoder import FusedClassifier, fuse  # noqa: E402
from newsdesk.model.network import compile_layers  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    logging.getLogger("torch.__trace").propagate = False  # pytest would keep what nobody asked torch to say
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def fused(tiny_base: Callable[..., Path]) -> Callable[..., FusedClassifier]:
    def make(family: str, dropout: float = 0.0, device: str = "cpu") -> FusedClassifier:
        torch.manual_seed(0)
        section = LoraSection(rank=4, dropout=dropout)
        model = build_classifier(tiny_base(family), ("a", "b", "c"), ModelSection(dropout=dropout), section)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout) and not dropout:  # the head keeps its own
                module.p = 0.0
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first, and then nothing of the adapter would be seen
                torch.nn.init.normal_(parameter, std=0.1)
        return fuse(model.to(device)).train()

    return make


def batch(rows: int, width: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(width)
    input_ids = torch.randint(5, 60, (rows, width), generator=generator)
    mask = torch.ones_like(input_ids)
    input_ids[0, -3:], mask[0, -3:] = 1, 0
    return input_ids, mask


def logits_and_gradients(classifier: FusedClassifier, shapes: list[tuple[int, int]]) -> list[Any]:
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    results = []
    for shape in shapes:
        logits = classifier(*batch(*shape))
        results += [logits.detach(), *torch.autograd.grad(logits.square().sum(), trained)]
    return results


class Programs:
    """A backend that counts the programs it is given and runs them as they are."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, program: Any, _inputs: Any) -> Any:
        self.count += 1
        return program.forward


def test_compiled_layers_compute_the_same_by_few_programs_and_only_in_training(fused):
    shapes = [(16, 16), (16, 24), (16, 40), (4, 8)]
    classifier, programs = fused("mpnet"), Programs()
    expected = logits_and_gradients(classifier, shapes)
    assert compile_layers(classifier, CPU, backend=programs) is None
    tried_out = programs.count
    results = logits_and_gradients(classifier, shapes)
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted, atol=1e-6, rtol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(classifier.eval()(*batch(16, 16)), expected[0], atol=1e-6, rtol=1e-5)
    assert programs.count == tried_out <= 3


def test_dropout_is_compiled_too_and_trying_out_leaves_no_trace(fused):
    """A whole graph is demanded: what cannot be traced, such as numbers drawn in place, would be a reason."""
    classifier = fused("bert", dropout=0.1).eval()
    for layer in classifier.layers:
        layer.attention_dropout = 0.0  # on a GPU the attention kernel's own, on a CPU another function
    state = torch.get_rng_state()
    assert compile_layers(classifier, CPU, backend=Programs()) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert not classifier.training
    assert all(parameter.grad is None for parameter in classifier.parameters())
    first, second = (logits_and_gradients(classifier.train(), [(5, 40)])[0] for _ in range(2))
    assert not torch.equal(first, second)


def test_where_it_cannot_be_compiled_the_layers_stay_and_the_reason_is_one_line(fused):
    def broken(_program: Any, _inputs: Any) -> Any:
        raise OSError("no compiler here\nand a long story")

    classifier = fused("bert")
    expected = logits_and_gradients(classifier, [(3, 12)])
    reason = compile_layers(classifier, CPU, backend=broken)
    assert reason is not None
    assert "no compiler here" in reason
    assert "\n" not in reason
    for result, wanted in zip(logits_and_gradients(classifier, [(3, 12)]), expected, strict=True):
        assert torch.equal(result, wanted)


def test_too_little_memory_is_not_taken_for_a_compiler_s_fault(fused, monkeypatch):
    def full(*_arguments: object) -> None:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr("newsdesk.model.network._try_out", full)
    with pytest.raises(torch.OutOfMemoryError):
        compile_layers(fused("bert"), CPU)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_a_step_never_asks_the_device_for_a_value(family, fused):
    """On the meta device there are no values: whatever read one, and so waited for a GPU, would raise."""
    classifier = fused(family, dropout=0.1, device="meta")
    input_ids = torch.ones((16, 24), dtype=torch.int64, device="meta")
    mask = torch.ones_like(input_ids)
    with pytest.raises(Exception, match="meta"):
        bool(mask.all())
    labels = torch.ones(16, dtype=torch.int64, device="meta")
    loss = torch.nn.functional.cross_entropy(classifier(input_ids, mask), labels)
    loss.backward()
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    assert {parameter.grad.device.type for parameter in trained} == {"meta"}
