"""Accuracy against seconds: newsdesk's recipes, transformers + peft as published, and what needs no training.

    python benchmarks/time_to_accuracy.py                                    # 4,000 rows of AG News, 2 epochs
    python benchmarks/time_to_accuracy.py --rows 20000 --contestants published best --recipe mine.toml
    python benchmarks/time_to_accuracy.py --data reuters-r8 --rows 5000 --epochs 1

Every contestant trains on the same rows, one after the other, each in a process of its own, and is measured
at several moments on rows that none learned from: split off the training rows, or with --measure test the
test split, for final figures. Its clock runs from texts to weights: tokenising, building the model, steps. It
stands still while packages are imported and while accuracy is measured. Prints a table; writes every moment
to OUT.csv, all else to OUT.json, and the curves to OUT.svg and OUT.png.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.config import Recipe, load_recipe
from newsdesk.data.examples import Examples
from newsdesk.data.load import first_rows, load_split, load_training_data
from newsdesk.errors import UserError
from newsdesk.metrics import wilson_interval
from newsdesk.model.catalog import resolve_base

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import AG_NEWS, describe_machine, markdown_table
from trainer_recipe import peft_classifier, trainer_arguments

Labels = NDArray[np.int64]

MOMENTS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
"""Shares of a training after which it is measured."""
SHARES = (0.125, 0.25, 0.5, 1.0)
"""Shares of the rows that models without steps learn from, one after the other."""
SHOTS = (8, 32)
"""Rows of each class that SetFit learns from: its number of pairs grows with their square."""
TARGET = "published"


@dataclass(frozen=True)
class Job:
    """What all contestants are given."""

    data: str
    normaliser: str
    rows: int
    measure: str
    measured: int
    base: str
    epochs: float | None
    peer_epochs: float
    peer_length: int
    seed: int


@dataclass
class Clock:
    """Seconds of work: it stands still while something is measured."""

    seconds: float = 0.0
    _since: float = field(default_factory=time.perf_counter)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        self.seconds += time.perf_counter() - self._since
        yield
        self._since = time.perf_counter()


@dataclass
class Curve:
    """One contestant: a moment is (seconds, share of its training or rows, accuracy)."""

    name: str
    what: str
    measured: int
    moments: list[tuple[float, float, float]] = field(default_factory=list)
    why_not: str = ""

    @property
    def best(self) -> float:
        return max(accuracy for _, _, accuracy in self.moments)

    def seconds_to(self, accuracy: float) -> float | None:
        """Of the first moment at which it was as accurate; None where it never was."""
        return next((seconds for seconds, _, found in self.moments if found >= accuracy), None)


class Rows:
    """The rows to learn from, and those that are measured on."""

    def __init__(self, job: Job) -> None:
        flags = {"data.train": job.data, "data.normaliser": job.normaliser, "data.train_rows": job.rows}
        flags["data.folds"] = 0
        loaded = load_training_data(load_recipe(None, flags).recipe.data, seed=job.seed)
        measured = loaded.validation if job.measure == "validation" else test_rows(job.data, loaded)
        self.label_names = loaded.train.label_names
        self.texts, self.labels = list(loaded.train.texts), labels_of(loaded.train)
        measured = first_rows(measured, job.measured, job.seed)
        self.measured_texts, self.measured_labels = list(measured.texts), labels_of(measured)

    def accuracy(self, predicted: Labels) -> float:
        return float(np.mean(predicted == self.measured_labels))

    def subset(self, share: float) -> Labels:
        """So many of the rows, spread over all of them; at least two of each class."""
        order = np.random.default_rng(0).permutation(len(self.texts))
        chosen = order[: round(share * len(order))]
        for label in range(len(self.label_names)):
            if (self.labels[chosen] == label).sum() < 2:
                chosen = np.concatenate([chosen, order[self.labels[order] == label][:2]])
        return np.unique(chosen)


def test_rows(data: str, loaded: Any) -> Examples:
    from newsdesk.data.labelled import to_examples

    table = load_split(data, "test").table
    names = loaded.train.label_names
    return to_examples(table, loaded.layout.for_table(table), label_names=names, labelled=True)


def labels_of(examples: Examples) -> Labels:
    assert examples.labels is not None
    return examples.labels


def train_newsdesk(job: Job, recipe_name: str) -> Curve:
    """A recipe as `newsdesk train` follows it, but for its files and its own validations."""
    import torch

    from newsdesk.model.classifier import build_classifier
    from newsdesk.model.encoder import keep_freed_memory
    from newsdesk.model.network import Network, choose_device, choose_precision, predict_logits
    from newsdesk.model.tokenizer import TextTokenizer
    from newsdesk.runs.log import Step
    from newsdesk.training.loop import EncodedRows, TrainingLoop
    from newsdesk.training.run import seed_everything

    rows, base = Rows(job), resolve_base(job.base).path
    flags = {"training.epochs": job.epochs, "training.seed": job.seed, "training.validate_every": 0}
    recipe = load_recipe(recipe_name, flags).recipe
    length = recipe.model.max_length
    device = choose_device(recipe.training.device)
    keep_freed_memory()
    tokenizer = TextTokenizer.from_folder(base, length)
    measured = tokenizer.encode(rows.measured_texts)
    with tempfile.TemporaryDirectory() as folder:
        build_classifier(base, rows.label_names, recipe.model, recipe.lora)  # imports what it needs
        clock = Clock()
        seed_everything(recipe.training.seed)
        model = build_classifier(base, rows.label_names, recipe.model, recipe.lora)
        network = Network(model, device, choose_precision(recipe.training.precision, device))
        encoded = tokenizer.encode(rows.texts)
        nothing = EncodedRows([], np.zeros(0, np.int64))
        loop = TrainingLoop(
            network, EncodedRows(encoded, rows.labels), nothing, recipe.training, max_length=length
        )
        network.keep_trunk(encoded, Path(folder), "of this benchmark")
        trained = sum(parameter.numel() for parameter in loop.trained)
        what = (
            f"{recipe.lora.layers} layers, rank {recipe.lora.rank}, {trained:,} trained, {network.precision}"
        )
        curve = Curve(f"newsdesk {Path(recipe_name).stem}", what, len(measured))
        due = moments_of(loop.steps)
        for event in loop.events():
            if isinstance(event, Step) and event.step in due:
                with clock.stopped():
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    accuracy = rows.accuracy(predict_logits(network, measured).argmax(axis=1))
                    curve.moments.append((clock.seconds, event.step / loop.steps, accuracy))
    return curve


def train_published(job: Job, name: str) -> Curve:
    """transformers' Trainer over peft with the published settings, padded as the reference notebook does.

    ``published-grouped`` is the same in batches of similar length. A warm-up takes at most half of all steps,
    as newsdesk has it: 500 steps would be more than some of these trainings.
    """
    import torch
    from transformers import PrinterCallback, Trainer, TrainerCallback

    from newsdesk.model.network import cpu_has_bfloat16
    from newsdesk.model.tokenizer import TextTokenizer, pad

    rows, base, grouped = Rows(job), resolve_base(job.base).path, name != TARGET
    recipe = published(job)
    tokenizer = TextTokenizer.from_folder(base, recipe.model.max_length)
    on_gpu = torch.cuda.is_available()
    mixed = on_gpu or cpu_has_bfloat16()
    peft_classifier(str(base), len(rows.label_names), recipe)  # imports what it needs
    clock = Clock()
    torch.manual_seed(recipe.training.seed)
    model = peft_classifier(str(base), len(rows.label_names), recipe)
    encoded = tokenizer.encode(rows.texts)
    with clock.stopped():
        measured = tokenizer.encode(rows.measured_texts)

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        width = None if grouped else recipe.model.max_length
        ids, mask = pad([example["input_ids"] for example in examples], model.config.pad_token_id, width)
        labels = np.array([example["labels"] for example in examples])
        arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {key: torch.from_numpy(array) for key, array in arrays.items()}

    @torch.inference_mode()
    def predicted() -> Labels:
        found = np.zeros(len(measured), np.int64)
        order = sorted(range(len(measured)), key=lambda row: len(measured[row]))
        model.eval()
        for start in range(0, len(order), 64):
            chosen = order[start : start + 64]
            ids, mask = pad([measured[row] for row in chosen], model.config.pad_token_id)
            inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            logits = model(**{key: tensor.to(model.device) for key, tensor in inputs.items()}).logits
            found[chosen] = logits.argmax(-1).cpu().numpy()
        model.train()
        return found

    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    shape = "by length" if grouped else f"to {recipe.model.max_length} tokens"
    what = f"rank 4 on q, v; padded {shape}, {trained:,} trained, {'bfloat16' if mixed else 'float32'}"
    curve = Curve(name, what, len(measured))
    steps = round(recipe.training.epochs * -(-len(encoded) // recipe.training.batch_size))
    due = moments_of(steps)

    class Measure(TrainerCallback):
        def on_step_end(self, _arguments: Any, state: Any, _control: Any, **_more: Any) -> None:
            if state.global_step in due:
                with clock.stopped():
                    accuracy = rows.accuracy(predicted())
                    curve.moments.append((clock.seconds, state.global_step / steps, accuracy))

    warmup = min(int(recipe.training.warmup), steps // 2)
    training = recipe.training.model_copy(update={"warmup": warmup})
    with tempfile.TemporaryDirectory() as folder:
        arguments = trainer_arguments(
            folder, training, steps, grouped=grouped, bf16=mixed, use_cpu=not on_gpu
        )
        examples: Any = [
            {"input_ids": ids, "labels": int(label)} for ids, label in zip(encoded, rows.labels, strict=True)
        ]
        trainer = Trainer(model, arguments, collate, examples, callbacks=[Measure()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return curve


def published(job: Job) -> Recipe:
    """Rank 4, alpha 16, dropout 0.1 on query and value; AdamW, 2e-4, cosine, 500 warm-up steps, batch 16."""
    flags = {
        "model.max_length": job.peer_length,
        "model.train_pooler": False,
        "training.epochs": job.peer_epochs,
        "training.seed": job.seed,
    }
    return load_recipe("seed", flags).recipe


def moments_of(steps: int) -> set[int]:
    return {max(1, round(share * steps)) for share in MOMENTS}


def fit_linear(job: Job, _name: str) -> Curve:
    """TF-IDF of words and word pairs, and a linear SVM."""
    from sklearn.svm import LinearSVC

    from newsdesk.training.linear_baseline import tfidf_vectorizer

    rows = Rows(job)

    def fit(chosen: Labels) -> Callable[[], Labels]:
        vectorizer = tfidf_vectorizer(len(chosen))
        counted = vectorizer.fit_transform([rows.texts[row] for row in chosen])
        classifier = LinearSVC(C=1.0, random_state=job.seed).fit(counted, rows.labels[chosen])
        return lambda: classifier.predict(vectorizer.transform(rows.measured_texts))

    return fitted("TF-IDF + SVM", "words 1-2; of an eighth of the rows, a quarter, half, all", rows, fit)


def fit_frozen(job: Job, _name: str) -> Curve:
    """Logistic regression on the mean of the frozen encoder's states."""
    from sklearn.linear_model import LogisticRegression

    from newsdesk.model.network import TextEmbedder

    rows = Rows(job)
    embedder = TextEmbedder(resolve_base(job.base).path, max_length=128)
    measured = embedder.embed(rows.measured_texts)

    def fit(chosen: Labels) -> Callable[[], Labels]:
        vectors = embedder.embed([rows.texts[row] for row in chosen])
        classifier = LogisticRegression(C=10.0, max_iter=1000).fit(vectors, rows.labels[chosen])
        return lambda: classifier.predict(measured)

    return fitted("frozen encoder + logistic regression", "the same parts of the rows", rows, fit)


def fitted(name: str, what: str, rows: Rows, fit: Callable[[Labels], Callable[[], Labels]]) -> Curve:
    """A model that is fitted at once, on more and more rows; every moment is a fit of its own."""
    curve = Curve(name, what, len(rows.measured_labels))
    fit(rows.subset(SHARES[0]))  # imports what it needs
    for share in SHARES:
        clock = Clock()
        predict = fit(rows.subset(share))
        with clock.stopped():
            curve.moments.append((clock.seconds, share, rows.accuracy(predict())))
    return curve


def train_setfit(job: Job, _name: str) -> Curve:
    """SetFit (Tunstall et al., 2022) with its own settings, on a few rows of each class."""
    rows = Rows(job)
    curve = Curve("SetFit", f"{' and '.join(map(str, SHOTS))} rows of each class", len(rows.measured_labels))
    if find_spec("setfit") is None:
        curve.why_not = "setfit is not installed here: pip install setfit"
        return curve
    try:
        from datasets import Dataset
        from setfit import SetFitModel, Trainer, TrainingArguments
    except ImportError as error:
        curve.why_not = f"setfit cannot be imported beside these packages: {error}"
        return curve

    for shots in SHOTS:
        chosen = np.concatenate([np.flatnonzero(rows.labels == at)[:shots] for at in np.unique(rows.labels)])
        clock = Clock()
        model = SetFitModel.from_pretrained(str(resolve_base(job.base).path))
        few = Dataset.from_dict(
            {"text": [rows.texts[row] for row in chosen], "label": rows.labels[chosen].tolist()}
        )
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder, batch_size=16, num_epochs=1, seed=job.seed, report_to="none"
            )
            Trainer(model=model, args=arguments, train_dataset=few).train()
        with clock.stopped():
            accuracy = rows.accuracy(np.asarray(model.predict(rows.measured_texts)))
            curve.moments.append((clock.seconds, len(chosen) / len(rows.labels), accuracy))
    return curve


CONTESTANTS: dict[str, Callable[[Job, str], Curve]] = {
    TARGET: train_published,
    "published-grouped": train_published,
    "linear": fit_linear,
    "frozen": fit_frozen,
    "setfit": train_setfit,
    "quick": train_newsdesk,
    "best": train_newsdesk,
}


def table(curves: Sequence[Curve]) -> str:
    """Accuracy reached, seconds taken, and seconds to the accuracy of the published settings' last moment."""
    target = next((curve for curve in curves if curve.name == TARGET and curve.moments), None)
    goal = target.moments[-1][2] if target is not None else None
    theirs = target.seconds_to(goal) if target is not None and goal is not None else None
    lines = []
    for curve in (each for each in curves if each.moments):
        seconds, _, last = curve.moments[-1]
        low, high = wilson_interval(round(last * curve.measured), curve.measured)
        ours = None if goal is None else curve.seconds_to(goal)
        ratio = "" if ours is None or theirs is None else f"{theirs / ours:.1f}x"
        reached = "-" if ours is None else f"{ours:.1f}"
        cells = (f"{last:.2%} [{low:.2%}, {high:.2%}]", f"{curve.best:.2%}", f"{seconds:.1f}", reached, ratio)
        lines.append((curve.name, *cells))
    to_goal = "seconds to the target" if goal is None else f"seconds to {goal:.2%}"
    heads = ("contestant", "accuracy at the end", "at its best", "seconds", to_goal, f"{TARGET} / it")
    return markdown_table(heads, lines)


def draw(curves: Sequence[Curve], out: Path) -> None:
    """The curves as OUT.svg and OUT.png; seconds on a logarithmic axis."""
    from matplotlib.figure import Figure

    from newsdesk.reports.plots import as_png, as_svg, drawing_style

    with drawing_style():
        figure = Figure(figsize=(7.5, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for curve in (each for each in curves if each.moments):
            seconds, _, accuracies = zip(*curve.moments, strict=True)
            axes.plot(seconds, [100 * found for found in accuracies], "o-", markersize=3, label=curve.name)
            if curve.name == TARGET:
                axes.axhline(100 * accuracies[-1], color="grey", linewidth=0.8, linestyle="--")
        axes.set(xscale="log", xlabel="seconds", ylabel="accuracy, %")
        axes.xaxis.set_major_formatter(lambda seconds, _position: f"{seconds:g}")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
        out.with_suffix(".svg").write_bytes(as_svg(figure))
        out.with_suffix(".png").write_bytes(as_png(figure))


def write(curves: Sequence[Curve], job: Job, out: Path) -> None:
    machine = describe_machine("newsdesk", "torch", "transformers", "peft", "scikit-learn")
    content = {"machine": machine, "job": asdict(job), "curves": [asdict(curve) for curve in curves]}
    out.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
    with out.with_suffix(".csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("contestant", "seconds", "share", "accuracy", "rows measured"))
        for curve in curves:
            writer.writerows((curve.name, *moment, curve.measured) for moment in curve.moments)


def main() -> None:
    arguments = parse_arguments()
    names = [*arguments.contestants, *arguments.recipe]
    job = Job(**{name: getattr(arguments, name) for name in Job.__dataclass_fields__})
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows = Rows(job)
    print(
        f"{len(rows.texts):,} training rows of {job.data}, measured on {len(rows.measured_labels):,} "
        f"{job.measure} rows, base {job.base}",
        flush=True,
    )
    curves = []
    for name in names:
        # A process of its own, so that none inherits another's memory, threads or settings.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            curve = process.submit(CONTESTANTS.get(name, train_newsdesk), job, name).result()
        curves.append(curve)
        last = curve.why_not or f"{curve.moments[-1][2]:.2%} after {curve.moments[-1][0]:.1f} s"
        print(f"{curve.name} ({curve.what}): {last}", flush=True)
        write(curves, job, arguments.out)
    print(f"\n{table(curves)}")
    draw(curves, arguments.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=str(AG_NEWS), help="a named data set, a file or a folder")
    parser.add_argument("--normaliser", help="of the texts; default: ag_news for AG News, else none")
    parser.add_argument("--rows", type=int, default=4000, help="to learn from (default: 4000)")
    parser.add_argument("--measure", choices=("validation", "test"), default="validation")
    parser.add_argument("--measured", type=int, default=1000, help="rows to measure on (default: 1000)")
    parser.add_argument("--base", default="all-MiniLM-L6-v2")
    parser.add_argument("--epochs", type=float, help="of newsdesk's recipes; default: their own")
    parser.add_argument("--peer-epochs", type=float, default=2.0, help="as published: 5 (default: 2)")
    parser.add_argument("--peer-length", type=int, default=249, help="what the notebook pads all rows to")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--contestants", nargs="*", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--recipe", action="append", default=[], help="a further recipe; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("build/time_to_accuracy"))
    arguments = parser.parse_args()
    if arguments.normaliser is None:
        arguments.normaliser = "ag_news" if "ag_news" in arguments.data else "none"
    return arguments


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
