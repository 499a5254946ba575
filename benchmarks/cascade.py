"""What a cascade gains and loses: texts a second and accuracy with the linear model first, and without it.

    python benchmarks/cascade.py RUN --data test.csv                # at most 0.2 points lost, as promised
    python benchmarks/cascade.py RUN --data test.csv --loss 0.01 --estimated

Both classify the same labelled texts in turns, the second being the export that the run predicts with (int8
where it has one). Times are medians over the rounds, tokenising included; reading and writing files is not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from newsdesk.cli.tables import render_columns
from newsdesk.data.examples import aligned_labels
from newsdesk.evaluation.rows import evaluation_rows
from newsdesk.evaluation.significance import paired_difference_interval
from newsdesk.metrics import wilson_interval
from newsdesk.prediction.cascade import LOSS, CascadeClassifier
from newsdesk.prediction.open_model import find_model, open_model

WARM_UP = 64


def main() -> None:
    arguments = parse_arguments()
    whole = open_model(arguments.run)
    cascade = CascadeClassifier(whole, arguments.loss, estimated=arguments.estimated)
    rows = evaluation_rows(find_model(arguments.run), arguments.data, "test")
    labels, texts = aligned_labels(rows, whole.label_names), rows.texts[: arguments.rows]
    labels = labels[: len(texts)]
    classifiers = {whole.engine: whole, "cascade": cascade}
    seconds: dict[str, list[float]] = {name: [] for name in classifiers}
    right = {}
    for classifier in classifiers.values():
        classifier.classify(texts[:WARM_UP])
    cascade.texts = cascade.by_linear = 0
    for _ in range(arguments.rounds):
        for name, classifier in classifiers.items():
            begin = time.perf_counter()
            found = classifier.classify(texts)
            seconds[name].append(time.perf_counter() - begin)
            several = whole.task == "multi"  # a text is right whose labels are all right
            right[name] = (found.assigned == labels).all(axis=1) if several else found.class_ids == labels
    print(f"{whole.path}, {len(texts):,} texts of {arguments.data}, {arguments.rounds} rounds\n")
    lines = []
    for name in classifiers:
        low, high = wilson_interval(int(right[name].sum()), len(texts))
        lines.append(
            {
                "": name,
                "texts/s": f"{len(texts) / statistics.median(seconds[name]):,.0f}",
                "range": f"{len(texts) / max(seconds[name]):,.0f}-{len(texts) / min(seconds[name]):,.0f}",
                "accuracy": f"{right[name].mean():.2%} [{low:.2%}, {high:.2%}]",
            }
        )
    print("\n".join(render_columns(lines)) + "\n")
    alone, mixed = right.values()
    lost, gained = int((alone & ~mixed).sum()), int((mixed & ~alone).sum())
    low, high = paired_difference_interval(lost, gained, len(texts))
    faster = np.array(seconds[whole.engine]) / np.array(seconds["cascade"])
    print(f"{np.median(faster):.2f}x faster ({faster.min():.2f}-{faster.max():.2f})")
    print(
        f"{100 * (lost - gained) / len(texts):+.2f} points lost [{100 * low:+.2f}, {100 * high:+.2f}]: "
        f"{lost:,} rows lost, {gained:,} gained"
    )
    print("\n".join(cascade.describe()))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run with an export, or an export, with a linear model")
    parser.add_argument("--data", required=True, help="labelled texts that it did not learn from")
    parser.add_argument("--loss", type=float, default=LOSS, help="share of texts that may be lost")
    parser.add_argument("--estimated", action="store_true", help="an estimated threshold, not a promised one")
    parser.add_argument("--rows", type=int, help="only so many")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
