"""The real command line on tiny models: in this process where it is quick, in its own where that matters."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from newsdesk import cli

TINY_TRAINING = {
    "training.learning_rate": "2e-2",
    "training.precision": "float32",
    "training.device": "cpu",
    "training.metric": "loss",
    "training.baseline": "false",
    "data.folds": "0",
    "model.dropout": "0.0",
    "model.max_length": "32",
    "lora.targets": '["all-linear"]',
}


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and both streams."""

    code: int
    stdout: bytes
    err: str

    @property
    def out(self) -> str:
        return self.stdout.decode()

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def newsdesk(monkeypatch, capsysbinary) -> Callable[..., Outcome]:
    """``newsdesk("predict", run, stdin=b"...")`` as the console script does it, within this process."""

    def call(*arguments: object, stdin: bytes | io.BytesIO = b"") -> Outcome:
        given = io.BytesIO(stdin) if isinstance(stdin, bytes) else stdin
        monkeypatch.setattr(sys, "argv", ["newsdesk", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(given))
        capsysbinary.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsysbinary.readouterr()
        return Outcome(int(end.value.code or 0), out, err.decode())

    return call


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start the command line as a process of its own, its streams on pipes."""

    def start(*arguments: object, **settings: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "newsdesk", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, **{**pipes, **settings})

    return start


@dataclass(frozen=True)
class Desk:
    """Rows in columns of their own making, (number, words, desk), and the base that learns them."""

    train: Path
    test: Path
    base: Path

    @property
    def flags(self) -> list[str]:
        """What ``train`` needs besides --out."""
        flags = ["--data", self.train, "--text", "words", "--label", "desk", "--base", self.base]
        settings = (f"--set={key}={value}" for key, value in TINY_TRAINING.items())
        return [*map(str, flags), *settings]


@pytest.fixture(scope="session")
def desk(topical_csv: Path, tiny_base: Callable[..., Path], tmp_path_factory) -> Desk:
    """180 rows to learn from and 60 to test on."""
    with topical_csv.open(newline="", encoding="utf-8") as stream:
        rows = [(number, row["text"], row["label"]) for number, row in enumerate(csv.DictReader(stream))]
    folder = tmp_path_factory.mktemp("desk")
    for name, part in (("train.csv", rows[:180]), ("test.csv", rows[180:])):
        with (folder / name).open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("number", "words", "desk"), *part])
    return Desk(folder / "train.csv", folder / "test.csv", tiny_base("bert"))


@pytest.fixture(scope="session")
def trained(desk: Desk, tmp_path_factory) -> Path:
    """A run, trained once; nobody may change it."""
    import newsdesk

    flags = {
        "data.train": str(desk.train),
        "data.text": ("words",),
        "data.label": "desk",
        "model.base": str(desk.base),
        "training.epochs": 10.0,
    }
    settings = [f"{key}={value}" for key, value in TINY_TRAINING.items()]
    out = tmp_path_factory.mktemp("runs") / "trained"
    return newsdesk.train(out=out, flags=flags, overrides=settings).path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def hashes_of() -> Callable[..., dict[str, str]]:
    """The sha256 of the named files of a folder."""

    def hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
        return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}

    return hashes
