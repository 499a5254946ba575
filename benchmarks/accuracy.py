"""Accuracy of newsdesk's recipes on standard test sets, with the linear baseline beside it.

    python benchmarks/accuracy.py reuters-r8                          # 3 seeds
    python benchmarks/accuracy.py ag_news --data ../shared/ag_news    # 1 seed
    python benchmarks/accuracy.py ag_news --data ../shared/ag_news --descriptions --stack

Every run is trained on train rows, its checkpoint chosen on rows split off them, and measured once on the
test split. A run that already lies finished in --out with the same recipe is measured, not trained again.
``--descriptions`` learns from train_descriptions.csv.gz of the folder, too: rows without a title. ``--stack``
measures the run a second time with its linear model stacked on it.
Prints each seed's accuracy with its 95 % interval and writes everything to OUT/NAME.json.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import statistics
import time
from pathlib import Path
from typing import Any

from newsdesk.api import calibrate, evaluate, train
from newsdesk.config import ResolvedRecipe, load_recipe
from newsdesk.errors import UserError
from newsdesk.evaluation.evaluate import Evaluation
from newsdesk.runs.folder import open_run

CONTESTANTS: dict[str, dict[str, Any]] = {
    "reuters-r8": {
        "recipe": "best",
        "seeds": (1, 2, 3),
        "flags": {
            "data.train": "reuters-r8",
            "data.validation_share": 0.05,
            "data.normaliser": "none",
            "model.max_length": 128,
            "training.batch_size": 16,
        },
    },
    "ag_news": {"recipe": "best", "seeds": (42,), "flags": {}},
}


def main() -> None:
    arguments = parse_arguments()
    contestant = CONTESTANTS[arguments.name]
    seeds = arguments.seeds or contestant["seeds"]
    results = []
    for seed in seeds:
        flags = {**contestant["flags"], "training.seed": seed}
        if arguments.data:
            flags["data.train"] = arguments.data
        if arguments.descriptions:
            flags["data.train"] = str(with_descriptions(Path(arguments.data), arguments.out))
        resolved = load_recipe(contestant["recipe"], flags, arguments.overrides)
        results.append(measure(resolved, arguments, seed))
    accuracies = [100 * result["accuracy"] for result in results]
    print(f"\n{arguments.name}: mean {statistics.mean(accuracies):.2f} % over {len(seeds)} seed(s)", end="")
    print(f", standard deviation {statistics.stdev(accuracies):.2f}" if len(seeds) > 1 else "")
    (arguments.out / f"{arguments.name}.json").write_text(json.dumps(results, indent=2) + "\n")


def with_descriptions(folder: Path, out: Path) -> Path:
    """One file of all training rows; a row that has a description alone has an empty title."""
    joined = out / "with_descriptions.csv"
    with joined.open("w", newline="", encoding="utf-8") as stream:
        for number, name in enumerate(("train.csv.gz", "train_descriptions.csv.gz")):
            with gzip.open(folder / name, "rt", newline="", encoding="utf-8") as rows:
                csv.writer(stream).writerows(list(csv.reader(rows))[number > 0 :])
    return joined


def measure(resolved: ResolvedRecipe, arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    folder = arguments.out / f"{arguments.name}-seed{seed}"
    started = time.monotonic()
    if not is_finished(folder, resolved):
        train(resolved, out=folder, overwrite=folder.exists())
    minutes = (time.monotonic() - started) / 60
    test_rows = arguments.data or resolved.recipe.data.train
    found = measured(evaluate(folder, test_rows, baseline=True), f"seed {seed}, trained in {minutes:.1f} min")
    if arguments.stack:
        calibrate(folder, stack=True)
        stacked = measured(evaluate(folder, test_rows, baseline=True), f"seed {seed}, stacked")
        calibrate(folder, stack=False)
        found["stacked"] = stacked
    return {"seed": seed, **found, "training_minutes": minutes, "recipe": resolved.recipe.model_dump()}


def measured(evaluation: Evaluation, what: str) -> dict[str, Any]:
    metrics, baseline, paired = evaluation.metrics, evaluation.baseline, evaluation.comparison
    assert baseline is not None
    assert paired is not None
    low, high = metrics.accuracy_interval
    print(
        f"{what}: {metrics.accuracy:.2%} [{low:.2%}, {high:.2%}] of {metrics.rows:,} test rows; "
        f"{baseline.description}: {baseline.accuracy:.2%}, McNemar p {paired.p_value:.3g}",
        flush=True,
    )
    return {
        "accuracy": metrics.accuracy,
        "interval": [low, high],
        "calibration_error": metrics.expected_calibration_error,
        "baseline": baseline.accuracy,
        "mcnemar_p": paired.p_value,
    }


def is_finished(folder: Path, resolved: ResolvedRecipe) -> bool:
    try:
        run = open_run(folder)
    except UserError:
        return False
    return load_recipe(str(run.recipe)).recipe == resolved.recipe


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(CONTESTANTS))
    parser.add_argument("--data", help="where the data lies, if not under its name")
    parser.add_argument("--descriptions", action="store_true", help="learn from rows without a title, too")
    parser.add_argument("--stack", action="store_true", help="measure it stacked with its linear model, too")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    return arguments


if __name__ == "__main__":
    main()
