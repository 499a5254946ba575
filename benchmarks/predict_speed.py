"""Prediction speed of newsdesk beside transformers, onnxruntime and optimum: same texts, taking turns.

    python benchmarks/predict_speed.py                          # both shapes, random heads
    python benchmarks/predict_speed.py --shape minilm --run RUN # a trained classifier, and its accuracy
    python benchmarks/predict_speed.py --quick                  # few texts: a look whether it runs

| contestant        | what it is                                                                     |
|-------------------|--------------------------------------------------------------------------------|
| newsdesk-int8     | newsdesk's exported model; batches by length and tokens                              |
| newsdesk-float32  | the same in float32                                                            |
| pipeline-1        | transformers' pipeline, text by text                                           |
| pipeline          | the same at its best batch of those tried in the run, texts as they come       |
| pipeline-bfloat16 | the same in bfloat16, where the processor has it                               |
| onnxruntime       | PyTorch's export in an onnxruntime session without settings, sorted, 32 a batch |
| optimum-int8      | optimum's dynamic int8 in the pipeline, at its best batch; needs --optimum-python |
| stand-in-int8     | without it: the same settings by onnxruntime's quantize_dynamic, best batch    |

Only when named: newsdesk-int8-together, whose threads share one large batch instead of a small one for each.

Shape roberta-base has random weights and needs no download. Texts a second are tokens a second by the mean
length of the texts, so that peers may classify a quarter of a turn's texts and win nothing by which. A single
text is one call. A cold start is a whole process: interpreter, imports, model, one text.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from newsdesk.data.examples import Examples
from newsdesk.data.labelled import to_examples
from newsdesk.data.load import load_split
from newsdesk.evaluation.rows import evaluation_rows
from newsdesk.files import write_json
from newsdesk.model.tokenizer import TextTokenizer
from newsdesk.runs.folder import open_run

sys.path.insert(0, str(Path(__file__).parent))
from predict_contestants import CONTESTANTS, has_vnni
from predict_figures import (
    Turn,
    cold_table,
    latency_ratio,
    quality,
    quality_table,
    single_text,
    speed_ratio,
    speed_table,
    texts_per_second,
)
from predict_models import prepare_models
from side_by_side import AG_NEWS, Contestant, describe_machine, spread

OURS, EXACT, TOGETHER = "newsdesk-int8", "newsdesk-float32", "newsdesk-int8-together"
BY_BEST_BATCH = ("pipeline", "pipeline-bfloat16", "optimum-int8", "stand-in-int8")
BATCHES = (1, 8, 32, 64)
FIXED_BATCHES = {OURS: 0, EXACT: 0, TOGETHER: 0, "pipeline-1": 1, "onnxruntime": 32}  # 0: by itself
SORTED = (OURS, EXACT, TOGETHER, "onnxruntime")
FILES = {
    OURS: "onnx-int8",
    EXACT: "onnx-fp32",
    TOGETHER: "onnx-int8",
    "onnxruntime": "traced/model.onnx",
    "optimum-int8": "optimum",
    "stand-in-int8": "traced/model_quantized.onnx",
}
"""What a contestant needs on disk, within the folder of models; all others need the merged model."""

PIPELINE_SCRIPT = """import sys
from transformers import pipeline
print(pipeline("text-classification", model=sys.argv[1], device="cpu")(sys.argv[2]))"""
OPTIMUM_SCRIPT = """import sys
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer, pipeline
model = ORTModelForSequenceClassification.from_pretrained(sys.argv[1], file_name="model_quantized.onnx")
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
print(pipeline("text-classification", model=model, tokenizer=tokenizer)(sys.argv[2]))
"""
NO_BFLOAT16 = (
    "Without pipeline-bfloat16: this processor has no bfloat16 instructions and would emulate them. "
    "--contestants pipeline-bfloat16 runs it all the same."
)
STAND_IN = "stand-in-int8 stands in for optimum, for which --optimum-python was not given."


def main() -> None:
    arguments = parse_arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    results = []
    with tempfile.TemporaryDirectory(prefix="predict-speed-") as folder:
        for shape in arguments.shapes:
            models = (arguments.models or Path(folder)) / Path(shape).name
            results.append(measure(shape, arguments, models, Path(folder)))
    packages = ("onnxruntime", "tokenizers", "transformers", "torch")
    machine = {**describe_machine(*packages), "vnni": has_vnni()}
    write_json(arguments.json, {"machine": machine, "shapes": results})
    print(f"\nwritten to {arguments.json}")


def measure(shape: str, arguments: argparse.Namespace, models: Path, logs: Path) -> dict[str, Any]:
    """Everything of one shape that was asked for, printed and returned."""
    examples = test_rows(arguments.data, arguments.run)
    max_length = open_run(arguments.run).labels.max_length if arguments.run else arguments.max_length
    # A process apart: what this one holds in memory would count for every contestant.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        job = (models, shape, examples.label_names, max_length, arguments.run)
        apart.submit(prepare_models, *job).result()
        native = apart.submit(bfloat16_is_native).result()
    names = arguments.contestants or default_contestants(native, arguments.optimum_python)
    lengths = TextTokenizer.from_folder(models / "merged", max_length).lengths(examples.texts)
    tokens_per_text = statistics.mean(lengths)
    print(
        f"\n{shape}: {len(lengths):,} texts of {arguments.data.name}, {tokens_per_text:.1f} tokens on average"
    )
    result: dict[str, Any] = {"shape": shape, "data": arguments.data.name, "tokens_per_text": tokens_per_text}
    stage = Stage(models, logs, arguments.optimum_python)
    if "cold" in arguments.parts:
        result["cold"] = cold_starts(names, stage, examples.texts[0], arguments.starts)
        print("\n" + cold_table(result["cold"], OURS))
    if {"speed", "accuracy"} & set(arguments.parts):
        batches = {n: batch_of(n, stage, examples.texts, arguments) for n in names}
        with ExitStack() as opened:
            contestants = {n: opened.enter_context(closing(stage.open(n))) for n in names}
            if "speed" in arguments.parts:
                rows = list(zip(examples.texts, lengths, strict=True))
                result["speed"] = speed(contestants, batches, rows, arguments, stage)
                print("\n" + speed_table(result["speed"], OURS))
            if "accuracy" in arguments.parts and arguments.run:
                result["quality"] = accuracy(contestants, batches, examples)
                print("\n" + quality_table(result["quality"]))
    if not native and not arguments.contestants:
        print("\n" + NO_BFLOAT16)
    if "stand-in-int8" in names:
        print("\n" + STAND_IN)
    return result


class Stage:
    """Where contestants come from: their models, their logs, and the Python of each."""

    def __init__(self, models: Path, logs: Path, optimum_python: str | None) -> None:
        self.models, self._logs, self._optimum = models, logs, optimum_python

    def open(self, name: str) -> Contestant:
        """A contestant in a process of its own."""
        script = Path(__file__).with_name("predict_contestants.py")
        return Contestant(name, [self._python(name), script, name, self.models], self._logs / f"{name}.log")

    def one_text(self, name: str, text: str) -> list[str] | None:
        """The command that classifies one text; None where there is no usual one."""
        folder = str(self.models / FILES.get(name, "merged"))
        if name in (OURS, EXACT):
            return [sys.executable, "-m", "newsdesk", "predict", folder, text]
        scripts = {"pipeline": PIPELINE_SCRIPT, "optimum-int8": OPTIMUM_SCRIPT}
        return [self._python(name), "-c", scripts[name], folder, text] if name in scripts else None

    def bytes_on_disk(self, name: str) -> int:
        """Of the exported model, tokenizer included where it lies beside it."""
        path = self.models / FILES.get(name, "merged")
        return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())

    def _python(self, name: str) -> str:
        if name != "optimum-int8":
            return sys.executable
        if self._optimum is None:
            raise SystemExit("optimum-int8 needs --optimum-python PATH of an environment with optimum-onnx")
        return self._optimum


def classified(
    contestant: Contestant, texts: Sequence[str], batch: int, *, one_by_one: bool = False
) -> dict[str, Any]:
    return contestant.ask({"texts": list(texts), "batch": batch, "one_by_one": one_by_one})


def batch_of(name: str, stage: Stage, texts: Sequence[str], arguments: argparse.Namespace) -> int:
    """A contestant's fixed batch size, or the one that is fastest on texts of this run.

    It is tried in a process apart, so that the contestant's peak memory is that of its own batches.
    """
    if name not in BY_BEST_BATCH:
        return FIXED_BATCHES[name]
    if "speed" not in arguments.parts:
        return 8
    sample = random.Random(0).sample(texts, min(len(texts), arguments.trial))
    with closing(stage.open(name)) as contestant:
        classified(contestant, sample[:8], 8)
        seconds = {batch: sum(classified(contestant, sample, batch)["seconds"]) for batch in BATCHES}
    return min(seconds, key=lambda batch: seconds[batch])


def speed(
    contestants: Mapping[str, Contestant],
    batches: Mapping[str, int],
    rows: Sequence[tuple[str, int]],
    arguments: argparse.Namespace,
    stage: Stage,
) -> dict[str, Any]:
    """Rounds of turns, and the figures of each contestant."""
    turns: dict[str, list[Turn]] = {name: [] for name in contestants}
    shuffled = random.Random(1)
    longest = [text for text, _ in sorted(rows, key=lambda row: -row[1])[:32]]
    for name, contestant in contestants.items():
        classified(contestant, longest, batches[name])  # all have met the widest batch
    memory = {}
    for number in range(arguments.rounds):
        chosen = shuffled.sample(rows, min(len(rows), arguments.texts))
        singles = [text for text, _ in shuffled.sample(rows, min(len(rows), arguments.singles))]
        for name, contestant in contestants.items():
            # Sorting pays in long windows; who does not sort is as fast in short ones.
            part = chosen if name in SORTED else chosen[: -(-len(chosen) // 4)]
            bulk = classified(contestant, [text for text, _ in part], batches[name])
            memory[name] = bulk["peak_memory"]
            alone = classified(contestant, singles, 1, one_by_one=True)["seconds"]
            turns[name].append(Turn(sum(n for _, n in part), sum(bulk["seconds"]), tuple(alone)))
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    tokens_per_text = statistics.mean(length for _, length in rows)
    found: dict[str, Any] = {}
    for name, taken in turns.items():
        found[name] = {
            "batch": batches[name],
            "texts_per_second": texts_per_second(taken, tokens_per_text),
            "single": single_text(taken),
            "peak_memory": memory[name],
            "bytes_on_disk": stage.bytes_on_disk(name),
            "turns": [vars(turn) for turn in taken],
        }
        if OURS in turns and name != OURS:
            found[name]["bulk_ratio"] = speed_ratio(turns[OURS], taken)
            found[name]["latency_ratio"] = latency_ratio(turns[OURS], taken)
    return found


def accuracy(
    contestants: Mapping[str, Contestant], batches: Mapping[str, int], examples: Examples
) -> dict[str, Any]:
    """Each contestant's labels of all texts against the true ones and against newsdesk's float32."""
    labels = {
        name: classified(contestant, examples.texts, batches[name])["labels"]
        for name, contestant in contestants.items()
    }
    assert examples.labels is not None
    truth = [examples.label_names[label] for label in examples.labels]
    reference = labels.get(EXACT) or next(iter(labels.values()))
    return {name: quality(found, truth, reference) for name, found in labels.items()}


def cold_starts(names: Sequence[str], stage: Stage, text: str, starts: int) -> dict[str, Any]:
    """Whole processes in turns, after one of each that is not counted: files are in memory then."""
    if "optimum-int8" in names and not (stage.models / FILES["optimum-int8"]).is_dir():
        with closing(stage.open("optimum-int8")) as optimum:
            classified(optimum, [text], 1)  # exports and quantises
    commands = {name: command for name in names if (command := stage.one_text(name, text))}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    memory = {}
    for number in range(starts + 1):
        for name, command in commands.items():
            wall, memory[name] = whole_process(command)
            if number:
                seconds[name].append(wall)
    found: dict[str, Any] = {}
    for name, walls in seconds.items():
        over = spread(walls)
        found[name] = {"seconds": over.pop("median"), **over, "peak_memory": memory[name], "starts": starts}
        if OURS in seconds and name != OURS:
            pairs = zip(walls, seconds[OURS], strict=True)
            found[name]["ratio"] = spread([theirs / ours for theirs, ours in pairs])
    return found


def whole_process(command: Sequence[str]) -> tuple[float, int]:
    """Seconds from start to end, and bytes at its height."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = status
    if status:
        raise SystemExit(f"{' '.join(command[:4])} ... failed")
    return wall, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_rows(data: Path, run: Path | None) -> Examples:
    """Labelled rows; as the run reads them, where there is one."""
    if run is not None:
        return evaluation_rows(open_run(run), str(data), "test")
    split = load_split(str(data), "test")
    return to_examples(split.table, labelled=True)


def bfloat16_is_native() -> bool:
    from newsdesk.model.network import cpu_has_bfloat16

    return cpu_has_bfloat16()


def default_contestants(native_bfloat16: bool, optimum_python: str | None) -> list[str]:
    """All that this machine and the flags allow."""
    without = {TOGETHER, "stand-in-int8" if optimum_python else "optimum-int8"}
    return [
        name for name in CONTESTANTS if name not in without and (native_bfloat16 or "bfloat16" not in name)
    ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="both", help="roberta-base, minilm, both, or a base's folder")
    parser.add_argument("--run", type=Path, help="a trained run, in the place of minilm's random head")
    parser.add_argument("--data", type=Path, help="else AG News' test beside the checkout, else reuters-r8")
    parser.add_argument("--max-length", type=int, default=128, help="where texts are cut, without --run")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS)
    parser.add_argument("--parts", nargs="+", choices=("speed", "cold", "accuracy"))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--texts", type=int, help="in one turn")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 64 texts; else 5 of 512")
    parser.add_argument("--optimum-python", metavar="PATH", help="of an environment with optimum-onnx")
    parser.add_argument("--models", type=Path, help="keep the prepared models here for the next run")
    parser.add_argument("--json", type=Path, default=Path("build/predict_speed.json"))
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.rounds = arguments.rounds or (2 if quick else 5)
    arguments.texts = arguments.texts or (64 if quick else 512)
    arguments.singles, arguments.starts, arguments.trial = (8, 2, 32) if quick else (50, 6, 96)
    arguments.parts = arguments.parts or ["speed", "cold", "accuracy"]
    if arguments.run and arguments.shape == "both":
        arguments.shape = "minilm"
    arguments.shapes = ["roberta-base", "minilm"] if arguments.shape == "both" else [arguments.shape]
    ag_news = AG_NEWS / "test.csv"
    arguments.data = arguments.data or (ag_news if ag_news.is_file() else Path("reuters-r8"))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    return arguments


if __name__ == "__main__":
    main()
