"""Exports that share their encoder: the run's answers, by graphs that are the same for all runs on a base."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

import newsdesk
from newsdesk import api
from newsdesk.errors import UserError
from newsdesk.exports import int8_settings
from newsdesk.exports.int8_settings import FASTEST
from newsdesk.exports.shared_export import SharedParts
from newsdesk.model.architectures import ARCHITECTURES, BERT_LIKE, head_modules
from newsdesk.runs.exported import MODEL_FILES, TRUNK
from newsdesk.runs.exported_adapter import ADAPTER, ExportedAdapter, stacked
from shared_exports import FEW, resealed, train_on_top

onnx = pytest.importorskip("onnx")

LAYERS = MODEL_FILES["onnx-shared"]
TEXTS = ["goal coach league", "bank profit market today", "orbit", "the new budget of the robot champion"]


@pytest.fixture(scope="module")
def adapted(classifier):
    """``adapted("bert", layers=[2])``: a classifier with plain LoRA, whose every number is kept as it is."""
    import torch
    from peft import LoraConfig, get_peft_model

    def build(family="bert", *, seed=0, classes=3, **settings):
        torch.manual_seed(seed)
        model = classifier(family, num_hidden_layers=3, num_labels=classes)
        model.base_model.load_state_dict(classifier(family, num_hidden_layers=3).base_model.state_dict())
        head = head_modules(model, train_pooler=True)
        config = LoraConfig(**({"r": 4, "lora_alpha": 8, "modules_to_save": head} | settings))
        wrapped = get_peft_model(model, config).eval()
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.1)
                if "lora_" in name or "modules_to_save" in name:
                    parameter.copy_(parameter.half().float())
                if "modules_to_save" in name and parameter.ndim == 2 and len(parameter) > classes:
                    step = parameter.abs().amax(dim=1, keepdim=True) / 127  # the pooler's
                    parameter.copy_((parameter / step).round() * step)
        return wrapped

    return build


def answers(parts_of_rows, inputs, *, one_text=False):
    """Logits and features of rows, each by the adapter of its parts, of graphs in float32."""
    import onnxruntime

    trunk, above = (
        onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        for graph in parts_of_rows[0]._graphs
    )
    given = {name: array[:1] if one_text else array for name, array in inputs.items()}
    names = [output.name for output in trunk.get_outputs()]
    found = dict(zip(names, trunk.run(names, given), strict=True))
    feed = {"states": found.pop("states"), "attention_mask": inputs["attention_mask"]}
    feed |= stacked([parts.adapter for parts in parts_of_rows])
    names = [output.name for output in above.get_outputs()]
    found |= dict(zip(names, above.run(names, feed), strict=True))
    return found["logits"], found["features"]


@pytest.mark.parametrize("family", BERT_LIKE)
@pytest.mark.parametrize(
    ("targets", "layers"),
    [("all-linear", None), ("query-value", [2]), ("attention", [1, 2]), ("feed-forward", [0, 2])],
)
def test_logits_and_features_are_those_of_the_merged_model(
    family, targets, layers, adapted, batch, logits_of, features_of
):
    known = ARCHITECTURES[family]
    modules = known.feed_forward if targets == "feed-forward" else known.targets(targets)
    model = adapted(family, target_modules=list(modules), layers_to_transform=layers, use_rslora=True)
    parts = SharedParts.of("RUN", model)
    assert parts.below == (layers or [0])[0]
    for graph in parts._graphs:
        onnx.checker.check_model(graph)
    inputs = batch(3, 17, model.config.pad_token_id)
    logits, features = answers([parts] * 3, inputs)
    merged = model.merge_and_unload()
    np.testing.assert_allclose(logits, logits_of(merged, inputs), atol=3e-5)
    np.testing.assert_allclose(features, features_of(merged, inputs), atol=3e-5)


@pytest.mark.parametrize("targets", [["query", "value"], ["query", "key", "value", "output.dense"]])
@pytest.mark.parametrize("layers", [[2], [1, 2]])
def test_rows_of_other_adapters_and_one_text_for_all_change_no_answer(targets, layers, adapted, batch):
    parts = [
        SharedParts.of(
            "RUN",
            adapted(seed=seed, classes=classes, r=rank, target_modules=targets, layers_to_transform=layers),
        )
        for seed, classes, rank in ((1, 3, 4), (2, 5, 2), (3, 2, 7))
    ]
    inputs = batch(3, 15, 0)
    mixed = answers(parts, inputs)
    same = {name: np.repeat(array[:1], 3, axis=0) for name, array in inputs.items()}
    repeated, of_one = answers(parts, same), answers(parts, same, one_text=True)
    for row, own in enumerate(parts):
        classes = own.adapter.classes
        alone = answers([own] * 3, inputs)
        for found, expected in zip(mixed, alone, strict=True):
            width = min(classes, expected.shape[1]) if found is mixed[0] else expected.shape[1]
            np.testing.assert_allclose(found[row, :width], expected[row, :width], atol=1e-5)
        np.testing.assert_allclose(of_one[0][row, :classes], repeated[0][row, :classes], atol=1e-5)
        assert not mixed[0][row, classes:].any()


def test_graphs_are_the_same_bytes_for_all_runs_on_a_base(adapted, tmp_path):
    """Whatever their adapters and classes; and others where adapters are on other layers."""
    settings = {"target_modules": ["query", "value"], "layers_to_transform": [2]}
    for name, made in {
        "a": adapted(seed=1, **settings),
        "b": adapted(seed=2, classes=3, r=16, **settings),
        "c": adapted(seed=1, target_modules=["query", "value"], layers_to_transform=[1, 2]),
        "d": adapted(seed=1, target_modules=["query"], layers_to_transform=[2]),
    }.items():
        SharedParts.of("RUN", made).write(tmp_path / name, FASTEST)
    trunk, layers, own = (
        {name: (tmp_path / name / file).read_bytes() for name in "abcd"} for file in (TRUNK, LAYERS, ADAPTER)
    )
    assert trunk["a"] == trunk["b"] == trunk["d"] != trunk["c"]
    assert layers["a"] == layers["b"] != layers["d"]
    assert own["a"] != own["b"]


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("electra", {"target_modules": ["query"]}, "electra is not one of"),
        ("bert", {"target_modules": ["query"], "use_dora": True}, "carries Dora.*, not plain LoRA"),
        ("bert", {"target_modules": ["query"], "bias": "all"}, "trains biases of the encoder"),
        ("bert", {"target_modules": ["query", "word_embeddings"]}, "word_embeddings is adapted"),
        ("bert", {"target_modules": ["pooler.dense"], "modules_to_save": ["classifier"]}, "none of the enc"),
    ],
)
def test_what_cannot_share_its_encoder_says_why_and_what_to_do(family, settings, reason, adapted):
    with pytest.raises(UserError, match="RUN cannot share its encoder with other runs") as refused:
        SharedParts.of("RUN", adapted(family, **settings))
    assert re.search(reason, refused.value.found)
    assert refused.value.fix == "export it alone, with --to onnx-int8"


def test_numbers_that_float16_has_not_are_refused(adapted):
    import torch

    model = adapted(target_modules=["query"])
    with torch.no_grad():
        next(each for name, each in model.named_parameters() if "lora_B" in name).fill_(40_000.0)
    with pytest.raises(UserError, match="cannot share its encoder") as refused:
        SharedParts.of("RUN", model)
    assert refused.value.found == (
        "its factors holds numbers up to 8e+04, where those of 16 bits end at 65,504"
    )


@pytest.fixture(scope="module")
def trained(tiny_base, topical_csv, tmp_path_factory):
    base = tiny_base("bert", num_hidden_layers=3, vocab_size=1200)
    return train_on_top(base, topical_csv, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The run's export; nobody may change it."""
    return api.export(trained, "onnx-shared", out=tmp_path_factory.mktemp("shared") / "export", **FEW)


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported.path, tmp_path / "export")


def test_an_export_answers_as_the_int8_one_and_is_opened_alone(trained, exported, tmp_path):
    single = api.export(trained, "onnx-int8", out=tmp_path / "int8", **FEW)
    shared, alone = newsdesk.load(exported.path), newsdesk.load(single.path)
    assert (shared.engine, alone.engine) == ("onnxruntime, onnx-shared", "onnxruntime, onnx-int8")
    run = newsdesk.load(trained, engine="torch")
    expected = run.predict_logits(TEXTS)
    for classifier in (shared, alone):
        np.testing.assert_allclose(classifier.predict_logits(TEXTS), expected, atol=0.5)
    assert exported.quality.tried[-1].agreement > 0.99
    own, its = (each.predict(TEXTS, off_topic=0.05) for each in (shared, alone))
    np.testing.assert_allclose(own.probabilities, its.probabilities, atol=0.1)
    assert own.labels == its.labels
    distances = [each.outputs(each.token_ids(TEXTS))[1] for each in (shared, run)]
    np.testing.assert_allclose(distances[0], distances[1], rtol=0.3)


def test_a_run_predicts_with_its_shared_export_where_it_has_no_other(trained, exported, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.copytree(exported.path, run / "export" / "onnx-shared")
    assert newsdesk.load(run).engine == "onnxruntime, onnx-shared"


def test_an_export_that_loses_answers_is_refused(trained, tmp_path, monkeypatch):
    rounded = int8_settings.rounded_weights

    def careless(weights, bits):
        whole, scales, zeros = rounded(weights, bits)
        scales[::2] *= -1
        return whole, scales, zeros

    monkeypatch.setattr(int8_settings, "rounded_weights", careless)
    with pytest.raises(UserError, match="no way to quantise"):
        api.export(trained, "onnx-shared", out=tmp_path / "export", **FEW)
    assert not (tmp_path / "export").exists()


def test_an_adapter_that_is_not_of_the_graphs_is_one_sentence(copied):
    adapter = ExportedAdapter.of_folder(copied, 3)
    for changed in (
        replace(adapter, factors=adapter.factors[:, :-1]),
        replace(
            adapter,
            pooler_weight=adapter.pooler_weight[:-2, :-2],
            pooler_scale=adapter.pooler_scale[:, :-2],
            pooler_bias=adapter.pooler_bias[:, :-2],
        ),
        replace(adapter, pooler_scale=adapter.pooler_scale * np.float32(np.inf)),
        replace(adapter, head_weight=adapter.head_weight[:, :2], head_bias=adapter.head_bias[:, :2]),
        replace(adapter, factors=adapter.factors * np.float16(np.nan)),
        replace(adapter, factors=adapter.factors.astype(np.float32)),
    ):
        changed.save(copied)
        with pytest.raises(UserError) as refused:
            newsdesk.load(resealed(copied)).predict_logits(TEXTS)
        assert refused.value.found
        assert "adapt" in refused.value.wrong


@pytest.mark.parametrize("name", [TRUNK, LAYERS, ADAPTER])
def test_a_damaged_file_is_named(name, copied):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is missing or damaged"):
        newsdesk.load(copied)


def test_a_graph_with_another_interface_is_refused(copied):
    model = onnx.load(copied / LAYERS)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 7
    onnx.save(model, copied / LAYERS)
    with pytest.raises(UserError, match="is not a graph that newsdesk runs") as refused:
        newsdesk.load(resealed(copied))
    assert refused.value.found == "input states is not float32 of axes (any, any, 32)"
