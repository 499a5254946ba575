"""Long texts cut, or read window by window: what the rest of a text brings, and what it costs.

    python benchmarks/long_texts.py reuters-90 --data ../shared/reuters21578    # several labels a text
    python benchmarks/long_texts.py 20newsgroups
    python benchmarks/long_texts.py reuters-90 --data ../shared/reuters21578 --seeds 1 2 3 --stack

Every run is trained on the training rows, its checkpoint chosen on rows split off them, and measured once on
the test rows, beside a linear SVM; the first of --read is what the others are compared with. A run that is
finished in --out is measured, not trained again; one that was interrupted goes on. The int8 export of the
last --read is measured on the same rows. --speed times its float32 export against that of a run whose texts
have one label each, in turns, on the same texts.
Prints tables; the figures of the runs are in their metrics.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from newsdesk.api import calibrate, evaluate, export, train
from newsdesk.cli.tables import render_columns
from newsdesk.config import load_recipe
from newsdesk.evaluation.compare import compare
from newsdesk.evaluation.evaluate import Evaluation
from newsdesk.evaluation.label_sets import LabelSetEvaluation
from newsdesk.evaluation.rows import evaluation_rows
from newsdesk.label_set_metrics import LabelSetMetrics
from newsdesk.prediction.open_model import find_model, open_model
from newsdesk.runs.exported import Kind
from newsdesk.runs.folder import RunFolder, resumable
from newsdesk.runs.log import Finished, read_log

LENGTH = 128
SETTINGS: dict[str, Any] = {
    "data.normaliser": "none",
    "model.max_length": LENGTH,
    "lora.layers": "top-3",
    "training.epochs": 10.0,
    "training.batch_size": 16,
    "training.learning_rate": 1e-3,
    "training.validate_every": 1.0,
}
"""Beside the recipe best; chosen on rows split off Reuters' training rows."""
TEXTS_TIMED = 500


def main() -> None:
    arguments = parse_arguments()
    lines, verdicts = [], []
    for seed in arguments.seeds:
        folders = [trained(arguments, read, seed) for read in arguments.read]
        for read, folder in zip(arguments.read, folders, strict=True):
            found = evaluate(folder, test_rows(arguments), baseline=folder == folders[0])
            lines.append(line_of(f"{read}, seed {seed}", found, learned_in(RunFolder(folder))))
            if found.baseline is not None:
                lines.append(line_of_baseline(found))
            if arguments.stack:
                calibrate(folder, stack=True)
                stacked = evaluate(folder, test_rows(arguments), split="stacked")
                lines.append(line_of(f"{read}, seed {seed}, stacked", stacked))
                calibrate(folder, stack=False)
        for other in compare(folders[0], folders[1:]):
            low, high = (100 * end for end in other.macro_f1.interval)
            macro = f"{100 * other.macro_f1.difference:+.2f} points [{low:+.2f}, {high:+.2f}]"
            verdicts += [other.verdict, f"  macro F1: {macro}"]
    exported = exported_as("onnx-int8", folders[-1])
    lines.append(
        line_of(f"{arguments.read[-1]}, seed {seed}, int8", evaluate(exported, test_rows(arguments)))
    )
    names = dict.fromkeys(name for line in lines for name in line)
    print("\n".join(render_columns([{name: line.get(name, "") for name in names} for line in lines])))
    print("\n".join(["", *verdicts, *(each.verdict for each in compare(folders[-1], [exported]))]))
    if arguments.speed:
        print("\n" + "\n".join(speeds(folders[-1], arguments)))


def trained(arguments: argparse.Namespace, read: str, seed: int) -> Path:
    """A finished run: the one that is there, or trained now, or to its end."""
    folder: Path = arguments.out / f"{arguments.name}-{read}-seed{seed}"
    flags = {**SETTINGS, **columns(arguments), "training.seed": seed, "model.long_texts": read}
    begun = resumable(folder) is not None
    if not (folder / "manifest.json").is_file():
        recipe = None if begun else load_recipe("best", flags, arguments.overrides)
        train(recipe, out=folder, resume=begun)
    return folder


def columns(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is read of which training rows, as recipe keys."""
    if arguments.name == "20newsgroups":
        return {"data.train": arguments.data or "20newsgroups"}
    rows = str(Path(arguments.data) / "train.jsonl.gz")
    return {"data.train": rows, "data.text": ("title", "body"), "data.label": "topics"}


def test_rows(arguments: argparse.Namespace) -> str:
    """Where the test rows are."""
    if arguments.name == "20newsgroups":
        return arguments.data or "20newsgroups"
    return str(Path(arguments.data) / "test.jsonl.gz")


def learned_in(run: RunFolder) -> float:
    """The minutes that a training took."""
    return [logged.seconds for logged in read_log(run.log, Finished)][-1] / 60


def line_of(
    name: str, found: Evaluation | LabelSetEvaluation, minutes: float | None = None
) -> dict[str, str]:
    """A row of the table."""
    figures, shown = found.metrics, {"": name, "minutes": "" if minutes is None else f"{minutes:.1f}"}
    if isinstance(figures, LabelSetMetrics):
        macro = with_interval(figures.macro_f1, figures.macro_f1_interval)
        return {
            **shown,
            "micro F1": with_interval(figures.micro_f1, figures.micro_f1_interval),
            "macro F1": macro,
        }
    accuracy = with_interval(figures.accuracy, figures.accuracy_interval)
    return {**shown, "accuracy": accuracy, "macro F1": f"{figures.macro_f1:.2%}"}


def line_of_baseline(found: Evaluation | LabelSetEvaluation) -> dict[str, str]:
    """The same of the linear model on the same rows."""
    assert found.baseline is not None
    shown = {"": found.baseline.description}
    if found.baseline.micro_f1 is None:
        return {**shown, "accuracy": f"{found.baseline.accuracy:.2%}"}
    return {
        **shown,
        "micro F1": f"{found.baseline.micro_f1:.2%}",
        "macro F1": f"{found.baseline.macro_f1:.2%}",
    }


def with_interval(value: float, interval: Sequence[float]) -> str:
    return f"{value:.2%} [{interval[0]:.2%}, {interval[1]:.2%}]"


def exported_as(kind: Kind, folder: Path) -> Path:
    """The run's export, made where there is none."""
    target = folder / "export" / kind
    return target if target.is_dir() else Path(export(folder, kind).path)


def speeds(folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Texts a second of an export of several labels and of one with one label, on the same texts in turns.

    Both in float32: how far weights are rounded depends on the run.
    """
    texts = evaluation_rows(find_model(folder), test_rows(arguments), "test").texts[:TEXTS_TIMED]
    runs = {"several labels": folder, "one label": single_label(arguments)}
    models = {name: open_model(exported_as("onnx-fp32", run)) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(arguments.rounds + 1):
        for name, model in models.items():
            begun = time.perf_counter()
            model.classify(texts)
            if round_:  # the first warms up
                seconds[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    several, one = medians.values()
    return [
        *(f"{name}: {len(texts) / median:,.0f} texts/s" for name, median in medians.items()),
        f"several labels at {one / several:.1%} of the speed with one",
    ]


def single_label(arguments: argparse.Namespace) -> Path:
    """A run of a short training on the rows that have just one label, read alike."""
    folder: Path = arguments.out / f"{arguments.name}-one-label"
    if not (folder / "manifest.json").is_file():
        kept = arguments.out / "one_label.jsonl"
        with gzip.open(columns(arguments)["data.train"], "rt") as rows, kept.open("w") as stream:
            some = (json.loads(line) for line in rows)
            stream.writelines(
                json.dumps({**row, "topics": row["topics"][0]}) + "\n"
                for row in some
                if len(row["topics"]) == 1
            )
        flags = {**SETTINGS, **columns(arguments), "data.train": str(kept), "training.epochs": 0.2}
        flags["model.long_texts"] = arguments.read[-1]
        train(load_recipe("best", {**flags, "training.min_steps": 0}), out=folder)
    return folder


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=("reuters-90", "20newsgroups"))
    parser.add_argument("--data", help="the folder of Reuters' train.jsonl.gz and test.jsonl.gz")
    parser.add_argument(
        "--read", nargs="+", default=["cut", "windows"], choices=("cut", "head-tail", "windows")
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--stack", action="store_true", help="measure a linear model stacked on each, too")
    parser.add_argument("--speed", action="store_true", help="time bulk prediction, too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/long_texts"))
    arguments = parser.parse_args()
    if arguments.name == "reuters-90" and not arguments.data:
        parser.error("--data FOLDER is needed: the texts of reuters-90 are nobody's to hand on")
    arguments.out.mkdir(parents=True, exist_ok=True)
    return arguments


if __name__ == "__main__":
    main()
