"""The noise benchmark makes the noise it says, and runs from rows to table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def label_noise(benchmark_script):
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    yield benchmark_script("label_noise")
    sys.path.remove(folder)


def test_the_share_asked_for_is_replaced_as_the_weights_say(label_noise):
    labels = np.zeros(1000, dtype=np.int64)
    weights = np.array([[0.0, 0.75, 0.25], [1, 0, 0], [1, 0, 0]])
    noisy = label_noise.replaced(labels, 0.4, weights, np.random.default_rng(0))
    counts = np.bincount(noisy)
    assert counts[0] == 600
    assert 270 < counts[1] < 330


def test_systematic_errors_are_texts_alike_that_get_one_label(label_noise):
    labels = np.repeat([0, 1], 10)
    vectors = np.eye(20, dtype=np.float32)
    vectors[:4] = vectors[0]
    weights = np.array([[0.0, 0.2, 0.8], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])[:2]
    noisy = label_noise.misunderstood(labels, 0.4, weights, vectors, np.random.default_rng(1))
    assert [(noisy[rows] != labels[rows]).sum() for rows in (slice(0, 10), slice(10, 20))] == [4, 4]
    assert set(noisy[noisy != labels]) == {2}


def test_confusions_are_shares_of_the_mistakes(label_noise):
    probabilities = np.eye(3)[[0, 1, 1, 2, 1, 2]]
    weights = label_noise.confusions(probabilities, np.array([0, 0, 0, 0, 1, 2]))
    assert weights[0] == pytest.approx([0, 2 / 3, 1 / 3])
    assert weights[1] == pytest.approx([0.5, 0, 0.5])


def test_figures_of_a_ranking_are_as_counted_by_hand(label_noise):
    wrong = np.array([True, False, True, False])
    found = label_noise.figures([0.1, 0.2, 0.3, 0.9], [0, 1], wrong)
    assert found == {"top_k": 0.5, "auroc": 0.75, "suspects": 2, "precision": 0.5, "recall": 0.5}


def test_it_runs_from_rows_to_table(label_noise, topical_csv, tiny_base, tmp_path, monkeypatch, capsys):
    arguments = ["--data", topical_csv, "--base", tiny_base("bert"), "--shares", "0.1", "--rows", "150"]
    places = ["--store", tmp_path / "store", "--json", tmp_path / "out.json"]
    monkeypatch.setattr(sys, "argv", ["label_noise.py", *map(str, [*arguments, *places])])
    label_noise.main()
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert len(results) == 6
    assert results[0]["top_k"] > 0.5
    assert capsys.readouterr().out.count("newsdesk") == 3
