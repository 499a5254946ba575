"""Token ids are transformers' own on ten thousand strings, most of which nobody would publish."""

from __future__ import annotations

import csv
import random
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from newsdesk.model.tokenizer import TextTokenizer

STRINGS = 10_000
SPECIAL = ("[SEP]", "[CLS]", "[PAD]", "[MASK]", "[UNK]", "</s>", "<s>", "<pad>", "<mask>", "<unk>", "##goal")
JOINED = ("\U0001f469\u200d\U0001f680", "\U0001f1e9\U0001f1ea", "1\ufe0f\u20e3", "\U0001f44d\U0001f3fd")
SPACES = (" ", "\t", "\n", "\r\n", "\r", "\u00a0", "\u2028", "\u3000", "\u200b", "\x85", "\x0b", "\ufeff")
RIGHT_TO_LEFT = ("שלום עולם", "\u202eאבג\u202c", "مرحبا", "\u2067abc\u2069")
NEWS = Path(__file__).resolve().parents[3] / "shared" / "ag_news" / "test.csv"


def any_character(generator: random.Random) -> str:
    """A character of any plane, assigned or not; surrogates, which are none, excepted."""
    while True:
        limit = generator.choice((0x80, 0x300, 0x3000, 0x10000, 0x110000))
        character = chr(generator.randrange(limit))
        if unicodedata.category(character) != "Cs":
            return character


def word(generator: random.Random) -> str:
    kind = generator.randrange(9)
    if kind == 0:
        return generator.choice(SPECIAL)
    if kind == 1:
        return "e" + "".join(chr(generator.randrange(0x300, 0x370)) for _ in range(generator.randrange(9)))
    if kind == 2:
        return generator.choice(JOINED + RIGHT_TO_LEFT)
    if kind == 3:
        return generator.choice("xgä株") * generator.choice((1, 99, 101, 300))
    if kind == 4:
        return "".join(chr(generator.randrange(0x20)) for _ in range(3))
    if kind == 5:
        return generator.choice(("goal", "Market", "U.S.", "AT&T", "$1,000.50", "don\u2019t", "naïve"))
    return "".join(any_character(generator) for _ in range(generator.randint(1, 6)))


@cache
def hostile_strings(count: int) -> list[str]:
    generator = random.Random(11)
    strings = ["", " ", "\n\n", *SPECIAL, *SPACES, "goal " * 3000]
    while len(strings) < count:
        words = [word(generator) for _ in range(generator.randrange(12))]
        strings.append("".join(part + generator.choice((*SPACES, " ", "")) for part in words))
    return strings


def real_strings() -> list[str]:
    if not NEWS.is_file():
        return []
    with NEWS.open(newline="", encoding="utf-8") as stream:
        return [" ".join(row[1:]) for row in csv.reader(stream)][1:3001]


def assert_same_ids(folder: Path, max_length: int) -> None:
    from transformers import AutoTokenizer

    news = real_strings()
    strings = news + hostile_strings(STRINGS - len(news))
    assert len(strings) == STRINGS
    reference = AutoTokenizer.from_pretrained(folder)(strings, truncation=True, max_length=max_length)[
        "input_ids"
    ]
    ours = TextTokenizer.from_folder(folder, max_length).encode(strings)
    triples = zip(strings, ours, reference, strict=True)
    differing = [text for text, ids, theirs in triples if ids.tolist() != theirs]
    assert differing == []


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_ids_are_those_of_the_training_tokenizer(tiny_base: Callable[..., Path], family: str):
    assert_same_ids(tiny_base(family), 24)


@pytest.mark.real
def test_ids_of_a_real_vocabulary_are_those_of_the_training_tokenizer():
    from newsdesk.model.catalog import resolve_base

    assert_same_ids(resolve_base("all-MiniLM-L6-v2").path, 96)
