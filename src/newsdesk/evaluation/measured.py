"""A classifier measured on labelled rows, each with one label or several, and every row written to a file."""

from __future__ import annotations

from pathlib import Path

from newsdesk.data.duplicates import LearnedRows
from newsdesk.data.examples import Examples
from newsdesk.evaluation.evaluate import Evaluation, evaluate_examples
from newsdesk.evaluation.label_sets import LabelSetEvaluation, evaluate_sets, write_label_set_rows
from newsdesk.evaluation.predicted_rows import write_evaluated_rows
from newsdesk.prediction.classifier import Classifier
from newsdesk.progress import Progress
from newsdesk.runs.calibration import softmax
from newsdesk.training.linear_baseline import BaselineResult


def measured(
    classifier: Classifier,
    rows: Examples,
    *,
    split: str,
    model: str,
    baseline: BaselineResult | None = None,
    learned: LearnedRows | None = None,
    target: Path | None = None,
    with_text: bool = False,
    progress: Progress | None = None,
) -> Evaluation | LabelSetEvaluation:
    """The figures of a classifier on labelled rows.

    Args:
        classifier, rows: what is measured, and on what; the rows' labels are matched to its classes already.
        split, model: what the evaluation is called, and what the classifier.
        baseline: a linear model on the same rows.
        learned: how many of the rows it learned from.
        target: the file to which every row's probabilities are written; None: nowhere.
        with_text: write the texts, too.
        progress: called with the rows done.

    Raises UserError for rows without labels or with others than the classifier's.
    """
    encoded = classifier.encode(rows.texts)
    logits, _distances = classifier.outputs(encoded.ids, progress=progress)
    if classifier.decisions is not None:
        of_sets, probabilities, assigned = evaluate_sets(
            logits,
            classifier.decisions,
            rows,
            classifier.label_names,
            split=split,
            model=model,
            encoded=encoded,
            learned=learned,
            baseline=baseline,
        )
        if target is not None:
            write_label_set_rows(of_sets, probabilities, assigned, rows, target, with_text=with_text)
        return of_sets
    temperature = classifier.temperature
    probabilities = softmax(logits, temperature)
    found = evaluate_examples(
        probabilities,
        rows,
        classifier.label_names,
        split=split,
        model=model,
        temperature=temperature,
        uncalibrated=softmax(logits),
        baseline=baseline,
        encoded=encoded,
        learned=learned,
    )
    if target is not None:
        names = found.metrics.label_names
        write_evaluated_rows(probabilities, rows, names, target, with_text=with_text)
    return found
