"""The classifiers that newsdesk is released with: whole, licensed, measured, without a text, and right."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest

import newsdesk
from newsdesk.data.load import DATA_SETS
from newsdesk.model.catalog import BASE_MODELS
from newsdesk.reports.facts import RunFacts
from newsdesk.runs.folder import open_run
from newsdesk.runs.ready_made import FOLDER, ready_made

AG_NEWS = Path(__file__).parents[3] / "shared" / "ag_news"
HEADLINES = {
    "Striker scores twice as United win the cup final": "Sports",
    "Shares fall after the bank reports a quarterly loss": "Business",
    "New software flaw lets hackers take over PCs, researchers say": "Sci/Tech",
    "Rebels and government sign peace deal after weeks of fighting": "World",
}
LEAST_ACCURACY = 0.88
MOST_LEARNED = 0.01
"""Share of the rows measured on whose texts it learned from: AG News has some in both files."""

pytestmark = pytest.mark.parametrize("name", list(ready_made()))


def test_its_files_are_those_that_are_pinned_and_no_others(name):
    known = ready_made()[name]
    known.verify()
    found = {path.relative_to(known.path).as_posix() for path in known.path.rglob("*") if path.is_file()}
    assert found == {*open_run(known.path).manifest.files, "manifest.json"}
    assert {folder.name for folder in FOLDER.iterdir() if folder.is_dir()} == set(ready_made())


def test_its_card_and_manifest_say_what_it_is_made_of_and_how_good_it_is(name):
    known = ready_made()[name]
    facts = RunFacts.of(open_run(known.path))
    manifest, measured = facts.manifest, facts.splits["test"].metrics
    base = BASE_MODELS[manifest.base.name]
    assert (manifest.base.sha256, manifest.base.licence) == (base.weights_sha256, base.licence)
    assert manifest.data.licence == DATA_SETS[known.data_set].licence
    assert measured.accuracy > LEAST_ACCURACY
    assert facts.splits["test"].learned.share < MOST_LEARNED
    card = (known.path / "README.md").read_text(encoding="utf-8")
    low, high = (f"{100 * share:.2f}" for share in measured.accuracy_interval)
    assert f"{100 * measured.accuracy:.2f} % ({low} to {high} %)" in card
    assert known.card in card
    assert {f"| base model | {base.licence} |", f"| training texts | {manifest.data.licence} |"} <= set(
        card.splitlines()
    )


def test_it_holds_no_text_of_ag_news(name, benchmark_script):
    if not AG_NEWS.is_dir():
        pytest.skip("AG News is not at ../shared/ag_news")
    script = benchmark_script("ready_made")
    with gzip.open(AG_NEWS / "train.csv.gz", "rt", encoding="utf-8", newline="") as train:
        texts = [" ".join(row[1:]) for row in csv.reader(train)]
    with (AG_NEWS / "test.csv").open(encoding="utf-8", newline="") as test:
        texts += [" ".join(row[1:]) for row in csv.reader(test)]
    assert script.require_shippable(ready_made()[name].path, texts) < script.MOST_BYTES


@pytest.mark.real
def test_it_sorts_headlines(name):
    answers = newsdesk.load(name).predict(list(HEADLINES))
    assert [answer.label for answer in answers] == list(HEADLINES.values())
