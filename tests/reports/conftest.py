"""A trained and evaluated run, which cards are written of and which is pushed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import newsdesk


@pytest.fixture(scope="module")
def trained(tiny_base, topical_csv, tmp_path_factory) -> Path:
    """A run that was trained and evaluated; nobody may change it."""
    flags = {"model.base": str(tiny_base("bert")), "data.train": str(topical_csv), "training.epochs": 0.5}
    settings = ("model.max_length=32", "training.device=cpu", "training.precision=float32", "data.folds=0")
    run = newsdesk.train(out=tmp_path_factory.mktemp("run") / "wire", flags=flags, overrides=settings)
    newsdesk.evaluate(run.path, str(topical_csv), split="seen")
    return run.path


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "wire")
