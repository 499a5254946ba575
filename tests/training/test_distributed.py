"""Several processes, started by torchrun itself, train what one process would have trained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from safetensors.torch import load_file  # noqa: E402

from newsdesk.errors import UserError  # noqa: E402
from newsdesk.runs.folder import RunFolder, open_run  # noqa: E402
from newsdesk.training.distributed import Team, gathered  # noqa: E402
from newsdesk.training.run import run_training  # noqa: E402

PATIENCE = 120.0  # seconds: far more than it takes, for machines that are busy
STILL = ("model.dropout=0.0", "lora.dropout=0.0", "training.warmup=5")
"""Without dropout, which every process draws for its own rows."""


@pytest.fixture
def recipe(tiny_recipe, tiny_base, tmp_path) -> Any:
    """52 steps whose batches do not divide by two, weighted by class, in two batches a step."""
    head = {"classifier_dropout": 0.0}
    settings = ("training.epochs=4", "training.batch_size=5", "training.accumulation=3")
    more = ("training.class_weights='balanced'", "training.learning_rate=1e-3", "training.validate_every=20")
    return tiny_recipe(*STILL, *settings, *more, f"model.base='{tiny_base('bert', **head)}'")


@pytest.fixture
def torchrun(tmp_path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``newsdesk train`` by PyTorch's elastic launcher, in two processes of this machine."""
    started: list[subprocess.Popen[str]] = []

    def start(recipe: Any, out: Path, *flags: str, restarts: int = 0) -> subprocess.Popen[str]:
        path = tmp_path / "recipe.toml"
        path.write_text(recipe.to_toml())
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = [sys.executable, *launcher, f"--max-restarts={restarts}", "-m", "newsdesk", "train"]
        command += ["--recipe", str(path), "--out", str(out), *flags]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(command, env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        with suppress(FileNotFoundError, ProcessLookupError):
            for pid in (*worker_pids(process), process.pid):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def worker_pids(launcher: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(pid) for pid in children]


def largest_difference(one: RunFolder, other: RunFolder) -> float:
    first, second = (load_file(run.adapter / "adapter_model.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def events(run: RunFolder, kind: str) -> list[dict[str, Any]]:
    records = (json.loads(line) for line in run.log.read_text().splitlines())
    return [record for record in records if record["event"] == kind]


def test_two_processes_train_the_adapter_of_one_and_log_once(recipe, torchrun, tmp_path):
    process = torchrun(recipe, tmp_path / "two", "--json")
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, stderr
    two, one = open_run(tmp_path / "two"), run_training(recipe, tmp_path / "one")
    assert json.loads(stdout)["processes"] == two.manifest.training.processes == 2
    assert stderr.count("training rows") == stderr.count("finished after") == 1
    steps = events(two, "step")
    assert [step["step"] for step in steps] == list(range(1, 53))
    for here, there in zip(steps, events(one, "step"), strict=True):
        assert here["loss"] == pytest.approx(there["loss"], abs=1e-5)
        assert here["tokens"] == there["tokens"]
        assert here["gradient_norm"] == pytest.approx(there["gradient_norm"], rel=1e-3)
    for here, there in zip(events(two, "validation"), events(one, "validation"), strict=True):
        assert here["accuracy"] == there["accuracy"]
        assert here["loss"] == pytest.approx(there["loss"], abs=1e-5)
    assert largest_difference(one, two) < 1e-5


def test_processes_share_the_states_of_the_layers_below_the_adapters(
    tiny_recipe, tiny_base, torchrun, tmp_path, monkeypatch
):
    monkeypatch.setenv("NEWSDESK_CACHE", str(tmp_path / "cache"))
    base = f"model.base='{tiny_base('bert', classifier_dropout=0.0)}'"
    recipe = tiny_recipe(*STILL, base, "lora.layers=top-1", "training.learning_rate=1e-3")
    process = torchrun(recipe, tmp_path / "two", "--json")
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, stderr
    assert "computed once" in stderr
    one = run_training(recipe, tmp_path / "one")
    assert largest_difference(one, open_run(tmp_path / "two")) < 1e-4


def test_a_lost_worker_is_replaced_and_training_goes_on(recipe, torchrun, tmp_path):
    if not Path("/proc/self/task").is_dir():
        pytest.skip("finds the workers under /proc")
    out = tmp_path / "run"
    slow = type(recipe)(
        recipe.recipe.model_copy(
            update={"training": recipe.recipe.training.model_copy(update={"checkpoint_every": 2})}
        ),
        recipe.origins,
    )
    process = torchrun(slow, out, restarts=1)
    deadline = time.monotonic() + PATIENCE
    while not any(out.glob("checkpoints/step-0000001*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(worker_pids(process)[-1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, stderr
    run = open_run(out)
    (resumed,) = events(run, "resumed")
    assert resumed["step"] >= 10
    assert [step["step"] for step in events(run, "step")] == list(range(1, 53))
    assert largest_difference(run_training(recipe, tmp_path / "one"), run) < 1e-5


def test_every_row_of_a_batch_is_computed_by_exactly_one_process():
    for rows in (0, 1, 5, 16):
        batch = np.arange(rows)
        shares = Team(rank=1, size=3).shares(batch)
        assert sorted(np.concatenate(shares).tolist()) == batch.tolist()
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_by_itself_exchanges_nothing():
    team = Team()
    tensor = torch.ones(3)
    assert team.sum(tensor) is tensor
    assert (team.any(True), team.any(False), team.bytes_from_lead(b"x"), team.leads) == (
        True,
        False,
        b"x",
        True,
    )
    parameter = torch.nn.Parameter(torch.ones(2))
    team.sum_gradients([parameter])
    assert parameter.grad is None


@pytest.fixture
def team_of_one(monkeypatch, tmp_path):
    """The environment that torchrun gives a process, for a team that has one member."""
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "29511")


def test_a_lost_process_is_told_in_a_sentence(monkeypatch):
    def broken(*_arguments: Any, **_settings: Any) -> None:
        raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234\nmore")

    monkeypatch.setattr(torch.distributed, "all_reduce", broken)
    with pytest.raises(UserError, match="another process of this training was lost") as raised:
        Team(rank=0, size=2).sum(torch.ones(1))
    assert "Connection closed" in (raised.value.found or "")
    assert "--max-restarts" in (raised.value.fix or "")
    assert "--resume" in (raised.value.fix or "")


def test_more_processes_than_gpus_are_refused(monkeypatch, team_of_one):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="finds no GPU of its own") as raised, gathered("cuda"):
        pytest.fail("was let in")
    assert raised.value.fix == "use torchrun --nproc-per-node 2"


def test_several_processes_do_not_share_an_apple_gpu(monkeypatch, team_of_one):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UserError, match="several processes cannot train on mps"), gathered("mps"):
        pytest.fail("was let in")
