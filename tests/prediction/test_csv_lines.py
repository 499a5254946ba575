from __future__ import annotations

import csv
import io
import itertools

import numpy as np
import pytest

from newsdesk.prediction.predictions import delimited_lines, probability_column, rounded

HOSTILE = (
    "",
    " ",
    '"',
    '""',
    "'",
    ",",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "a\rb",
    'say "so", he said\nthen left',
    "\\n",
    "\\",
    "=1+1",
    "#comment",
    "\ufeffbom",
    "naïve — 株価 🗞️",
    "e\u0301",
    "\u2028\u2029\x85\x0b\x0c",
    "null",
    "x" * 70_000,
)


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_any_text_comes_back_from_pythons_csv(delimiter):
    table = [list(pair) for pair in itertools.product(HOSTILE, repeat=2)] + [[text] for text in HOSTILE]
    content = b"".join(delimited_lines(table, delimiter)).decode()
    assert list(csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)) == table


def test_lines_end_as_unix_lines_do_even_where_cells_hold_others():
    assert list(delimited_lines([["a\r\nb", 1], ["c", 2]])) == [b'"a\r\nb",1\n', b"c,2\n"]


def test_a_lone_surrogate_is_written_as_its_escape():
    assert list(delimited_lines([["\ud800!"]])) == [b"\\ud800!\n"]


def test_values_that_are_no_text_are_written_plainly():
    line = b"".join(delimited_lines([[None, 1, 0.5, True, ["a", 1], {"k": None}]]))
    row = next(csv.reader([line.decode()]))
    assert row == ["", "1", "0.5", "true", '["a", 1]', '{"k": null}']


def test_probabilities_are_written_with_six_decimals_and_named_for_their_class():
    assert rounded(np.float32(0.1)) == 0.1
    assert rounded(0.12345649) == 0.123456
    assert type(rounded(np.float32(1))) is float
    assert probability_column("Sci/Tech") == "p(Sci/Tech)"
