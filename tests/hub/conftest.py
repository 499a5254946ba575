"""Stand-ins for the two places that files come from: a Hub on 127.0.0.1 and a folder of small wheels."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class HubStandIn:
    """Repositories to serve, the faults to show, and what was asked.

    Paths are ``models/ORG/NAME`` and ``datasets/ORG/NAME``; files ending in .safetensors and .parquet lie in
    large file storage. ``altered`` serves other bytes than the listing states, ``cuts`` breaks so many
    transfers of a file off in the middle, ``refusal`` answers everything with (status, error code).
    ``instead`` answers the requests of a path, or of all files that are called so, in its own way.
    """

    endpoint: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    altered: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)
    refusal: tuple[int, str] | None = None
    instead: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    def listing(self, repository: str) -> bytes:
        siblings = []
        for name, content in self.repositories[repository].items():
            sibling: dict[str, object] = {
                "rfilename": name,
                "size": len(content),
                "blobId": git_hash(content),
            }
            if name.endswith((".safetensors", ".parquet")):
                digest = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(sibling)
        repo_id = repository.partition("/")[2]
        document = {"id": repo_id, "sha": COMMIT, "tags": ["license:mit"], "siblings": siblings}
        return json.dumps(document).encode()


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        """Keep the test output quiet."""

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append((self.command, path, self.headers.get("Authorization")))
        own = self.hub.instead.get(path) or self.hub.instead.get(path.rpartition("/")[2])
        if own is not None:
            self.close_connection = True
            with suppress(OSError):  # whoever asked has had enough
                own(self)
        elif self.hub.refusal is not None:
            self._refuse(*self.hub.refusal)
        elif path.startswith("api/"):
            repository = path.removeprefix("api/")
            if repository in self.hub.repositories:
                self._send(self.hub.listing(repository), {"Content-Type": "application/json"}, with_body)
            else:
                self._refuse(404, "RepoNotFound")
        else:
            repository, _, rest = path.partition("/resolve/")
            kind = "" if repository.startswith("datasets/") else "models/"
            name = rest.partition("/")[2]
            content = self.hub.repositories.get(kind + repository, {}).get(name)
            if content is None:
                self._refuse(404, "EntryNotFound")
            else:
                self._send_file(name, content, with_body)

    def _send_file(self, name: str, content: bytes, with_body: bool) -> None:
        stated = hashlib.sha256(content).hexdigest() if ".safetensors" in name else git_hash(content)
        served = self.hub.altered.get(name, content)
        headers = {"ETag": f'"{stated}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(served) - 1}/{len(served)}"
        cut = with_body and self.hub.cuts.get(name, 0) > 0
        if cut:
            self.hub.cuts[name] -= 1
        self._send(served[start:], headers, with_body, status=206 if start else 200, cut=cut)

    def _send(
        self, body: bytes, headers: dict[str, str], with_body: bool, *, status: int = 200, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut

    def _refuse(self, status: int, code: str) -> None:
        self._send(b"", {"X-Error-Code": code}, with_body=False, status=status)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Every test has its own cache and knows no token of whoever runs it."""
    if request.node.get_closest_marker("real"):
        return
    monkeypatch.setenv("NEWSDESK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Point the Hub client at an endpoint; it reads its environment only once, at import."""
    from huggingface_hub import constants

    def point(endpoint: str, *, offline: bool = False) -> None:
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))

    return point


@pytest.fixture
def hub(hub_at) -> Iterator[HubStandIn]:
    """A Hub on 127.0.0.1 that the Hub client of this process talks to."""
    stand_in = HubStandIn()
    handler = type("Handler", (_Handler,), {"hub": stand_in})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    stand_in.endpoint = f"http://127.0.0.1:{server.server_port}"
    hub_at(stand_in.endpoint)
    yield stand_in
    server.shutdown()
    server.server_close()


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Add small wheels to a folder that is all pip knows, and get their requirement back."""
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")

    def add(package: str, members: dict[str, bytes], *, version: str = "1.0") -> str:
        stem = f"{package.replace('-', '_')}-{version}"
        with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
            for name, content in members.items():
                wheel.writestr(name, content)
            about = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nRequires-Python: >=99\n"
            wheel.writestr(f"{stem}.dist-info/METADATA", about)
            wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{stem}.dist-info/RECORD", "")
        return f"{package}=={version}"

    return add
