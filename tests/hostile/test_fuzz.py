"""A short, seeded part of the fuzzing; ``make fuzz`` runs as long as asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")

TRIALS = 60


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
def test_mutated_files_end_in_an_answer_or_a_sentence():
    script = Path(__file__).with_name("fuzz.py")
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), "--trials", str(TRIALS), "--seed", "7"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert f"{TRIALS} trials" in done.stdout
