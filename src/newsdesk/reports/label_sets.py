"""What a report says of an evaluation where a text may have several labels."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import UserError
from newsdesk.evaluation.label_sets import LabelSetEvaluation
from newsdesk.evaluation.predicted_rows import PredictedRows, labels_of
from newsdesk.evaluation.significance import mean_interval
from newsdesk.label_set_metrics import (
    Counts,
    LabelMetrics,
    bootstrap_intervals,
    labels_to_cover,
    ranking_precisions,
)
from newsdesk.metrics import ReliabilityBin, reliability, wilson_interval
from newsdesk.prediction.abstention import RiskCoverage, risk_coverage
from newsdesk.prediction.classifier import Classifier
from newsdesk.prediction.explanation import WordWeight
from newsdesk.prediction.label_promises import label_rule
from newsdesk.reports.parts import QUOTED, Lengths, Missing, Texts, explained, lengths_of, stored_rows
from newsdesk.runs.calibration import Calibration, read_held_out_rows
from newsdesk.runs.folder import RunFolder
from newsdesk.runs.label_decisions import LabelDecisions

LEAST_PROBABILITY = 0.1
"""Of a label of a text that counts in reliability: most labels of most texts surely are not true."""
PROMISED = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of wrong labels of which the report says whether they can be promised."""
_ROUNDED = 1e-6  # how far a stored probability may be from the one that decided

Interval = tuple[float, float]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class LabelLine:
    """One label in the table of labels.

    Attributes:
        figures: as metrics.json has them.
        precision, recall: their 95 % Wilson intervals; None where nothing is assigned, or true.
        threshold: from what probability on it is assigned; None where that is not known.
    """

    figures: LabelMetrics
    precision: Interval | None
    recall: Interval | None
    threshold: float | None


@dataclass(frozen=True)
class PromisedLabels:
    """Labels that ``--abstain`` would let through, by the run's held-out rows, and what became of them here.

    Attributes:
        error_rate: the share of wrong labels that is promised, with 95 % confidence.
        threshold: of the probability of a label; None where the rows cannot promise it.
        sure, wrong: of the labels assigned to the evaluated texts, how many reach it, and how many of these
            are wrong.
        coverage: the share of the assigned labels that reach it.
    """

    error_rate: float
    threshold: float | None
    sure: int = 0
    wrong: int = 0
    coverage: float = 0.0


@dataclass(frozen=True)
class QuotedSet:
    """A text with a label that is wrong, or missed.

    Attributes:
        row: 0-based number in the evaluated data.
        fault: whether the label was assigned and is not true, or is true and was missed.
        label, probability: which one, and its probability, 0 to 1.
        true_labels, assigned_labels: all of the text's.
        text: what was read; None where texts are left out or not available.
        words: the text's words with what each did for the label; None where not computed.
    """

    row: int
    fault: Literal["assigned", "missed"]
    label: str
    probability: float
    true_labels: tuple[str, ...]
    assigned_labels: tuple[str, ...]
    text: str | None = None
    words: tuple[WordWeight, ...] | None = None


@dataclass(frozen=True)
class LabelSetContent:
    """What a report says of one evaluation where a text may have several labels.

    Attributes:
        measured: the evaluation in metrics.json.
        intervals: 95 % intervals of its ``micro_precision``, ``micro_recall``,
            ``label_ranking_average_precision`` and ``coverage_error``; None for a mean of a single text.
        labels: a line for each label, those with the most texts first.
        calibration: the run's, where it decided the labels of these texts.
        calibrated: probability against truth of the labels of all texts, the least probable left out.
        uncalibrated: the same without the calibration, or how to make one.
        risk_coverage: of the assigned labels, what keeping only the probable ones would gain; None where none
            is assigned.
        promised: what the run's held-out rows can promise, or why nothing.
        lengths: the share of texts with all labels right, by length.
        assigned_wrongly, missed: the surest wrong labels and the surest misses, one a text.
        texts: None where texts are quoted, else why not.
        words: None where the words that decided are shown, else why not.
    """

    measured: LabelSetEvaluation
    intervals: Mapping[str, Interval | None]
    labels: tuple[LabelLine, ...]
    calibration: Calibration | None
    calibrated: tuple[ReliabilityBin, ...]
    uncalibrated: tuple[ReliabilityBin, ...] | Missing
    risk_coverage: RiskCoverage | None
    promised: tuple[PromisedLabels, ...] | Missing
    lengths: Lengths | Missing
    assigned_wrongly: tuple[QuotedSet, ...]
    missed: tuple[QuotedSet, ...]
    texts: Missing | None
    words: Missing | None


def label_set_content(
    run: RunFolder,
    measured: LabelSetEvaluation,
    calibration: Calibration | None,
    *,
    texts: Texts,
    classifier: Callable[[], Classifier],
    quote: bool,
) -> LabelSetContent:
    """All that a report says of an evaluation; arguments as for `content.gather`.

    ``calibration`` is the run's own of today. Raises UserError when files of the run are damaged.
    """
    names, stored = measured.metrics.label_names, stored_rows(run, measured)
    labels, assigned = (_matrix(cells, names) for cells in (stored.true_labels, stored.predicted_labels))
    if isinstance(texts, Missing) and stored.texts is not None:
        texts = stored.texts
    shown: Texts = texts if quote else Missing("left out of this page, as --without-texts asked", asked=True)
    current = calibration if _decided_by(calibration, stored, assigned) else None
    known = len(names) - (len(measured.labels.counted_wrong) if measured.labels else 0)
    wrong, missed = _worst(labels, assigned, stored, known, shown)
    words = explained([(one.text, one.label) for one in (*wrong, *missed)], classifier)
    if isinstance(words, list):
        wrong, missed = (
            tuple(replace(one, words=of) for one, of in zip(group, found, strict=True))
            for group, found in ((wrong, words[: len(wrong)]), (missed, words[len(wrong) :]))
        )
    right = np.asarray((labels == assigned).all(axis=1), dtype=np.bool_)
    return LabelSetContent(
        measured=measured,
        intervals=_intervals(stored.probabilities, labels, assigned),
        labels=_lines(measured, labels, assigned, current),
        calibration=current,
        calibrated=_reliability(stored.probabilities, labels),
        uncalibrated=_uncalibrated(stored.probabilities, labels, current, run),
        risk_coverage=risk_coverage(stored.probabilities[assigned], labels[assigned])
        if assigned.any()
        else None,
        promised=_promised(run, current, stored.probabilities, labels, assigned),
        lengths=texts if isinstance(texts, Missing) else lengths_of(right, texts, run),
        assigned_wrongly=wrong,
        missed=missed,
        texts=shown if isinstance(shown, Missing) else None,
        words=words if isinstance(words, Missing) else None,
    )


def _matrix(cells: Sequence[str], names: Sequence[str]) -> Bools:
    """Which labels each text has, (texts, labels), from cells that join them."""
    ids, found = {name: at for at, name in enumerate(names)}, np.zeros((len(cells), len(names)), np.bool_)
    for row, cell in enumerate(cells):
        found[row, [ids[name] for name in labels_of(cell)]] = True
    return found


def _decided_by(calibration: Calibration | None, stored: PredictedRows, assigned: Bools) -> bool:
    """Whether it was these thresholds that assigned the labels: a run may be calibrated again later."""
    if calibration is None or calibration.decisions is None:
        return False
    decisions, count = calibration.decisions, len(calibration.decisions)
    given, own = stored.probabilities[:, :count], assigned[:, :count]
    if given.shape[1] != count:
        return False
    thresholds = np.array(decisions.thresholds)
    told = (np.abs(given - thresholds) > _ROUNDED).all(axis=1)
    differs = (decisions.assigned(given) != own).any(axis=1)
    if decisions.at_least_one:  # which label comes closest may hang on the digits that are not stored
        reached = (given >= thresholds).any(axis=1)
        differs = np.where(reached, differs, own.sum(axis=1) != 1)
    return not (differs & told).any()


def _intervals(
    probabilities: NDArray[np.float64], labels: Bools, assigned: Bools
) -> dict[str, Interval | None]:
    precision, recall = bootstrap_intervals(assigned, labels, (Counts.micro_precision, Counts.micro_recall))
    return {
        "micro_precision": precision,
        "micro_recall": recall,
        "label_ranking_average_precision": mean_interval(ranking_precisions(probabilities, labels), most=1.0),
        "coverage_error": mean_interval(labels_to_cover(probabilities, labels), most=float(labels.shape[1])),
    }


def _lines(
    measured: LabelSetEvaluation, labels: Bools, assigned: Bools, calibration: Calibration | None
) -> tuple[LabelLine, ...]:
    figures = measured.metrics.per_label
    decisions = None if calibration is None else calibration.decisions
    thresholds: list[float | None] = [None] * len(figures)
    if decisions is not None:
        thresholds[: len(decisions)] = decisions.thresholds
    columns = ((labels & assigned).sum(axis=0), assigned.sum(axis=0), labels.sum(axis=0))
    counts = zip(*(column.tolist() for column in columns), strict=True)
    lines = [
        LabelLine(
            of_label,
            wilson_interval(hits, given) if given else None,
            wilson_interval(hits, true) if true else None,
            threshold,
        )
        for of_label, (hits, given, true), threshold in zip(figures, counts, thresholds, strict=True)
    ]
    return tuple(sorted(lines, key=lambda line: -line.figures.support))


def _reliability(probabilities: NDArray[np.float64], labels: Bools) -> tuple[ReliabilityBin, ...]:
    kept = probabilities >= LEAST_PROBABILITY
    return reliability(probabilities[kept], labels[kept]) if kept.any() else ()


def _uncalibrated(
    probabilities: NDArray[np.float64], labels: Bools, calibration: Calibration | None, run: RunFolder
) -> tuple[ReliabilityBin, ...] | Missing:
    if calibration is None or calibration.decisions is None:
        reason = "the run's calibration of today is not the one that these probabilities were made with"
        return Missing(reason, shlex.join(["newsdesk", "calibrate", str(run.path)]) + ", and evaluate again")
    decisions = calibration.decisions
    own = without_calibration(probabilities[:, : len(decisions)], decisions)
    return _reliability(own, labels[:, : len(decisions)])


def without_calibration(probabilities: NDArray[np.float64], decisions: LabelDecisions) -> NDArray[np.float64]:
    """The probabilities (rows, labels) of the logits before they were scaled and shifted."""
    exact = np.clip(probabilities, _ROUNDED / 2, 1 - _ROUNDED / 2)
    logits = (np.log(exact) - np.log1p(-exact) - np.array(decisions.shifts)) / np.array(decisions.scales)
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -700, 700))), dtype=np.float64)


def _promised(
    run: RunFolder,
    calibration: Calibration | None,
    probabilities: NDArray[np.float64],
    labels: Bools,
    assigned: Bools,
) -> tuple[PromisedLabels, ...] | Missing:
    rows = read_held_out_rows(run.path, run.labels)
    if rows is None or calibration is None or calibration.decisions is None:
        return Missing("nothing can be promised: the run has no held-out rows that decided these labels")
    found = []
    for error_rate in PROMISED:
        try:
            rule = label_rule(rows, calibration.decisions, abstain=error_rate)
        except UserError:
            rule = None
        if rule is None or rule.promise is None:
            found.append(PromisedLabels(error_rate, None))
            continue
        sure = rule.sure(probabilities, assigned)
        kept, wrong = int(sure.sum()), int((sure & ~labels).sum())
        coverage = kept / max(1, int(assigned.sum()))
        found.append(PromisedLabels(error_rate, rule.promise.threshold, kept, wrong, coverage))
    return tuple(found)


def _worst(
    labels: Bools, assigned: Bools, stored: PredictedRows, known: int, texts: Texts
) -> tuple[tuple[QuotedSet, ...], tuple[QuotedSet, ...]]:
    """The wrong labels of the highest probability, and the missed ones of the lowest, one a text each.

    Labels beyond the first ``known`` ones are unknown to the run, which had to miss them.
    """
    names, probabilities = stored.label_names, stored.probabilities

    def quoted(fault: Literal["assigned", "missed"], faulty: Bools) -> tuple[QuotedSet, ...]:
        sureness = np.where(faulty, probabilities if fault == "assigned" else 1 - probabilities, -1.0)
        surest = sureness.argmax(axis=1)
        rows = np.flatnonzero(faulty.any(axis=1))
        order = rows[np.argsort(-sureness[rows, surest[rows]], kind="stable")][: QUOTED // 2]
        return tuple(
            QuotedSet(
                row=row,
                fault=fault,
                label=names[surest[row]],
                probability=float(probabilities[row, surest[row]]),
                true_labels=labels_of(stored.true_labels[row]),
                assigned_labels=labels_of(stored.predicted_labels[row]),
                text=None if isinstance(texts, Missing) else texts[row],
            )
            for row in order.tolist()
        )

    missed = labels & ~assigned
    missed[:, known:] = False
    return quoted("assigned", assigned & ~labels), quoted("missed", missed)
