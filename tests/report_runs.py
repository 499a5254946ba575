"""An evaluated run in a moment: all files that a report is made of, and no weights behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from newsdesk.config import load_recipe
from newsdesk.data.columns import TextLayout
from newsdesk.data.examples import Examples
from newsdesk.evaluation.evaluate import evaluate_examples, write_metrics
from newsdesk.evaluation.predicted_rows import write_evaluated_rows
from newsdesk.files import write_text
from newsdesk.runs.folder import RunFolder
from newsdesk.runs.labels import Labels
from newsdesk.runs.log import Event, EventLog, Started, Step, Validation
from newsdesk.runs.manifest import SPLIT_OFF, BaseFacts, DataFacts, Manifest, RowFacts, TrainingFacts

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
    run.seal(_manifest())
    return EvaluatedRun(run, rows, probabilities)


def write_log(path: Path, steps: int) -> None:
    """A log of so many steps, with a validation halfway and at the end; losses fall from 1 to 0."""
    events: list[Event] = [Started(steps, 2.0, 800, 200, "cpu", "float32", "fused", 100)]
    for step in range(1, steps + 1):
        loss, epoch = 1 - step / steps, 2 * step / steps
        events.append(Step(step, epoch, loss, 5e-4 * loss, 1.0, 16, 300, 320))
        if step in (steps // 2, steps):
            accuracy = 0.5 + 0.4 * step / steps
            events.append(
                Validation(
                    step, epoch, 0.3, accuracy, 0.8, best=True, rows=100, macro_f1_classes=3, classes=4
                )
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with EventLog(path) as log:
        for event in events:
            log.write(event)


def _write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    write_text(path, tokenizer.to_str())


def _manifest() -> Manifest:
    return Manifest(
        newsdesk="0.1.0",
        versions={"python": "3.11.0"},
        base=BaseFacts("all-MiniLM-L6-v2", "a/b", "ab" * 32, "mit"),
        seed=42,
        data=DataFacts(
            None,
            RowFacts("wire.csv", 800, "cd" * 32),
            RowFacts(f"{SPLIT_OFF}wire.csv", 40, "ef" * 32),
        ),
        training=TrainingFacts(
            "completed",
            50,
            2.0,
            50,
            0.06,
            remarks=("no validation row for 1 of 4 classes: <b>rare</b> (1 row)",),
        ),
    )
