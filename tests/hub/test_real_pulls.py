"""The true sources: what is not cached yet is fetched."""

from __future__ import annotations

import pytest

from newsdesk.data.load import DATA_SETS, pull
from newsdesk.files import sha256_of
from newsdesk.model.catalog import BASE_MODELS, resolve_base


@pytest.mark.real
def test_the_default_model_and_data_set_are_the_pinned_bytes():
    base = resolve_base("all-MiniLM-L6-v2")
    assert sha256_of(base.path / "model.safetensors") == BASE_MODELS["all-MiniLM-L6-v2"].weights_sha256
    data = DATA_SETS["reuters-r8"]
    files = [pull(data.name) / name for name in (data.train, data.test)]
    assert [sha256_of(file) for file in files] == list(data.source.files.values())
    for file, rows in zip(files, data.rows, strict=True):
        lines = file.read_text(encoding="utf-8").splitlines()
        assert sum(1 for line in lines[3:] if line.strip()) == rows
