"""What spoils labels is found by ``data check`` with its lines and its fix, and told before a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from newsdesk.cli.data import render_check
from newsdesk.config import DataSection
from newsdesk.data.check import CheckReport, check
from newsdesk.data.load import load_training_data
from newsdesk.errors import UserError

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"


def case(name: str) -> Path:
    if not CASES.is_dir():
        pytest.skip("the cases are not beside the repository (../shared/cases)")
    return CASES / name


@pytest.fixture
def report(tmp_path):
    """The check of a file with these labels, each six times where it has no count of its own."""

    def report(*labels: str | tuple[str, int], column: str = "label", against: Path | None = None):
        return check(written(tmp_path / "wire.csv", *labels, column=column), against=against)

    return report


def written(path: Path, *labels: str | tuple[str, int], column: str = "label") -> Path:
    counted = [(label, 6) if isinstance(label, str) else label for label in labels]
    every = [label for label, rows in counted for _ in range(rows)]
    quoted = (f'"{label}"' for label in every)
    rows = (f"{path.stem} text {number},{label}" for number, label in enumerate(quoted))
    path.write_text("\n".join([f"text,{column}", *rows]) + "\n", encoding="utf-8")
    return path


def the_only_fault(report: CheckReport):
    assert not report.is_ok
    (fault,) = report.label_faults
    lines = render_check(report)
    assert lines[-1] == "problems found"
    assert str(fault) in lines
    assert f"  fix: {fault.fix}" in lines
    return fault


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("Business", "business"),
        ("Business", " Business"),
        ("Business", "Business\u00a0"),
        ("T\u00e9cnica", "Te\u0301cnica"),
        ("1", "1.0"),
        ("2", "02"),
    ],
)
def test_spellings_of_one_class_are_named_most_frequent_first_with_the_lines_of_the_others(
    report, right, wrong
):
    fault = the_only_fault(report((right, 8), (wrong, 5), "Other"))
    assert fault.wrong == "one class in several spellings"
    assert fault.labels == {right: 8, wrong: 5}
    assert fault.lines == tuple(range(10, 15))
    assert "data.merge_case=true" in fault.fix


@pytest.mark.parametrize("label", ["nan", "NaN", "None", "NULL", "N/A", "NA", "-", "?", "null"])
def test_a_label_that_stands_for_a_missing_one_is_named(report, label):
    fault = the_only_fault(report("World", "Sport", (label, 6)))
    assert fault.wrong == "a class that looks like a missing label"
    assert fault.labels == {label: 6}


@pytest.mark.parametrize(("column", "label"), [("label", "label"), ("category", "Category")])
def test_a_header_among_the_rows_is_named_by_its_line(report, column, label):
    fault = the_only_fault(report("World", (label, 1), "Sport", column=column))
    assert fault.wrong == "the header repeated as a row, which makes the column's name a class"
    assert fault.lines == (8,)
    assert fault.fix == "delete these lines"


@pytest.mark.parametrize(
    "joined", ["World,Sport", "Sport; World", "World|Sport", "World/Sport", "sport ; News"]
)
def test_labels_joined_in_one_cell_are_named(report, joined):
    fault = the_only_fault(report("World", "Sport", joined))
    assert fault.wrong == "labels that look like several in one"
    assert fault.labels == {joined: 6}


def test_cells_that_are_all_joined_are_named(report):
    fault = the_only_fault(report("a;b", "b;c", "c;a"))
    assert list(fault.labels) == ["a;b", "b;c", "c;a"]


@pytest.mark.parametrize("label", ["Sci/Tech", "Arts, Culture", "Bosnia and Herzegovina", "R&D"])
def test_a_class_whose_name_has_a_separator_is_no_fault(report, label):
    assert report("World", "Sport", label).is_ok


def test_cells_that_list_labels_are_refused_by_line_where_a_text_has_one(report, tmp_path):
    written(tmp_path / "wire.csv", "World", ("['World', 'Sport']", 2), ("['Sport']", 6))
    found = check(tmp_path / "wire.csv", task="single")
    assert [fault.line for fault in found.malformed] == [8, 9]
    assert found.label_counts == {"World": 6, "Sport": 6}
    with pytest.raises(UserError, match=r"line 8: the row has several labels") as refused:
        load_training_data(DataSection(train=str(tmp_path / "wire.csv"), task="single"), seed=0)
    assert refused.value.found == "World, Sport"
    assert "--task multi" in str(refused.value.fix)
    rows = "".join(f'{{"text": "t{i}", "label": ["{name}"]}}\n' for i in range(6) for name in "ab")
    (tmp_path / "wire.jsonl").write_text(rows)
    assert check(tmp_path / "wire.jsonl").label_counts == {"a": 6, "b": 6}


def test_classes_with_fewer_rows_than_folds_are_named(report):
    fault = the_only_fault(report("World", ("Rare", 4), "Sport"))
    assert fault.wrong.startswith("classes with fewer than 5 rows")
    assert fault.labels == {"Rare": 4}
    assert fault.lines == (8, 9, 10, 11)


def test_classes_that_one_of_two_files_lacks_are_named_and_other_spellings_are_no_such_class(
    report, tmp_path
):
    other = written(tmp_path / "test.csv", "world", "Weather")
    found = report("World", "Sport", against=other)
    absent, untested = found.label_faults
    assert absent.wrong == "classes of test.csv that are absent here, so that they cannot be learned"
    assert (absent.labels, absent.lines[0]) == ({"Weather": 6}, 8)
    assert untested.labels == {"Sport": 6}
    assert not found.is_ok


def test_numbers_that_count_the_classes_off_are_no_classes_of_their_own(report, tmp_path):
    other = written(tmp_path / "test.csv", "0", "1", "2", column="topic")
    assert report("World", "Arts", "Sport", against=other).is_ok
    (untested,) = report(
        "World", "Arts", "Sport", against=written(tmp_path / "test.csv", "0", "2")
    ).label_faults
    assert untested.labels == {"Sport": 6}


def test_a_column_of_free_text_is_no_column_of_classes(tmp_path):
    path = tmp_path / "wire.csv"
    path.write_text("title,category\n" + "".join(f"text {i},note {i}\n" for i in range(40)))
    fault = the_only_fault(check(path))
    assert fault.wrong == "40 classes in 40 rows: 'category' looks like free text or row numbers"
    assert "--label" in fault.fix


def test_what_spoils_the_labels_is_told_before_a_training(tmp_path):
    path = written(
        tmp_path / "wire.csv", "World", "world", "Te\u0301cnica", "T\u00e9cnica", "nan", ("label", 1)
    )
    data = load_training_data(DataSection(train=str(path)), seed=0)
    assert data.train.label_names == ("T\u00e9cnica", "World", "label", "nan", "world")
    told = "\n".join(data.notes)
    assert (
        "one class in several spellings: 'World' (6 rows), 'world' (6 rows); fix: write it in one way" in told
    )
    assert "a class that looks like a missing label: 'nan' (6 rows)" in told
    assert "the header repeated as a row" in told
    assert "labels spelled differently" in told
    merged = load_training_data(DataSection(train=str(path), merge_case=True), seed=0)
    assert len(merged.train.label_names) == 4
    assert "one class in several spellings" not in "\n".join(merged.notes)


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        (
            "c17_label_variants.csv",
            {},
            "one class in several spellings: 'Business' (55 rows), 'BUSINESS' (27 rows)",
        ),
        (
            "c21_dup_header.csv",
            {},
            "the header repeated as a row, which makes the column's name a class: 'label'",
        ),
        ("c07_comma.csv", {"text": ["Post"], "label": "Labels Set"}, "labels that look like several in one"),
        (
            "c07_labels_list.jsonl",
            {"label": "labels", "task": "single"},
            "  line 5: the row has several labels (economy, sport)",
        ),
    ],
)
def test_files_of_public_bug_reports_are_found_at_fault(name, flags, said):
    found = check(case(name), **flags)
    assert not found.is_ok
    assert [line for line in render_check(found) if line.startswith(said)]
    assert any(line.startswith("  fix: ") for line in render_check(found))
