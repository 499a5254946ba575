"""A run to what its report tells: files read, figures with their intervals, rows chosen to be quoted."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.datasets import DATA_SETS
from newsdesk.data.stream import read_table
from newsdesk.errors import UserError
from newsdesk.evaluation.audit.label_issues import least_accuracy, rank_label_errors
from newsdesk.evaluation.evaluate import Evaluation
from newsdesk.evaluation.predicted_rows import predictions_path, read_predicted_rows
from newsdesk.evaluation.significance import macro_f1_interval, mean_interval
from newsdesk.files import damaged
from newsdesk.metrics import (
    SMALLEST_PROBABILITY,
    Metrics,
    expected_calibration_error,
    reliability,
    wilson_interval,
)
from newsdesk.model.catalog import BASE_MODELS
from newsdesk.model.tokenizer import TextTokenizer
from newsdesk.prediction.abstention import risk_coverage
from newsdesk.prediction.classifier import Classifier
from newsdesk.prediction.explanation import explain
from newsdesk.prediction.predictions import WRITTEN, probability_column
from newsdesk.reports.content import (
    Calibration,
    Cost,
    EvaluationContent,
    LabelSuspects,
    LengthBin,
    Lengths,
    Measured,
    Missing,
    QuotedRow,
    Reliability,
    ReportContent,
    TrainingContent,
    TrainingPoint,
)
from newsdesk.reports.facts import RunFacts, Source
from newsdesk.runs.folder import RunFolder
from newsdesk.runs.log import Started, Step, Validation, read_log


def calibration_of(rows: EvaluatedRows, temperature: float, command: str) -> Calibration:
    """What the temperature that the rows were predicted with did for them.

    ``temperature`` is 1 where they were predicted without one; ``command`` then says how to fit it. What
    was there before follows from the probabilities: raised to the power of the temperature, they are
    proportional to those of the undivided logits.
    """
    after = _reliability("as predicted", rows.probabilities, rows)
    if temperature == 1.0:
        reason = "these probabilities are the model's own, without a temperature fitted on held-out rows"
        return Calibration(after, Missing(reason, command), 1.0)
    powers = np.clip(rows.probabilities, SMALLEST_PROBABILITY, 1.0) ** temperature
    undivided = powers / powers.sum(axis=1, keepdims=True)
    return Calibration(after, _reliability("before the temperature", undivided, rows), temperature)


def _reliability(name: str, probabilities: NDArray[np.float64], rows: EvaluatedRows) -> Reliability:
    of_rows = np.arange(len(rows.labels))
    confidence = probabilities[of_rows, rows.predicted]
    of_true = probabilities[of_rows, rows.labels]
    return Reliability(
        name=name,
        expected_calibration_error=expected_calibration_error(confidence, rows.correct),
        negative_log_likelihood=float(-np.log(np.clip(of_true, SMALLEST_PROBABILITY, 1.0)).mean()),
        bins=reliability(confidence, rows.correct),
    )


@dataclass(frozen=True)
class EvaluatedRows:
    """Every evaluated row.

    Attributes:
        labels: int64 (rows,), the true class ids.
        predicted: int64 (rows,), those of the most probable classes.
        probabilities: float64 (rows, classes), as predicted, to six decimals.
        texts: one a row, where the evaluation kept them.
    """

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    texts: tuple[str, ...] | None

    @property
    def confidence(self) -> NDArray[np.float64]:
        """The probability of the predicted class, (rows,)."""
        return np.asarray(self.probabilities[np.arange(len(self.labels)), self.predicted], dtype=np.float64)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether that class is the true one, (rows,)."""
        return np.asarray(self.predicted == self.labels, dtype=np.bool_)


def read_evaluated_rows(folder: Path, split: str, metrics: Metrics) -> EvaluatedRows:
    """The rows of a run's evaluation, ids in the order of ``metrics``.

    Raises UserError when its file of predictions is missing, damaged, or not of that evaluation.
    """
    rows = read_predicted_rows(folder, split)
    path = predictions_path(folder, split)
    table = read_table(path, WRITTEN)
    ids = {name: number for number, name in enumerate(metrics.label_names)}
    try:
        columns = [table.columns.index(probability_column(name)) for name in metrics.label_names]
        return EvaluatedRows(
            labels=np.array([ids[name] for name in rows.true_labels]),
            predicted=np.array([ids[name] for name in rows.predicted_labels]),
            probabilities=np.array([[float(str(row[at])) for at in columns] for row in table.rows]),
            texts=rows.texts,
        )
    except (KeyError, ValueError) as error:
        fix = "evaluate the run again: newsdesk evaluate RUN --data NAME|PATH"
        raise damaged(path, str(error), fix=fix) from None


POINTS = 160
"""Points of a curve, at most: more would not be told apart on a page."""

_FIX = "copy the run anew from where it is whole, or train it again"


def training_story(log: Path, *, processes: int) -> TrainingContent | Missing:
    """Curves and cost from log.jsonl; Missing where there is none or no step in it.

    ``processes`` is how many trained together, which the log does not say. Raises UserError for a damaged
    log.
    """
    if not log.is_file():
        return Missing("this run was not trained by newsdesk: it has no log")
    logged = list(read_log(log))
    events = [entry.event for entry in logged]
    steps = [event for event in events if isinstance(event, Step)]
    if not steps:
        return Missing("the log of this run holds no step")
    started = next((event for event in events if isinstance(event, Started)), None)
    if started is None:
        raise damaged(log, "no event that says what it was started on", fix=_FIX)
    size = -(-len(steps) // POINTS)
    groups = [steps[first : first + size] for first in range(0, len(steps), size)]
    return TrainingContent(
        points=tuple(
            TrainingPoint(
                epoch=group[-1].epoch,
                loss=float(np.mean([step.loss for step in group])),
                learning_rate=group[-1].learning_rate,
            )
            for group in groups
        ),
        validations=tuple(event for event in events if isinstance(event, Validation)),
        steps_a_point=size,
        cost=Cost(
            seconds=logged[-1].seconds,
            steps=steps[-1].step,
            rows=sum(step.rows for step in steps),
            tokens=sum(step.tokens for step in steps),
            padded_tokens=sum(step.padded_tokens for step in steps),
            device=started.device,
            precision=started.precision,
            engine=started.engine,
            processes=processes,
        ),
    )


QUOTED = 10
"""How many errors, and how many likely label errors, are quoted."""
_LENGTH_BINS = 6

Texts = Sequence[str] | Missing
"""The texts of the evaluated rows, in order, or why they are not to be had."""


def gather(
    run: RunFolder,
    split: str,
    *,
    texts: Callable[[str, str], Texts],
    classifier: Callable[[], Classifier],
    quote: bool,
) -> ReportContent:
    """All that a report of a finished run tells.

    Args:
        run: the run; its evaluation of ``split`` is told where it has one.
        split: which evaluation.
        texts: finds the evaluated texts by their source and fingerprint.
        classifier: opens the run, to explain its errors; a UserError of it is told in the report.
        quote: whether texts may stand in the report.

    Raises:
        UserError: when files of the run are damaged, or it was evaluated, but on other splits alone.
    """
    facts = RunFacts.of(run)
    base = next((base for base in BASE_MODELS.values() if base.name == facts.manifest.base.name), None)
    evaluated, trained = facts.splits.get(split), facts.manifest.training
    return ReportContent(
        split=split,
        facts=facts,
        base_parameters=None if base is None else base.parameters,
        evaluation=_not_evaluated(run, facts, split)
        if evaluated is None
        else _evaluation(run, split, evaluated, texts, classifier, quote=quote),
        training=training_story(run.log, processes=trained.processes if trained else 1),
        untold=None
        if facts.train_source
        else Missing("it is not known what this run learned from: its adapter was trained elsewhere"),
        commands=_commands(run, split, evaluated, trained_here=facts.train_source is not None),
    )


def _not_evaluated(run: RunFolder, facts: RunFacts, split: str) -> Missing:
    if facts.splits:
        raise UserError(
            f"{run.path} was not evaluated on a split called {split!r}",
            found=f"evaluations of: {', '.join(facts.splits)}",
            fix="name one of these with --split, or give the rows with --data",
        )
    asked = ["newsdesk", "report", str(run.path), "--split", split]
    return Missing("this run was not evaluated yet", f"{shlex.join(asked)} --data NAME|PATH")


def _evaluation(
    run: RunFolder,
    split: str,
    evaluated: Evaluation,
    find_texts: Callable[[str, str], Texts],
    classifier: Callable[[], Classifier],
    *,
    quote: bool,
) -> EvaluationContent:
    metrics = evaluated.metrics
    rows = read_evaluated_rows(run.path, split, metrics)
    texts = find_texts(evaluated.source, evaluated.fingerprint)
    if isinstance(texts, Missing) and rows.texts is not None:
        texts = rows.texts
    shown: Texts = texts if quote else Missing("left out of this page, as --without-texts asked", asked=True)
    known = len(metrics.label_names) - (len(evaluated.labels.counted_wrong) if evaluated.labels else 0)
    errors, suspects = _rows_to_look_at(rows, metrics.label_names, known, shown)
    errors, words = _with_words(errors, classifier)
    source = Source.of(evaluated.source)
    temperature = evaluated.calibration.temperature if evaluated.calibration else 1.0
    return EvaluationContent(
        source=source,
        licence=DATA_SETS[source.name].licence if source.name else None,
        fingerprint=evaluated.fingerprint,
        metrics=metrics,
        macro_f1=Measured(
            metrics.macro_f1, macro_f1_interval(rows.labels, rows.predicted, len(metrics.label_names))
        ),
        negative_log_likelihood=_measured_likelihood(rows),
        brier_score=_measured_brier(rows),
        baseline=evaluated.baseline,
        calibration=calibration_of(rows, temperature, shlex.join(["newsdesk", "calibrate", str(run.path)])),
        risk_coverage=risk_coverage(rows.confidence, rows.correct),
        lengths=texts if isinstance(texts, Missing) else lengths_of(rows, texts, run),
        errors=errors,
        errors_in_all=metrics.rows - metrics.correct,
        suspects=suspects,
        texts=shown if isinstance(shown, Missing) else None,
        words=words,
        notes=tuple(evaluated.notes()),
    )


def _measured_likelihood(rows: EvaluatedRows) -> Measured:
    of_true = rows.probabilities[np.arange(len(rows.labels)), rows.labels]
    losses = -np.log(np.clip(of_true, SMALLEST_PROBABILITY, 1.0))
    return Measured(float(losses.mean()), mean_interval(losses))


def _measured_brier(rows: EvaluatedRows) -> Measured:
    truth = np.eye(rows.probabilities.shape[1])[rows.labels]
    losses = ((rows.probabilities - truth) ** 2).sum(axis=1)
    return Measured(float(losses.mean()), mean_interval(losses, most=2.0))


def lengths_of(rows: EvaluatedRows, texts: Sequence[str], run: RunFolder) -> Lengths:
    """Accuracy in up to six bins of about as many rows each, from the shortest texts to the longest.

    Lengths are in tokens as the model counts them, special ones included, before texts are cut.
    """
    lengths = np.array(TextTokenizer.from_folder(run.tokenizer, None).lengths(texts))
    ordered = np.sort(lengths)
    firsts = ordered[np.arange(1, _LENGTH_BINS) * len(ordered) // _LENGTH_BINS]
    bin_of_row = np.searchsorted(np.unique(firsts), lengths, side="right")
    return Lengths(
        bins=tuple(
            _length_bin(lengths[members], rows.correct[members])
            for number in np.unique(bin_of_row)
            for members in [bin_of_row == number]
        ),
        cut=float((lengths > run.labels.max_length).mean()),
        max_length=run.labels.max_length,
    )


def _length_bin(lengths: NDArray[np.int64], correct: NDArray[np.bool_]) -> LengthBin:
    right, total = int(correct.sum()), len(correct)
    interval = wilson_interval(right, total)
    return LengthBin(int(lengths.min()), int(lengths.max()), total, right / total, interval)


def _rows_to_look_at(
    rows: EvaluatedRows, label_names: Sequence[str], known: int, texts: Texts
) -> tuple[tuple[QuotedRow, ...], LabelSuspects]:
    """The most confident errors, and the likely label errors, each with its text where it may be quoted.

    Labels beyond the first ``known`` classes are unknown to the run, which cannot judge them.
    """
    wrong = np.flatnonzero(~rows.correct)
    confident = wrong[np.argsort(-rows.confidence[wrong], kind="stable")][:QUOTED]
    judged = np.flatnonzero(rows.labels < known)
    found = rank_label_errors(rows.probabilities[judged, :known], rows.labels[judged])
    limit = least_accuracy(found.majority)
    suspects = judged[found.suspects]
    suspected = set(suspects.tolist())

    def quoted(row: int, other: int) -> QuotedRow:
        true = int(rows.labels[row])
        return QuotedRow(
            row=row,
            true_label=label_names[true],
            predicted_label=label_names[other],
            true_probability=float(rows.probabilities[row, true]),
            predicted_probability=float(rows.probabilities[row, other]),
            text=None if isinstance(texts, Missing) else texts[row],
            suspect=row in suspected,
        )

    return (
        tuple(quoted(row, int(rows.predicted[row])) for row in confident.tolist()),
        LabelSuspects(
            total=len(suspected),
            noise=found.noise,
            least_accuracy=None if found.accuracy >= limit else limit,
            rows=tuple(
                quoted(int(suspects[at]), int(found.suggested[found.suspects[at]]))
                for at in range(min(QUOTED, len(suspects)))
            ),
        ),
    )


def _with_words(
    errors: tuple[QuotedRow, ...], classifier: Callable[[], Classifier]
) -> tuple[tuple[QuotedRow, ...], Missing | None]:
    """The errors with the words that spoke for the wrong class; else why there are none."""
    if all(error.text is None for error in errors):
        return errors, None
    try:
        opened = classifier()
    except UserError as error:
        why = "; ".join(filter(None, (error.wrong, error.fix)))
        return errors, Missing(f"the words that decided are not shown: {why}")
    explained = [explain(opened, error.text or "", target=error.predicted_label) for error in errors]
    return tuple(
        replace(error, words=found.words) for error, found in zip(errors, explained, strict=True)
    ), None


def _commands(
    run: RunFolder, split: str, evaluated: Evaluation | None, *, trained_here: bool
) -> tuple[str, ...]:
    """What to type to train, evaluate and report again."""
    again = run.path.name + "-again" if trained_here else str(run.path)
    source = "NAME|PATH" if evaluated is None else Source.of(evaluated.source).name or evaluated.source
    lines = [
        ["newsdesk", "evaluate", again, "--data", source, "--split", split],
        ["newsdesk", "report", again, "--split", split],
    ]
    if trained_here:
        lines.insert(0, ["newsdesk", "train", "--recipe", str(run.recipe), "--out", again])
    return tuple(shlex.join(line) for line in lines)
