from __future__ import annotations

import json

import numpy as np
import pytest

from newsdesk.errors import UserError
from newsdesk.prediction.predictions import Prediction, Predictions
from newsdesk.runs.calibration import softmax

NAMES = ("World", "Sports", "Business")
ROWS = np.array([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4], [0.0, 0.0, 1.0]], dtype=np.float32)


@pytest.fixture
def predictions():
    return Predictions(ROWS, NAMES)


def test_softmax_is_the_definition():
    logits = np.array([[1.0, 2.0, 3.0]])
    assert softmax(logits)[0] == pytest.approx(np.exp(logits[0]) / np.exp(logits[0]).sum())


def test_softmax_neither_overflows_nor_depends_on_a_shift():
    with np.errstate(all="raise", under="ignore"):
        huge = softmax(np.array([[60000.0, 60001.0], [-60000.0, -60000.0]], dtype=np.float32))
    assert huge == pytest.approx(np.array([[0.26894142, 0.73105858], [0.5, 0.5]]))
    assert huge.dtype == np.float32


def test_softmax_takes_float16_and_certainty():
    assert softmax(np.array([[-np.inf, 0.0]], dtype=np.float16)).tolist() == [[0.0, 1.0]]


def test_rows_of_softmax_sum_to_one_for_many_classes():
    logits = np.random.default_rng(0).normal(scale=9, size=(50, 1000)).astype(np.float32)
    assert softmax(logits).sum(axis=1) == pytest.approx(np.ones(50), abs=1e-5)


def test_each_row_is_a_prediction(predictions):
    assert len(predictions) == 3
    assert predictions[0].label == "Sports"
    assert predictions[0].probability == 0.5
    assert list(predictions[-1].probabilities) == list(NAMES)
    assert [one.label for one in predictions] == ["Sports", "World", "Business"]
    assert predictions.labels == ("Sports", "World", "Business")
    assert predictions.class_ids.tolist() == [1, 0, 2]


def test_of_equally_probable_classes_the_first_wins_everywhere(predictions):
    assert predictions[1].label == "World"
    assert [name for name, _ in predictions[1].top_k(2)] == ["World", "Business"]
    assert predictions.top_k(3)[0][1].tolist() == [0, 2, 1]


def test_top_k_ranks_classes_and_never_gives_more_than_there_are(predictions):
    ids, probabilities = predictions.top_k(2)
    assert ids.tolist() == [[1, 2], [0, 2], [2, 0]]
    assert probabilities.tolist() == np.array([[0.5, 0.3], [0.4, 0.4], [1.0, 0.0]], np.float32).tolist()
    assert predictions.top_k(99)[0].shape == (3, 3)
    assert len(predictions[0].top_k(99)) == 3


@pytest.mark.parametrize("k", [0, -1])
def test_less_than_one_class_cannot_be_asked_for(predictions, k):
    for ask in (predictions.top_k, predictions[0].top_k, predictions.to_dicts):
        with pytest.raises(UserError, match="--top-k"):
            ask(k)


def test_json_shows_all_classes_rounded_alike_on_every_machine(predictions):
    assert predictions.to_dicts()[0] == {
        "label": "Sports",
        "probability": 0.5,
        "probabilities": {"World": 0.2, "Sports": 0.5, "Business": 0.3},
    }
    assert json.loads(json.dumps(predictions.to_dicts())) == predictions.to_dicts()


def test_json_with_top_k_shows_the_most_probable_first(predictions):
    assert predictions[0].to_dict(top_k=2) == {
        "label": "Sports",
        "probability": 0.5,
        "top_k": [{"label": "Sports", "probability": 0.5}, {"label": "Business", "probability": 0.3}],
    }


def test_a_prediction_can_be_made_by_hand():
    one = Prediction("a", 0.75, {"b": 0.25, "a": 0.75})
    assert one.top_k(1) == (("a", 0.75),)


def test_no_rows_are_predictions_too():
    empty = Predictions(np.empty((0, 3)), NAMES)
    assert (len(empty), list(empty), empty.labels) == (0, [], ())


def test_probabilities_and_names_must_fit():
    for probabilities in (ROWS[:, :2], ROWS[0]):
        with pytest.raises(ValueError, match="for labels"):
            Predictions(probabilities, NAMES)


def test_a_model_that_diverged_is_reported_instead_of_its_nonsense():
    broken = np.array([[0.5, 0.5], [np.nan, np.nan]])
    with pytest.raises(UserError, match="does not predict numbers") as caught:
        Predictions(broken, ("a", "b"))
    assert caught.value.found == "probabilities [nan, nan] for row 1"
