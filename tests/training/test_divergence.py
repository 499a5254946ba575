"""What goes wrong in a step is told with its step, its rows and what to change."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from newsdesk.config import ModelSection, TrainingSection  # noqa: E402
from newsdesk.errors import UserError  # noqa: E402
from newsdesk.training.train_step import DivergenceWatch, explaining_memory  # noqa: E402


def watch(**training: object) -> DivergenceWatch:
    return DivergenceWatch(4, TrainingSection.model_validate(training))


def test_a_loss_far_above_guessing_for_long_is_divergence():
    watched = watch(learning_rate=0.3)
    for step in range(1, 25):
        watched.check(step, 9.0, "rows 1, 2")
    with pytest.raises(UserError, match="the mean loss of the last 25 steps is 9 at step 25") as raised:
        watched.check(25, 9.0, "rows 1, 2")
    assert raised.value.found == "rows 1, 2, learning rate 0.3"
    assert "training.learning_rate=0.1" in (raised.value.fix or "")


@pytest.mark.parametrize("losses", [[50.0, 40.0] + [1.0] * 60, [math.log(4) * 3] * 60])
def test_a_bad_start_or_a_hard_task_is_not(losses):
    watched = watch()
    for step, loss in enumerate(losses, start=1):
        watched.check(step, loss, "rows")
    assert watched.recent == losses[-25:]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_what_is_no_number_is_divergence_at_once(loss):
    with pytest.raises(UserError, match=f"the loss is {loss} at step 1"):
        watch().check(1, loss, "rows")


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes"
        ),
    ],
)
def test_running_out_of_memory_suggests_a_batch_size_with_the_same_result(failure):
    training = TrainingSection(batch_size=48, accumulation=2)
    with (
        pytest.raises(UserError, match="out of memory while training") as raised,
        explaining_memory(training, ModelSection()),
    ):
        raise failure
    assert "batches of 48 rows" in (raised.value.found or "")
    assert "training.batch_size=24 --set training.accumulation=4" in (raised.value.fix or "")


def test_a_single_row_that_does_not_fit_needs_something_smaller():
    training = TrainingSection(batch_size=1)
    with pytest.raises(UserError) as raised, explaining_memory(training, ModelSection()):
        raise MemoryError
    assert "smaller base model" in (raised.value.fix or "")
    windows = ModelSection(long_texts="windows", max_windows=40)
    with pytest.raises(UserError) as raised, explaining_memory(training, windows):
        raise MemoryError
    assert "fewer windows a text than --set model.max_windows=40" in (raised.value.fix or "")


def test_other_failures_pass_as_they_are():
    with (
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
        explaining_memory(TrainingSection(), ModelSection()),
    ):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


STARVED = dedent(
    """
    import resource, sys
    from pathlib import Path
    from newsdesk.config import load_recipe
    from newsdesk.errors import UserError
    from newsdesk.runs.log import Started
    from newsdesk.training.run import run_training

    def starve(event):
        if isinstance(event, Started):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + (48 << 20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    try:
        run_training(load_recipe(sys.argv[1]), Path(sys.argv[2]), observe=starve)
    except UserError as error:
        print(error)
    """
)


def test_a_real_lack_of_memory_is_recognised(tiny_recipe, tiny_base, tmp_path):
    """The address space of a process is limited once training begins; a wide model then needs far more."""
    pytest.importorskip("resource")
    if not Path("/proc/self/statm").is_file():
        pytest.skip("reads the process's size from /proc")
    base = tiny_base("bert", intermediate_size=20_000)
    recipe = tmp_path / "recipe.toml"
    settings = (f"model.base='{base}'", "training.batch_size=96")
    recipe.write_text(tiny_recipe(*settings).to_toml())
    command = [sys.executable, "-c", STARVED, str(recipe), str(tmp_path / "run")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "out of memory while training" in result.stdout, result.stderr
    assert "training.batch_size=48 --set training.accumulation=2" in result.stdout
