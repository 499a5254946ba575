"""newsdesk export by the command line: what it leaves, what it prints, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from importlib.machinery import PathFinder

import pytest

pytest.importorskip("onnx")

COMMON = {
    "calibration.json",
    "calibration.safetensors",
    "config.json",
    "known_texts.safetensors",
    "labels.json",
    "manifest.json",
    "off_topic.safetensors",
    "quality.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("merged", "model.safetensors"),
        ("onnx-fp32", "onnx/model.onnx"),
        ("onnx-int8", "onnx/model_quantized.onnx"),
        ("onnx-shared", "onnx/trunk.onnx onnx/adapted_layers.onnx adapter.safetensors"),
    ],
)
def test_every_kind_leaves_exactly_its_files_in_the_run(newsdesk, run, desk, kind, model):
    few = ["--max-loss-upper", "10"] if kind in ("onnx-int8", "onnx-shared") else []  # rows
    outcome = newsdesk("export", run, "--to", kind, *few)
    assert outcome.code == 0, outcome.err
    folder = run / "export" / kind
    assert files_of(folder) == COMMON | set(model.split())
    assert outcome.lines[-1] == f"export saved to {folder}"
    assert "agreement with the run" in outcome.err
    predicted = newsdesk("predict", folder, "goal coach league", "--json").json["predictions"]
    assert predicted[0]["label"] == "Sports"


def test_json_is_one_document_with_the_figures(newsdesk, run, tmp_path):
    outcome = newsdesk("export", run, "--to", "onnx-fp32", "--out", tmp_path / "there", "--json")
    assert outcome.json["path"] == str(tmp_path / "there")
    assert outcome.json["kind"] == "onnx-fp32"
    assert outcome.json["tried"][0]["agreement"] == 1
    assert not (run / "export").exists()


def test_an_export_is_replaced_only_when_asked(newsdesk, run):
    assert newsdesk("export", run, "--to", "merged").code == 0
    refused = newsdesk("export", run, "--to", "merged")
    assert refused.code == 1
    assert "already" in refused.err
    assert "--overwrite" in refused.err
    assert newsdesk("export", run, "--to", "merged", "--overwrite").code == 0
    assert files_of(run / "export") == {f"merged/{name}" for name in COMMON | {"model.safetensors"}}


def test_what_is_no_export_is_never_replaced(newsdesk, run, tmp_path):
    mine = tmp_path / "thesis.txt"
    mine.write_text("ten years of work")
    outcome = newsdesk("export", run, "--to", "merged", "--out", tmp_path, "--overwrite")
    assert outcome.code == 1
    assert "--out" in outcome.err
    assert mine.read_text() == "ten years of work"


def test_an_unknown_kind_is_wrong_usage(newsdesk, run):
    outcome = newsdesk("export", run, "--to", "tflite")
    assert outcome.code == 2
    assert "onnx-int8" in outcome.err


def test_what_int8_may_lose_is_for_int8_and_too_few_rows_say_how_many_are_needed(newsdesk, run):
    wrong = newsdesk("export", run, "--to", "onnx-fp32", "--max-loss", "1")
    assert (wrong.code, "need --to onnx-int8" in wrong.err) == (2, True)
    refused = newsdesk("export", run, "--to", "onnx-int8")
    assert refused.code == 1
    assert "cannot tell how much an int8 export loses" in refused.err
    assert "765 or more labelled rows" in refused.err
    assert "--max-loss-upper" in refused.err


def test_an_unfinished_run_is_named_as_such(newsdesk, run):
    (run / "manifest.json").unlink()
    outcome = newsdesk("export", run, "--to", "onnx-fp32")
    assert outcome.code == 1
    assert "unfinished" in outcome.err
    assert not (run / "export").exists()


def test_a_missing_package_is_named_with_its_extra(newsdesk, run, monkeypatch):
    find_spec = PathFinder.find_spec
    monkeypatch.setattr(
        "newsdesk.exports.export.find_spec", lambda name: None if name == "onnx" else find_spec(name)
    )
    outcome = newsdesk("export", run, "--to", "onnx-fp32")
    assert outcome.code == 1
    assert "newsdesk[export]" in outcome.err
    assert not (run / "export").exists()


def test_a_run_whose_rows_are_gone_takes_rows_by_flag(newsdesk, run, desk, tmp_path):
    manifest = run / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["data"]  # as an imported adapter has it
    manifest.write_text(json.dumps(content))
    refused = newsdesk("export", run, "--to", "onnx-fp32")
    assert refused.code == 1
    assert "--data FILE" in refused.err
    rows = shutil.copy(desk.test, tmp_path / "rows.csv")
    outcome = newsdesk("export", run, "--to", "onnx-fp32", "--data", rows, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["rows"] == {"source": str(rows), "validation": 60, "training": 0}


def test_an_export_is_evaluated_as_its_run_is(newsdesk, run, desk):
    assert newsdesk("export", run, "--to", "onnx-fp32").code == 0
    folder = run / "export" / "onnx-fp32"
    flags = [
        "--data",
        desk.test,
        "--label",
        "desk",
        "--json",
    ]  # an export knows the text's columns alone
    of_run, of_exported = newsdesk("evaluate", run, *flags).json, newsdesk("evaluate", folder, *flags).json
    assert of_exported["metrics"]["accuracy"] == of_run["metrics"]["accuracy"]
    assert (folder / "metrics.json").is_file()
    refused = newsdesk("evaluate", folder, *flags, "--baseline")
    assert refused.code == 1
    assert "an exported model, which does not know them" in refused.err


def test_an_altered_export_is_not_evaluated(newsdesk, run, desk):
    assert newsdesk("export", run, "--to", "onnx-fp32").code == 0
    quality = run / "export" / "onnx-fp32" / "quality.json"
    quality.write_text(quality.read_text().replace('"accuracy": ', '"accuracy": 1'))
    refused = newsdesk("evaluate", run / "export" / "onnx-fp32", "--data", desk.test, "--label", "desk")
    assert refused.code == 1
    assert "quality.json is missing or damaged" in refused.err


def test_an_engine_that_cannot_compute_the_export_says_which_export_can(newsdesk, run):
    refused = newsdesk("predict", run, "goal", "--engine", "onnx")
    assert (refused.code, f"newsdesk export {run} --to onnx-int8" in refused.err) == (1, True)
    assert newsdesk("export", run, "--to", "onnx-fp32").code == 0
    refused = newsdesk("predict", run / "export" / "onnx-fp32", "goal", "--engine", "torch")
    assert refused.code == 1
    assert "newsdesk export RUN --to merged" in refused.err


def test_only_an_export_is_replaced_and_only_if_nothing_else_is_in_its_folder(newsdesk, desk, run):
    assert newsdesk("export", run, "--to", "onnx-fp32").code == 0
    folder = run / "export" / "onnx-fp32"
    assert newsdesk("evaluate", folder, "--data", desk.test, "--text", "words", "--label", "desk").code == 0
    (folder / "onnx" / "notes.txt").write_text("mine")
    refused = newsdesk("export", run, "--to", "onnx-fp32", "--overwrite")
    assert refused.code == 1
    assert "holds files that newsdesk did not write" in refused.err
    assert "found: onnx/notes.txt\n" in refused.err
    assert (folder / "onnx" / "notes.txt").read_text() == "mine"
    (folder / "onnx" / "notes.txt").unlink()
    assert newsdesk("export", run, "--to", "onnx-fp32", "--overwrite").code == 0
    assert not (folder / "metrics.json").exists()


def test_files_of_usual_names_make_no_export_of_a_folder(newsdesk, run, tmp_path, monkeypatch):
    project = tmp_path / "project"
    project.mkdir()
    for name in ("manifest.json", "quality.json", "thesis.tex"):
        (project / name).write_text('{"kind": "thesis"}')
    refused = newsdesk("export", run, "--to", "merged", "--out", project, "--overwrite")
    assert refused.code == 1
    assert "found: no exported model of newsdesk\n" in refused.err
    assert len(list(project.iterdir())) == 3
    for here in (run / "export" / "merged", tmp_path / "empty"):
        here.mkdir(parents=True)
        monkeypatch.chdir(here)
        refused = newsdesk("export", run, "--to", "merged", "--out", ".", "--overwrite")
        assert refused.code == 1
        assert "it is the current folder" in refused.err


def test_an_export_killed_between_its_two_renames_is_there_again_at_the_next(newsdesk, run, monkeypatch):
    from newsdesk.errors import UserError
    from newsdesk.exports import export

    assert newsdesk("export", run, "--to", "merged").code == 0
    folder = run / "export" / "merged"
    folder.rename(folder.with_name(".merged.replaced"))  # as a kill leaves it there

    def refuse(*_arguments: object, **_named: object) -> None:
        raise UserError("not today")

    monkeypatch.setattr(export, "_write_common", refuse)
    assert "not today" in newsdesk("export", run, "--to", "merged").err
    assert newsdesk("predict", folder, "goal coach").code == 0
    assert [path.name for path in folder.parent.iterdir()] == ["merged"]


def test_a_pipe_among_the_tokenizers_files_is_a_sentence(newsdesk, run):
    settings = run / "tokenizer" / "tokenizer_config.json"
    settings.unlink()
    os.mkfifo(settings)
    refused = newsdesk("export", run, "--to", "merged")
    assert refused.code == 1
    assert "tokenizer_config.json" in refused.err
