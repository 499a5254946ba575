"""Labels are matched to classes, never guessed; what cannot be matched is named with its lines."""

from __future__ import annotations

from collections import Counter

import pytest

from newsdesk.data.labels import (
    OTHER_CLASSES,
    LabelMatcher,
    LabelMatching,
    class_names,
    folded,
    labels_in,
    match_labels,
    number_of,
    spellings_of_one_class,
)
from newsdesk.errors import UserError
from newsdesk.stored import from_content, to_content

NAMES = ("Gadgets", "Sport", "Tech-markets")


def matched(labels, names=NAMES, **settings):
    lines = list(range(2, len(labels) + 2))
    return match_labels(labels, lines, names, source="wire.csv", **settings)


def refusal(labels, names=NAMES, **settings) -> UserError:
    with pytest.raises(UserError) as refused:
        matched(labels, names, **settings)
    return refused.value


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("1", "1"),
        ("1.0", "1"),
        ("01", "1"),
        ("+1", "1"),
        ("1.", "1"),
        (".5", "0.5"),
        ("-0", "0"),
        ("-0.0", "0"),
        ("-01.50", "-1.5"),
        ("9" * 6000, "9" * 6000),
        ("9" * 30 + "1", "9" * 30 + "1"),
        ("1e3", None),
        ("nan", None),
        ("inf", None),
        ("٣", None),
        ("1,5", None),
        ("1_000", None),
        ("", None),
        (".", None),
        ("+", None),
        ("1 ", None),
    ],
)
def test_numbers_are_what_their_value_is_and_nothing_else_is_a_number(label, value):
    assert number_of(label) == value


@pytest.mark.parametrize(
    "label", ["Sport", "sport", "SPORT", " Sport ", "sport\u200b", "\ufeffSport", "\u00a0Sport"]
)
def test_a_label_finds_its_class_whatever_its_case_and_white_space(label):
    assert LabelMatcher(NAMES).match(label) == 1


@pytest.mark.parametrize("label", ["1", "1.0", "01", "+1", " 1 "])
def test_numbers_are_one_class_by_their_value(label):
    assert LabelMatcher(["0.0", "1.0", "2.0"]).match(label) == 1


def test_composed_and_decomposed_letters_inner_space_and_other_cases_are_one_class():
    matcher = LabelMatcher(["Te\u0301cnica", "Sci / Tech", "EKONOMİ", "Straße"])
    labels = ["T\u00e9cnica", "T\u00c9CNICA", "sci  /\ttech", "Ekonomi", "STRASSE"]
    assert [matcher.match(label) for label in labels] == [0, 0, 1, 2, 3]
    assert matcher.match("Tecnica") is None


def test_a_label_that_folds_to_two_classes_is_known_by_its_exact_text_alone():
    matcher = LabelMatcher(["US", "us", "World"])
    assert [matcher.match(label) for label in ("US", "us", " us ", "Us", "world")] == [0, 1, 1, None, 2]
    error = refusal(["US", "Us"], ["US", "us", "World"])
    assert "'Us' (1 row, line 3, which could be US or us)" in str(error.found)


def test_numbers_that_an_older_run_tells_apart_stay_apart():
    matcher = LabelMatcher(["1", "1.0"])
    assert [matcher.match(label) for label in ("1", "1.0", "01")] == [0, 1, None]


@pytest.mark.parametrize(
    ("labels", "ids"),
    [
        (["0", "2", "1"], [0, 2, 1]),
        (["0", "1"], [0, 1]),
        (["3", "1"], [2, 0]),
        (["3.0", "1.0", "2.0"], [2, 0, 1]),
    ],
)
def test_whole_numbers_count_off_classes_that_have_names_from_0_or_from_1(labels, ids):
    found = matched(labels)
    assert found.ids.tolist() == ids
    assert found.matching.positions == {
        label: NAMES[i] for label, i in sorted(zip(labels, ids, strict=True), key=lambda pair: pair[1])
    }
    assert (
        f"class numbers, read as {labels[ids.index(min(ids))]} = {NAMES[min(ids)]}"
        in found.matching.notes()[0]
    )


def test_numbers_that_may_count_from_0_or_from_1_are_refused():
    error = refusal(["1", "2", "1"])
    assert (
        error.wrong == "the labels of wire.csv are numbers, and it is not clear which classes they stand for"
    )
    assert error.found is not None
    assert "'1' (2 rows, lines 2, 4), '2' (1 row, line 3)" in error.found
    assert "without 0 or 3 among them they may count from 0 or from 1" in error.found
    assert refusal(["1", "2"], unknown_labels="drop").wrong == error.wrong


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["0", "3"], NAMES),
        (["0", "4"], NAMES),
        (["-1", "0", "1"], NAMES),
        (["0", "1.5"], NAMES),
        (["0", "1"], ["Sport", "2020"]),
        (["0", "4"], ["1", "2", "3"]),
        (["Sport", "Gadgets"], ["1", "2", "3"]),
        (["9" * 5000, "0"], NAMES),
    ],
)
def test_nothing_is_read_as_a_class_number_where_a_number_is_out_of_range_or_a_class_is_one(labels, names):
    assert refusal(labels, names).wrong == "no label in wire.csv is a class of the run"


def test_an_unknown_number_is_no_position_where_classes_are_numbers():
    error = refusal(["1", "2", "0"], ["1", "2", "3"])
    assert error.wrong == "1 of 3 rows in wire.csv have labels that are not classes of the run"
    assert error.found == "'0' (1 row, line 4); the run's classes are 1, 2, 3"


def test_numbers_beside_a_name_are_unknown():
    assert "'0' (1 row, line 2)" in str(refusal(["0", "Sport"]).found)


def test_unknown_labels_are_named_with_their_rows_lines_and_the_known_classes():
    error = refusal(["Sport", *["weather"] * 7, "Sprot"])
    assert error.wrong == "8 of 9 rows in wire.csv have labels that are not classes of the run"
    assert error.found == (
        "'weather' (7 rows, lines 3, 4, 5, 6, 7 ...), 'Sprot' (1 row, line 10); "
        "the run's classes are Gadgets, Sport, Tech-markets"
    )
    assert "--unknown-labels drop" in str(error.fix)
    assert "--label" in str(error.fix)


def test_unknown_rows_are_dropped_or_counted_as_errors_if_asked():
    labels = ["Sport", "weather", "sport", "Sprot", "weather"]
    dropped = matched(labels, unknown_labels="drop")
    assert (dropped.ids.tolist(), dropped.names) == ([1, -1, 1, -1, -1], NAMES)
    assert dropped.matching.notes()[-1] == (
        "3 of 5 rows, whose labels are not classes of the run, were left out: 'weather' (2), 'Sprot' (1)"
    )
    counted = matched(labels, unknown_labels="count-wrong")
    assert counted.ids.tolist() == [1, 3, 1, 4, 3]
    assert counted.names == (*NAMES, "weather", "Sprot")
    assert (
        "3 of 5 rows, whose labels are not classes of the run, are counted as errors"
        in counted.matching.notes()[-1]
    )
    assert counted.matching.respelled == {"sport": "Sport"}
    assert from_content(LabelMatching, to_content(counted.matching)) == counted.matching


def test_many_unknown_labels_are_counted_under_one_name():
    found = matched(["Sport", *map("topic {}".format, range(21))], unknown_labels="count-wrong")
    assert found.names == (*NAMES, OTHER_CLASSES)
    assert found.ids.tolist() == [1, *[3] * 21]


@pytest.mark.parametrize("policy", ["drop", "count-wrong"])
def test_a_file_without_one_known_label_is_refused_whatever_was_asked(policy):
    assert refusal(["weather"], unknown_labels=policy).wrong == "no label in wire.csv is a class of the run"


def test_classes_to_learn_are_in_numeric_order_and_one_for_every_spelling_that_looks_the_same():
    assert list(dict.fromkeys(class_names(["10", "2", "1", "1.0", "01"]).values())) == ["1", "2", "10"]
    assert list(class_names(["1.0", "2.0"]).values()) == ["1.0", "2.0"]
    assert list(class_names(["1.5", "10", "-2"]).values()) == ["-2", "1.5", "10"]
    assert class_names(["Te\u0301cnica", "T\u00e9cnica", "T\u00e9cnica"]) == {
        "Te\u0301cnica": "T\u00e9cnica",
        "T\u00e9cnica": "T\u00e9cnica",
    }
    assert list(class_names(["b", "1", "a"]).values()) == ["1", "a", "b"]


def test_cases_stay_apart_unless_asked():
    labels = ["Sport", "sport", "sport", "World"]
    assert set(class_names(labels).values()) == {"Sport", "sport", "World"}
    merged = class_names(labels, merge_case=True)
    assert set(merged.values()) == {"sport", "World"}
    assert merged["Sport"] == "sport"


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("Sport", ("Sport",)),
        (" Sport ", ("Sport",)),
        ("", ()),
        (None, ()),
        (float("nan"), ()),
        (1, ("1",)),
        (1.0, ("1",)),
        (1.5, ("1.5",)),
        (True, ("True",)),
        (["a", "b"], ("a", "b")),
        (["a"], ("a",)),
        ([], ()),
        ('["a", "b"]', ("a", "b")),
        ("['a', 'b']", ("a", "b")),
        ("['a']", ("a",)),
        ("[sport]", ("[sport]",)),
        ("[1, 2]", ("1", "2")),
        ("[__import__('os')]", ("[__import__('os')]",)),
        ("a,b", ("a,b",)),
    ],
)
def test_a_cell_holds_the_labels_that_it_lists(cell, labels):
    assert labels_in(cell) == labels


def test_an_object_is_no_label():
    with pytest.raises(ValueError, match="keys name, id"):
        labels_in({"name": "Sport", "id": 3})


def test_spellings_of_one_class_come_most_frequent_first():
    labels = ["Sport"] * 3 + ["SPORT", "sport ", "World", "sport", "sport"]
    assert spellings_of_one_class(Counter(labels)) == [{"Sport": 3, "sport": 2, "SPORT": 1, "sport ": 1}]
    assert folded("  SPORT ") == "sport"
