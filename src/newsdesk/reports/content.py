"""What a report tells, as plain values: gathered from a run, laid out by the page, drawn by the plots."""

from __future__ import annotations

from dataclasses import dataclass

from newsdesk.evaluation.baseline import BaselineResult
from newsdesk.metrics import Metrics, ReliabilityBin
from newsdesk.prediction.abstention import RiskCoverage
from newsdesk.prediction.explanation import WordWeight
from newsdesk.reports.facts import RunFacts, Source
from newsdesk.runs.log import Validation


@dataclass(frozen=True)
class Missing:
    """A part that a report has nothing for.

    Attributes:
        reason: why.
        command: what fills it; None where nothing can.
        asked: whether it was left out because someone wanted that.
    """

    reason: str
    command: str | None = None
    asked: bool = False


@dataclass(frozen=True)
class Measured:
    """A figure with its 95 % interval, both in the figure's own unit."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Reliability:
    """How far confidence can be taken at its word.

    Attributes:
        name: what was measured: probabilities as predicted, or before the temperature.
        expected_calibration_error: 0 to 1.
        negative_log_likelihood: nats a row.
        bins: from the least to the most confident rows.
    """

    name: str
    expected_calibration_error: float
    negative_log_likelihood: float
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class Calibration:
    """Confidence against truth: as predicted, and before the temperature where the run has one (else 1)."""

    after: Reliability
    before: Reliability | Missing
    temperature: float


@dataclass(frozen=True)
class LengthBin:
    """Rows whose texts have from ``shortest`` to ``longest`` tokens, and how many of them are right."""

    shortest: int
    longest: int
    rows: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Lengths:
    """Accuracy by length; ``cut`` is the share of rows that fill all ``max_length`` tokens, or more."""

    bins: tuple[LengthBin, ...]
    cut: float
    max_length: int


@dataclass(frozen=True)
class QuotedRow:
    """A row that a person should look at.

    Attributes:
        row: 0-based number in the evaluated data.
        true_label: the class it is labelled with.
        predicted_label: the class it was given, or that its label is likely meant to be.
        true_probability: the probability of the labelled class, 0 to 1.
        predicted_probability: that of the other.
        text: what was read; None where texts are left out or not to be had.
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
        least_accuracy: accuracy that a model needs for labels to be judged by it; None where it has it.
        rows: the most suspect ones, the most suspect first.
    """

    total: int
    noise: float
    least_accuracy: float | None
    rows: tuple[QuotedRow, ...]


@dataclass(frozen=True)
class EvaluationContent:
    """What was measured on one split.

    Attributes:
        source: where the rows came from.
        licence: what may be done with their texts, as far as it is known.
        fingerprint: sha256 of the rows.
        metrics: the figures of metrics.json.
        macro_f1: with its interval.
        negative_log_likelihood: likewise, in nats a row.
        brier_score: likewise, 0 to 2.
        baseline: a yardstick on the same rows, where one was measured.
        calibration: confidence against truth.
        risk_coverage: what answering only the confident rows would gain.
        lengths: accuracy by length of the text.
        errors: the most confident errors.
        errors_in_all: how many rows are wrong.
        suspects: the likely label errors.
        texts: None where texts are quoted, else why not.
        words: None where the words that decided are shown, else why not.
        notes: what a person should know of the rows, a sentence each.
    """

    source: Source
    licence: str | None
    fingerprint: str
    metrics: Metrics
    macro_f1: Measured
    negative_log_likelihood: Measured
    brier_score: Measured
    baseline: BaselineResult | None
    calibration: Calibration
    risk_coverage: RiskCoverage
    lengths: Lengths | Missing
    errors: tuple[QuotedRow, ...]
    errors_in_all: int
    suspects: LabelSuspects
    texts: Missing | None
    words: Missing | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingPoint:
    """Neighbouring steps as one point: epochs done, mean loss, and the last step's learning rate."""

    epoch: float
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class Cost:
    """What the training took.

    Attributes:
        seconds: from the start to the last event, validation included.
        steps: optimiser steps.
        rows: rows learned from, each counted as often as it was seen.
        tokens: tokens learned from, padding not counted.
        padded_tokens: tokens computed, padding included.
        device: what computed it.
        precision: number format.
        engine: which implementation.
        processes: how many trained together.
    """

    seconds: float
    steps: int
    rows: int
    tokens: int
    padded_tokens: int
    device: str
    precision: str
    engine: str
    processes: int


@dataclass(frozen=True)
class TrainingContent:
    """A training as its log tells it. ``steps_a_point`` says how many steps one point stands for."""

    points: tuple[TrainingPoint, ...]
    validations: tuple[Validation, ...]
    steps_a_point: int
    cost: Cost


@dataclass(frozen=True)
class ReportContent:
    """All that a report of one run on one split tells.

    Attributes:
        split: the evaluated split.
        facts: what the run is made of: base, data, recipe, versions.
        base_parameters: numbers in the base model; None where it is not one of the catalogue.
        evaluation: what was measured.
        training: how the run came about.
        untold: None where it is known what the run learned from, else why not.
        commands: what to type to repeat all of it.
    """

    split: str
    facts: RunFacts
    base_parameters: int | None
    evaluation: EvaluationContent | Missing
    training: TrainingContent | Missing
    untold: Missing | None
    commands: tuple[str, ...]

    @property
    def missing(self) -> tuple[Missing, ...]:
        """The parts there is nothing for, though there might be."""
        parts: list[object] = [self.evaluation, self.training, self.untold]
        if isinstance(self.evaluation, EvaluationContent):
            told = self.evaluation
            parts += [told.calibration.before, told.lengths, told.texts, told.words]
        return tuple(part for part in parts if isinstance(part, Missing) and not part.asked)
