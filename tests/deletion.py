"""What deleting words does to a decision: the measure of how faithful an explanation is."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

import newsdesk
from newsdesk.data.words import Span, without, word_spans
from newsdesk.prediction.classifier import Classifier


def lost_by_deletion(classifier: Classifier, texts: Sequence[str], count: int) -> tuple[float, float]:
    """Comprehensiveness (DeYoung et al., 2020): by how much the predicted class's probability falls.

    Means over the texts: with the top ``count`` words deleted, and with as many chosen by chance.
    """
    generator = random.Random(4)
    by_top, by_chance = [], []
    for text in texts:
        ranked = sorted(newsdesk.explain(classifier, text).words, key=lambda word: -word.weight)
        top = [(word.start, word.end) for word in ranked[:count]]
        by_top.append(_lost(classifier, text, top))
        by_chance.append(_lost(classifier, text, generator.sample(word_spans(text), count)))
    return float(np.mean(by_top)), float(np.mean(by_chance))


def _lost(classifier: Classifier, text: str, spans: Sequence[Span]) -> float:
    before, after = classifier.predict_probabilities([text, without(text, spans)])
    return float(before.max() - after[before.argmax()])
