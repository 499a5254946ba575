"""A model whose texts may have several labels, measured on labelled examples: figures for metrics.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.duplicates import LearnedRows
from newsdesk.data.examples import Examples, aligned_labels
from newsdesk.data.labels import LabelMatching
from newsdesk.evaluation.evaluate import (
    LABEL_SETS,
    Evaluation,
    TextsRead,
    padded,
    parsed_entries,
    read_metrics,
)
from newsdesk.evaluation.significance import Difference, label_set_differences
from newsdesk.files import atomic_writer
from newsdesk.label_set_metrics import LabelSetMetrics, evaluate_label_sets
from newsdesk.model.tokenizer import Encoded
from newsdesk.prediction.output_formats import joined_labels
from newsdesk.prediction.predictions import delimited_lines, probability_column, rounded
from newsdesk.runs.label_decisions import LabelDecisions
from newsdesk.stored import KEY, OPTIONAL
from newsdesk.training.linear_baseline import BaselineResult


@dataclass(frozen=True)
class LabelSetDifference:
    """What one classifier gains over another: see `label_set_differences`."""

    micro_f1: Difference
    macro_f1: Difference
    p_value: float


@dataclass(frozen=True)
class LabelSetEvaluation:
    """One model on one split, with all that is needed to know what was measured: an entry of metrics.json.

    Attributes:
        split: the split's name, such as ``test``; the key under which metrics.json keeps it.
        source: where the rows came from.
        fingerprint: ``Examples.fingerprint()`` of the rows.
        model: the run or exported model that computed the probabilities.
        metrics: its figures.
        texts: how much of the texts it read.
        labels: how the labels of the rows were matched to those of the run, where that was needed.
        learned: how many of the rows have texts that the run learned from; None where that is not known.
        baseline: a linear model on the same rows, where one was asked for.
        comparison: the model and that baseline on the same draws of the texts.
    """

    split: str
    source: str
    fingerprint: str
    model: str
    metrics: LabelSetMetrics = field(metadata={KEY: LABEL_SETS})
    texts: TextsRead | None = field(default=None, metadata=OPTIONAL)
    labels: LabelMatching | None = field(default=None, metadata=OPTIONAL)
    learned: LearnedRows | None = field(default=None, metadata=OPTIONAL)
    baseline: BaselineResult | None = field(default=None, metadata=OPTIONAL)
    comparison: LabelSetDifference | None = field(default=None, metadata=OPTIONAL)

    def notes(self) -> list[str]:
        """What a person should know about the evaluated rows, a sentence each."""
        unknown = "it is not known which texts the run learned from; these rows may be among them"
        notes = [unknown if self.learned is None else self.learned.note()]
        return notes if self.labels is None else notes + self.labels.notes()


def evaluate_sets(
    logits: NDArray[np.float32],
    decisions: LabelDecisions,
    examples: Examples,
    label_names: Sequence[str],
    *,
    split: str,
    model: str,
    encoded: Encoded | None = None,
    learned: LearnedRows | None = None,
    baseline: BaselineResult | None = None,
) -> tuple[LabelSetEvaluation, NDArray[np.float32], NDArray[np.bool_]]:
    """Measure logits (rows, labels) on labelled examples; also the probabilities and the labels assigned.

    Labels under which unknown ones are counted as errors follow ``label_names``: none is ever assigned.
    Raises UserError for rows without labels or with others.
    """
    names = (*label_names, *(() if examples.matching is None else examples.matching.counted_wrong))
    truth = aligned_labels(examples, names).astype(np.bool_)
    probabilities = decisions.probabilities(logits)
    assigned = padded(decisions.assigned(probabilities).astype(np.float32), len(names)).astype(np.bool_)
    probabilities = padded(probabilities, len(names)).astype(np.float32)
    same = np.asarray((assigned == truth).all(axis=1), dtype=np.bool_)
    found = LabelSetEvaluation(
        split=split,
        source=examples.source,
        fingerprint=examples.fingerprint(),
        model=model,
        metrics=evaluate_label_sets(probabilities, assigned, truth, names),
        texts=None if encoded is None else TextsRead.of(encoded, same),
        labels=examples.matching,
        learned=learned,
        baseline=baseline,
        comparison=None
        if baseline is None or baseline.assigned is None
        else LabelSetDifference(*label_set_differences(truth, baseline.assigned, assigned)),
    )
    return found, probabilities, assigned


def read_label_set_metrics(path: Path) -> dict[str, LabelSetEvaluation]:
    """The evaluations with several labels a text in a metrics.json by split. Raises UserError if damaged."""
    return parsed_entries(path, LabelSetEvaluation, several=True)


def read_evaluations(path: Path) -> dict[str, Evaluation | LabelSetEvaluation]:
    """All evaluations in a metrics.json by split, of one label a text or several. Raises UserError."""
    return {**read_metrics(path), **read_label_set_metrics(path)}


def write_label_set_rows(
    evaluation: LabelSetEvaluation,
    probabilities: NDArray[np.float32],
    assigned: NDArray[np.bool_],
    examples: Examples,
    path: Path,
    *,
    with_text: bool = False,
) -> None:
    """Write one csv line for each row: its 0-based number, true and predicted labels, all probabilities.

    Labels are joined as predictions are; the column of a label's probability is called ``p(<label>)``. Texts
    are left out unless asked for: many corpora may not be copied. Atomic.
    """
    names = evaluation.metrics.label_names
    truth = aligned_labels(examples, names).astype(np.bool_)
    columns = ["row", "true_labels", "predicted_labels", *map(probability_column, names)]
    texts: list[tuple[str, ...]] = [()] * len(examples)
    if with_text:
        columns, texts = [*columns, "text"], [(text,) for text in examples.texts]

    def cell(given: NDArray[np.bool_]) -> str:
        return joined_labels([names[i] for i in np.flatnonzero(given)])

    lines = (
        [row, cell(true), cell(found), *map(rounded, shares), *text]
        for row, (true, found, shares, text) in enumerate(
            zip(truth, assigned, probabilities, texts, strict=True)
        )
    )
    with atomic_writer(path) as stream:
        stream.writelines(delimited_lines([columns]))
        stream.writelines(delimited_lines(lines))
