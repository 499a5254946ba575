"""A recorded function does its work once a call, whether directly, while recorded, or replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from newsdesk.errors import UserError  # noqa: E402
from newsdesk.training.train_step import CudaCapture, Recorder  # noqa: E402


class Replayed:
    """Stands in for a device: records without computing, and hands out one result that replays overwrite."""

    def __init__(self) -> None:
        self.direct = 0
        self.recorded = 0

    def run(self, work: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        self.direct += 1
        return work(*arguments)

    def record(self, work: Callable[..., Any], arguments: Sequence[Any]) -> Callable[[], Any]:
        self.recorded += 1
        result: list[Any] = []

        def replay() -> Any:
            result[:] = result or [torch.empty(0)]
            result[0].set_(work(*arguments).clone())
            return result[0]

        return replay


def test_every_call_works_once_and_results_stay():
    capture, total = Replayed(), torch.zeros(3)

    def work(x: Any, y: Any) -> Any:
        total.add_(x * y)
        return total.sum()

    recorder = Recorder(work, capture)
    results = [recorder(torch.full((3,), float(step)), torch.ones(3)) for step in range(1, 7)]
    assert [float(result) for result in results] == [3.0, 9.0, 18.0, 30.0, 45.0, 63.0]
    assert (capture.direct, capture.recorded, recorder.recordings) == (2, 1, 1)


def test_shapes_are_recorded_apart_and_rare_ones_never():
    capture = Replayed()
    recorder = Recorder(lambda *xs: torch.stack([x.sum() for x in xs]).sum(), capture)
    for _ in range(4):
        assert float(recorder(torch.ones(2, 8), torch.ones(2))) == 18.0
        assert float(recorder(torch.ones(2, 16), torch.ones(2))) == 34.0
    assert float(recorder(torch.ones(1, 8), torch.ones(1))) == 9.0
    assert float(recorder(torch.ones(2, 8, dtype=torch.int64), torch.ones(2))) == 18.0
    assert recorder.recordings == capture.recorded == 2


class FakeCuda:
    """torch.cuda's streams and graphs, as far as to note in which order they are used."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.notes: list[str] = []
        self.fault: Exception | None = None
        notes, outer = self.notes, self

        class Stream:
            def __init__(self, name: object) -> None:
                self.name = name

            def wait_stream(self, other: Stream) -> None:
                notes.append(f"{self.name} waits for {other.name}")

        class CUDAGraph:
            def replay(self) -> None:
                notes.append("replay")

        @contextmanager
        def stream(_stream: Stream) -> Iterator[None]:
            notes.append("on side")
            yield
            notes.append("off side")

        @contextmanager
        def graph(_graph: CUDAGraph, *, pool: object, stream: Stream) -> Iterator[None]:
            notes.append(f"capture on {stream.name} in {pool}")
            yield
            if outer.fault:
                raise outer.fault

        current = Stream("current")
        for name, stand_in in {
            "Stream": lambda _device: Stream("side"),
            "CUDAGraph": CUDAGraph,
            "stream": stream,
            "graph": graph,
            "current_stream": lambda: current,
            "graph_pool_handle": lambda: "pool",
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)


def test_direct_work_and_captures_share_a_stream(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    recorder = Recorder(lambda x: x + 1, CudaCapture(torch.device("cuda")))
    assert torch.equal(recorder(torch.zeros(2)), torch.ones(2))
    direct = ["side waits for current", "on side", "off side", "current waits for side"]
    assert cuda.notes == direct
    recorder(torch.zeros(2))
    recorder(torch.zeros(2))
    recorder(torch.zeros(2))
    assert cuda.notes == [*direct, *direct, "capture on side in pool", "replay", "replay"]


def test_a_refused_capture_says_so_and_too_little_memory_stays_what_it_is(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    capture = CudaCapture(torch.device("cuda"))
    cuda.fault = RuntimeError("operation not permitted when stream is capturing")
    with pytest.raises(UserError, match="could not record") as caught:
        capture.record(torch.sin, [torch.zeros(1)])
    assert "not permitted" in str(caught.value)
    assert "training.compile=off" in str(caught.value)
    cuda.fault = torch.OutOfMemoryError("no more")
    with pytest.raises(torch.OutOfMemoryError):
        capture.record(torch.sin, [torch.zeros(1)])
