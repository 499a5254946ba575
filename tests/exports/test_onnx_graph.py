"""A built graph computes what transformers computes, and contains every weight."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.exports.onnx_graph import build_graph, reason_not_buildable, relative_buckets
from newsdesk.model.architectures import BERT_LIKE

onnx = pytest.importorskip("onnx")


def settings_of(model):
    return {**model.config.to_dict(), "num_labels": model.config.num_labels}


def tensors_of(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("family", BERT_LIKE)
@pytest.mark.parametrize("shape", [(1, 1), (4, 9), (3, 57)])
def test_logits_are_those_of_transformers(family, shape, classifier, batch, logits_of):
    model = classifier(family)
    graph = build_graph(settings_of(model), tensors_of(model))
    onnx.checker.check_model(graph)
    inputs = batch(*shape, model.config.pad_token_id)
    np.testing.assert_allclose(logits_of(graph, inputs), logits_of(model, inputs), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_features_are_those_of_transformers_and_come_second(family, layers, classifier, batch, features_of):
    model = classifier(family, num_hidden_layers=layers)
    graph = build_graph(settings_of(model), tensors_of(model))
    assert [output.name for output in graph.graph.output] == ["logits", "features"]
    inputs = batch(3, 17, model.config.pad_token_id)
    np.testing.assert_allclose(features_of(graph, inputs), features_of(model, inputs), atol=1e-5)


def test_a_padding_token_within_a_text_shifts_roberta_s_positions_alike(classifier, batch, logits_of):
    model = classifier("roberta")
    inputs = batch(2, 9, 1)
    inputs["input_ids"][0, 3] = 1  # somebody wrote <pad> into a headline
    graph = build_graph(settings_of(model), tensors_of(model))
    np.testing.assert_allclose(logits_of(graph, inputs), logits_of(model, inputs), atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh"])
def test_other_activations_are_computed_as_they_are_called(activation, classifier, batch, logits_of):
    model = classifier("bert", hidden_act=activation)
    inputs = batch(3, 12, 0)
    graph = build_graph(settings_of(model), tensors_of(model))
    np.testing.assert_allclose(logits_of(graph, inputs), logits_of(model, inputs), atol=1e-5)


def test_mpnet_s_buckets_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    distances = torch.arange(-600, 601)
    theirs = MPNetEncoder.relative_position_bucket(distances)
    assert relative_buckets(distances.numpy(), 32).tolist() == theirs.tolist()


def test_the_last_layer_computes_the_first_token_alone(classifier):
    model = classifier("bert")
    nodes = {node.name: node for node in build_graph(settings_of(model), tensors_of(model)).graph.node}
    assert "layer.0.query_key_value" in nodes
    assert "layer.1.query_key_value" not in nodes
    assert nodes["layer.1.query"].input[0] == nodes["layer.1.first"].output[0]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "electra"}, "electra is not one of"),
        ({"hidden_act": "relu"}, "activation is relu"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "decoder"),
    ],
)
def test_what_cannot_be_written_down_is_refused_with_its_reason(settings, reason, classifier):
    model = classifier("bert")
    config = settings_of(model) | settings
    assert reason in (reason_not_buildable(config) or "")
    with pytest.raises(ValueError, match=reason):
        build_graph(config, tensors_of(model))


def test_a_weight_without_a_place_is_never_dropped_in_silence(classifier):
    model = classifier("bert")
    tensors = tensors_of(model) | {"bert.encoder.layer.0.gate.weight": np.ones((2, 2), np.float32)}
    with pytest.raises(ValueError, match=r"1 weights have no place in the graph, .*layer\.0\.gate\.weight"):
        build_graph(settings_of(model), tensors)
