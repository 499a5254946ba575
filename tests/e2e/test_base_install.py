"""The base install alone predicts what the export was measured to predict: a fresh environment, no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]
TEXTS = ["goal coach league", "bank profit \u00e9 market", "", "orbit \U0001f5de genome " * 40]
MOST_MEGABYTES = 200
"""Of all files of the base install but compiled bytecode, pip and setuptools."""

PREDICT = dedent(
    """
    import importlib.util, json, sys, newsdesk
    heavy = [name for name in ("torch", "transformers", "onnx") if importlib.util.find_spec(name)]
    predictor = newsdesk.load(sys.argv[1])
    logits = predictor.predict_logits(json.loads(sys.argv[2])).tolist()
    print(json.dumps([heavy, predictor.engine, logits]))
    """
)


def call(*command: object) -> str:
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def fresh_python(tmp_path_factory):
    """A new environment with newsdesk and what it always needs; skipped where no packages can be had.

    This environment's own pip and hatchling do the work: neither has to be installed for it.
    """
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("fresh")
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    call(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    call(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, REPOSITORY)
    flags = ["--python", python, "install", "--no-compile", "-c", REPOSITORY / "constraints.txt"]
    command = list(map(str, [*pip, *flags, *folder.glob("newsdesk-*.whl")]))
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"packages cannot be installed here: {result.stderr.strip().splitlines()[-1]}")
    return python


@pytest.mark.real
def test_a_fresh_base_install_gives_the_same_logits_and_stays_small(fresh_python, run):
    pytest.importorskip("onnx")
    import newsdesk

    newsdesk.export(run, "onnx-fp32")
    export = run / "export" / "onnx-fp32"
    heavy, engine, logits = json.loads(call(fresh_python, "-c", PREDICT, run, json.dumps(TEXTS)))
    assert heavy == []
    assert engine == "onnxruntime, onnx-fp32"
    assert np.array_equal(np.float32(logits), newsdesk.load(export).predict_logits(TEXTS))
    torch_logits = newsdesk.load(run, engine="torch").predict_logits(TEXTS)
    assert np.allclose(np.float32(logits), torch_logits, atol=1e-3)

    installed = next((fresh_python.parents[1] / "lib").iterdir()) / "site-packages"
    files = [path for path in installed.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    of_pip = ("pip", "setuptools")
    ours = [path for path in files if not path.relative_to(installed).parts[0].startswith(of_pip)]
    assert sum(path.stat().st_size for path in ours) < MOST_MEGABYTES * 1e6
