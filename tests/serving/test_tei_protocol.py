"""Text Embeddings Inference's shapes: one text, a pair, a batch, and its errors."""

from __future__ import annotations

import numpy as np
import pytest

import newsdesk
from served_exports import headline


def post(served, inputs, **asked):
    return served.client.post("/predict", json={"inputs": inputs, **asked})


def test_one_text_is_answered_by_a_list_of_classes_and_a_batch_by_lists(served, export):
    texts = [headline(topic, 2) for topic in range(3)]
    probabilities = newsdesk.load(export).predict_probabilities(texts)
    single = post(served, texts[1]).json()
    assert single[0]["label"] == "Science"
    assert [entry["score"] for entry in single] == sorted(map(float, probabilities[1]), reverse=True)
    batch = post(served, [[text] for text in texts]).json()
    assert batch[1] == single
    assert [ranked[0]["label"] for ranked in batch] == ["Business", "Science", "Sports"]


def test_a_pair_is_one_text(served):
    first, second = headline(0, 1), headline(0, 2)
    pair = post(served, [first, second]).json()
    assert pair == post(served, f"{first} {second}").json()
    assert post(served, [[first, second], [first]]).json() == [pair, post(served, first).json()]


def test_raw_scores_are_logits_whose_softmax_is_the_scores(served, export):
    probabilities = newsdesk.load(export).predict_probabilities([headline(2, 0)])[0]
    scores = {
        entry["label"]: entry["score"] for entry in post(served, headline(2, 0), raw_scores=True).json()
    }
    found = np.exp([scores[label] for label in ("Business", "Science", "Sports")])
    assert np.allclose(found / found.sum(), probabilities)


def test_texts_that_are_too_long_are_cut_unless_the_request_says_not_to(served):
    long = headline(1, 0, words=40)
    assert post(served, long, truncate=True).json() == post(served, long).json()
    refused = post(served, long, truncate=False)
    assert refused.status_code == 413
    assert refused.json()["error_type"] == "Validation"
    assert "must have less than 16 tokens. Given: 42" in refused.json()["error"]


@pytest.mark.parametrize(
    ("inputs", "status", "error_type"),
    [
        ([], 400, "Empty"),
        ([[]], 422, "Tokenizer"),
        (["a", "b", "c"], 422, "Tokenizer"),
        ([["a", "b", "c"]], 422, "Tokenizer"),
        ([["a"], "b"], 422, "Tokenizer"),
        (7, 422, "Tokenizer"),
        ([["a"]] * 300, 413, "Validation"),
    ],
)
def test_errors_have_teis_types(served, inputs, status, error_type):
    answer = post(served, inputs)
    assert (answer.status_code, answer.json()["error_type"]) == (status, error_type)
    assert answer.json().keys() == {"error", "error_type"}


def test_info_and_health_are_teis(served, export):
    info = served.client.get("/info").json()
    assert info["model_type"]["classifier"]["id2label"] == {"0": "Business", "1": "Science", "2": "Sports"}
    assert info["max_client_batch_size"] == 256
    assert info["max_input_length"] == 16
    assert served.client.get("/tei/desk/info").json() == info
    assert served.client.get("/health").status_code == 200
    assert served.client.get("/tei/nobody/info").status_code == 404
