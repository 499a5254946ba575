"""Wrong and missing labels of texts that may have several: found apart, and counted as they are."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.evaluation.audit.pair_issues import judge_pairs, out_of_fold_log_odds
from newsdesk.runs.label_decisions import LabelDecisions
from topics import FILLER_WORDS, TOPIC_WORDS, rows_with_several

pytest.importorskip("sklearn")

NAMES = list(TOPIC_WORDS)
WORDS = sorted({word for words in TOPIC_WORDS.values() for word in words} | set(FILLER_WORDS))


def told(count, seed, *, removed, false):
    """Texts, the counts of their words as embeddings, their labels, and these with faults planted."""
    texts, topics = zip(*rows_with_several(count, seed), strict=True)
    truth = np.array([[name in given for name in NAMES] for given in topics])
    drawn = np.random.default_rng(seed).random(truth.shape)
    labels = np.where(truth, drawn >= removed, drawn < false)
    vectors = np.array([[text.split().count(word) for word in WORDS] for text in texts], dtype=np.float32)
    return texts, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), truth, labels


def judged(texts, vectors, labels):
    clusters = np.arange(len(texts))
    log_odds = out_of_fold_log_odds(texts, vectors, labels, clusters, folds=5, seed=0)
    return judge_pairs(log_odds, labels, clusters), log_odds


@pytest.fixture(scope="module", params=[1, 2, 3])
def planted(request):
    texts, vectors, truth, labels = told(600, request.param, removed=0.1, false=0.05)
    return truth, labels, *judged(texts, vectors, labels)


@pytest.mark.parametrize("kind", ["wrong", "missing"])
def test_planted_faults_of_each_kind_are_found_and_their_number_is_not_overstated(planted, kind):
    truth, labels, found, _ = planted
    of_kind = labels if kind == "wrong" else ~labels
    faulty = (truth != labels) & of_kind
    suspects = [pair for pair in found.findings() if of_kind[pair]]
    right = sum(faulty[pair] for pair in suspects)
    assert right / len(suspects) > 0.95  # by chance: a tenth of the labels given, a twentieth of the others
    assert right / faulty.sum() > 0.6
    assert 0.75 < sum(found.chances[pair] for pair in suspects) / right < 1.05
    share = faulty.sum() / (labels if kind == "wrong" else truth).sum()
    assert getattr(found, kind) == pytest.approx(share, abs=0.03)


def test_faults_come_before_what_fits_and_the_likeliest_first(planted):
    truth, labels, found, _ = planted
    for of_kind in (labels, ~labels):
        faulty = (truth != labels)[of_kind]
        first = np.argsort(-found.misfits[of_kind])[: faulty.sum()]
        assert faulty[first].mean() > 0.8
        assert (np.diff(found.chances[of_kind][np.argsort(found.misfits[of_kind])]) >= -1e-9).all()
    chances = [found.chances[pair] for pair in found.findings()]
    assert chances == sorted(chances, reverse=True)
    assert min(chances) >= 0.5


def test_where_labels_are_of_unequal_frequency_wrong_ones_rank_before_those_by_probability():
    """A frequent label given at random looks better by its probability than a rare one rightly given."""
    generator = np.random.default_rng(4)
    rows, shares = 4000, np.array([0.5, 0.2, 0.05, 0.02])
    truth = generator.random((rows, 4)) < shares
    log_odds = generator.normal(np.where(truth, 2.5, -2.5) + np.log(shares / (1 - shares)), 1.5)
    extra = ~truth & (generator.random((rows, 4)) < 0.1 * shares)
    labels, clusters = truth | extra, np.arange(rows)
    found = judge_pairs(log_odds, labels, clusters)
    naive = 1 - LabelDecisions.fit(log_odds, labels).probabilities(log_odds)

    def in_top_k(order):
        return extra[labels][np.argsort(-order[labels], kind="stable")[: extra.sum()]].mean()

    assert in_top_k(found.misfits) > in_top_k(naive) + 0.015


def test_of_labels_without_faults_little_or_nothing_is_said():
    texts, vectors, _, labels = told(600, 1, removed=0, false=0)
    found, _ = judged(texts, vectors, labels)
    assert len(found.findings()) <= 3
    assert max(found.wrong, found.missing) < 0.01
    assert found.micro_f1 > 0.95


def test_labels_that_nothing_tells_from_others_or_that_one_text_has_are_not_judged():
    texts, vectors, _, labels = told(300, 2, removed=0, false=0)
    drawn = np.random.default_rng(0).random(len(texts)) < 0.2
    alone, every = np.arange(len(texts)) == 7, np.ones(len(texts), dtype=bool)
    found, _ = judged(texts, vectors, np.column_stack([labels, drawn, alone, every]))
    assert found.judged.tolist() == [True, True, True, False, False, False]
    assert not found.chances[:, 3:].any()


def test_a_text_and_its_copies_have_no_say_in_their_own_labels():
    texts, vectors, _, labels = told(300, 3, removed=0, false=0)
    topics = labels.sum(axis=1) == 1
    row = int(np.flatnonzero(topics & labels[:, 0])[0])
    copies = np.full(12, row)
    order = np.concatenate([np.arange(len(texts)), copies])
    labels = labels[order]
    labels[len(texts) :] = labels[row] = [False, True, False]
    together, apart = (
        out_of_fold_log_odds([texts[i] for i in order], vectors[order], labels, clusters, folds=5, seed=0)
        for clusters in (order, np.arange(len(order)))
    )
    assert together[row, 0] > together[row, 1]
    assert apart[row, 0] < apart[row, 1]


def test_it_ranks_no_worse_than_cleanlab_on_the_same_scores(planted):
    rank = pytest.importorskip("cleanlab.multilabel_classification.rank", reason="cleanlab is not installed")
    truth, labels, found, log_odds = planted
    probabilities = LabelDecisions.fit(log_odds, labels).probabilities(log_odds).astype(np.float64)
    given = [np.flatnonzero(row).tolist() for row in labels]
    theirs = 1 - rank.get_label_quality_scores_per_class(given, probabilities)
    for of_kind in (labels, ~labels):
        faulty = (truth != labels)[of_kind]
        ours, other = (
            faulty[np.argsort(-order[of_kind], kind="stable")[: faulty.sum()]].mean()
            for order in (found.misfits, theirs)
        )
        assert ours >= other - 0.02
