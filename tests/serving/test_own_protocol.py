"""newsdesk's own protocol answers what ``newsdesk predict --json`` prints, and refuses in one sentence."""

from __future__ import annotations

import json

import pytest

import newsdesk
from served_exports import headline

TEXTS = [headline(topic, number) for number in range(4) for topic in range(3)] + [
    "",
    "zebra \u0632",
    "goal bank",
]


def test_answers_are_those_of_predict(served, export):
    answer = served.client.post("/v1/classify", json={"texts": TEXTS}).json()
    (result,) = answer["results"]
    predicted = newsdesk.load(export).predict(TEXTS)
    assert result["model"] == export.name
    assert result["predictions"] == predicted.to_dicts()
    assert result["truncation"] == predicted.truncation.to_dict()
    assert result["predictions"][-3]["reason"] == "empty text"


@pytest.mark.parametrize("asked", [{"abstain": 0.1}, {"abstain": 0.1, "confidence": 0.8, "sets": 0.9}])
def test_promises_are_those_of_predict(served, export, asked):
    body = {"texts": TEXTS, "top_k": 2, **asked}
    (result,) = served.client.post("/v1/classify", json=body).json()["results"]
    predicted = newsdesk.load(export).predict(TEXTS, **asked)
    assert result["predictions"] == predicted.to_dicts(2)
    assert result["rule"]["promise"]["error_rate"] == 0.1


def test_one_text_a_row_and_a_news_item_are_texts(served, export):
    item = {"uri": "urn:1", "versioncreated": "2026-01-01T00:00:00Z", "headlines": [{"value": TEXTS[0]}]}
    for given in (TEXTS[0], {"text": TEXTS[0], "number": 3}, item):
        (result,) = served.client.post("/v1/classify", json={"texts": given, "top_k": 1}).json()["results"]
        assert [each["label"] for each in result["predictions"]] == ["Business"]


def test_an_explanation_says_which_words_decided(served, export):
    body = {"texts": "bank coach bank", "explain": True}
    (result,) = served.client.post("/v1/classify", json=body).json()["results"]
    explanation = newsdesk.explain(newsdesk.load(export), "bank coach bank")
    assert result["explanations"] == [json.loads(json.dumps(explanation.to_dict()))]
    assert result["explanations"][0]["words"][0]["weight"] > 0


def test_ninjs_items_come_back_with_subjects_and_not_a_byte_changed_beside(served):
    items = [
        f'{{"uri": "urn:{number}",  "urgency": 4.0, "headlines": [{{"value": "{text}"}}]}}'
        for number, text in enumerate(TEXTS[:2])
    ]
    answer = served.client.post("/v1/ninjs", content="[" + ", ".join(items) + "]")
    assert answer.headers["content-type"] == "application/json"
    for source, written, label in zip(items, answer.json(), ("Business", "Science"), strict=True):
        (subject,) = written["subjects"]
        assert subject["name"] == label
        assert source[:-1] in answer.text
    single = served.client.post("/v1/ninjs", content=items[0]).json()
    assert single["subjects"][0]["creator"] == "newsdesk"


@pytest.mark.parametrize(
    ("body", "status", "kind", "said"),
    [
        ({"texts": []}, 400, "empty", "no text"),
        ({"texts": 3}, 422, "invalid", "texts"),
        ({"text": "a"}, 422, "invalid", "text"),
        ({"texts": "a", "models": "nobody"}, 404, "unknown_model", "'nobody'; there are 'desk'"),
        ({"texts": "a", "abstain": 1.5}, 422, "invalid", "abstain"),
        ({"texts": "a", "confidence": 0.5}, 422, "invalid", "abstain"),
        ({"texts": "a", "abstain": 1e-6}, 422, "invalid", "no threshold promises"),
        ({"texts": "a", "off_topic": 0.1}, 422, "invalid", "off topic"),
        ({"texts": {"title": "a"}}, 422, "invalid", "'text' missing"),
        ({"texts": {"text": ["a"]}}, 422, "invalid", "holds no text"),
        ({"texts": ["a"] * 300}, 413, "too_large", "256"),
        ({"texts": "a" * 200_000}, 413, "too_large", "100,000"),
        ({"texts": ["a"] * 9, "explain": True}, 413, "too_large", "explain"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_sentence(served, body, status, kind, said):
    answer = served.client.post("/v1/classify", json=body)
    assert (answer.status_code, answer.json()["kind"]) == (status, kind)
    assert said in answer.json()["error"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"texts": "\\ud800"}', b"NaN", b"[" * 99_999]
)
def test_bodies_that_are_no_request_are_refused(served, content):
    for path in ("/v1/classify", "/predict", "/v1/ninjs"):
        assert served.client.post(path, content=content).status_code in (400, 422)


def test_the_models_are_listed_with_their_labels(served, export):
    (model,) = served.client.get("/v1/models").json()["data"]
    assert model == served.client.get("/v1/models/desk").json()
    assert model["labels"] == ["Business", "Science", "Sports"]
    assert model["exported"]
    assert served.client.get("/v1/models/other").status_code == 404


def test_a_request_keeps_its_id_and_every_answer_has_one(served):
    given = served.client.get("/v1/models", headers={"x-request-id": "wire-7"})
    assert given.headers["x-request-id"] == "wire-7"
    made = served.client.get("/v1/models", headers={"x-request-id": "a b"})
    assert len(made.headers["x-request-id"]) == 16
