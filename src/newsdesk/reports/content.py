"""What a report says of a run: figures with intervals, rows worth reading, curves; and what is missing."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import UserError, counted
from newsdesk.evaluation.audit.label_issues import least_accuracy, rank_label_errors
from newsdesk.evaluation.evaluate import Evaluation
from newsdesk.evaluation.label_sets import LabelSetEvaluation
from newsdesk.evaluation.rows import Reading, evaluation_rows
from newsdesk.evaluation.significance import macro_f1_interval, mean_interval
from newsdesk.metrics import (
    SMALLEST_PROBABILITY,
    ReliabilityBin,
    reliability,
)
from newsdesk.prediction.abstention import RiskCoverage, risk_coverage
from newsdesk.prediction.classifier import Classifier
from newsdesk.prediction.explanation import WordWeight
from newsdesk.progress import Progress
from newsdesk.reports.facts import RunFacts, Source
from newsdesk.reports.label_sets import LabelSetContent, label_set_content
from newsdesk.reports.parts import (
    QUOTED,
    Lengths,
    Missing,
    Texts,
    TrainingContent,
    explained,
    lengths_of,
    stored_rows,
    training_story,
)
from newsdesk.runs.folder import RunFolder


@dataclass(frozen=True)
class QuotedRow:
    """A row that a person should look at.

    Attributes:
        row: 0-based number in the evaluated data.
        true_label: the class it is labelled with.
        predicted_label: the class it was given, or that its label is likely meant to be.
        true_probability: the probability of the labelled class, 0 to 1.
        predicted_probability: that of the other.
        text: what was read; None where texts are left out or not available.
        words: the text's words with what each did for the predicted class; None where not computed.
        suspect: whether the label is likely wrong.
    """

    row: int
    true_label: str
    predicted_label: str
    true_probability: float
    predicted_probability: float
    text: str | None = None
    words: tuple[WordWeight, ...] | None = None
    suspect: bool = False


@dataclass(frozen=True)
class LabelSuspects:
    """Rows whose label is likely wrong.

    Attributes:
        total: how many rows confident learning suspects.
        noise: estimated share of wrong labels, 0 to 1; a lower bound, see ``LabelErrors.noise``.
        least_accuracy: the accuracy needed to judge labels by the model; None where it is reached.
        rows: the most suspect ones, the most suspect first.
    """

    total: int
    noise: float
    least_accuracy: float | None
    rows: tuple[QuotedRow, ...]


@dataclass(frozen=True)
class EvaluationContent:
    """What a report says of one evaluation.

    Attributes:
        measured: the evaluation in metrics.json.
        intervals: 95 % intervals of its ``macro_f1``, ``negative_log_likelihood`` and ``brier_score``; None
            for a mean of a single row.
        calibrated: confidence against accuracy, from the least to the most confident rows.
        uncalibrated: the same without the temperature, or how to fit one.
        risk_coverage: what answering only the confident rows would gain.
        lengths: accuracy by length of the text.
        errors: the most confident errors.
        suspects: the likely label errors.
        texts: None where texts are quoted, else why not.
        words: None where the words that decided are shown, else why not.
    """

    measured: Evaluation
    intervals: Mapping[str, tuple[float, float] | None]
    calibrated: tuple[ReliabilityBin, ...]
    uncalibrated: tuple[ReliabilityBin, ...] | Missing
    risk_coverage: RiskCoverage
    lengths: Lengths | Missing
    errors: tuple[QuotedRow, ...]
    suspects: LabelSuspects
    texts: Missing | None
    words: Missing | None


@dataclass(frozen=True)
class ReportContent:
    """All that a report of one run on one split says.

    Attributes:
        split: the evaluated split.
        facts: what the run is made of: base, data, recipe, versions.
        evaluation: what was measured.
        training: how the run was trained.
        origin: None where it is known what the run learned from, else why not.
        commands: what to type to repeat all of it.
    """

    split: str
    facts: RunFacts
    evaluation: EvaluationContent | LabelSetContent | Missing
    training: TrainingContent | Missing
    origin: Missing | None
    commands: tuple[str, ...]

    @property
    def missing(self) -> tuple[Missing, ...]:
        """The parts without content, except those left out on request."""
        parts: list[object] = [self.evaluation, self.training, self.origin]
        if not isinstance(of := self.evaluation, Missing):
            parts += [of.uncalibrated, of.lengths, of.texts, of.words]
        return tuple(part for part in parts if isinstance(part, Missing) and not part.asked)


def gather(
    run: RunFolder, split: str, *, texts: Texts, classifier: Callable[[], Classifier], quote: bool
) -> ReportContent:
    """All that a report of a finished run says.

    Args:
        run: the run.
        split: which evaluation of it.
        texts: those of the evaluated rows.
        classifier: opens the run, to explain its errors; the report says so where that is a UserError.
        quote: whether texts may be quoted in the report.

    Raises:
        UserError: when files of the run are damaged, or it was evaluated, but only on other splits.
    """
    facts = RunFacts.of(run)
    evaluation: EvaluationContent | LabelSetContent | Missing
    known: dict[str, Evaluation | LabelSetEvaluation] = {**facts.splits, **facts.sets}
    measured = known.get(split)
    if isinstance(measured, Evaluation):
        evaluation = _evaluation(run, measured, texts, classifier, quote=quote)
    elif measured is not None:
        evaluation = label_set_content(
            run, measured, facts.calibration, texts=texts, classifier=classifier, quote=quote
        )
    elif known:
        raise UserError(
            f"{run.path} was not evaluated on a split called {split!r}",
            found=f"evaluations of: {', '.join(known)}",
            fix="name one of these with --split, or give the rows with --data",
        )
    else:
        asked = shlex.join(["newsdesk", "report", str(run.path), "--split", split])
        evaluation = Missing("this run was not evaluated yet", f"{asked} --data NAME|PATH")
    unknown = Missing("it is not known what this run learned from: its adapter was trained elsewhere")
    return ReportContent(
        split=split,
        facts=facts,
        evaluation=evaluation,
        training=training_story(run.log),
        origin=None if facts.train_source else unknown,
        commands=_commands(run, split, measured, trained_here=facts.train_source is not None),
    )


def _commands(
    run: RunFolder, split: str, measured: Evaluation | LabelSetEvaluation | None, *, trained_here: bool
) -> tuple[str, ...]:
    """What to type to train, evaluate and report again."""
    again = run.path.name + "-again" if trained_here else str(run.path)
    source = "NAME|PATH" if measured is None else Source.of(measured.source).name or measured.source
    lines = [
        ["newsdesk", "evaluate", again, "--data", source, "--split", split],
        ["newsdesk", "report", again, "--split", split],
    ]
    if trained_here:
        lines.insert(0, ["newsdesk", "train", "--recipe", str(run.recipe), "--out", again])
    return tuple(shlex.join(line) for line in lines)


def evaluated_texts(
    run: RunFolder,
    measured: Evaluation | LabelSetEvaluation,
    data: str | None,
    *,
    progress: Progress | None = None,
    **reading: Unpack[Reading],
) -> Texts:
    """The texts of the evaluated rows, from ``data``; None: from where the evaluation read them.

    Raises UserError where ``data`` cannot be read or are other rows; without it, texts are missing then.
    """
    try:
        rows = evaluation_rows(run, data or measured.source, measured.split, progress=progress, **reading)
        if rows.fingerprint() == measured.fingerprint:
            return rows.texts
        raise UserError(
            f"these are not the rows that the run was evaluated on as {measured.split}",
            found=f"{counted(len(rows), 'row')} in {rows.source} with another sha256 than metrics.json's",
            fix="name the evaluated rows with --data, or evaluate these under another --split",
        )
    except UserError as error:
        if data is not None:
            raise
        return Missing(f"the evaluated texts are not available: {error.wrong}")


@dataclass(frozen=True)
class EvaluatedRows:
    """The evaluated rows as arrays, ids in the order of the evaluation's classes.

    Attributes:
        labels: int64 (rows,), the true class ids.
        predicted: int64 (rows,), those of the most probable classes.
        probabilities: float64 (rows, classes), as predicted, to six decimals.
    """

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @property
    def confidence(self) -> NDArray[np.float64]:
        """The probability of the predicted class, (rows,)."""
        return np.take_along_axis(self.probabilities, self.predicted[:, None], axis=1)[:, 0]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether that class is the true one, (rows,)."""
        return np.asarray(self.predicted == self.labels, dtype=np.bool_)


def _evaluation(
    run: RunFolder, measured: Evaluation, texts: Texts, classifier: Callable[[], Classifier], *, quote: bool
) -> EvaluationContent:
    names = measured.metrics.label_names
    stored, ids = stored_rows(run, measured), {name: at for at, name in enumerate(names)}
    labels, predicted = (
        np.array([ids[name] for name in column]) for column in (stored.true_labels, stored.predicted_labels)
    )
    rows = EvaluatedRows(labels, predicted, stored.probabilities)
    if isinstance(texts, Missing) and stored.texts is not None:
        texts = stored.texts
    shown: Texts = texts if quote else Missing("left out of this page, as --without-texts asked", asked=True)
    known = len(names) - (len(measured.labels.counted_wrong) if measured.labels else 0)
    errors, suspects = _rows_to_look_at(rows, names, known, shown)
    errors, words = _with_words(errors, classifier)
    of_true = np.take_along_axis(rows.probabilities, rows.labels[:, None], axis=1)[:, 0]
    brier = ((rows.probabilities - np.eye(len(names))[rows.labels]) ** 2).sum(axis=1)
    return EvaluationContent(
        measured=measured,
        intervals={
            "macro_f1": macro_f1_interval(rows.labels, rows.predicted, len(names)),
            "negative_log_likelihood": mean_interval(-np.log(np.clip(of_true, SMALLEST_PROBABILITY, 1.0))),
            "brier_score": mean_interval(brier, most=2.0),
        },
        calibrated=reliability(rows.confidence, rows.correct),
        uncalibrated=_uncalibrated(rows, measured, run),
        risk_coverage=risk_coverage(rows.confidence, rows.correct),
        lengths=texts if isinstance(texts, Missing) else lengths_of(rows.correct, texts, run),
        errors=errors,
        suspects=suspects,
        texts=shown if isinstance(shown, Missing) else None,
        words=words,
    )


def _uncalibrated(
    rows: EvaluatedRows, measured: Evaluation, run: RunFolder
) -> tuple[ReliabilityBin, ...] | Missing:
    """Confidence against accuracy without the temperature; a hint how to fit one where there was none."""
    if measured.calibration is None or measured.calibration.temperature == 1.0:
        reason = "these probabilities are the model's own, without a temperature fitted on held-out rows"
        return Missing(reason, shlex.join(["newsdesk", "calibrate", str(run.path)]))
    undivided = without_temperature(rows.probabilities, measured.calibration.temperature)
    return reliability(undivided.max(axis=1), rows.correct)


def without_temperature(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """The probabilities (rows, classes) of the logits before they were divided by the temperature.

    Raised to the power of the temperature, the given ones are proportional to them.
    """
    powers = np.clip(probabilities, SMALLEST_PROBABILITY, 1.0) ** temperature
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float64)


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
    suspects = judged[found.suspects].tolist()

    def quoted(row: int, other: int) -> QuotedRow:
        true = int(rows.labels[row])
        return QuotedRow(
            row=row,
            true_label=label_names[true],
            predicted_label=label_names[other],
            true_probability=float(rows.probabilities[row, true]),
            predicted_probability=float(rows.probabilities[row, other]),
            text=None if isinstance(texts, Missing) else texts[row],
            suspect=row in suspects,
        )

    suggested = zip(suspects, found.suggested[found.suspects].tolist(), strict=True)
    return (
        tuple(quoted(row, int(rows.predicted[row])) for row in confident.tolist()),
        LabelSuspects(
            total=len(suspects),
            noise=found.noise,
            least_accuracy=None if found.accuracy >= limit else limit,
            rows=tuple(quoted(row, other) for row, other in list(suggested)[:QUOTED]),
        ),
    )


def _with_words(
    errors: tuple[QuotedRow, ...], classifier: Callable[[], Classifier]
) -> tuple[tuple[QuotedRow, ...], Missing | None]:
    """The errors with the words that spoke for the wrong class; else why there are none."""
    found = explained([(error.text, error.predicted_label) for error in errors], classifier)
    if not isinstance(found, list):
        return errors, found
    return tuple(replace(error, words=words) for error, words in zip(errors, found, strict=True)), None
