"""A tiny export and a server of it, which tests may not change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from served_exports import Running, calibrated_export, running


@pytest.fixture(scope="session")
def export(tmp_path_factory) -> Path:
    """An export with calibration rows."""
    return calibrated_export(tmp_path_factory.mktemp("served") / "desk")


@pytest.fixture(scope="session")
def served(export) -> Iterator[Running]:
    """A server of it."""
    with running(export) as found:
        yield found
