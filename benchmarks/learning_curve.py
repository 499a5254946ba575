"""How far what is said of twice the rows holds: predicted and true accuracy, and how often intervals cover.

    python benchmarks/learning_curve.py ../shared/ag_news --text title,description --draws 30
    python benchmarks/learning_curve.py reuters-r8 --draws 30

In every draw a classifier learns from so many rows, its folds answer them, and `LearningCurve` says what it
would reach with twice as many, which it then learns from in truth. It is measured on 2,500 others of the
training rows. The classifiers are heads on a frozen encoder's embeddings, because an encoder cannot be
trained so often. One of words (--classifiers words) learns faster from few rows than heads can tell.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from newsdesk.cli.tables import render_columns
from newsdesk.config import DataSection
from newsdesk.data.folds import assign_folds
from newsdesk.data.load import first_rows, load_training_data
from newsdesk.model.catalog import resolve_base
from newsdesk.model.network import TextEmbedder
from newsdesk.training.learning_curve import LearningCurve
from newsdesk.training.linear_baseline import tfidf_vectorizer

SIZES, FOLDS, MEASURED = (100, 200, 400, 800), 5, 2500

Values = NDArray[np.floating[Any]]
Ids = NDArray[np.int64]
CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "discriminant": lambda: LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3),
    "logistic": lambda: LogisticRegression(C=10.0, max_iter=60),
    "words": lambda: make_pipeline(tfidf_vectorizer(100), LinearSVC(C=1.0)),
}


class Rows:
    """Texts with their embeddings and labels."""

    def __init__(self, texts: list[str], embeddings: Values, labels: Ids) -> None:
        self.texts, self.embeddings, self.labels = np.array(texts, dtype=object), embeddings, labels

    def answers(self, name: str, learned: Ids, asked: Ids) -> Ids:
        """What a classifier that learned from some rows answers to others."""
        given: NDArray[Any] = self.texts if name == "words" else self.embeddings
        model = CLASSIFIERS[name]().fit(given[learned], self.labels[learned])
        return np.asarray(model.predict(given[asked]))


def draws(rows: Rows, name: str, size: int, count: int, seed: int) -> Iterator[dict[str, float]]:
    """What was said and what was so, for as many draws of ``size`` rows."""
    generator = np.random.default_rng(seed)
    while count:
        order = generator.permutation(len(rows.labels))
        few, drawn, measured = order[:size], order[: 2 * size], order[2 * size :][:MEASURED]
        fold_of = assign_folds(rows.labels[few], np.arange(size), FOLDS, int(generator.integers(1 << 30)))
        parts = [fold_of == fold for fold in range(FOLDS)]
        if any(len(np.unique(rows.labels[few[~part]])) < 2 for part in parts):
            continue
        count -= 1
        given = np.zeros(size, dtype=np.int64)
        for part in parts:
            given[part] = rows.answers(name, few[~part], few[part])
        curve = LearningCurve.of(rows.embeddings[few], given, rows.labels[few], fold_of)
        said = curve.at(2 * size)
        now, truth = (
            float((rows.answers(name, learned, measured) == rows.labels[measured]).mean())
            for learned in (few, drawn)
        )
        yield {
            "now": now,
            "truth": truth,
            "said": said.score,
            "within": said.interval[0] <= truth <= said.interval[1],
            "width": said.interval[1] - said.interval[0],
            "gain": said.gain,
            "gain within": said.gain_interval[0] <= max(0.0, truth - now) <= said.gain_interval[1],
            "exponent": float(np.log((1 - now) / (1 - truth)) / np.log(2)),
            "exponent said": curve.exponent,
            "heads": float(np.log(curve.heads[0] / curve.heads[-1]) / np.log(2)),
        }


def lines(rows: Rows, names: list[str], sizes: list[int], count: int) -> Iterator[dict[str, str]]:
    for name in names:
        for size in sizes:
            found = list(draws(rows, name, size, count, seed=size))
            mean = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
            gains = np.array([one["truth"] - one["now"] for one in found])
            missed = np.array([one["gain"] for one in found]) - gains
            yield {
                "classifier": name,
                "rows": f"{size:,}",
                "now": f"{mean['now']:.1%}",
                "twice": f"{mean['truth']:.1%}",
                "said": f"{mean['said']:.1%}",
                "+-": f"{mean['width'] / 2:.1%}",
                "covers": f"{mean['within']:.0%}",
                "gain": f"{100 * gains.mean():.1f}",
                "gain said": f"{100 * mean['gain']:.1f}",
                "off by": f"{100 * float(np.abs(missed).mean()):.1f}",
                "gain covers": f"{mean['gain within']:.0%}",
                "exponent": f"{mean['exponent']:.2f}",
                "exponent said": f"{mean['exponent said']:.2f}",
                "of heads": f"{mean['heads']:.2f}",
            }


def rows_of(arguments: argparse.Namespace) -> Rows:
    """The rows of some data, embedded; once, if there is a file to keep the embeddings in."""
    text = tuple(arguments.text.split(",")) if arguments.text else ()
    section = DataSection(train=arguments.data, text=text, validation_share=0.0)
    examples = first_rows(load_training_data(section, seed=1).train, arguments.rows, 1)
    kept = arguments.embeddings
    if kept is not None and kept.is_file():
        embeddings = np.load(kept)
    else:
        embedder = TextEmbedder(resolve_base("all-MiniLM-L6-v2").path, max_length=64, long_texts=None)
        embeddings = embedder.embed(examples.texts)
        if kept is not None:
            np.save(kept, embeddings)
    return Rows(list(examples.texts), embeddings, np.asarray(examples.labels))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--text", help="comma-separated columns")
    parser.add_argument("--draws", type=int, default=30)
    parser.add_argument("--rows", type=int, default=5400, help="rows to embed")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument(
        "--classifiers", nargs="*", default=["discriminant", "logistic"], choices=list(CLASSIFIERS)
    )
    parser.add_argument("--embeddings", type=Path, help=".npy file to keep the embeddings in")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = rows_of(arguments)
    found = lines(rows, arguments.classifiers, arguments.sizes, arguments.draws)
    print("\n".join(render_columns(list(found))))


if __name__ == "__main__":
    main()
