"""A Hub on 127.0.0.1 that takes commits: what huggingface_hub's client asks for, answered from memory.

Repositories are made, files are told apart (git or large file storage), large ones are put by their sha256
and checked, and a commit changes a branch at once or not at all. What was pushed is served again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

TOKEN = "hf_stand_in"
LARGE = 10_000
"""Bytes from which a file goes into large file storage; .safetensors always do."""


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """Its files by branch, and how often each branch was committed to."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(
        default_factory=lambda: {"main": {".gitattributes": b"*.safetensors filter=lfs\n"}}
    )
    commits: list[str] = field(default_factory=list)

    def sha(self, branch: str) -> str:
        state = repr((branch, len(self.commits), sorted(self.branches[branch])))
        return hashlib.sha1(state.encode()).hexdigest()


@dataclass
class PushableHub:
    """What it holds, whom it knows, the faults to show, and what was asked.

    Attributes:
        owner: the only organisation that the token may write to.
        cuts: so many uploads of a large file, by its size, are broken off in the middle.
        refusals: answers to requests whose path contains the key: status and message.
        instead: answers requests whose path contains the key in its own way.
        meanwhile: called before a commit is taken, as if someone else had pushed.
    """

    endpoint: str = ""
    owner: str = "desk"
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[int, int] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    instead: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    meanwhile: Any = None
    asked: list[tuple[str, str]] = field(default_factory=list)

    @property
    def put(self) -> list[str]:
        """The sha256 of large files that were sent, one entry each time."""
        return [path.rpartition("/")[2] for method, path in self.asked if method == "PUT"]


class RefusedError(Exception):
    """An answer that is no success: status, message, the Hub's code."""


def is_large(path: str, size: int) -> bool:
    return path.endswith(".safetensors") or size >= LARGE


class _Handler(BaseHTTPRequestHandler):
    hub: PushableHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep the test output quiet."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append((self.command, path))
        length = int(self.headers.get("Content-Length") or 0)
        for part, answer in self.hub.instead.items():
            if part in path:
                self.close_connection = True
                with suppress(OSError):  # whoever asked has had enough
                    answer(self)
                return
        try:
            for part, (status, message) in self.hub.refusals.items():
                if part in path:
                    self.rfile.read(length)
                    raise RefusedError(status, message)
            if self.command == "PUT":
                self._store(path, length)
            else:
                body = self.rfile.read(length)
                self._route(path, body)
        except RefusedError as refusal:
            status, message, *code = refusal.args
            headers = {"X-Error-Message": message, **({"X-Error-Code": code[0]} if code else {})}
            self._send(status, json.dumps({"error": message}).encode(), headers)

    def _store(self, path: str, length: int) -> None:
        """A large file, unless the connection is to break in the middle of it."""
        if self.hub.cuts.get(length, 0) > 0:
            self.hub.cuts[length] -= 1
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        content, sha256 = self.rfile.read(length), path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != sha256:
            raise RefusedError(400, "these are not the bytes that were announced")
        self.hub.large[sha256] = content
        self._send(200)

    def _route(self, path: str, body: bytes) -> None:
        if path == "api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif path == "api/repos/create":
            self._create(json.loads(body))
        elif path == "lfs-verify":
            self._send(200 if json.loads(body)["oid"] in self.hub.large else 404)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif path.startswith("api/models/"):
            # Split before it is unquoted: a branch's own slashes are quoted.
            _, _, owner, name, *rest = map(unquote, urlsplit(self.path).path.strip("/").split("/"))
            repository = self._known(f"{owner}/{name}")
            verb, branch = rest[:2] or ("revision", "main")
            if rest[2:]:
                raise RefusedError(404, "no such folder", "EntryNotFound")
            handle = {
                "branch": self._branch,
                "commit": self._commit,
                "preupload": self._preupload,
                "tree": self._tree,
            }
            handle.get(verb, self._info)(f"{owner}/{name}", repository, branch, body)
        else:
            repo_id, _, rest = path.partition("/resolve/")
            self._resolve(self._known(repo_id), *rest.split("/", 1))

    def _known(self, repo_id: str) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and not self._has_token):
            raise RefusedError(401, "Repository not found", "RepoNotFound")
        return repository

    @property
    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _require_writer(self, owner: str) -> None:
        if not self._has_token:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        if owner != self.hub.owner:
            raise RefusedError(403, f'You don\'t have the rights to write under the namespace "{owner}"')

    def _create(self, asked: dict[str, Any]) -> None:
        self._require_writer(asked["organization"])
        repo_id = f"{asked['organization']}/{asked['name']}"
        place = {"url": f"{self.hub.endpoint}/{repo_id}", "id": repo_id}
        if repo_id in self.hub.repositories:
            self._send_json({"error": "You already created this model repo", **place}, 409)
            return
        private = asked.get("private", asked.get("visibility") == "private")
        self.hub.repositories[repo_id] = Repository(private)
        self._send_json(place)

    def _validate(self, content: str) -> None:
        found = REGEX_YAML_BLOCK.search(content)
        metadata = yaml.safe_load(found.group(2)) if found else None
        if not isinstance(metadata, dict) or not isinstance(metadata.get("tags", []), list):
            self._send_json({"errors": [{"message": '"tags" must be an array'}], "warnings": []}, 400)
        else:
            self._send_json({"errors": [], "warnings": []})

    def _branch(self, repo_id: str, repository: Repository, branch: str, _body: bytes) -> None:
        self._require_writer(repo_id.partition("/")[0])
        if branch in repository.branches:
            raise RefusedError(409, "Reference already exists")
        repository.branches[branch] = dict(repository.branches["main"])
        self._send(200)

    def _info(self, repo_id: str, repository: Repository, branch: str, _body: bytes) -> None:
        files = repository.branches[self._branch_of(repository, branch)]
        self._send_json(
            {
                "id": repo_id,
                "sha": repository.sha(self._branch_of(repository, branch)),
                "private": repository.private,
                "siblings": [{"rfilename": name} for name in files],
            }
        )

    def _tree(self, _repo_id: str, repository: Repository, branch: str, _body: bytes) -> None:
        entries = []
        for path, content in repository.branches[self._branch_of(repository, branch)].items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
            if is_large(path, len(content)):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self._send_json(entries)

    def _preupload(self, repo_id: str, repository: Repository, branch: str, body: bytes) -> None:
        self._require_writer(repo_id.partition("/")[0])
        there = repository.branches[branch]
        answers = []
        for asked in json.loads(body)["files"]:
            mode = "lfs" if is_large(asked["path"], asked["size"]) else "regular"
            content = there.get(asked["path"])
            oid = None
            if content is not None:
                oid = hashlib.sha256(content).hexdigest() if mode == "lfs" else git_hash(content)
            answers.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send_json({"files": answers})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for wanted in asked["objects"]:
            entry = dict(wanted)
            if wanted["oid"] not in self.hub.large:
                upload = {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}"}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.endpoint}/lfs-verify"}}
            objects.append(entry)
        self._send_json({"transfer": "basic", "objects": objects})

    def _commit(self, repo_id: str, repository: Repository, branch: str, body: bytes) -> None:
        self._require_writer(repo_id.partition("/")[0])
        if self.hub.meanwhile is not None:
            self.hub.meanwhile()
        header, *operations = (json.loads(line) for line in body.splitlines())
        if header["value"].get("parentCommit") not in (None, repository.sha(branch)):
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.branches[branch])
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                del files[value["path"]]
        repository.branches[branch] = files
        repository.commits.append(header["value"]["summary"])
        oid = repository.sha(branch)
        self._send_json({"commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{oid}", "commitOid": oid})

    def _branch_of(self, repository: Repository, revision: str) -> str:
        for branch in repository.branches:
            if revision in (branch, repository.sha(branch)):
                return branch
        raise RefusedError(404, "Revision not found", "RevisionNotFound")

    def _resolve(self, repository: Repository, revision: str, name: str) -> None:
        branch = self._branch_of(repository, revision)
        content = repository.branches[branch].get(name)
        if content is None:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        large = is_large(name, len(content))
        etag = hashlib.sha256(content).hexdigest() if large else git_hash(content)
        self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": repository.sha(branch)})

    def _send_json(self, document: object, status: int = 200) -> None:
        self._send(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving(hub: PushableHub) -> Iterator[PushableHub]:
    """Serve it on a free port until the block ends."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
