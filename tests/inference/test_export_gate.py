"""An export that does not do what its run does is refused, and nothing of it stays."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import newsdesk
from newsdesk import api
from newsdesk.data.examples import Examples
from newsdesk.data.layout import TextLayout
from newsdesk.data.load import TrainingData
from newsdesk.errors import UserError
from newsdesk.inference import export as export_module
from newsdesk.inference import gentler, quantise
from newsdesk.inference.gate import (
    Evidence,
    ExportQuality,
    Quality,
    compare,
    evidence_from,
    evidence_of,
    render_progress,
    render_tried,
    require_exact,
)
from newsdesk.stored import read_stored

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def trained(tiny_base, topical_csv, tmp_path_factory):
    flags = {"model.base": str(tiny_base("roberta")), "data.train": str(topical_csv), "model.max_length": 32}
    settings = ["training.learning_rate=2e-2", "training.device=cpu", "training.precision=float32"]
    out = tmp_path_factory.mktemp("run") / "run"
    newsdesk.train(
        out=out, flags=flags, overrides=[*settings, "training.epochs=6", "data.validation_share=0.2"]
    )
    return out


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def poisoned(monkeypatch):
    """Every quantiser forgets half of its outputs: what outlier channels do to a careless one."""
    rounded = quantise.rounded_weights

    def careless(weights, bits):
        whole, scales, zeros = rounded(weights, bits)
        scales[::2] *= -1
        return whole, scales, zeros

    monkeypatch.setattr(quantise, "rounded_weights", careless)


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_poisoned_int8_is_refused_with_the_table_and_nothing_is_written(run, poisoned):
    before = files_of(run)
    with pytest.raises(UserError, match="no way to quantise") as refused:
        api.export(run, "onnx-int8")
    table = refused.value.found
    for words in ("7-bit weights", "by token", "products in float32", "by calibration", "smoothed", "alone"):
        assert words in table
    assert "at most 0.2 points lost" in table
    assert "--to onnx-fp32" in refused.value.fix
    assert files_of(run) == before
    assert not (run / "export").exists()


def test_a_refused_export_leaves_the_one_before_it(run, monkeypatch, poisoned):
    api.export(run, "onnx-fp32")
    with pytest.raises(UserError, match="no way"):
        api.export(run, "onnx-int8")
    assert [path.name for path in (run / "export").iterdir()] == ["onnx-fp32"]


def test_a_gentler_setting_is_taken_where_the_fastest_fails(run, monkeypatch):
    careless = gentler.FASTEST
    true_quantise = gentler.quantise

    def only_fine(model, setting, calibration):
        poisoned = model if setting != careless else zeroed(model)
        return true_quantise(poisoned, setting, calibration)

    monkeypatch.setattr(gentler, "quantise", only_fine)
    made = api.export(run, "onnx-int8")
    tried = made.quality.tried
    first, last = tried[0], tried[-1]
    assert (first.is_close, last.is_close) == (False, True)
    assert made.quality.setting == last.setting != str(careless)


def zeroed(model):
    """The model with a classifier that says the same of every text."""
    import onnx
    from onnx import numpy_helper

    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    for tensor in broken.graph.initializer:
        if tensor.name == "logits.weight":
            zeros = np.zeros(tuple(tensor.dims), np.float32)
            tensor.CopyFrom(numpy_helper.from_array(zeros, tensor.name))
    return broken


@pytest.mark.parametrize("kind", ["merged", "onnx-fp32"])
def test_a_float32_export_that_computes_something_else_is_refused(kind, run, monkeypatch):
    merged = export_module.merged_classifier

    def another(run, progress):
        model = merged(run, progress)
        model.classifier.out_proj.bias.data += 0.01
        return model

    monkeypatch.setattr(export_module, "merged_classifier", another)
    with pytest.raises(UserError, match="does not compute what the run computes") as refused:
        api.export(run, kind)
    assert "logits differ by up to 0.01" in refused.value.found
    assert not (run / "export").exists()


def test_every_kind_predicts_as_the_run_and_says_what_it_is_worth(run):
    texts = ["goal coach league", "bank profit market", "orbit genome quantum"]
    expected = newsdesk.load(run, engine="torch").predict_logits(texts)
    for kind, tolerance in (("merged", 1e-4), ("onnx-fp32", 1e-4), ("onnx-int8", 0.5)):
        made = api.export(run, kind)
        assert made.path == run / "export" / kind
        np.testing.assert_allclose(newsdesk.load(made.path).predict_logits(texts), expected, atol=tolerance)
        quality = read_stored(made.path / "quality.json", ExportQuality, fix="")
        assert quality == made.quality
        assert quality.rows.validation == 48
        assert quality.rows.training == 192
        assert "too few" in (quality.rows.note or "")
        low, high = quality.tried[-1].agreement_interval
        assert low < 1
        assert high == 1
    manifest = json.loads((run / "manifest.json").read_text())
    assert "export/onnx-int8/onnx/model_quantized.onnx" in manifest["files"]


def test_the_manifest_names_every_other_file_and_the_run_it_was_made_of(run):
    made = api.export(run, "onnx-fp32", out=run.parent / "artefact")
    manifest = json.loads((made.path / "manifest.json").read_text())
    assert set(manifest["files"]) == set(files_of(made.path)) - {"manifest.json"}
    assert manifest["kind"] == "onnx-fp32"
    assert manifest["max_length"] == 32
    assert manifest["run"]["base"] == json.loads((run / "manifest.json").read_text())["base"]
    settings = json.loads((made.path / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 32


def test_what_others_read_names_the_classes(run):
    config = json.loads((api.export(run, "onnx-fp32").path / "config.json").read_text())
    assert config["id2label"] == {"0": "Business", "1": "Science", "2": "Sports"}
    assert config["architectures"] == ["RobertaForSequenceClassification"]


def test_a_kill_before_the_end_leaves_no_artefact_and_the_next_export_cleans_up(run, monkeypatch):
    """What a killed process leaves is a hidden folder: no cleaning up is let happen here."""
    with monkeypatch.context() as killed:
        killed.setattr(export_module, "write_stored", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        killed.setattr(export_module.shutil, "rmtree", lambda *_arguments, **_named: None)
        with pytest.raises(KeyboardInterrupt):
            api.export(run, "onnx-fp32")
    assert [path.name[0] for path in (run / "export").iterdir()] == ["."]
    assert newsdesk.load(run).engine.startswith("torch")
    api.export(run, "onnx-fp32")
    assert [path.name for path in (run / "export").iterdir()] == ["onnx-fp32"]


def test_a_folder_that_cannot_be_written_is_named(run):
    (run / "export").write_text("in the way")
    with pytest.raises(UserError, match="no artefact can be written"):
        api.export(run, "onnx-fp32")


def rows(count, *, classes=2):
    texts = tuple(f"text {number}" for number in range(count))
    return Examples(texts, np.arange(count) % classes, ("a", "b"), "rows.csv")


def data(train, validation):
    return TrainingData(rows(train), rows(validation), TextLayout(("text",)), None)


@pytest.mark.parametrize(
    ("train", "validation", "compared"),
    [(9000, 3000, (2000, 0)), (9000, 600, (600, 0)), (9000, 100, (100, 1900)), (50, 10, (10, 50))],
)
def test_validation_rows_are_compared_and_training_rows_where_they_are_few(train, validation, compared):
    evidence = evidence_of(data(train, validation))
    assert (evidence.validation_rows, evidence.training_rows) == compared
    assert len(evidence.examples) == sum(compared)
    assert len(evidence.labels) == sum(compared)
    assert (evidence.facts.note is not None) == bool(compared[1])


def test_given_rows_are_compared_on_and_calibrated_with():
    evidence = evidence_from(rows(5000))
    assert isinstance(evidence, Evidence)
    assert (evidence.validation_rows, evidence.training_rows) == (2000, 0)
    assert len(evidence.calibration) == 128


QUALITY = Quality("some", 1000, 0.9, 0.0, 1.0, 1e-5, 3.0, (0.87, 0.92), (0.99, 1.0))


@pytest.mark.parametrize(
    ("change", "is_close"),
    [
        ({}, True),
        ({"accuracy_lost": 0.002}, True),
        ({"accuracy_lost": 0.003}, False),
        ({"accuracy_lost": -0.1}, True),
        ({"agreement": 0.99}, False),
        ({"agreement": 0.991}, True),
    ],
)
def test_the_gate_is_where_it_is_said_to_be(change, is_close):
    assert replace(QUALITY, **change).is_close is is_close


def test_figures_are_those_of_the_rows():
    reference = np.eye(2, dtype=np.float32)[[0, 0, 1, 1]]
    logits = np.eye(2, dtype=np.float32)[[0, 1, 1, 1]]
    quality = compare("x", reference, logits, np.array([0, 0, 1, 0]), 1.5)
    assert (quality.accuracy, quality.accuracy_lost, quality.agreement) == (0.5, 0.25, 0.75)
    assert quality.largest_difference == 1
    assert quality.agreement_interval == pytest.approx([0.3006, 0.9544], abs=1e-4)


def test_not_a_number_never_passes():
    reference = np.eye(2, dtype=np.float32)
    quality = compare("x", reference, np.full_like(reference, np.nan), np.array([0, 0]), 1.0)
    assert not quality.is_close
    with pytest.raises(UserError):
        require_exact(quality)


def test_tables_and_lines_fit_the_eye():
    tried = [replace(QUALITY, accuracy_lost=0.0123, agreement=0.95), QUALITY]
    head, first, *_, last = render_tried(tried)
    assert "1.23" in first
    assert "95.00%" in first
    assert head.split()[0] == "setting"
    assert "1,000 rows" in last
    assert "+1.23 points" in render_progress(tried[0])
