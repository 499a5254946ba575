"""Which words of a text carried a classifier's decision: each is left out in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.labels import LabelMatcher
from newsdesk.data.words import Span, language_tag, normalise, without, word_spans
from newsdesk.errors import UserError
from newsdesk.model.tokenizer import Truncation
from newsdesk.prediction.classifier import Classifier
from newsdesk.prediction.predictions import Predictions

PARTS = 128
"""How many parts of a text are left out in turn; a longer text is taken apart into phrases first."""

Score = Callable[[Sequence[str]], NDArray[np.float64]]


@dataclass(frozen=True)
class WordWeight:
    """A word, or in a long text a phrase, and what it does for the target class.

    Attributes:
        text, start, end: the word as it is in the text, from character ``start`` to before ``end``.
        weight: by how much the target's log-odds, in nats, are higher with the word than without.
    """

    text: str
    start: int
    end: int
    weight: float


@dataclass(frozen=True)
class Explanation:
    """Why a classifier takes a text for what it does.

    Attributes:
        text: the text, as it was given.
        label, probability: the predicted class, None where the text says nothing, and its probability.
        target, target_probability: the class that is explained.
        log_odds: of the target against all other classes, in nats, before any calibration.
        base_log_odds: the same for an empty text: where the words start from.
        words: the words in reading order. Their weights need not sum to the difference of the two.
        reason: why there is nothing to explain, such as "empty text"; None where there is something.
        tokens, tokens_lost: of the text, special ones included, and of these what the model does not read.
    """

    text: str
    label: str | None
    probability: float
    target: str
    target_probability: float
    log_odds: float
    base_log_odds: float
    words: tuple[WordWeight, ...]
    reason: str | None = None
    tokens: int = 0
    tokens_lost: int = 0

    def top(self, count: int) -> tuple[WordWeight, ...]:
        """The ``count`` words with the largest weights for or against the target, the largest first."""
        return tuple(sorted(self.words, key=lambda word: -abs(word.weight))[:count])

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types, and the text's language as ``language_tag`` tells it from its script."""
        words = [asdict(word) for word in self.words]
        return asdict(self) | {"words": words, "language": language_tag(self.text)}


def explain(classifier: Classifier, text: str, *, target: str | None = None) -> Explanation:
    """The words that carried the decision on one text, by occlusion (Zeiler & Fergus, 2014; Li et al., 2016).

    Each word is deleted in turn; its weight is what the target's log-odds, ln p/(1-p), lose thereby. They
    tell words apart where probabilities have long come close to 1. A text of more than 128 words is first
    taken apart into 128 phrases, of which the weightiest are then taken apart into words: at most 259 texts
    are classified, whatever the length, and none for words that the model does not read.

    Args:
        classifier: a run or exported model, as ``newsdesk.load`` gives it.
        text: the text as a file has it; the classifier's normaliser is applied here.
        target: the class to explain; None: the predicted one.

    Raises:
        UserError: when the classifier does not know the target.
    """
    asked = None if target is None else LabelMatcher(classifier.label_names).match(target)
    if target is not None and asked is None:
        raise UserError(
            f"the classifier knows no class {target!r}",
            found=f"it knows {', '.join(classifier.label_names)}",
            fix="name one of these with --target",
        )
    cleaned = normalise(text, classifier.layout.normaliser)
    predictions = classifier.classify([cleaned])
    probabilities, reason = predictions.probabilities[0], predictions.reasons[0]
    read = predictions.truncation or Truncation()
    predicted = int(probabilities.argmax())
    target_id = predicted if asked is None else asked
    decisions = classifier.decisions

    def score(texts: Sequence[str]) -> NDArray[np.float64]:
        logits = _logits_of_distinct(classifier, texts)
        return log_odds(logits, target_id) if decisions is None else decisions.log_odds(logits)[:, target_id]

    base, full = score(["", text]).tolist()
    weights = {} if reason else _occlude_in_two_steps(score, text, full)
    return Explanation(
        text=text,
        label=None if reason else _named(predictions, classifier.label_names[predicted]),
        probability=float(probabilities[predicted]),
        target=classifier.label_names[target_id],
        target_probability=float(probabilities[target_id]),
        log_odds=full,
        base_log_odds=base,
        words=tuple(
            WordWeight(text[start:end], start, end, weight)
            for (start, end), weight in sorted(weights.items())
        ),
        reason=reason,
        tokens=read.tokens,
        tokens_lost=read.lost,
    )


def _named(predictions: Predictions, likeliest: str) -> str:
    """The label of the one text there is; where it may have several, those that it has."""
    labels = predictions.label_sets[0]
    return likeliest if labels is None else ", ".join(labels) or "no label"


def log_odds(logits: NDArray[np.floating], target: int) -> NDArray[np.float64]:
    """ln p/(1-p) of the class ``target`` from logits (rows, classes): shape (rows,), in nats."""
    exact = np.asarray(logits, dtype=np.float64)
    others = np.delete(exact, target, axis=1)
    return np.asarray(exact[:, target] - np.logaddexp.reduce(others, axis=1), dtype=np.float64)


def _logits_of_distinct(classifier: Classifier, texts: Sequence[str]) -> NDArray[np.float32]:
    """Logits (texts, classes); texts that are the same up to where the model stops reading cost one."""
    sequences = classifier.token_ids([normalise(text, classifier.layout.normaliser) for text in texts])
    distinct = {ids.tobytes(): ids for ids in sequences}
    numbers = {key: number for number, key in enumerate(distinct)}
    logits, _distances = classifier.outputs(list(distinct.values()))
    return logits[[numbers[ids.tobytes()] for ids in sequences]]


def _occlude_in_two_steps(score: Score, text: str, full: float) -> dict[Span, float]:
    """The weight of every word; of a long text, of phrases, the weightiest of them taken apart."""
    words = word_spans(text)
    phrases = _in_phrases(words)
    weights = _occlude(score, text, list(phrases), full)
    ranked = sorted(
        (span for span in phrases if len(phrases[span]) > 1), key=lambda span: -abs(weights[span])
    )
    sizes = accumulate(len(phrases[span]) for span in ranked)
    refined = [span for span, size in zip(ranked, sizes, strict=True) if size <= PARTS]
    inside = [word for span in refined for word in phrases[span]]
    kept = {span: weight for span, weight in weights.items() if span not in set(refined)}
    return kept | _occlude(score, text, inside, full)


def _in_phrases(words: Sequence[Span]) -> dict[Span, Sequence[Span]]:
    """At most ``PARTS`` phrases of equally many neighbouring words, each with its words."""
    size = max(1, -(-len(words) // PARTS))
    groups = [words[first : first + size] for first in range(0, len(words), size)]
    return {(group[0][0], group[-1][1]): group for group in groups}


def _occlude(score: Score, text: str, spans: Sequence[Span], full: float) -> dict[Span, float]:
    """What the score loses where each part alone is deleted."""
    if not spans:
        return {}
    lost = full - score([without(text, [span]) for span in spans])
    return dict(zip(spans, lost.tolist(), strict=True))
