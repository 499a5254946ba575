"""Servers that are slow, endless or hostile: every wait and every size has a limit, and a sentence."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest

from newsdesk.errors import UserError
from newsdesk.hub import source as hub_source
from newsdesk.hub import transfer
from newsdesk.hub.cache import Slot, cache_folder, resolve
from newsdesk.hub.source import HubSource
from newsdesk.hub.transfer import TransferError, watched
from newsdesk.model.catalog import MODEL_FILES, check_model_files
from newsdesk.progress import silent

WEIGHTS = bytes(range(256)) * 800
MODEL = {"config.json": b'{"model_type": "bert"}', "model.safetensors": WEIGHTS, "vocab.txt": b"a\nb\n"}
LISTING = "api/models/desk/tiny"
FILE = "model.safetensors"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """All limits small enough for a test to meet."""
    monkeypatch.setattr(transfer, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(transfer, "_REPORT_SECONDS", 0.02)
    monkeypatch.setattr(transfer, "_JOIN_SECONDS", 0.02)
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def model(hub):
    hub.repositories["models/desk/tiny"] = dict(MODEL)
    return HubSource("desk/tiny", MODEL_FILES, accept=check_model_files)


def refused(model):
    """What a person reads when the model cannot be had; nothing of it stays in the cache."""
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        resolve(Slot("models", "desk/tiny"), [model], pins={}, flag="--base")
    assert time.monotonic() - began < 5
    kept = [path for path in cache_folder().rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert kept == []
    return str(caught.value)


def head(handler, status=200, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()


def silent_server(handler):
    time.sleep(1)


def silent_after_the_headers(handler):
    head(handler, Content_Length=len(WEIGHTS))
    time.sleep(1)


def a_byte_at_a_time(handler):
    head(handler, Content_Length=len(WEIGHTS))
    for _ in range(50):
        handler.wfile.write(b" ")
        time.sleep(0.02)


def headers_a_byte_at_a_time(handler):
    for _ in range(50):
        handler.wfile.write(b"H")
        time.sleep(0.02)


def closed(handler):
    """No answer at all."""


def reset(handler):
    head(handler, Content_Length=len(WEIGHTS))
    handler.wfile.write(b"x")
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def circles(handler):
    head(handler, 302, Location=handler.path, Content_Length=0)


def to(location):
    return lambda handler: head(handler, 302, Location=location, Content_Length=0)


def waits(status, after):
    return lambda handler: head(handler, status, Retry_After=after, Content_Length=0)


def packed(handler):
    body = gzip.compress(bytes(1 << 20))
    head(handler, Content_Encoding="gzip", Content_Length=len(body))
    handler.wfile.write(body)


def says(body):
    def answer(handler):
        head(handler, Content_Length=len(body))
        handler.wfile.write(body)

    return answer


def endless(handler):
    head(handler)
    while True:
        handler.wfile.write(bytes(1 << 16))


def endless_chunks(handler):
    head(handler, Transfer_Encoding="chunked")
    while True:
        handler.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")


def siblings(*names, **facts):
    listed = [{"rfilename": name, "size": 3, "blobId": "0" * 40, **facts} for name in names]
    return json.dumps({"sha": "0" * 40, "siblings": listed}).encode()


SLOW_OR_BROKEN = [
    (silent_server, "timed out|in 0.3 seconds"),
    (silent_after_the_headers, "in 0.3 seconds|timed out"),
    (a_byte_at_a_time, "in 0.3 seconds"),
    (headers_a_byte_at_a_time, "in 0.3 seconds"),
    (closed, "without sending a response|reached"),
    (reset, "reached"),
    (circles, "it redirects more than 5 times"),
    (to("file:///etc/passwd"), "it redirects to 'file:///etc/passwd'"),
    (to("ftp://127.0.0.1/x"), "it redirects to 'ftp:"),
    (to("http://[::1"), "it redirects to 'http://"),
    (packed, "the encoding gzip, which was not asked for"),
    (waits(429, 3600), "answered 429, and to ask again after 3600"),
    (waits(503, 3600), "answered 503, and to ask again after 3600"),
    (waits(429, -5), "to ask again after -5"),
    (waits(503, "Wed, 21 Oct 2099 07:28:00 GMT"), "to ask again after Wed, 21 Oct"),
    (waits(429, "9" * 5000), "to ask again after 9999"),
    (waits(429, "²"), "429"),
]


@pytest.mark.parametrize(("answer", "sentence"), SLOW_OR_BROKEN)
@pytest.mark.parametrize("path", [LISTING, FILE])
def test_a_server_that_does_not_give_within_the_limits_is_a_sentence(
    hub, model, monkeypatch, path, answer, sentence
):
    if path == LISTING:
        monkeypatch.setattr(transfer, "ANSWER_SECONDS", 0.3)
    hub.instead[path] = answer
    said = refused(model)
    assert any(part in said for part in sentence.split("|")), said
    assert "HF_ENDPOINT" in said


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (endless, "its answer is larger than 100,000 bytes"),
        (endless_chunks, "its answer is larger than 100,000 bytes"),
        (says(b"<html>welcome</html>"), "does not list the repository's files: Expecting value"),
        (says(b"[]"), "the file is an array of 0, not an object"),
        (says(b'{"siblings": 5}'), "siblings is 5, not an array"),
        (says(b'{"siblings": [{"rfilename": 5}]}'), "siblings.0.rfilename is 5, not a text"),
        (says(siblings(FILE, size="3")), 'siblings.0.size is "3", not a whole number'),
        (says(siblings(FILE, lfs=[])), "siblings.0.lfs is an array of 0, not an object"),
        (says(b'{"siblings": [], "tags": [1]}'), "tags.0 is 1, not a text"),
        (says(b"[" * 100_000), "nested too deeply"),
        (says(b"\xff\xfe"), "does not list"),
        (
            says(siblings(*(f"model-{n}-of-9.safetensors" for n in range(300)), *MODEL)),
            "303 files, where 200",
        ),
        (says(siblings(*MODEL, size=99 << 30)), "config.json of 106,300,440,576 bytes"),
        (says(siblings(*MODEL, size=60 << 20).replace(b"62914560", b"9" * 19)), "bytes, where"),
        (says(siblings(*MODEL, size=None, blobId=None)), "config.json without a size and a hash"),
        (says(siblings("\x1b[31m", "../../config.json", "/config.json")), "is not a transformers model"),
    ],
)
def test_a_listing_that_is_none_or_lists_more_than_a_model_is_refused(
    hub, model, monkeypatch, answer, sentence
):
    monkeypatch.setattr(hub_source, "_LARGEST_LISTING", 100_000)
    hub.instead[LISTING] = answer
    said = refused(model)
    assert sentence in said
    assert "\x1b" not in said


def test_of_20_000_files_only_those_that_a_model_needs_are_asked_for(hub, model):
    hub.repositories["models/desk/tiny"] |= {f"extra-{number}.json": b"{}" for number in range(20_000)}
    hub.repositories["models/desk/tiny"] |= {
        "../../x.json": b"", "C:\\vocab.txt": b"", "/vocab.txt": b"", "model-\0-of-1.safetensors": b""
    }  # fmt: skip
    entry, _ = resolve(Slot("models", "desk/tiny"), [model], pins={}, flag="--base")
    assert set(entry.files) == set(MODEL)
    assert len(hub.asked) == 1 + len(MODEL)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (endless, f"more than the stated {len(WEIGHTS):,} bytes"),
        (endless_chunks, f"more than the stated {len(WEIGHTS):,} bytes"),
        (says(WEIGHTS * 2), f"{2 * len(WEIGHTS):,} bytes, stated are {len(WEIGHTS):,}"),
        (says(WEIGHTS[:-1]), f"{len(WEIGHTS) - 1:,} bytes, stated are {len(WEIGHTS):,}"),
        (says(WEIGHTS[::-1]), "its sha256 or git hash is"),
    ],
)
def test_a_body_that_is_not_what_was_listed_is_refused(hub, model, answer, sentence):
    hub.instead[FILE] = answer
    said = refused(model)
    assert "model.safetensors from the Hub (desk/tiny) is not the file it should be" in said
    assert sentence in said


def test_a_body_of_unknown_size_that_does_not_end_is_cut_at_the_limit(hub, model, monkeypatch):
    hub.instead[LISTING] = says(siblings(*MODEL, size=None))
    hub.instead["config.json"] = endless
    assert "more than 100,000 bytes arrived" in refused(
        HubSource(model.repo_id, model.wanted, accept=model.accept, most_bytes=100_000)
    )


def test_a_short_wait_that_a_server_asks_for_is_kept_and_said(hub, model):
    asked = []

    def once(handler):
        asked.append(time.monotonic())
        waits(429, 0)(handler) if len(asked) == 1 else says(hub.listing("models/desk/tiny"))(handler)

    hub.instead[LISTING] = once
    assert resolve(Slot("models", "desk/tiny"), [model], pins={}, flag="--base")[1] == "hub"
    assert len(asked) == 2


def test_what_is_waited_for_is_said(hub, model):
    told = []
    hub.instead[FILE] = silent_after_the_headers
    with pytest.raises(UserError):
        model.fetch(cache_folder().parent, lambda _done, _total, what: told.append(what))
    assert "downloading desk/tiny from the Hub: waiting for the server" in told


def test_the_sessions_of_clients_before_1_0_serve_as_well(hub, model, monkeypatch):
    requests = pytest.importorskip("requests")
    monkeypatch.setattr("huggingface_hub.utils.get_session", requests.Session)
    hub.cuts[FILE] = 1
    assert resolve(Slot("models", "desk/tiny"), [model], pins={}, flag="--base")[1] == "hub"
    hub.instead[FILE] = packed
    Slot("models", "desk/tiny").discard()
    assert "the encoding gzip, which was not asked for" in refused(model)


def test_a_token_does_not_follow_to_another_host(hub, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    elsewhere = []

    class Other(threading.Thread):
        def run(self):
            connection, _ = listener.accept()
            elsewhere.append(connection.recv(65536).decode())
            reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(WEIGHTS)
            connection.sendall(reply + WEIGHTS)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        Other(daemon=True).start()
        hub.instead[FILE] = to(f"http://127.0.0.1:{listener.getsockname()[1]}/weights")
        assert resolve(Slot("models", "desk/tiny"), [model], pins={}, flag="--base")[1] == "hub"
    assert {token for _, _, token in hub.asked} == {"Bearer hf_secret"}
    assert "hf_secret" not in elsewhere[0]


def test_nothing_goes_from_a_safe_connection_to_an_open_one():
    with pytest.raises(TransferError, match="it redirects to 'http://mirror/x'"):
        transfer._redirected("https://hub/x", "http://mirror/x")
    assert transfer._redirected("https://hub/a/x", "../y") == "https://hub/y"


def test_a_certificate_that_is_not_trusted_is_a_sentence(hub, hub_at, model):
    hub_at(hub.endpoint.replace("http:", "https:"))  # no TLS behind it either
    assert "SSL" in refused(model)


def test_a_proxy_that_is_not_there_is_a_sentence(hub, model, monkeypatch):
    from huggingface_hub.utils._http import close_session

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    close_session()
    try:
        assert "could not be reached" in refused(model)
    finally:
        close_session()


def test_ctrl_c_works_at_once_and_leaves_nothing(hub, model):
    hub.instead[FILE] = lambda handler: (head(handler, Content_Length=len(WEIGHTS)), time.sleep(3))
    # Where these tests run in the background of a shell, it is ignored, and what they start inherits that.
    script = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += "from newsdesk.model.catalog import resolve_base\nresolve_base('desk/tiny')"
    fetching = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "HF_ENDPOINT": hub.endpoint},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any(FILE in path for _, path, _ in hub.asked):
        time.sleep(0.02)
    began = time.monotonic()
    fetching.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in fetching.communicate(timeout=5)[1]
    assert time.monotonic() - began < 2
    assert not [path for path in cache_folder().rglob("*") if path.suffix != ".lock" and path.is_file()]


def test_growth_is_reported_while_it_happens_and_never_beyond_the_total(tmp_path):
    reports = []

    def grow(_watch):
        for size in (3, 9):
            (tmp_path / "file").write_bytes(bytes(size))
            while reports[-1] != min(size, 4):
                time.sleep(0.005)

    watched(grow, "growing", lambda done, *_: reports.append(done), stall=9, folder=tmp_path, total=4)
    assert reports[0] == 0
    assert reports == sorted(reports)
    assert reports[-1] == 4


def test_what_shrinks_and_small_files_that_are_whole_count_as_going_on(tmp_path):
    def shrink_and_finish(watch):
        (tmp_path / "file").write_bytes(bytes(1 << 20))
        for size in range(9, 0, -1):
            time.sleep(0.1)
            (tmp_path / "file").write_bytes(bytes(size << 16))
        for _ in range(4):
            time.sleep(0.1)
            watch.parts += 1
        return "done"

    assert watched(shrink_and_finish, "working", silent, stall=0.3, folder=tmp_path) == "done"


def test_a_file_that_vanishes_while_it_is_measured_counts_nothing(tmp_path):
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "here").write_bytes(b"1234")
    reports = []
    watched(lambda _: None, "growing", lambda *report: reports.append(report), stall=9, folder=tmp_path)
    assert reports == [(0, None, "growing"), (4, None, "growing")]


def test_what_fails_in_the_thread_fails_for_its_caller():
    def fail(_watch):
        raise ValueError("so it is")

    with pytest.raises(ValueError, match="so it is"):
        watched(fail, "failing", silent, stall=9)
