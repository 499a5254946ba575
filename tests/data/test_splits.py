"""Splits are stratified, seeded, keep copies of a text on one side, and every class in validation."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.data.examples import Examples, hold_out, split, validation_size
from newsdesk.errors import UserError


def examples_of(labels: list[int], texts: list[str] | None = None) -> Examples:
    texts = texts or [f"text {i}" for i in range(len(labels))]
    names = tuple(f"class {i}" for i in range(max(labels) + 1))
    return Examples(tuple(texts), np.array(labels, dtype=np.int64), names, "test")


def test_every_row_is_in_one_part_and_sizes_are_exact():
    examples = examples_of([i % 7 for i in range(1003)])
    for size in (0, 17, 100):
        train, validation = split(examples, size, seed=3)
        assert (len(train), len(validation)) == (1003 - size, size)
        assert sorted(train.texts + validation.texts) == sorted(examples.texts)


def test_each_class_gives_in_proportion():
    splits = split(examples_of([0] * 700 + [1] * 200 + [2] * 100), 100, seed=0)
    assert counts(splits.validation) == [70, 20, 10]


def test_rows_keep_their_labels_and_their_order():
    examples = examples_of([i % 3 for i in range(90)])
    label_of = dict(zip(examples.texts, [i % 3 for i in range(90)], strict=True))
    for part in split(examples, 18, seed=5):
        assert part.labels is not None
        assert [label_of[text] for text in part.texts] == part.labels.tolist()
        positions = [int(text.split()[1]) for text in part.texts]
        assert positions == sorted(positions)


def test_the_seed_alone_decides_and_its_choice_is_pinned():
    examples = examples_of([i % 2 for i in range(20)])
    chosen = [split(examples, 4, seed=seed).validation.texts for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] == ("text 4", "text 6", "text 13", "text 19")


def test_copies_of_a_text_never_straddle_when_sizes_allow():
    texts = [f"News  {i // 4}" if i % 2 else f"news {i // 4} " for i in range(400)]
    for seed in range(5):
        splits = split(examples_of([i // 100 for i in range(400)], texts), 80, seed=seed)
        assert tuple(map(len, splits)) == (320, 80)
        seen = [{" ".join(t.casefold().split()) for t in part.texts} for part in splits]
        assert not seen[0] & seen[1]


def test_sizes_stay_exact_when_copies_must_be_divided():
    splits = split(examples_of([0] * 10, ["same"] * 10), 3, seed=0)
    assert tuple(map(len, splits)) == (7, 3)


def test_empty_texts_are_not_copies_of_each_other():
    examples = examples_of([0] * 10 + [1] * 2, [""] * 10 + ["a", "b"])
    assert counts(hold_out(examples, 0.3, seed=0).validation)[0] >= 2


@pytest.mark.parametrize("seed", range(5))
def test_training_keeps_every_class_however_rare(seed):
    labels = [0] * 20 + [1, 1, 2, 3, 3, 3]
    splits = split(examples_of(labels), 18, seed=seed)
    assert splits.train.labels is not None
    assert set(splits.train.labels.tolist()) == {0, 1, 2, 3}


def test_training_keeps_every_class_when_texts_carry_two_labels():
    labels = [0, 1, 0, 2, 0, 0]
    splits = split(examples_of(labels, ["a", "a", "b", "b", "c", "d"]), 3, seed=1)
    assert splits.train.labels is not None
    assert set(splits.train.labels.tolist()) == {0, 1, 2}
    assert len(splits.validation) == 3


def test_unlabelled_rows_and_no_rows_aside_are_fine():
    unlabelled = Examples(("a", "b", "c"), None, (), "test")
    assert len(split(unlabelled, 1, seed=0).validation) == 1
    assert split(unlabelled, 0, seed=0).train.texts == ("a", "b", "c")
    assert len(split(unlabelled.select([]), 0, seed=0).train) == 0


def test_asking_for_more_than_training_can_spare_is_refused():
    with pytest.raises(UserError, match="10 rows of 2 classes; 9 set aside"):
        split(examples_of([0, 1] * 5), 9, seed=0)
    with pytest.raises(UserError, match="too few rows"):
        split(Examples((), None, (), "test"), 1, seed=0)
    assert len(split(examples_of([0, 1] * 5), 8, seed=0).train) == 2


def counts(examples: Examples) -> list[int]:
    assert examples.labels is not None
    return np.bincount(examples.labels, minlength=len(examples.label_names)).tolist()


@pytest.mark.parametrize(
    ("rows", "share", "size"),
    [
        (24, None, 5),
        (600, None, 120),
        (1_000, None, 200),
        (3_000, None, 200),
        (5_485, None, 274),
        (120_000, None, 2_000),
        (120_000, 0.05, 6_000),
        (1_000, 0.05, 50),
        (1_000, 0.0, 0),
    ],
)
def test_few_rows_give_a_larger_share_for_validation_unless_a_share_is_given(rows, share, size):
    assert validation_size(rows, share) == size


@pytest.mark.parametrize("share", [None, 0.01, 0.05, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_every_class_of_two_rows_or_more_is_held_out_with_five_rows_where_it_has_ten(seed, share):
    sizes = [600, 99, 10, 11, 9, 3, 2, 1]
    examples = examples_of([label for label, size in enumerate(sizes) for _ in range(size)])
    splits = hold_out(examples, share, seed=seed)
    held_out, kept = counts(splits.validation), counts(splits.train)
    assert [a + b for a, b in zip(held_out, kept, strict=True)] == sizes
    assert min(held_out[:4]) >= 5
    assert min(held_out[4:7]) >= 1
    assert held_out[7] == 0
    assert min(kept) >= 1
    assert len(splits.validation) == max(validation_size(len(examples), share), 5 * 4 + 3)


def test_large_classes_still_give_in_proportion_when_rare_ones_give_more():
    splits = hold_out(examples_of([0] * 700 + [1] * 290 + [2] * 10), 0.1, seed=0)
    assert counts(splits.validation) == [67, 28, 5]


def test_what_is_held_out_is_decided_by_the_seed_alone():
    examples = examples_of([i % 2 for i in range(200)])
    chosen = [hold_out(examples, None, seed=seed).validation.texts for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_a_text_are_never_on_both_sides_however_rare_the_class(seed):
    texts = [f"text {i // 2}" for i in range(40)] + ["one text"] * 6 + ["first", "second", "second"]
    labels = [0] * 40 + [1] * 6 + [2] * 3
    splits = hold_out(examples_of(labels, texts), 0.2, seed=seed)
    assert not set(splits.train.texts) & set(splits.validation.texts)
    assert counts(splits.validation)[1:] == [0, 1]
    assert "first" in splits.validation.texts
    assert len(splits.train) + len(splits.validation) == 49


def test_a_text_with_two_labels_brings_both_classes_into_validation():
    labels = [0] * 20 + [1, 1, 2, 2]
    texts = [f"text {i}" for i in range(20)] + ["both", "alone", "both", "another"]
    for seed in range(5):
        splits = hold_out(examples_of(labels, texts), 0.1, seed=seed)
        assert min(counts(splits.validation)) >= 1
        assert min(counts(splits.train)) >= 1


def test_a_share_of_zero_and_unlabelled_rows_hold_out_nothing_and_something():
    examples = examples_of([0, 1] * 50)
    assert len(hold_out(examples, 0.0, seed=0).validation) == 0
    assert len(hold_out(Examples(examples.texts, None, (), "test"), 0.1, seed=0).validation) == 10


def test_holding_out_more_than_training_can_spare_is_refused():
    with pytest.raises(UserError, match="too few rows would be left for training"):
        hold_out(examples_of([0, 1, 2] * 2), 0.9, seed=0)
