"""Predictions: what a classifier says of texts, one row each, without knowing how it was computed."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.dialect import NO_QUOTE, Dialect
from newsdesk.errors import UserError
from newsdesk.model.tokenizer import Truncation
from newsdesk.prediction.abstention import (
    CANDIDATES,
    IS_OFF_TOPIC,
    OFF_TOPIC,
    REASON,
    UNSURE,
    DecisionRule,
)
from newsdesk.prediction.label_promises import LabelRule
from newsdesk.runs.label_decisions import LabelDecisions

PROBABILITY_DIGITS = 6
LABELS, PROBABILITIES = "labels", "probabilities"
"""What a list of labels, and that of their probabilities, is called where a text may have several."""

WRITTEN = Dialect(header=True, delimiter=",", quote='"', encoding="utf-8")
"""How ``delimited_lines`` writes a table with a header: what newsdesk wrote itself is not guessed at."""


def delimited_lines(
    rows: Iterable[Sequence[object]], delimiter: str = ",", quote: str = '"'
) -> Iterator[bytes]:
    r"""UTF-8 lines ended by ``\n``, quoted where needed (RFC 4180), one for each row of values.

    None is empty; lists, objects and truth values are JSON. A lone surrogate, which UTF-8 cannot hold, is
    written as its escape, such as ``\ud800``. With the quote ``none`` nothing is quoted.
    """
    # csv quotes a lone \r only where the line end contains one, hence its own line end, cut off again.
    quoting: Any = {"quoting": csv.QUOTE_NONE} if quote == NO_QUOTE else {"quotechar": quote}
    writer = csv.writer(_Echo(), delimiter=delimiter, lineterminator="\r\n", **quoting)
    for row in rows:
        line: str = writer.writerow([_plain(value) for value in row])
        yield (line[:-2] + "\n").encode(errors="backslashreplace")


def probability_column(label: str) -> str:
    """The name of the column of a class's probability."""
    return f"p({label})"


def rounded(probability: Any) -> float:
    """A probability as it is written: six decimals, whatever the float type it was computed in."""
    return round(float(probability), PROBABILITY_DIGITS)


class _Echo:
    """A file for csv.writer whose write hands the line back instead of keeping it."""

    def write(self, line: str) -> str:
        return line


def _plain(value: object) -> object:
    if isinstance(value, bool | list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one text.

    Attributes:
        label: the most probable class; of equals, the one with the lowest id. None: there is no answer, for
            the ``reason``, or no label is assigned.
        probability: the highest probability, 0 to 1, whether or not it was enough.
        probabilities: the probability of every class by name, in id order.
        candidates: classes that may be the true one, the most probable first; None where not asked for.
        reason: why there is no label; None where there is one.
        off_topic: share of the calibration rows that are at least as untypical, 0 to 1; None: not known.
        labels: where a text may have several, those assigned, the most probable first; None where it has
            one, and where there is no answer.
        may_have_several: whether it may.
        unsure: labels that are likely enough, but not sure enough for what is promised, and so not among
            ``labels``; None where nothing is promised of several labels.
    """

    label: str | None
    probability: float
    probabilities: dict[str, float]
    candidates: tuple[str, ...] | None = None
    reason: str | None = None
    off_topic: float | None = None
    labels: tuple[str, ...] | None = None
    may_have_several: bool = False
    unsure: tuple[str, ...] | None = None

    def top_k(self, k: int) -> tuple[tuple[str, float], ...]:
        """The ``k`` most probable classes with their probabilities; all of them where there are fewer.

        Raises UserError unless k is at least 1.
        """
        _check_top_k(k)
        ranked = sorted(self.probabilities.items(), key=lambda entry: -entry[1])
        return tuple(ranked[:k])

    def to_dict(self, top_k: int | None = None) -> dict[str, Any]:
        """JSON types, rounded to six decimals: ``label``, ``probability``, and the other classes.

        Without ``top_k`` these are an object ``probabilities`` of all classes in id order; with it, a list
        ``top_k`` of objects with ``label`` and ``probability``, the most probable first. Where candidates
        were asked for, ``candidates`` and ``reason`` come before them; ``off_topic`` where it is known. Where
        a text may have several labels, a list ``labels`` takes the place of ``label`` and ``probability``.
        """
        content: dict[str, Any] = {"label": self.label, "probability": rounded(self.probability)}
        if self.may_have_several:
            content = {LABELS: None if self.labels is None else list(self.labels)}
        if self.unsure is not None:
            content[UNSURE] = list(self.unsure)
        if self.candidates is not None:
            content[CANDIDATES] = list(self.candidates)
        if self.candidates is not None or self.reason is not None:
            content[REASON] = self.reason
        if self.off_topic is not None:
            content[OFF_TOPIC] = rounded(self.off_topic)
        if top_k is None:
            return content | {"probabilities": {name: rounded(p) for name, p in self.probabilities.items()}}
        ranked = [{"label": name, "probability": rounded(p)} for name, p in self.top_k(top_k)]
        return content | {"top_k": ranked}


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier says of many texts, in their order; a sequence of ``Prediction``.

    Attributes:
        probabilities: float32 of shape (rows, classes).
        label_names: class names in id order.
        rule: what is answered, and which classes are named otherwise; None: every row gets its best class.
        off_topic: p-values, (rows,): the share of the calibration rows that are at least as untypical of the
            training topics; None: not known.
        unreadable: of each row, why its text says nothing and gets no answer, as "empty text"; None where it
            says something, and for all rows together where such texts are answered like others.
        truncation: how many of the texts were cut; None: not known.
        decisions: which labels a text gets, where it may have several: its probabilities are those of each
            label by itself. None: it has one.

    Raises ValueError when the first two do not fit, and UserError when the classifier gave anything but
    numbers.
    """

    probabilities: NDArray[np.float32]
    label_names: tuple[str, ...]
    rule: DecisionRule | None = None
    off_topic: NDArray[np.float32] | None = None
    unreadable: tuple[str | None, ...] | None = None
    truncation: Truncation | None = None
    decisions: LabelDecisions | None = None

    def __post_init__(self) -> None:
        """Bring the probabilities to float32 and refuse what cannot be a prediction."""
        probabilities = np.asarray(self.probabilities, dtype=np.float32)
        if probabilities.ndim != 2 or probabilities.shape[1] != len(self.label_names):
            raise ValueError(f"probabilities of shape {probabilities.shape} for labels {self.label_names}")
        if not np.isfinite(probabilities).all():
            row = int(np.argmin(np.isfinite(probabilities).all(axis=1)))
            raise UserError(
                "the model does not predict numbers; its training diverged, or its file is damaged",
                found=f"probabilities {probabilities[row].tolist()} for row {row}",
                fix="train again with a lower learning rate or in float32",
            )
        object.__setattr__(self, "probabilities", probabilities)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.probabilities)

    def __getitem__(self, row: int) -> Prediction:
        """The prediction for one row."""
        distribution = self.probabilities[row].tolist()
        by_name = dict(zip(self.label_names, distribution, strict=True))
        return Prediction(
            self.labels[row],
            max(distribution),
            by_name,
            self.candidates_of(row),
            self.reasons[row],
            None if self.off_topic is None else float(self.off_topic[row]),
            self.label_sets[row],
            self.decisions is not None,
            self.unsure_sets[row],
        )

    def __iter__(self) -> Iterator[Prediction]:
        """The predictions in row order."""
        return (self[row] for row in range(len(self)))

    @property
    def class_ids(self) -> NDArray[np.int64]:
        """The most probable class of each row, answered or not, (rows,); of equals, the lowest id."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    @cached_property
    def answered(self) -> NDArray[np.bool_]:
        """Which rows are given a label, (rows,)."""
        if self.rule is None:
            return ~self.is_unreadable
        return self.rule.confident(self.probabilities) & ~self.is_off_topic & ~self.is_unreadable

    @cached_property
    def is_unreadable(self) -> NDArray[np.bool_]:
        """Which rows are not answered because their text says nothing, (rows,)."""
        if self.unreadable is None:
            return np.zeros(len(self), dtype=np.bool_)
        return np.array([reason is not None for reason in self.unreadable], dtype=np.bool_)

    @cached_property
    def is_off_topic(self) -> NDArray[np.bool_]:
        """Which rows are not answered for being off topic, (rows,)."""
        if self.rule is None or self.rule.off_topic is None or self.off_topic is None:
            return np.zeros(len(self), dtype=np.bool_)
        return np.asarray(self.off_topic <= self.rule.off_topic, dtype=np.bool_)

    @cached_property
    def labels(self) -> tuple[str | None, ...]:
        """The most probable class of each row, by name; None where it is not answered."""
        if self.decisions is not None:
            return tuple(labels[0] if labels else None for labels in self.label_sets)
        pairs = zip(self.class_ids, self.answered, strict=True)
        return tuple(self.label_names[i] if answered else None for i, answered in pairs)

    @cached_property
    def assigned(self) -> NDArray[np.bool_]:
        """Which labels each text gets, (rows, labels), where it may have several; none where not answered.

        Where a share of wrong labels is promised, those that are sure enough.
        """
        assigned = self._likely_enough
        return self.rule.sure(self.probabilities, assigned) if isinstance(self.rule, LabelRule) else assigned

    @cached_property
    def _likely_enough(self) -> NDArray[np.bool_]:
        if self.decisions is None:
            raise ValueError("these texts have one label each")
        return self.decisions.assigned(self.probabilities) & self.answered[:, None]

    @cached_property
    def label_sets(self) -> tuple[tuple[str, ...] | None, ...]:
        """The labels that each text gets, the most probable first, where it may have several.

        None where it is not answered, and for all texts where each has one label.
        """
        return (None,) * len(self) if self.decisions is None else self._named(self.assigned)

    @cached_property
    def unsure_sets(self) -> tuple[tuple[str, ...] | None, ...]:
        """The labels of each text that are likely enough, but not sure enough for what is promised.

        None where nothing is promised, or a text is not answered.
        """
        if not isinstance(self.rule, LabelRule) or self.rule.promise is None:
            return (None,) * len(self)
        return self._named(self._likely_enough & ~self.assigned)

    def _named(self, given: NDArray[np.bool_]) -> tuple[tuple[str, ...] | None, ...]:
        """The names of labels, (rows, labels), the most probable first; None where a text is not answered."""
        ranked = np.argsort(-self.probabilities, axis=1, kind="stable")
        return tuple(
            tuple(self.label_names[i] for i in ids if row[i]) if answered else None
            for answered, ids, row in zip(self.answered, ranked, given, strict=True)
        )

    @cached_property
    def reasons(self) -> tuple[str | None, ...]:
        """Why each row is not answered; None where it is."""
        promise = None if self.rule is None else self.rule.promise
        unsure = None if promise is None else f"confidence below {promise.threshold:.4f}"
        unreadable = self.unreadable or (None,) * len(self)
        rows = zip(self.answered, unreadable, self.is_off_topic, strict=True)
        return tuple(
            None if answered else why_unreadable or (IS_OFF_TOPIC if off_topic else unsure)
            for answered, why_unreadable, off_topic in rows
        )

    def candidates_of(self, row: int) -> tuple[str, ...] | None:
        """The candidates of a row, the most probable first; None where no rule names any."""
        if self.candidate_mask is None:
            return None
        ranked = np.argsort(-self.probabilities[row], kind="stable")
        return tuple(self.label_names[i] for i in ranked if self.candidate_mask[row, i])

    @cached_property
    def candidate_mask(self) -> NDArray[np.bool_] | None:
        """Which classes are each row's candidates, (rows, classes); None where no rule names any."""
        if self.rule is None or not self.rule.names_candidates:
            return None
        return (
            self.rule.candidate_mask(self.probabilities) & ~(self.is_off_topic | self.is_unreadable)[:, None]
        )

    def top_k(self, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Class ids and probabilities of each row's ``k`` most probable classes, both (rows, k).

        k is lowered to the number of classes. Of equals the lower id comes first.
        Raises UserError unless k is at least 1.
        """
        _check_top_k(k)
        ids = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return ids, np.take_along_axis(self.probabilities, ids, axis=1)

    def to_dicts(self, top_k: int | None = None) -> list[dict[str, Any]]:
        """``Prediction.to_dict`` of every row."""
        return [prediction.to_dict(top_k) for prediction in self]


def _check_top_k(k: int) -> None:
    if k < 1:
        raise UserError("--top-k asks for at least one class", found=str(k), fix="for example --top-k 3")
