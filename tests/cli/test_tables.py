from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rich.cells import cell_len

from newsdesk.cli.tables import WIDTH, render_columns, render_errors, render_evaluation
from newsdesk.evaluation.evaluate import Evaluation, RowError, Trust
from newsdesk.evaluation.significance import PairedComparison
from newsdesk.metrics import evaluate_probabilities, wilson_interval
from newsdesk.prediction.abstention import CoverageAt, RiskCoverage
from newsdesk.runs.calibration import Change
from newsdesk.training.linear_baseline import BaselineResult

R8 = ("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade")
BASELINE = BaselineResult(
    *(
        0.921,
        wilson_interval(921, 1000),
        14.4,
        "TF-IDF of characters 2-5, linear SVM (scikit-learn 1.9.1)",
        (),
    ),
    features="characters 2-5",
    validation={"words 1-2": 0.8, "characters 2-5": 0.9},
)
COMPARISON = PairedComparison(900, 11, 22, 67, 1.7e-6)


def metrics(confusion, names):
    """Metrics of a classifier that is certain of everything, from its confusion matrix."""
    confusion = np.asarray(confusion)
    true, predicted = (np.repeat(ids.ravel(), confusion.ravel()) for ids in np.indices(confusion.shape))
    return evaluate_probabilities(np.eye(len(names))[predicted], true, names)


def diagonal(classes, count=90, errors=1):
    return np.full((classes, classes), errors) + np.eye(classes, dtype=int) * (count - errors)


def scaled(small, factor):
    """The metrics of ``factor`` times as many rows."""
    return replace(
        small,
        rows=small.rows * factor,
        per_class=tuple(replace(entry, support=entry.support * factor) for entry in small.per_class),
        confusion=tuple(tuple(count * factor for count in row) for row in small.confusion),
    )


def rendered(measured, baseline=None, comparison=None, **parts) -> list[str]:
    """The lines of an evaluation with these parts."""
    evaluation = Evaluation("test", "wire.csv", "0", "runs/wire", measured, **parts)
    return render_evaluation(replace(evaluation, baseline=baseline, comparison=comparison))


def sections(lines):
    """The report's parts, which blank lines separate, with runs of spaces as one."""
    return [[" ".join(line.split()) for line in part.split("\n")] for part in "\n".join(lines).split("\n\n")]


def widest(lines):
    return max(map(cell_len, lines))


def test_the_headline_is_the_accuracy_with_its_interval():
    (headline, *_) = sections(rendered(metrics([[95, 5], [4, 96]], ("a", "b"))))
    low, high = wilson_interval(191, 200)
    assert headline[0] == f"accuracy 95.50 % 95 % interval {100 * low:.2f} to {100 * high:.2f} %"
    assert headline[1] == "rows 200, of which 191 right"
    assert headline[2] == "macro F1 95.50 % over 2 classes"
    assert headline[3] == f"negative log-likelihood {9 / 200 * 36.04365:.4f} nats a row"
    assert headline[4] == "Brier score 0.0900"
    assert headline[5] == "expected calibration error 4.50 points"


def test_classes_and_confusions_stand_in_tables():
    _, classes, matrix = sections(rendered(metrics([[95, 5], [20, 80]], ("Sports", "World"))))
    assert classes == [
        "class precision recall F1 rows",
        "Sports 82.61 % 95.00 % 88.37 % 100",
        "World 94.12 % 80.00 % 86.49 % 100",
    ]
    assert matrix == [
        "true \\ predicted Sports World",
        "Sports 95 5",
        "World 20 80",
    ]


def test_the_baseline_stands_beside_the_model_with_the_difference():
    report = rendered(metrics([[95, 5], [4, 96]], ("a", "b")), BASELINE, COMPARISON)
    _, baseline, *_ = sections(report)
    assert baseline[0].startswith("baseline 92.10 % 95 % interval 90.2")
    assert baseline[1:5] == [
        "TF-IDF of characters 2-5, linear SVM (scikit-learn",
        "1.9.1)",
        "80.00 % of held-out training rows: words 1-2",
        "90.00 % of held-out training rows: characters 2-5",
    ]
    assert baseline[5:7] == [
        "trained and tested in 14 s",
        "model minus baseline +3.40 points",
    ]
    assert baseline[7:10] == [
        "wrong: both 11",
        "wrong: only the model 22",
        "wrong: only the baseline 67",
    ]
    assert baseline[10] == "McNemar's exact test p < 0.0001"


def test_a_model_below_its_baseline_shows_a_negative_difference():
    _, baseline, *_ = sections(rendered(metrics([[50, 50], [50, 50]], ("a", "b")), BASELINE))
    assert baseline[-1] == "model minus baseline -42.10 points"


def test_a_p_value_that_is_not_tiny_is_shown():
    comparison = PairedComparison(1, 2, 3, 4, 0.4321)
    report = rendered(metrics([[9, 1], [1, 9]], ("a", "b")), BASELINE, comparison)
    assert "p = 0.43" in "\n".join(report)


@pytest.mark.parametrize("factor", [1, 100, 10_000])
@pytest.mark.parametrize(
    "names",
    [
        ("only",),
        R8,
        tuple(f"a class with a rather long name {i}" for i in range(8)),
        tuple(f"class {i}" for i in range(12)),
        tuple(f"class {i} of very many classes" for i in range(52)),
        ("世界新聞の見出し" * 4, "体育"),
        ("line\nbreak", "tab\there", "\x1b[31mred"),
    ],
)
def test_no_line_is_wider_than_the_terminal_whatever_the_labels(names, factor):
    report = rendered(scaled(metrics(diagonal(len(names)), names), factor), BASELINE, COMPARISON)
    assert widest(report) <= WIDTH
    assert all(line.isprintable() for line in report)


def test_long_names_are_cut_with_an_ellipsis():
    report = rendered(metrics(diagonal(8), R8))
    assert sections(report)[-1][0] == "true \\ predicted acq crude earn grain intere… money-… ship trade"
    assert sections(report)[-1][6].startswith("money-fx ")


def test_columns_of_the_matrix_line_up():
    lines = rendered(scaled(metrics(diagonal(8), R8), 12))[-9:]
    assert len({cell_len(line) for line in lines}) == 1


def test_many_classes_show_the_worst_and_the_largest_confusions_instead():
    confusion = np.eye(30, dtype=int) * 100
    confusion[3, 4], confusion[7, 8], confusion[29] = 50, 25, 0
    names = tuple(f"c{i}" for i in range(30))
    _, classes, confusions = sections(rendered(metrics(confusion, names)))
    assert classes[0].startswith("worst 10 of 30 classes ")
    assert [row.split()[0] for row in classes[1:5]] == ["c3", "c4", "c7", "c8"]
    assert len(classes) == 11
    assert not any(row.startswith("c29 ") for row in classes)  # it has no rows to be wrong about
    assert confusions == [
        "true predicted rows share of true",
        "c3 c4 50 33.33 %",
        "c7 c8 25 20.00 %",
    ]


def test_many_classes_without_an_error_say_so():
    names = tuple(f"c{i}" for i in range(13))
    assert rendered(metrics(np.eye(13, dtype=int), names))[-1] == "no confusions"


def test_counts_too_long_for_a_matrix_of_many_classes_show_the_largest_confusions():
    names = tuple(f"c{i}" for i in range(12))
    report = rendered(scaled(metrics(diagonal(12), names), 2000))
    assert sections(report)[-1][0] == "true predicted rows share of true"


def test_errors_are_shown_with_verdict_and_text_cut_to_the_terminal():
    lines = render_errors([RowError(1234, "ship", "acq", 0.987, "word " * 40)])
    assert lines[:3] == ["", "most confident errors", "  row 1,234: acq 98.70 %, labelled ship"]
    assert lines[3].startswith("    word word")
    assert all(cell_len(line) <= WIDTH for line in lines)
    assert render_errors([]) == []


def test_calibration_and_coverage_get_a_line_each():
    trust = Trust(1.25, Change(0.04, 0.01), Change(0.3, 0.2), ())
    coverage = RiskCoverage((), 0, 0, (CoverageAt(0.01, 0.5), CoverageAt(0.02, 1)))
    lines = rendered(metrics([[95, 5], [4, 96]], ("a", "b")), calibration=trust, risk_coverage=coverage)
    assert "calibration                 temperature 1.250; without it 4.00 points" in lines
    assert "answered at an error of     50.0% at 1 %, 100.0% at 2 %" in lines
    plain = rendered(metrics([[95, 5], [4, 96]], ("a", "b")), calibration=replace(trust, temperature=1))
    assert "calibration                 none yet: newsdesk calibrate" in plain


def test_columns_are_as_wide_as_their_widest_and_numbers_stand_right():
    rows = [
        {"name": "a-long-name", "rows": 5, "cached": True, "sources": ["hub", "pypi"]},
        {"name": "b", "rows": 12345, "cached": False, "sources": ["hub"]},
    ]
    assert render_columns(rows) == [
        "name           rows  cached  sources",
        "a-long-name       5  yes     hub, pypi",
        "b            12,345  no      hub",
    ]
