"""Quantised graphs: near the float32 ones by every setting, and safe on every processor."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.exports.int8_settings import SETTINGS, Setting, products, quantise, rounded_weights
from newsdesk.exports.onnx_conversion import to_onnx

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def float32(classifier):
    return to_onnx(classifier("bert"))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_logits_stay_near_the_float32_ones(setting, float32, batch, logits_of):
    quantised = quantise(float32, setting)
    inputs = batch(4, 20, 0)
    exact = logits_of(float32, inputs)
    difference = np.abs(logits_of(quantised, inputs) - exact).max()
    assert 0 < difference < 0.1 * np.abs(exact).max()
    assert quantised.ByteSize() < 0.55 * float32.ByteSize()


@pytest.mark.parametrize("family", ["mpnet", "electra"])
def test_written_down_or_traced_every_product_is_quantised(family, classifier, batch, logits_of):
    model = classifier(family)
    graph = to_onnx(model)
    quantised = quantise(graph, Setting(8))
    assert not products(quantised)
    inputs = batch(3, 11, model.config.pad_token_id)
    assert np.abs(logits_of(quantised, inputs) - logits_of(graph, inputs)).max() < 0.1


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_text_is_judged_alone(setting, float32, batch, logits_of):
    quantised = quantise(float32, setting)
    inputs = batch(4, 20, 0)
    together = logits_of(quantised, inputs)
    alone = logits_of(quantised, {key: array[:1] for key, array in inputs.items()})
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)


def test_rows_of_the_word_table_have_scales_of_their_own(float32, batch, logits_of):
    inputs = batch(2, 8, 0)
    quantised = quantise(float32, Setting(8, "float32"))
    sizes = {tensor.name: tensor.data_type for tensor in quantised.graph.initializer}
    assert sizes["embeddings.word.quantised"] == onnx.TensorProto.INT8
    np.testing.assert_allclose(logits_of(quantised, inputs), logits_of(float32, inputs), atol=0.05)


@pytest.mark.parametrize(("bits", "largest"), [(7, 63), (8, 127)])
def test_weights_are_rounded_by_channel_to_the_bits_asked_for(bits, largest):
    weights = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32) * [1, 10, 0.1, 3, 0]
    whole, scales, zeros = rounded_weights(weights, bits)
    centred = whole.astype(np.int64) - zeros
    assert np.abs(centred).max(axis=0).tolist() == [largest] * 4 + [0]
    assert (np.abs(centred * scales - weights) <= scales / 2 + 1e-6).all()


def test_signed_weights_cannot_overflow_sixteen_bits():
    """Two products of an unsigned byte and a weight are added in 16 bits by processors without VNNI."""
    whole, _, _ = rounded_weights(np.array([[1.0], [-1.0]], np.float32), 7)
    assert 2 * 255 * np.abs(whole.astype(np.int64)).max() < 2**15
