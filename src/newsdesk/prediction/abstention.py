"""What a classifier answers, which classes it names besides, and what of that is promised.

A text that is off topic or empty gets no answer and no candidates, whatever its confidence. So promises are
about the others, and rest on the calibration rows that pass the same filters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, log, log1p, sqrt
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import UserError, counted
from newsdesk.runs.calibration import HeldOutRows, softmax
from newsdesk.runs.off_topic import OffTopicScore

LEAST_SHARE = 1e-6
"""Of error rates and coverages, and of what is missing to 1: no calibration rows tell anything beyond."""
ERROR_RATES = (0.01, 0.02, 0.05)
"""Shares wrong among the answered at which an evaluation states the coverage."""

POINTS_KEPT = 200
THRESHOLDS = tuple(1 - 2 ** (-step / 8) for step in range(128, -1, -1))
"""Confidences that may become a threshold, fixed before any row is seen, as the guarantee demands."""
RATES_SUGGESTED = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4)
"""Error rates that `lowest_promise` tries, fixed likewise."""


@dataclass(frozen=True)
class CoverageAt:
    """The largest share of rows that can be answered at no more than this share of errors, both 0 to 1."""

    error_rate: float
    coverage: float


@dataclass(frozen=True)
class RiskCoverage:
    """What a classifier gains by leaving the least sure rows to a person (Geifman and El-Yaniv, 2017).

    Attributes:
        curve: (coverage, share wrong among the answered), up to 200 points of rising coverage.
        area: under the whole curve, lower is better; the mean share wrong over all coverages.
        excess_area: of that, what an ideal order, all wrong rows last, would save.
        coverage_at: for some error rates, the coverage. It is read off these rows' labels, so it is no
            promise.
    """

    curve: tuple[tuple[float, float], ...]
    area: float
    excess_area: float
    coverage_at: tuple[CoverageAt, ...]


@dataclass(frozen=True)
class Promise:
    """A threshold on the confidence, and what it promises.

    Attributes:
        threshold: texts with this confidence or more are answered.
        error_rate: at most this share of the answered is wrong,
        confidence: with this probability over the draw of the calibration rows.
        rows: how many calibration rows there were.
        coverage: share of them that it answers.
    """

    threshold: float
    error_rate: float
    confidence: float
    rows: int
    coverage: float


def risk_coverage(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], error_rates: Sequence[float] = ERROR_RATES
) -> RiskCoverage:
    """The risk-coverage curve of confidences (rows,) whose predictions are right or not (rows,).

    Among rows of equal confidence errors count as spread evenly, so that the order of rows does not matter.
    Raises ValueError without rows.
    """
    if len(confidence) == 0:
        raise ValueError("a risk-coverage curve needs at least one row")
    levels, inverse = np.unique(-np.asarray(confidence, dtype=np.float64), return_inverse=True)
    rows_at = np.bincount(inverse, minlength=len(levels))
    wrong_at = np.bincount(inverse, weights=~correct, minlength=len(levels))
    total = len(confidence)
    answered = np.arange(1, total + 1)
    risk = np.cumsum(np.repeat(wrong_at / rows_at, rows_at)) / answered
    right = int(np.sum(correct))
    ideal = np.maximum(0, answered - right) / answered
    reachable = np.cumsum(rows_at)
    coverage_at = []
    for rate in error_rates:
        within = reachable[np.cumsum(wrong_at) <= rate * reachable]
        coverage_at.append(CoverageAt(rate, float(within[-1] / total) if len(within) else 0.0))
    kept = np.unique(np.linspace(0, total - 1, POINTS_KEPT).round().astype(np.int64))
    points = zip((answered[kept] / total).tolist(), risk[kept].tolist(), strict=True)
    return RiskCoverage(tuple(points), float(risk.mean()), float((risk - ideal).mean()), tuple(coverage_at))


def promised_threshold(
    score: NDArray[np.floating],
    correct: NDArray[np.bool_],
    error_rate: float,
    confidence: float = 0.95,
    *,
    worth: float = 1.0,
) -> Promise | None:
    """The lowest threshold on the confidence for which held-out rows promise an error rate; None if none.

    With probability ``confidence`` over the draw of the rows, at most ``error_rate`` of the texts answered
    at that threshold are wrong, for texts exchangeable with the rows. ``score`` and ``correct`` are (rows,).

    Learn then Test (Angelopoulos et al., 2021): thresholds are tested in a fixed sequence, from sure to less
    sure, each by the exact binomial tail, until one fails; since only the first false one can be passed
    wrongly, no share of the error is spent on the others. Thresholds that too few rows reach for any outcome
    to pass are passed over; that keeps the level as long as errors do not get rarer where confidence falls.
    A row counts as ``worth`` rows: see `HeldOutRows.worth`.
    Raises ValueError for rates outside 0 to 1, or nearer to either than `LEAST_SHARE`.
    """
    if not (LEAST_SHARE <= error_rate <= 1 - LEAST_SHARE and 0 < confidence < 1):
        raise ValueError(f"an error rate of {error_rate} with confidence {confidence}")
    order = np.argsort(-np.asarray(score, dtype=np.float64), kind="stable")
    falling = -np.asarray(score, dtype=np.float64)[order]
    wrong = np.concatenate([[0], np.cumsum(~correct[order])])
    least_rows = ceil(log(1 - confidence) / log1p(-error_rate))
    best = None
    for threshold in THRESHOLDS:
        answered = int(np.searchsorted(falling, -threshold, side="right"))
        rows = int(worth * answered)
        if rows < least_rows:
            continue
        if binomial_tail(ceil(worth * wrong[answered]), rows, error_rate) > 1 - confidence:
            break
        best = Promise(threshold, error_rate, confidence, len(score), answered / len(score))
    return best


PromiseAt = Callable[[float, float], Promise | None]
"""What calibration rows promise for an error rate and a confidence."""


def lowest_promise(promise_at: PromiseAt, above: float, confidence: float = 0.95) -> Promise | None:
    """The promise of the lowest error rate over ``above`` that some rows can give; None if they give none.

    What holds for a rate named beforehand does not hold for one that the rows chose. So each of the
    ``RATES_SUGGESTED`` over ``above`` is tested at a higher confidence, which the returned promise carries:
    1 - ``confidence`` is divided evenly among them (Bonferroni). Only a rate that can be promised at
    ``confidence`` itself, too, is returned.
    """
    rates = [rate for rate in RATES_SUGGESTED if rate > above]
    # Rounded up to what is printed, for a person to type.
    stricter = ceil(1e4 * (1 - (1 - confidence) / max(1, len(rates))) - 1e-6) / 1e4
    if not stricter < 1:
        return None
    for rate in rates:
        promise = promise_at(rate, stricter)
        if promise is not None and promise_at(rate, confidence) is not None:
            return promise
    return None


def binomial_tail(most: int, trials: int, share: float) -> float:
    """The probability that at most ``most`` of so many trials succeed, each with probability ``share``."""
    if most >= trials:
        return 1.0
    successes = np.arange(1, most + 1)
    ratios = np.log((trials - successes + 1) / successes) + log(share) - log1p(-share)
    logs = trials * log1p(-share) + np.concatenate([[0.0], np.cumsum(ratios)])
    highest = logs.max()
    return float(min(1.0, np.exp(highest) * np.exp(logs - highest).sum()))


def set_threshold(probabilities: NDArray[np.floating], labels: NDArray[np.integer], coverage: float) -> float:
    """The least probability of a class that belongs to a text's set: split conformal prediction.

    A set of all classes at least this probable contains the true one with probability ``coverage`` or more,
    over texts and calibration rows together, where both are exchangeable (Vovk et al., 2005; the score,
    which makes sets smallest on average: Sadinle, Lei and Wasserman, 2019). ``probabilities`` is (rows,
    classes), ``labels`` (rows,), of rows that nothing was learned from. 0, all classes, where there are too
    few rows for it (see :func:`highest_coverage`).
    Raises ValueError unless coverage is between 0 and 1.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"a coverage is between 0 and 1, not {coverage}")
    of_true = np.sort(probabilities[np.arange(len(labels)), labels])[::-1]
    # The next row's true class is as likely to fall into any of the gaps between those of n rows.
    needed = ceil((len(labels) + 1) * coverage)
    return float(of_true[needed - 1]) if needed <= len(labels) else 0.0


def coverage_spread(rows: int, coverage: float) -> float:
    """Standard deviation of the coverage over draws of so many calibration rows (Beta; Vovk, 2012)."""
    needed = min(rows, ceil((rows + 1) * coverage))
    mean = needed / (rows + 1)
    return sqrt(mean * (1 - mean) / (rows + 2))


def highest_coverage(rows: int) -> float:
    """Up to which coverage so many calibration rows leave any class out."""
    return rows / (rows + 1)


def prediction_sets(probabilities: NDArray[np.floating], threshold: float) -> NDArray[np.bool_]:
    """Which classes belong to each row's set, in the shape of ``probabilities``: (rows, classes).

    The most probable class always does: that only raises the coverage, and no set is empty.
    """
    most_probable = probabilities == probabilities.max(axis=1, keepdims=True)
    return np.asarray(most_probable | (probabilities >= threshold), dtype=np.bool_)


CANDIDATES, UNSURE, REASON, OFF_TOPIC = "candidates", "unsure", "reason", "off_topic"
"""Columns that an output may have besides the classes."""
IS_OFF_TOPIC = "off topic"  # the reason that comes before others

_MORE_ROWS = "calibrate on more labelled rows with newsdesk calibrate --data FILE"


class Promises(TypedDict, total=False):
    """What may be asked of predictions; every share is between 0 and 1.

    Attributes:
        abstain: answer only so much that, of the answered, at most this share is wrong ...
        confidence: ... with this probability over the draw of the calibration rows; by default 0.95.
        sets: name candidates for each text, which contain the true class for this share of texts.
        off_topic: do not answer texts that are as untypical as this share of the calibration rows.
        answer_empty: classify empty texts too, and those without a known token, which else get no label.
    """

    abstain: float | None
    confidence: float
    sets: float | None
    off_topic: float | None
    answer_empty: bool


PROMISES = tuple(Promises.__annotations__)


@dataclass(frozen=True)
class DecisionRule:
    """How probabilities become answers.

    Attributes:
        promise: the least confidence that is answered, and what it promises; None: every text is answered.
        coverage: the share of texts whose set of classes contains the true one, where sets were asked for.
        set_threshold: the least probability of a class that is named as a candidate.
        rows: how many calibration rows both rest on: those that pass the filter of ``off_topic``.
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
        wanted = {CANDIDATES: self.names_candidates, REASON: True, OFF_TOPIC: self.off_topic is not None}
        return tuple(name for name, is_wanted in wanted.items() if is_wanted)

    @property
    def names_candidates(self) -> bool:
        """Whether classes are named beside the answer or instead of it."""
        return self.promise is not None or self.coverage is not None

    def confident(self, probabilities: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which rows are sure enough, (rows,), by their probabilities (rows, classes)."""
        if self.promise is None:
            return np.ones(len(probabilities), dtype=np.bool_)
        # As float64, which is what the threshold was found on: float32 would round the threshold too.
        sure = probabilities.max(axis=1, initial=0.0).astype(np.float64) >= self.promise.threshold
        return np.asarray(sure, dtype=np.bool_)

    def candidate_mask(self, probabilities: NDArray[np.floating]) -> NDArray[np.bool_]:
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

    def describe(self) -> list[str]:
        """What is promised, of which texts, a line each."""
        lines = []
        rows = counted(self.rows, "calibration row")
        on_topic = "" if self.off_topic is None else " that are on topic"
        if self.promise is not None:
            error_rate, confidence = 100 * self.promise.error_rate, 100 * self.promise.confidence
            lines.append(
                f"at most {error_rate:.4g} % of the answered are wrong, with {confidence:.4g} % confidence: "
                f"threshold {self.promise.threshold:.4f}, which answers {self.promise.coverage:.1%} of "
                f"{rows}{on_topic}"
            )
        if self.coverage is not None:
            spread = 100 * coverage_spread(self.rows, self.coverage)
            answered, whichever = "", ""
            if self.promise is not None:
                answered, whichever = ", answered or not", ", whether or not they can promise the error rate"
            lines.append(
                f"the candidates contain the true class for {100 * self.coverage:.4g} % of texts{on_topic}"
                f"{answered}: on average over draws of {rows}{whichever}; "
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
    score: OffTopicScore | None = None,
    *,
    abstain: float | None = None,
    confidence: float = 0.95,
    sets: float | None = None,
    off_topic: float | None = None,
    answer_empty: bool = False,
) -> DecisionRule | None:
    """The rule that keeps the `Promises` asked for; None where none is.

    Where only ``abstain`` is given, the candidates of an unanswered text are its set of coverage 1 - abstain.
    ``rows``, calibration rows, are needed for ``abstain`` and ``sets``, and ``score``, whose reference was
    made of them, for ``off_topic``. ``temperature`` is what logits are divided by. Raises UserError when a
    share is not between 0 and 1, or the rows cannot promise as much.
    """
    require_shares(score, abstain=abstain, confidence=confidence, sets=sets, off_topic=off_topic)
    if abstain is None and sets is None:
        return None if off_topic is None else DecisionRule(None, None, 1.0, 0, off_topic)
    assert rows is not None
    passing = passing_rows(rows, score, off_topic, answer_empty=answer_empty)
    labels, probabilities = rows.labels[passing], softmax(rows.logits[passing], temperature)
    promise = None
    if abstain is not None:
        promise = _promise(probabilities, labels, abstain, confidence, rows.worth)
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


def require_shares(score: OffTopicScore | None, **shares: float | None) -> None:
    """Raise UserError unless the shares asked for, by the names of `Promises`, lie between 0 and 1.

    They have to be as far from either as `LEAST_SHARE`, and that of ``off_topic`` one that a text can reach.
    """
    for name, share in shares.items():
        if share is not None and not LEAST_SHARE <= share <= 1 - LEAST_SHARE:
            flag = f"--{name.replace('_', '-')}"
            wrong = f"{flag} takes a share between 0 and 1, a millionth away from either at least"
            raise UserError(wrong, found=str(share), fix=f"for example {flag} 0.05")
    if shares["off_topic"] is not None:
        assert score is not None
        _require_reachable(shares["off_topic"], score)


def passing_rows(
    rows: HeldOutRows, score: OffTopicScore | None, off_topic: float | None, *, answer_empty: bool
) -> NDArray[np.bool_]:
    """Which calibration rows would be answered if nothing were promised, (rows,): promises rest on these.

    Raises UserError where it is not known which are off topic.
    """
    passing = np.ones(len(rows.labels), dtype=np.bool_)
    if rows.readable is not None and not answer_empty:
        passing &= rows.readable
    if off_topic is not None and score is not None:
        if rows.distances is None:
            raise UserError(
                "--off-topic does not go with --abstain or --sets here",
                found="calibration rows of an earlier version, of which it is not known which are off topic",
                fix="calibrate again with newsdesk calibrate",
            )
        passing &= score.on_topic(rows.distances, off_topic)
    return passing


def _require_reachable(level: float, score: OffTopicScore) -> None:
    """Raise UserError where the level is so low that no text could be that untypical."""
    rows = len(score.reference)
    if level * (rows + 1) < 1:
        raise UserError(
            f"no text can be less typical of the training topics than {100 * (1 - level):g} % of the "
            "calibration rows",
            found=f"{counted(rows, 'row')} to compare with, which show no share below {1 / (rows + 1):.2g}",
            fix=f"ask for --off-topic {max(0.01, 1 / (rows + 1)):.2g}, or {_MORE_ROWS}",
        )


def _promise(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    error_rate: float,
    confidence: float,
    worth: float,
) -> Promise:
    score = probabilities.max(axis=1).astype(np.float64)
    correct = np.asarray(probabilities.argmax(axis=1) == labels, dtype=np.bool_)
    right = f", {correct.mean():.1%} of them right" if len(labels) else ""
    found = f"{counted(len(labels), 'calibration row')}{right}"
    promised = partial(promised_threshold, score, correct, worth=worth)
    return require_promise(promised, error_rate, confidence, found)


def require_promise(promise_at: PromiseAt, error_rate: float, confidence: float, found: str) -> Promise:
    """The promise that some rows give. Raises UserError, with what they are, where they cannot give it."""
    promise = promise_at(error_rate, confidence)
    if promise is not None:
        return promise
    lowest = lowest_promise(promise_at, error_rate, confidence)
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
