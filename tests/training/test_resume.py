"""A training that was killed goes on as if nothing had happened, whatever it was doing at that moment."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

import newsdesk  # noqa: E402
from newsdesk.config import load_recipe  # noqa: E402
from newsdesk.errors import UserError  # noqa: E402
from newsdesk.runs.calibration import CALIBRATION_ROWS  # noqa: E402
from newsdesk.runs.folder import RunFolder, open_run  # noqa: E402
from newsdesk.runs.log import Event, Resumed, Step, Validation  # noqa: E402
from newsdesk.training.checkpoints import Snapshot, decode, encode  # noqa: E402
from newsdesk.training.run import run_training  # noqa: E402

ADAPTER = "adapter/adapter_model.safetensors"
DROPOUTS = ("model.dropout=0.1", "lora.dropout=0.1")
BUSY = (
    "training.epochs=2",
    "training.validate_every=4",
    "training.checkpoint_every=3",
    "training.patience=9",
)


@pytest.fixture
def recipe(tiny_recipe) -> Any:
    """24 steps with dropout, six validations and eight checkpoints between them."""
    return tiny_recipe(*DROPOUTS, *BUSY)


@pytest.fixture
def uninterrupted(recipe, tmp_path) -> RunFolder:
    return run_training(recipe, tmp_path / "uninterrupted")


def adapter_bytes(run: RunFolder) -> bytes:
    return (run.path / ADAPTER).read_bytes()


def held_out_logits(run: RunFolder) -> bytes:
    """What the kept state says of the validation rows, though an earlier process may have computed it."""
    return (run.path / CALIBRATION_ROWS).read_bytes()


def figures(run: RunFolder) -> dict[str, Any]:
    return {"data": run.manifest.data, "training": run.manifest.training}


def told(run: RunFolder) -> list[dict[str, Any]]:
    """The steps and validations of a log, without the time that they took."""
    records = [json.loads(line) for line in run.log.read_text().splitlines()]
    for record in records:
        del record["seconds"]
    return [record for record in records if record["event"] in ("step", "validation")]


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


Moment = tuple[Callable[[str, int], None], str, int]


def train_and_die(recipe: Any, out: Path, moment: Moment) -> None:
    arm, kind, number = moment
    arm(kind, number)
    run_training(recipe, out, resume=True)


def at_pass(_kind: str, number: int) -> None:
    """Kill the process when it is about to pass the network for the n-th time, to train or to validate."""
    passes = 0

    def count(module: Any, _inputs: Any) -> None:
        nonlocal passes
        passes += type(module).__name__ == "FusedClassifier"
        if passes == number:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.nn.modules.module.register_module_forward_pre_hook(count)


def at_checkpoint(kind: str, number: int) -> None:
    """Kill the process when it is about to open or rename a checkpoint for the n-th time."""
    seen = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == kind and ".step-" in str(arguments[0]):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


MOMENTS: list[Moment] = [
    *((at_pass, "", number) for number in (1, 2, 3, 5, 6, 8, 11, 14, 17, 20, 24, 29, 33)),
    *((at_checkpoint, "open", number) for number in (1, 4, 9)),
    *((at_checkpoint, "os.rename", number) for number in (1, 3, 7, 12)),
]


def test_a_run_killed_at_any_of_twenty_moments_ends_bit_for_bit_as_if_it_had_not_been(
    recipe, uninterrupted, in_a_child, tmp_path
):
    assert len(MOMENTS) == 20
    for number, moment in enumerate(MOMENTS):
        out = tmp_path / str(number)
        assert in_a_child(train_and_die, recipe, out, moment) == -signal.SIGKILL, moment
        with pytest.raises(UserError, match="is unfinished"):
            open_run(out)
        run = run_training(recipe, out, resume=True)
        assert adapter_bytes(run) == adapter_bytes(uninterrupted), moment
        assert held_out_logits(run) == held_out_logits(uninterrupted), moment
        assert figures(run) == figures(uninterrupted), moment
        assert told(run) == told(uninterrupted), moment
        assert not run.checkpoints.exists()


def test_a_run_killed_again_and_again_still_arrives(recipe, uninterrupted, in_a_child, tmp_path):
    deaths = 0
    while in_a_child(train_and_die, recipe, tmp_path / "run", (at_pass, "", 9)) == -signal.SIGKILL:
        deaths += 1
        assert deaths < 20
    assert deaths >= 3
    assert adapter_bytes(open_run(tmp_path / "run")) == adapter_bytes(uninterrupted)


def interrupted_at(step: int, recipe: Any, out: Path, **settings: Any) -> RunFolder:
    """A run that was asked to stop after ``step``."""

    def ask(event: Event) -> None:
        if isinstance(event, Step) and event.step == step:
            signal.raise_signal(signal.SIGTERM)

    return run_training(recipe, out, observe=ask, **settings)


def test_a_run_asked_to_stop_goes_on_from_that_very_step(recipe, uninterrupted, tmp_path):
    run = interrupted_at(8, recipe, tmp_path / "run")
    assert run.manifest.training.finished == "interrupted"
    events: list[Event] = []
    run = run_training(recipe, run.path, resume=True, observe=events.append)
    assert events[1] == Resumed(step=8, epoch=8 / 12, passed_over=())
    # Validation was due at step 8, and given up for the interruption.
    assert isinstance(events[2], Validation)
    assert adapter_bytes(run) == adapter_bytes(uninterrupted)
    assert told(run) == told(uninterrupted)


def test_a_request_to_stop_does_not_wait_for_validation_to_end(recipe, uninterrupted, tmp_path, monkeypatch):
    from newsdesk.training import loop

    whole = loop.predict_logits

    def interrupted_midway(network: Any, rows: Any, *, batch_size: int, progress: Any) -> Any:
        monkeypatch.setattr(loop, "predict_logits", whole)

        def interrupt(done: int, *of: Any) -> None:
            if done:
                signal.raise_signal(signal.SIGINT)
                progress(done, *of)
                pytest.fail("validation went on")

        return whole(network, rows, batch_size=4, progress=interrupt)

    monkeypatch.setattr(loop, "predict_logits", interrupted_midway)
    run = run_training(recipe, tmp_path / "run")
    assert (run.manifest.training.finished, run.manifest.training.steps) == ("interrupted", 4)
    assert adapter_bytes(run_training(recipe, run.path, resume=True)) == adapter_bytes(uninterrupted)


def test_what_told_of_an_interrupted_state_goes_when_the_run_goes_on(recipe, topical_csv, tmp_path):
    run = interrupted_at(5, recipe, tmp_path / "run")
    newsdesk.evaluate(run.path, str(topical_csv), split="seen")
    newsdesk.export(run.path, "merged")
    run = run_training(recipe, run.path, resume=True)
    assert not run.metrics.exists()
    assert not (run.path / "export").exists()
    assert not list(run.path.glob("predictions-*"))


def test_resuming_a_complete_run_changes_nothing(recipe, uninterrupted):
    before = {path: path.read_bytes() for path in uninterrupted.path.rglob("*") if path.is_file()}
    events: list[Event] = []
    run_training(recipe, uninterrupted.path, resume=True, observe=events.append)
    assert events == []
    assert {path: path.read_bytes() for path in uninterrupted.path.rglob("*") if path.is_file()} == before


def test_an_imported_run_has_no_training_to_go_on_with(recipe, uninterrupted):
    uninterrupted.seal(replace(uninterrupted.manifest, training=None))
    with pytest.raises(UserError, match="was imported, not trained"):
        run_training(recipe, uninterrupted.path, resume=True)


def test_resuming_where_nothing_is_begins(recipe, uninterrupted, tmp_path):
    assert adapter_bytes(run_training(recipe, tmp_path / "new", resume=True)) == adapter_bytes(uninterrupted)


@pytest.mark.parametrize("harm", ["cut short", "altered"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(recipe, uninterrupted, tmp_path, harm):
    run = interrupted_at(8, recipe, tmp_path / "run")
    before, newest = sorted(run.checkpoints.iterdir())
    content = bytearray(newest.read_bytes())
    if harm == "altered":
        content[-100] ^= 1
    newest.write_bytes(content[: len(content) // 2] if harm == "cut short" else content)
    events: list[Event] = []
    run_training(recipe, run.path, resume=True, observe=events.append)
    assert before.name.startswith("step-00000006-")
    assert events[1] == Resumed(step=6, epoch=0.5, passed_over=(newest.name,))
    assert adapter_bytes(run) == adapter_bytes(uninterrupted)
    assert told(run) == told(uninterrupted)


def test_where_every_checkpoint_is_damaged_training_begins_anew_and_says_so(recipe, uninterrupted, tmp_path):
    run = interrupted_at(8, recipe, tmp_path / "run")
    for path in run.checkpoints.iterdir():
        path.write_bytes(b"")
    events: list[Event] = []
    run_training(recipe, run.path, resume=True, observe=events.append)
    assert isinstance(events[1], Resumed)
    assert (events[1].step, len(events[1].passed_over)) == (0, 2)
    assert adapter_bytes(run) == adapter_bytes(uninterrupted)


def test_two_checkpoints_are_kept_and_none_after_the_end(recipe, tmp_path):
    seen: list[int] = []

    def count(_event: Event) -> None:
        folder = tmp_path / "run" / "checkpoints"
        seen.append(len(list(folder.iterdir())) if folder.exists() else 0)

    run = run_training(recipe, tmp_path / "run", observe=count)
    assert max(seen) == 2
    assert not run.checkpoints.exists()


def test_another_recipe_is_refused_with_the_keys_that_differ(tiny_recipe, recipe, tmp_path):
    run = interrupted_at(3, recipe, tmp_path / "run")
    with pytest.raises(UserError, match="another recipe") as raised:
        run_training(tiny_recipe(*DROPOUTS, *BUSY, "lora.rank=4"), run.path, resume=True)
    assert raised.value.found == "lora.rank = 8, asked for 4"
    assert open_run(run.path).manifest.training.finished == "interrupted"


def test_other_rows_are_refused(recipe, tmp_path, topical_csv):
    data = tmp_path / "rows.csv"
    data.write_bytes(topical_csv.read_bytes())
    changed = load_recipe(None, {**_flags(recipe), "data.train": str(data)})
    run = interrupted_at(3, changed, tmp_path / "run")
    data.write_text(data.read_text().replace("goal", "gaol"))
    with pytest.raises(UserError, match="what it was trained on has changed") as raised:
        run_training(changed, run.path, resume=True)
    assert "training rows" in (raised.value.found or "")
    assert open_run(run.path).checkpoints.is_dir()


def _flags(recipe: Any) -> dict[str, Any]:
    sections = recipe.recipe.model_dump(exclude={"description"})
    return {f"{section}.{key}": value for section in sections for key, value in sections[section].items()}


def intrude(recipe: Any, out: Path) -> None:
    try:
        run_training(recipe, out, resume=True)
    except UserError as error:
        sys.exit(7 if "another process is training into" in error.wrong else 8)


def test_a_folder_in_use_by_another_process_is_refused(recipe, in_a_child, tmp_path):
    out = tmp_path / "run"
    exits: list[int] = []

    def let_another_try(event: Event) -> None:
        if isinstance(event, Step) and event.step == 2:
            exits.append(in_a_child(intrude, recipe, out))

    run = run_training(recipe, out, observe=let_another_try)
    assert exits == [7]
    assert run.is_complete()
    assert not (out / ".lock").exists()


def train_with_little_space(recipe: Any, out: Path, report: Path) -> None:
    """A file-size limit stands for the full disk: it lets all files through but a checkpoint."""
    resource = pytest.importorskip("resource")

    def tighten(event: Event) -> None:
        if isinstance(event, Step) and event.step == 7:
            (checkpoint, *_) = (out / "checkpoints").iterdir()
            limit = checkpoint.stat().st_size // 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    try:
        run_training(recipe, out, observe=tighten)
    except UserError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        report.write_text(str(error))


def test_a_disk_that_fills_up_ends_with_a_sentence_and_the_checkpoint_before_it_is_whole(
    recipe, uninterrupted, in_a_child, tmp_path
):
    out, report = tmp_path / "run", tmp_path / "report"
    assert in_a_child(train_with_little_space, recipe, out, report) == 0
    message = report.read_text()
    assert "no checkpoint could be written" in message
    assert "step-00000006-" in message
    assert f"newsdesk train --out {out} --resume" in message
    events: list[Event] = []
    run = run_training(recipe, out, resume=True, observe=events.append)
    assert events[1] == Resumed(step=6, epoch=0.5, passed_over=())
    assert adapter_bytes(run) == adapter_bytes(uninterrupted)


def forged(run: RunFolder, change: Callable[[Snapshot], Snapshot]) -> Path:
    """The newest checkpoint of a run with another state in it, under the name of its own hash."""
    newest = max(run.checkpoints.glob("step-*"))
    before = decode(newest.read_bytes())
    content = encode(replace(before, snapshot=change(before.snapshot)))
    path = newest.with_name(f"{newest.name[:14]}{hashlib.sha256(content).hexdigest()[:16]}.safetensors")
    newest.unlink()
    path.write_bytes(content)
    return path


def with_counters(**counters: Any) -> Callable[[Snapshot], Snapshot]:
    return lambda state: replace(state, counters=replace(state.counters, **counters))


def with_tensors(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Snapshot], Snapshot]:
    def changed(state: Snapshot) -> Snapshot:
        trained = {name: change(t) for name, t in state.tensors.items() if name.startswith("trained/")}
        return replace(state, tensors={**state.tensors, **trained})

    return changed


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (with_counters(step=25), "step 25 of a training of 24 steps"),
        (with_counters(best_step=9), "step 8 of a training"),
        (with_counters(tokens=1 << 63), "tokens is"),
        (with_counters(recent_losses=(float("nan"),)), "recent_losses"),
        (with_tensors(lambda tensor: tensor.to(torch.int64)), "of another model"),
        (with_tensors(lambda tensor: tensor[..., None]), "of another model"),
        (with_tensors(lambda tensor: tensor * float("nan")), "not finite"),
        (lambda state: replace(state, tensors={}), "it lacks trained/"),
    ],
)
def test_a_checkpoint_of_what_this_training_cannot_have_come_to_is_refused(change, found, recipe, tmp_path):
    run = interrupted_at(8, recipe, tmp_path / "run")
    path = forged(run, change)
    with pytest.raises(UserError, match="is missing or damaged") as raised:
        run_training(recipe, run.path, resume=True)
    assert path.name in raised.value.wrong
    assert found in (raised.value.found or "")


def test_a_recipe_changed_by_hand_is_refused_by_its_keys(recipe, tmp_path):
    run = interrupted_at(8, recipe, tmp_path / "run")
    toml = run.recipe.read_text()
    run.recipe.write_text(toml.replace("validate_every = 4 ", "validate_every = 4.0 "))
    with pytest.raises(UserError, match=r"its recipe.toml has changed") as raised:
        newsdesk.train(out=run.path, resume=True)
    assert raised.value.found == "training.validate_every = 4.0, trained with 4"
    run.recipe.write_text(toml)
    assert newsdesk.train(out=run.path, resume=True).is_complete()


def test_labels_and_tokenizer_are_those_that_were_trained_on_whatever_became_of_the_files(
    recipe, uninterrupted, tmp_path
):
    run = interrupted_at(8, recipe, tmp_path / "run")
    names = run.labels.names
    run.write_labels(replace(run.labels, names=names[::-1]))
    (run.tokenizer / "tokenizer.json").write_text("{}")
    run = run_training(recipe, run.path, resume=True)
    assert run.labels.names == names
    tokens = (run.tokenizer / "tokenizer.json").read_bytes()
    assert tokens == (uninterrupted.tokenizer / "tokenizer.json").read_bytes()


def test_a_log_with_a_line_that_is_none_is_refused_by_its_name(recipe, tmp_path):
    run = interrupted_at(8, recipe, tmp_path / "run")
    run.log.write_bytes(b"[" * run.log.stat().st_size)
    with pytest.raises(UserError, match=r"log.jsonl is missing or damaged"):
        run_training(recipe, run.path, resume=True)
