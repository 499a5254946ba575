"""Parts that every report has, whether a text has one label or several; and what to run for missing ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import UserError
from newsdesk.evaluation.evaluate import Evaluation
from newsdesk.evaluation.label_sets import LabelSetEvaluation
from newsdesk.evaluation.predicted_rows import (
    PredictedRows,
    labels_of,
    predictions_path,
    read_predicted_rows,
)
from newsdesk.files import damaged
from newsdesk.metrics import wilson_interval
from newsdesk.model.tokenizer import TextTokenizer
from newsdesk.prediction.classifier import Classifier
from newsdesk.prediction.explanation import WordWeight, explain
from newsdesk.runs.folder import RunFolder
from newsdesk.runs.log import Started, Step, Validation, read_log

QUOTED = 10
"""How many errors, and how many likely label errors, are quoted."""
POINTS = 160
"""Points of a curve, at most: more could not be told apart on a page."""
_LENGTH_BINS = 6


@dataclass(frozen=True)
class Missing:
    """A part that a report has nothing for.

    Attributes:
        reason: why.
        command: what fills it; None where nothing can.
        asked: whether it was left out on request.
    """

    reason: str
    command: str | None = None
    asked: bool = False


Texts = Sequence[str] | Missing
"""The texts of the evaluated rows, in order, or why there are none."""


@dataclass(frozen=True)
class LengthBin:
    """Rows whose texts have from ``shortest`` to ``longest`` tokens, and what share of them is right."""

    shortest: int
    longest: int
    rows: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Lengths:
    """Accuracy by length; ``cut`` is the share of texts of more than the ``reach`` tokens that are read."""

    bins: tuple[LengthBin, ...]
    cut: float
    reach: int


def stored_rows(run: RunFolder, measured: Evaluation | LabelSetEvaluation) -> PredictedRows:
    """The evaluated rows in the run. Raises UserError for files that name other classes than metrics.json."""
    names, stored = measured.metrics.label_names, read_predicted_rows(run.path, measured.split)
    cells = {*stored.true_labels, *stored.predicted_labels}
    if stored.several:
        cells = {name for cell in cells for name in labels_of(cell)}
    if stored.label_names != names or not set(names) >= cells:
        found = f"columns for {', '.join(stored.label_names)}; metrics.json has {', '.join(names)}"
        fix = "evaluate the run again: newsdesk evaluate RUN --data NAME|PATH"
        raise damaged(predictions_path(run.path, measured.split), found, fix=fix)
    return stored


def explained(
    quoted: Sequence[tuple[str | None, str]], classifier: Callable[[], Classifier]
) -> list[tuple[WordWeight, ...]] | Missing | None:
    """The words of texts with what each did for a label, of (text, label); else why there are none.

    None where no text may be quoted.
    """
    if all(text is None for text, _ in quoted):
        return None
    try:
        opened = classifier()
    except UserError as error:
        why = "; ".join(filter(None, (error.wrong, error.fix)))
        return Missing(f"the words that decided are not shown: {why}")
    return [explain(opened, text or "", target=label).words for text, label in quoted]


def lengths_of(correct: NDArray[np.bool_], texts: Sequence[str], run: RunFolder) -> Lengths:
    """Accuracy in up to six bins of about as many rows each, from the shortest texts to the longest.

    ``correct`` (rows,) says of each text whether it is right. Lengths are in tokens as the model
    counts them, special ones included, before texts are cut.
    """
    labels = run.labels
    tokenizer = TextTokenizer.from_folder(run.tokenizer, labels.max_length, long_texts=labels.long_texts)
    lengths = tokenizer.encode_whole(texts).lengths
    ordered = np.sort(lengths)
    firsts = ordered[np.arange(1, _LENGTH_BINS) * len(ordered) // _LENGTH_BINS]
    bin_of_row = np.searchsorted(np.unique(firsts), lengths, side="right")
    bins = tuple(
        _length_bin(lengths[bin_of_row == number], correct[bin_of_row == number])
        for number in np.unique(bin_of_row)
    )
    reach = tokenizer.windows.reach or labels.max_length
    return Lengths(bins, cut=float((lengths > reach).mean()), reach=reach)


def _length_bin(lengths: NDArray[np.int64], correct: NDArray[np.bool_]) -> LengthBin:
    right, total = int(correct.sum()), len(correct)
    interval = wilson_interval(right, total)
    return LengthBin(int(lengths.min()), int(lengths.max()), total, right / total, interval)


@dataclass(frozen=True)
class TrainingContent:
    """A training as its log tells it.

    Attributes:
        started: what it began with.
        seconds: from the start to the last event, validation included.
        steps: all optimiser steps.
        validations: all validations.
    """

    started: Started
    seconds: float
    steps: tuple[Step, ...]
    validations: tuple[Validation, ...]

    @property
    def steps_per_point(self) -> int:
        """How many steps one point of a curve stands for."""
        return -(-len(self.steps) // POINTS)

    @property
    def points(self) -> tuple[Step, ...]:
        """The curves: neighbouring steps as one, the last of them with their mean loss."""
        size = self.steps_per_point
        groups = (self.steps[first : first + size] for first in range(0, len(self.steps), size))
        return tuple(
            replace(group[-1], loss=float(np.mean([step.loss for step in group]))) for group in groups
        )

    def total(self, of: str) -> int:
        """The sum over all steps of ``rows``, ``tokens`` or ``padded_tokens``."""
        return sum(getattr(step, of) for step in self.steps)


def training_story(log: Path) -> TrainingContent | Missing:
    """The training from log.jsonl; Missing where there is none or it has no step.

    Raises UserError for a damaged log.
    """
    if not log.is_file():
        return Missing("this run was not trained by newsdesk: it has no log")
    logged = list(read_log(log))
    events = [entry.event for entry in logged]
    steps = tuple(event for event in events if isinstance(event, Step))
    if not steps:
        return Missing("the log of this run contains no step")
    started = next((event for event in events if isinstance(event, Started)), None)
    if started is None:
        fix = "copy the run again from a complete copy, or train it again"
        raise damaged(log, "no event that says what it was started on", fix=fix)
    validations = tuple(event for event in events if isinstance(event, Validation))
    return TrainingContent(started, logged[-1].seconds, steps, validations)
