"""Texts that look too foreign stay unanswered, with their reason; so do those it is not sure of."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.errors import UserError
from newsdesk.prediction.abstention import DecisionRule, Promise, decision_rule
from newsdesk.prediction.predictions import Predictions
from newsdesk.runs.calibration import HeldOutRows
from newsdesk.runs.off_topic import OffTopicScore

NAMES = ("World", "Sports", "Business")
ROWS = np.array([[0.1, 0.8, 0.1], [0.4, 0.3, 0.3], [0.0, 0.1, 0.9], [0.4, 0.3, 0.3]], dtype=np.float32)
P_VALUES = np.array([0.6, 0.5, 0.02, 0.05], dtype=np.float32)
PROMISE = Promise(threshold=0.7, error_rate=0.02, confidence=0.95, rows=100, coverage=0.5)


def filtering(level, rows=199):
    return decision_rule(None, 1.0, off_topic=level, score=score(rows))


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
    predictions = Predictions(ROWS, NAMES, filtering(0.05), P_VALUES)
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
        "texts less typical of the training topics than 95 % of the calibration rows are off topic "
        "and get no answer"
    ]


def test_a_promise_and_a_level_combine_and_foreign_texts_have_no_candidates():
    rule = DecisionRule(PROMISE, None, 0.25, 100, off_topic=0.05)
    predictions = Predictions(ROWS, NAMES, rule, P_VALUES)
    assert predictions.labels == ("Sports", None, None, None)
    assert predictions.reasons == (None, "confidence below 0.7000", "off topic", "off topic")
    assert [one.candidates for one in predictions] == [(), ("World", "Sports", "Business"), (), ()]
    assert rule.columns == ("candidates", "reason", "off_topic")


@pytest.mark.parametrize("level", [0.0, 1.0, 5, 1e-320, 1 - 1e-9])
def test_a_level_is_a_share(level):
    with pytest.raises(UserError, match="--off-topic takes a share between 0 and 1"):
        filtering(level)


def test_a_level_that_no_text_can_reach_is_refused():
    with pytest.raises(UserError, match="less typical of the training topics than 99 %") as refused:
        filtering(0.01, rows=49)
    assert "49 rows to compare with" in refused.value.found
    assert "--off-topic 0.02" in refused.value.fix
    assert filtering(0.02, rows=49).off_topic == 0.02


def test_the_row_that_sets_the_cutoff_and_all_beyond_it_do_not_count_for_promises():
    found = score(rows=199).on_topic(np.arange(199, dtype=np.float32), 0.05)
    assert found.sum() == 199 - 10  # the 10th largest of 199 sets the cutoff: 10 / 200 = 0.05
    assert not found[-10:].any()
    new = score(rows=199).p_values(np.array([189.0, 189.1])) > 0.05
    assert new.tolist() == [True, False]


def rows_by_distance(distances):
    """Confident rows of class 0, of which the far half is labelled 1."""
    logits = np.tile(np.array([[4.0, 0.0, 0.0]], np.float32), (199, 1))
    labels = (np.arange(199) >= 100).astype(np.int64)
    return HeldOutRows(logits, labels, "abc", distances)


def test_promises_stand_on_the_rows_that_pass_the_filter():
    rows = rows_by_distance(np.arange(199, dtype=np.float32))
    alone = decision_rule(rows, 1.0, sets=0.9)
    filtered = decision_rule(rows, 1.0, sets=0.9, off_topic=0.5, score=score(199))
    assert (alone.rows, filtered.rows) == (199, 99)
    assert filtered.set_threshold > 0.9 > alone.set_threshold  # every nearer row is right
    promise = decision_rule(rows, 1.0, abstain=0.05, off_topic=0.5, score=score(199))
    assert promise.promise.rows == 99
    assert "99 calibration rows that are on topic" in promise.describe()[0]
    with pytest.raises(UserError, match="no threshold promises"):
        decision_rule(rows, 1.0, abstain=0.05)


def test_rows_of_an_earlier_version_promise_nothing_beside_the_filter():
    with pytest.raises(UserError, match="does not go with") as refused:
        decision_rule(rows_by_distance(None), 1.0, abstain=0.05, off_topic=0.5, score=score(199))
    assert "newsdesk calibrate" in refused.value.fix


def test_each_combination_says_which_texts_its_promises_are_about():
    rule = DecisionRule(PROMISE, 0.9, 0.25, 100, off_topic=0.05)
    of_errors, of_sets, of_topic = rule.describe()
    assert of_errors.endswith("which answers 50.0% of 100 calibration rows that are on topic")
    assert "90 % of texts that are on topic, answered or not: on average over draws of 100" in of_sets
    assert "3.0 points more or less" in of_sets
    assert "95 % of the calibration rows are off topic" in of_topic
    (alone,) = DecisionRule(None, 0.9, 0.25, 100).describe()
    assert "for 90 % of texts: on average over draws of 100 calibration rows" in alone
