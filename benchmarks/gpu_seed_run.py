"""The whole seed recipe on one GPU, and slices of it through Trainer + PEFT in float16 on the same card.

    python benchmarks/gpu_seed_run.py                       # 120,000 rows x 5 epochs; about five minutes
    python benchmarks/gpu_seed_run.py --rows 20000 --epochs 1
    python benchmarks/gpu_seed_run.py --rehearse            # every line of it, tiny, on a CPU

RoBERTa-base's shape with random weights unless --base names real ones, random token ids of AG News' lengths:
neither changes how long a step takes. Slices alternate, so that a card that warms up slows all of them alike.
Needs torch, transformers, peft and newsdesk; no network.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from trainer_recipe import trainer_arguments

# Tokens of 76,952 AG News rows in MiniLM's word pieces (RoBERTa's run about as long): rows by upper edge.
LENGTH_EDGES = (20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 68, 72, 80, 96, 128, 160, 192, 224, 256)
LENGTH_ROWS = (27, 343, 1335, 2281, 3763, 5886, 8069, 9554, 10078, 9487, 7804, 5553, 3656, 2260)
LENGTH_ROWS += (2556, 1931, 1743, 283, 214, 74, 55)
CLASSES = ("World", "Sports", "Business", "Sci/Tech")
PEERS = {"grouped": "grouped by length", "notebook": "padded to 249, as published"}
ENGINES = ("eager", "graphs", "compiled")


def main() -> None:
    arguments = parse_arguments()
    import torch

    if not (torch.cuda.is_available() or arguments.rehearse):
        print("There is no GPU here. On one, this trains the seed recipe to its end and prints seconds,")
        print("samples/s, ms a step, peak GPU memory, the share of the card's bfloat16 ceiling, and the")
        print(f"ratio to Trainer + PEFT fp16 ({'; '.join(PEERS.values())}).")
        print("Try every line of it on this CPU:  python benchmarks/gpu_seed_run.py --rehearse")
        return
    with tempfile.TemporaryDirectory() as folder:
        base = arguments.base or random_base(Path(folder), tiny=arguments.rehearse)
        results = Benchmark(arguments, base, torch.device("cpu" if arguments.rehearse else "cuda")).results()
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(report(results))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=120_000)
    parser.add_argument("--epochs", type=float, default=5.0)
    parser.add_argument(
        "--peer-steps", type=int, default=320, help="steps of a slice, after an eighth of them"
    )
    parser.add_argument("--rounds", type=int, default=3, help="slices of each contestant")
    parser.add_argument("--base", type=Path, help="folder of real weights; absent: random ones")
    parser.add_argument("--lengths-from", type=Path, default=Path("../shared/ag_news/train.csv.gz"))
    parser.add_argument("--compile", choices=("on", "off"), default="on")
    parser.add_argument("--json", type=Path, default=Path("build/gpu_seed_run.json"))
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU: measures nothing")
    arguments = parser.parse_args()
    if arguments.rehearse:
        arguments.rows, arguments.epochs = min(arguments.rows, 256), min(arguments.epochs, 1.0)
        arguments.peer_steps, arguments.rounds = min(arguments.peer_steps, 4), min(arguments.rounds, 2)
        arguments.compile = "off"  # a compiler takes longer than all the rest of a rehearsal
    return arguments


def random_base(folder: Path, *, tiny: bool) -> Path:
    """A folder with RoBERTa-base's configuration and random weights."""
    from transformers import RobertaConfig, RobertaModel

    sizes: dict[str, int] = {"vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1}
    if tiny:
        sizes |= {"vocab_size": 500, "hidden_size": 32, "intermediate_size": 64}
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    RobertaModel(RobertaConfig(**sizes, layer_norm_eps=1e-5)).save_pretrained(folder)
    return folder


def sample_lengths(rows: int, path: Path, generator: np.random.Generator) -> Any:
    """Tokens of ``rows`` rows, (rows,): 1.35 a word of the file, or as recorded above."""
    if path.is_file():
        with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
            words = [len(f"{row['title']} {row['description']}".split()) for row in csv.DictReader(stream)]
        return np.clip(np.round(1.35 * generator.choice(words, rows)), 8, 256).astype(np.int64)
    shares = np.array(LENGTH_ROWS) / sum(LENGTH_ROWS)
    upper = generator.choice(len(LENGTH_EDGES), rows, p=shares)
    lower = np.array((16, *LENGTH_EDGES[:-1]))
    return generator.integers(lower[upper] + 1, np.array(LENGTH_EDGES)[upper] + 1)


class Benchmark:
    """One base, one set of rows, and all contestants on them in turn."""

    def __init__(self, arguments: argparse.Namespace, base: Path, device: Any) -> None:
        from newsdesk.config import load_recipe
        from newsdesk.training.loop import EncodedRows

        self.arguments, self.base, self.device = arguments, base, device
        self.precision: Any = "float32" if arguments.rehearse else "bfloat16"
        asked = {"training.epochs": arguments.epochs, "training.compile": arguments.compile}
        self.recipe = load_recipe("seed", asked).recipe
        generator = np.random.default_rng(self.recipe.training.seed)
        lengths = sample_lengths(arguments.rows, arguments.lengths_from, generator)
        ids = [generator.integers(5, 500, length) for length in lengths]
        self.rows = EncodedRows(ids, generator.integers(0, len(CLASSES), arguments.rows))
        self.widest_first = np.argsort(-lengths)

    def results(self) -> dict[str, Any]:
        """All figures. Our run goes on from slice to slice; what is left of it follows without a pause."""
        ours, peers = self.newsdesk(), {name: self.peer(name) for name in PEERS}
        slices: dict[str, list[dict[str, float]]] = {name: [] for name in ("newsdesk", *PEERS)}
        next(ours)
        for _ in range(self.arguments.rounds):
            slices["newsdesk"].append(ours.send(self.arguments.peer_steps))
            for name, take_slice in peers.items():
                slices[name].append(take_slice())
        rest = ours.send(10**9)
        return {
            "device": self.device_name(),
            "rows": self.arguments.rows,
            "epochs": self.arguments.epochs,
            "rehearsal": self.arguments.rehearse,
            "set_up_seconds": rest.pop("set_up_seconds"),
            "newsdesk": _total([*slices["newsdesk"], rest]),
            "slices": slices,
            "ratios": {name: _ratio(slices["newsdesk"], slices[name]) for name in PEERS},
            "engines": {engine: self.step_alone(engine) for engine in self.engines()},
            "ceiling": self.ceiling(),
        }

    def device_name(self) -> str:
        import torch

        return "CPU" if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)

    def engines(self) -> tuple[str, ...]:
        return ENGINES if self.arguments.compile == "on" else ENGINES[:-1]

    def network(self, *, compiled: bool) -> Any:
        import torch

        from newsdesk.model.classifier import build_classifier
        from newsdesk.model.network import Network

        torch.manual_seed(self.recipe.training.seed)
        model = build_classifier(self.base, CLASSES, self.recipe.model, self.recipe.lora)
        return Network(model, self.device, self.precision, compiled=compiled)

    def newsdesk(self) -> Iterator[dict[str, float]]:
        """newsdesk's own loop. Sent a number of steps, it takes them and gives what they took."""
        from newsdesk.runs.log import Step
        from newsdesk.training.loop import EncodedRows, train

        started = time.perf_counter()
        network = self.network(compiled=self.arguments.compile == "on")
        nothing = EncodedRows([], np.zeros(0, np.int64))
        events = train(
            network, self.rows, nothing, self.recipe.training, max_length=self.recipe.model.max_length
        )
        steps = (event for event in events if isinstance(event, Step))
        wanted = yield {}  # type: ignore[misc]
        set_up = time.perf_counter() - started
        while True:
            with Stopwatch(self.device) as watch:
                taken = list(islice(steps, wanted))
            rows, tokens = sum(step.rows for step in taken), sum(step.tokens for step in taken)
            wanted = yield {**watch.figures(len(taken), rows, tokens), "set_up_seconds": set_up}

    def peer(self, name: str) -> Callable[[], dict[str, float]]:
        """Trainer + PEFT on its own copy of the model; each call trains a slice."""
        import torch
        from peft import LoraConfig, TaskType, get_peft_model
        from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback
        from transformers.utils import logging

        from newsdesk.model.tokenizer import pad

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        base: Any = AutoModelForSequenceClassification.from_pretrained(self.base, num_labels=len(CLASSES))
        lora = self.recipe.lora
        adapter = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=lora.rank,
            lora_alpha=int(lora.alpha),
            lora_dropout=lora.dropout,
            target_modules=["query", "value"],
        )
        model = get_peft_model(base, adapter)
        examples = [
            {"input_ids": ids, "labels": label}
            for ids, label in zip(self.rows.token_ids, self.rows.labels, strict=True)
        ]
        width = 249 if name == "notebook" else None

        def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
            ids, mask = pad([row["input_ids"][:width] for row in batch], 1, width)
            labels = torch.tensor([int(row["labels"]) for row in batch])
            return {
                "input_ids": torch.from_numpy(ids),
                "attention_mask": torch.from_numpy(mask),
                "labels": labels,
            }

        warm_up, steps = max(1, self.arguments.peer_steps // 8), self.arguments.peer_steps
        device, count = self.device, {"tokens": 0}

        class Watched(TrainerCallback):
            def on_step_end(self, _arguments: Any, state: Any, _control: Any, **_rest: Any) -> None:
                if state.global_step == warm_up:
                    self.watch = Stopwatch(device).__enter__()
                    count["tokens"] = 0
                elif state.global_step == warm_up + steps:
                    self.watch.__exit__()

        def counted(batch: list[dict[str, Any]]) -> dict[str, Any]:
            count["tokens"] += sum(len(row["input_ids"]) for row in batch)
            return collate(batch)

        def take_slice() -> dict[str, float]:
            watched = Watched()
            with tempfile.TemporaryDirectory() as folder:
                arguments = trainer_arguments(
                    folder,
                    self.recipe.training,
                    warm_up + steps,
                    grouped=name == "grouped",
                    fp16=self.device.type == "cuda",
                    use_cpu=self.device.type == "cpu",
                )
                Trainer(model, arguments, counted, examples, callbacks=[watched]).train()
            return watched.watch.figures(steps, steps * self.recipe.training.batch_size, count["tokens"])

        return take_slice

    def step_alone(self, engine: str) -> dict[str, float]:
        """A slice of steps without loop, events or logs: what the engine itself can do."""
        from newsdesk.training.batches import Batcher
        from newsdesk.training.train_step import StepArithmetic, build_loss, build_optimiser, cuda_graphs

        network = self.network(compiled=engine == "compiled").train()
        training, labels = self.recipe.training, self.rows.labels
        optimiser = build_optimiser(network.model, training)
        loss = build_loss(training, labels, len(CLASSES)).to(self.device)
        capture = (
            None if engine == "eager" else DirectReplay() if self.arguments.rehearse else cuda_graphs(network)
        )
        arithmetic = StepArithmetic(network, loss, optimiser, training.clip, capture)
        batches = Batcher(self.rows.lengths, training.batch_size, seed=0).epoch(0)
        warm_up = min(len(batches) // 2, 4 * self.arguments.peer_steps)
        timed = batches[warm_up : warm_up + self.arguments.peer_steps]

        def take(batch: Any) -> None:
            arithmetic.set_learning_rates(1.0)
            arithmetic.add_gradients([self.rows.token_ids[row] for row in batch], labels[batch], len(batch))
            arithmetic.update()

        for batch in batches[:warm_up]:
            take(batch)
        with Stopwatch(self.device) as watch:
            for batch in timed:
                take(batch)
        tokens = sum(int(self.rows.lengths[batch].sum()) for batch in timed)
        figures = watch.figures(len(timed), sum(map(len, timed)), tokens)
        return {**figures, "recordings": arithmetic.recordings, "engine": network.engine}

    def ceiling(self) -> dict[str, float]:
        """FLOP/s of bare matrix products: at the encoder's own sizes, and at sizes that fill the card."""
        from newsdesk.training.plan import matmul_rate, training_flops_per_token

        model = self.network(compiled=False).model
        config = model.config
        own = (16 * 56, config.hidden_size, config.intermediate_size)
        large = (64, 64, 64) if self.arguments.rehearse else (8192, 8192, 8192)
        return {
            "flops_per_token": training_flops_per_token(model),
            "own_sizes": matmul_rate(own, self.device, self.precision),
            "large": matmul_rate(large, self.device, self.precision),
        }


class DirectReplay:
    """Stands in for CUDA graphs where there is no GPU: replaying is doing the same work again."""

    def run(self, work: Callable[..., Any], arguments: Any) -> Any:
        return work(*arguments)

    def record(self, work: Callable[..., Any], arguments: Any) -> Callable[[], Any]:
        return lambda: work(*arguments)


class Stopwatch:
    """Seconds and peak device memory between two moments at which the device had nothing left to do."""

    def __init__(self, device: Any) -> None:
        self.device, self.peak = device, 0

    def __enter__(self) -> Stopwatch:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_fault: object) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated()
        self.seconds = time.perf_counter() - self.start

    def figures(self, steps: int, rows: int, tokens: int) -> dict[str, float]:
        return {
            "steps": steps,
            "rows": rows,
            "tokens": tokens,
            "seconds": self.seconds,
            "peak_memory": self.peak,
        }


def _total(slices: list[dict[str, float]]) -> dict[str, float]:
    total = {key: sum(part[key] for part in slices) for key in ("steps", "rows", "tokens", "seconds")}
    return {**total, "peak_memory": max(part["peak_memory"] for part in slices)}


def _ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    """Samples a second, ours over theirs: the median over rounds."""
    rates = [[part["rows"] / part["seconds"] for part in parts] for parts in (ours, theirs)]
    return statistics.median(mine / other for mine, other in zip(*rates, strict=True))


def report(results: dict[str, Any]) -> str:
    """The figures as a table."""
    ours, ceiling = results["newsdesk"], results["ceiling"]
    lines = [
        f"{results['device']}: {results['rows']:,} rows x {results['epochs']:g} epochs"
        + (", A REHEARSAL: tiny model, figures mean nothing" if results["rehearsal"] else ""),
        f"whole run {ours['seconds']:.1f} s, after {results['set_up_seconds']:.1f} s to load and compile",
        f"{'':28}{'ms a step':>10}{'samples/s':>11}{'GPU memory':>12}{'newsdesk is':>13}",
    ]

    def line(name: str, figures: dict[str, float], ratio: str = "") -> str:
        rate, step = figures["rows"] / figures["seconds"], 1000 * figures["seconds"] / figures["steps"]
        return f"{name:28}{step:10.2f}{rate:11.0f}{figures['peak_memory'] / 2**30:8.2f} GiB{ratio:>13}"

    lines.append(line("newsdesk, whole run", ours))
    for name, meaning in PEERS.items():
        total, ratio = _total(results["slices"][name]), f"{results['ratios'][name]:.2f} x"
        lines.append(line(f"Trainer + PEFT fp16, {name}", total, ratio))
        lines.append(f"    ({meaning})")
    lines += [line(f"step alone, {name}", figures) for name, figures in results["engines"].items()]
    rate = ours["tokens"] / ours["seconds"] * ceiling["flops_per_token"]
    for name, words in (("own_sizes", "at the encoder's sizes"), ("large", "of large products")):
        lines.append(f"{rate / ceiling[name]:7.1%} of {ceiling[name] / 1e12:.1f} TFLOP/s {words}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
