"""Rows that tell three topics by their words: what tiny trainings learn."""

from __future__ import annotations

import random

TOPIC_WORDS = {
    topic: words.split()
    for topic, words in (
        ("Business", "market shares profit bank trade prices dollar merger investors budget"),
        ("Science", "orbit genome telescope software quantum fossil vaccine robot climate laser"),
        ("Sports", "goal coach striker tennis season medal referee league sprint champion"),
    )
}
FILLER_WORDS = (
    "the",
    "a",
    "of",
    "in",
    "on",
    "and",
    "said",
    "new",
    "after",
    "over",
    "for",
    "with",
    "from",
    "today",
)


def topical_rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Rows of (label, text): a third or more of the words tell the topic; lengths vary as headlines' do."""
    generator = random.Random(seed)
    rows = []
    for row in range(count):
        label = list(TOPIC_WORDS)[row % len(TOPIC_WORDS)]
        words = generator.choices(TOPIC_WORDS[label], k=generator.randint(3, 6))
        words += generator.choices(FILLER_WORDS, k=generator.randint(0, 6))
        generator.shuffle(words)
        rows.append((label, " ".join(words)))
    return rows
