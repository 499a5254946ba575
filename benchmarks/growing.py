"""What a run that grows gains and loses: a fourth class of AG News from a few rows, beside three it knows.

    python benchmarks/growing.py ../shared/ag_news/train.csv.gz
    python benchmarks/growing.py ../shared/ag_news/train.csv.gz --draws 10 --new-rows 64 --anew

Each draw takes other rows, all of them split off the training rows, and another class as the new one: in
turn World, Sports, Business and Sci/Tech. A run of recipe quick learns the three others; `newsdesk train
--from` learns the new class. Printed are, on rows that none of them saw:

| column | meaning |
|---|---|
| before | accuracy of the first run on rows of the classes that it knows |
| after | accuracy of the grown run on the same rows, among four classes |
| taken | share of these rows that the new class takes |
| found | share of the new class's rows that are given it |
| precision | share of the rows given it that are of it |
| seconds | from the command to the grown run |
| of a core | the same in seconds of processor time, which other work on the machine does not lengthen |

``--anew`` trains recipe quick on all these rows from the start, for comparison: its own columns. On one
core of a busy machine a draw takes minutes.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import newsdesk
from newsdesk import api
from newsdesk.cli.tables import render_columns
from newsdesk.config import DataSection
from newsdesk.data.load import load_training_data

_TIMES = ("seconds", "of a core")
Rows = list[tuple[str, str]]


def main() -> int:
    arguments = parse_arguments()
    by_class = rows_of_classes(arguments.data)
    lines, figures = [], []
    for draw in range(arguments.draws):
        with tempfile.TemporaryDirectory() as folder:
            found = one_draw(by_class, draw, Path(folder), arguments)
        figures.append(found)
        new = list(by_class)[draw % len(by_class)]
        lines.append({"draw": str(draw), "new class": new, **shown(found)})
        print(", ".join(f"{name} {value}" for name, value in lines[-1].items()), flush=True)
    mean = {name: float(np.mean([found[name] for found in figures])) for name in figures[0]}
    lines.append({"draw": "mean", "new class": "", **shown(mean)})
    print("\n".join(render_columns(lines)))
    return 0


def shown(found: dict[str, float]) -> dict[str, str]:
    """Shares in per cent, times in seconds."""
    return {name: f"{x:.0f}" if name.endswith(_TIMES) else f"{100 * x:.2f}" for name, x in found.items()}


def rows_of_classes(data: str) -> dict[str, list[str]]:
    """The texts of each class."""
    examples = load_training_data(DataSection(train=data, validation_share=0.0), seed=0).train
    texts: dict[str, list[str]] = {name: [] for name in examples.label_names}
    for text, label in zip(examples.texts, examples.truth(), strict=True):
        texts[examples.label_names[label]].append(text)
    return texts


def one_draw(
    by_class: dict[str, list[str]], draw: int, folder: Path, arguments: argparse.Namespace
) -> dict[str, float]:
    """The figures of one draw."""
    generator, new = np.random.default_rng(draw), list(by_class)[draw % len(by_class)]
    old_rows, new_rows, test = Rows(), Rows(), Rows()
    for name, texts in by_class.items():
        learned = arguments.new_rows if name == new else arguments.rows
        drawn = [(texts[row], name) for row in generator.permutation(len(texts))[: learned + arguments.test]]
        (new_rows if name == new else old_rows).extend(drawn[:learned])
        test += drawn[learned:]
    files = {"old": old_rows, "more": new_rows, "all": [*old_rows, *new_rows]}
    for name, rows in files.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("text", "label"), *rows])

    def train(name: str, data: str, recipe: str | None, *overrides: str) -> dict[str, float]:
        given = [f"data.train={folder / data}.csv", f"training.seed={draw}", "training.baseline=false"]
        start, used = time.perf_counter(), time.process_time()
        api.train(recipe, out=folder / name, overrides=[*given, *overrides, *arguments.overrides])
        return {
            "seconds": time.perf_counter() - start,
            "of a core": time.process_time() - used,
        }

    train("first", "old", arguments.recipe)
    of_known = [row for row in test if row[1] != new]
    before = accuracy(folder / "first", of_known)
    seconds = train("grown", "more", None, f"training.start_from={folder / 'first'}")
    found = {"before": before, **figures_of(folder / "grown", test, new), **seconds}
    if arguments.anew:
        seconds = train("anew", "all", arguments.recipe)
        anew = figures_of(folder / "anew", test, new) | seconds
        found |= {f"anew: {name}": value for name, value in anew.items()}
    return found


def figures_of(run: Path, test: Rows, new: str) -> dict[str, float]:
    """How a run of all classes answers the rows."""
    given, is_new = answers(run, test), np.array([label == new for _, label in test])
    right = np.array([one == label for one, (_, label) in zip(given, test, strict=True)])
    taken = np.array([one == new for one in given])
    return {
        "after": float(right[~is_new].mean()),
        "taken": float(taken[~is_new].mean()),
        "found": float(taken[is_new].mean()),
        "precision": float(is_new[taken].mean()) if taken.any() else 0.0,
    }


def accuracy(run: Path, rows: Rows) -> float:
    """The share of the rows that a run gets right."""
    pairs = zip(answers(run, rows), rows, strict=True)
    return float(np.mean([given == label for given, (_, label) in pairs]))


def answers(run: Path, rows: Rows) -> Sequence[str]:
    """The likeliest class of each row."""
    classifier = newsdesk.load(run)
    probabilities = classifier.predict_probabilities([text for text, _ in rows])
    return [classifier.label_names[best] for best in probabilities.argmax(axis=1)]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="labelled rows of four classes or any other number, from three on")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--rows", type=int, default=500, help="of each known class")
    parser.add_argument("--new-rows", type=int, default=16)
    parser.add_argument("--test", type=int, default=500, help="rows of each class to measure on")
    parser.add_argument("--recipe", default="quick", help="that the first run is trained by")
    parser.add_argument("--anew", action="store_true", help="also train on all rows from the start")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="recipe values for all")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
