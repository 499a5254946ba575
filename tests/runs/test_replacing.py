"""A run takes an older one's place when it is finished; nothing goes that newsdesk did not write."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

import newsdesk  # noqa: E402
from newsdesk.errors import UserError  # noqa: E402
from newsdesk.files import sha256_of, write_json  # noqa: E402
from newsdesk.runs import folder  # noqa: E402
from newsdesk.runs.folder import (  # noqa: E402  # noqa: E402
    HEADER,
    NEXT,
    READY,
    RunFolder,
    open_run,
    own_files,
    require_free,
    resumable,
    run_state,
    settle,
)
from newsdesk.runs.log import Event, Resumed, Step  # noqa: E402
from newsdesk.training import restarted  # noqa: E402
from newsdesk.training.run import run_training  # noqa: E402

OLD_FORMAT = Path(__file__).parents[1] / "old_run"


@pytest.fixture(scope="module")
def kept(tiny_base, topical_csv, tmp_path_factory) -> Path:
    """A run that was trained, evaluated, calibrated, exported and reported; nobody may change it."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("kept") / "run"
    flags = {"model.base": str(tiny_base("bert")), "data.train": str(topical_csv), "training.epochs": 0.5}
    settings = ("model.max_length=32", "training.device=cpu", "training.precision=float32", "data.folds=0")
    newsdesk.train(out=out, flags=flags, overrides=settings)
    newsdesk.evaluate(out, str(topical_csv), split="seen")
    export = newsdesk.export(out, "onnx-fp32").path
    newsdesk.evaluate(export, str(topical_csv), split="exported")
    newsdesk.calibrate(out)
    newsdesk.report(out, split="seen")
    return out


@pytest.fixture
def run(kept, tmp_path) -> Path:
    return shutil.copytree(kept, tmp_path / "run")


@pytest.fixture
def recipe(tiny_recipe) -> Any:
    return tiny_recipe("training.epochs=2", "training.seed=7", "training.checkpoint_every=2")


def bytes_in(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(".")
    }


@pytest.fixture(scope="module")
def in_a_child() -> Callable[..., int]:
    """Run a function of this module in a process of its own; its exit status, or minus the signal.

    The processes are forked from one that has imported everything and computed nothing yet.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["newsdesk.training.run", "transformers", "peft", __name__])

    def run(work: Callable[..., object], *arguments: object) -> int:
        process = context.Process(target=work, args=arguments)
        process.start()
        process.join(timeout=120)
        process.kill()  # only if it hangs
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    return run


def die_at_step_9(recipe: Any, out: Path) -> None:
    def observe(event: Event) -> None:
        if isinstance(event, Step) and event.step == 9:
            os.kill(os.getpid(), signal.SIGKILL)

    run_training(recipe, out, overwrite=True, observe=observe)


def die_while_removing(recipe: Any, out: Path, files: int) -> None:
    """Be killed after so many files of the old run are gone."""
    removed, original = 0, folder.remove_file

    def counted(path: Path, top: Path) -> None:
        nonlocal removed
        removed += top == out
        if removed > files:
            os.kill(os.getpid(), signal.SIGKILL)
        original(path, top)

    folder.remove_file = counted
    run_training(recipe, out, overwrite=True)


def die_while_moving(recipe: Any, out: Path, files: int) -> None:
    """Be killed after so many files of the new run are in their places."""
    moved, original = 0, Path.replace

    def counted(path: Path, place: Path) -> Path:
        nonlocal moved
        moved += path.is_relative_to(out / ".moving")
        if moved > files:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(path, place)

    Path.replace = counted  # type: ignore[method-assign,assignment]
    run_training(recipe, out, overwrite=True)


def test_all_that_newsdesk_writes_into_a_run_is_known_as_its_own(run):
    written = {path.relative_to(run).as_posix() for path in own_files(run)} | {"README.md"}
    assert written == set(bytes_in(run))
    assert written == {"manifest.json", *RunFolder(run).manifest.files}
    require_free(run, overwrite=True)


def test_the_old_run_can_be_used_until_the_new_one_has_finished_and_then_goes(run, recipe):
    before, seen = bytes_in(run), []

    def look(event: Event) -> None:
        if isinstance(event, Step):
            seen.append(bytes_in(run) == before and open_run(run).is_complete())

    new = run_training(recipe, run, overwrite=True, observe=look)
    assert seen == [True] * 24
    assert new.path == run
    assert (new.manifest.seed, new.manifest.training.steps) == (7, 24)
    after = bytes_in(run)
    assert not {"metrics.json", "predictions-seen.csv", "report-seen.html", "export"} & set(after)
    assert not [name for name in after if name.startswith("export/")]
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    assert {name: after[name] for name in new.manifest.files} == new.manifest.files


@pytest.mark.parametrize(
    "name", ["notes.txt", "adapter/mine.bin", "export/onnx-fp32/config.bak", "data/rows.csv"]
)
def test_a_file_that_newsdesk_did_not_write_stops_it_by_name(run, recipe, name):
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("mine")
    newsdesk.calibrate(run)  # which seals the run anew, with that file in it
    before = bytes_in(run)
    with pytest.raises(UserError, match="files that newsdesk did not write") as stopped:
        run_training(recipe, run, overwrite=True)
    assert stopped.value.found == name
    assert bytes_in(run) == before


def test_predictions_and_reports_of_someone_elses_making_are_not_ours(run):
    for name in ("predictions-mine.csv", "report-mine.html", "page.html"):
        (run / name).write_text("<html>mine</html>")
    with pytest.raises(UserError) as stopped:
        require_free(run, overwrite=True)
    assert stopped.value.found == "page.html, predictions-mine.csv, report-mine.html"


def test_folders_behind_links_are_left_alone(run, recipe, tmp_path):
    elsewhere = shutil.move(run / "adapter", tmp_path / "elsewhere")
    (run / "adapter").symlink_to(elsewhere)
    for asked in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(UserError, match="a link to a place outside of it") as stopped:
            run_training(recipe, run, **asked)
        assert stopped.value.found == f"adapter -> {elsewhere}"
    assert len(list(Path(elsewhere).iterdir())) == 2


def test_a_link_in_place_of_a_run_that_waits_moves_nothing(run, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work")
    (run / folder.MOVING).symlink_to(theirs)
    with pytest.raises(UserError, match="a link to a place outside of it"):
        folder.open_run(run)
    assert (theirs / "thesis.tex").is_file()


def test_a_project_with_files_of_usual_names_is_no_run(tmp_path, recipe, monkeypatch):
    project = tmp_path / "project"
    project.mkdir()
    (project / "recipe.toml").write_text('[data]\ntrain = "wire.csv"\n')
    write_json(project / "manifest.json", {"name": "app", "version": "1", "files": {"thesis.tex": "0"}})
    (project / "thesis.tex").write_text("years of work")
    before = bytes_in(project)
    monkeypatch.chdir(project)
    for out in (Path(), project, Path("../project"), project / ".." / "project"):
        with pytest.raises(UserError, match="is not empty") as refused:
            run_training(recipe, out, overwrite=True)
        assert "no run of newsdesk, but manifest.json, recipe.toml, thesis.tex" in str(refused.value.found)
    assert bytes_in(project) == before


def test_a_recipe_copied_from_a_run_makes_no_run_of_a_project(tmp_path, run):
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(run / "recipe.toml", project / "recipe.toml")
    assert run_state(project) is None
    assert resumable(project) is None


@pytest.mark.parametrize("how", ["here", "dots", "link", "parent", "home"])
def test_the_current_folder_its_parents_and_home_are_never_replaced(run, recipe, tmp_path, monkeypatch, how):
    (tmp_path / "link").symlink_to(run)
    monkeypatch.chdir(run / "adapter" if how == "parent" else tmp_path if how == "home" else run)
    if how == "home":
        monkeypatch.setenv("HOME", str(run / "tokenizer"))
    out = {"here": Path(), "dots": run / "adapter" / "..", "link": tmp_path / "link"}.get(how, run)
    before = bytes_in(run)
    with pytest.raises(UserError, match="is never replaced") as refused:
        run_training(recipe, out, overwrite=True)
    assert ("home" if how == "home" else "current") in str(refused.value.found)
    assert bytes_in(run) == before


def test_a_run_reached_by_a_link_is_replaced_where_it_is(run, recipe, tmp_path):
    (tmp_path / "link").symlink_to(run)
    run_training(recipe, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert open_run(run).manifest.seed == 7


def test_runs_from_before_recipes_had_a_header_are_known_by_their_content(tmp_path):
    old = shutil.copytree(OLD_FORMAT, tmp_path / "old")
    assert run_state(old) == "a finished run"
    require_free(old, overwrite=True)
    (old / "notes.txt").write_text("mine")
    manifest = RunFolder(old).manifest
    write_json(old / "manifest.json", {**vars_of(manifest), "files": {**manifest.files, "notes.txt": "0"}})
    with pytest.raises(UserError, match="did not write") as stopped:
        require_free(old, overwrite=True)
    assert stopped.value.found == "notes.txt"
    (old / "manifest.json").unlink()
    assert not (old / "recipe.toml").read_text().startswith(HEADER)
    assert run_state(old) == "an unfinished run"


def vars_of(manifest: Any) -> dict[str, Any]:
    from newsdesk.stored import to_content

    content: dict[str, Any] = to_content(manifest)
    return content


def test_killed_in_the_middle_the_old_run_stays_and_the_new_one_goes_on(run, recipe, in_a_child, tmp_path):
    before = bytes_in(run)
    assert in_a_child(die_at_step_9, recipe, run) == -signal.SIGKILL
    assert bytes_in(run) == before
    assert newsdesk.load(run).predict(["goal coach"]).labels
    events: list[Event] = []
    new = run_training(recipe, run, resume=True, observe=events.append)
    assert [event.step for event in events if isinstance(event, Resumed)] == [8]
    assert (new.path, new.manifest.seed, new.manifest.training.steps) == (run, 7, 24)
    assert "metrics.json" not in bytes_in(run)
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    once = run_training(recipe, tmp_path / "once")
    weights = "adapter/adapter_model.safetensors"
    assert (run / weights).read_bytes() == (once.path / weights).read_bytes()


def test_after_a_kill_another_overwrite_begins_anew_and_deleting_next_discards_it(
    run, recipe, tiny_recipe, in_a_child
):
    before = bytes_in(run)
    assert in_a_child(die_at_step_9, recipe, run) == -signal.SIGKILL
    other = tiny_recipe("training.epochs=0.5", "training.seed=11")
    with pytest.raises(UserError, match="another recipe"):
        run_training(other, run, resume=True)
    shutil.rmtree(run / NEXT)
    assert bytes_in(run) == before
    assert resumable(run).path == run
    assert in_a_child(die_at_step_9, recipe, run) == -signal.SIGKILL
    events: list[Event] = []
    new = run_training(other, run, overwrite=True, observe=events.append)
    assert not [event for event in events if isinstance(event, Resumed)]
    assert new.manifest.seed == 11
    assert not (run / NEXT).exists()


def test_asked_to_stop_the_new_run_waits_beside_the_old_one_until_it_is_resumed(run, recipe):
    before = bytes_in(run)

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    waiting = run_training(recipe, run, overwrite=True, observe=stop)
    assert waiting.path == run / NEXT
    assert waiting.manifest.is_interrupted
    assert bytes_in(run) == before
    assert newsdesk.load(waiting.path, engine="torch").predict(["goal coach"]).labels
    assert run_training(recipe, run, resume=True).path == run
    assert open_run(run).manifest.training.steps == 24


@pytest.mark.parametrize("die", [die_while_removing, die_while_moving])
@pytest.mark.parametrize("files", [0, 2, 6])
def test_killed_while_it_takes_the_place_whoever_opens_it_finds_the_new_run(
    run, recipe, in_a_child, die, files
):
    assert in_a_child(die, recipe, run, files) == -signal.SIGKILL
    new = open_run(run)
    assert (new.manifest.seed, new.manifest.training.steps) == (7, 24)
    after = bytes_in(run)
    assert {name: after[name] for name in new.manifest.files} == new.manifest.files
    assert set(after) == {*new.manifest.files, "manifest.json", "README.md"}
    assert {path.name for path in run.iterdir() if path.name.startswith(".")} <= {".lock"}


def test_finished_but_killed_before_it_took_the_place_it_does_so_on_resume(run, recipe, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr("newsdesk.training.run.put_in_place", lambda run, _out: run)
        assert run_training(recipe, run, overwrite=True).path == run / NEXT
    assert open_run(run).manifest.seed != 7
    events: list[Event] = []
    assert run_training(recipe, run, resume=True, observe=events.append).path == run
    assert events == []
    assert open_run(run).manifest.seed == 7


def test_a_process_restarted_by_torchrun_never_takes_the_old_run_for_the_new_one(
    run, recipe, in_a_child, monkeypatch
):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarted()
    assert in_a_child(die_at_step_9, recipe, run) == -signal.SIGKILL
    events: list[Event] = []
    new = run_training(recipe, run, overwrite=True, observe=events.append)
    assert [event.step for event in events if isinstance(event, Resumed)] == [8]
    assert (new.path, new.manifest.seed) == (run, 7)


def test_words_of_the_cards_owner_outlive_a_new_training(run, tiny_base, topical_csv):
    card = run / "README.md"
    card.write_text(
        card.read_text().replace("---\n", "---\ncontact: desk@example.org\n", 1) + "\nApproved.\n"
    )
    flags = {"model.base": str(tiny_base("bert")), "data.train": str(topical_csv), "training.epochs": 0.25}
    settings = ["model.max_length=32", "lora.rank=2", "data.folds=0"]
    newsdesk.train(out=run, flags=flags, overrides=settings, overwrite=True)
    text = card.read_text()
    assert "contact: desk@example.org" in text
    assert text.endswith("Approved.\n")
    assert "rank 2" in text
    assert "model-index" not in text
    assert RunFolder(run).manifest.files["README.md"] == sha256_of(card)


def test_an_unfinished_run_that_goes_on_keeps_what_others_put_there(recipe, tmp_path):
    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    out = run_training(recipe, tmp_path / "run", observe=stop).path
    for name in ("notes.txt", "checkpoints/notes.txt"):
        (out / name).write_text("mine")
    run_training(recipe, out, resume=True)
    assert [(out / name).read_text() for name in ("notes.txt", "checkpoints/notes.txt")] == ["mine"] * 2


def test_what_waits_in_a_place_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / READY).mkdir()

    def refuse(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match="no run can be written to"):
        settle(tmp_path)
    assert folder.NEXT == ".next"
