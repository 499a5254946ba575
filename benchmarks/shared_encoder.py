"""What many classifiers on one encoder cost: memory and time of a hundred against one.

    python benchmarks/shared_encoder.py --whole RUN --top RUN --data test.csv --text title,description

Both runs have the exports onnx-int8 and onnx-shared: the first with adapters on all layers, the second on the
top ones only (lora.layers = "top-2"). The other classifiers are copies of their exports whose adapters and
heads are other numbers, written by the type that writes them. Contestants take turns on the same texts; times
are medians over the rounds, with the range, and leave tokenising out. Memory is what a process of its own
holds after it has computed all texts, each by another classifier in turn.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import AG_NEWS, describe_machine, markdown_table, spread

from newsdesk.files import sha256_of
from newsdesk.model.tokenizer import TokenIds
from newsdesk.prediction.open_model import OnnxClassifier, open_model
from newsdesk.runs.exported import ExportedModel
from newsdesk.runs.exported_adapter import ADAPTER, ExportedAdapter
from newsdesk.runs.folder import MANIFEST
from newsdesk.serving.shared_encoder import SharedEncoder
from newsdesk.stored import write_stored

BATCH = 32
"""Texts that are asked at once, each of another classifier: what waits in a server under load."""


def main() -> None:
    arguments = parse_arguments()
    if arguments.process:
        measure_memory(arguments)
        return
    texts = read_texts(arguments)
    print(f"{describe_machine('onnxruntime', 'numpy')}, {arguments.threads} thread(s), {len(texts)} texts\n")
    with tempfile.TemporaryDirectory() as folder:
        lines = [
            *memory(many(arguments.whole, arguments.adapters, Path(folder) / "whole")),
            *throughput(arguments, texts, many(arguments.whole, arguments.adapters, Path(folder) / "mixed")),
            *one_text(arguments, texts, many(arguments.top, arguments.runs, Path(folder) / "top")),
        ]
    print(markdown_table(("", "figure", "goal"), lines))


def many(run: Path, count: int, folder: Path) -> list[Path]:
    """So many exports on one encoder: copies of the run's, with other adapters and heads."""
    source = run / "export" / "onnx-shared"
    found = ExportedAdapter.of_folder(source, len(ExportedModel(source).labels.names))
    tensors = found.tensors
    generator, made = np.random.default_rng(0), []
    for number in range(count):
        made.append(folder / f"{number:03}")
        shutil.copytree(source, made[-1], copy_function=os.link)  # files are replaced, never changed
        noise = {name: generator.normal(0, 0.1 * each.std(), each.shape) for name, each in tensors.items()}
        ExportedAdapter.of(run, **{name: each + noise[name] for name, each in tensors.items()}).save(made[-1])
        manifest = ExportedModel(made[-1]).manifest
        files = {**manifest.files, ADAPTER: sha256_of(made[-1] / ADAPTER)}
        write_stored(made[-1] / MANIFEST, replace(manifest, files=files))
    return made


def memory(exports: Sequence[Path]) -> list[tuple[str, str, str]]:
    """Of processes that hold one of the exports, and all of them."""
    held = {}
    for count in (1, len(exports)):
        command = [sys.executable, __file__, *sys.argv[1:], "--process", str(exports[0].parent), str(count)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        held[count] = json.loads(answer.splitlines()[-1])["bytes"] / 1e6
    one, all_of_them = held[1], held[len(exports)]
    label = f"memory of {len(exports)} classifiers against one"
    return [(label, f"{all_of_them / one:.2f}x ({all_of_them:.0f} MB, {one:.0f} MB)", "1.5x or less")]


def measure_memory(arguments: argparse.Namespace) -> None:
    """Hold exports, compute the texts, and print what that takes."""
    folder, count = Path(arguments.process[0]), int(arguments.process[1])
    encoder = SharedEncoder(threads=arguments.threads)
    for path in sorted(folder.iterdir())[:count]:
        encoder.add(path.name, path)
    texts = read_texts(arguments)
    names = cycle(encoder.names)
    for start in range(0, len(texts), BATCH):
        ids = encoder.classifier(encoder.names[0]).token_ids(texts[start : start + BATCH])
        encoder.compute([(each, next(names)) for each in ids])
    status = Path("/proc/self/status").read_text().splitlines()
    print(json.dumps({"bytes": next(int(s.split()[1]) << 10 for s in status if s.startswith("VmRSS"))}))


def throughput(
    arguments: argparse.Namespace, texts: Sequence[str], exports: Sequence[Path]
) -> list[tuple[str, str, str]]:
    """Of rows that are each of another classifier, against rows of one, and against its int8 export."""
    encoder = SharedEncoder(threads=arguments.threads)
    for path in exports:
        encoder.add(path.name, path)
    alone = opened_alone(arguments.whole, arguments.threads)
    sequences = alone.token_ids(texts)
    names = cycle(encoder.names)
    mixed = [(ids, next(names)) for ids in sequences]
    one = [(ids, encoder.names[0]) for ids in sequences]

    def in_batches(compute: Callable[[Any], Any], rows: Sequence[Any]) -> Callable[[], None]:
        def run() -> None:
            for start in range(0, len(rows), BATCH):
                compute(rows[start : start + BATCH])

        return run

    seconds = in_turns(
        {
            "mixed": in_batches(encoder.compute, mixed),
            "one": in_batches(encoder.compute, one),
            "alone": in_batches(alone.outputs, sequences),
        },
        arguments.rounds,
    )
    rate = len(texts) / statistics.median(seconds["mixed"])
    label = f"rows of {len(exports)} classifiers mixed ({rate:,.0f} texts/s), against"
    return [
        (f"{label} rows of one", shown(seconds["one"], seconds["mixed"], "%"), "70 % or more"),
        (f"{label} its int8 export", shown(seconds["alone"], seconds["mixed"], "%"), ""),
    ]


def one_text(
    arguments: argparse.Namespace, texts: Sequence[str], exports: Sequence[Path]
) -> list[tuple[str, str, str]]:
    """One text by many runs on one trunk, against as many passes of the whole encoder."""
    encoder = SharedEncoder(threads=arguments.threads)
    for path in exports:
        encoder.add(path.name, path)
    alone = opened_alone(arguments.top, arguments.threads)
    sequences: list[TokenIds] = alone.token_ids(texts[: arguments.texts_of_all])

    def together() -> None:
        for ids in sequences:
            encoder.logits_of_all(ids, encoder.names)

    def one_by_one() -> None:
        for ids in sequences:
            for _ in exports:
                alone.outputs([ids])

    seconds = in_turns({"together": together, "separate": one_by_one}, arguments.rounds)
    each = 1000 * statistics.median(seconds["together"]) / len(sequences)
    label = f"one text by {len(exports)} runs ({each:.1f} ms), against as many passes of int8 exports"
    return [(label, shown(seconds["separate"], seconds["together"], "x"), "3x or more")]


def opened_alone(run: Path, threads: int) -> OnnxClassifier:
    """The run's int8 export."""
    found = open_model(run / "export" / "onnx-int8", threads=threads)
    assert isinstance(found, OnnxClassifier)
    return found


def in_turns(contestants: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            begin = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def shown(theirs: Sequence[float], ours: Sequence[float], unit: str) -> str:
    """How many times as fast as they we are: median and range over the rounds."""
    found = spread([their / our for their, our in zip(theirs, ours, strict=True)])
    if unit == "%":
        return "{median:.0%} ({low:.0%} to {high:.0%})".format(**found)
    return "{median:.2f}x ({low:.2f} to {high:.2f})".format(**found)


def read_texts(arguments: argparse.Namespace) -> list[str]:
    """The first texts of the file, their columns joined."""
    columns = arguments.text.split(",")
    with arguments.data.open(newline="", encoding="utf-8") as stream:
        rows = islice(csv.DictReader(stream), arguments.texts)
        return [" ".join(row[column] for column in columns) for row in rows]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--whole", type=Path, required=True, help="a run with adapters on all layers")
    parser.add_argument("--top", type=Path, required=True, help="a run with adapters on the top layers")
    parser.add_argument("--data", type=Path, default=AG_NEWS / "test.csv")
    parser.add_argument("--text", default="title,description", help="columns, joined by a space")
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--texts-of-all", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--process", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
