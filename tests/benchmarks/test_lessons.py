"""benchmarks/lessons.py on a small sweep of one key at a time."""

from __future__ import annotations

import pytest

import newsdesk

pytest.importorskip("optuna")


def test_each_value_stands_beside_the_published_one(benchmark_script, tiny_recipe, tmp_path):
    lessons = benchmark_script("lessons")
    newsdesk.sweep(
        tiny_recipe("lora.rank=4", "lora.dropout=0.1", "training.epochs=1"),
        out=tmp_path / "sweep",
        vary=["lora.rank=2,4,8", "lora.dropout=0.0,0.1"],
        method="one-by-one",
        seeds=2,
    )
    found = lessons.read(tmp_path / "sweep")
    assert [one.name for one in found["lora.rank"]] == ["2", "4", "8"]
    assert [one.name for one in found["lora.dropout"]] == ["0", "0.1"]
    assert [one.against is None for one in found["lora.rank"]] == [False, True, False]
    by_name = {one.name: one for one in found["lora.rank"]}
    for name in ("2", "8"):
        gained = by_name["4"].accuracy - by_name[name].accuracy
        assert by_name[name].against.difference == pytest.approx(gained)
    shown = lessons.table(found["lora.rank"])
    assert shown.count("as published") == 1
    pytest.importorskip("matplotlib")
    lessons.draw(found, tmp_path / "lessons")
    assert (tmp_path / "lessons.svg").is_file()
