"""A network computes logits of any rows, in their order, whatever they are padded with or batched among."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from newsdesk.config import LoraSection, ModelSection  # noqa: E402
from newsdesk.model.classifier import build_classifier  # noqa: E402
from newsdesk.model.network import (  # noqa: E402
    Network,
    Precision,
    predict_logits,
    predict_with_features,
)

GENERATOR = np.random.default_rng(0)
ROWS = [GENERATOR.integers(5, 100, size=length) for length in (9, 3, 30, 17, 4, 12, 12, 6, 25)]


@pytest.fixture
def network_of(tiny_base: Callable[..., Path]) -> Callable[..., Network]:
    def make(family: str = "bert", precision: Precision = "float32", **lora: object) -> Network:
        torch.manual_seed(0)
        section = LoraSection.model_validate({"rank": 4, "dropout": 0.1} | lora)
        model = build_classifier(tiny_base(family), ("a", "b", "c"), ModelSection(), section)
        return Network(model, torch.device("cpu"), precision)

    return make


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_logits_do_not_depend_on_batching_padding_or_engine(family, network_of):
    network = network_of(family).eval()
    with torch.no_grad():
        alone = torch.cat([network([row]) for row in ROWS]).numpy()
        together = network(ROWS).numpy()
        wider = network(ROWS, 40).numpy()
        network._fused = None
        stock = network(ROWS).numpy()
    for logits in (together, wider, stock):
        np.testing.assert_allclose(logits, alone, atol=1e-5, rtol=0)
    assert alone.dtype == np.float32
    assert np.ptp(alone, axis=0).max() > 0.05


def test_predictions_come_in_row_order_and_progress_counts_rows(network_of):
    network = network_of()
    done: list[tuple[object, ...]] = []
    progress = lambda *report: done.append(report)  # noqa: E731
    logits = predict_logits(network, ROWS, batch_size=4, progress=progress)
    assert done == [(rows, 9, "classifying", "rows") for rows in (0, 4, 8, 9)]
    assert (logits.shape, logits.dtype) == ((len(ROWS), 3), np.float32)
    for row, ids in enumerate(ROWS):
        np.testing.assert_allclose(logits[row], predict_logits(network, [ids])[0], atol=1e-5, rtol=0)
    assert predict_logits(network, []).shape == (0, 3)


@pytest.mark.parametrize("lora", [{}, {"dora": True}], ids=["fused", "stock"])
@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_features_are_the_mean_state_of_the_tokens_behind_two_thirds_of_the_layers(family, lora, network_of):
    network = network_of(family, **lora).eval()
    logits, features = predict_with_features(network, ROWS, batch_size=4)
    np.testing.assert_allclose(logits, predict_logits(network, ROWS), atol=1e-5, rtol=0)
    ids = torch.from_numpy(ROWS[3])[None]
    with torch.no_grad():
        states = network.model(input_ids=ids, output_hidden_states=True).hidden_states
    np.testing.assert_allclose(features[3], states[1][0].mean(0), atol=1e-5)  # behind 1 of 2 layers


def test_predicting_uses_no_dropout_and_leaves_training_as_it_was(network_of):
    network = network_of()
    network.train()
    np.testing.assert_array_equal(predict_logits(network, ROWS), predict_logits(network, ROWS))
    assert network.training
    with torch.no_grad():
        assert not torch.equal(network(ROWS), network(ROWS))
    network.eval()
    predict_logits(network, ROWS)
    assert not network.training


@pytest.mark.parametrize(
    ("family", "pad_id"), [("bert", 0), ("roberta", 1), ("mpnet", 1)], ids=["bert", "roberta", "mpnet"]
)
def test_rows_are_padded_with_the_bases_padding(family, pad_id, network_of):
    assert network_of(family).pad_id == pad_id


def test_the_engine_is_named_and_the_slow_one_says_why(network_of):
    assert network_of().engine == "fused encoder"
    assert network_of(bias="all").engine.startswith("transformers + peft (it trains ")
    assert network_of(precision="float16").engine == "transformers + peft (float16 goes through autocast)"


@pytest.mark.parametrize("lora", [{}, {"dora": True}], ids=["fused", "stock"])
def test_bfloat16_stays_near_float32_and_trains_float32_parameters(lora, network_of):
    exact = predict_logits(network_of(**lora), ROWS)
    network = network_of(precision="bfloat16", **lora)
    rounded = predict_logits(network, ROWS)
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.1
    network.train()
    network(ROWS).sum().backward()
    trained = [parameter for parameter in network.model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert all(parameter.grad is not None for parameter in trained)


def test_a_batch_carries_a_mask_only_where_something_is_padded(network_of):
    network = network_of()
    alike = [row[:3] for row in ROWS]
    assert network.batch(alike)[1] is None
    assert network.batch(alike, 4)[1].tolist() == [[1, 1, 1, 0]] * len(alike)
    assert network.batch(ROWS)[1].sum() == sum(map(len, ROWS))


def test_copies_to_a_gpu_go_through_pinned_memory(network_of, monkeypatch):
    network, steps = network_of(), []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: steps.append("pinned") or tensor)
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda tensor, device, non_blocking: steps.append((str(device), non_blocking)) or tensor,
    )
    network.device = torch.device("cuda")
    network.on_device(np.zeros(3, dtype=np.int64))
    assert steps == ["pinned", ("cuda", True)]


@pytest.mark.parametrize(
    ("obstacle", "engine"),
    [(None, "fused encoder, compiled"), ("no compiler", "fused encoder (not compiled: no compiler)")],
    ids=["compiled", "not-compiled"],
)
def test_the_engine_says_whether_it_is_compiled(obstacle, engine, network_of, monkeypatch):
    model = network_of().model
    monkeypatch.setattr("newsdesk.model.network.compile_layers", lambda *_arguments: obstacle)
    network = Network(model, torch.device("cpu"), "float32", compiled=True)
    assert network.engine == engine
    assert network.is_fused
    assert not Network(model, torch.device("cpu"), "float16", compiled=True).is_fused
