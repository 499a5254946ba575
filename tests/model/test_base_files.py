"""Base models of strangers: what would import, allocate without measure or open another file is refused."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
from safetensors.torch import load_file, save_file

from newsdesk.config import LoraSection, ModelSection
from newsdesk.errors import UserError
from newsdesk.model.base_files import SHARDED_WEIGHTS
from newsdesk.model.classifier import build_classifier, outline_classifier

LABELS = ("a", "b")


class Boom:
    """Writes a file when it is unpickled."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return (open, (self.witness, "w"))


@pytest.fixture
def copied(tiny_base, tmp_path):
    return shutil.copytree(tiny_base("bert"), tmp_path / "base")


def changed(folder, **entries):
    config = json.loads((folder / "config.json").read_text()) | entries
    (folder / "config.json").write_text(json.dumps(config))
    return config


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ({"auto_map": {"AutoModelForSequenceClassification": "evil.Model"}}, "auto_map"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
        ({"use_kernels": True}, "use_kernels"),
        ({"_attn_implementation": "kernels-community/flash-attn"}, "_attn_implementation"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers = 1000000"),
        ({"num_hidden_layers": "x"}, "num_hidden_layers"),
        ({"hidden_size": 0}, "hidden_size = 0"),
        ({"hidden_size": -4}, "hidden_size"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"intermediate_size": 1.5}, "intermediate_size"),
        ({"max_position_embeddings": True}, "max_position_embeddings"),
        ({"model_type": None}, "model_type"),
        ({"model_type": ["bert"]}, "model_type"),
        ({"model_type": "evil"}, "evil"),
        ({"hidden_act": "evil"}, "evil"),
        ({"num_attention_heads": 7}, ""),
        ({"hidden_dropout_prob": 5}, ""),
        ({"layer_norm_eps": "nan"}, ""),
        ({"pad_token_id": 10**9}, "pad_token_id"),
        ({"pad_token_id": -3}, "pad_token_id"),
        ({"pad_token_id": "x"}, "pad_token_id"),
    ],
)
def test_configurations_that_ask_for_more_than_an_encoder_are_refused(copied, entries, found):
    config = changed(copied, **entries)
    with pytest.raises(UserError, match=found):
        build_classifier(copied, LABELS, ModelSection(), LoraSection())
    with pytest.raises(UserError, match=found):
        outline_classifier(config, 2, ModelSection(), LoraSection())


def test_an_index_reaches_no_pickle_and_no_other_folder(copied, tmp_path):
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").rename(tmp_path / "outside.safetensors")
    witness = tmp_path / "witness"
    (copied / "pytorch_model.bin").write_bytes(pickle.dumps(Boom(str(witness))))
    outside = ("../outside.safetensors", str(tmp_path / "outside.safetensors"))
    for name in ("pytorch_model.bin", *outside, "missing.safetensors", 7):
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
        (copied / SHARDED_WEIGHTS).write_text(json.dumps(index))
        with pytest.raises(UserError, match="names"):
            build_classifier(copied, LABELS, ModelSection(), LoraSection())
    assert not witness.exists()
    save_file(weights, copied / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index["weight_map"] = dict.fromkeys(weights, "model-00001-of-00001.safetensors")
    (copied / SHARDED_WEIGHTS).write_text(json.dumps(index))
    assert build_classifier(copied, LABELS, ModelSection(), LoraSection()).num_parameters() > 0
