"""Adapters go on exactly the layers meant, whatever an architecture calls them; heads are trained whole."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("peft")

from newsdesk.config import LoraSection, ModelSection
from newsdesk.errors import UserError
from newsdesk.model.architectures import TARGET_SETS, head_modules, parameter_table, target_modules
from newsdesk.model.catalog import resolve_config
from newsdesk.model.classifier import outline_classifier

LAYERS = 2
WIDTH, INNER = 32, 48
COMMON = {
    "vocab_size": 64,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": INNER,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
DISTIL = {"vocab_size": 64, "dim": WIDTH, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": INNER}
SETTINGS: dict[str, dict[str, Any]] = {
    "distilbert": DISTIL,
    "deberta": COMMON | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": COMMON | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "electra": COMMON | {"embedding_size": 16},
    "albert": COMMON | {"embedding_size": 16},
}

BERT = (
    ("attention.self.query", "attention.self.value"),
    ("attention.self.key", "attention.output.dense"),
    ("intermediate.dense", "output.dense"),
)
DEBERTA_V2 = (
    ("attention.self.query_proj", "attention.self.value_proj"),
    ("attention.self.key_proj", "attention.output.dense"),
    ("intermediate.dense", "output.dense"),
)
# What each set of targets adds to the one before: query-value, attention, all-linear.
EXPECTED: dict[str, tuple[tuple[str, ...], ...]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), BERT),
    "deberta-v2": DEBERTA_V2,
    "deberta": (("attention.self.in_proj",), ("attention.output.dense",), BERT[2]),
    "mpnet": (("attention.attn.q", "attention.attn.v"), ("attention.attn.k", "attention.attn.o"), BERT[2]),
    "distilbert": (
        ("attention.q_lin", "attention.v_lin"),
        ("attention.k_lin", "attention.out_lin"),
        ("ffn.lin1", "ffn.lin2"),
    ),
    "albert": (
        ("attention.query", "attention.value"),
        ("attention.key", "attention.dense"),
        ("ffn", "ffn_output"),
    ),
    "modernbert": (("attn.Wqkv",), ("attn.Wo",), ("mlp.Wi", "mlp.Wo")),
}
HEADS = {
    "bert": {"bert.pooler", "classifier"},
    "distilbert": {"pre_classifier", "classifier"},
    "deberta": {"pooler", "classifier"},
    "deberta-v2": {"pooler", "classifier"},
    "albert": {"albert.pooler", "classifier"},
    "modernbert": {"head", "classifier"},
}
# Albert shares the weights of one layer among all.
DISTINCT_LAYERS = {"albert": 1}


def outline(family: str, targets: tuple[str, ...] = ("query-value",), *, train_pooler: bool = True) -> Any:
    config = {"model_type": family, **SETTINGS.get(family, COMMON)}
    lora = LoraSection(rank=2, targets=targets)
    return outline_classifier(config, 3, ModelSection(train_pooler=train_pooler), lora)


def adapted(model: Any) -> list[str]:
    """Names of the modules that carry an adapter, from the layer's own name on."""
    names = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    return [re.sub(r".*(layers?|albert_layers)\.\d+\.", "", name) for name in names]


@pytest.mark.parametrize("family", EXPECTED)
@pytest.mark.parametrize("targets", TARGET_SETS)
def test_the_adapted_modules_are_exactly_those_meant_in_every_layer(family: str, targets: str):
    wanted = sum(EXPECTED[family][: TARGET_SETS.index(targets) + 1], ())
    assert sorted(adapted(outline(family, (targets,)))) == sorted(
        wanted * DISTINCT_LAYERS.get(family, LAYERS)
    )


@pytest.mark.parametrize("family", EXPECTED)
def test_the_head_is_trained_whole_and_carries_no_adapter(family: str):
    model = outline(family, ("all-linear",))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    whole = {name.split(".modules_to_save.")[0] for name in trained if ".modules_to_save." in name}
    prefix = "base_model.model."
    assert {name.removeprefix(prefix) for name in whole} == HEADS.get(family, {"classifier"})
    assert all("lora_" in name for name in trained if ".modules_to_save." not in name)
    assert not any("lora_" in name for name in trained if name.startswith(tuple(whole)))
    outside = {
        name
        for name, _ in model.named_parameters()
        if not name.startswith(f"{prefix}{model.get_base_model().base_model_prefix}.")
    }
    assert {name for name in outside if ".original_module." not in name} <= trained


def test_the_pooler_stays_frozen_when_asked():
    model = outline("bert", train_pooler=False)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert "base_model.model.bert.pooler.dense.weight" in frozen
    assert head_modules(model.get_base_model(), train_pooler=False) == ["classifier"]


def test_single_modules_can_be_named_by_any_suffix():
    assert set(adapted(outline("bert", ("key",)))) == {"attention.self.key"}
    one = outline("bert", ("layer.1.attention.self.query", "intermediate.dense"))
    assert sorted(adapted(one)) == ["attention.self.query", "intermediate.dense", "intermediate.dense"]


def test_a_name_that_is_no_linear_layer_lists_those_that_are():
    for wrong in ("qwery", "uery", "LayerNorm", "query-value, key"):
        with pytest.raises(UserError, match=f"lora.targets names '{wrong}'") as raised:
            outline("bert", ("query", wrong))
        assert raised.value.found == "its linear layers are called query, key, value, dense, classifier"
        assert "all-linear" in (raised.value.fix or "")


def test_an_architecture_unknown_by_name_asks_for_module_names():
    settings = {"model_type": "convbert", **COMMON, "embedding_size": 32}
    for targets in TARGET_SETS:
        with pytest.raises(UserError, match=f"which layers of a convbert encoder are '{targets}'") as raised:
            outline_classifier(settings, 2, ModelSection(), LoraSection(targets=(targets,)))
        assert "query, key, value" in (raised.value.found or "")
    model = outline_classifier(settings, 2, ModelSection(), LoraSection(targets=("query", "value")))
    assert len(adapted(model)) == 2 * LAYERS


def test_a_set_among_names_is_no_set():
    model = outline("bert").get_base_model()
    with pytest.raises(UserError, match="names 'query-value', which is no linear layer"):
        target_modules(model, ["query-value", "query"])


@pytest.mark.parametrize(
    ("base", "total"), [("roberta-base", 125_389_832), ("all-mpnet-base-v2", None)], ids=["roberta", "mpnet"]
)
def test_the_seed_recipe_trains_741124_parameters_of_the_real_architecture(base: str, total: int | None):
    from newsdesk.config import load_recipe

    recipe = load_recipe("seed").recipe
    model = outline_classifier(dict(resolve_config(base)), 4, recipe.model, recipe.lora)
    groups = parameter_table(model)
    counted = (sum(group.trainable for group in groups), sum(group.total for group in groups))
    assert counted == model.get_nb_trainable_parameters()
    assert counted[0] == 741_124
    assert total is None or counted[1] == total
    assert [group.trainable for group in groups if group.name == "LoRA adapters"] == [147_456]


def test_the_best_recipe_trains_no_more_than_the_reference_does():
    from newsdesk.config import load_recipe

    recipe = load_recipe("best").recipe
    model = outline_classifier(dict(resolve_config(recipe.model.base)), 4, recipe.model, recipe.lora)
    assert sum(group.trainable for group in parameter_table(model)) == 729_988
