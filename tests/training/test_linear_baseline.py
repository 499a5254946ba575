from __future__ import annotations

import csv
import gzip
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from newsdesk.data.examples import Examples
from newsdesk.errors import UserError
from newsdesk.metrics import wilson_interval
from newsdesk.stored import from_content, to_content
from newsdesk.training.linear_baseline import BaselineResult, linear_baseline, remark_on_baseline

SHARED = Path(__file__).parents[2].parent / "shared"
AG_NEWS, CASES = SHARED / "ag_news", SHARED / "cases"
ARABIC = Path(__file__).parents[1] / "languages" / "arabic.csv"
WORDS = {"sport": ("goal", "match", "coach"), "trade": ("bank", "stock", "price")}


@pytest.fixture
def needs_sklearn():
    pytest.importorskip("sklearn")


def toy(rows, seed, names=("sport", "trade"), source="toy"):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(names), rows)
    texts = tuple(" ".join(generator.choice(WORDS[names[label]], 4)) for label in labels)
    return Examples(texts, labels, tuple(names), source)


@pytest.mark.usefixtures("needs_sklearn")
def test_classes_that_words_tell_apart_are_learnt():
    train, test = toy(60, 0), toy(20, 1)
    result = linear_baseline(train, test, seed=0)
    assert result.accuracy == 1.0
    assert result.accuracy_interval == wilson_interval(20, 20)
    assert result.predicted == tuple(test.label_names[i] for i in test.labels)
    assert result.seconds >= 0
    assert "linear SVM (scikit-learn" in result.description


@pytest.mark.usefixtures("needs_sklearn")
def test_word_pairs_count_where_single_words_do_not_help():
    train = Examples(("hot dog", "dog hot", "hot dog", "dog hot"), np.array([0, 1, 0, 1]), ("a", "b"), "toy")
    assert linear_baseline(train, train, seed=0).accuracy == 1.0


@pytest.mark.usefixtures("needs_sklearn")
def test_one_letter_words_count():
    train = Examples(("x", "y", "x", "y"), np.array([0, 1, 0, 1]), ("a", "b"), "toy")
    assert linear_baseline(train, train, seed=0).accuracy == 1.0


@pytest.mark.usefixtures("needs_sklearn")
def test_the_test_rows_may_name_the_classes_in_another_order():
    result = linear_baseline(toy(60, 0), toy(20, 1, names=("trade", "sport")), seed=0)
    assert result.accuracy == 1.0


@pytest.mark.usefixtures("needs_sklearn")
def test_the_same_seed_gives_the_same_predictions():
    train, test = toy(1500, 0), toy(200, 1)
    shuffled = Examples(train.texts, np.roll(train.labels, 1), train.label_names, "noise")
    first, again = (linear_baseline(shuffled, test, seed=3) for _ in range(2))
    assert first.predicted == again.predicted


@pytest.mark.usefixtures("needs_sklearn")
def test_the_figures_survive_without_the_single_predictions():
    result = linear_baseline(toy(60, 0), toy(20, 1), seed=0)
    assert from_content(BaselineResult, to_content(result)) == replace(result, predicted=())


def read(path, delimiter=","):
    with path.open(newline="", encoding="utf-8") as stream:
        rows = [(text, label) for text, label in csv.reader(stream, delimiter=delimiter) if label != "label"]
    names = tuple(sorted({label for _, label in rows}))
    return Examples(
        tuple(text for text, _ in rows), np.array([names.index(label) for _, label in rows]), names, path.name
    )


@pytest.mark.usefixtures("needs_sklearn")
def test_words_stay_where_characters_do_no_better():
    result = linear_baseline(toy(60, 0), toy(20, 1), seed=0)
    assert result.features == "words 1-2"
    assert set(result.validation) == {"words 1-2", "characters 1-3", "characters 2-5"}
    assert result.validation["words 1-2"] == 1.0


@pytest.mark.usefixtures("needs_sklearn")
def test_arabic_words_with_articles_and_prefixes_are_told_apart_by_their_characters():
    arabic = read(ARABIC)
    result = linear_baseline(arabic, arabic, seed=0)
    assert result.features.startswith("characters")
    assert result.validation[result.features] > result.validation["words 1-2"]
    assert result.features in result.description


@pytest.mark.usefixtures("needs_sklearn")
@pytest.mark.skipif(not CASES.is_dir(), reason="the case files are not beside this checkout")
def test_chinese_headlines_are_learnt_without_spaces():
    train, test = (read(CASES / f"c05_thuc_names{part}.tsv", "\t") for part in ("", "_test"))
    test = Examples(
        test.texts,
        np.array([train.label_names.index(test.label_names[i]) for i in test.labels]),
        train.label_names,
        test.source,
    )
    result = linear_baseline(train, test, seed=0)
    assert result.accuracy > 0.55  # clauses as words gave 20 %


@pytest.mark.usefixtures("needs_sklearn")
def test_the_choice_looks_at_training_rows_alone():
    train = read(ARABIC)
    flipped = Examples(train.texts, np.roll(train.labels, 1), train.label_names, "other")
    first, second = (linear_baseline(train, test, seed=0) for test in (train, flipped))
    assert (first.features, first.validation) == (second.features, second.validation)


@pytest.mark.usefixtures("needs_sklearn")
@pytest.mark.parametrize("labels", [[0, 1], [0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 2, 2]])
def test_few_rows_give_a_baseline_too(labels):
    names = tuple("abc"[: max(labels) + 1])
    train = Examples(
        tuple(f"{names[i]} word{n}" for n, i in enumerate(labels)), np.array(labels), names, "few"
    )
    result = linear_baseline(train, train, seed=0)
    assert result.accuracy == 1.0
    assert (result.validation is None) == (labels in ([0, 1], [0, 0, 0, 1]))


@pytest.mark.usefixtures("needs_sklearn")
def test_texts_that_share_no_word_are_validated_all_the_same():
    texts = tuple("..." if n % 40 else f"only{n}" for n in range(80))
    train = Examples(texts, np.arange(80) % 2, ("a", "b"), "wordless")
    assert linear_baseline(train, train, seed=0).features == "words 1-2"


@pytest.mark.usefixtures("needs_sklearn")
def test_one_class_cannot_be_told_apart():
    train = Examples(("a", "b"), np.array([1, 1]), ("sport", "trade"), "toy")
    with pytest.raises(UserError, match="at least two classes") as caught:
        linear_baseline(train, train, seed=0)
    assert caught.value.found == "2 rows of 'trade' in toy"


@pytest.mark.usefixtures("needs_sklearn")
def test_texts_without_words_are_reported():
    train = Examples(("...", "!?"), np.array([0, 1]), ("sport", "trade"), "toy")
    with pytest.raises(UserError, match="no words"):
        linear_baseline(train, train, seed=0)


@pytest.mark.usefixtures("needs_sklearn")
def test_a_test_class_without_training_rows_is_reported():
    with pytest.raises(UserError, match="'trade'"):
        linear_baseline(toy(20, 0, names=("sport",)), toy(20, 1), seed=0)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match="scikit-learn") as caught:
        linear_baseline(toy(4, 0), toy(4, 0), seed=0)
    assert caught.value.fix == "pip install 'newsdesk[train]'"


@pytest.mark.real
@pytest.mark.usefixtures("needs_sklearn")
@pytest.mark.skipif(not AG_NEWS.is_dir(), reason="real AG News rows are not beside this checkout")
def test_real_news_is_sorted_nearly_as_well_as_published_from_a_tenth_of_the_rows():
    with gzip.open(AG_NEWS / "train.csv.gz", "rt", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))[::8]
    labels = np.array([int(row["class_index"]) - 1 for row in rows])
    texts = tuple(f"{row['title']} {row['description']}" for row in rows)
    news = Examples(texts, labels, ("World", "Sports", "Business", "Sci/Tech"), "AG News")
    held_out = np.arange(len(news)) % 10 == 0
    train, valid = news.select(np.flatnonzero(~held_out)), news.select(np.flatnonzero(held_out))
    assert linear_baseline(train, valid, seed=0).accuracy > 0.87


def toy_sets(rows, seed, *, some_without=False):
    """Texts of the words of one class or of both; where asked for, every fifth of neither."""
    generator = np.random.default_rng(seed)
    truth = np.array([(True, False), (False, True), (True, True)])[generator.integers(0, 3, rows)]
    if some_without:
        truth[::5] = False
    texts = tuple(
        " ".join(["the", *(word for i, words in enumerate(WORDS.values()) if given[i] for word in words)])
        for given in truth
    )
    return Examples(texts, truth, tuple(WORDS), "toy")


@pytest.mark.usefixtures("needs_sklearn")
@pytest.mark.parametrize("some_without", [False, True])
def test_several_labels_a_text_are_learnt_one_against_the_rest(some_without):
    train, test = (toy_sets(rows, rows, some_without=some_without) for rows in (120, 60))
    result = linear_baseline(train, test, seed=0)
    assert (result.accuracy, result.micro_f1, result.macro_f1) == (1.0, 1.0, 1.0)
    assert np.array_equal(result.assigned, test.labels)
    stored = from_content(BaselineResult, to_content(result))
    assert (stored.micro_f1, stored.micro_f1_interval) == (result.micro_f1, result.micro_f1_interval)
    assert "micro F1" in remark_on_baseline(train, test, seed=0)


@pytest.mark.usefixtures("needs_sklearn")
@pytest.mark.parametrize("some_without", [False, True])
def test_a_text_gets_at_least_one_label_where_every_training_text_has_one(some_without):
    train = toy_sets(120, 0, some_without=some_without)
    strange = Examples(("the", "the goal match coach"), np.eye(2, dtype=np.bool_), tuple(WORDS), "toy")
    given = linear_baseline(train, strange, seed=0).assigned
    assert given.any(axis=1).tolist() == [not some_without, True]


@pytest.mark.usefixtures("needs_sklearn")
def test_rows_that_all_have_the_same_labels_are_refused():
    train = toy_sets(20, 0)
    same = replace(train, labels=np.ones_like(train.labels))
    with pytest.raises(UserError, match="with and without some label"):
        linear_baseline(same, train, seed=0)
