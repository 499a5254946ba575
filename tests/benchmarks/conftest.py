"""Benchmarks are scripts, not modules: here they are loaded as modules, to try out what they compute."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def benchmark_script() -> Callable[[str], Any]:
    """``benchmark_script("train_speed")``: the script as a module."""

    def load(name: str) -> Any:
        specification = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        specification.loader.exec_module(module)
        return module

    return load
