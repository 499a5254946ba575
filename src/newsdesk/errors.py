"""Errors meant for the person who typed the command, not for the next programmer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import islice
from numbers import Integral


class UserError(Exception):
    """A failure we can explain: what is wrong, what was found, and how to fix it.

    Rooms raise it; only the command line turns it into text on a terminal and exit code 1. Anything
    else that escapes is a defect of newsdesk and shows its traceback.
    """

    def __init__(self, wrong: str, *, found: str | None = None, fix: str | None = None) -> None:
        self.wrong = wrong
        self.found = found
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        """The three parts, a line each; lines without content are left out."""
        parts = (("error", self.wrong), ("found", self.found), ("fix", self.fix))
        return "\n".join(f"{label + ':':<7}{text}" for label, text in parts if text)


end_process: Callable[[UserError], None] | None = None
"""Ends the process with an error where no exception can: the thread that would get it is in a library, and
does not come back. Set where the process is the command line's; None: nobody may end it.
"""


def counted(number: float, noun: str) -> str:
    """``1 row``, ``2,000 rows``, ``2.5 epochs``, ``3 classes``: a number with its noun in the right form."""
    plural = noun + ("es" if noun.endswith(("s", "x", "sh", "tch")) else "s")
    shown = f"{number:,}" if isinstance(number, Integral) else f"{number:.4g}"
    return f"{shown} {noun if shown == '1' else plural}"


def listed(entries: Collection[object], most: int = 20) -> str:
    """``a, b, c and 5 more``: the first ``most`` of the entries, and how many others there are."""
    more = f" and {len(entries) - most:,} more" if len(entries) > most else ""
    return ", ".join(map(str, islice(entries, most))) + more


def first_line(message: object, most: int = 300) -> str:
    """The first line of somebody else's message, without what a terminal would take for a command."""
    line = str(message).strip().partition("\n")[0][:most]
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def missing_package(package: str, extra: str, purpose: str, *, otherwise: str = "") -> UserError:
    """The error for a dependency that only an optional extra installs; ``otherwise`` is another way out."""
    return UserError(
        f"{purpose} needs the package {package}",
        found="it is not installed in this environment",
        fix=f"pip install 'newsdesk[{extra}]'" + (f", or {otherwise}" if otherwise else ""),
    )
