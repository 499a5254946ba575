"""What an audit can see of wrong labels, and what it says of what it cannot see."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np
import pytest

import newsdesk
from newsdesk.cli.audit import render_audit
from newsdesk.evaluation.audit.label_issues import (
    least_accuracy,
    out_of_sample_probabilities,
    rank_label_errors,
)

CASES = Path(__file__).parents[3].parent / "shared" / "cases"
ARABIC = Path(__file__).parents[2] / "languages" / "arabic.csv"


@pytest.fixture(scope="module")
def systematic(tmp_path_factory, topical_csv):
    """Rows of which every one about medals or referees, which is Sports, was labelled Business; and which."""
    with topical_csv.open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    generator = random.Random(5)
    wrong = set()
    for number, row in enumerate(rows):
        if row[0] == "Sports" and {"medal", "referee"} & set(row[1].split()) and generator.random() < 0.85:
            row[0] = "Business"
            wrong.add(number)
    path = tmp_path_factory.mktemp("systematic") / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path, wrong


def test_errors_made_the_same_way_every_time_are_more_than_the_lower_bound(systematic, tiny_base, tmp_path):
    path, wrong = systematic
    report = newsdesk.audit(str(path), base=str(tiny_base("bert")), out=tmp_path).report
    share = len(wrong) / report.rows
    assert share > 0.1
    assert report.noise < share
    assert any("lower bound" in line for line in render_audit(report, top=3))


def test_an_editor_finds_more_of_them_by_going_on_down_the_list(systematic, tiny_base, tmp_path):
    path, wrong = systematic
    report = newsdesk.audit(str(path), base=str(tiny_base("bert")), out=tmp_path).report
    with (tmp_path / "quality.csv").open(newline="", encoding="utf-8") as stream:
        ranked = [int(row["row"]) for row in csv.DictReader(stream)]
    assert sorted(ranked) == list(range(report.rows))
    found = wrong & {suspect.row for suspect in report.suspects}
    further = wrong & set(ranked[: 2 * len(wrong)])
    assert len(found) < len(further)
    assert len(further) / len(wrong) > 1.5 * 2 * len(wrong) / report.rows


@pytest.mark.parametrize("classes", [2, 4, 10])
@pytest.mark.parametrize("noise", [0.05, 0.1, 0.2])
def test_the_limit_on_held_out_accuracy_tells_useful_suspects_from_useless_ones(classes, noise):
    """Gaussian clusters from inseparable to well apart: see ``least_accuracy``."""
    for spread in (0.0, 0.3, 2.0, 3.5):
        generator = np.random.default_rng(round(10 * spread))
        true = generator.integers(0, classes, 800)
        centres = generator.normal(size=(classes, 16))
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        vectors = centres[true] * spread * 1.5 + generator.normal(size=(800, 16)) * 0.6
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        wrong = generator.random(800) < noise
        labels = np.where(wrong, (true + generator.integers(1, classes, 800)) % classes, true)
        probabilities = out_of_sample_probabilities(
            ["..."] * 800, vectors, labels, np.arange(800), classes=classes, folds=5, seed=0
        )
        found = rank_label_errors(probabilities, labels)
        can_judge = found.accuracy >= least_accuracy(found.majority)
        assert can_judge == (spread >= 2.0)
        assert (wrong[found.suspects].mean() > 0.8) == can_judge


def test_too_low_an_accuracy_is_said_with_its_limit_and_the_unknown_tokens(tiny_base, tmp_path):
    rows = [f"{label},{text}" for text, label in csv.reader(ARABIC.open(encoding="utf-8"))]
    path = tmp_path / "arabic.csv"
    labels = [row.partition(",")[0] for row in rows[1:]]
    texts = [row.partition(",")[2] for row in rows[1:]]
    random.Random(1).shuffle(labels)
    lines = (f"{label},{text}" for label, text in zip(labels, texts, strict=True))
    path.write_text("\n".join([rows[0], *lines]), encoding="utf-8")
    report = newsdesk.audit(str(path), base=str(tiny_base("bert")), out=tmp_path / "out").report
    assert not report.can_judge
    shown = "\n".join(render_audit(report, top=3))
    assert "too low to judge the labels" in shown
    assert f"always the most frequent label: {report.majority:.2%}" in shown
    assert f"{report.least_accuracy:.2%}" in shown
    assert "a lower bound" not in shown
    assert "100% of the tokens are unknown to the base model" in shown


@pytest.mark.skipif(not CASES.is_dir(), reason="the case files are not beside this checkout")
def test_chinese_near_copies_are_found_and_words_of_chinese_texts_count(tiny_base, tmp_path):
    rows = [line.split("\t") for line in (CASES / "c05_thuc_names.tsv").read_text("utf-8").splitlines()]
    rows = [row for row in rows if row[1] in ("sports", "finance", "game")]
    rows.append([rows[0][0] + "(图)", rows[0][1]])
    path = tmp_path / "names.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])
    report = newsdesk.audit(str(path), base=str(tiny_base("bert")), out=tmp_path / "out").report
    (twin,) = report.duplicates
    assert (twin.row, twin.other_row, twin.exact) == (len(rows) - 1, 0, False)
    assert report.accuracy > report.majority + 0.1  # by the characters: the tiny base knows none of them
