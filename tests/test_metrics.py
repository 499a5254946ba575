from __future__ import annotations

import json
from itertools import pairwise
from math import log

import numpy as np
import pytest

from newsdesk.metrics import (
    SMALLEST_PROBABILITY,
    UNITS,
    Metrics,
    evaluate_probabilities,
    expected_calibration_error,
    reliability,
    wilson_interval,
)
from newsdesk.stored import WrongContentError, from_content, to_content

NAMES = ("World", "Sports", "Business", "Sci/Tech")


def one_hot(ids, classes):
    return np.eye(classes)[np.asarray(ids)]


def random_case(seed, rows=200, classes=4, true_classes=None):
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(classes, 0.4), rows)
    return probabilities, generator.integers(0, true_classes or classes, rows)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [  # Newcombe (1998), Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_the_wilson_interval_is_the_published_one(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_the_wilson_interval_stays_within_zero_and_one_and_holds_the_share():
    for total in (1, 2, 7, 100, 3801):
        for correct in {0, 1, total // 3, total - 1, total}:
            low, high = wilson_interval(correct, total)
            assert 0 <= low <= correct / total <= high <= 1


def test_more_confidence_means_a_wider_interval():
    narrow, wide = wilson_interval(90, 100, 0.9), wilson_interval(90, 100, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("correct", "total", "confidence"), [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0), (1, 2, 0.0)]
)
def test_what_is_no_proportion_has_no_interval(correct, total, confidence):
    with pytest.raises(ValueError, match=r"proportion|confidence"):
        wilson_interval(correct, total, confidence)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("classes", "true_classes"), [(2, 2), (4, 4), (9, 5), (60, 60)])
def test_the_figures_are_scikit_learns(seed, classes, true_classes):
    sklearn = pytest.importorskip("sklearn.metrics")
    probabilities, labels = random_case(seed, rows=80, classes=classes, true_classes=true_classes)
    predicted = probabilities.argmax(axis=1)
    metrics = evaluate_probabilities(probabilities, labels, [f"class {i}" for i in range(classes)])
    ids = range(classes)
    precision, recall, f1, support = sklearn.precision_recall_fscore_support(
        labels, predicted, labels=ids, zero_division=0.0
    )
    assert [entry.precision for entry in metrics.per_class] == pytest.approx(precision)
    assert [entry.recall for entry in metrics.per_class] == pytest.approx(recall)
    assert [entry.f1 for entry in metrics.per_class] == pytest.approx(f1)
    assert [entry.support for entry in metrics.per_class] == support.tolist()
    assert metrics.macro_f1 == pytest.approx(sklearn.f1_score(labels, predicted, average="macro"))
    assert metrics.accuracy == pytest.approx(sklearn.accuracy_score(labels, predicted))
    assert np.array_equal(metrics.confusion, sklearn.confusion_matrix(labels, predicted, labels=ids))
    assert metrics.negative_log_likelihood == pytest.approx(
        sklearn.log_loss(labels, probabilities, labels=ids)
    )


def test_the_brier_score_sums_over_classes():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0]])
    metrics = evaluate_probabilities(probabilities, np.array([0, 1]), ["a", "b", "c"])
    # (0.3² + 0.2² + 0.1²) = 0.14 and (0 + 1 + 1) = 2
    assert metrics.brier_score == pytest.approx((0.14 + 2) / 2)


def test_the_negative_log_likelihood_is_in_nats_and_finite_for_a_certain_error():
    metrics = evaluate_probabilities(np.array([[0.25, 0.75], [1.0, 0.0]]), np.array([0, 1]), ["a", "b"])
    assert metrics.negative_log_likelihood == pytest.approx((log(4) - log(SMALLEST_PROBABILITY)) / 2)


def test_the_calibration_error_is_the_gap_in_bins_of_equal_mass():
    confidence = np.array([0.6, 0.9, 0.7, 0.8])
    correct = np.array([True, False, False, True])
    # two bins of two rows: (0.6, 0.7) half right, (0.8, 0.9) half right
    expected = (2 * abs(0.5 - 0.65) + 2 * abs(0.5 - 0.85)) / 4
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx(expected)


def test_the_calibration_error_matches_a_plain_split_into_fifteen_bins():
    generator = np.random.default_rng(3)
    for rows in (15, 16, 100, 1000):
        confidence = generator.permutation(np.linspace(0.3, 0.99, rows))
        correct = generator.random(rows) < confidence
        order = np.argsort(confidence)
        # the bins of the definition: equally many rows, in order of confidence
        edges = [len(order) * i // 15 for i in range(16)]
        bins = [order[a:b] for a, b in pairwise(edges)]
        plain = sum(len(b) * abs(correct[b].mean() - confidence[b].mean()) for b in bins) / rows
        assert expected_calibration_error(confidence, correct) == pytest.approx(plain)


def test_the_calibration_error_does_not_depend_on_the_order_of_equally_confident_rows():
    confidence = np.full(90, 0.9)
    correct = np.array([True] * 81 + [False] * 9)
    assert expected_calibration_error(confidence, correct) == pytest.approx(0)
    assert expected_calibration_error(confidence, correct[::-1]) == pytest.approx(0)


def test_reliability_bins_are_those_of_the_calibration_error():
    generator = np.random.default_rng(2)
    confidence = generator.random(1000)
    correct = generator.random(1000) < confidence**2
    bins = reliability(confidence, correct)
    assert sum(entry.rows for entry in bins) == 1000
    assert len(bins) == 15
    gaps = [entry.rows * abs(entry.accuracy - entry.mean_confidence) for entry in bins]
    assert sum(gaps) / 1000 == pytest.approx(expected_calibration_error(confidence, correct))
    assert all(one.mean_confidence < other.mean_confidence for one, other in pairwise(bins))
    first = bins[0]
    assert first.accuracy_interval == wilson_interval(round(first.accuracy * first.rows), first.rows)


def test_calibration_without_rows_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        expected_calibration_error(np.array([]), np.array([], dtype=bool))


def test_the_most_confident_errors_come_first_and_equals_in_row_order():
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.9, 0.1], [0.99, 0.01]])
    metrics = evaluate_probabilities(probabilities, np.array([1, 1, 0, 1, 0]), ["a", "b"])
    assert metrics.most_confident_errors == (1, 3, 2, 0)


def test_at_most_twenty_errors_are_kept():
    metrics = evaluate_probabilities(one_hot([0] * 50, 2), np.ones(50, dtype=np.int64), ["a", "b"])
    assert metrics.most_confident_errors == tuple(range(20))


def test_a_perfect_classifier_has_perfect_figures():
    ids = np.array([0, 1, 2, 3, 3, 2])
    metrics = evaluate_probabilities(one_hot(ids, 4), ids, NAMES)
    assert (metrics.accuracy, metrics.macro_f1, metrics.correct) == (1.0, 1.0, 6)
    assert metrics.accuracy_interval[1] == 1.0
    assert metrics.negative_log_likelihood == 0.0
    assert metrics.brier_score == metrics.expected_calibration_error == 0.0
    assert metrics.most_confident_errors == ()


def test_a_classifier_that_is_always_wrong_has_the_worst_figures():
    ids = np.array([0, 1, 0, 1])
    metrics = evaluate_probabilities(one_hot(1 - ids, 2), ids, ["a", "b"])
    assert (metrics.accuracy, metrics.macro_f1, metrics.accuracy_interval[0]) == (0.0, 0.0, 0.0)
    assert metrics.brier_score == 2.0
    assert metrics.expected_calibration_error == 1.0
    assert metrics.confusion == ((0, 2), (2, 0))


def test_one_row_and_one_class_are_enough():
    metrics = evaluate_probabilities(np.ones((1, 1)), np.array([0]), ["only"])
    assert (metrics.rows, metrics.accuracy, metrics.macro_f1) == (1, 1.0, 1.0)
    assert 0.2 < metrics.accuracy_interval[0] < 0.21


def test_classes_that_neither_occur_nor_are_predicted_are_left_out_of_macro_f1():
    metrics = evaluate_probabilities(one_hot([0, 1], 3), np.array([0, 1]), ["a", "b", "never"])
    assert metrics.macro_f1 == 1.0
    assert (metrics.per_class[2].f1, metrics.per_class[2].support) == (0.0, 0)


def test_a_class_that_is_predicted_but_never_true_counts_as_zero_in_macro_f1():
    metrics = evaluate_probabilities(one_hot([0, 1], 2), np.array([0, 0]), ["a", "b"])
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 0) / 2)


def test_of_equally_probable_classes_the_first_is_the_prediction():
    metrics = evaluate_probabilities(np.full((1, 2), 0.5), np.array([0]), ["a", "b"])
    assert metrics.accuracy == 1.0


def test_float32_and_float16_probabilities_are_taken():
    probabilities, labels = random_case(0)
    exact = evaluate_probabilities(probabilities, labels, NAMES)
    for kind, tolerance in ((np.float32, 1e-6), (np.float16, 2e-3)):
        rough = evaluate_probabilities(probabilities.astype(kind), labels, NAMES)
        assert rough.brier_score == pytest.approx(exact.brier_score, rel=tolerance)


@pytest.mark.parametrize(
    ("probabilities", "labels", "complaint"),
    [
        ([[0.5, 0.4]], [0], "row 0 is not a probability distribution"),
        ([[0.5, 0.5], [1.5, -0.5]], [0, 0], "row 1 is not a probability distribution"),
        ([[np.nan, 1.0]], [0], "row 0 is not a probability distribution"),
        ([[0.2, 0.3, 0.5]], [0], "for 2 label names"),
        ([0.5, 0.5], [0, 1], "for 2 label names"),
        ([[0.5, 0.5]], [0, 1], "for 1 rows"),
        ([[0.5, 0.5]], [2], "class ids 2 to 2 for 2 classes"),
        ([[0.5, 0.5]], [-1], "class ids -1 to -1"),
        ([[0.5, 0.5]], [0.0], "labels are class ids, not float64"),
        (np.empty((0, 2)), np.empty(0, dtype=np.int64), "at least one row"),
    ],
)
def test_what_does_not_line_up_is_refused(probabilities, labels, complaint):
    with pytest.raises(ValueError, match=complaint):
        evaluate_probabilities(np.array(probabilities), np.array(labels), ["a", "b"])


def test_metrics_survive_json_and_name_the_unit_of_every_figure():
    probabilities, labels = random_case(1, rows=30)
    metrics = evaluate_probabilities(probabilities, labels, NAMES)
    plain = json.loads(json.dumps(to_content(metrics)))
    assert from_content(Metrics, plain) == metrics
    assert plain["accuracy_interval"] == list(metrics.accuracy_interval)
    assert plain["units"] == UNITS
    assert set(UNITS) == set(plain) - {"units", "rows", "label_names"}


def test_metrics_with_an_entry_missing_are_refused():
    probabilities, labels = random_case(1, rows=30)
    plain = to_content(evaluate_probabilities(probabilities, labels, NAMES))
    del plain["brier_score"]
    with pytest.raises(WrongContentError, match="no brier_score"):
        from_content(Metrics, plain)
