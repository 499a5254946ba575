"""Adapter settings of strangers: what peft writes is read, what could hang, import or grow is refused."""

from __future__ import annotations

import json
import time

import pytest
from peft import LoraConfig, TaskType

from newsdesk.errors import UserError
from newsdesk.model.adapter_config import CONFIG, AdapterConfig

COMMON = {"task_type": TaskType.SEQ_CLS, "target_modules": ["query", "value"]}


@pytest.fixture
def saved(tmp_path):
    """The folder of an adapter_config.json as peft writes it, with these entries besides."""

    def save(config: LoraConfig | None = None, **entries: object):
        config = LoraConfig(**COMMON) if config is None else config
        config.save_pretrained(tmp_path)
        content = json.loads((tmp_path / CONFIG).read_text()) | entries
        (tmp_path / CONFIG).write_text(json.dumps(content))
        return tmp_path

    return save


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"r": 16, "lora_alpha": 64, "lora_dropout": 0.3, "bias": "lora_only"},
        {"use_dora": True, "use_rslora": True, "modules_to_save": ["classifier", "pooler"]},
        {"target_modules": "all-linear", "exclude_modules": ["dense"]},
        {"target_modules": r".*\.(query|value)"},
        {"target_modules": r"(?:.*)attention.*(query|value)$"},
        {"rank_pattern": {"query": 4}, "alpha_pattern": {"value": 32}},
        {"layers_to_transform": [4, 5], "layers_pattern": "layer"},
        {"init_lora_weights": "pissa_niter_16"},
        {"init_lora_weights": "gaussian", "fan_in_fan_out": False},
    ],
)
def test_what_peft_writes_is_read_as_peft_reads_it(saved, settings):
    folder = saved(LoraConfig(**{**COMMON, **settings}))
    theirs = LoraConfig.from_pretrained(folder)
    ours = AdapterConfig.read(folder).for_peft()
    names = AdapterConfig.model_fields.keys() - {"peft_version", "peft_type"}
    assert {name: getattr(ours, name) for name in names} == {name: getattr(theirs, name) for name in names}


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"layer_replication": [[0, 100000]]}, "layer_replication"),
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "megatron_config"),
        ({"megatron_core": "antigravity"}, "megatron_core"),
        ({"trainable_token_indices": [10**9]}, "trainable_token_indices"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config"),
        ({"eva_config": {"rho": 2}}, "eva_config"),
        ({"monteclora_config": [1]}, "monteclora_config"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"something": 1}, "something"),
        ({"r": 0}, "r = 0"),
        ({"r": 10**9}, "r = 1000000000"),
        ({"r": True}, "r = True"),
        ({"lora_alpha": float("nan")}, "NaN"),
        ({"lora_alpha": -1}, "lora_alpha"),
        ({"lora_dropout": 1.5}, "lora_dropout"),
        ({"target_modules": 7}, "target_modules"),
        ({"target_modules": ["x" * 300]}, "target_modules"),
        ({"target_modules": ["x"] * 2000}, "target_modules"),
        ({"rank_pattern": {"query": -1}}, "rank_pattern"),
        ({"layers_to_transform": [10**6]}, "layers_to_transform"),
        ({"init_lora_weights": "../../x"}, "init_lora_weights"),
        ({"bias": "everything"}, "bias"),
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"task_type": "CAUSAL_LM"}, "task_type CAUSAL_LM"),
        ({"peft_type": None}, "peft_type"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(saved, entries, named):
    with pytest.raises(UserError, match=named):
        AdapterConfig.read(saved(**entries))


def test_settings_that_do_not_go_together_are_said_in_a_sentence(saved):
    found = AdapterConfig.read(saved(layers_pattern="layer"))
    with pytest.raises(UserError, match="layers_to_transform"):
        found.for_peft()


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(.*)*x",
        "(x|x)*y",
        ".*.*.*.*query",
        r"(a)\1",
        "(?=.*)x",
        "(",
        "a{1,9999999999}",
        "(?P<n>x)",
    ],
)
@pytest.mark.parametrize("name", ["target_modules", "exclude_modules", "layers_pattern", "rank_pattern"])
def test_expressions_that_may_take_forever_are_refused_at_once(saved, name, pattern):
    value = {pattern: 4} if name == "rank_pattern" else pattern
    begun = time.perf_counter()
    with pytest.raises(UserError, match="list the modules by their names"):
        AdapterConfig.read(saved(**{name: value}))
    assert time.perf_counter() - begun < 1


@pytest.mark.parametrize("content", ["", "[]", "null", "[" * 100_000, '{"peft_type": "LORA"', '{"r": 1}'])
def test_what_is_no_object_of_settings_is_refused(tmp_path, content):
    (tmp_path / CONFIG).write_text(content)
    with pytest.raises(UserError):
        AdapterConfig.read(tmp_path)
