"""Classifiers that come with newsdesk: known by name to every verb, never written to, and how one is made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import newsdesk as package
from newsdesk.data.load import DATA_SETS
from newsdesk.errors import UserError
from newsdesk.files import sha256_of
from newsdesk.hub.cache import Slot
from newsdesk.hub.source import Fetched
from newsdesk.progress import silent
from newsdesk.reports.facts import RunFacts
from newsdesk.runs import ready_made
from newsdesk.runs.folder import RunFolder, open_run
from newsdesk.runs.linear_model import LinearModel

NAME = "tiny-desk"
ENTRY = f"""
[{NAME}]
description = "three topics"
data_set = "ag_news"
notice = "tiny-desk was trained for a test"
card = '''
Sorts words.
'''
manifest_sha256 = ""
"""


@pytest.fixture(scope="module")
def script(benchmark_script) -> ModuleType:
    """What makes a run a ready-made classifier."""
    return benchmark_script("ready_made")


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Iterator[pytest.MonkeyPatch]:
    """An installation with one entry in its catalogue, and an empty cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("installed")
        (folder / ready_made.CATALOGUE).write_text(ENTRY)
        patch.setattr(ready_made, "FOLDER", folder)
        patch.setenv("NEWSDESK_CACHE", str(tmp_path_factory.mktemp("cache")))
        ready_made.ready_made.cache_clear()
        yield patch
    ready_made.ready_made.cache_clear()


@pytest.fixture(scope="module")
def finished(here, desk, tmp_path_factory) -> Path:
    """A run on a base of the Hub, evaluated; nobody may change it."""
    slot = Slot("models", "desk/tiny-bert")
    with slot.filling(silent) as staging:
        shutil.copytree(desk.base, staging / "hub")
        files = {path.name: sha256_of(path) for path in desk.base.iterdir()}
        slot.publish(staging / "hub", Fetched(files, licence="mit"), "hub")
    settings = [flag.removeprefix("--set=") for flag in desk.flags if flag.startswith("--set=")]
    flags = {"data.train": str(desk.train), "data.text": ("words",), "data.label": "desk"}
    flags |= {"model.base": "desk/tiny-bert", "training.epochs": 10.0}
    out = tmp_path_factory.mktemp("runs") / "finished"
    package.train(out=out, flags=flags, overrides=settings)
    package.evaluate(out, str(desk.test))
    package.evaluate(out, str(desk.train), split="learned")  # is not shipped
    return out


@pytest.fixture(scope="module")
def installed(finished, script) -> Path:
    """The same run, ready-made."""
    script.main([str(finished), NAME])
    return ready_made.FOLDER / NAME


@pytest.fixture
def own(finished, tmp_path) -> Path:
    """A copy of the finished run, to spoil."""
    return shutil.copytree(finished, tmp_path / "own")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def contents(folder: Path) -> dict[str, str]:
    return {str(path): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


def test_what_is_made_names_no_place_and_keeps_the_figures(installed, finished, desk):
    run, before = open_run(Path(NAME)), open_run(finished)
    facts = RunFacts.of(run)
    assert run.manifest.files == {
        file.relative_to(installed).as_posix(): sha256_of(file)
        for file in installed.rglob("*")
        if file.is_file() and file.name != "manifest.json"
    }
    assert run.manifest.data.licence == DATA_SETS["ag_news"].licence
    assert (run.manifest.data.train.source, run.manifest.data.validation.source) == (
        "ag_news",
        "split off ag_news",
    )
    assert run.manifest.data.train.sha256 == before.manifest.data.train.sha256
    assert list(facts.splits) == ["test"]
    assert facts.splits["test"].metrics == RunFacts.of(before).splits["test"].metrics
    assert (facts.calibration.temperature, facts.started.rows) == (
        RunFacts.of(before).calibration.temperature,
        before.manifest.data.train.rows,
    )
    card = (installed / "README.md").read_text()
    assert f"# {NAME}\n\nSorts words." in card
    assert "license: other" in card
    for file in installed.rglob("*"):
        assert file.is_dir() or str(desk.train.parent).encode() not in file.read_bytes(), file


def test_the_log_keeps_its_beginning_its_end_and_some_steps(script, tmp_path):
    step = {"event": "step", "epoch": 1.0, "loss": 1.0, "learning_rate": 0.1, "gradient_norm": 1.0}
    step |= {"rows": 1, "tokens": 1, "padded_tokens": 1, "seconds": 1.0}
    lines = [{"event": "remark", "text": "first", "seconds": 0.0}]
    lines += [{**step, "step": number} for number in range(1, 1001)]
    lines += [{"event": "remark", "text": "last", "seconds": 2.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    kept = [json.loads(line) for line in script.thinned(tmp_path / "log.jsonl")]
    assert (kept[0], kept[-1]) == (lines[0], lines[-1])
    steps = [line["step"] for line in kept[1:-1]]
    assert (steps[0], steps[-1]) == (1, 1000)
    assert len(steps) <= script.STEPS_KEPT + 1


def test_a_run_with_texts_places_or_without_figures_is_not_shipped(installed, script, own, desk):
    known, before = ready_made.ready_made()[NAME], contents(installed)
    (own / "metrics.json").unlink()
    with pytest.raises(UserError, match="an evaluation on the split test"):
        script.make(RunFolder(own), known)
    package.evaluate(own, str(desk.test), with_text=True)
    with pytest.raises(UserError, match="words of a text"):
        script.make(RunFolder(own), known)
    package.evaluate(own, str(desk.test))
    recipe = (own / "recipe.toml").read_text()
    (own / "recipe.toml").write_text(recipe.replace('description = ""', 'description = "see /home/me/notes"'))
    with pytest.raises(UserError, match="/home/me/notes"):
        script.make(RunFolder(own), known)
    assert contents(installed) == before


def test_a_run_that_answers_with_a_linear_model_is_not_shipped(installed, script, own):
    package.calibrate(own, stack=True)
    LinearModel.of_folder(own, 3).with_stack(0.3).save(own)
    with pytest.raises(UserError, match="the encoder alone"):
        script.make(RunFolder(own), ready_made.ready_made()[NAME])


def test_a_run_that_is_too_large_is_not_shipped(installed, script, finished, monkeypatch):
    monkeypatch.setattr(script, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="bytes in a wheel"):
        script.make(RunFolder(finished), ready_made.ready_made()[NAME])


def test_every_verb_takes_the_name_and_none_writes(newsdesk, installed, finished, desk, tmp_path):
    before = contents(installed)
    same = [newsdesk("predict", run, "goal coach", "--json").json for run in (NAME, finished)]
    assert same[0] == same[1]
    assert newsdesk("predict", NAME, "goal coach", "--off-topic", "0.05").code == 0
    assert newsdesk("explain", NAME, "goal coach").code == 0
    bulk = newsdesk("predict", NAME, "--input", desk.test, "--output", "sorted.csv")
    assert (bulk.code, Path("sorted.csv").is_file()) == (0, True)

    evaluated = newsdesk("evaluate", NAME, "--data", desk.test, "--split", "mine", "--json").json
    assert (evaluated["model"], evaluated["metrics"]["rows"]) == (NAME, 60)
    assert "models pull" in newsdesk("evaluate", NAME, "--data", desk.test).err
    assert "both predict the same classes" in newsdesk("compare", NAME, finished).out
    assert newsdesk("push", NAME, "desk/run", "--dry-run").code == 0
    assert newsdesk("export", NAME, "--to", "merged", "--data", desk.test, "--out", "merged").code == 0
    assert newsdesk("predict", "merged", "goal coach").out.startswith("Sports")
    pytest.importorskip("matplotlib")
    assert newsdesk("report", NAME, "--out", "report.html", "--data", desk.test).code == 0
    assert contents(installed) == before


@pytest.mark.parametrize(
    "verb",
    [
        ["calibrate"],
        ["export", "--to", "merged"],
        ["report"],
        ["report", "--out", "report.html", "--split", "mine"],
        ["predict", "--engine", "onnx", "goal"],
    ],
    ids=" ".join,
)
def test_what_would_be_kept_in_it_needs_a_run_of_your_own(newsdesk, installed, desk, verb):
    before = contents(installed)
    data = [] if verb[0] == "predict" else ["--data", desk.test]
    outcome = newsdesk(verb[0], NAME, *verb[1:], *data)
    assert outcome.code == 1
    assert f"newsdesk models pull {NAME} --out runs/{NAME}" in outcome.err
    assert contents(installed) == before


def test_it_has_no_rows_of_its_own(newsdesk, installed, desk):
    outcome = newsdesk("evaluate", NAME, "--data", desk.test, "--baseline")
    assert (outcome.code, "without any of them" in outcome.err) == (1, True)


def test_a_copy_is_a_run_that_keeps_what_is_found(newsdesk, installed, desk):
    pulled = newsdesk("models", "pull", NAME, "--out", "runs/copy")
    assert pulled.lines[-1] == "run saved to runs/copy"
    assert newsdesk("calibrate", "runs/copy", "--data", desk.test).code == 0
    assert newsdesk("evaluate", "runs/copy", "--data", desk.test, "--split", "mine").code == 0
    assert "Sorts words." in Path("runs/copy/README.md").read_text()
    assert newsdesk("compare", NAME, "runs/copy").code == 0
    assert newsdesk("models", "pull", NAME, "--out", "runs/copy").code == 1
    assert newsdesk("models", "pull", "all-MiniLM-L6-v2", "--out", "runs/base").code == 2


def test_the_licence_is_said_on_standard_error_and_a_folder_of_the_name_wins(newsdesk, installed, finished):
    named = newsdesk("predict", NAME, "goal", "--json")
    assert "note: tiny-desk was trained for a test" in named.err
    assert set(named.json) == {"predictions", "truncation"}
    shutil.copytree(finished, NAME)
    assert "here is used, not the ready-made classifier" in newsdesk("predict", NAME, "goal").err
    assert "probabilities are in tiny-desk/predictions-test.csv" in "".join(
        newsdesk(
            "evaluate",
            NAME,
            "--data",
            finished / "predictions-test.csv",
            "--text",
            "row",
            "--label",
            "true_label",
        ).err
    )


def test_what_is_no_name_is_answered_with_the_names(newsdesk, installed):
    assert f"a ready-made classifier: {NAME}" in newsdesk("predict", "tiny_desk", "goal").err
    assert newsdesk("predict", f"runs/{NAME}", "goal").code == 1


def test_a_changed_file_of_the_installation_is_refused(newsdesk, installed):
    labels = installed / "labels.json"
    content = labels.read_bytes()
    for changed in (content.replace(b"Sports", b"Sportz"), None):
        labels.write_bytes(changed) if changed else labels.unlink()
        outcome = newsdesk("predict", NAME, "goal")
        labels.write_bytes(content)
        assert (outcome.code, "--force-reinstall" in outcome.err) == (1, True)


def test_where_its_base_cannot_be_fetched_no_flag_is_named_that_there_is_not(
    newsdesk, installed, tmp_path, monkeypatch
):
    monkeypatch.setenv("NEWSDESK_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    outcome = newsdesk("predict", NAME, "goal")
    assert outcome.code == 1
    assert f"or copy {tmp_path / 'models' / 'desk--tiny-bert'} from a machine that has it" in outcome.err
    assert "--base" not in outcome.err


def test_programs_load_it_by_name(installed, tmp_path):
    loaded = package.TextClassifier.load(NAME)
    assert list(loaded.predict(["goal coach striker"])) == ["Sports"]
    assert package.load(NAME).label_names == ("Business", "Science", "Sports")
    saved = loaded.save(tmp_path / "saved")
    assert open_run(saved).labels == open_run(installed).labels
    assert loaded.evaluate(["goal coach"], ["Sports"]).metrics.rows == 1


def test_the_list_shows_what_is_known(newsdesk, installed):
    (row,) = newsdesk("models", "list", "--json").json["classifiers"]
    assert (row["name"], row["base"], row["data licence"]) == (
        NAME,
        "desk/tiny-bert",
        DATA_SETS["ag_news"].licence,
    )
    assert row["accuracy_interval"][0] < row["accuracy"] <= row["accuracy_interval"][1]
    assert f"{100 * row['accuracy']:.2f} %" in newsdesk("models", "list").lines[2]
