"""A linear model of token pairs beside the encoder: its file, its scores, and how much they count.

It counts what the encoder reads, single token ids and pairs of neighbours, and so is a function of the same
input. It learns in seconds and errs on other texts than the encoder does: its scores beside the encoder's
logits make an answer that is right more often than either (stacking: Wolpert, 1992).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import counted
from newsdesk.files import stored_tensors, write_bytes
from newsdesk.label_set_metrics import Counts, resampled_counts
from newsdesk.model.tokenizer import TokenIds, lengths_of
from newsdesk.runs.calibration import fit_temperature, softmax
from newsdesk.runs.label_decisions import LabelDecisions, strata

LINEAR_MODEL = "linear_model.safetensors"
MOST_FEATURES, MOST_WEIGHTS = 300_000, 4_000_000
"""How many tokens and pairs are kept, the most frequent ones, and how many weights they may have."""

_ROWS_WHERE_RARE_ONES_GO = 1000  # in more rows than these, what occurs in one alone is not counted
_TOKENS_AT_ONCE = 1 << 18
_MOST_SPECIAL = 64  # tokens around a text
_MOST_STACK = 1e6
_PAIR = 32  # bits by which the first token of a pair is shifted
_SPREAD = 0.3  # standard deviation of what the weights of a stack are expected to be
_NEWTON_STEPS = 50
_BEYOND_CHANCE = 1.64
_FORMAT = "1"
_FIX = "copy it again from an undamaged copy, or make it again with newsdesk calibrate RUN --stack"

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LinearModel:
    """TF-IDF of token ids and their pairs, and a linear SVM for each class against the others.

    Attributes:
        keys: int64 (features,), ascending: a token's id, or both of a pair (see ``_ngrams``).
        idf: float32 (features,), ln((1 + rows) / (1 + rows with it)) + 1 of the rows learned from.
        weights: float32 (features, classes), on disk with half the precision.
        bias: float32 (classes,).
        opening, closing: how many special tokens surround every text; they do not count.
        stack: by what its scores are multiplied before they are added to the encoder's logits; 0: they are
            not added.
    """

    keys: Ids
    idf: Floats
    weights: Floats
    bias: Floats
    opening: int
    closing: int
    stack: float = 0.0

    @classmethod
    def fit(
        cls,
        sequences: Sequence[TokenIds],
        labels: NDArray[Any],
        classes: int,
        *,
        opening: int,
        closing: int,
        seed: int,
    ) -> Self | None:
        """Learn from token ids and class ids (rows,); None where there is one class, or no token.

        Squared hinge loss with C = 1, term frequencies 1 + ln(count), rows of unit length, as in the linear
        baseline. Where a text may have several labels these are bool (rows, classes), and each one that some
        rows have and some do not gets an SVM of its own. ``seed`` orders the rows for the coordinate descent.
        Needs scikit-learn.
        """
        from sklearn.svm import LinearSVC

        keys, idf = _vocabulary(sequences, opening, closing, min(MOST_FEATURES, MOST_WEIGHTS // classes))
        several = labels.ndim == 2
        known = np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0)) if several else np.unique(labels)
        if not len(keys) or len(known) < (1 if several else 2):
            return None
        empty = np.zeros((len(keys), classes), dtype=np.float32)
        model = cls(keys, idf, empty, np.full(classes, -1.0, dtype=np.float32), opening, closing)
        matrix, machine = model._matrix(sequences), LinearSVC(C=1.0, random_state=seed)
        if several:
            model.bias[labels.all(axis=0)] = 1.0
            for label in known:
                found = machine.fit(matrix, labels[:, label])
                model.weights[:, label] = found.coef_[0].astype(np.float16)
                model.bias[label] = found.intercept_[0]
            return model
        found = machine.fit(matrix, labels)
        weights, bias = found.coef_.T, found.intercept_
        if len(known) == 2:  # one hyperplane: what speaks for one class speaks against the other
            weights, bias = np.hstack([-weights, weights]), np.hstack([-bias, bias])
        model.weights[:, known], model.bias[known] = weights.astype(np.float16), bias
        return model

    def scores(self, sequences: Sequence[TokenIds]) -> Floats:
        """Signed distances to the classes' hyperplanes, (rows, classes), of token ids."""
        found = np.tile(self.bias, (len(sequences), 1))
        for first, rows, places, values in self._tf_idf(sequences):
            starts = np.flatnonzero(np.diff(rows, prepend=-1))
            if len(starts):
                added = np.add.reduceat(values[:, None] * self.weights[places], starts, axis=0)
                found[first + rows[starts]] += added
        return found

    def stacked(self, logits: Floats, scores: Floats) -> Floats:
        """The encoder's logits with that part of the scores added which is due, all (rows, classes)."""
        return logits + np.float32(self.stack) * scores

    def with_stack(self, stack: float) -> Self:
        """The same model with another part in the answers."""
        return replace(self, stack=stack)

    def _tf_idf(self, sequences: Sequence[TokenIds]) -> Iterator[tuple[int, Ids, Ids, Floats]]:
        """Part after part of the rows: its first row, and (cells,) rows counted from there, places of their
        keys, and values, whose squares sum to one in each row.
        """
        features = len(self.keys)
        for first, part in _parts(sequences):
            rows, keys = _ngrams(part, self.opening, self.closing)
            places = np.minimum(np.searchsorted(self.keys, keys), features - 1)
            known = self.keys[places] == keys
            cells, counts = np.unique(rows[known] * features + places[known], return_counts=True)
            rows, places = np.divmod(cells, features)
            values = (1 + np.log(counts)).astype(np.float32) * self.idf[places]
            lengths = np.sqrt(np.bincount(rows, values.astype(np.float64) ** 2))
            yield first, rows, places, (values / lengths[rows]).astype(np.float32)

    def _matrix(self, sequences: Sequence[TokenIds]) -> Any:
        from scipy.sparse import csr_matrix

        firsts, rows, places, values = zip(*self._tf_idf(sequences), strict=True)
        row = np.concatenate([first + part for first, part in zip(firsts, rows, strict=True)])
        cells = (np.concatenate(values), (row, np.concatenate(places)))
        return csr_matrix(cells, shape=(len(sequences), len(self.keys)))

    def save(self, folder: Path) -> None:
        """Write it into a run or exported model. Atomic; whoever calls this seals the folder afterwards."""
        from safetensors.numpy import save

        tensors: dict[str, NDArray[Any]] = {
            "keys": self.keys,
            "idf": self.idf,
            "weights": self.weights.astype(np.float16),
            "bias": self.bias,
            "special": np.array([self.opening, self.closing], dtype=np.int64),
            "stack": np.array([self.stack], dtype=np.float64),
        }
        write_bytes(folder / LINEAR_MODEL, save(tensors, metadata={"format": _FORMAT}))

    @classmethod
    def of_folder(cls, folder: Path, classes: int) -> Self | None:
        """The one that a run or exported model of so many classes carries; None where it has none.

        Raises UserError when the file is damaged.
        """
        file = folder / LINEAR_MODEL
        if not os.path.lexists(file):
            return None
        with stored_tensors(file, fix=_FIX) as content:
            if (found := (content.metadata() or {}).get("format")) != _FORMAT:
                raise ValueError(f"the format {found!r:.20}, not {_FORMAT}")
            features = content.get_slice("keys").get_shape()[0]
            for name, (kind, shape) in _stored(features, classes).items():
                stored = content.get_slice(name)
                if (stored.get_dtype(), tuple(stored.get_shape())) != (kind, shape):
                    is_there = f"{stored.get_dtype()} {tuple(stored.get_shape())}"
                    raise ValueError(f"{name} is {is_there}, not {kind} {shape}")
            tensors: dict[str, Any] = {name: content.get_tensor(name) for name in _stored(0, 0)}
            for name in ("idf", "weights", "bias", "stack"):
                if not np.isfinite(tensors[name]).all():
                    raise ValueError(f"{name} holds numbers that are not finite")
            special, stack = tensors.pop("special"), float(tensors.pop("stack")[0])
            if not (features and (np.diff(tensors["keys"]) > 0).all()):
                raise ValueError("keys are none, or not ascending")
            if not (tensors["idf"] > 0).all():
                raise ValueError("idf holds numbers that are not positive")
            if not 0 <= stack <= _MOST_STACK or not ((special >= 0) & (special <= _MOST_SPECIAL)).all():
                raise ValueError(f"special is {special.tolist()}, stack {stack}: out of their range")
            tensors["weights"] = tensors["weights"].astype(np.float32)
            return cls(**tensors, opening=int(special[0]), closing=int(special[1]), stack=stack)


def _stored(features: int, classes: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors of the file: their type and shape."""
    return {
        "keys": ("I64", (features,)),
        "idf": ("F32", (features,)),
        "weights": ("F16", (features, classes)),
        "bias": ("F32", (classes,)),
        "special": ("I64", (2,)),
        "stack": ("F64", (1,)),
    }


def _parts(sequences: Sequence[TokenIds]) -> Iterator[tuple[int, Sequence[TokenIds]]]:
    """Neighbouring rows of not too many tokens together, each part with the number of its first row."""
    ends = np.cumsum(lengths_of(sequences)) // _TOKENS_AT_ONCE
    firsts = [*np.flatnonzero(np.diff(ends, prepend=-1)).tolist(), len(sequences)]
    for first, end in pairwise(firsts):
        yield first, sequences[first:end]


def _ngrams(sequences: Sequence[TokenIds], opening: int, closing: int) -> tuple[Ids, Ids]:
    """Tokens and pairs of neighbours in some texts: the rows that they occur in, and their keys, both (n,).

    A token's key is its id, a pair's is (first id + 1) * 2**32 + second id.
    """
    inner = [np.asarray(ids, dtype=np.int64)[opening : len(ids) - closing] for ids in sequences]
    rows, tokens = np.repeat(np.arange(len(inner)), lengths_of(inner)), np.concatenate(inner)
    together = rows[1:] == rows[:-1]
    pairs = (tokens[:-1][together] + 1 << _PAIR) + tokens[1:][together]
    return np.concatenate([rows, rows[1:][together]]), np.concatenate([tokens, pairs])


def _vocabulary(sequences: Sequence[TokenIds], opening: int, closing: int, most: int) -> tuple[Ids, Floats]:
    """The most frequent tokens and pairs, ascending, and how rare each is (idf), both (features,)."""
    found = []
    for _first, part in _parts(sequences):
        rows, keys = _ngrams(part, opening, closing)
        in_order = np.lexsort((rows, keys))
        rows, keys = rows[in_order], keys[in_order]
        is_new = (np.diff(keys, prepend=-1) != 0) | (np.diff(rows, prepend=-1) != 0)
        found.append(np.unique(keys[is_new], return_counts=True))
    if not found:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    keys, inverse = np.unique(np.concatenate([keys for keys, _ in found]), return_inverse=True)
    frequency = np.bincount(inverse, np.concatenate([counts for _, counts in found]))
    kept = np.flatnonzero(frequency >= (2 if len(sequences) > _ROWS_WHERE_RARE_ONES_GO else 1))
    kept = np.sort(kept[np.argsort(-frequency[kept], kind="stable")[:most]])
    idf = np.log((1 + len(sequences)) / (1 + frequency[kept])) + 1
    return keys[kept], idf.astype(np.float32)


def stack_weight(logits: NDArray[np.floating], scores: NDArray[np.floating], labels: Ids) -> float:
    """What to multiply a linear model's scores by before they are added to the encoder's logits.

    Both are (rows, classes), of labelled rows (rows,) that neither learned from. Each is divided by a
    temperature of its own, and the labels are made most likely under a weighted sum of the two (a logarithmic
    opinion pool: Genest and Zidek, 1986). The weights are drawn towards the encoder alone, 1 and 0, by a
    normal prior: few rows change little. Never below 0.
    """
    of_encoder, of_linear = fit_temperature(logits, labels), fit_temperature(scores, labels)
    parts = np.stack([np.asarray(logits) / of_encoder, np.asarray(scores) / of_linear]).astype(np.float64)
    of_true = parts[:, np.arange(len(labels)), labels]
    prior = np.array([1.0, 0.0])
    weights = prior
    for _ in range(_NEWTON_STEPS):
        probabilities = softmax(np.tensordot(weights, parts, 1)).astype(np.float64)
        expected = np.einsum("rc,krc->kr", probabilities, parts)
        slope = (expected - of_true).sum(axis=1) + (weights - prior) / _SPREAD**2
        products = np.einsum("rc,krc,jrc->kj", probabilities, parts, parts) - expected @ expected.T
        step = np.linalg.solve(products + np.eye(2) / _SPREAD**2, slope)
        weights = weights - step
        if np.abs(step).max() < 1e-6:
            break
    encoder, linear = weights
    return float(linear / encoder * of_encoder / of_linear) if encoder > 0 and linear > 0 else 0.0


def label_stack_weight(
    logits: NDArray[np.floating], scores: NDArray[np.floating], labels: NDArray[np.bool_]
) -> float:
    """As `stack_weight` where a text may have several labels; all three are (rows, labels).

    The log-odds of each label of each text count as a row of two classes, and one number serves all labels:
    on Reuters-21578, weights of each label, drawn towards it, are no better with 50 to 3,762 rows.
    """
    of_labels, others = labels.reshape(-1, 1), np.zeros((labels.size, 1))
    cells = [given.reshape(-1, 1) for given in (logits, scores)]
    decisions = [LabelDecisions.fit(each, of_labels) for each in cells]
    encoder, linear = (
        np.hstack([of.log_odds(each), others]) for of, each in zip(decisions, cells, strict=True)
    )
    weight = stack_weight(encoder, linear, (~of_labels[:, 0]).astype(np.int64))
    return weight * decisions[1].scales[0] / decisions[0].scales[0]


@dataclass(frozen=True)
class Stack:
    """A linear model's part in the answers, and what it does on the validation rows.

    Attributes:
        weight: as by `stack_weight` or `label_stack_weight`.
        rows: how many rows there are.
        alone, stacked: which share of them the encoder alone and both together classify correctly or, where
            a text may have several labels, their micro F1. Which share the scores have in that, and which
            labels are assigned, was fitted on the other half of the rows.
        is_clear: whether chance would rarely bring such a gain (McNemar, 1947, or draws of the texts;
            one-sided, 5 %).
        interval: 95 % interval of the gain in micro F1, by drawing texts; None where each has one label.
    """

    weight: float
    rows: int
    alone: float
    stacked: float
    is_clear: bool
    interval: tuple[float, float] | None = None

    @classmethod
    def of(cls, logits: Floats, scores: Floats, labels: NDArray[Any], choosing: Ids) -> Self:
        """Fit the weight on those validation rows that chose the encoder's state, or on all where none did.

        Rows that calibrate do not choose: ``choosing`` are positions among the rows. Shapes as for
        `stack_weight`, or for `label_stack_weight` where the labels are two-dimensional.
        """
        several = labels.ndim == 2
        weigh = label_stack_weight if several else stack_weight
        in_order = np.argsort(strata(labels), kind="stable")
        others = np.setdiff1d(in_order, choosing)
        halves = (choosing, others) if len(choosing) else (in_order[::2], in_order[1::2])
        alone, stacked = np.zeros((2, *(labels.shape if several else logits.shape[:1])), dtype=labels.dtype)
        for fitted, measured in (halves, halves[::-1]):
            by = fitted if len(fitted) or not several else measured  # a single row has no halves
            both = logits + np.float32(weigh(logits[by], scores[by], labels[by])) * scores
            for answers, of in ((alone, logits), (stacked, both)):
                answers[measured] = _answers(of[by], labels[by], of[measured])
        by = choosing if len(choosing) else in_order
        weight, rows = weigh(logits[by], scores[by], labels[by]), len(labels)
        if several:
            return cls._of_sets(weight, alone, stacked, labels)
        right, both_right = alone == labels, stacked == labels
        gained, lost = int((both_right & ~right).sum()), int((right & ~both_right).sum())
        is_clear = gained - lost > _BEYOND_CHANCE * (gained + lost) ** 0.5
        return cls(weight, rows, float(right.mean()), float(both_right.mean()), is_clear)

    @classmethod
    def _of_sets(
        cls,
        weight: float,
        alone: NDArray[np.bool_],
        stacked: NDArray[np.bool_],
        labels: NDArray[np.bool_],
    ) -> Self:
        draws = resampled_counts(labels, [alone, stacked], seed=0)
        gains = np.concatenate([after.micro_f1() - before.micro_f1() for before, after in draws])
        low, least, high = np.quantile(gains, [0.025, 0.05, 0.975]).tolist()
        before, after = (float(Counts.of(assigned, labels).micro_f1()) for assigned in (alone, stacked))
        return cls(weight, len(labels), before, after, least > 0, (low, high))

    def remark(self, *, asked: bool) -> str | None:
        """What it does, a sentence; where nobody asked for it, None unless it would be better."""
        rows = counted(self.rows, "validation row")
        right = f"{self.stacked:.2%} instead of {self.alone:.2%} of {rows} right"
        if self.interval is not None:
            gain, (low, high) = 100 * (self.stacked - self.alone), self.interval
            right = (
                f"{self.stacked:.2%} instead of {self.alone:.2%} micro F1 on {rows}, {gain:+.2f} points "
                f"[{100 * low:+.2f}, {100 * high:+.2f}]"
            )
        if asked:
            return f"stacked with a linear model: {right}"
        if not self.is_clear:
            return None
        return f"stacked with the linear model it would get {right}: newsdesk calibrate RUN --stack"


def _answers(logits: Floats, labels: NDArray[Any], asked: Floats) -> NDArray[Any]:
    """What ``asked`` logits are answered with: the likeliest class, or labels by decisions of other rows."""
    if labels.ndim == 1:
        return np.asarray(asked.argmax(axis=1))
    decisions = LabelDecisions.fit(logits, labels)
    return decisions.assigned(decisions.probabilities(asked))
