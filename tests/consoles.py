"""Consoles that keep what they show, and a clock that a test sets."""

from __future__ import annotations

import io

from rich.console import Console


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def file_console() -> Console:
    """A console whose output goes into a file, where nothing can be redrawn."""
    return Console(file=io.StringIO(), width=60)


def screen_console() -> Console:
    """A console that is a terminal."""
    return Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)


def shown(console: Console) -> str:
    """All that was written to a console."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
