"""Runs whose adapters sit on the top layers of a tiny encoder, and exports of them that share it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

import newsdesk
from newsdesk.files import sha256_of
from newsdesk.runs.exported import ExportedModel
from newsdesk.runs.exported_adapter import ExportedAdapter
from tiny_exports import tampered

FEW = {"max_loss_upper": 10.0}
"""What the rows here can tell of a loss."""


def train_on_top(base: Path, rows: Path, out: Path, *overrides: str, **flags: Any) -> Path:
    """A run with adapters on the top two layers, trained until it knows the rows."""
    given = {"model.base": str(base), "data.train": str(rows), "model.max_length": 32, **flags}
    settings = ["training.learning_rate=2e-2", "training.device=cpu", "training.precision=float32"]
    settings += ["training.epochs=8", "data.validation_share=0.2", "lora.layers=top-2"]
    settings += ['lora.targets=["all-linear"]', *overrides]
    newsdesk.train(out=out, flags=given, overrides=settings)
    return out


def resealed(folder: Path) -> Path:
    """Seal an export again, as a stranger would who changed files of it, or took some away."""
    names = [name for name in ExportedModel(folder).manifest.files if (folder / name).is_file()]
    tampered(folder, files={name: sha256_of(folder / name) for name in names})
    return folder


def perturbed(export: Path, folder: Path, seed: int) -> Path:
    """A copy of an export whose adapter and head are others, by the type that writes them."""
    shutil.copytree(export, folder)
    found = ExportedAdapter.of_folder(folder, len(ExportedModel(folder).labels.names))
    generator = np.random.default_rng(seed)
    spread = {
        name: each + generator.normal(0, 0.3 * each.std() + 1e-3, each.shape)
        for name, each in found.tensors.items()
    }
    ExportedAdapter.of(folder, **spread).save(folder)
    return resealed(folder)
