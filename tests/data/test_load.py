"""What ``--data`` names becomes training and validation rows, or a sentence says why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from newsdesk.config import DataSection
from newsdesk.data import load
from newsdesk.data.examples import Examples
from newsdesk.data.load import load_split, load_training_data, require_two_classes
from newsdesk.errors import UserError

Rows = list[tuple[str, str]]


def rows_of(**counts: int) -> Rows:
    return [(label, f"{label} text {number}") for label, count in counts.items() for number in range(count)]


@pytest.fixture
def file_of(tmp_path: Path, write_rows: Callable[[Path, Rows], Path]) -> Callable[..., str]:
    def write(name: str, **counts: int) -> str:
        return str(write_rows(tmp_path / name, rows_of(**counts)))

    return write


def counts_of(examples: Examples) -> dict[str, int]:
    assert examples.labels is not None
    return dict(Counter(examples.label_names[label] for label in examples.labels))


def test_validation_rows_are_split_off_by_class_and_by_seed(file_of):
    section = DataSection(train=file_of("a.csv", hot=80, cold=20), validation_share=0.1)
    data = load_training_data(section, seed=1)
    assert counts_of(data.train) == {"hot": 75, "cold": 15}
    assert counts_of(data.validation) == {"hot": 5, "cold": 5}
    assert not set(data.train.texts) & set(data.validation.texts)
    assert load_training_data(section, seed=1).validation.texts == data.validation.texts
    assert load_training_data(section, seed=2).validation.texts != data.validation.texts
    assert data.layout.text_columns == ("text",)
    assert data.licence is None


def test_without_a_share_there_is_no_validation(file_of):
    data = load_training_data(DataSection(train=file_of("a.csv", a=3, b=3), validation_share=0.0), seed=0)
    assert (len(data.train), len(data.validation)) == (6, 0)
    assert data.validation.label_names == data.train.label_names


def test_a_validation_file_is_read_with_the_training_labels_and_no_row_is_split_off(file_of):
    section = DataSection(train=file_of("a.csv", a=3, b=3, c=3), validation=file_of("v.csv", c=2, b=1))
    data = load_training_data(section, seed=0)
    assert len(data.train) == 9
    assert counts_of(data.validation) == {"c": 2, "b": 1}
    assert data.validation.label_names == ("a", "b", "c")


def test_a_validation_label_unknown_to_training_is_refused(file_of):
    section = DataSection(train=file_of("a.csv", a=3, b=3), validation=file_of("v.csv", z=2, a=1))
    with pytest.raises(UserError, match=r"2 of 3 rows in v\.csv have labels that are not classes") as raised:
        load_training_data(section, seed=0)
    assert raised.value.found == "'z' (2 rows, lines 2, 3); the run's classes are a, b"
    data = load_training_data(section.model_copy(update={"unknown_labels": "drop"}), seed=0)
    assert counts_of(data.validation) == {"a": 1}
    assert [note for note in data.notes if "'z' (2)" in note and "left out" in note]


def test_a_named_validation_set_is_fetched_as_the_training_set_is(file_of, monkeypatch):
    asked = []

    def pulled(name: str, *, offline: bool, progress: object) -> Path:
        asked.append((name, offline, progress))
        return Path(file_of("a.csv", a=3, b=3)).parent

    named = replace(load.DATA_SETS["reuters-r8"], licence="CC0-1.0", train="a.csv", test="a.csv")
    monkeypatch.setattr(load, "DATA_SETS", {"ag_news": named})
    monkeypatch.setattr(load, "pull", pulled)
    progress = object()
    section = DataSection(train="ag_news", validation="ag_news")
    data = load_training_data(section, seed=0, offline=True, progress=progress)  # type: ignore[arg-type]
    assert asked == [("ag_news", True, progress)] * 2
    assert data.licence == "CC0-1.0"


@pytest.mark.parametrize("rows", [3, 10, 59, 60, 1000])
def test_so_many_rows_are_used_and_every_class_is_among_them(file_of, rows: int):
    section = DataSection(train=file_of("a.csv", a=40, b=18, c=2), validation_share=0.0, train_rows=rows)
    train = load_training_data(section, seed=0).train
    assert len(train) == min(rows, 60)
    assert counts_of(train).keys() == {"a", "b", "c"}
    if rows == 10:
        assert counts_of(train)["a"] in (6, 7)
    assert train.texts == load_training_data(section, seed=0).train.texts


def test_fewer_rows_than_classes_are_refused(file_of):
    section = DataSection(train=file_of("a.csv", a=4, b=4, c=4), validation_share=0.0, train_rows=2)
    with pytest.raises(UserError, match="2 training rows cannot cover 3 classes") as raised:
        load_training_data(section, seed=0)
    assert raised.value.fix == "use --set data.train_rows=3 or more"


def test_one_class_is_refused_by_its_name(file_of):
    with pytest.raises(UserError, match="at least two classes") as raised:
        load_training_data(DataSection(train=file_of("a.csv", lonely=4)), seed=0)
    assert "only lonely in" in (raised.value.found or "")


def test_classes_that_no_row_has_are_not_counted():
    examples = Examples(("x", "y"), np.array([2, 2]), ("World", "Sports", "Business"), "a.csv")
    with pytest.raises(UserError) as raised:
        require_two_classes(examples)
    assert raised.value.found == "only Business in a.csv"
    with pytest.raises(UserError, match="unlabelled rows"):
        require_two_classes(Examples(("x",), None, (), "a.csv"))


def test_a_folder_has_the_splits_that_its_files_are_named_for(file_of, tmp_path: Path):
    file_of("train.csv", a=3, b=3)
    assert len(load_split(str(tmp_path), "train").table.lines) == 6
    with pytest.raises(UserError, match="has no split 'test'") as raised:
        load_split(str(tmp_path), "test")
    assert raised.value.found == "splits: train"
    file_of("test.csv", a=1)
    assert len(load_split(str(tmp_path), "test").table.lines) == 1
    with pytest.raises(UserError, match="no split 'validation'") as raised:
        load_split(str(tmp_path), "validation")
    assert raised.value.found == "splits: train, test"


def test_a_file_is_its_own_only_split(file_of):
    path = file_of("a.csv", a=2, b=2)
    assert load_split(path, "test").table == load_split(path, "train").table


def test_data_that_is_not_there_is_said_to_be_a_file_or_a_name(tmp_path: Path):
    with pytest.raises(UserError, match=r"wire\.csv"):
        load_split(str(tmp_path / "wire.csv"), "train")
    with pytest.raises(UserError, match="no data set is called ag_newz"):
        load_split("ag_newz", "train")
