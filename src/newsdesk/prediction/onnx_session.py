"""ONNX graphs in ONNX Runtime: checked before they are opened, limited in memory and in time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from newsdesk import errors
from newsdesk.errors import UserError, first_line
from newsdesk.prediction.onnx_check import GraphRefusedError, Port, require_plain_graph

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, RunOptions

MOST_MEMORY = 3 << 30
"""Bytes for what graphs compute, their weights aside: 50 times what a batch of the largest encoders takes."""
SLOWEST_SECONDS = 5.0
SLOWEST = 1e9
"""Bytes of a graph times tokens of a batch that take a second more: a hundredth of what one core computes."""
_LAST_OPERATOR_SECONDS = 3.0  # that the operator at work may still take, once a run is overdue
_LOOK_SECONDS = 0.5
_FOLDED = 1 << 28  # bytes of a constant that onnxruntime may compute from others while it loads
_TOPOLOGY = Path("/sys/devices/system/cpu")
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


class OnnxGraph:
    """A graph that is open, for any number of threads that compute at once.

    Attributes:
        path: its file.
        threads: how many compute a batch together.
        outputs: the names of what it computes.
    """

    def __init__(
        self, path: Path, inputs: Mapping[str, Port], outputs: Mapping[str, Port], *, threads: int
    ) -> None:
        """Check and open it; see `require_plain_graph`.

        Raises UserError for a graph that is not as it should be, and OSError for what is no regular file.
        """
        self.path, self.threads = path, threads
        try:
            self._folds = require_plain_graph(path, inputs, outputs)
            self._session = _open_session(path, threads, self._folds)
        except OSError:
            raise
        except Exception as error:  # onnxruntime's own classes derive from Exception alone
            raise _cannot_run(path, error) from error
        self._bytes = path.stat().st_size
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def run(
        self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]], *, tokens: int, alone: bool = False
    ) -> list[NDArray[np.float32]]:
        """Compute outputs of a batch of so many tokens; ``alone``: by the calling thread and no other.

        Raises UserError where onnxruntime cannot, and where it takes far too long.
        """
        from onnxruntime import RunOptions

        session = self._session_of_one if alone else self._session
        options, seconds = RunOptions(), SLOWEST_SECONDS + self._bytes * tokens / SLOWEST
        late = GraphRefusedError(f"{tokens:,} tokens take it more than {seconds:,.0f} seconds")
        run = _Run(options, time.monotonic() + seconds, _cannot_run(self.path, late))
        _end_overdue_runs()
        _running.add(run)
        try:
            computed: list[NDArray[np.float32]] = session.run(outputs, inputs, options)
        except Exception as error:  # onnxruntime's own classes derive from Exception alone
            raise (run.late if options.terminate else _cannot_run(self.path, error)) from error
        finally:
            _running.discard(run)
        return computed

    @cached_property
    def _session_of_one(self) -> InferenceSession:
        """One of a single thread: opened when it is first needed, its weights held once more."""
        return self._session if self.threads == 1 else _open_session(self.path, 1, self._folds)


@dataclass(eq=False)
class _Run:
    """A batch that onnxruntime computes, when it has to be through, and the error where it is not."""

    options: RunOptions
    due: float
    late: UserError


_running: set[_Run] = set()


@cache
def _end_overdue_runs() -> None:
    """Let one thread of this process stop, after the operator at work, what takes too long.

    Where that operator does not end either, it ends the process, if that is the command line's. Time in which
    the process was stopped, by Ctrl-Z say, or got no processor, does not count.
    """

    def look() -> None:
        now = time.monotonic()
        while True:
            time.sleep(_LOOK_SECONDS)
            before, now = now, time.monotonic()
            for run in _running.copy():
                run.due += max(0.0, now - before - 2 * _LOOK_SECONDS)
                if now > run.due:
                    run.options.terminate = True
                if now > run.due + _LAST_OPERATOR_SECONDS and errors.end_process is not None:
                    errors.end_process(run.late)

    threading.Thread(target=look, daemon=True).start()


def _cannot_run(model: Path, error: Exception) -> UserError:
    if isinstance(error, GraphRefusedError):
        return UserError(
            f"{model} is not a graph that newsdesk runs",
            found=str(error),
            fix="export the run again with newsdesk export, or ask whoever made this for the run",
        )
    return UserError(
        f"onnxruntime cannot run {model}",
        found=first_line(error) or "no reason given",
        fix="export it again with newsdesk export, and with the versions installed here",
    )


def default_threads() -> int:
    """Threads for one batch: ``OMP_NUM_THREADS`` where it is a number, else the cores we may run on.

    Two hardware threads of one core share its arithmetic units and count as one. A container's share of
    processor time counts, too: threads beyond it would wait for each other.
    """
    stated = os.environ.get("OMP_NUM_THREADS", "")
    if stated.isdigit() and int(stated):
        return int(stated)
    if not hasattr(os, "sched_getaffinity"):  # macOS, Windows
        return os.cpu_count() or 1
    siblings = (_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list" for cpu in os.sched_getaffinity(0))
    cores = len({path.read_text() if path.is_file() else str(path) for path in siblings})
    return max(1, min(cores, int(_cores_worth_of_time(cores))))


def _cores_worth_of_time(cores: int) -> float:
    """What the control groups of this process (version 2: a container's, a systemd unit's) leave of cores."""
    allowed = float(cores)
    with suppress(OSError, ValueError):
        own = next(line[3:] for line in [*_OWN_GROUP.read_text().splitlines(), "0::/"] if line[:3] == "0::")
        group = _CONTROL_GROUPS / own.strip("/")
        for folder in (group, *group.parents):
            limit = folder / "cpu.max"  # microseconds in each period, or max
            if limit.is_file() and not (content := limit.read_text()).startswith("max"):
                quota, period = content.split()
                allowed = min(allowed, int(quota) / int(period))
            if folder == _CONTROL_GROUPS:
                break
    return allowed


@cache
def _limit_memory() -> None:
    """Let all graphs of this process together take `MOST_MEMORY` for what they compute, and no more."""
    import onnxruntime

    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    with suppress(RuntimeError):  # a program around us has set its own
        onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg({"max_mem": MOST_MEMORY}))


def _open_session(model: Path, threads: int, folds: bool) -> InferenceSession:
    import onnxruntime

    _limit_memory()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")  # the one with the limit
    options.add_session_config_entry(
        "session.use_device_allocator_for_initializers", "1"
    )  # weights do not count
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(_FOLDED))
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it serves batches of one shape; ours differ
    options.log_severity_level = 3  # errors only
    skipped = [] if folds else ["ConstantFolding"]
    return onnxruntime.InferenceSession(
        str(model),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=skipped,
        enable_fallback=0,  # it would print, and try the same again
    )
