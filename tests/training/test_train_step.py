"""A recorded step trains exactly as one computed directly does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from newsdesk.config import LoraSection, ModelSection, TrainingSection  # noqa: E402
from newsdesk.model.classifier import build_classifier  # noqa: E402
from newsdesk.model.network import Network  # noqa: E402
from newsdesk.training.loop import EncodedRows, TrainingLoop  # noqa: E402
from newsdesk.training.train_step import StepArithmetic, build_optimiser, cuda_graphs  # noqa: E402

GENERATOR = np.random.default_rng(0)
BATCHES = [
    [GENERATOR.integers(5, 60, size=length) for length in GENERATOR.integers(longest - 4, longest + 1, 6)]
    for longest in (9, 14, 15, 13, 16, 30, 12, 16, 11, 14)
]
LABELS = np.arange(6) % 3


class Replay:
    """Stands in for CUDA graphs: a recording runs the same work again on the tensors it was recorded with."""

    def run(self, work: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        return work(*arguments)

    def record(self, work: Callable[..., Any], arguments: Sequence[Any]) -> Callable[[], Any]:
        return lambda: work(*arguments)


@pytest.fixture
def arithmetic_of(tiny_base: Callable[..., Path]) -> Callable[..., StepArithmetic]:
    base = tiny_base("roberta")

    def make(capture: Any = None, clip: float = 1.0) -> StepArithmetic:
        torch.manual_seed(0)
        model = build_classifier(base, ("a", "b", "c"), ModelSection(dropout=0.0), LoraSection(rank=4))
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):  # the head keeps its own
                module.p = 0.0
        network = Network(model, torch.device("cpu"), "float32").train()
        optimiser = build_optimiser(model, TrainingSection(learning_rate=1e-2))
        for group in optimiser.param_groups:
            group["eps"] = 1e-2  # at 1e-8 AdamW blows the rounding of tiny gradients up to whole steps
        return StepArithmetic(network, torch.nn.CrossEntropyLoss(reduction="sum"), optimiser, clip, capture)

    return make


def take_steps(arithmetic: StepArithmetic, batches: int = 1) -> tuple[list[float], list[float]]:
    """Losses of all batches and gradient norms of all steps, of so many batches each."""
    losses, norms = [], []
    for number, rows in enumerate(BATCHES):
        if number % batches == 0:
            arithmetic.set_learning_rates(1.0 / (1 + number))
        losses.append(float(arithmetic.add_gradients(rows, LABELS, 6.0 * batches)))
        if (number + 1) % batches == 0:
            norms.append(float(arithmetic.update()))
    return losses, norms


def trained(arithmetic: StepArithmetic) -> list[Any]:
    return [p.detach() for p in arithmetic.network.model.parameters() if p.requires_grad]


@pytest.mark.parametrize(("batches", "clip"), [(1, 0.0), (2, 0.5)], ids=["plain", "accumulated-and-clipped"])
def test_recorded_steps_train_as_direct_ones_do(batches, clip, arithmetic_of):
    direct, recorded = arithmetic_of(None, clip), arithmetic_of(Replay(), clip)
    expected, told = take_steps(direct, batches), take_steps(recorded, batches)
    np.testing.assert_allclose(told[0], expected[0], rtol=1e-4)
    np.testing.assert_allclose(told[1], expected[1], rtol=1e-3)
    for mine, wanted in zip(trained(recorded), trained(direct), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-4)
    assert direct.recordings == 0
    assert recorded.recordings == 2  # rows of up to 16 tokens, and the update; 30 tokens came but once
    assert expected[0][0] > expected[0][-1]


def test_gradients_summed_elsewhere_come_back_to_where_the_recording_reads_them(arithmetic_of):
    """Several processes exchange their gradients between the batch and the update."""
    arithmetic, alone = arithmetic_of(Replay()), arithmetic_of()
    for each in (arithmetic, alone):
        for rows in BATCHES[:5]:
            each.set_learning_rates(0.1)
            each.add_gradients(rows, LABELS, 6.0)
            for parameter in trained_parameters(each):
                parameter.grad = parameter.grad * 2
            each.update()
    for mine, wanted in zip(trained(arithmetic), trained(alone), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-4)
    for parameter in trained_parameters(arithmetic):
        parameter.grad = None  # this process had no rows, nor had any other
    assert float(arithmetic.update()) == 0.0


def trained_parameters(arithmetic: StepArithmetic) -> list[Any]:
    return [p for p in arithmetic.network.model.parameters() if p.requires_grad]


def test_only_a_gpu_with_the_fused_encoder_records(arithmetic_of, monkeypatch):
    network = arithmetic_of().network
    assert cuda_graphs(network) is None
    monkeypatch.setattr("newsdesk.training.train_step.CudaCapture", lambda device: f"graphs of {device}")
    network.device = torch.device("cuda")
    assert cuda_graphs(network) == "graphs of cuda"
    network._fused = None
    assert cuda_graphs(network) is None


@pytest.mark.parametrize(("switch", "recordings"), [("off", 0), ("on", 2)])
def test_steps_are_recorded_only_where_the_recipe_asks_for_it(switch, recordings, arithmetic_of, monkeypatch):
    monkeypatch.setattr("newsdesk.training.loop.cuda_graphs", lambda _network: Replay())
    rows = EncodedRows([ids for batch in BATCHES for ids in batch], np.resize(LABELS, 60))
    training = TrainingSection(epochs=1, min_steps=0, batch_size=6, compile=switch)
    loop = TrainingLoop(arithmetic_of().network, rows, EncodedRows([], LABELS[:0]), training, max_length=32)
    assert loop.training.compile == switch
    *_, finished = loop.events()
    assert finished.step == 10
    assert loop.arithmetic.recordings >= recordings
    assert bool(loop.arithmetic.recordings) == bool(recordings)
