"""Errors say what is wrong, what was found and how to fix it, in that order."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.errors import UserError, counted, first_line, missing_package


def test_the_three_parts_stand_on_lines_of_their_own_and_line_up():
    error = UserError("column 'x' is not in a.csv", found="title, label", fix="--text title")
    assert str(error).splitlines() == [
        "error: column 'x' is not in a.csv",
        "found: title, label",
        "fix:   --text title",
    ]
    assert (error.wrong, error.found, error.fix) == (
        "column 'x' is not in a.csv",
        "title, label",
        "--text title",
    )


def test_a_part_without_content_has_no_line():
    assert str(UserError("no")) == "error: no"
    assert str(UserError("no", fix="yes")) == "error: no\nfix:   yes"


def test_of_somebody_elses_message_one_printable_line_is_shown():
    assert first_line("\n so\x1b[31m it\u202eis \nmore") == "so?[31m it?is "
    assert len(first_line(ValueError("x" * 10_000))) == 300


def test_a_missing_package_names_the_extra_that_installs_it():
    with pytest.raises(UserError, match="training needs the package torch") as raised:
        raise missing_package("torch", "train", "training")
    assert raised.value.fix == "pip install 'newsdesk[train]'"


@pytest.mark.parametrize(
    ("number", "noun", "shown"),
    [
        (1, "row", "1 row"),
        (0, "row", "0 rows"),
        (2_000, "validation row", "2,000 validation rows"),
        (np.int64(12_345), "row", "12,345 rows"),
        (1.0, "epoch", "1 epoch"),
        (200 / 3, "epoch", "66.67 epochs"),
        (1, "class", "1 class"),
        (3, "class", "3 classes"),
        (2, "batch", "2 batches"),
    ],
)
def test_a_number_and_its_noun_agree(number, noun, shown):
    assert counted(number, noun) == shown
