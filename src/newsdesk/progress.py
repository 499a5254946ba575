"""How long work tells how far it is: one protocol for downloads, and for rows that are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

Unit = Literal["bytes", "rows"]


class Progress(Protocol):
    """What a caller may give to any long work; the command line shows a bar."""

    def __call__(self, done: int, total: int | None, what: str, unit: Unit = "bytes", /) -> None:
        """Take notice of ``done`` of ``total`` bytes or rows of ``what``, such as "classifying".

        It is called with 0 at the beginning. Without a total, nothing is counted: ``what`` goes on.
        """
        ...


def silent(_done: int, _total: int | None, _what: str, _unit: Unit = "bytes", /) -> None:
    """The progress of a caller who wants none."""


def counting(progress: Progress | None, total: int, what: str) -> Callable[[int], None]:
    """A function to call with the number of rows of every batch done; ``progress`` hears their sum."""
    report, done = progress or silent, 0

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        report(done, total, what, "rows")

    count(0)
    return count
