"""A frozen encoder's vectors are what transformers computes, whatever the batches."""

from __future__ import annotations

import json
from shutil import copytree

import numpy as np
import pytest
import torch

from newsdesk.errors import UserError
from newsdesk.model.network import TextEmbedder

TEXTS = ["goal", "bank profit market said", "orbit telescope in the robot climate laser", "goal"]


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_a_vector_is_the_mean_over_the_tokens_scaled_to_length_1(tiny_base, family):
    from transformers import AutoModel, AutoTokenizer

    base = tiny_base(family)
    found = TextEmbedder(base, max_length=32, precision="float32").embed(TEXTS)
    model, tokenizer = AutoModel.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.inference_mode():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = hidden.mean(dim=0).numpy()
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_texts_longer_than_the_positions_are_cut(tiny_base):
    embedder = TextEmbedder(tiny_base("roberta"), max_length=128)
    vectors = embedder.embed(["goal " * 500, "goal"])
    assert vectors.shape == (2, embedder.dimensions)
    assert np.isfinite(vectors).all()


def test_the_base_of_a_stranger_is_checked_as_for_a_training(tiny_base, tmp_path):
    """Its settings, and whether they describe the encoder that the weights are of, and all of it."""
    from safetensors.torch import load_file, save_file

    base = tiny_base("bert")
    for number, change in enumerate(({"is_decoder": "/etc"}, {"hidden_size": 64}, {"use_kernels": True})):
        folder = copytree(base, tmp_path / str(number))
        config = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError):
            TextEmbedder(folder, max_length=32)
    folder = copytree(base, tmp_path / "part")
    weights = load_file(folder / "model.safetensors")
    kept = {name: each for name, each in weights.items() if "layer.1.attention" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="not a whole encoder"):
        TextEmbedder(folder, max_length=32)


def test_an_encoder_that_computes_no_numbers_is_one_sentence(tiny_base, tmp_path):
    folder = copytree(tiny_base("bert"), tmp_path / "base")
    config = json.loads((folder / "config.json").read_text()) | {"layer_norm_eps": -1e30}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="missing or damaged") as refused:
        TextEmbedder(folder, max_length=32).embed(TEXTS)
    assert refused.value.found == "it computes vectors that are no finite numbers"
