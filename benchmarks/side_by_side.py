"""What the speed benchmarks share: contestants in processes of their own that stand still between turns.

Standard library alone: a contestant may run in an environment that has nothing of newsdesk.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

AG_NEWS = Path(__file__).resolve().parents[2] / "shared" / "ag_news"


class Contestant:
    """A process that does what a line of JSON on its standard input asks for, and answers with another."""

    def __init__(self, name: str, command: Sequence[str | Path], log: Path) -> None:
        self.name, self.log = name, log
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with log.open("w") as errors:
            self.process = subprocess.Popen(command, stderr=errors, **pipes)

    def ask(self, request: Any) -> dict[str, Any]:
        """Its answer; it ends the benchmark with the last of its log when it gives none."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SystemExit(f"{self.name} broke off:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def answers() -> TextIO:
    """A contestant's standard output; what libraries print goes to its log, not between the answers."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stream


def peak_memory() -> int:
    """Bytes that this process held in memory at its height."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Median, least and most over the rounds."""
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def markdown_table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table that reads well as it is; all but the first column are set right."""
    rows = [list(heads), ["---"] + ["---:"] * (len(heads) - 1), *map(list, lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    )


def describe_machine(*packages: str) -> dict[str, Any]:
    """Processor, cores and the versions of the packages, as far as the system tells."""
    from importlib.metadata import version

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line for line in lines if line.startswith("model name")]
    return {
        "processor": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        **{name: version(name) for name in packages},
    }
