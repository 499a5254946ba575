"""The report of a check says all that was found, cuts long lists, and says how much it left out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from newsdesk.cli.data import render_check
from newsdesk.data.check import CheckReport, Leak, Leakage, LineGroups, Places, TokenLengths
from newsdesk.data.table import Fault

SOUND = CheckReport(
    path="wire.csv",
    rows=2000,
    columns=("title", "body", "desk"),
    text_columns=("title", "body"),
    label_column="desk",
    label_counts={"Business": 1500, "Sports": 500},
    malformed=(),
    encoding=(),
    unlabelled=Places(0, ()),
    empty=Places(0, ()),
    duplicates=LineGroups(0, 0, ()),
    conflicts=LineGroups(0, 0, ()),
    leakage=None,
    token_lengths=None,
)


def lines_of(**found):
    return render_check(replace(SOUND, **found))


def test_a_sound_file_is_its_shape_its_classes_and_the_word_sound():
    assert render_check(SOUND) == [
        "wire.csv: 2,000 rows, columns title, body, desk",
        "text: title + body    label: desk",
        "labels: 2",
        "  Business     1,500   75.0%",
        "  Sports         500   25.0%",
        "OK",
    ]


def test_a_file_without_labels_or_readable_rows_says_so():
    lines = lines_of(rows=0, columns=(), text_columns=(), label_column=None, label_counts={})
    assert lines[:2] == ["wire.csv: 0 rows, columns none", "text: none    label: none"]
    assert lines[-1] == "OK"


@pytest.mark.parametrize(
    ("kind", "title"), [("malformed", "malformed rows"), ("encoding", "encoding faults")]
)
def test_faults_are_named_by_line_with_what_was_found(kind, title):
    faults = tuple(
        Fault(line, "3 cells where 2 belong", "'x'" if line == 4 else None) for line in range(4, 16)
    )
    lines = lines_of(**{kind: faults})
    at = lines.index(f"{title}: 12")
    assert lines[at + 1] == "  line 4: 3 cells where 2 belong ('x')"
    assert lines[at + 2] == "  line 5: 3 cells where 2 belong"
    assert lines[at + 11] == "  and 2 more (--json lists them)"
    assert lines[-1] == "problems found"


@pytest.mark.parametrize(
    ("kind", "title"), [("unlabelled", "rows without a label"), ("empty", "rows without text")]
)
def test_places_are_lines_the_first_ten(kind, title):
    assert f"{title}: 2, line 4, 7" in lines_of(**{kind: Places(2, (4, 7))})
    many = lines_of(**{kind: Places(500, tuple(range(100)))})
    assert f"{title}: 500, line 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 ..." in many


def test_groups_are_the_lines_that_belong_together():
    lines = lines_of(conflicts=LineGroups(1, 3, ((2, 5, 9),)))
    at = lines.index("texts under two labels: 1 (3 rows)")
    assert lines[at + 1] == "  lines 2, 5, 9"
    assert lines[-1] == "problems found"
    assert lines_of(duplicates=LineGroups(1, 2, ((2, 5),)))[-1] == "OK"


@pytest.mark.parametrize(
    ("groups", "listed", "rest"),
    [
        (10, 10, None),
        (12, 12, "  and 2 more (--json lists them)"),
        (300, 100, "  and 290 more (--json lists the first 100)"),
    ],
)
def test_what_is_left_out_is_promised_only_where_json_holds_it(groups, listed, rest):
    lines = lines_of(duplicates=LineGroups(groups, 2 * groups, tuple((n, n + 1) for n in range(listed))))
    left_out = [line for line in lines if "more (" in line]
    assert left_out == ([] if rest is None else [rest])


def test_leaks_are_named_by_both_lines():
    leaks = (Leak(2, 4, 1.0), Leak(3, 9, 0.8125))
    lines = lines_of(leakage=Leakage("test.csv", 1000, 1, 1, leaks))
    at = lines.index("rows of test.csv that are here too: 1 exactly, 1 nearly, of 1,000")
    assert lines[at + 1] == "  line 2 here, line 4 there, similarity 1.00"
    assert lines[at + 2] == "  line 3 here, line 9 there, similarity 0.81"
    assert lines[-1] == "problems found"
    many = Leakage("test.csv", 1000, 400, 3, tuple(Leak(n, n, 1.0) for n in range(103)))
    assert "  and 393 more (--json lists the first 103)" in lines_of(leakage=many)


def test_no_leak_is_said_too():
    lines = lines_of(leakage=Leakage("test.csv", 1000, 0, 0, ()))
    assert "rows of test.csv that are here too: 0 exactly, 0 nearly, of 1,000" in lines
    assert lines[-1] == "OK"


def test_of_many_classes_the_largest_are_shown():
    lines = lines_of(label_counts={f"class {n}": 100 - n for n in range(25)})
    assert sum(line.startswith("  class ") for line in lines) == 20
    assert "  and 5 more (--json lists them)" in lines


def test_token_lengths_tell_what_would_be_cut():
    lengths = TokenLengths(50.04, {"50%": 48, "100%": 300}, 128, 0.034)
    lines = lines_of(token_lengths=lengths)
    assert "tokens a text: mean 50.0; at most: 50% 48, 100% 300" in lines
    assert "  cut at 128: 3.4% of the texts" in lines
    uncut = lines_of(token_lengths=replace(lengths, max_length=None, truncated=None))
    assert not any("cut at" in line for line in uncut)
