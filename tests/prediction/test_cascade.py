"""The test behind a cascade's promise: valid whatever rows are lost and gained, and worth its rows."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from newsdesk.errors import UserError
from newsdesk.label_set_metrics import Counts
from newsdesk.prediction.cascade import (
    CASCADE_THRESHOLDS,
    cascade_rule,
    keeps_micro_f1,
    label_cascade_rule,
    least_loss,
    loses_no_more,
)
from newsdesk.runs.calibration import HeldOutRows
from newsdesk.runs.label_decisions import LabelDecisions


@pytest.mark.parametrize("rows", [300, 1000, 5000, 30_000])
@pytest.mark.parametrize("loss", [0.002, 0.02])
def test_where_more_is_lost_it_is_rarely_said_that_it_is_not(rows, loss):
    generator = np.random.default_rng(0)
    for gained in (0.0, 0.001, 0.01, 0.1):  # at the very bound: just so much more is lost
        drawn = generator.multinomial(rows, [loss + gained, gained, 1 - loss - 2 * gained], 4000)
        pairs, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
        said = [loses_no_more(int(lost), int(won), rows, loss) for lost, won in pairs]
        assert (times * said).sum() / 4000 <= 0.05 + 0.01


def test_gains_count_and_losses_do():
    assert loses_no_more(0, 0, 2000, 0.002)
    assert not loses_no_more(2, 0, 2000, 0.002)
    assert loses_no_more(2, 8, 2000, 0.002)
    assert not loses_no_more(0, 0, 1000, 0.002)
    assert loses_no_more(100, 100, 30_000, 0.002)  # a test of the lost rows alone would say no


@pytest.mark.parametrize("rows", [1, 20, 274, 1000, 2000, 30_000])
def test_the_least_loss_that_is_named_can_be_promised_and_a_smaller_one_cannot(rows):
    least = least_loss(rows)
    assert loses_no_more(0, 0, rows, least) or least == 1
    assert not loses_no_more(0, 0, rows, least - 1e-4)


def rows_of(linear_right, generator, count=4000, classes=4):
    """Rows whose encoder is right in 95 of 100; the linear model as often as this says."""
    labels = generator.integers(0, classes, count)
    sure = 1 - 0.7 * generator.random(count) ** 2
    right = generator.random(count) < linear_right(sure)
    given = np.where(right, labels, (labels + 1) % classes)
    scores = np.full((count, classes), 0.0, dtype=np.float32)
    scores[np.arange(count), given] = np.log(sure / ((1 - sure) / (classes - 1)))
    logits = np.eye(classes, dtype=np.float32)[
        np.where(generator.random(count) < 0.95, labels, (labels + 2) % classes)
    ]
    return HeldOutRows(5 * logits, labels, "simulated", linear=scores)


def test_the_more_may_be_lost_the_more_the_linear_model_answers():
    rows = rows_of(lambda sure: sure, np.random.default_rng(0))
    shares = [cascade_rule(rows, loss).share for loss in (0.002, 0.01, 0.05)]
    assert all(less < more for less, more in pairwise(shares))
    estimated = cascade_rule(rows, 0.002, estimated=True)
    assert estimated.share > shares[0]
    assert estimated.confidence is None
    assert "not promised" in estimated.describe()


def test_thresholds_fall_and_a_row_is_answered_from_its_confidence_on():
    assert all(high > low for high, low in pairwise(CASCADE_THRESHOLDS))
    rows = rows_of(lambda sure: sure, np.random.default_rng(0))
    rule = cascade_rule(rows, 0.01)
    answered = rule.answers(rows.linear)
    assert answered.mean() == rule.share
    mixed = rule.mixed(rows.logits, rows.linear, 2.0)
    np.testing.assert_array_equal(mixed[~answered], rows.logits[~answered])
    np.testing.assert_allclose(mixed[answered] / 2.0, rows.linear[answered] / rule.temperature, rtol=1e-5)


def test_rows_that_say_nothing_do_not_count():
    rows = rows_of(lambda sure: sure, np.random.default_rng(0))
    halves = rows.halves()
    readable = np.zeros(4000, dtype=np.bool_)
    readable[:2000] = True
    silent = HeldOutRows(rows.logits, rows.labels, "", readable=readable, linear=rows.linear)
    assert cascade_rule(silent, 0.01).rows == 2000
    assert [len(half.labels) for half in halves] == [2000, 2000]
    assert halves[0].linear.shape == (2000, 4)


def test_rows_too_few_and_a_linear_model_that_is_never_right_are_told_apart():
    generator = np.random.default_rng(0)
    with pytest.raises(UserError, match=r"cannot promise to lose at most a share of 0\.002") as few:
        cascade_rule(rows_of(lambda sure: sure, generator, count=200), 0.002)
    assert f"--loss {least_loss(200):g}" in str(few.value)
    with pytest.raises(UserError, match="nowhere sure enough"):
        cascade_rule(rows_of(lambda sure: 0 * sure + 0.1, generator), 0.01)


KINDS = np.array(  # hits, labels assigned and true labels by the encoder; hits and assigned by the cascade
    [(1, 1, 1, 1, 1), (1, 1, 1, 0, 0), (1, 1, 1, 1, 2), (1, 1, 1, 0, 1), (0, 1, 1, 1, 1), (2, 2, 3, 1, 1)],
    dtype=np.float64,
)


def counts_of(hits, assigned, true, cascade_hits, cascade_assigned):
    """Counts of the encoder and of the cascade."""
    return Counts(hits, assigned, true), Counts(cascade_hits, cascade_assigned, true)


@pytest.mark.parametrize("rows", [500, 3000])
@pytest.mark.parametrize("shares", [(1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (0, 0, 1, 0, 0), (2, 1, 3, 2, 1)])
def test_where_more_micro_f1_is_lost_it_is_rarely_said_that_it_is_not(rows, shares):
    generator, loss = np.random.default_rng(0), 0.03
    wrong = np.array([0, *shares], dtype=np.float64)
    wrong /= wrong.sum()
    for share in np.linspace(0, 1, 2001):  # the first at which more is lost
        population = (1 - share) * np.eye(6)[0] + share * wrong
        kept, given = counts_of(*(population @ KINDS)[:, None, None])
        if kept.micro_f1()[0] - given.micro_f1()[0] > loss:
            break
    least_f1 = float(kept.micro_f1()[0]) - 0.02
    drawn = (generator.choice(6, rows, p=population) for _ in range(400))
    said = [keeps_micro_f1(*counts_of(*KINDS[kinds].T), loss, 2, least_f1) for kinds in drawn]
    assert np.mean(said) <= 0.05
    assert keeps_micro_f1(*counts_of(*KINDS[np.zeros(rows, dtype=np.int64)].T), loss, 2, least_f1)


def sets_of(rows, linear, seed, labels=6):
    """Rows with up to four labels that go together; the linear model knows as much of them as ``linear``."""
    generator = np.random.default_rng(seed)
    truth = generator.random((rows, labels)) < 0.35 / np.arange(1, labels + 1)
    truth[:, 2] |= truth[:, 1] & (generator.random(rows) < 0.7)
    difficulty = generator.gamma(2.0, 0.5, (rows, 1))  # of a text, in all its labels and for both models

    def logits(signal):
        noise = generator.normal(size=(rows, labels)) * difficulty
        return (signal * (truth - 0.5) + noise - 1).astype(np.float32)

    scores, encoder = logits(linear), logits(4.0)
    # Of every twelfth text the linear model is surest, and often wrong.
    sure = generator.random(rows) < 1 / 12
    scores[sure] = 6 * (np.roll(truth[sure], 1, axis=1) - 0.5)
    return HeldOutRows(encoder, truth, "simulated", linear=scores)


def lost_by(rule, decisions, rows):
    """The micro F1 that a cascade loses on these rows."""
    alone = decisions.assigned(decisions.probabilities(rows.logits))
    mixed = decisions.assigned(decisions.probabilities(rule.mixed(rows.logits, rows.linear, 1.0)))
    return float(Counts.of(alone, rows.labels).micro_f1() - Counts.of(mixed, rows.labels).micro_f1())


@pytest.mark.parametrize(("linear", "loss"), [(4.0, 0.05), (3.0, 0.1)])
def test_a_promise_of_micro_f1_is_kept_in_95_of_100_draws(linear, loss):
    population, broken, answered = sets_of(8000, linear, seed=1000), 0, []
    for seed in range(100):
        rows = sets_of(400, linear, seed)
        decisions = LabelDecisions.fit(rows.logits, rows.labels)
        try:
            rule = label_cascade_rule(rows, decisions, loss)
        except UserError:
            continue
        answered.append(rule.answers(population.linear).mean())
        broken += lost_by(rule, decisions, population) > loss
    assert broken <= 5
    assert len(answered) > 20


def test_of_several_labels_sure_texts_get_the_labels_of_the_linear_model_and_others_the_encoders():
    rows = sets_of(4000, 4.0, seed=5)
    decisions = LabelDecisions.fit(rows.logits, rows.labels)
    rule = label_cascade_rule(rows, decisions, 0.05)
    answered, mixed = rule.answers(rows.linear), rule.mixed(rows.logits, rows.linear, 1.0)
    assert 0.1 < answered.mean() < 1
    np.testing.assert_array_equal(mixed[~answered], rows.logits[~answered])
    np.testing.assert_allclose(
        decisions.probabilities(mixed[answered]), rule.own.probabilities(rows.linear[answered]), atol=1e-5
    )
    assert decisions.assigned(decisions.probabilities(mixed))[answered].sum(axis=1).max() <= rule.most
    assert (
        "at most 5 points of micro F1 are lost to the encoder alone, with 95 % confidence" in rule.describe()
    )
    less = label_cascade_rule(rows, decisions, 0.02)
    assert less.share < rule.share < label_cascade_rule(rows, decisions, 0.05, estimated=True).share
    with pytest.raises(UserError, match="ask for --loss") as few:
        label_cascade_rule(rows.select(np.arange(400)), decisions, 0.002)
    with pytest.raises(UserError, match="0 calibration rows"):
        label_cascade_rule(replace(rows, readable=np.zeros(4000, dtype=np.bool_)), decisions, 0.05)
    least = float(str(few.value).split("ask for --loss ")[1].split(",")[0])
    assert label_cascade_rule(rows.select(np.arange(400)), decisions, least, estimated=True).loss == least
