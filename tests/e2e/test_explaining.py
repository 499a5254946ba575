"""``newsdesk explain`` on a trained run: what it names is what the decision stands on."""

from __future__ import annotations

import csv

import pytest

import newsdesk as package
from deletion import lost_by_deletion

TEXT = "the goal of a coach, said the bank"


@pytest.fixture(scope="module")
def classifier(trained):
    return package.load(trained, device="cpu")


def test_deleting_the_top_words_changes_the_decision_more_than_deleting_others(classifier, desk):
    with desk.test.open(newline="") as stream:
        texts = [row["words"] for row in csv.DictReader(stream)][:20]
    by_top, by_chance = lost_by_deletion(classifier, texts, 3)
    assert by_top > 2 * max(0.02, by_chance)


def test_the_text_and_its_words_are_shown_with_signed_numbers(newsdesk, trained):
    outcome = newsdesk("explain", trained, TEXT, "--top", "2", "--target", "Sports")
    assert (outcome.code, outcome.err) == (0, "")
    assert TEXT in outcome.lines
    listed = [line.split() for line in outcome.lines if line.lstrip()[:1] in ("+", "-")]
    assert len(listed) == 2
    assert all(number[0] in "+-" and word in TEXT for number, word in listed)
    assert "\x1b" not in outcome.out


def test_json_gives_every_word_with_its_place(newsdesk, trained):
    outcome = newsdesk("explain", trained, TEXT, "goal", "--json")
    first, second = outcome.json["explanations"]
    assert [TEXT[word["start"] : word["end"]] for word in first["words"]] == TEXT.replace(",", "").split()
    assert [word["text"] for word in second["words"]] == ["goal"]
    assert first["label"] == first["target"]


def test_a_class_that_is_not_known_is_refused_with_those_that_are(newsdesk, trained):
    outcome = newsdesk("explain", trained, TEXT, "--target", "Weather")
    assert outcome.code == 1
    assert "Business, Science, Sports" in outcome.err


def test_right_to_left_texts_are_set_apart_from_numbers(newsdesk, trained):
    text = "goal أعلن الرئيس"
    outcome = newsdesk("explain", trained, text)
    assert outcome.code == 0, outcome.err
    assert f"\u2068{text}\u2069" in outcome.lines
    listed = [line.split() for line in outcome.lines if line.lstrip()[:1] in ("+", "-")]
    assert {word for _number, word in listed} == {"goal", "\u2068أعلن\u2069", "\u2068الرئيس\u2069"}
