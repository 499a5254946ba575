"""Promises about assigned labels: kept over draws of texts whose labels and errors go together."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from newsdesk.errors import UserError
from newsdesk.prediction.abstention import binomial_tail
from newsdesk.prediction.label_promises import (
    counts_at_thresholds,
    label_rule,
    most_labels,
    promised_label_threshold,
    ratio_p_value,
    sure_probabilities,
)
from newsdesk.runs.calibration import HeldOutRows
from newsdesk.runs.label_decisions import LabelDecisions
from newsdesk.runs.off_topic import OffTopicScore

DRAWS = 100
MOST_BROKEN = 9  # of 100 draws of which 5 may be: 2 standard deviations


@cache
def population(correlated):
    """Logits, labels and distances from the training topics of 20,000 texts; far ones are right more often.

    In a text the errors of all labels go together, and every fifth label is the shadow of another one.
    """
    generator = np.random.default_rng(3)
    shares = np.array([0.35, 0.2, 0.1, 0.05, 0.05, 0.02, 0.02, 0.01, 0.01, 0.005])
    distances = generator.random((20_000, 1))
    true = generator.normal(np.log(shares / (1 - shares)) * 2.2, 4, (20_000, len(shares)))
    labels = np.hstack([true > 0, true[:, :2] > 1])
    error = (1.2 - distances) * (
        correlated * generator.normal(size=(20_000, 1)) + generator.normal(size=true.shape)
    )
    logits = 2 * (true + error)
    logits = np.hstack([logits, logits[:, :2] - 2])
    return logits.astype(np.float32), labels, distances[:, 0].astype(np.float32)


def draw(correlated, rows, seed):
    logits, labels, distances = population(correlated)
    at = np.random.default_rng(seed).integers(0, len(labels), rows)
    return HeldOutRows(logits[at], labels[at], "simulated", distances[at])


def off_topic_score(distances):
    one = np.ones((1, 1), np.float32)
    return OffTopicScore(one, one, np.zeros(1, np.float32), 0.1, np.sort(distances))


def share_wrong(rule, decisions, score, correlated):
    """Of the labels that are sure on the whole population, how many are wrong, and how many there are."""
    logits, labels, distances = (part[:5_000] for part in population(correlated))
    probabilities = decisions.probabilities(logits)
    sure = rule.sure(probabilities, decisions.assigned(probabilities))
    if rule.off_topic is not None:
        sure &= (score.p_values(distances) > rule.off_topic)[:, None]
    return (sure & ~labels).sum() / max(1, sure.sum()), sure.sum()


@pytest.mark.parametrize("correlated", [0.0, 1.0])
@pytest.mark.parametrize("off_topic", [None, 0.2])
def test_promises_are_kept_in_19_of_20_draws_alone_and_beside_off_topic(correlated, off_topic):
    broken = gave = 0
    for seed in range(DRAWS):
        rows = draw(correlated, 500, seed)
        decisions, score = LabelDecisions.fit(rows.logits, rows.labels), off_topic_score(rows.distances)
        try:
            rule = label_rule(rows, decisions, score, abstain=0.1, off_topic=off_topic)
        except UserError:
            continue
        gave += 1
        broken += share_wrong(rule, decisions, score, correlated)[0] > 0.1
    assert gave > DRAWS / 2
    assert broken <= MOST_BROKEN


def test_labels_of_one_text_do_not_count_as_so_many_rows():
    wrong, given = np.array([1, 0, 0] * 3 + [0] * 150), np.ones(159, dtype=np.int64)
    alone = ratio_p_value(wrong, given, 0.1, 1)
    assert ratio_p_value(4 * wrong, 4 * given, 0.1, 4) == pytest.approx(alone)
    assert alone < 0.01


def test_a_p_value_is_small_as_rarely_as_it_says():
    """At the limit of the hypothesis: 10 % of the labels are wrong, all of a text or none."""
    generator = np.random.default_rng(0)
    small = 0
    for _draw in range(1_000):
        given = generator.integers(0, 4, 300)
        wrong = given * (generator.random(300) < 0.1)
        small += ratio_p_value(wrong, given, 0.1, 3) <= 0.05
    assert small <= 0.065 * 1_000


def test_texts_with_one_label_may_have_hardly_fewer_errors_than_by_the_exact_test():
    given = np.ones(400, dtype=np.int64)

    def most_allowed(p_value):
        return max(wrong for wrong in range(20) if p_value(wrong) <= 0.05)

    exactly = most_allowed(lambda wrong: binomial_tail(wrong, 400, 0.05))
    betting = most_allowed(
        lambda wrong: ratio_p_value((np.arange(400) < wrong).astype(np.int64), given, 0.05, 1)
    )
    assert (exactly, betting) == (12, 8)


def test_texts_without_labels_change_no_promise():
    wrong, given = np.array([0] * 97 + [1] * 3), np.ones(100, dtype=np.int64)
    more = (np.append(each, np.zeros(500, dtype=np.int64)) for each in (wrong, given))
    assert ratio_p_value(*more, 0.1, 2) == pytest.approx(ratio_p_value(wrong, given, 0.1, 2))


def test_only_the_most_probable_labels_of_a_text_are_sure():
    probabilities = np.array([[0.9, 0.8, 0.99, 0.7], [0.5, 0.5, 0.5, 0.5]], dtype=np.float32)
    assigned = np.array([[True, True, False, True], [True] * 4])
    found = sure_probabilities(probabilities, assigned, 2)
    assert found == pytest.approx(np.array([[0.9, 0.8, -1, -1], [0.5, 0.5, -1, -1]]))
    assert most_labels(assigned) == 4
    assert most_labels(np.repeat([[True, False], [True, True]], [99, 1], axis=0)) == 2
    assert most_labels(np.eye(3, dtype=np.bool_)) == 1
    assert most_labels(np.zeros((3, 2), dtype=np.bool_)) == 1


def test_a_rule_says_what_it_promises_and_which_labels_are_unsure():
    rows = draw(0.0, 1_500, 1)
    decisions = LabelDecisions.fit(rows.logits, rows.labels)
    rule = label_rule(rows, decisions, abstain=0.1)
    (line,) = rule.describe()
    assert line.startswith(
        "at most 10 % of the assigned labels are wrong, with 95 % confidence: threshold 0."
    )
    assert line.endswith("of the labels assigned to 1,500 calibration rows reach; the others are unsure")
    probabilities = decisions.probabilities(rows.logits)
    assigned = decisions.assigned(probabilities)
    sure = rule.sure(probabilities, assigned)
    assert not (sure & ~assigned).any()
    assert sure.sum() / assigned.sum() == pytest.approx(rule.promise.coverage, abs=0.03)  # by other halves
    assert 0.3 < rule.promise.coverage < 1
    assert rule.confident(probabilities).all()
    assert label_rule(rows, decisions) is None


def test_a_lower_rate_and_more_confidence_leave_more_labels_unsure():
    rows = draw(0.0, 1_500, 1)
    decisions = LabelDecisions.fit(rows.logits, rows.labels)
    shares = [
        label_rule(rows, decisions, abstain=rate, confidence=confidence).promise.coverage
        for rate, confidence in ((0.15, 0.95), (0.1, 0.95), (0.1, 0.999))
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]


def test_what_the_rows_cannot_promise_is_refused_with_what_they_can():
    rows = draw(0.0, 1_500, 1)
    decisions = LabelDecisions.fit(rows.logits, rows.labels)
    with pytest.raises(UserError, match="no threshold promises an error rate of") as refused:
        label_rule(rows, decisions, abstain=0.001)
    assert "of the labels assigned to them right" in refused.value.found
    rate = float(refused.value.fix.split()[3])
    confidence = float(refused.value.fix.split()[5].rstrip(","))
    assert label_rule(rows, decisions, abstain=rate, confidence=confidence).promise.error_rate == rate
    with pytest.raises(UserError, match="--abstain takes a share"):
        label_rule(rows, decisions, abstain=2.0)
    with pytest.raises(UserError, match="one label each"):
        label_rule(rows, decisions, sets=0.9)


def test_off_topic_alone_promises_nothing_about_labels():
    rows = draw(0.0, 300, 1)
    rule = label_rule(
        None, LabelDecisions.fit(rows.logits, rows.labels), off_topic_score(rows.distances), off_topic=0.1
    )
    assert (rule.promise, rule.off_topic) == (None, 0.1)
    assigned = np.array([[True, False]])
    assert rule.sure(np.array([[0.1, 0.9]]), assigned) is assigned
    assert "off topic" in rule.describe()[0]


@pytest.mark.parametrize(("rate", "confidence"), [(0, 0.9), (1, 0.9), (0.1, 0), (0.1, 1)])
def test_shares_outside_0_to_1_are_refused(rate, confidence):
    counts = counts_at_thresholds(np.ones((3, 2)), np.ones((3, 2), np.bool_))
    with pytest.raises(ValueError, match="an error rate of"):
        promised_label_threshold(counts, 6, 2, rate, confidence)
