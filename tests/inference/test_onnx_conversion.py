"""Any classifier becomes an ONNX model of the same function, or a sentence says why not."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.errors import UserError
from newsdesk.inference import onnx_conversion
from newsdesk.inference.onnx_conversion import to_onnx, traced, write_onnx

pytest.importorskip("onnx")


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
