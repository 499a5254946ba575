"""A sweep keeps what it trained, whatever ends it, and every trial is measured on the same rows."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("optuna")

from newsdesk.api import sweep  # noqa: E402
from newsdesk.data.duplicates import fold  # noqa: E402
from newsdesk.errors import UserError  # noqa: E402
from newsdesk.evaluation.rows import known_rows  # noqa: E402
from newsdesk.experiments.results import Answers, SweepResults  # noqa: E402
from newsdesk.experiments.rows import SweepRows  # noqa: E402
from newsdesk.experiments.study import Study  # noqa: E402
from newsdesk.experiments.sweep import SweepEvent, TrialBegun, TrialEnded  # noqa: E402
from newsdesk.label_set_metrics import Counts  # noqa: E402
from newsdesk.prediction.open_model import open_model  # noqa: E402
from newsdesk.runs.calibration import CALIBRATION_ROWS, read_held_out_rows  # noqa: E402
from newsdesk.runs.folder import open_run  # noqa: E402
from newsdesk.runs.log import Started, Step  # noqa: E402

SHORT = ("training.epochs=0.5", "training.checkpoint_every=2", "lora.dropout=0.1")
"""Six steps of sixteen rows, with checkpoints between them."""
NAMES = ("Business", "Science", "Sports")
TWO_POINTS: dict[str, Any] = {"vary": ("lora.rank=1,4", "lora.alpha=8..32"), "method": "random", "trials": 2}


@pytest.fixture
def recipe(tiny_recipe) -> Any:
    return tiny_recipe(*SHORT)


def kept(results: SweepResults) -> dict[str, Any]:
    """All that a sweep leaves but the time it took."""
    folder = results.study.folder
    table = [{key: value for key, value in row.items() if key != "seconds"} for row in results.table()]
    answers = {path.parent.name + path.parent.parent.name: path.read_bytes() for path in answers_in(folder)}
    best = (folder / "best" / "adapter" / "adapter_model.safetensors").read_bytes()
    return {"table": table, "answers": answers, "best": best, "optimism": results.optimism}


def answers_in(folder: Path) -> list[Path]:
    return sorted((folder / "trials").glob(f"*/*/{CALIBRATION_ROWS}"))


@pytest.fixture(scope="module")
def in_children() -> Callable[..., list[int]]:
    """Run a function of this module in processes of their own, at the same time; their exit statuses."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["newsdesk.training.run", "transformers", "peft", "optuna", __name__])

    def run(work: Callable[..., object], *each: tuple[object, ...]) -> list[int]:
        processes = [context.Process(target=work, args=arguments) for arguments in each]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=120)
            process.kill()  # only if it hangs
            process.join()
        return [process.exitcode for process in processes]

    return run


def sweep_and_die(recipe: Any, out: Path, number: int) -> None:
    """Die at the n-th of the moments that change the folder, or that compute a step."""
    moments = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal moments
        changes = event in ("os.rename", "shutil.rmtree") or (
            event == "open" and "journal.log" in str(arguments[0]) and arguments[1] == "ab"
        )
        moments += changes and str(out) in str(arguments[0])
        if moments == number:
            moments += 1  # the kill is an event, too
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    sweep(recipe, out=out, seeds=2, **TWO_POINTS)


def test_a_sweep_killed_again_and_again_ends_bit_for_bit_as_if_it_had_not_been(recipe, in_children, tmp_path):
    undisturbed = sweep(recipe, out=tmp_path / "undisturbed", seeds=2, **TWO_POINTS)
    out, deaths = tmp_path / "killed", 0
    for number in (5, 13, 22, 31, 36):
        deaths += in_children(sweep_and_die, (recipe, out, number)) == [-signal.SIGKILL]
    assert deaths >= 4
    results = sweep(recipe, out=out, seeds=2, **TWO_POINTS)
    assert kept(results) == kept(undisturbed)
    assert not list((out / "trials").glob("*/*/run"))


def sweep_and_tell(recipe: Any, out: Path, told: Path) -> None:
    begun = []

    def take(event: SweepEvent) -> None:
        if isinstance(event, Started):
            begun.append(event.steps)

    sweep(recipe, out=out, vary=("lora.rank=1,2,3,4",), observe=take)
    told.write_text(str(len(begun)))


def test_two_processes_share_a_sweep_and_train_no_point_twice(recipe, in_children, tmp_path):
    out, told = tmp_path / "sweep", [tmp_path / "a", tmp_path / "b"]
    assert in_children(sweep_and_tell, *((recipe, out, each) for each in told)) == [0, 0]
    assert sum(int(each.read_text()) for each in told) == 4
    results = sweep(recipe, out=out, vary=("lora.rank=1,2,3,4",))
    assert sorted(point.values["lora.rank"] for point in results.points) == [1, 2, 3, 4]
    assert {trial.number for trial in results.study.trials()} == {0, 1, 2, 3}


def test_the_best_run_is_whole_and_of_the_rows_that_its_recipe_gives(recipe, tmp_path):
    results = sweep(recipe, out=tmp_path / "sweep", vary=("lora.rank=1,8",))
    run = open_run(results.best_run)
    rows = known_rows(run, purpose="a test needs", otherwise="nothing")
    assert rows.validation.fingerprint() == results.study.facts.validation.sha256
    assert open_model(run.path).predict(["profit bank shares"])[0].label in NAMES
    answers = Answers.of(results.study, results.points[0].trial.number, NAMES)
    metrics = results.points[0].seeds[0]
    assert metrics.accuracy == np.mean(answers.logits[0].argmax(axis=1) == answers.labels)
    assert (run.path / "README.md").is_file()
    assert run.off_topic.is_file()


def test_a_cross_validation_measures_every_row_once_with_its_copies(tiny_recipe, tmp_path, write_rows):
    from topics import topical_rows

    rows = topical_rows(60, seed=3)
    data = write_rows(tmp_path / "rows.csv", [*rows, *rows[:20]])
    recipe = tiny_recipe(*SHORT, f"data.train={data}", "data.validation_share=none")
    dealt = SweepRows(recipe.recipe.data, 42, 3, None)
    folds = [dealt.of(recipe.recipe.data, number) for number in (1, 2, 3)]
    assert sum(len(each.validation) for each in folds) == 80
    for each in folds:
        assert not {fold(text) for text in each.train.texts} & {fold(text) for text in each.validation.texts}
    results = sweep(recipe, out=tmp_path / "sweep", vary=("lora.rank=1",), folds=3, seeds=2)
    assert (results.rows, results.best_run, len(results.points[0].seeds)) == (80, None, 2)
    # A recipe that cross-validates says the same, and no trial does it once more.
    by_recipe = tiny_recipe(*SHORT, f"data.train={data}", "data.validation_share=none", "data.folds=3")
    again = sweep(by_recipe, out=tmp_path / "again", vary=("lora.rank=1",), seeds=2)
    assert [row | {"seconds": 0} for row in again.table()] == [
        row | {"seconds": 0} for row in results.table()
    ]
    assert "validation_share" not in results.command


@pytest.mark.parametrize("metric", ["macro_f1", "loss"])
def test_a_linear_model_stacked_on_every_seed_answers_with_it(tiny_recipe, tmp_path, metric):
    recipe = tiny_recipe(*SHORT, f"training.metric={metric}")
    results = sweep(recipe, out=tmp_path / "sweep", vary=("model.linear=off,stack",), seeds=2)
    best, other = results.points
    assert (best.values["model.linear"], other.values["model.linear"]) == ("stack", "off")
    assert [figures.accuracy for figures in best.seeds] == [1.0, 1.0]
    assert best.interval[0] <= best.score <= best.interval[1]
    assert (best.score < other.score) == (metric == "loss")
    assert not other.against.is_noise
    assert open_model(results.best_run).predict(["goal coach striker"])[0].label == "Sports"


@pytest.fixture
def of_sets(tiny_recipe, tmp_path) -> Any:
    """A recipe whose texts may have several labels; with settings besides."""
    from topics import rows_with_several, written

    rows = written(tmp_path / "sets.jsonl", rows_with_several(120, seed=3))
    given = (f"data.train={rows}", "data.text=words", "data.label=desks", "training.baseline=true")
    return lambda *settings: tiny_recipe(*SHORT, *given, *settings)


def test_points_of_several_labels_are_judged_by_micro_f1(of_sets, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    out, vary = tmp_path / "sweep", ("training.learning_rate=1e-6,2e-2",)
    results = sweep(of_sets("training.epochs=4"), out=out, vary=vary)
    best, other = results.points
    assert (best.values["training.learning_rate"], results.metric_name) == (2e-2, "micro F1")
    assert best.score > other.score
    held_out = read_held_out_rows(results.study.training_folder(best.trial.number, 42, 0))
    counts = Counts.of(held_out.logits > 0, held_out.labels)
    assert best.score == best.seeds[0].micro_f1 == float(counts.micro_f1())
    assert best.interval[0] < best.score < best.interval[1]
    rows = parquet.read_table(out / "results.parquet").to_pylist()
    assert {row["micro_f1"] for row in rows} == {best.score, other.score}
    page = (out / "report.html").read_text()
    assert "Best micro F1" in page
    assert f"{100 * results.study.facts.baseline.micro_f1:.2f}\xa0% micro F1 on these rows" in page
    assert open_model(results.best_run).task == "multi"


def test_several_labels_are_cross_validated_and_go_on_after_a_stop(of_sets, tmp_path):
    def ask(event: SweepEvent) -> None:
        if isinstance(event, Step) and event.step == 3:
            signal.raise_signal(signal.SIGINT)

    recipe = of_sets("data.validation_share=none", "training.metric=macro_f1", "training.epochs=1.0")
    asked: dict[str, Any] = {"vary": ("lora.rank=2",), "folds": 3}
    undisturbed = sweep(recipe, out=tmp_path / "undisturbed", **asked)
    assert sweep(recipe, out=tmp_path / "sweep", observe=ask, **asked).interrupted
    results = sweep(recipe, out=tmp_path / "sweep", **asked)
    assert (results.rows, results.points[0].score) == (120, results.points[0].seeds[0].macro_f1)
    answers, others = (
        [path.read_bytes() for path in answers_in(each.study.folder)] for each in (results, undisturbed)
    )
    assert answers == others
    dealt = SweepRows(recipe.recipe.data, 42, 3, None)
    for number in (1, 2, 3):
        part = dealt.of(recipe.recipe.data, number)
        assert not set(part.train.texts) & set(part.validation.texts)
        assert part.validation.labels.any(axis=0).all()  # every label is in every fold


def test_tpe_and_random_try_no_point_twice_and_stay_in_range(recipe, tmp_path):
    results = sweep(recipe, out=tmp_path / "tpe", vary=("lora.rank=1,2", "lora.alpha=1,2"), method="tpe")
    assert len({point.label for point in results.points}) == len(results.points) == 4


def test_a_trial_that_fails_is_a_result_and_the_others_go_on(tiny_recipe, tmp_path):
    recipe = tiny_recipe("training.epochs=4", "training.clip=0")
    rates = ("training.learning_rate=1e-3,1e12",)
    results = sweep(recipe, out=tmp_path / "sweep", vary=rates)
    assert [point.values["training.learning_rate"] for point in results.points] == [1e-3]
    (failed,) = results.others
    assert (failed.state, "diverged" in failed.reason or "nan" in failed.reason) == ("failed", True)


def test_values_that_do_not_go_together_are_a_trial_that_fails(recipe, tmp_path):
    vary = ("training.label_smoothing=0,0.1", "training.class_weights=none,balanced")
    results = sweep(recipe, out=tmp_path / "sweep", vary=vary)
    assert len(results.points) == 3
    (failed,) = results.others
    assert "cannot be combined" in failed.reason


def test_where_the_first_three_trials_fail_the_sweep_ends_with_their_reason(recipe, tmp_path):
    with pytest.raises(UserError, match="reads at most 48 tokens"):
        sweep(recipe, out=tmp_path / "sweep", vary=("model.max_length=60,70,80,90",))


def test_a_pruned_trial_keeps_its_log_and_not_its_run(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "report", lambda _study, number, _step, _score: number == 1)
    results = sweep(recipe, out=tmp_path / "sweep", vary=("lora.rank=1,2",))
    assert [trial.state for trial in results.study.trials()] == ["complete", "pruned"]
    folder = results.study.training_folder(1, 42, 0)
    assert sorted(path.name for path in folder.iterdir()) == ["log.jsonl"]
    assert results.study.trials()[1].tokens > 0


def test_a_trial_below_the_median_of_four_is_pruned(recipe, tmp_path):
    results = sweep(recipe, out=tmp_path / "sweep", vary=("lora.rank=1",))
    space = replace(results.study.space, axes=(_axis(recipe),))
    (tmp_path / "sweep" / "journal.log").unlink()
    study = Study(tmp_path / "sweep", space, replace(results.study.facts, prune=True))
    for score in (0.9, 0.8, 0.7, 0.6):
        with study.taken(None, lambda: True) as trial:
            assert not study.report(trial.number, 500, score)
            study.tell(trial, "complete", score, seconds=1, tokens=1)
    with study.taken(None, lambda: True) as trial:
        assert study.report(trial.number, 500, 0.5)


def _axis(recipe: Any) -> Any:
    from newsdesk.experiments.space import Space

    return Space.of(recipe, ("lora.rank=1,2,3,4,5",), "grid").axes[0]


def test_a_budget_begins_no_new_trial_and_more_of_it_goes_on(recipe, tmp_path):
    first = sweep(recipe, out=tmp_path / "sweep", vary=("lora.rank=1,2,3",), budget="1tokens")
    assert len(first.points) == 1
    more = sweep(recipe, out=tmp_path / "sweep", vary=("lora.rank=1,2,3",), budget="1Mtokens")
    assert len(more.points) == 3


def test_a_sweep_asked_to_stop_goes_on_where_it_was(recipe, tmp_path):
    def ask(event: SweepEvent) -> None:
        if isinstance(event, Step) and event.step == 3:
            signal.raise_signal(signal.SIGINT)

    first = sweep(recipe, out=tmp_path / "sweep", vary=("lora.rank=1",), observe=ask)
    assert first.interrupted
    assert [trial.state for trial in first.others] == ["in work"]
    events: list[SweepEvent] = []
    second = sweep(recipe, out=tmp_path / "sweep", vary=("lora.rank=1",), observe=events.append)
    assert [event.step for event in events if isinstance(event, Step)] == [4, 5, 6]
    assert (len(second.points), second.interrupted) == (1, False)
    assert [type(event) for event in (events[0], events[-1])] == [TrialBegun, TrialEnded]


def test_rows_of_the_table_are_trials_and_seeds(recipe, tmp_path):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    results = sweep(recipe, out=tmp_path / "sweep", vary=("lora.rank=1,2", "lora.targets=attention"), seeds=2)
    rows = pyarrow.read_table(tmp_path / "sweep" / "results.parquet").to_pylist()
    assert [(row["trial"], row["seed"]) for row in rows] == [(0, 42), (0, 43), (1, 42), (1, 43)]
    assert {row["lora.targets"] for row in rows} == {"attention"}
    sys.modules["pyarrow"], before = None, sys.modules["pyarrow"]
    try:
        plain = results.write_table()
    finally:
        sys.modules["pyarrow"] = before
    with plain.open() as stream:
        assert [row["lora.rank"] for row in csv.DictReader(stream)] == [str(row["lora.rank"]) for row in rows]
    assert not (tmp_path / "sweep" / "results.parquet").exists()


def test_the_page_says_what_is_noise_and_quotes_names_as_text(recipe, tmp_path):
    pytest.importorskip("matplotlib")
    results = sweep(recipe, out=tmp_path / "<b>sweep", vary=("lora.rank=1,2",), seeds=2)
    page = (results.study.folder / "report.html").read_text()
    assert results.noise_sentence[1:] in page
    assert results.optimism_sentence[1:] in page
    assert "Holm, 1979" in page
    assert "<b>" not in page
    assert page.count("<svg") == 1


@pytest.mark.parametrize(
    ("data", "valid", "found"),
    [
        ("test.csv", None, "a file of that name"),
        ("train.csv", "reuters-test.csv", "a file of that name"),
        ("train.csv", "reuters-r8", "its test split"),
        ("train.csv", ".", "its test split"),
        ("train.csv", "held-out.csv", "60 of 60 rows are in"),
    ],
)
def test_test_rows_are_refused(tiny_recipe, tmp_path, write_rows, monkeypatch, data, valid, found):
    from topics import topical_rows

    for name in ("train.csv", "test.csv", "held-out.csv", "reuters-test.csv"):
        write_rows(tmp_path / name, topical_rows(60, seed=1 if name == "train.csv" else 2))
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe(f"data.train={data}", *([f"data.validation={valid}"] if valid else []))
    with pytest.raises(UserError, match="does not use test rows") as raised:
        sweep(recipe, out=tmp_path / "sweep", vary=("lora.rank=1",))
    assert found in raised.value.found
    assert not (tmp_path / "sweep").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_base, topical_csv) -> Path:
    """A sweep of one point, to be copied."""
    from newsdesk.config import load_recipe

    flags = {"data.train": str(topical_csv), "model.base": str(tiny_base()), "training.baseline": False}
    recipe = load_recipe(None, flags, (*SHORT, "training.device=cpu", "model.max_length=32"))
    out = tmp_path_factory.mktemp("finished") / "sweep"
    sweep(recipe, out=out, vary=("lora.rank=1",))
    return out


def again(folder: Path, *overrides: str, **asked: Any) -> SweepResults:
    from newsdesk.config import load_recipe

    recipe = load_recipe(str(folder.parent / "original.toml"), {}, overrides)
    return sweep(recipe, out=folder, **{"vary": ("lora.rank=1",), **asked})


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    import shutil

    shutil.copytree(finished, tmp_path / "sweep")
    shutil.copy(finished / "recipe.toml", tmp_path / "original.toml")
    return tmp_path / "sweep"


def test_what_is_finished_is_shown_again_without_training(copy):
    assert len(again(copy).points) == 1


@pytest.mark.parametrize(
    ("overrides", "asked", "found"),
    [
        (("lora.dropout=0.3",), {}, "lora.dropout = 0.1, asked for 0.3"),
        ((), {"seeds": 2}, "seeds = 1, asked for 2"),
        ((), {"vary": ("lora.rank=1,2",)}, "vary = ('lora.rank=1',), asked for ('lora.rank=1,2',)"),
    ],
)
def test_another_recipe_or_space_is_refused(copy, overrides, asked, found):
    with pytest.raises(UserError, match="holds another sweep") as raised:
        again(copy, *overrides, **asked)
    assert raised.value.found == found


def garble(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def rewrite(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def harm(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return harm


def foreign_point(path: Path) -> None:
    path.write_text(path.read_text().replace("lora.rank", "lora.alpha"))


@pytest.mark.parametrize(
    ("file", "harm", "wrong"),
    [
        ("sweep.json", garble("{"), "sweep.json is missing or damaged"),
        ("sweep.json", rewrite(lambda sweep: sweep.update(format=9)), "by a newer version"),
        ("sweep.json", rewrite(lambda sweep: sweep.update(method="all")), "sweep.json is missing or damaged"),
        ("recipe.toml", garble("[lora]\nrank = 3\n"), "recipe.toml is missing or damaged"),
        ("journal.log", garble("hello\n"), "journal.log is missing or damaged"),
        ("journal.log", garble('{"op_code": 99, "worker_id": ""}\n'), "journal.log is missing or damaged"),
        ("journal.log", foreign_point, "journal.log is missing or damaged"),
        ("journal.log", lambda path: (path.unlink(), os.mkfifo(path)), "journal.log is missing or damaged"),
        ("trials/0000/seed-42/outcome.json", garble("[]"), "outcome.json is missing or damaged"),
        ("trials/0000/seed-42/calibration.safetensors", garble("x"), "safetensors is missing or damaged"),
        ("trials/0000/seed-42/calibration.safetensors", Path.unlink, "seed-42 is missing or damaged"),
        ("best", lambda path: path.rename(path.parent / "x") and path.symlink_to("/tmp"), "holds a link"),
    ],
)
def test_what_others_put_into_the_folder_is_a_sentence(copy, file, harm, wrong):
    harm(copy / file)
    with pytest.raises(UserError, match=wrong):
        again(copy)


def test_a_journal_cut_by_a_power_failure_goes_on(copy):
    with (copy / "journal.log").open("a") as stream:
        stream.write('{"op_code": 4, "wor')
    assert len(again(copy).points) == 1


def test_a_folder_of_something_else_is_left_alone(copy):
    (copy / "sweep.json").unlink()
    with pytest.raises(UserError, match="is not empty, and no sweep"):
        again(copy)


def test_other_rows_than_at_the_beginning_are_refused(copy, tmp_path):
    text = (copy / "recipe.toml").read_text()
    content = json.loads((copy / "sweep.json").read_text())
    content["train"]["sha256"] = "0" * 64
    (copy / "sweep.json").write_text(json.dumps(content))
    assert text
    with pytest.raises(UserError, match="the train rows are no longer those"):
        again(copy)
