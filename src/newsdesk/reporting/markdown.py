"""The few forms of Markdown that a model card needs, safe for whatever stands in the data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from newsdesk.data.words import isolated

_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#+!|~$&:])")


def plain(text: object) -> str:
    """The text so that it reads as it is, in a paragraph or a table's cell, whatever characters it holds.

    Runs of white space become one space, characters that cannot be shown become U+FFFD. Text with
    right-to-left letters is set apart from what is around it.
    """
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(str(text).split()))
    return isolated(_SPECIAL.sub(r"\\\1", shown)) or "(empty)"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table, a line each: header, rule, rows, and an empty line. Cells are Markdown: escape texts first."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


def fenced(code: str, language: str) -> list[str]:
    """A block of code, and an empty line."""
    return [f"```{language}", *code.strip("\n").splitlines(), "```", ""]
