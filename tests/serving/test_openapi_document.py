"""The OpenAPI document is true: whatever is sent, the answers are those that it names. By schemathesis."""

from __future__ import annotations

import os
import random

import hypothesis
import pytest

from served_exports import running

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = int(os.environ.get("NEWSDESK_EXAMPLES", "3"))
"""Of each operation."""
MALFORMED = int(os.environ.get("NEWSDESK_MALFORMED", "200"))
"""How many broken bodies are sent."""


@pytest.fixture(scope="module")
def api(export):
    """The document of a server that may be asked anything."""
    with running(export, manage=True, max_texts=8) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_answers_are_those_that_the_document_names(api):
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) > 25
    for operation in operations:

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def holds(case):
            case.call_and_validate(checks=CHECKS)

        holds()


POSTS = (
    *("/v1/classify", "/v1/ninjs", "/predict", "/models/desk", "/classify"),
    *("/v2/models/desk/infer", "/v2/repository/index"),
)
GOOD = (
    b'{"texts": ["goal", {"text": "bank"}], "top_k": 2, "abstain": 0.1}',
    b'[{"uri": "urn:1", "versioncreated": "x", "headlines": [{"value": "goal"}]}]',
    b'{"inputs": [["goal"], ["bank", "orbit"]], "raw_scores": true}',
    b'{"inputs": "goal", "parameters": {"top_k": 1}}',
    b'{"model": "desk", "input": ["goal"]}',
    b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["goal"]}]}',
)
PIECES = (
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"null",
    b"-1",
    b"1e999",
    b"\\ud800",
    b"\xff",
    b"\x00",
    b"true",
    b",,",
)


def mutated(generator: random.Random, content: bytes) -> bytes:
    """A body with some of its bytes removed, replaced, repeated, or others put in."""
    for _ in range(generator.randint(0, 4)):
        at, length = generator.randrange(len(content) + 1), generator.randint(0, 12)
        piece = generator.choice([b"", generator.choice(PIECES), content[at : at + length] * 3])
        content = content[:at] + piece + content[at + length :]
    return content


def test_malformed_requests_are_answered_and_never_by_a_failure(served):
    generator = random.Random(7)
    statuses = set()
    for _ in range(MALFORMED):
        headers = {}
        if generator.random() < 0.2:
            headers["inference-header-content-length"] = generator.choice(["0", "9", "70", "-1", "x"])
        body = mutated(generator, generator.choice(GOOD))
        path = generator.choice(POSTS)
        answer = served.client.post(path, content=body, headers=headers)
        assert answer.status_code < 500, (path, body, answer.text)
        assert answer.json() is not None
        statuses.add(answer.status_code)
    assert {200, 400, 422} <= statuses
