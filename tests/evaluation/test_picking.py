"""Picking rows to label: uncertain ones, unlike each other, and what answers add to a classifier."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.evaluation.picking import (
    Pool,
    answered_rows,
    pick_diverse,
    pick_uncertain,
    uncertainty,
)

TOPICS, ROWS_A_TOPIC = 4, 50
NAMES = [f"topic {number}" for number in range(TOPICS)]
NOTHING = answered_rows([], [], NAMES)


@pytest.fixture(scope="module")
def embeddings():
    """Unit vectors of four topics, one after the other, each around a direction of its own."""
    generator = np.random.default_rng(1)
    centres = np.eye(TOPICS, 8)[np.repeat(np.arange(TOPICS), ROWS_A_TOPIC)]
    vectors = centres + 0.15 * generator.standard_normal(centres.shape)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def topic(rows):
    return np.asarray(rows) // ROWS_A_TOPIC


ALL = np.arange(TOPICS * ROWS_A_TOPIC)


def test_of_one_label_the_margin_counts_and_of_several_the_expected_errors():
    assert uncertainty(np.array([[0.5, 0.4, 0.1], [0.5, 0.3, 0.2]]), several=False) == pytest.approx(
        [0.9, 0.8]
    )
    assert uncertainty(np.array([[0.9, 0.4], [0.5, 0.99]]), several=True) == pytest.approx([0.5, 0.51])


def test_a_batch_of_equally_uncertain_rows_covers_all_topics(embeddings):
    doubts = np.where(topic(ALL) == 0, 0.9, 0.8)  # the most uncertain rows alone would all be of one topic
    chosen = pick_uncertain(embeddings, doubts, 40, seed=0)
    assert len(set(chosen.tolist())) == 40
    assert set(topic(chosen)) == set(range(TOPICS))


def test_rows_that_are_certain_are_not_picked_while_others_are_left(embeddings):
    doubts = np.where(topic(ALL) == 2, 0.9, 0.0)
    assert set(topic(pick_uncertain(embeddings, doubts, 10, seed=0))) == {2}


def test_without_a_classifier_the_first_rows_are_one_of_each_topic(embeddings):
    pool = Pool(embeddings, several=False)
    chosen, by_doubt = pool.pick(TOPICS, ALL, NOTHING, seed=0)
    assert not by_doubt
    assert sorted(topic(chosen)) == list(range(TOPICS))


def test_rows_of_a_topic_that_nobody_has_answered_come_first(embeddings):
    known = ALL[topic(ALL) != 3][::10]
    free = np.setdiff1d(ALL, known)
    assert topic(pick_diverse(embeddings, known, free, 1, seed=0)) == [3]


def test_copies_do_not_keep_rows_from_being_picked(embeddings):
    copies = np.repeat(embeddings[:1], 30, axis=0)
    free = np.arange(30)
    assert sorted(pick_diverse(copies, np.array([], np.int64), free, 30, seed=0)) == free.tolist()
    assert sorted(pick_uncertain(copies, np.ones(30), 30, seed=0)) == free.tolist()
    assert len(set(pick_uncertain(copies, np.ones(30), 6, seed=0).tolist())) == 6


def test_answers_teach_a_classifier_that_knew_nothing_of_a_topic(embeddings):
    """A run that takes topic 3 for topic 0 is told better, and its new label is believed."""
    wrong = np.eye(TOPICS)[np.where(topic(ALL) == 3, 0, topic(ALL))][:, :3] * 0.9 + 1 / 30
    pool = Pool(embeddings, several=False, probabilities=wrong)
    assert (pool.estimates(NOTHING).argmax(axis=1)[topic(ALL) == 3] == 0).all()
    rows = ALL[::5].tolist()
    answers = answered_rows(rows, [[NAMES[row // ROWS_A_TOPIC]] for row in rows], NAMES)
    assert (pool.estimates(answers).argmax(axis=1) == topic(ALL)).mean() > 0.97


def test_of_several_labels_each_is_learned_for_itself(embeddings):
    sets = [[NAMES[row // ROWS_A_TOPIC], *([NAMES[0]] if row >= 150 else [])] for row in ALL]
    answers = answered_rows(ALL[::3].tolist(), sets[::3], NAMES)
    found = Pool(embeddings, several=True).estimates(answers) >= 0.5
    truth = answered_rows(ALL.tolist(), sets, NAMES).labels
    assert (found == truth).mean() > 0.97


def test_the_same_seed_picks_the_same_rows(embeddings):
    doubts = np.linspace(0.1, 1, len(ALL))
    first, second = (pick_uncertain(embeddings, doubts, 15, seed=3) for _ in range(2))
    assert first.tolist() == second.tolist()


def test_picked_rows_teach_more_than_as_many_random_ones(embeddings):
    """Where one topic is rare, half of the rows picked by doubt do as well as all drawn at random."""
    generator = np.random.default_rng(3)
    pool_rows = np.concatenate([ALL[topic(ALL) != 3], ALL[topic(ALL) == 3][:6]])
    vectors = embeddings[pool_rows] + 0.35 * generator.standard_normal((len(pool_rows), 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    sets, free = [[NAMES[each]] for each in topic(pool_rows)], np.arange(len(pool_rows))
    pool = Pool(vectors, several=False)

    def rare_found(rows):
        estimates = pool.estimates(answered_rows(rows, [sets[row] for row in rows], NAMES))
        return (estimates.argmax(axis=1)[topic(pool_rows) == 3] == 3).sum()

    chosen: list[int] = []
    while len(chosen) < 40:
        known = answered_rows(chosen, [sets[row] for row in chosen], NAMES)
        chosen += pool.pick(8, np.setdiff1d(free, chosen), known, seed=len(chosen))[0].tolist()
    draws = [rare_found(np.random.default_rng(seed).permutation(free)[:40].tolist()) for seed in range(10)]
    assert rare_found(chosen) > np.mean(draws)
