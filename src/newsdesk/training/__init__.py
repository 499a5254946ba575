"""Examples + model to a run, as a stream of events; here what a process is told.

By torchrun, which started it, and by signals that ask it to stop.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SET_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun, or a scheduler like it, started."""
    return all(name in os.environ for name in _SET_BY_TORCHRUN)


def rank() -> int:
    """This process's number among them, 0 for the one that logs and writes; 0 without torchrun."""
    return int(os.environ["RANK"]) if started_by_torchrun() else 0


def local_rank() -> int:
    """This process's number among those on the same machine."""
    return int(os.environ["LOCAL_RANK"]) if started_by_torchrun() else 0


def restarted() -> bool:
    """Whether torchrun restarted this process because one of the team was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into an answer True; a second one ends the process as usual."""
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only it may handle signals
        yield requested.is_set
        return

    def request(_number: int, _frame: object) -> None:
        requested.set()
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    previous = {number: signal.signal(number, request) for number in _SIGNALS}
    try:
        yield requested.is_set
    finally:
        restore()
