"""The true sources: what is not cached yet is fetched."""

from __future__ import annotations

import pytest

from newsdesk.data.load import DATA_SETS, dataset_files
from newsdesk.files import sha256_of
from newsdesk.model.catalog import BASE_MODELS, resolve_base


@pytest.mark.real
def test_the_default_model_and_data_set_are_the_pinned_bytes():
    base = resolve_base("all-MiniLM-L6-v2")
    assert sha256_of(base.path / "model.safetensors") == BASE_MODELS["all-MiniLM-L6-v2"].weights_sha256
    files = dataset_files("reuters-r8")
    pins = DATA_SETS["reuters-r8"].source.files
    assert sha256_of(files.train) == pins["reuters-r8-train.tab"]
    assert sha256_of(files.test) == pins["reuters-r8-test.tab"]
    for file, rows in zip((files.train, files.test), DATA_SETS["reuters-r8"].rows, strict=True):
        lines = file.read_text(encoding="utf-8").splitlines()
        assert sum(1 for line in lines[3:] if line.strip()) == rows
