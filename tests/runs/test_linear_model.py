"""The linear model beside the encoder: what it counts, what its part is worth, and what its file may hold."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from newsdesk.errors import UserError
from newsdesk.label_set_metrics import binary_log_loss
from newsdesk.runs.label_decisions import LabelDecisions
from newsdesk.runs.linear_model import LINEAR_MODEL, LinearModel, Stack, label_stack_weight, stack_weight

pytest.importorskip("sklearn")

CLASSES, OPENING, CLOSING = 3, 1, 1


def token_rows(count, seed=0):
    """Rows of 1 to 12 tokens between 2 and 3, a third of them typical of the row's class; and the classes."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    rows = []
    for label in labels:
        typical = 100 * (label + 1) + generator.integers(0, 30, generator.integers(1, 5))
        others = generator.integers(500, 700, generator.integers(0, 8))
        rows.append(np.concatenate([[2], generator.permutation(np.concatenate([typical, others])), [3]]))
    return rows, labels


@pytest.fixture(scope="module")
def model():
    rows, labels = token_rows(1200)
    return LinearModel.fit(rows, labels, CLASSES, opening=OPENING, closing=CLOSING, seed=0)


def as_text(ids):
    return " ".join(map(str, ids[OPENING : len(ids) - CLOSING]))


@pytest.mark.parametrize("rows", [300, 1200])  # in more than 1,000 rows, what occurs in one does not count
def test_its_scores_are_those_of_scikit_learn_on_words_and_pairs_of_words(rows):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    train, labels = token_rows(rows)
    held_out, _ = token_rows(200, seed=1)
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), token_pattern=r"\S+", sublinear_tf=True, min_df=2 if rows > 1000 else 1
    )
    reference = LinearSVC(C=1.0, random_state=0).fit(vectorizer.fit_transform(map(as_text, train)), labels)
    expected = reference.decision_function(vectorizer.transform(map(as_text, held_out)))
    ours = LinearModel.fit(train, labels, CLASSES, opening=OPENING, closing=CLOSING, seed=0)
    assert len(ours.keys) == len(vectorizer.vocabulary_)
    # Weights have half precision, and coordinate descent stops where its rows' order lets it.
    np.testing.assert_allclose(ours.scores(held_out), expected, atol=0.02)


def test_scores_depend_on_nothing_but_the_text(model, monkeypatch):
    rows, _ = token_rows(200, seed=2)
    together = model.scores(rows)
    assert np.array_equal(together[[7]], model.scores(rows[7:8]))
    monkeypatch.setattr("newsdesk.runs.linear_model._TOKENS_AT_ONCE", 50)
    assert np.array_equal(together, model.scores(rows))
    assert model.scores([]).shape == (0, CLASSES)
    nothing = model.scores([np.array([2, 3]), np.array([2, 9999, 3])])
    assert np.array_equal(nothing, np.tile(model.bias, (2, 1)))


def test_two_classes_are_one_hyperplane_and_a_class_without_rows_is_never_likely():
    rows, labels = token_rows(90)
    two = [row for row, label in zip(rows, labels, strict=True) if label != 1]
    model = LinearModel.fit(two, labels[labels != 1], CLASSES, opening=1, closing=1, seed=0)
    scores = model.scores(two)
    assert np.array_equal(scores.argmax(axis=1), labels[labels != 1])
    np.testing.assert_allclose(scores[:, 0], -scores[:, 2], atol=1e-6)
    assert (scores[:, 1] == -1).all()


def test_without_a_second_class_or_a_token_there_is_none():
    rows, labels = token_rows(30)
    fit = {"opening": OPENING, "closing": CLOSING, "seed": 0}
    assert LinearModel.fit(rows, np.zeros(30, dtype=np.int64), CLASSES, **fit) is None
    assert LinearModel.fit([np.array([2, 3])] * 30, labels, CLASSES, **fit) is None


def test_the_most_frequent_features_are_kept_where_there_are_too_many(monkeypatch):
    rows, labels = token_rows(300)
    monkeypatch.setattr("newsdesk.runs.linear_model.MOST_WEIGHTS", 60 * CLASSES)
    model = LinearModel.fit(rows, labels, CLASSES, opening=OPENING, closing=CLOSING, seed=0)
    assert len(model.keys) == 60
    assert model.keys.max() < 700  # single tokens occur more often than pairs


def test_what_is_saved_scores_the_same(model, tmp_path):
    rows, _ = token_rows(50, seed=3)
    model.with_stack(0.25).save(tmp_path)
    loaded = LinearModel.of_folder(tmp_path, CLASSES)
    assert loaded.stack == 0.25
    assert np.array_equal(loaded.scores(rows), model.scores(rows))
    assert LinearModel.of_folder(tmp_path / "elsewhere", CLASSES) is None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("keys", lambda keys: keys[::-1]),
        ("keys", lambda keys: np.append(keys[:-1], keys[-2])),
        ("keys", lambda keys: keys.astype(np.float64)),
        ("keys", lambda keys: keys[:0]),
        ("keys", lambda keys: keys[0]),
        ("idf", lambda idf: idf[:-1]),
        ("idf", lambda idf: idf * np.nan),
        ("idf", lambda idf: idf * 0),
        ("weights", lambda weights: weights[:, :2]),
        ("weights", lambda weights: weights.astype(np.float32)),
        ("weights", lambda weights: weights * np.float16(np.inf)),
        ("bias", lambda bias: bias[:2]),
        ("special", lambda _special: np.array([-1, 1])),
        ("special", lambda _special: np.array([1, 1 << 40])),
        ("stack", lambda _stack: np.array([-1.0])),
        ("stack", lambda _stack: np.array([np.nan])),
        ("stack", lambda _stack: np.array([1e300])),
        ("stack", None),
    ],
)
def test_a_file_with_anything_else_in_it_is_refused_in_one_sentence(model, tmp_path, name, change):
    model.save(tmp_path)
    tensors = load_file(tmp_path / LINEAR_MODEL)
    tensors |= {} if change is None else {name: np.ascontiguousarray(change(tensors[name]))}
    if change is None:
        del tensors[name]
    save_file(tensors, tmp_path / LINEAR_MODEL, metadata={"format": "1"})
    with pytest.raises(UserError, match=r"linear_model\.safetensors is missing or damaged"):
        LinearModel.of_folder(tmp_path, CLASSES)


def test_other_formats_other_classes_and_half_a_file_are_refused(model, tmp_path):
    model.save(tmp_path)
    with pytest.raises(UserError, match="damaged"):
        LinearModel.of_folder(tmp_path, CLASSES + 1)
    content = (tmp_path / LINEAR_MODEL).read_bytes()
    save_file(load_file(tmp_path / LINEAR_MODEL), tmp_path / LINEAR_MODEL, metadata={"format": "2"})
    with pytest.raises(UserError, match="damaged"):
        LinearModel.of_folder(tmp_path, CLASSES)
    (tmp_path / LINEAR_MODEL).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged"):
        LinearModel.of_folder(tmp_path, CLASSES)


def answers(rows, signal, seed):
    """Logits or scores (rows, classes) that know this much of the labels (rows,)."""
    generator, labels = np.random.default_rng(seed), np.arange(rows) % CLASSES
    found = generator.normal(size=(rows, CLASSES)).astype(np.float32)
    found[np.arange(rows), labels] += signal
    return found, labels


def test_what_knows_the_classes_gets_a_part_and_noise_gets_none():
    (logits, labels), (scores, _), (noise, _) = (answers(2000, s, seed) for seed, s in enumerate((2, 1, 0)))
    gain = Stack.of(logits, scores, labels, np.arange(0))
    assert gain.is_clear
    assert gain.stacked > gain.alone
    assert gain.weight == pytest.approx(0.5, abs=0.1)  # of two unit variances, by their signals
    assert stack_weight(7 * logits, scores, labels) == pytest.approx(7 * gain.weight, rel=0.05)
    nothing = Stack.of(logits, noise, labels, np.arange(0))
    assert nothing.weight < 0.05
    assert not nothing.is_clear
    assert stack_weight(logits, -scores, labels) == 0


def test_few_rows_change_little():
    few = [stack_weight(answers(12, 2, seed)[0], *answers(12, 0, 1000 + seed)) for seed in range(40)]
    assert np.mean(few) < 0.1


def test_rows_that_calibrate_do_not_choose_the_part():
    (logits, labels), (scores, _) = answers(400, 2, 0), answers(400, 1, 1)
    choosing = np.arange(0, 400, 2)
    found = Stack.of(logits, scores, labels, choosing)
    scores[1::2] = 0
    assert Stack.of(logits, scores, labels, choosing).weight == found.weight


def sets_of(count, seed):
    """Rows as `token_rows`, of which every other has tokens and label of the next class, too."""
    rows, labels = token_rows(count, seed)
    generator, truth = np.random.default_rng(seed), np.eye(CLASSES, dtype=np.bool_)[labels]
    for row in range(0, count, 2):
        more = 100 * ((labels[row] + 1) % CLASSES + 1) + generator.integers(0, 30, 4)
        rows[row] = np.concatenate([rows[row][:-1], more, [3]])
        truth[row, (labels[row] + 1) % CLASSES] = True
    return rows, truth


def test_several_labels_a_text_are_one_svm_each(tmp_path):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    train, truth = sets_of(300, seed=0)
    held_out, _ = sets_of(100, seed=1)
    with_constant = np.column_stack([truth, np.zeros(300, np.bool_), np.ones(300, np.bool_)])
    model = LinearModel.fit(train, with_constant, 5, opening=OPENING, closing=CLOSING, seed=0)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", sublinear_tf=True)
    learned, asked = (
        vectorizer.fit_transform(map(as_text, train)),
        vectorizer.transform(map(as_text, held_out)),
    )
    scores = model.scores(held_out)
    for label in range(CLASSES):
        expected = LinearSVC(C=1.0, random_state=0).fit(learned, truth[:, label]).decision_function(asked)
        np.testing.assert_allclose(scores[:, label], expected, atol=0.02)
    assert (scores[:, 3] == -1).all()  # nothing is learned of labels that no row has, or all have
    assert (scores[:, 4] == 1).all()
    model.save(tmp_path)
    assert np.array_equal(LinearModel.of_folder(tmp_path, 5).scores(held_out), scores)
    fit = {"opening": OPENING, "closing": CLOSING, "seed": 0}
    assert LinearModel.fit(train, np.ones((300, 2), dtype=np.bool_), 2, **fit) is None


LABELS, OFTEN = 30, 0.3


def set_answers(rows, signals, seed):
    """Labels of falling frequency, and for each signal logits (rows, labels) that know as much of them."""
    truth = np.random.default_rng(seed).random((rows, LABELS)) < OFTEN / np.arange(1, LABELS + 1)
    noise = np.random.default_rng(seed + 1000).normal(size=(len(signals), rows, LABELS))
    return [*(noise + np.reshape(signals, (-1, 1, 1)) * truth).astype(np.float32), truth]


def gained(rows, signals, seed):
    """What the weight of the second logits, found on some rows, takes from others' log-loss, in millinats."""
    logits, scores, truth = set_answers(rows, signals, seed)
    others, other_scores, other_truth = set_answers(2000, signals, seed + 1)
    weight = np.float32(label_stack_weight(logits, scores, truth))

    def loss(stack):
        decisions = LabelDecisions.fit(logits + stack * scores, truth)
        return 1000 * binary_log_loss(decisions.probabilities(others + stack * other_scores), other_truth)

    return loss(np.float32(0)) - loss(weight)


@pytest.mark.parametrize("rows", [40, 200, 1000])
def test_of_several_labels_what_knows_them_helps_with_new_texts_and_noise_does_no_harm(rows):
    helps = [gained(rows, (2.5, 2.0), seed) for seed in range(3)]
    assert min(helps) > 0
    harms = [gained(rows, (2.5, 0.0), seed) for seed in range(3)]
    assert np.mean(harms) > -0.3  # of 150: thresholds and probabilities of these rows vary by more


def test_of_several_labels_the_gain_is_measured_on_rows_that_it_was_not_found_on():
    logits, scores, noise, truth = set_answers(600, (2.0, 2.0, 0.0), seed=0)
    found = Stack.of(logits, scores, truth, np.arange(0))
    low, high = found.interval
    assert found.is_clear
    assert low < found.stacked - found.alone < high
    assert "micro F1 on 600 validation rows" in found.remark(asked=False)
    nothing = Stack.of(logits, noise, truth, np.arange(0))
    assert not nothing.is_clear
    assert nothing.remark(asked=False) is None
    choosing = np.arange(0, 600, 2)
    by = Stack.of(logits, scores, truth, choosing)
    scores[1::2] = 0
    assert Stack.of(logits, scores, truth, choosing).weight == by.weight
    assert Stack.of(logits[:1], scores[:1], truth[:1], np.arange(0)).rows == 1
