"""Labels of a file against the classes of a run: matched, printed and kept, or refused with the reason."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch")

TOPICS = {
    "Gadgets": ("robot software laser", "quantum telescope orbit", "software robot genome"),
    "Sport": ("striker goal league", "coach medal season", "referee sprint champion"),
    "Tech-markets": ("bank shares profit", "market prices trade", "dollar merger budget"),
}
NAMES = tuple(TOPICS)


def rows_of(count: int, *, seed: int, named: Sequence[str] = NAMES) -> list[tuple[str, str]]:
    """Rows of (text, label), each class in turn under the name it has in ``named``."""
    rows = []
    for row in range(count):
        topic = row % len(NAMES)
        words = TOPICS[NAMES[topic]][row // len(NAMES) % 3]
        rows.append((f"{words} {seed}{row}", named[topic]))
    return rows


def write(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])
    return path


@pytest.fixture(scope="module")
def train(tiny_base, tmp_path_factory) -> Callable[..., Path]:
    """Train a tiny run on rows whose classes have these names; once for each set of names."""
    import newsdesk

    runs: dict[tuple[str, ...], Path] = {}

    def run(named: Sequence[str] = NAMES, overrides: Sequence[str] = ()) -> Path:
        key = (*named, *overrides)
        if key not in runs:
            folder = tmp_path_factory.mktemp("labels")
            flags = {
                "data.train": str(write(folder / "train.csv", rows_of(120, seed=1, named=named))),
                "data.validation_share": 0.2,
                "model.base": str(tiny_base("bert")),
                "training.epochs": 6.0,
                "training.learning_rate": 2e-2,
                "training.precision": "float32",
                "training.device": "cpu",
                "training.metric": "loss",
                "model.max_length": 32,
                "lora.targets": ("all-linear",),
            }
            runs[key] = newsdesk.train(out=folder / "run", flags=flags, overrides=overrides).path
        return runs[key]

    return run


@pytest.fixture
def tried(train, tmp_path, newsdesk):
    """Evaluate a copy of the run with such names on rows with such labels; the outcome and metrics.json."""

    def tried(named: Sequence[str], labels: Sequence[str], *flags: str):
        run = shutil.copytree(train(named), tmp_path / "run", dirs_exist_ok=True)
        data = write(tmp_path / "test.csv", rows_of(30, seed=2, named=labels))
        outcome = newsdesk("evaluate", run, "--data", data, *flags)
        metrics = run / "metrics.json"
        kept = json.loads(metrics.read_text())["test"] if metrics.is_file() else None
        return outcome, kept

    return tried


@pytest.mark.parametrize(
    ("named", "labels"),
    [
        (NAMES, ("gadgets", " SPORT", "tech-markets ")),
        (("1", "2", "3"), ("1.0", "02", "+3")),
        (("1.0", "2.0", "3.0"), ("1", "2", "3")),
        (("T\u00e9cnica", "Deporte", "Bolsa"), ("TE\u0301CNICA", "deporte", "Bolsa")),
    ],
)
def test_other_spellings_of_the_classes_score_as_the_classes_do_and_are_told(tried, named, labels):
    exact, exact_kept = tried(named, named)
    assert exact_kept["metrics"]["accuracy"] == 1
    outcome, kept = tried(named, labels)
    assert (exact.code, outcome.code) == (0, 0)
    assert kept["metrics"] == exact_kept["metrics"]
    assert "labels spelled otherwise than the run's classes" in " ".join(outcome.out.split())
    assert kept["labels"]["respelled"]
    assert not kept["labels"]["positions"]


@pytest.mark.parametrize("numbers", [("0", "1", "2"), ("1", "2", "3"), ("1.0", "2.0", "3.0")])
def test_class_numbers_are_read_in_the_order_of_the_classes_and_the_mapping_is_told_and_kept(tried, numbers):
    outcome, kept = tried(NAMES, numbers)
    assert kept["metrics"]["accuracy"] == 1
    assert kept["labels"]["positions"] == dict(zip(numbers, NAMES, strict=True))
    told = " ".join(outcome.out.split())
    assert f"class numbers, read as {numbers[0]} = Gadgets, {numbers[1]} = Sport" in told
    assert "WARNING" not in told


def test_class_numbers_in_another_order_end_in_a_warning_that_names_the_order(tried):
    outcome, kept = tried(NAMES, ("2", "1", "0"))
    assert kept["metrics"]["accuracy"] < 0.5
    told = " ".join(outcome.out.split())
    assert "WARNING: the class numbers seem to stand for other classes" in told
    assert "Gadgets as Tech-markets" in told


@pytest.mark.parametrize(
    ("named", "labels", "said"),
    [
        (NAMES, ("1", "2", "2"), "it is not clear which classes they stand for"),
        (("1", "2", "3"), NAMES, "no label in test.csv is a class of the run"),
        (("1", "2", "3"), ("1", "2", "0"), "10 of 30 rows in test.csv have labels that are not classes"),
        (NAMES, ("Gadgets", "Sport", "Weather"), "'Weather' (10 rows, lines 4, 7, 10, 13, 16 ...)"),
        (NAMES, ("Gadgets", "Sport", "3"), "'3' (10 rows"),
        (NAMES, ("Gadgets", "['Sport', 'Gadgets']", "Sport"), "line 3: the row has several labels"),
    ],
)
def test_a_label_that_is_no_class_is_refused_and_nothing_is_measured(tried, named, labels, said):
    outcome, kept = tried(named, labels)
    assert (outcome.code, kept) == (1, None)
    assert said in outcome.err


def test_unknown_rows_are_counted_as_errors_or_dropped_if_asked_and_both_are_told(tried):
    labels = ("Gadgets", "Sport", "Weather")
    counted, kept = tried(NAMES, labels, "--unknown-labels", "count-wrong")
    metrics = kept["metrics"]
    assert counted.code == 0
    assert (metrics["rows"], metrics["label_names"]) == (30, [*NAMES, "Weather"])
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    weather = metrics["per_class"][-1]
    assert (weather["label"], weather["recall"], weather["f1"], weather["support"]) == ("Weather", 0, 0, 10)
    assert kept["labels"]["unknown"][0]["label"] == "Weather"
    told = " ".join(counted.out.split())
    assert "10 of 30 rows, whose labels are not classes of the run, are counted as errors" in told

    dropped, kept = tried(NAMES, labels, "--unknown-labels", "drop")
    assert dropped.code == 0
    assert kept["metrics"]["rows"] == 20
    assert kept["metrics"]["accuracy"] == 1
    assert (kept["labels"]["policy"], kept["labels"]["unknown"][0]["rows"]) == ("drop", 10)
    assert "were left out: 'Weather' (10)" in " ".join(dropped.out.split())


def test_rows_that_the_run_learned_from_are_told_by_their_share(train, tmp_path, newsdesk):
    run = shutil.copytree(train(), tmp_path / "run")
    learned = rows_of(120, seed=1)
    new = [(f"{text} again", label) for text, label in learned[:40]]
    data = write(tmp_path / "mixed.csv", [(text.upper(), label) for text, label in learned] + new)
    outcome = newsdesk("evaluate", run, "--data", data)
    told = " ".join(outcome.out.split())
    assert (
        "75.00% of these rows are not new to the run: the texts of 96 of 160 are among its training" in told
    )
    assert "of 24 among its validation texts" in told
    kept = json.loads((run / "metrics.json").read_text())["test"]["learned"]
    assert kept == {"rows": 160, "training": 96, "validation": 24, "share": 0.75}
    other = newsdesk("evaluate", run, "--data", write(tmp_path / "new.csv", new), "--split", "new")
    assert "no text of these 40 rows is among the run's training or validation texts" in " ".join(
        other.out.split()
    )
