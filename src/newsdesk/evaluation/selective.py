"""Answering only confident texts: what that gains, and thresholds whose error rate can be promised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, log, log1p

import numpy as np
from numpy.typing import NDArray

ERROR_RATES = (0.01, 0.02, 0.05)
"""Shares wrong among the answered at which an evaluation states the coverage."""

POINTS_KEPT = 200
THRESHOLDS = tuple(1 - 2 ** (-step / 8) for step in range(128, -1, -1))
"""Confidences that may become a threshold, from 1 - 2**-16 down to 0, the doubt growing by 9 % a step.

They stand fixed before any row is seen, as the guarantee demands.
"""
RATES_SUGGESTED = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4)
"""Error rates that `lowest_promise` tries. They are fixed, so that trying them can be paid for."""


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

    Rows of equal confidence can only be answered together: between them the errors count as spread evenly,
    so that the order of rows does not matter. Raises ValueError without rows.
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
    score: NDArray[np.floating], correct: NDArray[np.bool_], error_rate: float, confidence: float = 0.95
) -> Promise | None:
    """The lowest threshold on the confidence for which held-out rows promise an error rate; None if none.

    With probability ``confidence`` over the draw of the rows, at most ``error_rate`` of the texts answered
    at that threshold are wrong, for texts exchangeable with the rows. ``score`` and ``correct`` are (rows,).

    Learn then Test (Angelopoulos et al., 2021): thresholds are tested in a fixed sequence, from sure to less
    sure, each by the exact binomial tail, until one fails; since only the first false one can be passed
    wrongly, no share of the error is spent on the others. Thresholds that too few rows reach for any outcome
    to pass are passed over; that keeps the level as long as errors do not get rarer where confidence falls.
    Raises ValueError for rates outside 0 to 1.
    """
    if not (0 < error_rate < 1 and 0 < confidence < 1):
        raise ValueError(f"an error rate of {error_rate} with confidence {confidence}")
    best = None
    least_rows = ceil(log(1 - confidence) / log1p(-error_rate))
    for threshold, answered, wrong in _counted(score, correct):
        if answered < least_rows:
            continue
        if binomial_tail(wrong, answered, error_rate) > 1 - confidence:
            break
        best = Promise(threshold, error_rate, confidence, len(score), answered / len(score))
    return best


def lowest_promise(
    score: NDArray[np.floating], correct: NDArray[np.bool_], above: float, confidence: float = 0.95
) -> Promise | None:
    """The promise of the lowest error rate over ``above`` that these rows can give; None if they give none.

    To look for the lowest rate is to choose it by the rows, and what holds for a rate named beforehand does
    not hold for one chosen so. Each of the ``RATES_SUGGESTED`` over ``above`` is therefore tested at a higher
    confidence, which the returned promise carries: its share of 1 - ``confidence``, divided evenly among them
    (Bonferroni). Whichever is taken then breaks with a probability of at most 1 - ``confidence``. Only a rate
    that can be promised at ``confidence`` itself, too, is returned. Shapes as for `promised_threshold`.
    """
    rates = [rate for rate in RATES_SUGGESTED if rate > above]
    # Rounded up to what is printed, for a person to type.
    surer = ceil(1e4 * (1 - (1 - confidence) / max(1, len(rates))) - 1e-6) / 1e4
    if not surer < 1:
        return None
    for rate in rates:
        promise = promised_threshold(score, correct, rate, surer)
        if promise is not None and promised_threshold(score, correct, rate, confidence) is not None:
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


def _counted(score: NDArray[np.floating], correct: NDArray[np.bool_]) -> Iterator[tuple[float, int, int]]:
    """Each threshold, how many rows reach it, and how many of these are wrong."""
    order = np.argsort(-np.asarray(score, dtype=np.float64), kind="stable")
    falling = -np.asarray(score, dtype=np.float64)[order]
    wrong = np.concatenate([[0], np.cumsum(~correct[order])])
    for threshold in THRESHOLDS:
        answered = int(np.searchsorted(falling, -threshold, side="right"))
        yield threshold, answered, int(wrong[answered])
