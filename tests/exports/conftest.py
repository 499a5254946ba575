"""Tiny classifiers of random weights, and batches for them: what the tests of graphs stand on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

PREFIXES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "mpnet": "MPNet",
    "electra": "Electra",
}
Batch = dict[str, Any]


@pytest.fixture(scope="session")
def classifier() -> Callable[..., Any]:
    """``classifier("mpnet")``: a transformers model whose every weight matters, biases and norms too."""
    import torch
    import transformers

    def build(family: str = "bert", **settings: Any) -> Any:
        torch.manual_seed(3)
        prefix = PREFIXES[family]
        arguments = {
            "vocab_size": 1200,  # a table large enough to be quantised
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 60,
            "num_labels": 3,
            "pad_token_id": 0 if family in ("bert", "electra") else 1,
        }
        config = getattr(transformers, f"{prefix}Config")(**(arguments | settings))
        model = getattr(transformers, f"{prefix}ForSequenceClassification")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.15)
        return model

    return build


@pytest.fixture(scope="session")
def batch() -> Callable[..., Batch]:
    """``batch(rows, length, pad_id)``: inputs of both engines, rows of falling lengths."""

    def build(rows: int, length: int, pad_id: int) -> Batch:
        ids = np.random.default_rng(5).integers(5, 1200, (rows, length))
        mask = np.ones_like(ids)
        for row in range(rows):
            mask[row, max(2, length - 4 * row) :] = 0
        return {"input_ids": np.where(mask == 1, ids, pad_id), "attention_mask": mask}

    return build


@pytest.fixture(scope="session")
def logits_of() -> Callable[[Any, Batch], Any]:
    """Logits of a batch by whatever is given: a transformers model, or an ONNX model by ONNX Runtime."""
    return lambda model, inputs: _outputs(model, inputs)[0]


@pytest.fixture(scope="session")
def features_of() -> Callable[[Any, Batch], Any]:
    """The second output of a graph, or what it stands for: a mean over the tokens that are not padding."""
    return lambda model, inputs: _outputs(model, inputs)[1]


def _outputs(model: Any, inputs: Batch) -> tuple[Any, Any]:
    import onnx
    import onnxruntime
    import torch

    if isinstance(model, onnx.ModelProto):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        logits, features = session.run(["logits", "features"], inputs)
        return logits, features
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.inference_mode():
        output = model(**tensors, output_hidden_states=True)
    states = output.hidden_states[2 * model.config.num_hidden_layers // 3].numpy()
    lengths = inputs["attention_mask"].sum(axis=1)
    rows = zip(states, lengths, strict=True)
    return output.logits.numpy(), np.stack([row[:length].mean(axis=0) for row, length in rows])
