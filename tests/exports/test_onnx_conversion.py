"""Any classifier becomes an ONNX model of the same function, or a sentence says why not."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.errors import UserError
from newsdesk.exports import onnx_conversion
from newsdesk.exports.onnx_conversion import cutting, dividing, to_onnx, traced, write_onnx

pytest.importorskip("onnx")

from onnx import helper


@pytest.mark.parametrize("rows", [1, 4])
def test_an_architecture_that_is_not_known_is_traced(rows, classifier, batch, logits_of, features_of):
    model = classifier("electra")
    inputs = batch(rows, 17, 0)
    graph = to_onnx(model)
    assert [entry.name for entry in graph.graph.input] == ["input_ids", "attention_mask"]
    np.testing.assert_allclose(logits_of(graph, inputs), logits_of(model, inputs), atol=1e-5)
    np.testing.assert_allclose(features_of(graph, inputs), features_of(model, inputs), atol=1e-5)


def test_a_known_architecture_is_written_down(classifier, monkeypatch):
    monkeypatch.setattr(onnx_conversion, "traced", None)
    assert to_onnx(classifier("bert")).producer_name == "newsdesk"


def test_what_the_tracer_cannot_follow_is_explained(classifier, monkeypatch):
    model = classifier("electra")

    def fail(*_arguments, **_named):
        raise RuntimeError("unsupported operator\nmore")

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(UserError, match="electra classifier cannot be converted") as refused:
        traced(model)
    assert refused.value.found == "unsupported operator"
    assert "--to merged" in refused.value.fix


def test_a_model_beyond_what_one_file_holds_is_refused(classifier, monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_conversion, "_LARGEST_FILE", 1000)
    with pytest.raises(UserError, match="too large for one onnx file"):
        write_onnx(to_onnx(classifier("bert")), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "electra"])
def test_a_graph_that_cuts_reads_what_a_cut_row_holds(family, classifier, batch, logits_of, features_of):
    model = classifier(family)
    pad_id, closing = int(model.config.pad_token_id), 4
    graph = cutting(to_onnx(model), 9, closing)
    inputs = batch(4, 17, pad_id)  # rows of 17, 13, 9 and 5 tokens
    ids, mask = inputs["input_ids"][:, :9].copy(), inputs["attention_mask"][:, :9]
    ids[mask[:, 8] == 1, 8] = closing
    read = {"input_ids": ids, "attention_mask": mask}
    np.testing.assert_allclose(logits_of(graph, inputs), logits_of(model, read), atol=1e-5)
    np.testing.assert_allclose(features_of(graph, inputs), features_of(model, read), atol=1e-5)
    short = {name: array[3:, :5] for name, array in inputs.items()}
    np.testing.assert_allclose(logits_of(graph, short), logits_of(model, short), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "mpnet", "electra"])
@pytest.mark.parametrize("as_gemm", [True, False])
def test_a_graph_that_divides_changes_its_logits_alone(
    family, as_gemm, classifier, batch, logits_of, features_of
):
    graph = to_onnx(classifier(family))
    inputs = batch(3, 12, int(classifier(family).config.pad_token_id))
    if not as_gemm:  # as some tracer may write a last layer
        (head,) = (node for node in graph.graph.node if "logits" in node.output)
        head.output[0] = "elsewhere"
        graph.graph.node.append(helper.make_node("Identity", ["elsewhere"], ["logits"]))
    divided = dividing(graph, 1.7)
    np.testing.assert_allclose(logits_of(divided, inputs), logits_of(graph, inputs) / 1.7, atol=1e-5)
    np.testing.assert_array_equal(features_of(divided, inputs), features_of(graph, inputs))
    if family != "electra":  # whose last layer is the tracer's to write
        assert ("divided_by_temperature" in {node.name for node in divided.graph.node}) is not as_gemm
