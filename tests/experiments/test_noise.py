"""Of points that are equal none is said to be worse in more than 5 % of sweeps; a better one is found."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.experiments.noise import against_best, intervals, optimism
from newsdesk.experiments.results import Answers

DRAWS = 80
TOLERATED = 0.1
"""Of so many draws: what 5 % exceed in one of fifty tests."""


def answers(
    generator: np.random.Generator,
    points: int,
    seeds: int,
    rows: int,
    *,
    gain: float = 0.0,
    luck: float = 0.1,
) -> list[np.ndarray]:
    """Right and wrong answers of points of one accuracy, about 93 %; the last is better by ``gain``.

    Rows differ in difficulty, the same for all points; each training has luck of its own.
    """
    difficulty = generator.normal(0, 1.5, rows)
    shift = generator.normal(0, luck, (points, seeds, 1))
    shift[-1] += gain
    noise = generator.normal(0, 0.3, (points, seeds, rows))
    return list((2.26 + difficulty + shift + noise > 0).astype(float))


def verdicts(values: list[np.ndarray]) -> list[bool]:
    """Which of the points are told from the best one."""
    best = int(np.argmax([point.mean() for point in values]))
    beside = against_best(values, best, shares=True)
    return [against is not None and not against.is_noise for against in beside]


@pytest.mark.parametrize(
    ("points", "seeds", "rows", "luck"),
    [(6, 1, 500, 0.0), (2, 2, 1000, 0.1), (6, 3, 600, 0.1), (5, 3, 300, 0.3)],
)
def test_of_equal_points_none_is_said_to_be_worse(points, seeds, rows, luck):
    generator = np.random.default_rng(1)
    false = [any(verdicts(answers(generator, points, seeds, rows, luck=luck))) for _ in range(DRAWS)]
    assert np.mean(false) <= TOLERATED


def sets(generator, points, seeds, rows, labels, *, gain=0.0, luck=0.1):
    """True labels and those that equal points assign, the last better by ``gain``; later labels are rarer.

    Labels of a text go together, in truth and in difficulty.
    """
    about = generator.normal(0, 1, (rows, 1))
    shares = np.minimum(0.4, 0.5 / np.arange(1, labels + 1)) * np.exp(0.5 * about - 0.125)
    truth = generator.random((rows, labels)) < shares
    shift = generator.normal(0, luck, (points, seeds, 1, 1)) + generator.normal(
        0, luck, (points, seeds, 1, labels)
    )
    noise = generator.normal(0, 0.5, (points, seeds, rows, labels))
    logits = np.where(truth, 1.6, -3.2) + generator.normal(0, 1.2, (rows, labels)) + shift + noise
    logits[-1] += np.where(truth, gain, -gain)
    return truth, logits.astype(np.float32)


def verdicts_on_sets(truth, logits, metric):
    """Which of the points are told from the best one by a metric."""
    values = [Answers(of_point, truth, ()).values(metric) for of_point in logits]
    best = int(np.argmax([point.mean() for point in values]))
    beside = against_best(values, best, shares=metric != "loss")
    return [against is not None and not against.is_noise for against in beside]


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
@pytest.mark.parametrize(
    ("points", "seeds", "rows", "labels", "luck"), [(6, 1, 200, 6, 0.0), (4, 2, 150, 12, 0.2)]
)
def test_of_equal_points_none_is_said_to_be_worse_by_several_labels(
    metric, points, seeds, rows, labels, luck
):
    generator = np.random.default_rng(1)
    drawn = (sets(generator, points, seeds, rows, labels, luck=luck) for _ in range(DRAWS))
    assert np.mean([any(verdicts_on_sets(*each, metric)) for each in drawn]) <= TOLERATED


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "loss"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_point_that_is_better_by_several_labels_is_told_from_all_others(metric, seeds):
    truth, logits = sets(np.random.default_rng(2), 4, seeds, 1000, 6, gain=0.7, luck=0.05)
    assert verdicts_on_sets(truth, logits, metric) == [True, True, True, False]


@pytest.mark.parametrize(("metric", "average"), [("accuracy", "micro"), ("macro_f1", "macro")])
def test_a_text_left_out_counts_for_what_its_labels_do_to_the_f1(metric, average):
    sklearn = pytest.importorskip("sklearn.metrics")
    truth, logits = sets(np.random.default_rng(8), 1, 1, 30, 4)
    (values,) = Answers(logits[0], truth, ()).values(metric)

    def f1(rows):
        occurs = (truth[rows] | (logits[0, 0, rows] > 0)).any(axis=0)
        pair = (truth[rows][:, occurs], logits[0, 0, rows][:, occurs] > 0)
        return sklearn.f1_score(*pair, average=average, zero_division=0)

    every = np.arange(30)
    wanted = [30 * f1(every) - 29 * f1(np.delete(every, row)) for row in every]
    np.testing.assert_allclose(values, wanted)


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_point_that_is_better_is_told_from_all_others(seeds):
    found = verdicts(answers(np.random.default_rng(2), 5, seeds, 2000, gain=1.0, luck=0.05))
    assert found == [True, True, True, True, False]


def test_an_interval_holds_what_other_rows_and_other_seeds_would_give():
    generator = np.random.default_rng(3)
    truth = np.mean([point.mean() for _ in range(200) for point in answers(generator, 4, 3, 500)])
    covered = []
    for _ in range(DRAWS):
        found = intervals(answers(generator, 4, 3, 500), shares=True)
        covered += [low <= truth <= high for low, high in found]
    assert 0.92 <= np.mean(covered) <= 0.99


def test_an_interval_has_a_width_where_every_answer_is_right():
    ((low, high),) = intervals([np.ones((3, 50))], shares=True)
    assert low < 0.95
    assert high == 1.0


def test_the_luck_of_the_best_of_equal_points_is_about_what_it_gains():
    generator = np.random.default_rng(4)
    estimated, real = [], []
    for _ in range(40):
        values = answers(generator, 8, 3, 400)
        means = [point.mean() for point in values]
        best = int(np.argmax(means))
        estimated.append(optimism(values, best))
        real.append(means[best] - np.mean(means))
    assert np.mean(estimated) == pytest.approx(np.mean(real), rel=0.4)


def test_a_single_point_is_neither_lucky_nor_compared():
    point = answers(np.random.default_rng(5), 1, 3, 200)
    assert optimism(point, 0) == 0.0
    assert against_best(point, 0, shares=True) == [None]


def test_points_that_answer_alike_do_not_differ():
    point = answers(np.random.default_rng(6), 1, 3, 200)[0]
    (_, against) = against_best([point, point], 0, shares=True)
    assert (against.difference, against.p_value) == (0.0, 1.0)
    assert against.interval[0] < 0 < against.interval[1]


def test_losses_are_compared_without_bounds():
    generator = np.random.default_rng(7)
    row = generator.exponential(1.0, 400)
    near, far = (-(row + shift + generator.normal(0, 0.1, (3, 400))) for shift in (0.0, 0.5))
    (_, against) = against_best([near, far], 0, shares=False)
    assert not against.is_noise
    assert against.interval[0] < 0.5 < against.interval[1]
