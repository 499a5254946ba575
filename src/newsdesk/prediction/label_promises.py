"""What is promised where a text may have several labels: how many of those assigned are wrong.

The labels of a text are not independent, so promises count texts: each tells how many labels it was given,
and how many of these are wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from math import ceil

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import UserError, counted
from newsdesk.prediction.abstention import (
    THRESHOLDS,
    UNSURE,
    DecisionRule,
    Promise,
    passing_rows,
    require_promise,
    require_shares,
)
from newsdesk.runs.calibration import HeldOutRows
from newsdesk.runs.label_decisions import LabelDecisions
from newsdesk.runs.off_topic import OffTopicScore

MOST_TEXTS = 0.9
"""The share of calibration rows whose assigned labels may all be sure; of others only the most probable."""

_STAKES = 2.0 ** (-np.arange(7) / 2)  # of the largest one that cannot lose more than there is
_ALLOWED_AT_FIRST = (0.2, 0.0)  # of the error rate: the sequence begins where so many wrong labels would pass

Counts = tuple[float, NDArray[np.int64], NDArray[np.int64]]
"""A threshold, and of each text, (texts,), how many wrong labels reach it, and how many labels do."""


@dataclass(frozen=True)
class LabelRule(DecisionRule):
    """How the labels assigned to a text become sure and unsure ones.

    ``promise.coverage`` is the share of the labels assigned to calibration rows that are sure.

    Attributes:
        most_labels: how many labels of one text may be sure: the most probable ones.
    """

    most_labels: int = 0

    def sure(self, probabilities: NDArray[np.floating], assigned: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the assigned labels are promised to be right, (rows, labels) as both arguments are."""
        if self.promise is None:
            return assigned
        exact = sure_probabilities(probabilities, assigned, self.most_labels)
        return np.asarray(exact >= self.promise.threshold, dtype=np.bool_)

    def confident(self, probabilities: NDArray[np.floating]) -> NDArray[np.bool_]:
        """All rows are answered, (rows,): what is unsure is a label, not a text."""
        return np.ones(len(probabilities), dtype=np.bool_)

    @property
    def names_candidates(self) -> bool:
        """No: unsure labels take the place of candidates."""
        return False

    @property
    def columns(self) -> tuple[str, ...]:
        """What an output says of each text besides its labels."""
        return super().columns if self.promise is None else (UNSURE, *super().columns)

    def describe(self) -> list[str]:
        """What is promised, of which texts, a line each."""
        others = DecisionRule(None, None, 1.0, self.rows, self.off_topic).describe()
        if self.promise is None:
            return others
        error_rate, confidence = 100 * self.promise.error_rate, 100 * self.promise.confidence
        on_topic = "" if self.off_topic is None else " that are on topic"
        return [
            f"at most {error_rate:.4g} % of the assigned labels are wrong, with {confidence:.4g} % "
            f"confidence: threshold {self.promise.threshold:.4f} and {counted(self.most_labels, 'label')} a "
            f"text at most, which {self.promise.coverage:.1%} of the labels assigned to "
            f"{counted(self.rows, 'calibration row')}{on_topic} reach; the others are unsure",
            *others,
        ]


def label_rule(
    rows: HeldOutRows | None,
    decisions: LabelDecisions,
    score: OffTopicScore | None = None,
    *,
    abstain: float | None = None,
    confidence: float = 0.95,
    sets: float | None = None,
    off_topic: float | None = None,
    answer_empty: bool = False,
) -> LabelRule | None:
    """The rule that keeps the `Promises` asked for, as `decision_rule`; None where none is.

    ``abstain`` is the share of the assigned labels that may be wrong. Raises UserError when a share is not
    between 0 and 1, the rows cannot promise as much, or ``sets`` are asked for.
    """
    require_shares(score, abstain=abstain, confidence=confidence, sets=sets, off_topic=off_topic)
    if sets is not None:
        raise UserError(
            "--sets is for texts that have one label each",
            found="a run whose texts may have several labels",
            fix="ask for --abstain, a share of the assigned labels that may be wrong",
        )
    if abstain is None:
        return None if off_topic is None else LabelRule(None, None, 1.0, 0, off_topic)
    assert rows is not None
    parts = []
    # Decisions of many labels fit the rows that they were fitted on too well to be tested on them.
    for half, other in permutations(rows.halves() if len(rows.labels) > 1 else (rows, rows)):
        passing = passing_rows(half, score, off_topic, answer_empty=answer_empty)
        fitted = replace(LabelDecisions.fit(other.logits, other.labels), at_least_one=decisions.at_least_one)
        given = fitted.probabilities(half.logits[passing])
        parts.append((half.labels[passing], given, fitted.assigned(given)))
    labels, probabilities, assigned = (np.concatenate(part) for part in zip(*parts, strict=True))
    most = most_labels(assigned)
    found = counted(len(labels), "calibration row")
    if assigned.any():
        found += f", {labels[assigned].mean():.1%} of the labels assigned to them right"
    counts = counts_at_thresholds(sure_probabilities(probabilities, assigned, most), labels)
    promised = partial(promised_label_threshold, counts, int(assigned.sum()), most, worth=rows.worth)
    promise = require_promise(promised, abstain, confidence, found)
    return LabelRule(promise, None, 1.0, len(labels), off_topic, most)


def most_labels(assigned: NDArray[np.bool_]) -> int:
    """How many labels of one text may be sure, where these are assigned to calibration rows, (rows, labels).

    A text in which ten labels go wrong costs as much as ten texts with one; so the more of them it could
    be, the more rows it takes to exclude that such texts are frequent enough to matter.
    """
    having = assigned.sum(axis=1)
    having = having[having > 0]
    if not len(having):
        return 1
    return min(int(having.max()), max(2, int(np.quantile(having, MOST_TEXTS, method="inverted_cdf"))))


def sure_probabilities(
    probabilities: NDArray[np.floating], assigned: NDArray[np.bool_], most: int
) -> NDArray[np.float64]:
    """The probabilities of the ``most`` most probable assigned labels of each row; -1 for all other labels.

    All arrays are (rows, labels); of equally probable labels the lower id comes first.
    """
    # As float64, which is what thresholds are found on: float32 would round them too.
    exact = np.where(assigned, np.asarray(probabilities, dtype=np.float64), -1.0)
    if most < exact.shape[1]:
        beyond = np.argsort(-exact, axis=1, kind="stable")[:, most:]
        np.put_along_axis(exact, beyond, -1.0, axis=1)
    return exact


def promised_label_threshold(
    counts: Sequence[Counts],
    assigned: int,
    most: int,
    error_rate: float,
    confidence: float = 0.95,
    *,
    worth: float = 1.0,
) -> Promise | None:
    """The lowest threshold on labels' probabilities for which held-out texts promise an error rate.

    With probability ``confidence`` over the draw of the texts, at most ``error_rate`` of the labels that
    reach the threshold are wrong, over texts exchangeable with these: (expected) wrong labels divided by
    labels. None where no threshold promises it.

    Learn then Test (Angelopoulos et al., 2021) as in `promised_threshold`, over the same fixed sequence of
    thresholds, with texts for units and `ratio_p_value` for the test. Thresholds that too few labels reach to
    pass with a fifth of the error rate are passed over, or, if none are enough for that, to pass without any
    wrong label: a single one would end the sequence there.

    Args:
        counts: from `counts_at_thresholds`.
        assigned: how many labels these texts were given, for the coverage.
        most: how many labels of one text may be sure.
        error_rate: between 0 and 1.
        confidence: between 0 and 1.
        worth: as how many texts each counts: see `HeldOutRows.worth`.
    """
    if not (0 < error_rate < 1 and 0 < confidence < 1):
        raise ValueError(f"an error rate of {error_rate} with confidence {confidence}")
    best = None
    for threshold, wrong, given in counts[_first_tested(counts, most, error_rate, confidence, worth) :]:
        if ratio_p_value(wrong, given, error_rate, most, worth=worth) > 1 - confidence:
            break
        best = Promise(threshold, error_rate, confidence, len(given), int(given.sum()) / assigned)
    return best


def _first_tested(
    counts: Sequence[Counts], most: int, error_rate: float, confidence: float, worth: float
) -> int:
    """Where the sequence begins, by how many labels each text is given; behind its end where it cannot."""
    for share in _ALLOWED_AT_FIRST:
        for number, (_threshold, _wrong, given) in enumerate(counts):
            few = np.zeros_like(given)
            few[np.flatnonzero(given)[: ceil(share * error_rate * given.sum())]] = 1
            if ratio_p_value(few, given, error_rate, most, worth=worth) <= 1 - confidence:
                return number
    return len(counts)


def ratio_p_value(
    wrong: NDArray[np.integer],
    given: NDArray[np.integer],
    error_rate: float,
    most: int,
    *,
    worth: float = 1.0,
) -> float:
    """p-value of the hypothesis that over all texts more than ``error_rate`` of the labels given are wrong.

    ``wrong`` and ``given`` are counts of each text, (texts,), at most ``most``. Valid for any number of texts
    and however labels and errors go together in them. A test by betting (Waudby-Smith and Ramdas, 2024):
    under the hypothesis wrong - error_rate * given is not negative on average, so whoever bets a fixed stake
    against that, text after text, gains nothing on average. The mean wealth over several stakes exceeds 20
    times the first in at most 1 case of 20 (Markov). Unlike Hoeffding's bound this gains from texts that are
    given few labels. Texts that count less, by ``worth``, are bet on with as much less: the root of a wealth
    that is 1 on average is at most 1 on average.
    """
    wealth = wealth_of([wrong - error_rate * given], (1 - error_rate) * most, worth=worth)
    return float(min(1.0, np.exp(-wealth)))


def wealth_of(excesses: Sequence[NDArray[np.floating]], largest: float, *, worth: float = 1.0) -> float:
    """The logarithm of the mean wealth of stakes against the claim that an excess is above 0 on average.

    Each of ``excesses`` is (texts,) of values up to ``largest``. Of several, which stand for what is not
    known, every stake has the one that leaves it least.
    """
    stakes, least = _STAKES / largest, np.full(len(_STAKES), np.inf)
    for excess in excesses:
        values, texts = np.unique(excess, return_counts=True)
        with np.errstate(divide="ignore"):  # the largest stake is lost whole where the excess is the largest
            logs = worth * (np.log1p(np.maximum(-stakes[:, None] * values, -1.0)) @ texts)
        least = np.minimum(least, logs)
    highest = float(least.max())
    return highest + float(np.log(np.exp(least - highest).mean())) if highest > -np.inf else -np.inf


def counts_at_thresholds(sure: NDArray[np.float64], labels: NDArray[np.bool_]) -> list[Counts]:
    """The counts at each threshold, from sure to less sure, where ``sure`` is from `sure_probabilities`.

    ``labels`` are the true ones; both arrays are (texts, labels).
    """
    found = []
    for threshold in THRESHOLDS:
        reached = sure >= threshold
        found.append((threshold, (reached & ~labels).sum(axis=1), reached.sum(axis=1)))
    return found
