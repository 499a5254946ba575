"""Texts that look too foreign stay unanswered, with their reason; so do those it is not sure of."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.errors import UserError
from newsdesk.evaluation.selective import Promise
from newsdesk.inference.decision import DecisionRule, with_off_topic
from newsdesk.inference.predictions import Predictions
from newsdesk.off_topic import OffTopicScore

NAMES = ("World", "Sports", "Business")
ROWS = np.array([[0.1, 0.8, 0.1], [0.4, 0.3, 0.3], [0.0, 0.1, 0.9], [0.4, 0.3, 0.3]], dtype=np.float32)
P_VALUES = np.array([0.6, 0.5, 0.02, 0.05], dtype=np.float32)
PROMISE = Promise(threshold=0.7, error_rate=0.02, confidence=0.95, rows=100, coverage=0.5)


def score(rows=199):
    square = np.eye(2, dtype=np.float32)
    return OffTopicScore(square, square, np.zeros(2, np.float32), 0.1, np.arange(rows, dtype=np.float32))


def test_every_prediction_tells_its_share_whether_or_not_anybody_asked():
    predictions = Predictions(ROWS, NAMES, None, P_VALUES)
    assert [one.label for one in predictions] == ["Sports", "World", "Business", "World"]
    assert [one["off_topic"] for one in predictions.to_dicts()] == pytest.approx(P_VALUES.tolist())
    assert "reason" not in predictions[2].to_dict()
    assert "off_topic" not in Predictions(ROWS, NAMES)[0].to_dict()


def test_foreign_texts_are_not_answered_and_say_why():
    predictions = Predictions(ROWS, NAMES, with_off_topic(None, 0.05, score()), P_VALUES)
    assert predictions.labels == ("Sports", "World", None, None)
    assert predictions.reasons == (None, None, "off topic", "off topic")
    assert predictions[2].to_dict(1) == {
        "label": None,
        "probability": 0.9,
        "reason": "off topic",
        "off_topic": 0.02,
        "top_k": [{"label": "Business", "probability": 0.9}],
    }
    assert predictions.rule is not None
    assert predictions.rule.columns == ("reason", "off_topic")
    assert predictions.rule.describe() == [
        "texts that look more foreign than 0.95 of the classifier's own are not answered"
    ]


def test_a_promise_and_a_level_combine_and_foreign_texts_have_no_candidates():
    rule = with_off_topic(DecisionRule(PROMISE, None, 0.25, 100), 0.05, score())
    predictions = Predictions(ROWS, NAMES, rule, P_VALUES)
    assert predictions.labels == ("Sports", None, None, None)
    assert predictions.reasons == (None, "confidence below 0.7000", "off topic", "off topic")
    assert [one.candidates for one in predictions] == [(), ("World", "Sports", "Business"), (), ()]
    assert rule.columns == ("candidates", "reason", "off_topic")


@pytest.mark.parametrize("level", [0.0, 1.0, 5])
def test_a_level_is_a_share(level):
    with pytest.raises(UserError, match="--off-topic takes a share between 0 and 1"):
        with_off_topic(None, level, score())


def test_a_level_that_no_text_can_reach_is_refused():
    with pytest.raises(UserError, match=r"more foreign than 0\.99") as refused:
        with_off_topic(None, 0.01, score(rows=49))
    assert "49 held-out rows" in refused.value.found
    assert "--off-topic 0.02" in refused.value.fix
    assert with_off_topic(None, 0.02, score(rows=49)).off_topic == 0.02
