"""Accuracy of newsdesk's recipes on standard test sets, with the linear baseline beside it.

    python benchmarks/accuracy.py reuters-r8                          # 3 seeds
    python benchmarks/accuracy.py ag_news --data ../shared/ag_news    # 1 seed

Every run is trained on train rows, its checkpoint chosen on rows split off them, and measured once on the
test split. A run that already lies finished in --out with the same recipe is measured, not trained again.
Prints each seed's accuracy with its 95 % interval and writes everything to OUT/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from newsdesk.api import evaluate, train
from newsdesk.config import ResolvedRecipe, load_recipe
from newsdesk.errors import UserError
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
        resolved = load_recipe(contestant["recipe"], flags, arguments.overrides)
        results.append(measure(resolved, arguments.out / f"{arguments.name}-seed{seed}", seed))
    accuracies = [100 * result["accuracy"] for result in results]
    print(f"\n{arguments.name}: mean {statistics.mean(accuracies):.2f} % over {len(seeds)} seed(s)", end="")
    print(f", standard deviation {statistics.stdev(accuracies):.2f}" if len(seeds) > 1 else "")
    (arguments.out / f"{arguments.name}.json").write_text(json.dumps(results, indent=2) + "\n")


def measure(resolved: ResolvedRecipe, folder: Path, seed: int) -> dict[str, Any]:
    started = time.monotonic()
    if not is_finished(folder, resolved):
        train(resolved, out=folder, overwrite=folder.exists())
    minutes = (time.monotonic() - started) / 60
    evaluation = evaluate(folder, resolved.recipe.data.train, baseline=True)
    metrics, baseline, paired = evaluation.metrics, evaluation.baseline, evaluation.comparison
    assert baseline is not None
    assert paired is not None
    low, high = metrics.accuracy_interval
    print(
        f"seed {seed}: {metrics.accuracy:.2%} [{low:.2%}, {high:.2%}] of {metrics.rows:,} test rows, "
        f"trained in {minutes:.1f} min; {baseline.description}: {baseline.accuracy:.2%}, "
        f"McNemar p {paired.p_value:.3g}",
        flush=True,
    )
    return {
        "seed": seed,
        "accuracy": metrics.accuracy,
        "interval": [low, high],
        "baseline": baseline.accuracy,
        "mcnemar_p": paired.p_value,
        "training_minutes": minutes,
        "recipe": resolved.recipe.model_dump(),
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
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    return arguments


if __name__ == "__main__":
    main()
