"""The verbs as plain functions: what the command line calls, and what a program may call without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsdesk.config import ResolvedRecipe, load_recipe
from newsdesk.data.examples import Examples
from newsdesk.data.layout import TextLayout, to_examples
from newsdesk.data.load import load_split, load_training_data
from newsdesk.data.table import Table
from newsdesk.evaluation.baseline import linear_baseline
from newsdesk.evaluation.evaluate import (
    Evaluation,
    evaluate_examples,
    predictions_path,
    write_evaluated_rows,
    write_metrics,
)
from newsdesk.inference.predictions import Predictions
from newsdesk.inference.run_predictor import RunPredictor, load
from newsdesk.sources.source import Progress
from newsdesk.training.run_folder import RunFolder, open_run

if TYPE_CHECKING:
    from newsdesk.training.events import Event

__all__ = ["evaluate", "evaluation_rows", "load", "predict_table", "train", "train_resolved"]

Counter = Callable[[int], None]


def train(
    recipe: str | None = None,
    *,
    out: str | Path,
    flags: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
    observe: Callable[[Event], None] = lambda _event: None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Train a classifier and return its run folder.

    ``newsdesk.train("quick", out="runs/wire", overrides=["data.train=wire.csv", "lora.rank=16"])``

    Args:
        recipe: a recipe's name or TOML file; None: the defaults.
        out: the folder to write.
        flags: dotted recipe keys and values, such as ``{"training.epochs": 2.0}``.
        overrides: the same as texts, ``section.key=value``.
        observe: called with every training event.
        overwrite: replace a run that is at ``out`` already.
        progress: called while base model and data are fetched.

    Raises:
        UserError: for anything that recipe, data or machine do not allow, in words for the user.
    """
    return train_resolved(
        load_recipe(recipe, flags, overrides),
        Path(out),
        observe=observe,
        overwrite=overwrite,
        progress=progress,
    )


def train_resolved(
    resolved: ResolvedRecipe,
    out: Path,
    *,
    observe: Callable[[Event], None] = lambda _event: None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """As :func:`train`, from a recipe that was resolved before."""
    from newsdesk.training.run import run_training  # the first import of torch

    return run_training(resolved, out, observe=observe, overwrite=overwrite, progress=progress)


@dataclass(frozen=True)
class LabelledRows:
    """Rows to evaluate on, in a run's own words."""

    examples: Examples
    split: str


def evaluation_rows(
    run: RunFolder, data: str, split: str, *, progress: Progress | None = None
) -> LabelledRows:
    """The rows of a named data set, folder or file, with the run's text layout and class ids.

    Raises UserError when there are none, or they carry labels that the run does not know.
    """
    labels = run.labels
    table = load_split(data, split, progress=progress).table
    return LabelledRows(_as_trained(table, labels.layout, labels.names), split)


def evaluate(
    run_path: str | Path,
    data: str,
    *,
    split: str = "test",
    baseline: bool = False,
    with_text: bool = False,
    count: Counter | None = None,
    progress: Progress | None = None,
    start: Counter = lambda _rows: None,
) -> Evaluation:
    """Measure a run on labelled rows; write ``metrics.json`` and ``predictions-<split>.csv`` into it.

    Args:
        run_path: a finished run.
        data: named data set, folder or file.
        split: which of its splits; the key in metrics.json.
        baseline: also fit TF-IDF + linear SVM on the run's own training rows, and compare.
        with_text: put the texts into the predictions file.
        count: called with the number of rows of every batch done.
        progress: called while things are fetched.
        start: called with the number of rows before the first batch.
    """
    run = open_run(Path(run_path))
    rows = evaluation_rows(run, data, split, progress=progress).examples
    start(len(rows))
    probabilities = load(run.path, progress=progress).predict_probabilities(rows.texts, progress=count)
    reference = linear_baseline(_all_training_rows(run), rows, seed=0) if baseline else None
    evaluation = evaluate_examples(
        probabilities, rows, run.labels.names, split=split, model=str(run.path), baseline=reference
    )
    target = predictions_path(run.path, split)
    write_evaluated_rows(probabilities, rows, run.labels.names, target, with_text=with_text)
    write_metrics(evaluation, run.metrics)
    run.reseal()
    return evaluation


def predict_table(predictor: RunPredictor, table: Table, *, count: Counter | None = None) -> Predictions:
    """Classify every row of a table, its texts made as the run's training texts were."""
    texts = predictor.layout.for_table(table).texts(table)
    return Predictions(predictor.predict_probabilities(texts, progress=count), predictor.label_names)


def _as_trained(table: Table, layout: TextLayout, label_names: tuple[str, ...]) -> Examples:
    own = layout.for_table(table)
    return to_examples(
        table,
        text=own.text_columns,
        template=own.template,
        normaliser=own.normaliser,
        label_names=label_names,
        labelled=True,
    )


def _all_training_rows(run: RunFolder) -> Examples:
    """The rows the run learned from and was validated on: a baseline, not validated, may use all."""
    recipe = load_recipe(str(run.recipe)).recipe
    whole = recipe.data.model_copy(update={"validation_share": 0.0, "validation": None})
    return load_training_data(whole, seed=recipe.training.seed).train
