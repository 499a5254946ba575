"""Rows that tell three topics by their words: what tiny trainings learn."""

from __future__ import annotations

import csv
import json
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


def rows_with_several(count, seed):
    """Texts of no topic, one or two, whose words tell them; with their topics in the order of the words."""
    generator = random.Random(seed)
    for number in range(count):
        topics = generator.sample(tuple(TOPIC_WORDS), k=(0, 1, 1, 2)[number % 4])
        words = [word for topic in topics for word in generator.choices(TOPIC_WORDS[topic], k=4)]
        words += generator.choices(FILLER_WORDS, k=6)
        generator.shuffle(words)
        yield " ".join(words), topics


def written(path, rows):
    """The rows as jsonl, as csv with a separator, or as csv with columns of 0 and 1, by the file's name."""
    if path.suffix == ".jsonl":
        lines = (json.dumps({"words": text, "desks": topics}) for text, topics in rows)
        path.write_text("\n".join(lines) + "\n")
        return path
    with path.open("w", newline="") as stream:
        write = csv.writer(stream).writerow
        if path.stem.endswith("columns"):
            write(["words", *TOPIC_WORDS])
            for text, topics in rows:
                write([text, *(int(name in topics) for name in TOPIC_WORDS)])
        else:
            write(["words", "desks"])
            for text, topics in rows:
                write([text, ";".join(topics)])
    return path
