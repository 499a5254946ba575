"""An evaluated run in a moment: all files that a report is made of, and no weights behind them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from newsdesk.config import load_recipe
from newsdesk.data.examples import Examples
from newsdesk.data.layout import TextLayout
from newsdesk.evaluation.evaluate import evaluate_examples, write_evaluated_rows, write_metrics
from newsdesk.files import write_text
from newsdesk.training.run_folder import Labels, RunFolder

NAMES = ("World", "Sports", "Business", "Sci/Tech")
WORDS = ("markets", "rally", "as", "the", "coach", "resigns", "orbit", "talks")


@dataclass(frozen=True)
class EvaluatedRun:
    """A run, the rows it was evaluated on, and what it said of them."""

    run: RunFolder
    rows: Examples
    probabilities: NDArray[np.float64]


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def build_run(
    path: Path, *, names: Sequence[str] = NAMES, count: int = 400, texts: Sequence[str] = (), steps: int = 50
) -> EvaluatedRun:
    """A run of ``steps`` steps, evaluated on ``count`` rows, the first of which have the ``texts`` given."""
    generator = np.random.default_rng(5)
    labels = np.arange(count) % len(names)
    logits = generator.normal(size=(count, len(names))) + 2.5 * np.eye(len(names))[labels]
    made = [" ".join(generator.choice(WORDS, size=3 + row % 20)) for row in range(len(texts), count)]
    rows = Examples((*texts, *made), labels, tuple(names), "wire-test.csv")
    run = RunFolder(path)
    write_text(run.recipe, load_recipe(None, {"data.train": "wire.csv"}).to_toml())
    run.write_labels(Labels(tuple(names), TextLayout(("text",), None, "none"), 16))
    _write_tokenizer(run.tokenizer / "tokenizer.json")
    write_log(run.log, steps)
    probabilities = softmax(logits)
    evaluation = evaluate_examples(probabilities, rows, names, split="test", model=path.name)
    write_metrics(evaluation, run.metrics)
    write_evaluated_rows(probabilities, rows, names, run.path / "predictions-test.csv")
    run.seal(_facts())
    return EvaluatedRun(run, rows, probabilities)


def write_log(path: Path, steps: int) -> None:
    """A log of so many steps, with a validation halfway and at the end; losses fall from 1 to 0."""
    started = {"steps": steps, "epochs": 2.0, "rows": 800, "validation_rows": 40}
    events = [{"event": "started", **started, "device": "cpu", "precision": "float32", "engine": "fused"}]
    for step in range(1, steps + 1):
        state = {"step": step, "epoch": 2 * step / steps}
        rate = {"loss": 1 - step / steps, "learning_rate": 5e-4 * (1 - step / steps), "gradient_norm": 1.0}
        counts = {"rows": 16, "tokens": 300, "padded_tokens": 320}
        events.append({"event": "step", **state, **rate, **counts})
        if step in (steps // 2, steps):
            scores = {"loss": 0.3, "accuracy": 0.5 + 0.4 * step / steps, "macro_f1": 0.8, "best": True}
            events.append({"event": "validation", **state, **scores})
    lines = [json.dumps(event | {"seconds": 2.0 * number}) for number, event in enumerate(events)]
    write_text(path, "\n".join(lines) + "\n")


def _write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    write_text(path, tokenizer.to_str())


def _facts() -> dict[str, object]:
    return {
        "newsdesk": "0.1.0",
        "versions": {"python": "3.11.0"},
        "base": {"name": "all-MiniLM-L6-v2", "reference": "a/b", "sha256": "ab" * 32, "licence": "mit"},
        "data": {
            "licence": None,
            "train": {"source": "wire.csv", "rows": 800, "sha256": "cd" * 32},
            "validation": {"source": "split off wire.csv", "rows": 40, "sha256": "ef" * 32},
        },
        "training": {"finished": "completed", "processes": 1},
    }
