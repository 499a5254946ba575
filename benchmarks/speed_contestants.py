"""The contestants of train_speed.py: each trains in a process of its own and stands still between its turns.

    python speed_contestants.py JOB      a line on stdin, the number of steps, gets one JSON line on stdout

A process of its own gives each its own peak memory. Each first takes one step on the longest rows there are,
so that all have met the widest batch, and then goes through all rows in the order its own sampler gives.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from newsdesk.config import Recipe, load_recipe
from newsdesk.model.tokenizer import TokenIds, pad

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import answers, peak_memory
from trainer_recipe import peft_classifier, trainer_arguments

PEERS: dict[str, dict[str, Any]] = {
    "notebook": {"pads_to_max_length": True},
    "dynamic": {},
    "grouped": {"groups_by_length": True},
    "grouped-bfloat16": {"groups_by_length": True, "bf16": True},
}
OURS: dict[str, dict[str, Any]] = {
    "newsdesk": {},
    "newsdesk-bfloat16": {"precision": "bfloat16"},
    "newsdesk-not-fused": {"fuses": False},
    "newsdesk-frees-memory": {"keeps_memory": False},
}
ENDLESS = 1_000_000
"""Steps of the schedule: more than a benchmark takes."""

Rows = tuple[list[TokenIds], Any]


class Turns:
    """Counts a contestant's steps, and holds it still when those asked for are done."""

    def __init__(self, requests: TextIO, replies: TextIO) -> None:
        self.requests, self.replies = requests, replies
        self.wait()

    def wait(self) -> None:
        """Return when steps are asked for; end the process when nobody will ask again."""
        line = self.requests.readline()
        if not line:
            raise SystemExit
        self.remaining = int(line)
        self.done = {"rows": 0, "tokens": 0, "padded_tokens": 0}
        self.start = time.perf_counter()

    def count(self, **work: int) -> None:
        """Add rows, tokens of these rows and computed tokens, padding included."""
        for name, amount in work.items():
            self.done[name] += amount

    def end_step(self) -> None:
        """After the last step asked for: say what was done, and wait."""
        self.remaining -= 1
        if not self.remaining:
            facts = {"seconds": time.perf_counter() - self.start, "peak_memory": peak_memory(), **self.done}
            print(json.dumps(facts), file=self.replies, flush=True)
            self.wait()


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    rows = read_rows(Path(job["rows"]))
    turns = Turns(sys.stdin, answers())
    (train_newsdesk if job["contestant"] in OURS else train_peer)(job, rows, turns)


def seed_recipe(max_length: int) -> Recipe:
    """The reference job's adapters and optimiser. BERT's pooler stays frozen, as PEFT leaves it."""
    flags = {"model.max_length": max_length, "model.train_pooler": False, "training.validate_every": 0}
    return load_recipe("seed", flags, ["training.device=cpu", f"training.epochs={ENDLESS}"]).recipe


def train_newsdesk(job: dict[str, Any], rows: Rows, turns: Turns) -> None:
    """What `newsdesk train` does but for its files: its loop over its network."""
    import torch

    from newsdesk.model.classifier import build_classifier
    from newsdesk.model.encoder import keep_freed_memory
    from newsdesk.model.network import Network
    from newsdesk.runs.log import Step
    from newsdesk.training.loop import EncodedRows, train

    recipe, how = seed_recipe(job["max_length"]), OURS[job["contestant"]]
    if how.get("keeps_memory", True):
        keep_freed_memory()
    torch.manual_seed(recipe.training.seed)
    model = build_classifier(Path(job["base"]), job["label_names"], recipe.model, recipe.lora)
    network = Network(model, torch.device("cpu"), how.get("precision", "float32"))
    if not how.get("fuses", True):
        network._fused = None

    def steps(part: Rows, training: Any) -> Iterator[Step]:
        none = EncodedRows([], np.zeros(0, np.int64))
        events = train(network, EncodedRows(*part), none, training, max_length=job["max_length"])
        return (event for event in events if isinstance(event, Step))

    once = recipe.training.model_copy(update={"epochs": 1.0})
    widest = longest(rows, recipe.training.batch_size)
    for step in chain(steps(widest, once), steps(rows, recipe.training)):
        turns.count(rows=step.rows, tokens=step.tokens, padded_tokens=step.padded_tokens)
        turns.end_step()


def train_peer(job: dict[str, Any], rows: Rows, turns: Turns) -> None:
    """Transformers' own Trainer over a peft model."""
    import torch
    from transformers import Trainer, TrainerCallback

    recipe, how = seed_recipe(job["max_length"]), PEERS[job["contestant"]]
    torch.manual_seed(recipe.training.seed)
    model = peft_classifier(job["base"], len(job["label_names"]), recipe)

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        width = job["max_length"] if how.get("pads_to_max_length") else None
        ids, mask = pad([example["input_ids"] for example in examples], model.config.pad_token_id, width)
        labels = np.array([example["labels"] for example in examples])
        arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def count(_model: Any, _arguments: Any, inputs: dict[str, Any]) -> None:
        mask = inputs["attention_mask"]
        turns.count(rows=len(mask), tokens=int(mask.sum()), padded_tokens=mask.numel())

    class EndStep(TrainerCallback):
        def on_step_end(self, *_arguments: Any, **_state: Any) -> None:
            turns.end_step()

    model.register_forward_pre_hook(count, with_kwargs=True)
    with tempfile.TemporaryDirectory() as folder:
        for part, steps in ((longest(rows, recipe.training.batch_size), 1), (rows, ENDLESS)):
            rows_of_part = zip(*part, strict=True)
            examples: Any = [{"input_ids": ids, "labels": int(label)} for ids, label in rows_of_part]
            grouped, bf16 = how.get("groups_by_length", False), how.get("bf16", False)
            arguments = trainer_arguments(
                folder, recipe.training, steps, grouped=grouped, bf16=bf16, use_cpu=True
            )
            Trainer(model, arguments, collate, examples, callbacks=[EndStep()]).train()


def read_rows(path: Path) -> Rows:
    """Token ids of each row and class ids, as `write_rows` laid them down."""
    with np.load(path) as arrays:
        return np.split(arrays["token_ids"], arrays["ends"][:-1]), arrays["labels"]


def write_rows(path: Path, rows: Rows) -> None:
    """Lay rows down for the contestants' processes."""
    ends = np.cumsum([len(ids) for ids in rows[0]])
    np.savez(path, token_ids=np.concatenate(rows[0]), ends=ends, labels=rows[1])


def longest(rows: Rows, count: int) -> Rows:
    """The rows with most tokens: the batch that decides peak memory."""
    chosen = sorted(range(len(rows[0])), key=lambda row: -len(rows[0][row]))[:count]
    return [rows[0][row] for row in chosen], rows[1][chosen]


if __name__ == "__main__":
    main()
