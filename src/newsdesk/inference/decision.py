"""What a classifier answers, which classes it names besides, and what of that is promised.

Filters come first: a text that one of them stops gets no answer and no candidates, whatever its confidence.
A promise is therefore about the texts that pass, and stands on the calibration rows that pass the same
filters; rows that do not would promise for texts that are never answered.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from newsdesk.calibration import HeldOutRows, softmax
from newsdesk.errors import UserError, counted
from newsdesk.evaluation.conformal import (
    coverage_spread,
    highest_coverage,
    prediction_sets,
    set_threshold,
)
from newsdesk.evaluation.selective import Promise, lowest_promise, promised_threshold
from newsdesk.off_topic import OffTopicScore

CANDIDATES, REASON = "candidates", "reason"
OFF_TOPIC = "off_topic"
FOREIGN = "off topic"  # the reason that goes before others
PROMISES = ("abstain", "confidence", "sets", "off_topic", "answer_empty")
"""What may be asked of a classifier's ``decision_rule``, by name."""

_MORE_ROWS = "calibrate on more labelled rows with newsdesk calibrate --data FILE"


@dataclass(frozen=True)
class DecisionRule:
    """How probabilities become answers.

    Attributes:
        promise: the least confidence that is answered, and what it promises; None: every text is answered.
        coverage: the share of texts whose set of classes contains the true one, where sets were asked for.
        set_threshold: the least probability of a class that is named as a candidate.
        rows: how many calibration rows both stand on: those that pass the filter of ``off_topic``.
        off_topic: texts whose p-value is at most this are not answered; None: all texts are.
    """

    promise: Promise | None
    coverage: float | None
    set_threshold: float
    rows: int
    off_topic: float | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """What an output says of each text besides its classes."""
        wanted = {
            CANDIDATES: self.names_candidates,
            REASON: True,  # an empty text gets no answer either
            OFF_TOPIC: self.off_topic is not None,
        }
        return tuple(name for name, is_wanted in wanted.items() if is_wanted)

    @property
    def names_candidates(self) -> bool:
        """Whether classes are named beside the answer or instead of it."""
        return self.promise is not None or self.coverage is not None

    def foreign(self, off_topic: NDArray[np.floating] | None, rows: int) -> NDArray[np.bool_]:
        """Which rows look too foreign to be answered, (rows,), by their p-values (rows,)."""
        if self.off_topic is None or off_topic is None:
            return np.zeros(rows, dtype=np.bool_)
        return np.asarray(off_topic <= self.off_topic, dtype=np.bool_)

    def confident(self, probabilities: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which rows are sure enough, (rows,), by their probabilities (rows, classes)."""
        if self.promise is None:
            return np.ones(len(probabilities), dtype=np.bool_)
        # As float64, which is what the threshold was found on: float32 would round the threshold too.
        sure = probabilities.max(axis=1, initial=0.0).astype(np.float64) >= self.promise.threshold
        return np.asarray(sure, dtype=np.bool_)

    def in_question(self, probabilities: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which classes are named beside the answer or instead of it, (rows, classes).

        With ``coverage`` the set of every row; else of those that are not answered, with two classes or more.
        """
        sets = prediction_sets(probabilities, self.set_threshold)
        if self.promise is None:
            return sets
        left = ~self.confident(probabilities)
        second = np.sort(probabilities, axis=1)[:, -2:].min(axis=1, keepdims=True)
        sets |= left[:, None] & (probabilities >= second)
        return sets if self.coverage is not None else sets & left[:, None]

    def reason(self) -> str:
        """Why a text is not answered. Call it only where there is a promise."""
        assert self.promise is not None
        return f"confidence below {self.promise.threshold:.4f}"

    def describe(self) -> list[str]:
        """What is promised, of which texts, a line each."""
        lines = []
        on_topic = "" if self.off_topic is None else " that are on topic"
        if self.promise is not None:
            error_rate, confidence = 100 * self.promise.error_rate, 100 * self.promise.confidence
            lines.append(
                f"at most {error_rate:.4g} % of the answered are wrong, with {confidence:.4g} % confidence: "
                f"threshold {self.promise.threshold:.4f}, which answers {self.promise.coverage:.1%} of "
                f"{counted(self.rows, 'calibration row')}{on_topic}"
            )
        if self.coverage is not None:
            spread = 100 * coverage_spread(self.rows, self.coverage)
            answered, whichever = "", ""
            if self.promise is not None:
                answered, whichever = ", answered or not", ", whether or not they can promise the error rate"
            lines.append(
                f"the candidates contain the true class for {100 * self.coverage:.4g} % of texts{on_topic}"
                f"{answered}: on average over draws of {counted(self.rows, 'calibration row')}{whichever}; "
                f"one draw may give {spread:.1f} points more or less (standard deviation)"
            )
        if self.off_topic is not None:
            lines.append(
                f"texts less typical of the training topics than {100 * (1 - self.off_topic):.4g} % of the "
                "calibration rows are off topic and get no answer"
            )
        return lines


def decision_rule(
    rows: HeldOutRows | None,
    temperature: float,
    *,
    abstain: float | None = None,
    confidence: float = 0.95,
    sets: float | None = None,
    off_topic: float | None = None,
    score: OffTopicScore | None = None,
    answer_empty: bool = False,
) -> DecisionRule | None:
    """The rule for a wanted error rate among the answered, sets of a wanted coverage, or a filter; or None.

    Where only ``abstain`` is given, the candidates of an unanswered text are its set of coverage 1 - abstain.

    Args:
        rows: calibration rows; needed for ``abstain`` and ``sets``.
        temperature: what their logits, and those of texts, are divided by.
        abstain: at most this share of the answered is wrong ...
        confidence: ... with this probability over the draw of the rows.
        sets: the share of texts whose candidates contain the true class.
        off_topic: texts with a p-value of at most this by ``score`` get neither answer nor candidates, and
            the promises are about the others.
        score: needed for ``off_topic``; its reference was made of ``rows``.
        answer_empty: whether texts that say nothing are answered like others; else rows of such texts do
            not count, either.

    Raises:
        UserError: when a share does not lie between 0 and 1, or the rows cannot promise as much.
    """
    shares = {"--abstain": abstain, "--confidence": confidence, "--sets": sets, "--off-topic": off_topic}
    for flag, share in shares.items():
        if share is not None:
            _require_share(flag, share)
    if off_topic is not None:
        assert score is not None
        _require_reachable(off_topic, score)
    if abstain is None and sets is None:
        return None if off_topic is None else DecisionRule(None, None, 1.0, 0, off_topic)
    assert rows is not None
    passing = np.ones(len(rows.labels), dtype=np.bool_)
    if rows.readable is not None and not answer_empty:
        passing &= rows.readable
    if off_topic is not None and score is not None:
        passing &= _on_topic(rows, off_topic, score)
    labels, probabilities = rows.labels[passing], softmax(rows.logits[passing], temperature)
    promise = None if abstain is None else _promise(probabilities, labels, abstain, confidence)
    most = highest_coverage(len(labels))
    if sets is not None and sets > most:
        raise UserError(
            f"sets of coverage {sets:g} would contain every class",
            found=f"{counted(len(labels), 'calibration row')}"
            f"{'' if off_topic is None else ' that are on topic'}, which can promise {most:.4f} at most",
            fix=f"lower --sets, or {_MORE_ROWS}",
        )
    coverage = sets if sets is not None else min(most, 1 - (abstain or 0.0))
    threshold = set_threshold(probabilities, labels, coverage)
    return DecisionRule(promise, sets, threshold, len(labels), off_topic)


def _on_topic(rows: HeldOutRows, level: float, score: OffTopicScore) -> NDArray[np.bool_]:
    if rows.distances is None:
        raise UserError(
            "--off-topic does not go with --abstain or --sets here",
            found="calibration rows of an earlier version, of which it is not known which are off topic",
            fix="calibrate again with newsdesk calibrate",
        )
    return score.on_topic(rows.distances, level)


def _require_reachable(level: float, score: OffTopicScore) -> None:
    """Raise UserError where the level is so low that no text could be that untypical."""
    rows = len(score.reference)
    if level * (rows + 1) < 1:
        raise UserError(
            f"no text can be less typical of the training topics than {100 * (1 - level):g} % of the "
            "calibration rows",
            found=f"{counted(rows, 'row')} to compare with, which tell shares from {1 / (rows + 1):.2g} on",
            fix=f"ask for --off-topic {max(0.01, 1 / (rows + 1)):.2g}, or {_MORE_ROWS}",
        )


def _require_share(flag: str, share: float) -> None:
    if not 0 < share < 1:
        raise UserError(
            f"{flag} takes a share between 0 and 1", found=str(share), fix=f"for example {flag} 0.05"
        )


def _promise(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], error_rate: float, confidence: float
) -> Promise:
    score = probabilities.max(axis=1).astype(np.float64)
    correct = np.asarray(probabilities.argmax(axis=1) == labels, dtype=np.bool_)
    promise = promised_threshold(score, correct, error_rate, confidence)
    if promise is not None:
        return promise
    right = f", {correct.mean():.1%} of them right" if len(labels) else ""
    found = f"{counted(len(labels), 'calibration row')}{right}"
    lowest = lowest_promise(score, correct, error_rate, confidence)
    if lowest is None:
        found, fix = f"{found}, which cannot promise any useful error rate", _MORE_ROWS
    else:
        # The confidence pays for the search: a rate that the rows themselves chose needs more than one named.
        fix = f"ask for --abstain {lowest.error_rate:g} --confidence {lowest.confidence:g}, or {_MORE_ROWS}"
    raise UserError(
        f"no threshold promises an error rate of {error_rate:g} with {confidence:g} confidence",
        found=found,
        fix=fix,
    )
