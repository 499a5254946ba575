"""How many labelled rows it takes, picked by `newsdesk label` or drawn at random: labels are known here.

    python benchmarks/labelling.py ../shared/ag_news --out labelling
    python benchmarks/labelling.py ../shared/ag_news --out labelling --train --draws 2

In every draw the picker starts from nothing, as `newsdesk label --labels` does, and is told the label of each
row that it picks out of --pool. Without --train a logistic regression of the frozen embeddings learns from
the rows, which takes seconds, and is measured as they grow. With --train the recipe `quick` learns from as
many rows as --rows says, and from twice as many random ones. All rows are of the training split; those that
are measured on are in no draw. Texts are embedded once, and kept in --out.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

import newsdesk
from newsdesk.cli.tables import render_columns
from newsdesk.data.columns import text_layout
from newsdesk.data.labelled import to_examples
from newsdesk.data.load import load_split
from newsdesk.evaluation.audit.embeddings import embed
from newsdesk.evaluation.picking import Pool, answered_rows, uncertainty
from newsdesk.model.catalog import resolve_base

MEASURED, BATCH = 5000, 20
MEASURED_BY_RUNS = 2000
SHOWN = (100, 200, 300, 400, 500, 600, 700, 800, 900, 1000, 1500, 2000)

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Data:
    """Rows with their labels, the embeddings of their texts, and which of them are measured on."""

    texts: tuple[str, ...]
    labels: Rows
    names: tuple[str, ...]
    embeddings: NDArray[np.float32]
    measured: Rows
    others: Rows


def read(path: str, base: str, folder: Path, pool: int) -> Data:
    """Rows of a data set's training split: those measured on, and as many as a pool needs."""
    table = load_split(path, "train").table
    rows = to_examples(table, text_layout(table, normaliser="ag_news"), labelled=True)
    order = np.random.default_rng(0).permutation(len(rows))[: MEASURED + pool]
    rows = rows.select(order)
    embeddings = embed(rows.texts, resolve_base(base), folder / "embeddings", progress=None)
    place = np.arange(len(rows))
    return Data(rows.texts, rows.truth(), rows.label_names, embeddings, place[:MEASURED], place[MEASURED:])


def picked(data: Data, seed: int, most: int) -> Rows:
    """Rows in the order in which the picker asks them, starting from nothing."""
    pool = Pool(data.embeddings[data.others], several=False)
    labels = data.labels[data.others]
    chosen: list[int] = []
    while len(chosen) < most:
        known = answered_rows(chosen, [[data.names[labels[row]]] for row in chosen], data.names)
        free = np.setdiff1d(np.arange(len(data.others)), chosen)
        chosen += pool.pick(min(BATCH, most - len(chosen)), free, known, seed=seed + len(chosen))[0].tolist()
    return data.others[chosen]


def by_doubt_alone(data: Data, seed: int, most: int) -> Rows:
    """The same, but the most uncertain rows of each batch, however alike they are."""
    pool = Pool(data.embeddings[data.others], several=False)
    labels = data.labels[data.others]
    chosen = pool.pick(BATCH, np.arange(len(data.others)), answered_rows([], [], data.names), seed=seed)[
        0
    ].tolist()
    while len(chosen) < most:
        known = answered_rows(chosen, [[data.names[labels[row]]] for row in chosen], data.names)
        free = np.setdiff1d(np.arange(len(data.others)), chosen)
        estimates = pool.estimates(known)
        doubts = np.ones(len(free)) if estimates is None else uncertainty(estimates[free], several=False)
        chosen += free[np.argsort(-doubts, kind="stable")[:BATCH]].tolist()
    return data.others[chosen[:most]]


def at_random(data: Data, seed: int, most: int) -> Rows:
    """Rows drawn without regard to anything."""
    return np.random.default_rng(seed).permutation(data.others)[:most]


WAYS: dict[str, Callable[[Data, int, int], Rows]] = {
    "label": picked,
    "doubt alone": by_doubt_alone,
    "random": at_random,
}


def quick_accuracy(data: Data, rows: Rows) -> float:
    """Accuracy of a logistic regression of the embeddings that learned from these rows."""
    if len(np.unique(data.labels[rows])) < 2:
        return float("nan")
    head = LogisticRegression(C=1.0, max_iter=300).fit(data.embeddings[rows], data.labels[rows])
    return float((head.predict(data.embeddings[data.measured]) == data.labels[data.measured]).mean())


def trained_accuracy(data: Data, rows: Rows, folder: Path, base: str, epochs: float) -> float:
    """Accuracy of a run of the recipe ``quick`` that learned from these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as stream:
        write = csv.writer(stream).writerows
        write([("text", "label"), *((data.texts[row], data.names[data.labels[row]]) for row in rows)])
    flags = {
        "data.train": str(folder / "rows.csv"),
        "data.validation_share": 0.0,
        "model.base": base,
        "training.epochs": epochs,
        "training.baseline": False,
    }
    run = folder / "run"
    if not (run / "manifest.json").exists():
        newsdesk.train("quick", out=run, flags=flags, overwrite=True)
    classifier: Any = newsdesk.open_model(run)
    rows = data.measured[:MEASURED_BY_RUNS]
    logits = classifier.predict_logits([data.texts[row] for row in rows])
    labels = np.array([data.names.index(name) for name in classifier.label_names])[logits.argmax(axis=1)]
    return float((labels == data.labels[rows]).mean())


def curves(data: Data, draws: int) -> Iterator[dict[str, str]]:
    """Accuracies, mean and standard deviation, by number of rows and way."""
    chosen = {
        name: [way(data, seed, max(SHOWN) if name == "random" else 1000) for seed in range(draws)]
        for name, way in WAYS.items()
    }
    for count in SHOWN:
        line = {"rows": f"{count:,}"}
        for name, draws_of in chosen.items():
            found = [quick_accuracy(data, rows[:count]) for rows in draws_of if len(rows) >= count]
            line[name] = f"{100 * np.mean(found):.2f} +-{100 * np.std(found, ddof=1):.2f}" if found else ""
        yield line


def main() -> None:
    """Print the curve of each way, or what runs reach that learned from the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", default="all-MiniLM-L6-v2")
    parser.add_argument("--pool", type=int, default=20_000)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--epochs", type=float, default=3.0)
    asked = parser.parse_args()
    data = read(asked.data, asked.base, asked.out, asked.pool)
    print(f"{len(data.others):,} rows to pick from, {len(data.measured):,} others measured on")
    if not asked.train:
        print("\n".join(render_columns(list(curves(data, asked.draws)))))
        return
    for seed in range(asked.draws):
        for name, count in (("label", asked.rows), ("random", 2 * asked.rows), ("random", asked.rows)):
            rows = WAYS[name](data, seed, count)
            folder = asked.out / f"draw-{seed}" / f"{name}-{count}"
            found = trained_accuracy(data, rows, folder, asked.base, asked.epochs)
            print(f"draw {seed}: {count:,} rows, {name}: {found:.2%}", flush=True)


if __name__ == "__main__":
    main()
