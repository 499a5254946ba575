"""What batches by length save and cost, against random ones: padding, mixing, accuracy.

    python benchmarks/batching.py mixing ../shared/ag_news/train.csv.gz reuters-r8
    python benchmarks/batching.py accuracy --seeds 5

``mixing`` prints, for rows of each data set as all-MiniLM-L6-v2's tokenizer reads them:

| column | meaning |
|---|---|
| padding | share of the computed tokens |
| mates | share of a row's batch mates that are with it in the next epoch's batch, too |
| clustering | how much more the class counts of batches vary than those of random ones (design effect) |

``accuracy`` trains recipe quick on 2,500 rows of Reuters R8 for an epoch, both ways with each seed, and
prints the accuracy on the test rows and the mean difference with its standard error: about two minutes a
seed on one core. Up to 2,048 rows both ways are the same: 128 batches or fewer are random ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np

import newsdesk
from newsdesk import api
from newsdesk.cli.tables import render_columns
from newsdesk.config import DataSection
from newsdesk.data.load import load_training_data
from newsdesk.model.catalog import resolve_base
from newsdesk.model.tokenizer import TextTokenizer
from newsdesk.training.batches import Batcher, Rows, padding_share

BATCH = 16
WAYS = {"by length": True, "random": False}


def main() -> int:
    arguments = parse_arguments()
    if arguments.part == "mixing":
        lines = [line for data in arguments.data for line in mixing(data, arguments.max_length)]
        print("\n".join(render_columns(lines)))
        return 0
    differences = []
    for seed in range(1, arguments.seeds + 1):
        found = {
            way: accuracy(seed, grouped, arguments.rows, arguments.epochs) for way, grouped in WAYS.items()
        }
        differences.append(100 * (found["by length"] - found["random"]))
        shown = ", ".join(f"{way} {share:.2%}" for way, share in found.items())
        print(f"seed {seed}: {shown}, {differences[-1]:+.2f} points", flush=True)
    if len(differences) > 1:
        error = np.std(differences, ddof=1) / len(differences) ** 0.5
        print(f"by length minus random: {np.mean(differences):+.2f} points, standard error {error:.2f}")
    return 0


def mixing(data: str, max_length: int) -> list[dict[str, str]]:
    """The figures of random samples of a data set, of several sizes, batched in either way."""
    section = DataSection(train=data, validation_share=0.0)
    examples = load_training_data(section, seed=42).train
    examples = examples.select(np.random.default_rng(0).permutation(len(examples)))
    tokenizer = TextTokenizer.from_folder(resolve_base("all-MiniLM-L6-v2").path, max_length)
    lengths = np.array(tokenizer.lengths(examples.texts), dtype=np.int64)
    assert examples.labels is not None
    lines = []
    for rows in sorted({min(rows, len(lengths)) for rows in (320, 1_500, 5_000, 20_000)}):
        for way, grouped in WAYS.items():
            batcher = Batcher(lengths[:rows], BATCH, seed=1, group_by_length=grouped)
            epochs = [batcher.epoch(number) for number in range(5)]
            figures = {
                "padding": np.mean([padding_share(lengths[:rows], epoch) for epoch in epochs]),
                "mates": np.mean([mates_that_stay(*pair) for pair in pairwise(epochs)]),
            }
            mix = np.mean([clustering(examples.labels[:rows], epoch) for epoch in epochs])
            line = {"data": Path(data).name, "rows": f"{rows:,}", "batches": way}
            line |= {name: f"{share:.1%}" for name, share in figures.items()}
            lines.append(line | {"clustering": f"{mix:.2f}"})
    return lines


def mates_that_stay(first: list[Rows], second: list[Rows]) -> float:
    """The share of a row's batch mates that are with it in another epoch's batch, too."""
    batch_of = np.empty(sum(map(len, second)), dtype=np.int64)
    for number, batch in enumerate(second):
        batch_of[batch] = number
    together = [np.bincount(batch_of[batch]) for batch in first]
    return sum(int((n * (n - 1)).sum()) for n in together) / sum(len(b) * (len(b) - 1) for b in first)


def clustering(labels: Rows, batches: list[Rows]) -> float:
    """How much more the class counts of batches vary than those of random batches, which have 1.

    This is the design effect of cluster samples (Kish, 1965), averaged over classes by their variance: so
    much more the mean over a batch varies whose rows differ by class alone. ``labels`` are ids, (rows,).
    """
    size = max(map(len, batches))
    full = [batch for batch in batches if len(batch) == size]
    classes = int(labels.max()) + 1
    shares = np.bincount(labels, minlength=classes) / len(labels)
    variance = size * float((shares * (1 - shares)).sum()) * (len(labels) - size) / max(1, len(labels) - 1)
    if not variance:
        return 1.0
    counts = np.array([np.bincount(labels[batch], minlength=classes) for batch in full])
    return float(((counts - size * shares) ** 2).sum(axis=1).mean() / variance)


def accuracy(seed: int, grouped: bool, rows: int, epochs: float) -> float:
    """Of one training on so many rows of Reuters R8, on its test rows."""
    overrides = [
        f"data.train_rows={rows}",
        f"training.epochs={epochs}",
        f"training.seed={seed}",
        f"training.group_by_length={str(grouped).lower()}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        newsdesk.train("quick", out=out, overrides=overrides)
        return api.evaluate(out, "reuters-r8").metrics.accuracy


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("mixing")
    part.add_argument("data", nargs="+", help="named data sets or files")
    part.add_argument("--max-length", type=int, default=256)
    part = parts.add_parser("accuracy")
    part.add_argument("--seeds", type=int, default=5)
    part.add_argument("--rows", type=int, default=2_500)
    part.add_argument("--epochs", type=float, default=1.0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
