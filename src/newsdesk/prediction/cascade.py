"""A cascade: the linear model answers where it is sure enough, the encoder all other texts.

How sure is found on the calibration rows, so that the cascade's accuracy is promised to stay close to what
the encoder alone would reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations, takewhile
from math import ceil, exp, log, log1p
from pathlib import Path
from typing import TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import UserError, counted
from newsdesk.label_set_metrics import Counts
from newsdesk.metrics import SMALLEST_PROBABILITY
from newsdesk.model.tokenizer import TokenIds
from newsdesk.prediction.abstention import THRESHOLDS, DecisionRule, Promises
from newsdesk.prediction.classifier import Classifier
from newsdesk.prediction.label_promises import most_labels, ratio_p_value, wealth_of
from newsdesk.prediction.open_model import open_model
from newsdesk.progress import Progress, Unit
from newsdesk.runs.calibration import HeldOutRows, fit_temperature, softmax
from newsdesk.runs.exported import ExportedModel
from newsdesk.runs.folder import RunFolder
from newsdesk.runs.label_decisions import LabelDecisions
from newsdesk.runs.labels import Labels

LOSS, CONFIDENCE = 0.002, 0.95
CASCADE_THRESHOLDS = THRESHOLDS[::4]
"""Confidences of the linear model that may become the threshold, fixed before any row is seen."""

_BETS = (0.9, 0.45, 0.225)
_LEVEL_OF_F1 = 0.005
"""Of the 5 % by which a promise of micro F1 may fail: that of the encoder is below the bound used for it."""
_LEAST_F1S = tuple(step / 20 for step in range(1, 20))
_MORE_ROWS = "calibrate on more labelled rows with newsdesk calibrate --data FILE"


AnyRule = TypeVar("AnyRule", bound="CascadeRule")


@dataclass(frozen=True)
class CascadeRule:
    """From which confidence on the linear model answers.

    Attributes:
        threshold: the least confidence, 0 to 1.
        temperature: what the linear model's scores are divided by.
        loss: the share of texts that the cascade may get wrong more often than the encoder alone.
        confidence: how surely it does not lose more, over the draw of the rows; None: as these rows estimate.
        rows: how many calibration rows this rests on.
        share: of these, what the linear model answers, 0 to 1.
    """

    threshold: float
    temperature: float
    loss: float
    confidence: float | None
    rows: int
    share: float

    def answers(self, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which rows the linear model answers, (rows,), by its scores (rows, classes)."""
        sure = softmax(scores, self.temperature).max(axis=1, initial=0.0).astype(np.float64)
        return np.asarray(sure >= self.threshold, dtype=np.bool_)

    def mixed(
        self, logits: NDArray[np.float32], scores: NDArray[np.float32], temperature: float
    ) -> NDArray[np.float32]:
        """The cascade's logits, of those of the encoder and the linear model's scores, (rows, classes)."""
        return np.where(self.answers(scores)[:, None], self.as_logits(scores, temperature), logits)

    def as_logits(self, scores: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
        """Scores so scaled that the encoder's ``temperature`` makes calibrated probabilities of them, too."""
        return scores * np.float32(temperature / self.temperature)

    @property
    def figure(self) -> str:
        """What the loss is of."""
        return "accuracy"

    def describe(self) -> str:
        """What is promised, in a line."""
        rows = counted(self.rows, "calibration row")
        points = f"at most {100 * self.loss:.4g} points of {self.figure} are lost to the encoder alone"
        how = f"estimated on {rows}, not promised"
        if self.confidence is not None:
            how = f"with {100 * self.confidence:.4g} % confidence, by {rows}"
        return f"{points}, {how}; threshold {self.threshold:.4f}"


@dataclass(frozen=True)
class LabelCascadeRule(CascadeRule):
    """From which confidence on the linear model answers where a text may have several labels.

    Its confidence is the probability that all its decisions on a text are right, as if they were independent.
    The loss is of micro F1.

    Attributes:
        own: scales and shifts of the linear model's scores; the temperature is 1.
        decisions: those of the classifier, whose thresholds are for both.
        most: the linear model answers no text to which it would give more labels.
    """

    own: LabelDecisions
    decisions: LabelDecisions
    most: int

    def as_logits(self, scores: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
        """Logits of which ``decisions`` make the linear model's probabilities; see CascadeRule."""
        moved = temperature * self.own.log_odds(scores) - np.array(self.decisions.shifts)
        return np.asarray(moved / np.array(self.decisions.scales), dtype=np.float32)

    def answers(self, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which rows the linear model answers, (rows,), by its scores (rows, labels)."""
        assigned, sure = self.answered(scores)
        return np.asarray((sure >= self.threshold) & (assigned.sum(axis=1) <= self.most), dtype=np.bool_)

    def answered(self, scores: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """The labels that it would give, (rows, labels), and how sure it is of all of them, (rows,)."""
        probabilities = self.decisions.probabilities(self.as_logits(scores)).astype(np.float64)
        assigned = self.decisions.assigned(probabilities)
        right = np.where(assigned, probabilities, 1 - probabilities)
        return assigned, np.exp(np.log(np.maximum(right, SMALLEST_PROBABILITY)).sum(axis=1))

    @property
    def figure(self) -> str:
        """What the loss is of."""
        return "micro F1"


def loses_no_more(
    lost: float, gained: float, rows: float, loss: float, confidence: float = CONFIDENCE
) -> bool:
    """Whether rows show that a cascade loses at most this share of all texts to the encoder alone.

    ``lost`` of the ``rows`` only the encoder gets right, ``gained`` only the cascade. It is a bet against the
    claim that more is lost: each row multiplies a capital of 1 by 1 + bet * (loss - x), where x is 1 for a
    lost row, -1 for a gained one, else 0. Were the claim true, the capital would not grow on average, and so
    exceed 1 / (1 - confidence) with a probability of at most 1 - confidence (Markov's inequality;
    Waudby-Smith and Ramdas, 2024). It is spread over larger and smaller bets, as many as so few or many rows
    can afford. This holds for any number of rows, and counts gains, unlike a test of the lost rows alone.
    """
    wanted = log(1 / (1 - confidence))
    affordable = (
        count for count in range(1, len(_BETS)) if _BETS[0] * rows * loss < wanted + log(count + 1) + 1
    )
    bets = _BETS[: next(affordable, len(_BETS))]
    same = rows - lost - gained
    logs = [
        lost * log1p(-bet * (1 - loss)) + gained * log1p(bet * (1 + loss)) + same * log1p(bet * loss)
        for bet in bets
    ]
    most = max(logs)
    return most + log(sum(exp(each - most) for each in logs) / len(logs)) >= wanted


def least_loss(rows: float, confidence: float = CONFIDENCE) -> float:
    """The smallest loss that so many rows can promise, none of them lost; rounded up to be typed."""
    least = ((1 / (1 - confidence)) ** (1 / rows) - 1) / _BETS[0] if rows else 1.0
    return min(1.0, ceil(1e4 * least) / 1e4)


def keeps_micro_f1(
    kept: Counts,
    given: Counts,
    loss: float,
    most: int,
    least_f1: float,
    confidence: float = CONFIDENCE,
    *,
    worth: float = 1.0,
) -> bool:
    """Whether rows show that a cascade loses at most so much of the encoder's micro F1, both 0 to 1.

    The counts are of texts, (texts,): ``kept`` of the encoder alone, ``given`` of the cascade. With hits h,
    assigned a and true labels t, and where f is the encoder's F1, the cascade's is below f - loss where the
    mean of 2 (h - h') - f (a - a') - loss (a' + t) over all texts is above 0. A bet against that, as in
    `loses_no_more`, has a capital that is least at one end of the range of f, as each bet's logarithm is
    concave in it: ``least_f1`` to 1 is enough. Of one text at most 2 ``most`` may count.
    """
    ends = []
    for f1 in (least_f1, 1.0):
        lost = 2 * (kept.hits - given.hits) - f1 * (kept.assigned - given.assigned)
        ends.append(lost - loss * (given.assigned + given.true))
    return bool(wealth_of(ends, 2.0 * most, worth=worth) >= log(1 / (1 - confidence)))


def label_cascade_rule(
    rows: HeldOutRows, decisions: LabelDecisions, loss: float = LOSS, *, estimated: bool = False
) -> LabelCascadeRule:
    """As `cascade_rule` where a text may have several labels, by micro F1; ``decisions`` as in the rule."""
    readable = np.arange(len(rows.labels)) if rows.readable is None else np.flatnonzero(rows.readable)
    if not len(readable):
        raise _cannot_promise(loss, None, 0)
    labels, alone, by_linear, sure = _as_tested(rows.select(readable), decisions)
    own, confidence = (
        _decisions_of_linear(rows.select(readable), decisions),
        None if estimated else CONFIDENCE,
    )
    most, count = most_labels(labels), len(readable)
    rule = LabelCascadeRule(1.0, 1.0, loss, confidence, count, 0.0, own, decisions, most)
    kept = Counts.of_texts(alone, labels)
    least_f1 = _least_f1(kept, most, rows.worth)

    def is_kept(given: Counts, loss: float) -> bool:
        if estimated:
            return _f1(kept) - _f1(given) <= loss
        return keeps_micro_f1(kept, given, loss, most, least_f1, CONFIDENCE + _LEVEL_OF_F1, worth=rows.worth)

    if not is_kept(kept, loss):
        possible = (step / 1000 for step in range(1, 100) if is_kept(kept, step / 1000))
        raise _cannot_promise(loss, next(possible, None), count)
    few = by_linear.sum(axis=1) <= most
    for threshold in CASCADE_THRESHOLDS:
        answers = (sure >= threshold) & few
        if not is_kept(Counts.of_texts(np.where(answers[:, None], by_linear, alone), labels), loss):
            break
        rule = replace(rule, threshold=threshold, share=float(answers.mean()))
    return _require_answers(rule)


def _as_tested(
    rows: HeldOutRows, decisions: LabelDecisions
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float64]]:
    """Labels that are true, of the encoder, of the linear model, (rows, labels), and how sure it is, (rows,).

    Decisions of many labels fit the rows that they were fitted on too well: those of either half of the rows
    are tested on the other one, as by `label_rule`.
    """
    parts = []
    for half, other in permutations(rows.halves() if len(rows.labels) > 1 else (rows, rows)):
        assert half.linear is not None
        fitted = LabelDecisions.fit(other.logits, other.labels)
        encoder = replace(fitted, at_least_one=decisions.at_least_one)
        own = _decisions_of_linear(other, decisions)
        rule = LabelCascadeRule(1.0, 1.0, 0.0, None, 0, 0.0, own, encoder, 0)
        alone = encoder.assigned(encoder.probabilities(half.logits))
        parts.append((half.labels, alone, *rule.answered(half.linear)))
    labels, alone, by_linear, sure = (np.concatenate(part) for part in zip(*parts, strict=True))
    return labels, alone, by_linear, sure


def _decisions_of_linear(rows: HeldOutRows, decisions: LabelDecisions) -> LabelDecisions:
    assert rows.linear is not None
    return replace(LabelDecisions.fit(rows.linear, rows.labels), at_least_one=decisions.at_least_one)


def _least_f1(kept: Counts, most: int, worth: float) -> float:
    """What the encoder's micro F1 is surely not below, 0 to 1, by the counts of texts, (texts,).

    Each counts as ``worth`` texts.
    """
    sizes = (kept.assigned + kept.true).astype(np.int64)
    errors = sizes - 2 * kept.hits.astype(np.int64)

    def is_shown(f1: float) -> bool:
        return ratio_p_value(errors, sizes, 1 - f1, 2 * most, worth=worth) <= _LEVEL_OF_F1

    return max(takewhile(is_shown, _LEAST_F1S), default=0.0)


def _f1(counts: Counts) -> float:
    """Micro F1 of the counts of texts, (texts,)."""
    return float(Counts(*(each.sum(keepdims=True) for each in counts)).micro_f1())


def cascade_rule(rows: HeldOutRows, loss: float = LOSS, *, estimated: bool = False) -> CascadeRule:
    """The lowest threshold at which calibration rows promise that no more is lost; or estimate, if asked.

    Learn then Test (Angelopoulos et al., 2021): thresholds are tested in a fixed sequence, from sure to less
    sure, until one fails, each at the full level. ``rows`` have the scores of the linear model; those that
    say nothing are left out. Raises UserError where they cannot promise it, or nothing would be answered.
    """
    assert rows.linear is not None
    readable = np.ones(len(rows.labels), np.bool_) if rows.readable is None else rows.readable
    scores, logits, labels = rows.linear[readable], rows.logits[readable], rows.labels[readable]
    count = len(labels)
    least = least_loss(rows.worth * count)
    if loss < least and not estimated:
        raise _cannot_promise(loss, least, count)
    rule = CascadeRule(
        1.0, fit_temperature(scores, labels), loss, None if estimated else CONFIDENCE, count, 0.0
    )
    of_encoder, of_linear = logits.argmax(axis=1) == labels, scores.argmax(axis=1) == labels
    for threshold in CASCADE_THRESHOLDS:
        tried = replace(rule, threshold=threshold)
        sure = tried.answers(scores)
        lost, gained = (
            int((sure & of_encoder & ~of_linear).sum()),
            int((sure & ~of_encoder & of_linear).sum()),
        )
        worth = rows.worth
        promised = loses_no_more(worth * lost, worth * gained, worth * count, loss)
        if not (lost - gained <= loss * count if estimated else promised):
            break
        rule = replace(tried, share=float(sure.mean()))
    return _require_answers(rule)


def _cannot_promise(loss: float, least: float | None, rows: int) -> UserError:
    """The error where so many rows can promise only ``least``; None: nothing that is worth a promise."""
    fix = f"ask for --loss {least:g}, " if least is not None and least < 0.1 else ""
    at_best = "nothing below 0.1" if least is None else f"{least:g} at best"
    return UserError(
        f"a cascade cannot promise to lose at most a share of {loss:g}",
        found=f"{counted(rows, 'calibration row')}, which can promise {at_best}",
        fix=f"{fix}{_MORE_ROWS}, or take the threshold that these rows suggest with --estimated",
    )


def _require_answers(rule: AnyRule) -> AnyRule:
    """The rule. Raises UserError where the linear model would answer nothing by it."""
    if not rule.share:
        rows = counted(rule.rows, "calibration row")
        raise UserError(
            "the linear model is nowhere sure enough to answer in a cascade",
            found=f"{rows}, of which it may answer none at a loss of {rule.loss:g}",
            fix=f"allow more with --loss, {_MORE_ROWS}, or predict without --engine cascade",
        )
    return rule


class CascadeClassifier(Classifier):
    """A linear model before an encoder; what either answers is calibrated by itself.

    Attributes:
        rule: from which confidence on the linear model answers, and what that may cost.
        texts, by_linear: how many texts were classified so far, and how many by the linear model.
    """

    def __init__(
        self, whole: Classifier, loss: float = LOSS, *, estimated: bool = False, halves: bool = False
    ) -> None:
        """Put the linear model of ``whole`` before it. Raises UserError as `cascade_rule`, or without one."""
        rows = whole.held_out_rows()
        if whole.linear is None:
            raise UserError(
                f"{whole.path} has no linear model for a cascade",
                found="a ready-made classifier, a run of an older version, or of --no-baseline or --no-stack",
                fix="newsdesk calibrate RUN --stack adds one to its answers; --no-stack after that keeps it "
                "for the cascade alone",
            )
        if rows is None or rows.linear is None:
            raise UserError(
                f"{whole.path} does not know how its linear model does on calibration rows",
                found="no calibration rows" if rows is None else "calibration rows without its scores",
                fix="newsdesk calibrate RUN, with labelled rows by --data if its own are not known",
            )
        self._rows: HeldOutRows | None = None
        choosing = rows
        if halves:
            choosing, self._rows = rows.halves()
        decisions = whole.decisions
        self.rule: CascadeRule = (
            cascade_rule(choosing, loss, estimated=estimated)
            if decisions is None
            else label_cascade_rule(choosing, decisions, loss, estimated=estimated)
        )
        engine = f"linear model from {self.rule.threshold} on, else {whole.engine}"
        labels = Labels.read(whole.path, fix="copy it again from an undamaged copy")
        super().__init__(whole.path, labels, whole.files, whole.tokenizer, engine)
        self.off_topic = None  # texts that the encoder does not see have no distance
        self.texts = self.by_linear = 0
        self._whole, self._linear = whole, whole.linear

    def encoder_outputs(
        self, sequences: Sequence[TokenIds], *, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """What the encoder alone computes."""
        return self._whole.encoder_outputs(sequences, progress=progress)

    def outputs(
        self, sequences: Sequence[TokenIds], *, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Logits of whichever answers each text; there are no distances."""
        scores = self._linear.scores(sequences)
        sure = self.rule.answers(scores)
        others, done = np.flatnonzero(~sure), int(sure.sum())
        logits = np.zeros_like(scores)
        if len(others):
            asked = [sequences[row] for row in others.tolist()]
            logits[others] = self._whole.outputs(asked, progress=progress and _beyond(done, progress))[0]
        elif progress is not None:
            progress(done, done, "classifying", "rows")
        self.texts, self.by_linear = self.texts + len(sequences), self.by_linear + done
        return self.rule.mixed(logits, scores, self.temperature), None

    def held_out_rows(self) -> HeldOutRows | None:
        """The calibration rows that its threshold was not found on, as it answers them; None without."""
        if self._rows is None or self._rows.linear is None:
            return None
        logits = self.rule.mixed(self._rows.logits, self._rows.linear, self.temperature)
        return replace(self._rows, logits=logits, distances=None)

    def decision_rule(self, **asked: Unpack[Promises]) -> DecisionRule | None:
        """See Classifier; nothing can be said of topics. Raises UserError where that is asked.

        And ValueError for ``abstain`` or ``sets`` without ``halves``: the rows that the threshold was found
        on, where the linear model happens to be right, would promise too much.
        """
        if self._rows is None and (asked.get("abstain") or asked.get("sets")):
            raise ValueError("abstain and sets need a cascade opened with halves=True")
        if asked.get("off_topic") is not None:
            raise UserError(
                "--engine cascade cannot say which texts are off topic",
                found="texts that the linear model answers are not seen by the encoder, which tells",
                fix="leave out --off-topic, or --engine cascade",
            )
        return super().decision_rule(**asked)

    def describe(self) -> list[str]:
        """How many texts the linear model answered, and what that may cost, a line each."""
        share = f" ({self.by_linear / self.texts:.1%})" if self.texts else ""
        texts = counted(self.texts, "text")
        return [f"the linear model answered {self.by_linear:,} of {texts}{share}", self.rule.describe()]


def _beyond(rows: int, progress: Progress) -> Progress:
    """Progress with so many more rows, which are done already."""

    def show(done: int, total: int | None, what: str, unit: Unit = "bytes", /) -> None:
        progress(rows + done, None if total is None else rows + total, what, unit)

    return show


def open_cascade(
    path: str | Path | RunFolder | ExportedModel,
    *,
    loss: float = LOSS,
    estimated: bool = False,
    halves: bool = False,
    progress: Progress | None = None,
) -> CascadeClassifier:
    """The run or exported model at ``path`` with its linear model before it; a run's export is preferred.

    Args:
        path, progress: as for `open_model`.
        loss: the share of texts, 0 to 1, that may be wrong more often than without the linear model.
        estimated: take the threshold that the calibration rows suggest, without a promise.
        halves: find the threshold on one half of the calibration rows, and leave the other to the promises of
            ``abstain`` and ``sets``, which need it.

    Raises UserError as `open_model` and `cascade_rule` do.
    """
    if not 0 < loss < 1:
        raise UserError(
            "--loss takes a share between 0 and 1", found=str(loss), fix="for example --loss 0.002"
        )
    whole = open_model(path, progress=progress)
    return CascadeClassifier(whole, loss, estimated=estimated, halves=halves)
