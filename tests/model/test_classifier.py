"""Classifiers are built, saved in PEFT's own two files, loaded again, and refuse what does not fit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from newsdesk.config import LoraSection, ModelSection  # noqa: E402
from newsdesk.errors import UserError  # noqa: E402
from newsdesk.model.architectures import parameter_table  # noqa: E402
from newsdesk.model.classifier import (  # noqa: E402
    ADAPTER_FILES,
    AdapterStore,
    build_classifier,
    copy_tokenizer,
    load_classifier,
    outline_classifier,
    require_adapter_files,
    restore_state,
    trainable_state,
)
from newsdesk.model.network import Network, predict_logits  # noqa: E402
from newsdesk.model.tokenizer import TextTokenizer, pad  # noqa: E402

NAMES = ("Business", "Science", "Sports")
ROWS = [np.array(ids) for ids in ([2, 70, 71, 72, 3], [2, 80, 3], [2, 75, 90, 60, 91, 92, 3])]


def build(base: Path, lora: LoraSection | None = None, **model: Any) -> Any:
    torch.manual_seed(0)
    return build_classifier(base, NAMES, ModelSection(**model), lora or LoraSection(rank=4))


def network_of(model: Any, *, stock: bool = False) -> Network:
    """The network; ``stock`` leaves it to transformers + peft even where the fused encoder fits."""
    network = Network(model, torch.device("cpu"), "float32")
    if stock:
        network._fused = None
    return network


def train_steps(network: Network, steps: int = 2) -> None:
    network.train()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(steps):
        torch.nn.functional.cross_entropy(network(ROWS), torch.tensor([0, 1, 2])).backward()
        optimiser.step()
        optimiser.zero_grad()


def stock_logits(base: Path, adapter: Path) -> Any:
    """What plain transformers + peft compute, with another fresh head to begin with."""
    torch.manual_seed(99)
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(NAMES))
    model = peft.PeftModel.from_pretrained(classifier, adapter).eval()
    input_ids, mask = (torch.from_numpy(array) for array in pad(ROWS, model.config.pad_token_id))
    with torch.no_grad():
        return model(input_ids=input_ids, attention_mask=mask).logits.numpy()


@pytest.fixture
def saved(tiny_base: Callable[..., Path], tmp_path: Path) -> Path:
    """An adapter folder for the tiny BERT."""
    AdapterStore(build(tiny_base()), "someone/base").save(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
@pytest.mark.parametrize("stock", [False, True], ids=["fused", "stock"])
def test_plain_transformers_and_peft_give_the_networks_logits(family, stock, tiny_base, tmp_path):
    network = network_of(build(tiny_base(family), LoraSection(rank=4, targets=("all-linear",))), stock=stock)
    assert (network._fused is None) is stock
    fresh = predict_logits(network, ROWS)
    train_steps(network)
    AdapterStore(network.model, "someone/base").save(tmp_path / "adapter")
    trained = predict_logits(network, ROWS)
    assert np.abs(trained - fresh).max() > 0.01
    np.testing.assert_allclose(
        trained, stock_logits(tiny_base(family), tmp_path / "adapter"), atol=1e-5, rtol=0
    )


def test_the_adapter_folder_holds_exactly_pefts_two_files_and_names_its_base(saved: Path):
    assert sorted(entry.name for entry in saved.iterdir()) == sorted(ADAPTER_FILES)
    assert [entry.name for entry in saved.parent.iterdir()] == ["adapter"]
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/base"
    assert (config["task_type"], config["peft_type"], config["inference_mode"]) == ("SEQ_CLS", "LORA", True)
    assert config["target_modules"] == ["query", "value"]


def test_saving_again_replaces_and_the_same_weights_are_the_same_bytes(tiny_base, tmp_path):
    model = build(tiny_base(), LoraSection(rank=4, targets=("all-linear",)))
    store = AdapterStore(model, "x")
    content = []
    for _ in range(2):
        store.save(tmp_path / "adapter")
        content.append([(tmp_path / "adapter" / name).read_bytes() for name in ADAPTER_FILES])
    assert content[0] == content[1]
    assert json.loads(content[0][0])["target_modules"] == sorted(json.loads(content[0][0])["target_modules"])
    train_steps(network_of(model))
    store.save(tmp_path / "adapter")
    assert (tmp_path / "adapter" / ADAPTER_FILES[1]).read_bytes() != content[0][1]


VARIANTS = [
    LoraSection(rank=4, dora=True),
    LoraSection(rank=4, rslora=True),
    LoraSection(rank=4, bias="all"),
    LoraSection(rank=4, bias="lora_only"),
    *(
        LoraSection(rank=4, init=init)
        for init in ("gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora")
    ),
    LoraSection(rank=4, init="pissa", rslora=True),
    LoraSection(rank=4, init="olora", dora=True),
]


@pytest.mark.parametrize(
    "lora", VARIANTS, ids=lambda lora: " ".join(map(str, (lora.init, lora.bias, lora.dora, lora.rslora)))
)
def test_every_variant_trains_and_what_is_saved_each_time_is_what_was_trained(lora, tiny_base, tmp_path):
    network = network_of(build(tiny_base(), lora))
    store = AdapterStore(network.model, "x")
    for _ in range(2):
        train_steps(network)
        trained = {name for name, p in network.named_parameters() if p.requires_grad}
        before = predict_logits(network, ROWS)
        store.save(tmp_path / "adapter")
        np.testing.assert_array_equal(predict_logits(network, ROWS), before)
        assert {name for name, p in network.named_parameters() if p.requires_grad} == trained
        np.testing.assert_allclose(stock_logits(tiny_base(), tmp_path / "adapter"), before, atol=1e-4, rtol=0)
        assert sorted(entry.name for entry in (tmp_path / "adapter").iterdir()) == sorted(ADAPTER_FILES)


def test_an_initialisation_that_changes_the_base_is_saved_with_twice_the_rank(tiny_base, tmp_path):
    lora = LoraSection(rank=4, alpha=8.0, init="pissa")
    AdapterStore(build(tiny_base(), lora), "x").save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 16.0, True)


def test_a_loaded_classifier_computes_what_the_saved_one_did(tiny_base, tmp_path):
    network = network_of(build(tiny_base("mpnet")))
    train_steps(network)
    AdapterStore(network.model, "x").save(tmp_path)
    loaded = load_classifier(tiny_base("mpnet"), tmp_path, NAMES)
    assert not loaded.training
    assert loaded.config.id2label == dict(enumerate(NAMES))
    np.testing.assert_allclose(
        predict_logits(network_of(loaded), ROWS), predict_logits(network, ROWS), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("bert", {"num_hidden_layers": 3}, "lacks 4 tensors of the model"),
        ("bert", {"num_hidden_layers": 1}, "4 tensors that the model has no place for"),
        ("bert", {"hidden_size": 16}, "size mismatch"),
        ("roberta", {}, "no tensor base_model.model.classifier.dense.weight"),
        ("mpnet", {}, "No modules were targeted"),
    ],
    ids=["deeper", "shallower", "narrower", "another head", "other names"],
)
def test_another_base_than_its_own_is_refused(family, settings, reason, tiny_base, saved):
    with pytest.raises(UserError, match="does not fit") as raised:
        load_classifier(tiny_base(family, **settings), saved, NAMES)
    assert reason in (raised.value.found or "")
    assert "--base" in (raised.value.fix or "")


def test_another_number_of_labels_is_refused(tiny_base, saved):
    with pytest.raises(UserError, match="does not fit 2 labels") as raised:
        load_classifier(tiny_base(), saved, NAMES[:2])
    assert raised.value.found == f"a head of {len(NAMES)} classes"
    assert "--labels" in (raised.value.fix or "")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [(name, f"{name} is missing or damaged") for name in ADAPTER_FILES],
)
def test_damaged_adapter_files_are_refused(name, wrong, tiny_base, saved):
    (saved / name).write_bytes(b"{")
    with pytest.raises(UserError, match=wrong):
        load_classifier(tiny_base(), saved, NAMES)


def test_a_pickled_adapter_is_refused_unread(tiny_base, saved):
    (saved / ADAPTER_FILES[1]).replace(saved / "adapter_model.bin")
    with pytest.raises(UserError, match="are a pickle, which newsdesk never loads") as raised:
        load_classifier(tiny_base(), saved, NAMES)
    assert "safe_serialization=True" in (raised.value.fix or "")


def test_a_folder_that_is_no_adapter_says_what_is_missing(tmp_path, saved):
    require_adapter_files(saved)
    with pytest.raises(UserError, match="not a PEFT adapter folder") as raised:
        require_adapter_files(tmp_path)
    assert raised.value.found == f"missing: {', '.join(ADAPTER_FILES)}"


def broken_base(base: Path, folder: Path, **config: Any) -> Path:
    """A copy of a base with other words in its config.json."""
    shutil.copytree(base, folder)
    known = json.loads((base / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | config))
    return folder


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "nonesuch"}, "model type `nonesuch`"),
        ({"model_type": "vit"}, "ViTConfig"),
        ({"hidden_size": 30}, "multiple of the number of attention heads"),
    ],
    ids=str,
)
def test_a_base_that_is_no_classifier_is_refused_in_transformers_words(
    config, words, tiny_base, tmp_path, saved
):
    base = broken_base(tiny_base(), tmp_path / "base", **config)
    for make in (lambda: build(base), lambda: load_classifier(base, saved, NAMES)):
        with pytest.raises(UserError, match="cannot make a text classifier of") as raised:
            make()
        assert words in (raised.value.found or "")


def test_damaged_weights_are_refused(tiny_base, tmp_path):
    base = broken_base(tiny_base(), tmp_path / "base")
    (base / "model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="safetensors is missing or damaged"):
        build(base)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hidden_size": 64}, r"weight is \(640, 32\) in the weights, \(640, 64\) by config.json"),
        ({"num_hidden_layers": 512, "intermediate_size": 1 << 18}, "in the weights"),
    ],
    ids=str,
)
def test_weights_of_other_shapes_than_configured_are_refused_before_any_is_allocated(
    config, words, tiny_base, tmp_path
):
    with pytest.raises(UserError, match="not a base model") as raised:
        build(broken_base(tiny_base(), tmp_path / "base", **config))
    assert re.search(words, raised.value.found or "")


@pytest.mark.parametrize("dtype", ["int64", "float8_e4m3fn"])
def test_weights_that_are_no_floating_point_numbers_are_refused(dtype, tiny_base, tmp_path):
    from safetensors.torch import load_file, save_file

    base = broken_base(tiny_base(), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    save_file({k: v.to(getattr(torch, dtype)) for k, v in tensors.items()}, base / "model.safetensors")
    with pytest.raises(UserError, match="safetensors is missing or damaged") as raised:
        build(base)
    assert "not one of F64, F32, F16, BF16" in (raised.value.found or "")


def test_weights_that_lack_layers_are_refused_rather_than_made_up(tiny_base, tmp_path):
    base = broken_base(tiny_base(), tmp_path / "base", num_hidden_layers=3)
    with pytest.raises(UserError, match="not a whole encoder") as raised:
        build(base)
    assert "16 tensors" in (raised.value.found or "")
    assert "bert.encoder.layer.2." in (raised.value.found or "")


def test_a_base_without_a_pooler_gets_a_fresh_one(tmp_path, tiny_base):
    bare = transformers.BertModel.from_pretrained(tiny_base(), add_pooling_layer=False)
    bare.save_pretrained(tmp_path)
    assert build(tmp_path).get_base_model().bert.pooler is not None


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_dropout_replaces_the_encoders_and_the_head_keeps_its_own(family, tiny_base):
    dropouts: dict[float | None, list[tuple[str, float]]] = {}
    for dropout in (None, 0.0, 0.3):
        classifier = build(tiny_base(family), dropout=dropout).get_base_model()
        dropouts[dropout] = [
            (name, module.p)
            for name, module in classifier.named_modules()
            if isinstance(module, torch.nn.Dropout)
        ]
    prefix = f"{classifier.base_model_prefix}."
    for dropout, found in dropouts.items():
        inside = {p for name, p in found if name.startswith(prefix) and "lora" not in name}
        outside = {p for name, p in found if not name.startswith(prefix)}
        assert inside == {0.1 if dropout is None else dropout}
        assert outside == {0.1}


def test_a_heads_own_dropout_is_kept(tiny_base):
    classifier = build(tiny_base("roberta", classifier_dropout=0.25), dropout=0.0).get_base_model()
    assert classifier.classifier.modules_to_save["default"].dropout.p == 0.25


def test_the_outline_has_the_shapes_of_the_model_and_no_weights(tiny_base):
    for lora in (LoraSection(rank=4), LoraSection(rank=3, init="pissa", targets=("all-linear",))):
        model = build(tiny_base(), lora)
        config = json.loads((tiny_base() / "config.json").read_text())
        sketch = outline_classifier(config, len(NAMES), ModelSection(), lora)
        assert {p.device.type for p in sketch.parameters()} == {"meta"}
        shapes = [{name: tuple(p.shape) for name, p in m.named_parameters()} for m in (model, sketch)]
        assert shapes[0] == shapes[1]
        assert parameter_table(sketch) == parameter_table(model)


@pytest.mark.parametrize(
    "classes", [{"num_labels": 7}, {"id2label": {"0": "x", "1": "y"}, "label2id": {"x": 0, "y": 1}}], ids=str
)
def test_the_classes_of_the_base_do_not_count(classes, tiny_base):
    config = json.loads((tiny_base() / "config.json").read_text()) | classes
    assert outline_classifier(config, 4, ModelSection(), LoraSection()).config.num_labels == 4


@pytest.mark.parametrize("config", [{"model_type": "nonesuch"}, {}, {"model_type": "vit"}], ids=str)
def test_an_outline_of_no_text_classifier_is_refused(config):
    wanted = "cannot make a text classifier of a model of type" if config else "model_type = None"
    with pytest.raises(UserError, match=wanted):
        outline_classifier(config, 2, ModelSection(), LoraSection())


@pytest.mark.parametrize("lora", VARIANTS[:4], ids=lambda lora: f"{lora.bias} {lora.dora}")
def test_the_parameter_table_adds_up_to_pefts_count(lora, tiny_base):
    model = build(tiny_base(), lora)
    groups = parameter_table(model)
    counted = (sum(group.trainable for group in groups), sum(group.total for group in groups))
    assert counted == model.get_nb_trainable_parameters()
    by_name = {group.name: group for group in groups}
    assert by_name["classification head"].trainable == by_name["classification head"].total
    if lora.bias == "none":
        assert by_name["frozen encoder"].trainable == 0


def test_the_trained_state_is_a_copy_that_can_be_put_back(tiny_base):
    network = network_of(build(tiny_base()))
    state = trainable_state(network.model)
    assert sum(tensor.numel() for tensor in state.values()) == network.model.get_nb_trainable_parameters()[0]
    before = predict_logits(network, ROWS)
    train_steps(network)
    assert np.abs(predict_logits(network, ROWS) - before).max() > 0.01
    restore_state(network.model, state)
    np.testing.assert_array_equal(predict_logits(network, ROWS), before)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_copied_tokenizer_gives_the_bases_token_ids(family, tiny_base, tmp_path):
    target = tmp_path / "run" / "tokenizer"
    for _ in range(2):  # the second time it replaces
        copy_tokenizer(tiny_base(family), target)
    assert sorted(entry.name for entry in target.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert [entry.name for entry in target.parent.iterdir()] == ["tokenizer"]
    texts = ["market goal", "naïve zebra!"]
    pairs = [TextTokenizer.from_folder(folder, 32).encode(texts) for folder in (tiny_base(family), target)]
    assert [ids.tolist() for ids in pairs[0]] == [ids.tolist() for ids in pairs[1]]
    assert transformers.AutoTokenizer.from_pretrained(target)(texts[0])["input_ids"] == pairs[0][0].tolist()


def test_a_base_without_a_tokenizer_gets_none_made_up(tiny_base, tmp_path):
    base = broken_base(tiny_base(), tmp_path / "base")
    (base / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer that transformers can load"):
        copy_tokenizer(base, tmp_path / "tokenizer")
    (base / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer that transformers can load") as raised:
        copy_tokenizer(base, tmp_path / "tokenizer")
    assert "vocab.txt" in (raised.value.found or "")
    (base / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="is not a tokenizer file"):
        copy_tokenizer(base, tmp_path / "tokenizer")
    assert not (tmp_path / "tokenizer").exists()


def test_a_tokenizer_without_a_fast_form_is_refused(tiny_base, tmp_path, monkeypatch):
    class Slow:
        vocab_files_names = {"tokenizer_file": "tokenizer.json"}  # noqa: RUF012

        def save_pretrained(self, folder: str) -> None:
            (Path(folder) / "vocab.txt").write_text("a\n")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda _base, **_settings: Slow())
    with pytest.raises(UserError, match="has no fast form"):
        copy_tokenizer(tiny_base(), tmp_path / "tokenizer")
    assert not (tmp_path / "tokenizer").exists()


def test_building_says_nothing_and_leaves_transformers_verbosity_as_it_was(tiny_base, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    build(tiny_base())
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")
