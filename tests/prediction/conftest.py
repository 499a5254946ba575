"""A tiny exported model, and a copy of it that a test may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tiny_exports import build_exported


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that nobody may change."""
    return build_exported(tmp_path_factory.mktemp("built") / "exported")


@pytest.fixture
def exported(built: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(built, tmp_path / "exported"))
