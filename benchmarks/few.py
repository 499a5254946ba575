"""Few rows of each class: the recipe few beside other recipes and linear models, over many draws.

    python benchmarks/few.py ag_news --data ../shared/ag_news --rows 8 16 64
    python benchmarks/few.py reuters-r8 --contestants few frozen svm --draws 3
    python benchmarks/few.py ag_news --data ../shared/ag_news --unlabelled 3000 --measure test

A draw is so many training rows of each class (of a rarer class all that there are). ``unlabelled`` is the
recipe few that is given other training rows without their labels, too. Measured on rows that are split off
the training rows, or on the test split for final figures. Prints the mean accuracy, its standard deviation
over the draws, and the median of the seconds that a training took, from texts to a model that answers
(without a cross-validation). ``setfit`` is SetFit with its default settings on the same base; it needs
transformers 4, so ``--setfit PYTHON`` names the interpreter of an environment that has it.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.api import train
from newsdesk.cli.tables import render_columns
from newsdesk.config import load_recipe
from newsdesk.data.examples import Examples
from newsdesk.data.labelled import to_examples
from newsdesk.data.load import TrainingData, load_split, load_training_data
from newsdesk.model.catalog import resolve_base
from newsdesk.model.network import TextEmbedder
from newsdesk.prediction.open_model import open_model
from newsdesk.training.linear_baseline import linear_baseline

CONTESTANTS = ("few", "unlabelled", "quick", "frozen", "svm", "setfit")
HELD_OUT = 0.05
BASE = "all-MiniLM-L6-v2"
LENGTH = 128


@dataclass(frozen=True)
class Draw:
    """The rows of one draw, those without labels, and those that are measured on."""

    rows: Examples
    others: Examples
    measured: Examples
    folder: Path
    seed: int
    setfit: Path | None = None


def main() -> None:
    arguments = parse_arguments()
    data, measured = rows_of(arguments)
    results: dict[tuple[int, str], list[tuple[float, float]]] = defaultdict(list)
    for number in range(arguments.draws):
        for rows in arguments.rows:
            with tempfile.TemporaryDirectory() as folder:
                draw = drawn(data.train, measured, rows, number, arguments, Path(folder))
                for name in arguments.contestants:
                    found = METHODS[name](draw)
                    results[rows, name].append(found)
                    print(f"draw {number}, {rows} rows, {name}: {found[0]:.2%}, {found[1]:.0f} s", flush=True)
    print("\n" + "\n".join(render_columns([line_of(*key, found) for key, found in sorted(results.items())])))


def rows_of(arguments: argparse.Namespace) -> tuple[TrainingData, Examples]:
    """The training rows, and those to measure on."""
    source = arguments.data or arguments.name
    flags = {"data.train": source, "data.validation_share": HELD_OUT}
    if arguments.name == "ag_news":
        flags["data.normaliser"] = "ag_news"
    data = load_training_data(load_recipe(None, flags).recipe.data, seed=0)
    if arguments.measure == "validation":
        return data, data.validation
    table = load_split(source, "test").table
    names = data.train.label_names
    return data, to_examples(table, data.layout.for_table(table), label_names=names, labelled=True)


def drawn(
    train: Examples, measured: Examples, rows: int, seed: int, arguments: argparse.Namespace, folder: Path
) -> Draw:
    """``rows`` rows of each class, the same for every contestant."""
    generator = np.random.default_rng([seed, rows])
    order = generator.permutation(len(train))
    labels = labels_of(train)[order]
    chosen = np.concatenate([order[labels == label][:rows] for label in range(len(train.label_names))])
    others = generator.permutation(np.setdiff1d(order, chosen))[: arguments.unlabelled]
    measured = measured.select(generator.permutation(len(measured))[: arguments.measured])
    return Draw(train.select(chosen), train.select(others), measured, folder, seed, arguments.setfit)


def by_recipe(recipe: str, *, unlabelled: bool = False) -> Callable[[Draw], tuple[float, float]]:
    """Train by a recipe, and classify with the run."""

    def method(draw: Draw) -> tuple[float, float]:
        file, others = draw.folder / "rows.csv", draw.folder / "others.csv"
        names = draw.rows.label_names
        labelled = [names[label] for label in labels_of(draw.rows)]
        write(file, ["text", "label"], zip(draw.rows.texts, labelled, strict=True))
        write(others, ["text"], ((text,) for text in draw.others.texts))
        flags: dict[str, Any] = {"data.train": str(file), "data.validation_share": 0.0, "data.folds": 0}
        flags |= {"data.normaliser": "none", "training.seed": draw.seed}
        flags |= {"training.baseline": False}
        if recipe == "quick":
            flags |= {"training.epochs": 960 / len(labelled)}
        if unlabelled:
            flags["data.unlabelled"] = str(others)
        out = draw.folder / f"{recipe}-{unlabelled}"
        resolved = load_recipe(recipe, {**flags, "data.train_rows": len(labelled)})
        begun = time.perf_counter()
        train(resolved, out=out)
        seconds = time.perf_counter() - begun
        predictions = open_model(out).classify(list(draw.measured.texts))
        chosen = np.asarray(predictions.probabilities).argmax(axis=1)
        given = np.array([predictions.label_names[label] for label in chosen])
        return float(np.mean(given == names_of(draw.measured))), seconds

    return method


def frozen(draw: Draw) -> tuple[float, float]:
    """Logistic regression on the mean of the frozen encoder's last states."""
    from sklearn.linear_model import LogisticRegression

    begun = time.perf_counter()
    embedder = TextEmbedder(resolve_base(BASE).path, max_length=LENGTH)
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(
        embedder.embed(draw.rows.texts), labels_of(draw.rows)
    )
    seconds = time.perf_counter() - begun
    right = fitted.predict(embedder.embed(draw.measured.texts)) == labels_of(draw.measured)
    return float(np.mean(right)), seconds


def svm(draw: Draw) -> tuple[float, float]:
    """TF-IDF and a linear SVM."""
    found = linear_baseline(draw.rows, draw.measured, seed=draw.seed)
    return found.accuracy, found.seconds


SETFIT = """
import csv, json, sys, time
from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments

base, rows, texts, out, seed = sys.argv[1:]
with open(rows, newline="") as stream:
    rows = list(csv.DictReader(stream))
with open(texts, newline="") as stream:
    texts = [row["text"] for row in csv.DictReader(stream)]
begun = time.perf_counter()
model = SetFitModel.from_pretrained(base)
model.model_body.max_seq_length = 128
settings = TrainingArguments(output_dir=out + ".files", seed=int(seed), report_to="none", save_strategy="no")
data = Dataset.from_list([{"text": row["text"], "label": row["label"]} for row in rows])
Trainer(model=model, args=settings, train_dataset=data).train()
seconds = time.perf_counter() - begun
with open(out, "w") as stream:
    json.dump([seconds, [str(label) for label in model.predict(texts)]], stream)
"""


def setfit(draw: Draw) -> tuple[float, float]:
    """SetFit as it comes: pairs of the rows for one epoch, then logistic regression."""
    if draw.setfit is None:
        raise SystemExit("setfit needs --setfit PYTHON, an interpreter that has it")
    rows, texts, out = (draw.folder / name for name in ("setfit.csv", "texts.csv", "setfit.json"))
    labelled = [draw.rows.label_names[label] for label in labels_of(draw.rows)]
    write(rows, ["text", "label"], zip(draw.rows.texts, labelled, strict=True))
    write(texts, ["text"], ((text,) for text in draw.measured.texts))
    given = [str(resolve_base(BASE).path), str(rows), str(texts), str(out), str(draw.seed)]
    subprocess.run([str(draw.setfit), "-c", SETFIT, *given], check=True, capture_output=True)
    seconds, answers = json.loads(out.read_text())
    return float(np.mean(np.array(answers) == names_of(draw.measured))), seconds


METHODS: dict[str, Callable[[Draw], tuple[float, float]]] = {
    "few": by_recipe("few"),
    "unlabelled": by_recipe("few", unlabelled=True),
    "quick": by_recipe("quick"),
    "frozen": frozen,
    "svm": svm,
    "setfit": setfit,
}


def line_of(rows: int, name: str, found: list[tuple[float, float]]) -> dict[str, str]:
    accuracies = [accuracy for accuracy, _ in found]
    spread = statistics.stdev(accuracies) if len(found) > 1 else 0.0
    return {
        "rows a class": str(rows),
        "": name,
        "accuracy": f"{statistics.mean(accuracies):.1%} +-{100 * spread:.1f}",
        "lowest": f"{min(accuracies):.1%}",
        "seconds": f"{statistics.median(seconds for _, seconds in found):.0f}",
        "draws": str(len(found)),
    }


def labels_of(examples: Examples) -> NDArray[np.int64]:
    assert examples.labels is not None
    return examples.labels


def names_of(examples: Examples) -> NDArray[np.str_]:
    return np.array([examples.label_names[label] for label in labels_of(examples)])


def write(file: Path, header: list[str], rows: Any) -> None:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=("ag_news", "reuters-r8", "reuters-r52", "20newsgroups"))
    parser.add_argument("--data", help="a folder of train.* and test.*; default: the named data set")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS[:-1]))
    parser.add_argument("--setfit", type=Path, metavar="PYTHON", help="the interpreter that has SetFit")
    parser.add_argument("--unlabelled", type=int, default=3000, help="rows that are given without labels")
    parser.add_argument("--measure", choices=("validation", "test"), default="validation")
    parser.add_argument("--measured", type=int, default=4000, help="rows to measure a draw on, at most")
    return parser.parse_args()


if __name__ == "__main__":
    main()
