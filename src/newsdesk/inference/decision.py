"""What a classifier answers, and which classes come into question where it does not."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from newsdesk.calibration import HeldOutRows, softmax
from newsdesk.errors import UserError
from newsdesk.evaluation.conformal import highest_coverage, prediction_sets, set_threshold
from newsdesk.evaluation.selective import Promise, lowest_promise, promised_threshold
from newsdesk.off_topic import OffTopicScore

CANDIDATES, REASON = "candidates", "reason"
OFF_TOPIC = "off_topic"
FOREIGN = "off topic"  # the reason that goes before others
PROMISES = ("abstain", "confidence", "sets", "off_topic")
"""What may be asked of a classifier's ``decision_rule``, by name."""

_MORE_ROWS = "calibrate on more labelled rows with newsdesk calibrate --data FILE"


@dataclass(frozen=True)
class DecisionRule:
    """How probabilities become answers.

    Attributes:
        promise: the least confidence that is answered, and what it promises; None: every text is answered.
        coverage: the share of texts whose set of classes holds the true one, where sets were asked for.
        set_threshold: the least probability of a class that comes into question.
        rows: how many calibration rows both stand on.
        off_topic: texts are not answered where so small a share of the classifier's own looks as foreign;
            None: foreign ones are answered, too.
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
            REASON: self.promise is not None or self.off_topic is not None,
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
        """What is promised, a line each."""
        lines = []
        if self.promise is not None:
            error_rate, confidence = 100 * self.promise.error_rate, 100 * self.promise.confidence
            lines.append(
                f"at most {error_rate:.4g} % of the answered are wrong, with {confidence:.4g} % confidence: "
                f"threshold {self.promise.threshold:.4f}, which answers {self.promise.coverage:.1%} of "
                f"{self.rows:,} calibration rows"
            )
        if self.coverage is not None:
            lines.append(
                f"the candidates hold the true class with a probability of {100 * self.coverage:.4g} %"
            )
        if self.off_topic is not None:
            lines.append(
                f"texts that look more foreign than {1 - self.off_topic:.4g} of the classifier's own are not "
                "answered"
            )
        return lines


def decision_rule(
    rows: HeldOutRows,
    temperature: float,
    *,
    abstain: float | None = None,
    confidence: float = 0.95,
    sets: float | None = None,
) -> DecisionRule | None:
    """The rule for a wanted error rate among the answered, or sets of a wanted coverage; None for neither.

    Where only ``abstain`` is given, the candidates of an unanswered text are its set of coverage 1 - abstain.
    Raises UserError when a share does not lie between 0 and 1, or the rows cannot promise as much.
    """
    if abstain is None and sets is None:
        return None
    for flag, share in (("--abstain", abstain), ("--confidence", confidence), ("--sets", sets)):
        if share is not None:
            _require_share(flag, share)
    probabilities = softmax(rows.logits, temperature)
    promise = None if abstain is None else _promise(probabilities, rows.labels, abstain, confidence)
    most = highest_coverage(len(rows.labels))
    if sets is not None and sets > most:
        raise UserError(
            f"sets of coverage {sets:g} would hold every class",
            found=f"{len(rows.labels):,} calibration rows, which can promise {most:.4f} at most",
            fix=f"lower --sets, or {_MORE_ROWS}",
        )
    coverage = sets if sets is not None else min(most, 1 - (abstain or 0.0))
    threshold = set_threshold(probabilities, rows.labels, coverage)
    return DecisionRule(promise, sets, threshold, len(rows.labels))


def with_off_topic(rule: DecisionRule | None, level: float, score: OffTopicScore) -> DecisionRule:
    """The rule, and besides: texts with a p-value of ``level`` or less are off topic.

    Raises UserError when the level is no share, or so small that no text could reach it.
    """
    _require_share("--off-topic", level)
    rows = len(score.reference)
    if level * (rows + 1) < 1:
        raise UserError(
            f"no text can look more foreign than {1 - level:g} of the classifier's own",
            found=f"{rows:,} held-out rows to compare with, which tell shares from {1 / (rows + 1):.2g} on",
            fix=f"ask for --off-topic {max(0.01, 1 / (rows + 1)):.2g}, or {_MORE_ROWS}",
        )
    rule = rule or DecisionRule(promise=None, coverage=None, set_threshold=1.0, rows=0)
    return replace(rule, off_topic=level)


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
    lowest = lowest_promise(score, correct, confidence)
    can = "none below 0.5" if lowest is None else f"{lowest:g}"
    raise UserError(
        f"no threshold promises an error rate of {error_rate:g} with {confidence:g} confidence",
        found=f"{len(labels):,} calibration rows, {correct.mean():.1%} of them right; the lowest error rate "
        f"that they can promise: {can}",
        fix=("" if lowest is None else f"ask for --abstain {lowest:g}, or ") + _MORE_ROWS,
    )
