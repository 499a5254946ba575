"""Clients that others wrote talk to the server as to the one that they were made for."""

from __future__ import annotations

import asyncio
import json

import httpx
import numpy as np
import pytest

import newsdesk
from served_exports import headline

TEXTS = [headline(topic, 1) for topic in range(3)]
LABELS = ["Business", "Science", "Sports"]


@pytest.fixture(scope="module")
def probabilities(export):
    return newsdesk.load(export).predict_probabilities(TEXTS)


def test_hugging_faces_client_classifies(served, probabilities):
    from huggingface_hub import AsyncInferenceClient, InferenceClient

    url = f"{served.url}/models/desk"
    for text, label, row in zip(TEXTS, LABELS, probabilities, strict=True):
        found = InferenceClient(token="unused").text_classification(text, model=url)
        assert found[0].label == label
        assert [element.score for element in found] == sorted(map(float, row), reverse=True)
    only = InferenceClient(token="unused").text_classification(TEXTS[0], model=url, top_k=1)
    assert [element.label for element in only] == ["Business"]

    async def classified():
        async with AsyncInferenceClient(token="unused") as client:
            return await client.text_classification(TEXTS[2], model=url, function_to_apply="softmax")

    assert [round(element.score, 5) for element in asyncio.run(classified())] == [
        round(float(score), 5) for score in sorted(probabilities[2], reverse=True)
    ]


def test_functions_of_hugging_faces_form_are_applied(served, probabilities):
    def scores(function):
        body = {"inputs": [TEXTS[1]], "parameters": {"function_to_apply": function}}
        (found,) = served.client.post("/models/desk", json=body).json()
        return np.array([{each["label"]: each["score"] for each in found}[label] for label in LABELS])

    logits = scores("none")
    assert np.allclose(np.exp(logits) / np.exp(logits).sum(), probabilities[1], atol=1e-6)
    assert np.allclose(scores("sigmoid"), 1 / (1 + np.exp(-logits)), atol=1e-6)
    assert np.allclose(scores("softmax"), probabilities[1], atol=1e-6)
    pair = {"inputs": {"text": headline(0, 1), "text_pair": headline(0, 2)}}
    assert served.client.post("/models/desk", json=pair).json()[0][0]["label"] == "Business"
    for wrong in ({"inputs": []}, {"inputs": "a", "parameters": {"top_k": 0}}, {"input": "a"}):
        answer = served.client.post("/models/desk", json=wrong)
        assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert served.client.post("/models/nobody", json={"inputs": "a"}).status_code == 404


def test_openais_client_posts_to_vllms_path(served, probabilities):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=served.url, api_key="unused", max_retries=0)
    found = client.post("/classify", body={"model": "desk", "input": TEXTS}, cast_to=dict[str, object])
    assert found["object"] == "list"
    assert [entry["label"] for entry in found["data"]] == LABELS
    assert [entry["index"] for entry in found["data"]] == [0, 1, 2]
    assert np.allclose([entry["probs"] for entry in found["data"]], probabilities, atol=1e-6)
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] == 15
    listed = openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused").models.list()
    assert [model.id for model in listed] == ["desk"]
    with pytest.raises(openai.NotFoundError, match="no model 'nobody'"):
        client.post("/classify", body={"model": "nobody", "input": "a"}, cast_to=dict[str, object])
    with pytest.raises(openai.BadRequestError):
        client.post("/classify", body={"input": []}, cast_to=dict[str, object])


@pytest.fixture
def triton(served):
    http = pytest.importorskip("tritonclient.http")
    client = http.InferenceServerClient(served.url.removeprefix("http://"))
    yield client, http
    client.close()


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_tritons_client_infers_with_bytes_and_with_json(triton, probabilities, binary_in, binary_out):
    client, http = triton
    texts = http.InferInput("text", [3, 1], "BYTES")
    texts.set_data_from_numpy(np.array([[text] for text in TEXTS], dtype=object), binary_data=binary_in)
    wanted = [http.InferRequestedOutput(name, binary_data=binary_out) for name in ("label", "probabilities")]
    found = client.infer("desk", [texts], outputs=wanted, request_id="7")
    labels = [each.decode() if isinstance(each, bytes) else each for each in found.as_numpy("label")]
    assert labels == LABELS
    assert np.allclose(found.as_numpy("probabilities"), probabilities, atol=1e-6)
    assert found.get_response()["id"] == "7"


def test_tritons_client_reads_what_the_server_says_of_itself(triton):
    client, _ = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("desk")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "model_repository"]
    metadata = client.get_model_metadata("desk")
    assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert client.get_model_metadata("desk", metadata["versions"][0]) == metadata
    assert [entry["state"] for entry in client.get_model_repository_index()] == ["READY"]


def test_all_outputs_come_where_none_is_named_and_no_content_type_is_needed(served, probabilities):
    body = {"inputs": [{"name": "x", "shape": [3], "datatype": "BYTES", "data": TEXTS}]}
    with httpx.Client() as client:
        url = f"{served.url}/v2/models/desk/infer"
        request = client.build_request("POST", url, content=json.dumps(body).encode())
        request.headers.pop("content-type", None)
        answer = client.send(request).json()
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert list(outputs) == ["label", "probability", "probabilities", "logits"]
    assert outputs["probabilities"]["shape"] == [3, 3]
    assert np.allclose(outputs["probability"]["data"], probabilities.max(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ({"shape": [2], "datatype": "BYTES", "data": ["a"]}, "elements"),
        ({"shape": [1], "datatype": "FP32", "data": [1.0]}, "BYTES"),
        ({"shape": [1], "datatype": "BYTES", "data": [{"a": 1}]}, "no text"),
        ({"shape": [1], "datatype": "BYTES"}, "neither data"),
        ({"shape": [-1], "datatype": "BYTES", "data": ["a"]}, "shape"),
        ({"shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 9}}, "more than was sent"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(served, tensor, said):
    body = {"inputs": [{"name": "text", **tensor}]}
    answer = served.client.post("/v2/models/desk/infer", json=body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]


@pytest.mark.parametrize("tail", [b"\x05\0\0\0abc", b"\x01\0", b"\x01\0\0\0\xff", b"\x01\0\0\0ab"])
def test_bytes_that_are_no_elements_are_refused(served, tail):
    tensor = {
        "name": "text",
        "shape": [1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(tail)},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    for length in (str(len(head)), "0", "x", "99999"):
        headers = {"Inference-Header-Content-Length": length}
        answer = served.client.post("/v2/models/desk/infer", content=head + tail, headers=headers)
        assert answer.status_code == 400
        assert answer.json().keys() == {"error"}
