"""An export that does not do what its run does is refused, and nothing of it stays."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import newsdesk
from newsdesk import api
from newsdesk.data.columns import TextLayout
from newsdesk.data.duplicates import KnownTexts
from newsdesk.data.examples import Examples
from newsdesk.data.load import TrainingData
from newsdesk.errors import UserError
from newsdesk.exports import export as export_module
from newsdesk.exports import int8_settings
from newsdesk.exports import parity as gate
from newsdesk.exports.int8_settings import FASTEST
from newsdesk.exports.parity import (
    EvidenceFacts,
    ExportQuality,
    Limits,
    compare,
    evidence_from,
    evidence_of,
    no_setting_passes,
    render_progress,
    render_tried,
    require_exact,
    rows_to_tell,
)
from newsdesk.prediction.open_model import RunClassifier
from newsdesk.stored import read_stored

pytest.importorskip("onnx")

FEW = {"max_loss_upper": 3.0}
"""What the 240 rows of the run here can tell: if they show no loss, it is below 1.6 points."""


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
    rounded = int8_settings.rounded_weights

    def careless(weights, bits):
        whole, scales, zeros = rounded(weights, bits)
        scales[::2] *= -1
        return whole, scales, zeros

    monkeypatch.setattr(int8_settings, "rounded_weights", careless)


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_poisoned_int8_is_refused_with_the_table_and_nothing_is_written(run, poisoned):
    before = files_of(run)
    with pytest.raises(UserError, match="no way to quantise") as refused:
        api.export(run, "onnx-int8", **FEW)
    table = refused.value.found
    for setting in int8_settings.SETTINGS:
        assert str(setting) in table
    assert "at most 0.2 points lost and 3 at the upper end of the interval" in table
    assert "48 rows held out and 192 training rows" in table
    assert "on the validation rows alone" in table
    assert "--to onnx-fp32" in refused.value.fix
    assert files_of(run) == before
    assert not (run / "export").exists()


def test_a_refused_export_leaves_the_one_before_it(run, monkeypatch, poisoned):
    api.export(run, "onnx-fp32")
    with pytest.raises(UserError, match="no way"):
        api.export(run, "onnx-int8", **FEW)
    assert [path.name for path in (run / "export").iterdir()] == ["onnx-fp32"]


def test_a_gentler_setting_is_taken_where_the_fastest_fails(run, monkeypatch):
    true_quantise = export_module.quantise

    def only_fine(model, setting):
        return true_quantise(zeroed(model) if setting == FASTEST else model, setting)

    monkeypatch.setattr(export_module, "quantise", only_fine)
    made = api.export(run, "onnx-int8", **FEW)
    tried = made.quality.tried
    first, last = tried[0], tried[-1]
    limits = Limits(loss_upper=0.03)
    assert made.quality.limits == limits
    assert (first.is_close(limits), last.is_close(limits)) == (False, True)
    assert made.quality.setting == last.setting == "8-bit weights, inputs by token"


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
    merged = RunClassifier.merged

    def another(classifier):
        model = merged(classifier)
        model.classifier.out_proj.bias.data += 0.01
        return model

    monkeypatch.setattr(RunClassifier, "merged", another)
    with pytest.raises(UserError, match="does not compute what the run computes") as refused:
        api.export(run, kind)
    assert "logits differ by up to 0.01" in refused.value.found
    assert not (run / "export").exists()


def test_every_kind_predicts_as_the_run_and_says_what_it_is_worth(run):
    texts = ["goal coach league", "bank profit market", "orbit genome quantum"]
    expected = newsdesk.load(run, engine="torch").predict_logits(texts)
    for kind, tolerance in (("merged", 1e-4), ("onnx-fp32", 1e-4), ("onnx-int8", 0.5)):
        made = api.export(run, kind, **(FEW if kind == "onnx-int8" else {}))
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
    made = api.export(run, "onnx-fp32", out=run.parent / "exported")
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


def test_a_kill_before_the_end_leaves_no_export_and_the_next_export_cleans_up(run, monkeypatch):
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
    with pytest.raises(UserError, match="no exported model can be written"):
        api.export(run, "onnx-fp32")


def rows(count, *, classes=2):
    texts = tuple(f"text {number}" for number in range(count))
    return Examples(texts, np.arange(count) % classes, ("a", "b"), "rows.csv")


def data(train, validation):
    return TrainingData(rows(train), rows(validation), TextLayout(("text",)), None)


@pytest.mark.parametrize(
    ("train", "validation", "compared"),
    [(9, 9000, (5000, 0)), (9000, 1000, (1000, 0)), (9000, 100, (100, 1900)), (50, 10, (10, 50))],
)
def test_validation_rows_are_compared_and_training_rows_where_they_are_few(train, validation, compared):
    evidence = evidence_of(data(train, validation))
    assert (evidence.validation_rows, evidence.training_rows) == compared
    assert len(evidence.examples) == sum(compared)
    assert len(evidence.labels) == sum(compared)
    assert (evidence.facts.note is not None) == bool(compared[1])


def test_of_given_rows_5000_are_compared_on():
    evidence = evidence_from(rows(9000))
    assert (evidence.validation_rows, evidence.training_rows) == (5000, 0)


def test_given_rows_that_the_run_learned_from_count_as_training_rows():
    learned = [f"text {number}" for number in range(0, 300, 3)]
    evidence = evidence_from(rows(300), KnownTexts.of(learned, []))
    assert (evidence.validation_rows, evidence.training_rows) == (200, 100)
    assert set(evidence.examples.texts[200:]) == set(learned)
    assert evidence.labels[0] == 1  # of text 1: labels go with their texts
    logits, readable = np.zeros((300, 2), np.float32), np.ones(300, np.bool_)
    assert len(evidence.held_out(logits, None, readable).labels) == 200


def test_rows_too_few_to_tell_are_refused_with_the_number_that_could(run):
    before = files_of(run)
    with pytest.raises(UserError, match="240 rows cannot tell how much an int8 export loses") as refused:
        api.export(run, "onnx-int8")
    assert "it might lose 1.58 points (95 % interval); 0.5 are allowed" in refused.value.found
    assert "give 765 or more labelled rows" in refused.value.fix
    assert "--max-loss-upper 1.6" in refused.value.fix
    assert "--to onnx-fp32" in refused.value.fix
    assert files_of(run) == before
    api.export(run, "onnx-fp32")  # which loses nothing and needs no such number


def test_where_the_interval_alone_fails_the_error_says_how_many_rows_would_do(monkeypatch):
    monkeypatch.setattr(gate, "LEAST_AGREEMENT", -1.0)
    wrong = replace(measured(999, 1, 0), setting="some", loss=measured(999, 1, 0).loss)
    assert not wrong.is_close(Limits())
    assert rows_to_tell(wrong, Limits()) == 1998
    assert rows_to_tell(measured(1000, 9, 0), Limits()) is None
    refused = no_setting_passes([wrong], evidence_from(rows(1000)).facts, Limits())
    assert "rows are too few to tell" in refused.wrong
    assert "give about 1,998 labelled rows" in refused.fix


def test_limits_that_nothing_can_meet_are_refused(run):
    for limits in ({"max_loss_upper": 0.0}, {"max_loss": -1.0}, {"max_loss_upper": 200.0}):
        with pytest.raises(UserError, match="points of accuracy"):
            api.export(run, "onnx-int8", **limits)


def measured(rows, to_wrong, to_right, validation=0, wrong_of_validation=0):
    """A candidate that changes so many answers of two classes, those of validation rows first."""
    labels = np.zeros(rows, np.int64)
    expected, given = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    given[:wrong_of_validation] = 1
    given[rows - (to_wrong - wrong_of_validation) :] = 1 if to_wrong > wrong_of_validation else 0
    middle = slice(rows // 2, rows // 2 + to_right)
    expected[middle] = 1
    one_hot = np.eye(2, dtype=np.float32)
    return compare("some", one_hot[expected], one_hot[given], labels, 3.0, validation)


@pytest.mark.parametrize(
    ("counts", "is_close"),
    [
        ((2000, 0, 0), True),
        ((2000, 3, 0), True),
        ((2000, 4, 0), False),  # 0.2 points, and up to 0.51
        ((764, 0, 0), False),  # not a row is lost, and up to 0.5003 may be
        ((765, 0, 0), True),
        ((1000, 1, 0), False),
        ((5000, 10, 0), True),
        ((5000, 11, 0), False),  # 0.22 points
        ((2000, 0, 9), True),  # it gains
        ((2000, 9, 9), True),
        ((2000, 11, 11), False),
        ((2000, 10, 11), False),  # 98.95 % agreement
        ((24, 0, 0), False),
        ((2000, 3, 0, 274, 3), False),  # the validation rows alone show 1.1 points
        ((2000, 3, 0, 274, 1), True),
    ],
)
def test_the_gate_is_where_it_is_said_to_be(counts, is_close):
    quality = measured(*counts)
    assert quality.loss.to_wrong - quality.loss.to_right == round(quality.accuracy_lost * quality.rows)
    assert quality.is_close(Limits()) is is_close


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
    assert not quality.is_close(Limits(loss=1, loss_upper=1))
    with pytest.raises(UserError):
        require_exact(quality)


def test_tables_and_lines_fit_the_eye():
    tried = [measured(2000, 30, 5, 274, 1), measured(2000, 3, 0, 274, 1)]
    facts = EvidenceFacts("rows.csv", 274, 1726, "few")
    head, first, *_, allowed, on, alone = render_tried(tried, facts, Limits())
    assert head.split()[:3] == ["setting", "points", "lost"]
    assert first.split()[-6:] == ["1.25", "0.71", "to", "1.91", "98.25%", "3.0"]
    assert allowed.endswith(
        "at most 0.2 points lost and 0.5 at the upper end of the interval, more than 99% agreement"
    )
    assert on.startswith("measured on 274 rows held out and 1,726 training rows: too few rows were held out")
    assert alone.startswith("on the validation rows alone: 0.36 points lost (95 % interval ")
    *_, on = render_tried(tried, EvidenceFacts("rows.csv", 2000, 0), Limits())
    assert on == "measured on 2,000 rows held out"
    assert "+1.25 points lost (95 % interval 0.71 to 1.91)" in render_progress(tried[0])
    assert render_tried(tried, facts, None)[-1] == "measured on 274 rows held out and 1,726 training rows"
