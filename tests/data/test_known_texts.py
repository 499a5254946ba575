"""A run recognises the texts it learned from, without holding them."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from newsdesk.data.duplicates import KNOWN_TEXTS, KnownTexts, LearnedRows
from newsdesk.errors import UserError

TEXTS = ("Oil rises", "Goal!", "Caf\u00e9 opens", "")


def test_texts_are_recognised_whatever_their_case_space_and_composition():
    known = KnownTexts.of(TEXTS, ["Rain", "oil RISES"])
    texts = ["OIL  rises ", "cafe\u0301 opens", "rain", "snow", "", "rain"]
    assert known.in_training(texts).tolist() == [True, True, False, False, False, False]
    assert known.in_validation(texts).tolist() == [False, False, True, False, False, True]
    assert known.learned_rows(texts) == LearnedRows(6, training=2, validation=2, share=4 / 6)
    assert known.learned_rows([]).share == 0


def test_the_file_holds_eight_bytes_a_text_and_none_of_the_texts(tmp_path):
    texts = [f"headline number {number}" for number in range(1000)]
    KnownTexts.of(texts, ()).save(tmp_path)
    content = (tmp_path / KNOWN_TEXTS).read_bytes()
    assert len(content) < 8 * 1000 + 400
    assert b"headline" not in content
    assert KnownTexts.of_folder(tmp_path).in_training([*texts, "another"]).tolist() == [True] * 1000 + [False]


def test_no_file_means_nothing_is_known_and_a_damaged_one_is_refused(tmp_path):
    assert KnownTexts.of_folder(tmp_path) is None
    KnownTexts.of(TEXTS, ()).save(tmp_path)
    file = tmp_path / KNOWN_TEXTS
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"known_texts\.safetensors is missing or damaged"):
        KnownTexts.of_folder(tmp_path)


@pytest.fixture(scope="module")
def trained(tiny_base, topical_csv, tmp_path_factory) -> Path:
    pytest.importorskip("torch")
    import newsdesk

    folder = tmp_path_factory.mktemp("known")
    data = shutil.copy(topical_csv, folder / "topics.csv")
    flags = {"model.base": str(tiny_base("bert")), "data.train": str(data), "training.epochs": 0.25}
    settings = ("model.max_length=32", "training.device=cpu", "training.precision=float32", "data.folds=0")
    return newsdesk.train(out=folder / "run", flags=flags, overrides=settings).path


def texts_of(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as stream:
        return [row["text"] for row in csv.DictReader(stream)]


def test_a_run_and_its_export_know_their_texts_without_the_data(trained, tmp_path):
    import newsdesk
    from newsdesk.runs.exported import ExportedModel
    from newsdesk.runs.folder import RunFolder

    texts = texts_of(trained.parent / "topics.csv")
    export = newsdesk.export(trained, "merged", out=tmp_path / "merged").path
    run = RunFolder(shutil.copytree(trained, tmp_path / "run"))
    rows = run.manifest.data.train.rows
    for found in (run, ExportedModel(export)):
        known = found.known_texts()
        assert KNOWN_TEXTS in found.manifest.files
        assert (known.in_training(texts) | known.in_validation(texts)).all()
        assert len(known.training) == len(np.unique(known.training)) <= rows < len(texts)
        assert known.learned_rows(["a text that is new"]) == LearnedRows(1, 0, 0, 0.0)


def test_a_run_without_the_file_reads_its_rows_again_where_they_still_are(trained, tmp_path):
    from newsdesk.evaluation.rows import known_texts_of
    from newsdesk.runs.folder import RunFolder

    data = trained.parent / "topics.csv"
    run = RunFolder(shutil.copytree(trained, tmp_path / "run"))
    written = run.known_texts()
    (run.path / KNOWN_TEXTS).unlink()
    assert run.known_texts() is None
    found = known_texts_of(run)
    assert found.training.tolist() == written.training.tolist()
    assert found.validation.tolist() == written.validation.tolist()
    moved = data.rename(data.with_name("moved.csv"))
    try:
        assert known_texts_of(run) is None
    finally:
        moved.rename(data)
