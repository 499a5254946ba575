"""A text far from what was trained on has a small p-value, its length and the features' scale apart."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from newsdesk.errors import UserError
from newsdesk.model.architectures import feature_layer
from newsdesk.runs.off_topic import (
    OFF_TOPIC,
    OffTopicScore,
    cut_short,
    fit_off_topic,
    off_topic_score,
    stratified_rows,
)

FEATURES, CLASSES = 12, 3


def texts(rows, seed, *, tokens=(4, 60), shift=0.0):
    """Features of texts: a class's centre, what the text is about, and the mean of its tokens' own part."""
    generator = np.random.default_rng(seed)
    shapes = np.random.default_rng(99)
    centres = shapes.normal(0, 3, (CLASSES, FEATURES))
    mixing = shapes.normal(0, 1, (FEATURES, FEATURES))
    labels = generator.integers(0, CLASSES, rows)
    lengths = generator.integers(*tokens, rows)
    own = generator.normal(0, 0.5, (rows, FEATURES)) @ mixing
    of_tokens = generator.normal(0, 3, (rows, FEATURES)) / np.sqrt(lengths)[:, None]
    return (centres[labels] + own + of_tokens + shift).astype(np.float32), lengths, labels


@pytest.fixture(scope="module")
def score():
    features, lengths, _ = texts(1000, seed=2)
    fitted = fit_off_topic(*texts(4000, seed=1))
    return fitted.with_reference(fitted.distances(features, lengths))


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_of_new_texts_of_its_own_at_most_the_named_share_looks_that_foreign(score, alpha):
    features, lengths, _ = texts(20_000, seed=3)
    share = (score.p_values(score.distances(features, lengths)) <= alpha).mean()
    assert share == pytest.approx(alpha, abs=0.025)


def test_foreign_texts_have_small_p_values(score):
    features, lengths, _ = texts(500, seed=4, shift=6.0)
    assert (score.p_values(score.distances(features, lengths)) <= 0.01).mean() > 0.95


def test_half_the_memory_changes_a_distance_by_less_than_a_hundredth_of_their_spread(score):
    features, lengths, _ = texts(2000, seed=6)
    whole, halved = score.distances(features, lengths), score.halved().distances(features, lengths)
    assert score.halved().projection.nbytes == score.projection.nbytes / 2
    assert np.abs(halved - whole).max() < 0.01 * whole.std()


@pytest.mark.parametrize("tokens", [(4, 8), (50, 60)], ids=["short", "long"])
def test_short_texts_are_not_foreign_for_being_short(score, tokens):
    features, lengths, _ = texts(5000, seed=5, tokens=tokens)
    assert (score.p_values(score.distances(features, lengths)) <= 0.1).mean() == pytest.approx(0.1, abs=0.05)


def test_texts_of_one_length_need_no_slope():
    features, lengths, labels = texts(300, seed=6, tokens=(20, 21))
    fitted = fit_off_topic(features, lengths, labels)
    assert not fitted.by_length.any()
    assert fitted.distances(features, lengths).mean() == pytest.approx(FEATURES, rel=0.2)


def test_fewer_rows_than_features_and_rows_all_alike_still_give_numbers():
    features, lengths, labels = texts(6, seed=7)
    for given in (features, np.zeros_like(features)):
        assert np.isfinite(fit_off_topic(given, lengths, labels).distances(features, lengths)).all()


def test_p_values_count_the_texts_that_are_at_least_as_far(score):
    tiny = score.with_reference(np.array([5.0, 2.0, 9.0]))
    low, middle, high = tiny.reference
    np.testing.assert_allclose(
        tiny.p_values(np.array([low - 1, low, middle, high, high + 1])), [1, 1, 0.75, 0.5, 0.25]
    )
    with pytest.raises(ValueError, match="at least one row"):
        score.with_reference(np.zeros(0))


def test_what_is_saved_scores_the_same_and_what_is_damaged_is_explained(score, tmp_path):
    file = tmp_path / OFF_TOPIC
    score.save(file)
    loaded = OffTopicScore.load(file)
    features, lengths, _ = texts(50, seed=9)
    np.testing.assert_array_equal(loaded.distances(features, lengths), score.distances(features, lengths))
    np.testing.assert_array_equal(loaded.reference, score.reference)
    assert loaded.facts == {"held_out_rows": "1000"}
    tensors, whole = load_file(file), file.read_bytes()
    changes = (
        {"usual_inverse_length": np.array(0.1)},
        {"reference": np.zeros(0, np.float32)},
        {"centres": np.zeros((0, len(tensors["by_length"])), np.float32)},
        {"by_length": np.array(1.0, np.float32)},
        {"projection": tensors["projection"][1:]},
        {"more": np.zeros(1, np.float32)},
    )
    for content in (
        whole[:100],
        b"",
        *(save({**tensors, **change}, metadata={"format": "1"}) for change in changes),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match="missing or damaged"):
            OffTopicScore.load(file)


def test_features_come_from_behind_two_thirds_of_the_layers_and_never_from_the_last():
    assert [feature_layer(layers) for layers in (1, 2, 3, 6, 12, 24)] == [0, 1, 2, 4, 8, 16]


def test_a_sample_keeps_the_classes_shares():
    labels = np.array([0] * 900 + [1] * 90 + [2] * 10)
    rows = stratified_rows(labels, 100)
    assert np.bincount(labels[rows]).tolist() == pytest.approx([90, 9, 1], abs=1)
    assert len(set(rows.tolist())) == 100
    assert stratified_rows(labels, 5000).tolist() == list(range(1000))


def test_a_cut_text_is_its_beginning_and_its_closing_token():
    generator = np.random.default_rng(0)
    sequence = np.arange(20)
    cuts = [cut_short(sequence, generator).tolist() for _ in range(200)]
    assert all(cut == [*range(len(cut) - 1), 19] for cut in cuts)
    assert {len(cut) for cut in cuts} == set(range(5, 20))
    assert cut_short(sequence[:5], generator).tolist() == [0, 1, 2, 3, 4]


def test_a_classifier_s_score_comes_from_a_sample_of_its_rows_some_of_them_cut_short():
    asked = []

    def features_of(sequences):
        asked.append(sequences)
        return np.array(
            [[sequence.mean(), sequence.std(), len(sequence)] for sequence in sequences], np.float32
        )

    generator = np.random.default_rng(0)
    train = [generator.integers(1, 50, length) for length in generator.integers(12, 40, 5000)]
    held_out = [generator.integers(1, 50, length) for length in generator.integers(12, 40, 300)]
    found = off_topic_score(features_of, train, np.arange(5000) % 2, held_out)
    assert found is not None
    found, distances = found
    assert [len(sequences) for sequences in asked] == [3000, 300]
    assert min(len(sequence) for sequence in asked[0][:2000]) == 12
    assert min(len(sequence) for sequence in asked[0][2000:]) == 5
    assert found.facts == {"fitted_rows": "3000", "held_out_rows": "300"}
    np.testing.assert_array_equal(
        distances, found.distances(features_of(held_out), np.array([len(row) for row in held_out]))
    )
    np.testing.assert_array_equal(found.reference, np.sort(distances))
    assert off_topic_score(features_of, train, np.arange(5000) % 2, []) is None
