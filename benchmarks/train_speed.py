"""Training speed of newsdesk beside transformers' Trainer + PEFT: same rows, same adapters, taking turns.

    python benchmarks/train_speed.py                   # both shapes
    python benchmarks/train_speed.py --quick           # fewer steps

| contestant         | what it is                                                             |
|--------------------|------------------------------------------------------------------------|
| notebook           | Trainer + PEFT, float32, every row padded to 249 tokens, as published  |
| dynamic            | Trainer + PEFT, float32, padded to the batch's longest row             |
| grouped            | Trainer + PEFT, float32, batches of like length                        |
| grouped-bfloat16   | the same under bfloat16 autocast                                       |
| newsdesk           | newsdesk's loop and network, float32                                   |
| newsdesk-bfloat16  | the same with bfloat16 weights                                         |

To see what makes the difference, name with --contestants what newsdesk is without one of its parts:

| contestant             | what it is                                                         |
|------------------------|--------------------------------------------------------------------|
| newsdesk-not-fused     | its loop over transformers + PEFT                                  |
| newsdesk-frees-memory  | the allocator as glibc has it, which gives memory back every step  |

Shape roberta-base has random weights and needs no download; its texts are cut into tokens by MiniLM's
vocabulary. Samples a second are tokens a second by the mean length of all rows, so that a contestant whose
turns met shorter rows wins nothing by it. The ceiling is this machine's rate of plain matrix products of
the encoder's shapes, measured between the turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from newsdesk.config import DataSection
from newsdesk.data.load import load_training_data
from newsdesk.files import write_json
from newsdesk.model.catalog import resolve_base, resolve_config
from newsdesk.model.tokenizer import TextTokenizer

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import AG_NEWS, Contestant, describe_machine, markdown_table, spread
from speed_contestants import OURS, PEERS, seed_recipe, write_rows

CONTESTANTS = (*PEERS, *OURS)
DEFAULT = (*PEERS, "newsdesk", "newsdesk-bfloat16")
RATIO = "{median:.2f}x ({low:.2f}-{high:.2f}) / {memory:.2f}x"
NO_BFLOAT16 = (
    "Without the bfloat16 contestants: this processor has no bfloat16 instructions and would emulate them, "
    "several times slower than float32. --contestants runs them all the same. Ratios are told for float32."
)


@dataclass(frozen=True)
class Shape:
    """A base model to train, and what one token of it costs.

    Attributes:
        name: as given.
        base: folder of its weights.
        tokenizer: folder of the tokenizer.
        flops_per_token: of forward products and input gradients.
        products: (inner, columns) of the encoder's matrix products, forward and backward.
    """

    name: str
    base: str
    tokenizer: str
    flops_per_token: int
    products: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Summary:
    """One contestant over all rounds; rates are medians a second.

    Attributes:
        samples_per_second: texts.
        tokens_per_second: without padding.
        padding_share: of all tokens computed in its turns.
        peak_memory: bytes, of its whole process.
        ceiling_share: of the machine's matrix products in its precision.
    """

    samples_per_second: float
    tokens_per_second: float
    padding_share: float
    peak_memory: int
    ceiling_share: float


def main() -> None:
    arguments = parse_arguments()
    results = []
    with tempfile.TemporaryDirectory(prefix="train-speed-") as folder:
        for name in arguments.shapes:
            # A process apart: what this one holds in memory would count for every contestant.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as machine:
                results.append(measure(name, arguments, Path(folder), machine))
    write_json(
        arguments.json, {"machine": describe_machine("torch", "transformers", "peft"), "shapes": results}
    )
    print(f"\nwritten to {arguments.json}")


def measure(
    name: str, arguments: argparse.Namespace, folder: Path, machine: ProcessPoolExecutor
) -> dict[str, Any]:
    """Let all contestants train one shape, print the table, and return everything measured."""
    shape, native = machine.submit(prepare_shape, name, folder / Path(name).name).result()
    names = arguments.contestants or [n for n in DEFAULT if native or "bfloat16" not in n]
    recipe = seed_recipe(arguments.max_length)
    examples = load_training_data(
        DataSection(train=arguments.data, validation_share=0.0, train_rows=arguments.rows), seed=42
    ).train
    rows = TextTokenizer.from_folder(Path(shape.tokenizer), recipe.model.max_length).encode(examples.texts)
    write_rows(folder / "rows.npz", (rows, examples.labels))
    tokens_per_row = statistics.mean(map(len, rows))
    print(f"\n{name}: {len(rows):,} rows of {arguments.data_name}, {tokens_per_row:.1f} tokens on average")
    if not native and not arguments.contestants:
        print(NO_BFLOAT16)
    job = {"base": shape.base, "rows": str(folder / "rows.npz"), "label_names": examples.label_names}
    job["max_length"] = recipe.model.max_length
    products = (round(recipe.training.batch_size * tokens_per_row), shape.products)
    precisions = sorted({precision_of(n) for n in names})

    def ceilings() -> dict[str, float]:
        return {p: machine.submit(product_rate, *products, p).result() for p in precisions}

    turns, ceiling = take_turns(names, job, folder, arguments, ceilings)
    summaries = {
        n: summarise(
            turns[n], tokens_per_row, shape.flops_per_token, [rates[precision_of(n)] for rates in ceiling]
        )
        for n in names
    }
    ratios = {
        ours: {n: ratio(turns[ours], turns[n]) for n in names}
        for ours in ("newsdesk", "newsdesk-bfloat16")
        if ours in names
    }
    print(table(summaries, ratios))
    return {
        "shape": name,
        "data": arguments.data_name,
        "rows": len(rows),
        "tokens_per_row": tokens_per_row,
        "ceiling": {p: statistics.median(rates[p] for rates in ceiling) for p in precisions},
        "contestants": {n: asdict(summary) for n, summary in summaries.items()},
        "ratios": ratios,
        "turns": turns,
    }


def take_turns(
    names: Sequence[str], job: dict[str, Any], folder: Path, arguments: argparse.Namespace, ceilings: Any
) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, float]]]:
    """Rounds of turns: each contestant's, by name, and the machine's rates by precision."""
    contestants = []
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    ceiling = []
    try:
        contestants += [start(name, job, folder) for name in names]
        for contestant in contestants:
            contestant.ask(1)  # the widest batch
            contestant.ask(1)  # the first of its own order, behind which all is set up
        for number in range(arguments.rounds):
            ceiling.append(ceilings())
            for contestant in contestants:
                # A padded batch takes several times as long: fewer of them make a turn.
                steps = max(1, arguments.steps // 4) if contestant.name == "notebook" else arguments.steps
                turns[contestant.name].append(contestant.ask(steps))
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    finally:
        for contestant in contestants:
            contestant.close()
    return turns, ceiling


def start(name: str, job: dict[str, Any], folder: Path) -> Contestant:
    """A contestant in its process; its answers tell work done, seconds, and its peak memory so far."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"contestant": name, **job}), encoding="utf-8")
    script = Path(__file__).with_name("speed_contestants.py")
    return Contestant(name, [sys.executable, script, path], folder / f"{name}.log")


def summarise(
    turns: list[dict[str, Any]], tokens_per_row: float, flops_per_token: int, ceiling: list[float]
) -> Summary:
    """Medians over a contestant's turns; ``ceiling`` is in FLOP/s, one of each round."""
    rate = statistics.median(map(tokens_per_second, turns))
    computed = sum(turn["padded_tokens"] for turn in turns)
    shares = (tokens_per_second(t) * flops_per_token / c for t, c in zip(turns, ceiling, strict=True))
    return Summary(
        samples_per_second=rate / tokens_per_row,
        tokens_per_second=rate,
        padding_share=1 - sum(turn["tokens"] for turn in turns) / computed,
        peak_memory=turns[-1]["peak_memory"],
        ceiling_share=statistics.median(shares),
    )


def tokens_per_second(turn: dict[str, Any]) -> float:
    """Of real tokens, padding not counted."""
    return float(turn["tokens"] / turn["seconds"])


def ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, float]:
    """How many times as fast as a peer: median, least and most of the rounds; and memory against its."""
    rates = [tokens_per_second(a) / tokens_per_second(b) for a, b in zip(ours, theirs, strict=True)]
    memory = ours[-1]["peak_memory"] / theirs[-1]["peak_memory"]
    return {**spread(rates), "memory": memory}


def table(summaries: dict[str, Summary], ratios: dict[str, dict[str, dict[str, float]]]) -> str:
    """One line a contestant; one column for each of ours tells how it stands to that line."""
    heads = ["contestant", "samples/s", "tokens/s", "padding", "peak memory", "of ceiling"]
    heads += [f"{ours} is / in memory" for ours in ratios]
    lines = []
    for name, found in summaries.items():
        lines.append(
            [
                name,
                f"{found.samples_per_second:.2f}",
                f"{found.tokens_per_second:.0f}",
                f"{found.padding_share:.1%}",
                f"{found.peak_memory / 1e9:.2f} GB",
                f"{found.ceiling_share:.0%}",
                *(RATIO.format(**by[name]) for by in ratios.values()),
            ]
        )
    return markdown_table(heads, lines)


def precision_of(contestant: str) -> str:
    return "bfloat16" if contestant.endswith("bfloat16") else "float32"


def prepare_shape(name: str, folder: Path) -> tuple[Shape, bool]:
    """Fetch or make the base, and tell its cost; and whether this processor multiplies bfloat16."""
    from transformers import AutoConfig, AutoModel

    from newsdesk.model.classifier import outline_classifier
    from newsdesk.model.network import cpu_has_bfloat16
    from newsdesk.training.plan import training_flops_per_token

    if name == "roberta-base":
        config = resolve_config(name)
        AutoModel.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)
        tokenizer = resolve_base("all-MiniLM-L6-v2").path
    else:
        name = "all-MiniLM-L6-v2" if name == "minilm" else name
        config, folder = resolve_config(name), resolve_base(name).path
        tokenizer = folder
    recipe = seed_recipe(max_length=128)
    flops = training_flops_per_token(outline_classifier(config, 2, recipe.model, recipe.lora))
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    forward = ((hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden))
    products = forward + tuple((columns, rows) for rows, columns in forward)
    return Shape(name, str(folder), str(tokenizer), flops, products), cpu_has_bfloat16()


def product_rate(rows: int, products: Sequence[tuple[int, int]], precision: Any) -> float:
    """FLOP/s of one product of each shape (rows, inner) x (inner, columns), one after the other."""
    import torch

    from newsdesk.training.plan import matmul_rate

    cpu = torch.device("cpu")
    rates = [matmul_rate((rows, *product), cpu, precision, seconds=0.15) for product in products]
    return over_all_products(products, rates)


def over_all_products(products: Sequence[tuple[int, int]], rates: Sequence[float]) -> float:
    """The rate of all products together, each at its own."""
    sizes = [inner * columns for inner, columns in products]
    return sum(sizes) / sum(size / rate for size, rate in zip(sizes, rates, strict=True))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="both", help="roberta-base, minilm, both, or a base's folder")
    parser.add_argument("--data", help="file or folder; else AG News beside the checkout, else reuters-r8")
    parser.add_argument("--rows", type=int, default=4096, help="use only so many")
    parser.add_argument("--max-length", type=int, default=249, help="where texts are cut")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--steps", type=int, help="in one turn")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS)
    parser.add_argument("--quick", action="store_true", help="2 rounds of 2 steps; else 5 of 3")
    parser.add_argument("--json", type=Path, default=Path("build/train_speed.json"))
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 5)
    arguments.steps = arguments.steps or (2 if arguments.quick else 3)
    arguments.shapes = ["roberta-base", "minilm"] if arguments.shape == "both" else [arguments.shape]
    arguments.data = arguments.data or (str(AG_NEWS) if AG_NEWS.is_dir() else "reuters-r8")
    arguments.data_name = Path(arguments.data).name
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    return arguments


if __name__ == "__main__":
    main()
