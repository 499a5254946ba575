"""A server that is told to stop answers what it accepted: real processes, real signals, real sockets."""

from __future__ import annotations

import json
import signal
import threading
import time

import httpx
import pytest

from served_exports import ServerProcess, headline, wait_until


@pytest.fixture(scope="module")
def process(export):
    """A server that the last test stops."""
    found = ServerProcess(export, "--threads", 2)
    try:
        found.wait_until_ready()
        yield found
    finally:
        found.process.kill()
        found.process.wait()


def test_the_log_has_a_line_a_request_with_its_id_and_without_its_text(process):
    text = headline(0, 0)
    httpx.post(f"{process.url}/v1/classify", json={"texts": text}, headers={"x-request-id": "wire-9"})
    wait_until(lambda: any(line.get("id") == "wire-9" for line in process.lines))
    (line,) = (line for line in process.lines if line.get("id") == "wire-9")
    assert (line["status"], line["texts"], line["model"], line["protocol"]) == (200, 1, "desk", "own")
    assert text not in json.dumps(process.lines)


def test_no_accepted_request_is_lost_when_the_server_is_told_to_stop_under_load(process):
    """Every request that was sent is answered, or refused with status 503, or its connection is refused."""
    answered: list[tuple[int, str, str]] = []
    lost: list[str] = []

    def keep_asking(topic: int) -> None:
        labels = ("Business", "Science", "Sports")
        with httpx.Client(base_url=process.url, timeout=20) as client:
            for number in range(100_000):
                try:
                    body = {"texts": [headline(topic, number)], "top_k": 1}
                    answer = client.post("/v1/classify", json=body)
                except httpx.ConnectError:
                    return
                except httpx.HTTPError as error:
                    lost.append(repr(error))
                    return
                if answer.status_code == 503:
                    assert answer.headers["connection"] == "close"
                    return
                label = answer.json()["results"][0]["predictions"][0]["label"]
                answered.append((answer.status_code, label, labels[topic]))

    threads = [threading.Thread(target=keep_asking, args=(number % 3,)) for number in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(answered) > 200)
    begun = time.monotonic()
    assert process.stop() == 0
    assert time.monotonic() - begun < 10
    for thread in threads:
        thread.join(20)
    assert lost == []
    assert {status for status, _, _ in answered} == {200}
    assert all(said == true for _, said, true in answered)


def test_told_to_stop_while_it_warms_up_it_ends_as_usual(export):
    found = ServerProcess(export)
    try:
        wait_until(lambda: found.process.poll() is not None or any(found.lines), 60)
        assert found.stop() in (0, -signal.SIGTERM), found.lines  # uvicorn hands the signal on at its end
        assert not [line for line in found.lines if line["level"] == "error"]
    finally:
        found.process.kill()
        found.process.wait()
