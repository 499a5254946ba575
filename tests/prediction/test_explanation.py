"""Weights are what the logits say: held against a graph whose logits numpy can compute as well."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import newsdesk
from newsdesk.errors import UserError
from newsdesk.prediction.explanation import PARTS, log_odds
from newsdesk.runs.exported import find_exported
from tiny_exports import LABELS, PIECES, build_exported, expected_logits

CLS, SEP = PIECES.index("[CLS]"), PIECES.index("[SEP]")
MOST_TEXTS = 2 * PARTS + 2


def expected_log_odds(words, target):
    ids = [PIECES.index(word) if word in PIECES else PIECES.index("[UNK]") for word in words]
    return log_odds(expected_logits([CLS, *ids, SEP])[None], LABELS.index(target))[0]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return newsdesk.load(build_exported(tmp_path_factory.mktemp("exports") / "short"))


@pytest.fixture
def computed_by(monkeypatch):
    """``computed_by(classifier)``: a list that grows by the number of texts that each call computes."""

    def watch(classifier):
        computed, outputs = [], classifier.outputs

        def counting(sequences, **settings):
            computed.append(len(sequences))
            return outputs(sequences, **settings)

        monkeypatch.setattr(classifier, "outputs", counting)
        return computed

    return watch


@pytest.fixture(scope="module")
def long_reader(tmp_path_factory):
    """A classifier that reads 4,000 tokens."""
    return newsdesk.load(build_exported(tmp_path_factory.mktemp("exports") / "long", max_length=4000))


@pytest.mark.parametrize("target", [None, "Business"])
def test_a_words_weight_is_what_the_log_odds_lose_without_it(classifier, target):
    words = ["goal", "bank", "the", "coach"]
    found = newsdesk.explain(classifier, " ".join(words), target=target)
    explained = target or "Sports"
    full = expected_log_odds(words, explained)
    assert (found.label, found.target) == ("Sports", explained)
    assert newsdesk.explain(classifier, " ".join(words), target=explained.upper()).target == explained
    assert found.log_odds == pytest.approx(full, abs=1e-5)
    assert found.base_log_odds == pytest.approx(expected_log_odds([], explained), abs=1e-5)
    for number, word in enumerate(found.words):
        rest = words[:number] + words[number + 1 :]
        assert word.weight == pytest.approx(full - expected_log_odds(rest, explained), abs=1e-5)


def test_probabilities_are_those_of_predict(classifier):
    text = "goal bank the coach"
    found, predicted = newsdesk.explain(classifier, text, target="Business"), classifier.predict([text])[0]
    assert (found.label, found.probability) == (predicted.label, pytest.approx(predicted.probability))
    assert found.target_probability == pytest.approx(predicted.probabilities["Business"])


def test_log_odds_are_those_of_the_probability():
    logits = np.array([[1.0, 2.0, -1.0], [50.0, -50.0, 0.0]])
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert log_odds(logits, 1)[0] == pytest.approx(np.log(p[1] / (1 - p[1])))
    assert log_odds(logits, 0)[1] == pytest.approx(50.0)  # where the probability itself has become 1


def test_words_speak_for_and_against_and_the_weightiest_come_first(classifier):
    found = newsdesk.explain(classifier, "the goal of the bank, coach")
    weights = {word.text: word.weight for word in found.words}
    assert min(weights["goal"], weights["coach"]) > 0 > weights["bank"]
    assert {word.text for word in found.top(3)} == {"goal", "coach", "bank"}
    assert all(found.text[word.start : word.end] == word.text for word in found.words)
    assert [word.start for word in found.words] == sorted(word.start for word in found.words)


def test_offsets_are_those_of_the_text_as_given_though_the_classifier_reads_it_normalised(tmp_path):
    folder = build_exported(tmp_path / "exported")
    labels = find_exported(folder).labels
    replace(labels, layout=replace(labels.layout, normaliser="ag_news")).write(folder)
    found = newsdesk.explain(newsdesk.load(folder), "bank quot;goal coach")
    expected = expected_log_odds(["bank", '"', "goal", "coach"], "Sports")
    assert found.log_odds == pytest.approx(expected, abs=1e-5)
    assert [(word.text, word.start) for word in found.words[-2:]] == [("goal", 10), ("coach", 15)]


def test_a_long_text_costs_a_bounded_number_of_texts_and_its_weightiest_phrases_become_words(
    long_reader, computed_by
):
    computed = computed_by(long_reader)
    words = ["trade" if number == 1234 else "the" for number in range(2000)]
    found = newsdesk.explain(long_reader, " ".join(words), target="Business")
    assert sum(computed) <= MOST_TEXTS + 1
    (top,) = found.top(1)
    assert (top.text, top.start) == ("trade", 4 * 1234)
    phrases = [word for word in found.words if " " in word.text]
    assert phrases
    assert " ".join(word.text for word in found.words) == found.text


def test_words_that_are_not_read_cost_nothing_and_weigh_nothing(classifier, computed_by):
    computed = computed_by(classifier)
    found = newsdesk.explain(classifier, " ".join(["goal"] * 14 + ["bank"] * 100))
    assert sum(computed) <= 1 + 2 + 14
    assert all(word.weight == 0 for word in found.words[14:])


def test_a_text_of_one_part_more_than_the_limit_is_still_explained_whole(long_reader):
    found = newsdesk.explain(long_reader, " ".join(["goal"] * (PARTS + 1)))
    assert " ".join(word.text for word in found.words) == found.text
    assert len(found.words) > PARTS // 2


def test_an_empty_text_has_no_words(classifier):
    found = newsdesk.explain(classifier, "")
    assert (found.words, found.top(3)) == ((), ())
    assert found.log_odds == found.base_log_odds


def test_the_dictionary_is_json_with_offsets(classifier):
    content = json.loads(json.dumps(newsdesk.explain(classifier, "goal bank").to_dict()))
    assert content["words"][1] | {"weight": 0} == {"text": "bank", "start": 5, "end": 9, "weight": 0}
    assert content["label"] == "Sports"


def test_a_class_that_the_classifier_does_not_know_is_refused(classifier):
    with pytest.raises(UserError, match="no class 'Weather'") as refusal:
        newsdesk.explain(classifier, "goal", target="Weather")
    assert "--target" in str(refusal.value)


@pytest.mark.parametrize(("text", "reason"), [(" ", "empty text"), ("xyzzy plugh", "no known token")])
def test_a_text_that_says_nothing_has_nothing_to_explain(classifier, text, reason):
    found = newsdesk.explain(classifier, text)
    assert (found.label, found.reason, found.words) == (None, reason, ())
    (predicted,) = classifier.predict([text])
    assert (predicted.label, predicted.reason) == (None, reason)
    (answered,) = classifier.predict([text], answer_empty=True)
    assert (answered.label, answered.reason) == (
        max(answered.probabilities, key=answered.probabilities.get),
        None,
    )


def test_tokens_behind_the_end_are_counted(classifier):
    found = newsdesk.explain(classifier, "goal " * 40)
    assert (found.tokens, found.tokens_lost) == (42, 26)
    assert newsdesk.explain(classifier, "goal coach").tokens_lost == 0


def test_json_names_the_language_where_the_script_tells_it(classifier):
    assert newsdesk.explain(classifier, "goal أعلن الرئيس").to_dict()["language"] == "ar"
    assert newsdesk.explain(classifier, "goal bank").to_dict()["language"] is None
