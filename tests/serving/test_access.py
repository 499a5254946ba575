"""Safe by default: tokens, rates, limits, names, and clients that take their time."""

from __future__ import annotations

import json
import socket
import threading
import time

import httpx
import pytest

from newsdesk.errors import UserError
from newsdesk.serving.access import Allowance, Tokens, make_token
from newsdesk.serving.refusals import Refusal
from served_exports import headline, running, wait_until


@pytest.fixture(scope="module")
def guarded(export, tmp_path_factory):
    """A server with two tokens: one may manage models; each may ask for 20 texts a second."""
    file = tmp_path_factory.mktemp("tokens") / "tokens.json"
    tokens = {
        "reader": make_token(file, "reader"),
        "manager": make_token(file, "manager", manage=True),
    }
    limits = {"rate": 20.0, "slow_client": 0.4, "max_body": 4000, "manage": True}
    with running(export, tokens=file, **limits) as found:
        yield found, tokens, file


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def test_a_token_is_needed_and_kept_as_its_hash(guarded):
    server, tokens, file = guarded
    for headers in ({}, bearer("nd_wrong"), {"authorization": tokens["reader"]}):
        for path in ("/v1/models", "/metrics", "/info", "/v2/models/desk"):
            answer = server.client.get(path, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert server.client.get("/v1/models", headers=bearer(tokens["reader"])).status_code == 200
    assert not any(token in file.read_text() for token in tokens.values())
    assert file.stat().st_mode & 0o077 == 0
    for open_path in ("/health", "/v2/health/live", "/v2/health/ready"):
        assert server.client.get(open_path).status_code == 200


def test_a_name_has_one_token(guarded):
    _, tokens, file = guarded
    with pytest.raises(UserError, match="a token called 'reader' already"):
        make_token(file, "reader")
    found = Tokens.read(file).found(tokens["manager"])
    assert found is not None
    assert (found.name, found.manage) == ("manager", True)


def test_a_token_may_ask_for_so_many_texts_a_second(guarded):
    server, tokens, _ = guarded
    body = {"texts": [headline(0, 0)] * 150}
    answers = [
        server.client.post("/v1/classify", json=body, headers=bearer(tokens["manager"])) for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].json()["kind"] == "rate"
    assert 4 <= int(answers[1].headers["retry-after"]) <= 6
    other = server.client.post("/predict", json={"inputs": "a"}, headers=bearer(tokens["reader"]))
    assert other.status_code == 200


def test_an_allowance_fills_again_and_a_large_request_is_paid_off(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    allowance = Allowance(2.0)
    allowance.take(30)  # ten more than are ever kept
    with pytest.raises(Refusal) as refused:
        allowance.take(1)
    assert refused.value.retry_after == pytest.approx(5.5)
    now[0] = 5.5
    allowance.take(1)


def test_models_are_managed_by_those_who_may_and_never_by_pages_of_other_sites(guarded):
    server, tokens, _ = guarded
    path = "/v1/models/desk"
    assert server.client.post(path, headers=bearer(tokens["reader"])).status_code == 403
    foreign = {**bearer(tokens["manager"]), "origin": "https://example.org"}
    assert server.client.post(path, headers=foreign).status_code == 403
    assert server.client.post(path, headers=bearer(tokens["manager"])).status_code == 200
    last = server.client.delete(path, headers=bearer(tokens["manager"]))
    assert (last.status_code, last.json()["kind"]) == (403, "forbidden")
    outside = server.client.post("/v1/models/..%2f..%2fetc", headers=bearer(tokens["manager"]))
    assert outside.status_code == 404


def test_a_body_that_is_too_large_is_not_read(guarded):
    server, tokens, _ = guarded
    answer = server.client.post("/v1/classify", content=b" " * 5000, headers=bearer(tokens["reader"]))
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")

    def pieces():
        for _ in range(100):
            yield b" " * 100

    unstated = server.client.post("/predict", content=pieces(), headers=bearer(tokens["reader"]))
    assert unstated.status_code == 413
    assert unstated.json()["error_type"] == "Validation"


def answered(server, sent, *, seconds=5.0):
    """What comes back for bytes until the server closes the connection, and how long that took."""
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=seconds) as line:
        line.sendall(sent)
        found = b""
        while piece := line.recv(4096):
            found += piece
    return found, time.monotonic() - begun


def test_clients_that_do_not_finish_a_request_are_cut_off(guarded):
    server, tokens, _ = guarded
    nothing, seconds = answered(server, b"POST /predict HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    assert nothing == b""
    assert 0.3 < seconds < 2
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {tokens['reader']}\r\n"
    found, seconds = answered(server, f'{head}Content-Length: 100\r\n\r\n{{"inputs"'.encode())
    assert found.startswith(b"HTTP/1.1 408 ")
    assert b"Validation" in found
    assert 0.3 < seconds < 2


def test_only_connections_beyond_the_most_are_refused_however_busy_the_others_are(export):
    statuses: list[int] = []

    def ask(url):
        with httpx.Client(base_url=url, timeout=20) as client:
            for number in range(50):
                answer = client.post("/predict", json={"inputs": headline(0, number)})
                statuses.append(answer.status_code)

    with running(export, max_connections=4) as server:  # one of them is the fixture's own
        askers = [threading.Thread(target=ask, args=(server.url,)) for _ in range(3)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        assert statuses == [200] * 150
        held = [socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) for _ in range(4)]
        wait_until(lambda: httpx.get(f"{server.url}/v1/models").status_code == 503)
        for connection in held:
            connection.close()
        wait_until(lambda: httpx.get(f"{server.url}/v1/models").status_code == 200)


def test_a_loopback_server_is_called_by_its_own_names_only(served):
    for host, status in (("localhost:80", 200), ("127.0.0.1", 200), ("[::1]:1", 200), ("evil.example", 403)):
        answer = served.client.get("/v1/models", headers={"host": host})
        assert answer.status_code == status, host


def test_every_answer_tells_browsers_what_not_to_do(served):
    for path in ("/v1/models", "/nowhere", "/metrics"):
        headers = served.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]


def test_a_request_cannot_name_a_file(served):
    for name in ("..%2F..%2Fetc%2Fpasswd", "%2Fetc", "desk%00"):
        assert served.client.get(f"/v1/models/{name}").status_code == 404
        body = {"texts": "a", "models": json.loads(f'"{name}"')}
        assert served.client.post("/v1/classify", json=body).status_code == 404
