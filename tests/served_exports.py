"""A tiny export with calibration rows, and servers of it: in a thread of this process, on real sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from newsdesk.files import sha256_of
from newsdesk.runs.calibration import HeldOutRows, store_calibration
from newsdesk.runs.exported import ExportedModel
from newsdesk.stored import write_stored
from tiny_exports import LABELS, WORDS, build_exported

newsdesk_server = pytest.importorskip("newsdesk.serving.server")


def calibrated_export(folder: Path, *, rows: int = 600, seed: int = 0) -> Path:
    """An export whose calibration rows are right nineteen times of twenty, as the real writers leave it."""
    build_exported(folder)
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(LABELS), rows)
    said = np.where(generator.random(rows) < 0.95, labels, (labels + 1) % len(LABELS))
    sureness = generator.uniform(0.5, 4, rows)
    logits = np.zeros((rows, len(LABELS)), dtype=np.float32)
    logits[np.arange(rows), said] = np.where(said == labels, sureness + 1, sureness / 2)
    store_calibration(folder, HeldOutRows(logits, labels, "0" * 64), "drawn at random")
    ExportedModel(folder).seal_calibration()
    return folder


def with_several_labels(folder: Path, *, rows: int = 400) -> Path:
    """An export whose texts may have several labels, calibrated on rows that tell them."""
    build_exported(folder)
    exported = ExportedModel(folder)
    replace(exported.labels, task="multi").write(folder)
    hashes = {**exported.manifest.files, "labels.json": sha256_of(folder / "labels.json")}
    write_stored(folder / "manifest.json", replace(exported.manifest, files=hashes))
    generator = np.random.default_rng(0)
    labels = generator.random((rows, len(LABELS))) < 0.4
    logits = np.where(labels, 0.9, 0.1) + generator.normal(0, 0.2, labels.shape)
    store_calibration(folder, HeldOutRows(logits.astype(np.float32), labels, "0" * 64), "drawn at random")
    ExportedModel(folder).seal_calibration()
    return folder


def headline(topic: int, number: int, *, words: int = 3) -> str:
    """A text of a topic."""
    known = WORDS[LABELS[topic]]
    return " ".join(known[(number + place) % len(known)] for place in range(words))


@dataclass(frozen=True)
class Running:
    """A server that runs in a thread."""

    url: str
    server: Any
    client: httpx.Client

    @property
    def service(self) -> Any:
        return self.server.service


@contextmanager
def running(*places: Path | str, **settings: Any) -> Iterator[Running]:
    """A server on a free port of this machine, ready to answer."""
    from newsdesk.serving.settings import Settings

    chosen = Settings(**{"port": 0, "threads": 2, "linger": 0.0, **settings})
    with newsdesk_server.bound(chosen.host, chosen.port) as listening:
        server = newsdesk_server.new_server(list(map(str, places)), chosen)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=20) as client:
            wait_until(lambda: server.service.is_ready)
            yield Running(url, server, client)
        server.handle_exit(15, None)
        thread.join(20)
        assert not thread.is_alive()


def wait_until(holds: Callable[[], object], seconds: float = 20) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.01)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


WITHOUT_TORCH = """
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "peft", "sklearn", "onnx", "pyarrow")))
from newsdesk.cli import main
main()
"""


class ServerProcess:
    """``newsdesk serve`` in a process of its own, to which only what serving needs is installed."""

    def __init__(self, *arguments: object, port: int | None = None) -> None:
        self.port = port or free_port()
        given = ["serve", *map(str, arguments), "--port", str(self.port)]
        command = [sys.executable, "-c", WITHOUT_TORCH, *given]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        self.lines: list[dict[str, object]] = []
        threading.Thread(target=self._read, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.port}"

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(json.loads(line))

    def wait_until_ready(self) -> None:
        wait_until(
            lambda: self.process.poll() is not None or any(e["event"] == "ready" for e in self.lines), 60
        )
        assert self.process.poll() is None, self.lines

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)
