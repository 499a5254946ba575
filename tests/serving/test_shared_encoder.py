"""Many classifiers on one encoder answer as each alone, share what they can, and are exchanged under load."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest

import newsdesk
from newsdesk import api
from newsdesk.errors import UserError
from newsdesk.model.windows import LongTexts
from newsdesk.prediction.onnx_session import OnnxGraph
from newsdesk.runs.calibration import CALIBRATION, CALIBRATION_ROWS
from newsdesk.runs.exported import TRUNK, ExportedModel
from newsdesk.runs.exported_adapter import ADAPTER
from newsdesk.serving.models import Models
from newsdesk.serving.shared_encoder import SharedEncoder
from shared_exports import FEW, perturbed, resealed, train_on_top

pytest.importorskip("onnx")

TEXTS = ["goal coach league", "bank profit market today", "orbit", "the new budget of the robot champion", ""]
LONG = "goal coach season medal " * 20


@pytest.fixture(scope="module")
def exports(tiny_base, topical_csv, tmp_path_factory):
    """By name: one run's export, two others on the same layers, one whose adapters are on all layers, one
    that reads windows, and one of several labels a text.
    """
    folder = tmp_path_factory.mktemp("exports")
    base = tiny_base("bert", num_hidden_layers=3, vocab_size=1200)
    found = {}
    for name, layers in (("first", "top-2"), ("whole", "all")):
        run = train_on_top(base, topical_csv, folder / f"{name}-run", f"lora.layers={layers}")
        found[name] = api.export(run, "onnx-shared", out=folder / name, **FEW).path
    for seed, name in enumerate(("second", "third", "windows", "several")):
        found[name] = perturbed(found["first"], folder / name, seed)
    labels = ExportedModel(found["windows"]).labels
    replace(labels, max_length=16, long_texts=LongTexts("windows", 4, 8)).write(found["windows"])
    replace(labels, task="multi").write(found["several"])
    for name in ("windows", "several"):
        for fitted in (CALIBRATION, CALIBRATION_ROWS):
            (found[name] / fitted).unlink()
        resealed(found[name])
    return found


@pytest.fixture
def encoder(exports):
    shared = SharedEncoder(threads=1)
    for name, path in exports.items():
        shared.add(name, path)
    return shared


def rows_of(encoder, texts, names):
    return [(encoder.classifier(name).token_ids([text])[0], name) for text in texts for name in names]


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_of_all_classifiers_in_one_batch_get_the_answers_of_each_alone(exports, threads):
    encoder = SharedEncoder(threads=threads)
    for name, path in exports.items():
        encoder.add(name, path)
    texts = [*TEXTS, LONG, *(f"goal {word} coach" for word in "abcdefgh" * 20)]
    rows = rows_of(encoder, texts, exports)
    computed = iter(encoder.compute(rows))
    found = [[next(computed) for _ in exports] for _ in texts]
    for place, path in enumerate(exports.values()):
        alone = newsdesk.load(path)
        logits, distances = alone.outputs(alone.token_ids(texts))
        own = [each[place] for each in found]
        np.testing.assert_allclose([each.logits for each in own], logits, atol=0.02)
        if distances is None:
            assert {each.distance for each in own} == {None}
        else:
            np.testing.assert_allclose([each.distance for each in own], distances, rtol=0.02)
    assert found[0][0].distance is not None
    assert np.abs(found[0][0].logits - found[0][1].logits).max() > 0.05  # classifiers that differ


def test_one_text_by_many_classifiers_passes_the_trunk_once(encoder, exports, monkeypatch):
    ran, true_run = [], OnnxGraph.run

    def run(graph, outputs, inputs, **named):
        ran.append((graph.path.name, len(next(iter(inputs.values())))))
        return true_run(graph, outputs, inputs, **named)

    names = ["first", "second", "third", "several"]
    (ids,) = encoder.classifier("first").token_ids(TEXTS[:1])
    one_by_one = [encoder.logits([(ids, name)])[0] for name in names]
    monkeypatch.setattr(OnnxGraph, "run", run)
    together = encoder.logits_of_all(ids, names)
    assert ran == [("trunk.onnx", 1), ("adapted_layers.onnx", 1)]
    assert list(together) == names
    np.testing.assert_allclose(list(together.values()), one_by_one, atol=0.02)


def test_what_exports_have_in_common_is_held_once_and_freed_with_the_last(exports):
    encoder = SharedEncoder(threads=1)
    first, second = (encoder.add(name, exports[name]) for name in ("first", "second"))
    assert first.graphs.trunk is second.graphs.trunk
    assert first.graphs.adapted is second.graphs.adapted
    assert first.tokenizer is second.tokenizer
    windows, whole = (encoder.add(name, exports[name]) for name in ("windows", "whole"))
    assert windows.graphs.trunk is first.graphs.trunk
    assert windows.tokenizer is not first.tokenizer
    assert whole.graphs.trunk is not first.graphs.trunk
    graph = weakref.ref(first.graphs.adapted)
    del first, second, windows, whole
    for name in ("first", "second"):
        encoder.remove(name)
    gc.collect()
    assert graph() is not None  # of the one that reads windows
    encoder.remove("windows")
    gc.collect()
    assert graph() is None
    assert encoder.names == ("whole",)


def test_classifiers_are_replaced_and_removed_while_others_ask_and_no_answer_is_mixed(exports):
    encoder = SharedEncoder(threads=1)
    encoder.add("kept", exports["third"])
    encoder.add("changing", exports["first"])
    (ids,) = encoder.classifier("kept").token_ids(TEXTS[:1])
    rows = [(ids, "kept"), (ids, "changing"), (ids, "changing")]
    known = []
    for name in ("first", "second"):
        encoder.add("changing", exports[name])
        known.append(encoder.logits(rows))
    stop, wrong, asked = threading.Event(), [], [0]

    def ask():
        while not stop.is_set():
            found = encoder.logits(rows)
            if not any(np.allclose(found, each, atol=0.02) for each in known):
                wrong.append(found)
            asked[0] += 1

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(12):
        encoder.add("changing", exports[("first", "second")[turn % 2]])
        encoder.add("other", exports["whole"])
        encoder.remove("other")
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert asked[0] >= 3


def test_what_is_not_there_and_what_shares_nothing_is_one_sentence(encoder, exports, tmp_path):
    (ids,) = encoder.classifier("first").token_ids(TEXTS[:1])
    before = encoder.names
    with pytest.raises(UserError, match="there is no classifier 'nobody'") as refused:
        encoder.logits([(ids, "first"), (ids, "nobody")])
    assert "'first', 'whole'" in refused.value.found
    with pytest.raises(UserError, match="there is no classifier 'nobody'"):
        encoder.remove("nobody")
    with pytest.raises(UserError, match="does not share its encoder") as refused:
        encoder.add("other", tmp_path)
    assert refused.value.fix == "make one with newsdesk export RUN --to onnx-shared"
    damaged = perturbed(exports["first"], tmp_path / "damaged", 9)
    (damaged / ADAPTER).write_bytes((damaged / ADAPTER).read_bytes()[:-1])
    with pytest.raises(UserError, match="is missing or damaged"):
        encoder.add("first", damaged)
    assert encoder.names == before
    assert encoder.logits([]) == []


def test_a_file_that_nobody_uses_is_not_read_and_a_damaged_one_never_goes_on_the_shelf(exports, tmp_path):
    encoder = SharedEncoder(threads=1)
    copy = perturbed(exports["first"], tmp_path / "copy", 3)
    (copy / TRUNK).write_bytes(b"something else")
    with pytest.raises(UserError, match=r"trunk\.onnx is missing or damaged"):
        encoder.add("copy", copy)
    encoder.add("first", exports["first"])
    encoder.add("copy", copy)  # by the sha256 that it states, of which a whole one is open
    (ids,) = encoder.classifier("copy").token_ids(TEXTS[:1])
    assert np.isfinite(encoder.logits([(ids, "copy")])[0]).all()


def test_a_server_computes_models_of_one_encoder_together_and_forgets_those_that_nobody_holds(exports):
    names = ("first", "second")
    models = Models({name: exports[name] for name in names})
    opened = [models.open(name)[0] for name in names]
    engine = opened[0].engine
    assert engine is opened[1].engine
    computed = engine.compute([(model.encode(TEXTS[:1]).ids[0], model.key) for model in opened])
    for name, found in zip(names, computed, strict=True):
        expected = newsdesk.load(exports[name]).predict_logits(TEXTS[:1])[0]
        np.testing.assert_allclose(found.logits, expected, atol=0.02)
    kept = opened.pop(0).key, opened[0].key
    gc.collect()
    assert engine.names == kept[1:]
