"""A request to stop, from Ctrl-C or from a machine that shuts down, kept until training can honour it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into an answer True; a second one breaks off as if nobody listened."""
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
