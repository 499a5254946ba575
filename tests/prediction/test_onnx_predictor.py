"""An exported model predicts what its graph says, on onnxruntime alone, and never from a damaged file."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("onnx")
import newsdesk
from newsdesk.errors import UserError
from newsdesk.prediction import onnx_session
from newsdesk.prediction.onnx_session import default_threads
from newsdesk.prediction.open_model import OnnxClassifier, open_model
from newsdesk.runs.exported import find_exported, preferred_export
from tiny_exports import LABELS, PIECES, build_exported, expected_logits, tampered

TEXTS = ["goal coach league medal", "bank", "", "orbit zzz genome", "goal " * 50]


def ids_of(text):
    words = [PIECES.index(word) if word in PIECES else 1 for word in text.split()][:14]
    return [2, *words, 3]


def test_logits_are_the_graphs_in_the_texts_order_whatever_their_company(built):
    predictor = open_model(built)
    expected = np.array([expected_logits(ids_of(text)) for text in TEXTS])
    assert isinstance(predictor, OnnxClassifier)
    assert np.allclose(predictor.predict_logits(TEXTS), expected, atol=1e-5)
    assert np.allclose(predictor.predict_logits(TEXTS * 400)[::5], expected[0], atol=1e-5)
    assert predictor.predict_logits([]).shape == (0, 3)


def test_it_has_the_surface_of_a_run(built):
    predictor = newsdesk.load(built)
    assert predictor.label_names == LABELS
    assert predictor.layout.text_columns == ("text",)
    assert predictor.predict(TEXTS[:2]).labels == ("Sports", "Business")
    counted: list[int] = []
    predictor.predict_probabilities(TEXTS * 300, progress=lambda done, *_: counted.append(done))
    assert counted[-1] == 1500
    assert len(counted) > 2
    with pytest.raises(TypeError, match="sequence of texts"):
        predictor.predict("goal")


def test_a_changed_byte_of_the_graph_is_found_at_loading(exported):
    graph = exported / "onnx" / "model_quantized.onnx"
    content = bytearray(graph.read_bytes())
    content[-40] ^= 1
    for damaged in (bytes(content), b"no graph at all"):
        graph.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model_quantized\.onnx is missing or damaged"):
            open_model(exported)
    graph.unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        open_model(exported)


def test_all_files_are_verified_by_name(exported):
    folder = find_exported(exported)
    folder.verify()
    (exported / "labels.json").write_text("{}")
    with pytest.raises(UserError, match=r"labels\.json is missing or damaged"):
        folder.verify()
    (exported / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is missing or damaged"):
        _ = folder.pad_id


@pytest.mark.parametrize("pad", ['"0"', "-1", "1e99", "[0]", "true", str(10**30)])
def test_a_padding_that_is_no_token_is_damage(exported, pad):
    (exported / "config.json").write_text(f'{{"pad_token_id": {pad}}}')
    with pytest.raises(UserError, match=r"config\.json is missing or damaged"):
        _ = find_exported(exported).pad_id


def test_the_fingerprint_changes_with_what_decides_predictions_and_not_with_figures(exported):
    before = open_model(exported).fingerprint
    files = find_exported(exported).manifest.files
    tampered(exported, files={**files, "quality.json": "0"})
    assert open_model(exported).fingerprint == before
    tampered(exported, files={**files, "tokenizer.json": "0"})
    assert open_model(exported).fingerprint != before


def test_what_is_no_finished_export_is_none(exported, tmp_path):
    assert find_exported(tmp_path / "nowhere") is None
    for content in ("[]", "{", '{"newsdesk": "0.1.0"}'):
        (exported / "manifest.json").write_text(content)
        assert find_exported(exported) is None


def test_an_export_of_a_kind_that_is_not_known_is_said_to_be_so(exported):
    tampered(exported, kind="onnx-int3")
    with pytest.raises(UserError, match=r"manifest\.json is missing or damaged") as refused:
        open_model(exported)
    assert refused.value.found == 'kind is "onnx-int3", not one of merged, onnx-fp32, onnx-int8, onnx-shared'


def test_int8_is_preferred_to_float32(tmp_path):
    assert preferred_export(tmp_path) is None
    build_exported(tmp_path / "export" / "onnx-fp32", kind="onnx-fp32")
    assert preferred_export(tmp_path).kind == "onnx-fp32"
    build_exported(tmp_path / "export" / "onnx-int8")
    assert preferred_export(tmp_path).kind == "onnx-int8"


def test_an_engine_that_cannot_compute_an_export_is_refused(built, exported):
    with pytest.raises(UserError, match="--engine torch cannot compute"):
        open_model(built, engine="torch")
    tampered(exported, kind="merged")
    with pytest.raises(UserError, match="--engine onnx cannot compute"):
        open_model(exported, engine="onnx")


def test_threads_are_the_environments_or_the_physical_cores(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "x")
    monkeypatch.setattr(onnx_session, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(onnx_session.os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3}, raising=False)
    assert default_threads() == 4
    for cpu in range(4):
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(f"{cpu % 2},{cpu % 2 + 2}")
    assert default_threads() == 2
    monkeypatch.delattr(onnx_session.os, "sched_getaffinity")
    monkeypatch.setattr(onnx_session.os, "cpu_count", lambda: None)
    assert default_threads() == 1


@pytest.mark.parametrize(
    ("limits", "threads"),
    [
        ({}, 8),
        ({"": "200000 100000"}, 2),
        ({"": "max 100000", "system.slice": "350000 100000"}, 3),
        ({"": "600000 100000", "system.slice/newsdesk.service": "50000 100000"}, 1),
        ({"": "nonsense"}, 8),
    ],
)
def test_threads_keep_to_the_processor_time_of_a_container(monkeypatch, tmp_path, limits, threads):
    own = tmp_path / "groups" / "system.slice" / "newsdesk.service"
    own.mkdir(parents=True)
    (tmp_path / "own").write_text("9:name=systemd:/x\n0::/system.slice/newsdesk.service\n")
    for folder, limit in limits.items():
        (tmp_path / "groups" / folder / "cpu.max").write_text(limit + "\n")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(onnx_session, "_TOPOLOGY", tmp_path / "none")
    monkeypatch.setattr(onnx_session, "_CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(onnx_session, "_OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(onnx_session.os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    assert default_threads() == threads


def test_a_text_is_classified_without_importing_what_trains_or_draws(built):
    code = (
        "import sys; sys.argv = ['newsdesk', 'predict', sys.argv[1], 'goal coach']\n"
        "from newsdesk.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(','.join(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code, built], capture_output=True, text=True, check=True)
    answer, modules = result.stdout.splitlines()
    assert answer.startswith("Sports")
    unwanted = {"torch", "transformers", "rich.console", "pydantic", "huggingface_hub"}
    assert unwanted & set(modules.split(",")) == set()  # rich.cells, which measures widths, is quick


def test_batches_computed_at_once_give_the_same_logits_in_the_same_order(built):
    texts = TEXTS * 700
    alone = OnnxClassifier(find_exported(built), threads=1)
    together = OnnxClassifier(find_exported(built), threads=3)
    counted: list[int] = []
    logits, _ = together.outputs(
        together.tokenizer.encode(texts), progress=lambda done, *_: counted.append(done)
    )
    assert np.array_equal(logits, alone.predict_logits(texts))
    assert len(counted) >= 7
    assert counted[-1] == len(texts)
    assert "_session_of_one" in vars(together._graph)
    assert "_session_of_one" not in vars(alone._graph)
