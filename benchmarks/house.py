"""The size of the house, and the way one headline takes through it.

    python benchmarks/house.py [--data FILE.csv] [--base all-MiniLM-L6-v2]

Counts modules, lines and importers in ``src``; then trains a short run in this process, evaluates it, exports
it and classifies one headline, and counts which modules and functions of newsdesk were called on the way, and
how often a file was hashed. Without ``--data`` the rows are made up, which suits counting.
"""

from __future__ import annotations

import argparse
import ast
import csv
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import FrameType
from typing import Any

from side_by_side import markdown_table

import newsdesk
from newsdesk import files

PACKAGE = Path(newsdesk.__file__).parent
SHORT_MODULE = 80
TOPICS = {
    "money": "bank rates dollar yen bond market lending deficit reserve inflation",
    "sports": "goal coach season striker medal league match referee cup sprint",
    "science": "orbit genome telescope fossil vaccine robot laser particle climate cell",
}


def module_name(path: Path) -> str:
    """``newsdesk.data.labels`` of its file."""
    parts = ("newsdesk", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def importers() -> dict[str, set[str]]:
    """Which modules import each module, packages' own files left out."""
    paths = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    found: dict[str, set[str]] = {
        name: set() for name, path in paths.items() if path.stem not in ("__init__", "__main__")
    }
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                for target in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                    if target in found and target != name:
                        found[target].add(name)
    return found


def lines_of(module: str) -> int:
    """How many lines a module has, blank ones and docstrings among them."""
    path = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    return len(path.read_text(encoding="utf-8").splitlines())


@contextmanager
def called_functions() -> Iterator[set[tuple[str, int]]]:
    """(file, first line) of each function of newsdesk that is called in the block, in any thread."""
    seen: set[tuple[str, int]] = set()
    inside = str(PACKAGE)

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        named = code.co_flags & CO_OPTIMIZED and not code.co_name.startswith(
            "<"
        )  # no class, no comprehension
        if event == "call" and named and code.co_filename.startswith(inside):
            seen.add((code.co_filename, code.co_firstlineno))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


@contextmanager
def counted_hashes() -> Iterator[Counter[Path]]:
    """How often each file is really read through for its sha256 in the block: remembered ones are not."""
    counts: Counter[Path] = Counter()
    original = files._read_sha256

    def counting(path: Path) -> str:
        counts[Path(path).resolve()] += 1
        return original(path)

    files._read_sha256 = counting
    try:
        yield counts
    finally:
        files._read_sha256 = original


def made_up_rows(path: Path, rows: int) -> Path:
    """A csv file of headlines of three topics."""
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for row in range(rows):
            label = list(TOPICS)[row % len(TOPICS)]
            writer.writerow([" ".join(draw.choices(TOPICS[label].split(), k=8)) + f" {row}", label])
    return path


def seconds(command: list[str], runs: int = 7) -> float:
    """The median time of a command as a process of its own."""
    taken = []
    for _ in range(runs):
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="labelled rows; default: made-up ones")
    parser.add_argument("--base", default="all-MiniLM-L6-v2")
    arguments = parser.parse_args()
    by_importers = importers()
    lines = {module: lines_of(module) for module in by_importers}
    every = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py"))
    alone = [module for module, others in by_importers.items() if len(others) == 1]
    short = [module for module in alone if lines[module] < SHORT_MODULE]
    figures: list[tuple[str, object]] = [
        ("modules (with packages' own files)", f"{len(by_importers)} ({len(list(PACKAGE.rglob('*.py')))})"),
        ("lines", f"{every:,}"),
        ("modules with a single importer", len(alone)),
        (f"of these under {SHORT_MODULE} lines", f"{len(short)}: {', '.join(short)}"),
    ]
    with tempfile.TemporaryDirectory(prefix="newsdesk-house-") as folder:
        work = Path(folder)
        data = arguments.data or made_up_rows(work / "rows.csv", 1200)
        figures += way_of_a_headline(work, data, arguments.base)
        cold = [sys.executable, "-m", "newsdesk", "predict", str(work / "run"), "bank raises rates"]
        figures.append(("cold predict, s", f"{seconds(cold):.2f}"))
    figures.append(("newsdesk --help, s", f"{seconds([sys.executable, '-m', 'newsdesk', '--help']):.2f}"))
    print(markdown_table(("what", "figure"), [(what, str(figure)) for what, figure in figures]))


def way_of_a_headline(work: Path, data: Path, base: str) -> list[tuple[str, object]]:
    """Train, evaluate, export, predict: the modules and functions called, and the passes over files."""
    run = work / "run"
    quickly = ["training.epochs=1", "model.max_length=32", "training.batch_size=16", f"model.base={base}"]
    steps: dict[str, Callable[[], object]] = {
        "train": lambda: newsdesk.train("quick", out=run, overrides=[f"data.train={data}", *quickly]),
        "evaluate": lambda: newsdesk.evaluate(run, str(data)),
        "export": lambda: newsdesk.export(run, "onnx-fp32"),
        "predict": lambda: newsdesk.load(run).predict(["bank raises rates"]),
    }
    functions: set[tuple[str, int]] = set()
    passes: list[tuple[str, object]] = []
    for name, step in steps.items():
        with called_functions() as called, counted_hashes() as hashes:
            step()
        functions |= called
        most = max(hashes.values(), default=0)
        shown = f"{sum(hashes.values())} of {len(hashes)} files, at most {most} a file"
        passes.append((f"sha256 passes, {name}", shown))
    modules = {file for file, _ in functions}
    return [("modules / functions on a headline's way", f"{len(modules)} / {len(functions)}"), *passes]


if __name__ == "__main__":
    main()
