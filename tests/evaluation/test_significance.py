from __future__ import annotations

import time
from dataclasses import asdict

import numpy as np
import pytest

from newsdesk.evaluation.significance import (
    compare_paired,
    holm,
    label_set_differences,
    mcnemar_power,
    paired_difference_interval,
    rows_needed,
)


def pair(both_right=0, both_wrong=0, only_model_wrong=0, only_baseline_wrong=0):
    model = [1] * both_right + [0] * both_wrong + [0] * only_model_wrong + [1] * only_baseline_wrong
    baseline = [1] * both_right + [0] * both_wrong + [1] * only_model_wrong + [0] * only_baseline_wrong
    return compare_paired(np.ones(len(model), dtype=np.int64), np.array(model), np.array(baseline))


def test_rows_are_counted_by_who_is_wrong():
    comparison = pair(both_right=5, both_wrong=4, only_model_wrong=3, only_baseline_wrong=2)
    assert asdict(comparison) == {
        "both_right": 5,
        "both_wrong": 4,
        "only_model_wrong": 3,
        "only_baseline_wrong": 2,
        "p_value": pytest.approx(1.0),
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


MEASURED = [(970, 0, 10, 20), (0, 0, 30, 70), (20, 5, 10, 80), (990, 0, 0, 10), (0, 2, 0, 8)]


@pytest.mark.parametrize("counts", MEASURED)
def test_so_many_rows_find_the_difference_four_times_in_five_and_fewer_do_not(counts):
    measured = pair(*counts)
    rows, total = rows_needed(measured), sum(counts)
    discordant, share = (counts[2] + counts[3]) / total, counts[3] / (counts[2] + counts[3])
    powers = [mcnemar_power(rows + more, discordant, share) for more in range(-1, 40)]
    assert powers[0] < 0.8
    assert min(powers[1:]) >= 0.8
    assert rows_needed(measured, level=0.025) > rows
    draws = 2000
    drawn = np.random.default_rng(5).multinomial(rows, np.array(counts) / total, size=draws)
    kinds, times = np.unique(drawn[:, 2:], axis=0, return_counts=True)
    found = sum(
        number * (pair(0, 0, model, baseline).p_value < 0.05)
        for (model, baseline), number in zip(kinds.tolist(), times.tolist(), strict=True)
    )
    assert found / draws == pytest.approx(powers[1], abs=3.5 * (0.16 / draws) ** 0.5)


def test_the_power_is_that_of_scipys_tails():
    stats = pytest.importorskip("scipy.stats")
    for rows, discordant, share in ((50, 0.5, 0.8), (2000, 0.03, 2 / 3), (40, 0.9, 1.0), (60, 1.0, 0.7)):
        expected = 0.0
        for count in range(rows + 1):
            limits = np.arange(count // 2 + 1)
            rejected = limits[2 * stats.binom.cdf(limits, count, 0.5) < 0.05]
            if len(rejected):
                tails = (stats.binom.cdf(rejected[-1], count, side) for side in (share, 1 - share))
                expected += stats.binom.pmf(count, rows, discordant) * sum(tails)
        assert mcnemar_power(rows, discordant, share) == pytest.approx(expected)


def test_a_tiny_difference_needs_millions_of_rows_and_no_time():
    rows = rows_needed(pair(99_000, 900, 52, 48))
    assert mcnemar_power(rows - 1, 0.001, 0.52) < 0.8 <= mcnemar_power(rows, 0.001, 0.52)


def test_no_number_of_rows_tells_apart_what_errs_equally_often():
    assert rows_needed(pair(90, 0, 5, 5)) is None


@pytest.mark.parametrize("rows", [1, 24, 765, 5000])
def test_without_a_difference_the_interval_is_as_wide_as_the_rows_are_few(rows):
    reach = 1.959964**2 / (rows + 1.959964**2)
    assert paired_difference_interval(0, 0, rows) == pytest.approx((-reach, reach), abs=1e-6)


def test_an_interval_holds_what_was_found_and_turns_with_the_models():
    low, high = paired_difference_interval(9, 2, 100)
    assert low < 0.07 < high
    assert paired_difference_interval(2, 9, 100) == pytest.approx((-high, -low))
    assert paired_difference_interval(5, 0, 5)[1] == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="3 and 3 of 5 rows"):
        paired_difference_interval(3, 3, 5)


def test_the_interval_is_that_of_the_score_test():
    """At its ends the statistic is z: (found - d) / sqrt of the variance under d, the shares fitted to d."""
    first, second, rows = 12, 5, 200
    for end in paired_difference_interval(first, second, rows):
        shares = np.linspace(max(0.0, -end), (1 - end) / 2, 200_001)[1:-1]  # only the second right
        likelihood = first * np.log(shares + end) + second * np.log(shares)
        likelihood += (rows - first - second) * np.log(1 - 2 * shares - end)
        best = shares[likelihood.argmax()]
        z = (first - second - rows * end) / np.sqrt(rows * (2 * best + end * (1 - end)))
        assert abs(z) == pytest.approx(1.95996, abs=1e-2)


@pytest.mark.parametrize(("lost", "gained"), [(0.005, 0.0), (0.01, 0.005), (0.02, 0.02)])
def test_the_interval_holds_the_true_difference_in_19_draws_of_20(lost, gained):
    generator, rows = np.random.default_rng(7), 1000
    draws = generator.multinomial(rows, [lost, gained, 1 - lost - gained], size=2000)[:, :2]
    intervals = {pair: paired_difference_interval(*pair, rows) for pair in {tuple(d) for d in draws.tolist()}}
    held = [intervals[pair][0] <= lost - gained <= intervals[pair][1] for pair in map(tuple, draws.tolist())]
    assert 0.935 <= np.mean(held) <= 0.985


def test_nearly_equal_runs_are_told_at_once_how_many_rows_it_would_take():
    comparison = pair(3000, 299, 251, 250)
    begun = time.perf_counter()
    rows = rows_needed(comparison)
    assert time.perf_counter() - begun < 1
    assert rows is not None
    assert 0.8 <= mcnemar_power(rows, 501 / 3800, 251 / 501) < 0.81


def label_sets(rows, generator, *, better=0.0):
    """True labels of texts, and those of two classifiers whose errors go together in a text."""
    labels = generator.random((rows, 5)) < np.array([0.4, 0.3, 0.2, 0.1, 0.05])
    hard = generator.random((rows, 1))
    first, other = (labels ^ (generator.random(labels.shape) < share * hard) for share in (0.3, 0.3 - better))
    return labels, first, other


def test_a_difference_of_label_sets_is_that_of_scikit_learn():
    f1_score = pytest.importorskip("sklearn.metrics").f1_score
    labels, first, other = label_sets(300, np.random.default_rng(0), better=0.1)
    micro, macro, _p_value = label_set_differences(labels, first, other)
    for found, average in ((micro, "micro"), (macro, "macro")):
        assert found.first == pytest.approx(f1_score(labels, first, average=average))
        assert found.other == pytest.approx(f1_score(labels, other, average=average))
        assert found.interval[0] < found.difference < found.interval[1]


def test_the_interval_of_a_difference_of_label_sets_covers_and_rarely_alarms():
    generator = np.random.default_rng(1)
    found = [label_set_differences(*label_sets(200, generator)) for _draw in range(150)]
    for figure in (0, 1):
        inside = sum(one[figure].interval[0] <= 0 <= one[figure].interval[1] for one in found)
        assert 135 <= inside <= 149
    assert sum(p_value < 0.05 for _micro, _macro, p_value in found) <= 15


def test_a_real_difference_of_label_sets_is_found_and_none_between_equal_ones():
    labels, first, other = label_sets(2_000, np.random.default_rng(2), better=0.1)
    micro, _macro, p_value = label_set_differences(labels, first, other)
    assert micro.interval[0] > 0
    assert p_value == pytest.approx(2 / 1001)
    same, _macro, p_value = label_set_differences(labels, first, first)
    assert (same.interval, p_value) == ((0.0, 0.0), 1.0)
