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
    assert "labels spelled differently from the run's classes" in " ".join(outcome.out.split())
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
        "75.00 % of these rows are not new to the run: the texts of 96 of 160 are among its training" in told
    )
    assert "of 24 among its validation texts" in told
    kept = json.loads((run / "metrics.json").read_text())["test"]["learned"]
    assert kept == {"rows": 160, "training": 96, "validation": 24, "share": 0.75}
    other = newsdesk("evaluate", run, "--data", write(tmp_path / "new.csv", new), "--split", "new")
    assert "no text of these 40 rows is among the run's training or validation texts" in " ".join(
        other.out.split()
    )


@pytest.fixture
def run(train, tmp_path) -> Path:
    return shutil.copytree(train(), tmp_path / "run")


def test_an_unknown_label_stops_calibrate_export_report_and_compare_and_drop_goes_on(
    run, newsdesk, tmp_path, train
):
    data = write(tmp_path / "test.csv", rows_of(30, seed=2, named=("gadgets", "Sport", "Weather")))
    other = shutil.copytree(train(), tmp_path / "other")
    for verb in (
        ("calibrate", run),
        ("export", run, "--to", "merged"),
        ("report", run),
        ("compare", run, other),
    ):
        refused = newsdesk(*verb, "--data", data)
        assert refused.code == 1, verb
        assert "10 of 30 rows in test.csv have labels that are not classes of the run" in refused.err, verb
        assert not (run / "metrics.json").is_file()
        dropped = newsdesk(*verb, "--data", data, "--unknown-labels", "drop")
        assert dropped.code == 0, dropped.err
        if verb[0] != "report":
            assert "were left out: 'Weather' (10)" in dropped.err, verb
        if verb[0] in ("calibrate", "export"):
            counted = newsdesk(*verb, "--data", data, "--unknown-labels", "count-wrong")
            assert counted.code == 1
            assert "--unknown-labels drop" in counted.err or "export" in counted.err
        (run / "metrics.json").unlink(missing_ok=True)


def test_nothing_is_fitted_or_checked_on_class_numbers_that_count_in_another_order(run, newsdesk, tmp_path):
    right = write(tmp_path / "right.csv", rows_of(60, seed=2, named=("0", "1", "2")))
    wrong = write(tmp_path / "wrong.csv", rows_of(60, seed=2, named=("2", "0", "1")))
    for verb in (("calibrate", run), ("export", run, "--to", "merged")):
        refused = newsdesk(*verb, "--data", wrong)
        assert refused.code == 1
        assert "the class numbers in" in refused.err
        assert "the run takes Gadgets as Sport" in refused.err
        told = newsdesk(*verb, "--data", right)
        assert told.code == 0, told.err
        assert "class numbers, read as 0 = Gadgets, 1 = Sport, 2 = Tech-markets" in told.err


def test_unknown_rows_counted_as_errors_are_compared_too(train, newsdesk, tmp_path):
    first, other = (shutil.copytree(train(), tmp_path / name) for name in ("first", "other"))
    data = write(tmp_path / "test.csv", rows_of(30, seed=2, named=("gadgets", "Sport", "Weather")))
    outcome = newsdesk("compare", first, other, "--data", data, "--unknown-labels", "count-wrong")
    assert outcome.code == 0, outcome.err
    assert any(line.startswith("Weather") for line in outcome.lines)
    assert newsdesk("compare", first, other).lines[-1] == "both predict the same classes for all 30 rows"


@pytest.mark.parametrize("policy", ["count-wrong", "drop"])
def test_report_and_card_tell_what_was_done_to_unknown_labels_and_which_rows_were_learned(
    run, newsdesk, tmp_path, policy
):
    rows = [*rows_of(30, seed=2, named=("gadgets", "Sport", "Weather")), *rows_of(30, seed=1)]
    data = write(tmp_path / "test.csv", rows)
    assert newsdesk("evaluate", run, "--data", data, "--unknown-labels", policy).code == 0
    written = newsdesk("report", run)
    assert written.code == 0, written.err
    assert "note: the evaluated texts" not in written.err
    page = (run / "report-test.html").read_text(encoding="utf-8")
    card = (run / "README.md").read_text(encoding="utf-8")
    done = "are counted as errors" if policy == "count-wrong" else "were left out"
    share = "50.00 %" if policy == "count-wrong" else "60.00 %"
    for told in (page, card):
        assert f"10 of 60 rows, whose labels are not classes of the run, {done}" in told
        assert f"{share} of these rows are not new to the run" in told


def test_runs_that_spell_their_classes_otherwise_are_compared_on_the_same_rows(train, newsdesk, tmp_path):
    first = shutil.copytree(train(), tmp_path / "first")
    other = shutil.copytree(train(("GADGETS", "sport", "tech-markets")), tmp_path / "other")
    data = write(tmp_path / "test.csv", rows_of(30, seed=2))
    outcome = newsdesk("compare", first, other, "--data", data)
    assert outcome.code == 0, outcome.err
    assert outcome.lines[-1] == "both predict the same classes for all 30 rows"
    assert "labels spelled differently from the run's classes" in outcome.err


def test_validation_rows_are_matched_to_the_training_rows_classes(tiny_base, newsdesk, tmp_path):
    data = write(tmp_path / "train.csv", rows_of(60, seed=1))
    flags = ["train", "--data", data, "--base", tiny_base("bert"), "--epochs", "1"]
    flags += ["--set", "training.device=cpu", "--set", "model.max_length=32"]
    other = write(tmp_path / "valid.csv", rows_of(30, seed=2, named=("gadgets", "Sport", "Weather")))
    refused = newsdesk(*flags, "--valid", other, "--out", tmp_path / "refused")
    assert (refused.code, (tmp_path / "refused").exists()) == (1, False)
    assert "10 of 30 rows in valid.csv have labels that are not classes of the run" in refused.err
    dropped = newsdesk(*flags, "--valid", other, "--unknown-labels", "drop", "--out", tmp_path / "run")
    assert dropped.code == 0, dropped.err
    assert "were left out: 'Weather' (10)" in dropped.err
    assert "'gadgets' as Gadgets" in dropped.err
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert '"validation_rows": 20' in log
    assert "were left out: 'Weather' (10)" in log
    numbers = write(tmp_path / "numbers.csv", rows_of(30, seed=2, named=("1", "2", "3")))
    told = newsdesk(*flags, "--valid", numbers, "--out", tmp_path / "numbers")
    assert "class numbers, read as 1 = Gadgets, 2 = Sport, 3 = Tech-markets" in told.err


def test_lists_of_labels_are_refused_by_train_in_csv_and_jsonl_where_a_text_has_one(
    tiny_base, newsdesk, tmp_path
):
    rows = rows_of(30, seed=1)
    listed = tmp_path / "rows.jsonl"
    listed.write_text("".join(json.dumps({"text": text, "label": [one, "All"]}) + "\n" for text, one in rows))
    spelled = write(tmp_path / "rows.csv", [(text, f"['{one}', 'All']") for text, one in rows])
    for data in (listed, spelled):
        flags = ("--task", "single", "--base", tiny_base("bert"), "--out", tmp_path / "run")
        refused = newsdesk("train", "--data", data, *flags)
        assert refused.code == 1
        assert "the row has several labels" in refused.err
        assert "--task multi" in refused.err


CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
ACCURATE = 0.9


@pytest.mark.parametrize(
    ("learned", "measured", "expected"),
    [
        ("c15_train_ids_1to3", "c15_test_names", "no label in c15_test_names.csv is a class of the run"),
        ("c15_train_ids_1to3", "c15_test_one_unseen_id0", "'0' (2 rows, lines 62, 63)"),
        ("c15_train_ids_1to3", "c15_test_only_1_2", ACCURATE),
        ("c15_train_ids_1to3", "c17_int_test", ACCURATE),
        ("c15_train_names", "c15_test_names", ACCURATE),
        ("c15_train_names", "c15_test_one_unseen_id0", "the run takes Sport as Tech-markets (30 of 30 rows)"),
        ("c15_train_names", "c15_test_only_1_2", "it is not clear which classes they stand for"),
        ("c15_train_names", "c17_int_test", "WARNING: the class numbers seem to stand for other classes"),
        ("c17_float_train", "c15_test_names", "no label in c15_test_names.csv is a class of the run"),
        ("c17_float_train", "c15_test_one_unseen_id0", "'0' (2 rows, lines 62, 63)"),
        ("c17_float_train", "c15_test_only_1_2", ACCURATE),
        ("c17_float_train", "c17_int_test", ACCURATE),
    ],
)
def test_files_of_public_bug_reports_are_matched_or_refused(
    case_runs, newsdesk, tmp_path, learned, measured, expected
):
    run = shutil.copytree(case_runs(learned), tmp_path / "run")
    outcome = newsdesk("evaluate", run, "--data", CASES / f"{measured}.csv")
    if isinstance(expected, float):
        assert json.loads((run / "metrics.json").read_text())["test"]["metrics"]["accuracy"] > expected
    else:
        assert expected in " ".join((outcome.out + outcome.err).split())


@pytest.fixture(scope="module")
def case_runs(tiny_base, tmp_path_factory) -> Callable[[str], Path]:
    """Runs on the cases' training files, each trained once."""
    import newsdesk

    if not CASES.is_dir():
        pytest.skip("the cases are not beside the repository (../shared/cases)")
    runs: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in runs:
            flags = {"data.train": str(CASES / f"{name}.csv"), "model.base": str(tiny_base("bert"))}
            flags |= {"training.epochs": 6.0, "training.learning_rate": 2e-2, "lora.targets": ("all-linear",)}
            flags |= {
                "training.device": "cpu",
                "training.precision": "float32",
                "model.max_length": 32,
                "data.folds": 0,
            }
            runs[name] = newsdesk.train(out=tmp_path_factory.mktemp("cases") / name, flags=flags).path
        return runs[name]

    return run
