"""Lines of csv and tsv that every reader reads back, and how probabilities look in them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from newsdesk.data.dialect import NO_QUOTE, Dialect

PROBABILITY_DIGITS = 6

WRITTEN = Dialect(header=True, delimiter=",", quote='"', encoding="utf-8")
"""How ``delimited_lines`` writes a table with a header: what newsdesk wrote itself is not guessed at."""


def delimited_lines(
    rows: Iterable[Sequence[object]], delimiter: str = ",", quote: str = '"'
) -> Iterator[bytes]:
    r"""UTF-8 lines ended by ``\n``, quoted where needed (RFC 4180), one for each row of values.

    None is empty; lists, objects and truth values are JSON. A lone surrogate, which UTF-8 cannot hold, is
    written as its escape, such as ``\ud800``. With the quote ``none`` nothing is quoted.
    """
    # csv quotes a lone \r only where the line end holds one, hence its own line end, cut off again.
    if quote == NO_QUOTE:
        writer = csv.writer(_Echo(), delimiter=delimiter, quoting=csv.QUOTE_NONE, lineterminator="\r\n")
    else:
        writer = csv.writer(_Echo(), delimiter=delimiter, quotechar=quote, lineterminator="\r\n")
    for row in rows:
        line: str = writer.writerow([_plain(value) for value in row])
        yield (line[:-2] + "\n").encode(errors="backslashreplace")


def probability_column(label: str) -> str:
    """The name of the column that holds a class's probability."""
    return f"p({label})"


def rounded(probability: Any) -> float:
    """A probability as it is written: six decimals, whatever the float type it was computed in."""
    return round(float(probability), PROBABILITY_DIGITS)


class _Echo:
    """A file for csv.writer whose write hands the line back instead of keeping it."""

    def write(self, line: str) -> str:
        return line


def _plain(value: object) -> object:
    if isinstance(value, bool | list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value
