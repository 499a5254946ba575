"""``newsdesk train``: what it leaves, what it says, and what it refuses."""

from __future__ import annotations

import json
import re
import signal
import time
import tomllib
from contextlib import nullcontext
from pathlib import Path

import pytest

from newsdesk.runs.folder import open_run

RUN_FILES = {
    "README.md",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "calibration.json",
    "calibration.safetensors",
    "known_texts.safetensors",
    "labels.json",
    "log.jsonl",
    "manifest.json",
    "off_topic.safetensors",
    "recipe.toml",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
}


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_exactly_its_files_and_the_manifest_seals_them(newsdesk, desk, tmp_path, hashes_of):
    out = tmp_path / "runs" / "wire"
    outcome = newsdesk("train", *desk.flags, "--epochs", "2", "--out", out)
    assert outcome.code == 0
    assert outcome.lines == [f"run saved to {out}"]
    assert files_in(tmp_path) == {f"runs/wire/{name}" for name in RUN_FILES}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["files"] == hashes_of(out, RUN_FILES - {"manifest.json"})
    assert manifest["training"]["finished"] == "completed"
    assert open_run(out).labels.names == ("Business", "Science", "Sports")
    recipe = tomllib.loads((out / "recipe.toml").read_text())
    assert (recipe["data"]["label"], recipe["training"]["epochs"]) == ("desk", 2.0)


def test_progress_is_plain_lines_on_standard_error(newsdesk, desk, tmp_path):
    err = newsdesk("train", *desk.flags, "--out", tmp_path / "run").err
    assert "144 training rows, 36 validation rows, 200 steps" in err
    assert "validation: accuracy" in err
    assert "finished after" in err
    assert all(letter.isprintable() or letter == "\n" for letter in err)


def test_a_linear_model_is_measured_on_the_validation_rows_before_training(newsdesk, desk, tmp_path):
    flags = [flag for flag in desk.flags if "baseline" not in flag]
    trained = newsdesk("train", *flags, "--out", tmp_path / "run")
    said = " ".join(trained.err.split())
    sentence = re.search(
        r"note: a linear model \(TF-IDF of words 1-2, SVM\) reaches (\d+\.\d+)% \[.*?\] on the (\d+) rows "
        r"that validations measure on: what the encoder has to beat",
        said,
    )
    assert sentence, trained.err
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {event["rows"] for event in log if event["event"] == "validation"} == {int(sentence[2])}
    assert float(sentence[1]) > 60  # the words tell the class
    assert said.index("linear model") < said.index("validation: accuracy")
    assert "linear model" not in newsdesk("train", *flags, "--no-baseline", "--out", tmp_path / "2").err


def test_validation_rows_cannot_be_counted_wrong(newsdesk, desk, tmp_path):
    asked = newsdesk("train", *desk.flags, "--unknown-labels", "count-wrong", "--out", tmp_path / "run")
    assert asked.code == 2
    assert "'error', 'drop'" in asked.err


def test_json_is_one_document(newsdesk, desk, tmp_path):
    outcome = newsdesk("train", *desk.flags, "--out", tmp_path / "run", "--json")
    assert outcome.json["run"] == str(tmp_path / "run")
    assert outcome.json["finished"] == "completed"
    assert outcome.json["steps"] > 0


def test_a_run_is_replaced_only_when_asked(newsdesk, desk, run):
    before = (run / "manifest.json").read_bytes()
    refused = newsdesk("train", *desk.flags, "--out", run)
    assert refused.code == 1
    assert "--overwrite" in refused.err
    assert (run / "manifest.json").read_bytes() == before
    assert newsdesk("train", *desk.flags, "--out", run, "--epochs", "1", "--overwrite").code == 0
    assert tomllib.loads((run / "recipe.toml").read_text())["training"]["epochs"] == 1.0


def test_an_interrupted_training_says_where_the_usable_run_lies(newsdesk, desk, tmp_path, monkeypatch):
    from newsdesk.training import run as training

    class Stopped:
        def __enter__(self):
            return lambda: True

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(training, "interruptible", Stopped)
    outcome = newsdesk("train", *desk.flags, "--out", tmp_path / "run")
    assert outcome.code == 130
    assert outcome.lines == [
        f"interrupted; a usable run was saved to {tmp_path / 'run'}; continue it with --resume"
    ]
    assert newsdesk("predict", tmp_path / "run", "goal coach").code == 0
    assert (
        newsdesk("train", *desk.flags, "--out", tmp_path / "other", "--json").json["finished"]
        == "interrupted"
    )


def test_a_run_finds_its_base_from_any_folder(newsdesk, desk, tmp_path, monkeypatch):
    monkeypatch.chdir(desk.base.parent)
    newsdesk("train", *desk.flags, "--base", desk.base.name, "--out", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert newsdesk("predict", "run", "goal coach").code == 0


def test_a_dry_run_shows_the_plan_and_writes_nothing(newsdesk, desk, tmp_path):
    outcome = newsdesk("train", *desk.flags, "--out", tmp_path / "run", "--dry-run")
    assert outcome.code == 0
    assert any(line.startswith("parameters") for line in outcome.lines)
    assert list(tmp_path.iterdir()) == []
    plan = newsdesk("train", *desk.flags, "--dry-run", "--json").json
    assert (plan["rows"]["train"], plan["rows"]["validation"], plan["rows"]["classes"]) == (144, 36, 3)
    assert 0 < plan["trainable"] < plan["total"]


def test_every_fault_of_the_recipe_is_told_at_once(newsdesk, tmp_path):
    outcome = newsdesk(
        "train", "--set", "lora.rnk=4", "--set", "training.epochs=-1", "--out", tmp_path / "run"
    )
    assert outcome.code == 1
    assert "lora.rank" in outcome.err
    assert "training.epochs" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_killed_training_goes_on_by_its_own_recipe_and_says_so(newsdesk, start, desk, tmp_path):
    out = tmp_path / "run"
    process = start(
        "train", *desk.flags, "--epochs", "6", "--set", "training.checkpoint_every=4", "--out", out
    )
    while not list(out.glob("checkpoints/step-*")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    _, stderr = process.communicate()
    assert process.returncode == -signal.SIGKILL, stderr
    unfinished = newsdesk("predict", out, "goal")
    assert unfinished.code == 1
    assert f"newsdesk train --out {out} --resume" in unfinished.err
    # Bit for bit holds for one number of threads: each of these has a process like the killed one's.
    _, stderr = start("train", "--out", out, "--resume").communicate()
    assert "resuming after step " in stderr
    start("train", *desk.flags, "--epochs", "6", "--out", tmp_path / "whole").communicate()
    name = Path("adapter") / "adapter_model.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    again = newsdesk("train", "--out", out, "--resume", "--json")
    assert (again.code, again.json["finished"]) == (0, "completed")


def test_a_recipe_that_was_emptied_is_not_taken_for_the_defaults(newsdesk, desk, tmp_path, monkeypatch):
    monkeypatch.setattr("newsdesk.training.run.interruptible", lambda: nullcontext(lambda: True))
    out = tmp_path / "run"
    assert newsdesk("train", *desk.flags, "--out", out).code == 130
    (out / "recipe.toml").write_text("")
    refused = newsdesk("train", "--out", out, "--resume")
    assert refused.code == 1
    assert "recipe.toml is not as it was when the training began" in refused.err


@pytest.mark.parametrize("there", [None, "notes.txt", "recipe.toml"])
def test_where_nothing_is_to_be_resumed_no_other_training_begins(newsdesk, tmp_path, there):
    out = tmp_path / "run"
    if there is not None:
        out.mkdir()
        (out / there).write_text("[data]\n")
    refused = newsdesk("train", "--out", out, "--resume")
    assert refused.code == 1
    assert f"error: there is no training to resume at {out}\n" in refused.err
    assert f"found: {there or 'no such folder'}\n" in refused.err
    assert "--data" in refused.err
    assert out.exists() == (there is not None)


def test_to_resume_with_a_recipe_begins_where_nothing_is_and_says_so(newsdesk, desk, tmp_path):
    out = tmp_path / "run"
    begun = newsdesk("train", *desk.flags, "--epochs", "0.1", "--out", out, "--resume")
    assert begun.code == 0
    assert f"nothing to resume at {out}: a new training starts" in begun.err
    again = newsdesk("train", *desk.flags, "--epochs", "0.1", "--out", out, "--resume")
    assert again.code == 0
    assert "nothing to resume" not in again.err


def test_to_resume_and_to_overwrite_is_a_contradiction(newsdesk, tmp_path):
    outcome = newsdesk("train", "--out", tmp_path / "run", "--resume", "--overwrite")
    assert outcome.code == 2
    assert "give one of them" in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_flag_that_differs_from_the_run_s_recipe_is_refused(newsdesk, run, desk):
    (run / "manifest.json").unlink()
    outcome = newsdesk("train", *desk.flags, "--epochs", "11", "--out", run, "--resume")
    assert outcome.code == 1
    assert "training.epochs = 10.0, asked for 11.0" in outcome.err


def test_adapters_on_the_top_layers_go_the_whole_way(newsdesk, desk, tmp_path, monkeypatch):
    monkeypatch.setenv("NEWSDESK_CACHE", str(tmp_path / "cache"))
    top = ["--set", "lora.layers=top-1"]
    planned = newsdesk("train", *desk.flags, *top, "--dry-run", "--json").json
    out = tmp_path / "run"
    trained = newsdesk("train", *desk.flags, *top, "--out", out)
    assert trained.code == 0, trained.err
    assert "the lower 1 of 2 layers computed once" in trained.err
    assert planned["trainable"] < newsdesk("train", *desk.flags, "--dry-run", "--json").json["trainable"]

    evaluated = newsdesk("evaluate", out, "--data", desk.test, "--json")
    assert evaluated.json["metrics"]["accuracy"] > 0.75  # a third by chance
    asked = ["goal coach league", "--json", "--probabilities"]
    probabilities = newsdesk("predict", out, *asked).json["predictions"][0]["probabilities"]
    for kind in ("merged", "onnx-fp32"):
        assert newsdesk("export", out, "--to", kind).code == 0
        exported = newsdesk("predict", out / "export" / kind, *asked).json["predictions"][0]["probabilities"]
        assert exported == pytest.approx(probabilities, abs=1e-3)
    imported = tmp_path / "imported"
    told = ["--labels", ",".join(probabilities), "--max-length", "32"]
    outcome = newsdesk("import-adapter", out / "adapter", *told, "--out", imported)
    assert outcome.code == 0, outcome.err
    assert newsdesk("predict", imported, "goal coach league").code == 0
