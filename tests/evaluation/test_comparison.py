from __future__ import annotations

import numpy as np
import pytest

from newsdesk.evaluation.comparison import compare_paired, holm, rows_needed


def pair(both_right=0, both_wrong=0, only_model_wrong=0, only_baseline_wrong=0):
    model = [1] * both_right + [0] * both_wrong + [0] * only_model_wrong + [1] * only_baseline_wrong
    baseline = [1] * both_right + [0] * both_wrong + [1] * only_model_wrong + [0] * only_baseline_wrong
    return compare_paired(np.ones(len(model), dtype=np.int64), np.array(model), np.array(baseline))


def test_rows_are_counted_by_who_is_wrong():
    comparison = pair(both_right=5, both_wrong=4, only_model_wrong=3, only_baseline_wrong=2)
    assert comparison.to_dict() == {
        "both_right": 5,
        "both_wrong": 4,
        "only_model_wrong": 3,
        "only_baseline_wrong": 2,
        "p_value": 1.0,
    }


@pytest.mark.parametrize(
    ("first", "second", "p_value"),
    [(0, 0, 1.0), (3, 3, 1.0), (0, 5, 2 / 32), (1, 5, 2 * (1 + 6) / 64), (5, 1, 2 * (1 + 6) / 64)],
)
def test_the_p_value_is_that_of_the_exact_two_sided_test(first, second, p_value):
    assert pair(10, 10, first, second).p_value == pytest.approx(p_value)


def test_the_p_value_is_scipys_for_many_rows():
    stats = pytest.importorskip("scipy.stats")
    for first, second in ((40, 70), (101, 48), (900, 1000), (0, 3000)):
        expected = stats.binomtest(first, first + second).pvalue
        assert pair(1, 1, first, second).p_value == pytest.approx(expected)


def test_two_wrong_answers_need_not_agree_to_count_as_both_wrong():
    comparison = compare_paired(np.array([0]), np.array([1]), np.array([2]))
    assert (comparison.both_wrong, comparison.both_right) == (1, 0)


def test_predictions_on_other_rows_are_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        compare_paired(np.array([0, 1]), np.array([0, 1]), np.array([0]))


def test_p_values_of_several_tests_are_adjusted_by_holms_steps():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.9, 0.8]) == (1.0, 1.0)
    assert holm([0.02]) == (0.02,)
    assert holm([]) == ()


def test_so_many_rows_find_the_difference_four_times_in_five():
    measured = pair(900, 70, only_model_wrong=10, only_baseline_wrong=20)
    rows = rows_needed(measured)
    assert rows == 2353  # Connor (1987): (1.96 sqrt(0.03) + 0.8416 sqrt(0.03 - 0.01 ** 2)) ** 2 / 0.01 ** 2
    drawn = np.random.default_rng(5).multinomial(rows, [0.01, 0.02, 0.97], size=400)
    found = [pair(rest, 0, model, baseline).p_value < 0.05 for model, baseline, rest in drawn.tolist()]
    assert 0.73 < np.mean(found) < 0.87
    assert rows_needed(measured, level=0.025) > rows


def test_no_number_of_rows_tells_apart_what_errs_equally_often():
    assert rows_needed(pair(90, 0, 5, 5)) is None
