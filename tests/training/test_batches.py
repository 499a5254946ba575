"""Every epoch sees every row once, with little padding, and mixed as random batches are."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.training.batches import Batcher, padding_share

Rows = np.ndarray


def headline_lengths(rows: int = 20_000) -> Rows:
    """Token counts spread as those of AG News: a median near 50, a long tail, cut at 128."""
    draws = np.random.default_rng(0).lognormal(mean=3.9, sigma=0.35, size=rows)
    return np.clip(draws.astype(np.int64), 8, 128)


def batcher(lengths: Rows, *, grouped: bool = True, seed: int = 1) -> Batcher:
    return Batcher(lengths, 16, seed=seed, group_by_length=grouped)


def mates_that_stay(first: list[Rows], second: list[Rows]) -> float:
    """The share of a row's batch mates that are with it in another epoch's batch, too."""
    batch_of = np.empty(sum(map(len, second)), dtype=np.int64)
    for number, batch in enumerate(second):
        batch_of[batch] = number
    together = [np.bincount(batch_of[batch]) for batch in first]
    return sum(int((n * (n - 1)).sum()) for n in together) / sum(len(b) * (len(b) - 1) for b in first)


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 2500, 5000])
def test_an_epoch_holds_every_row_once_in_batches_of_the_size(rows: int, grouped: bool):
    batches = batcher(headline_lengths(rows), grouped=grouped).epoch(0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
    assert sorted(len(batch) for batch in batches)[1:] == [16] * (len(batches) - 1)
    assert len(batches) == -(-rows // 16)


def test_grouped_batches_of_16_pad_less_than_3_percent_where_random_ones_pad_a_third():
    lengths = headline_lengths()
    grouped, random = (padding_share(lengths, batcher(lengths, grouped=g).epoch(0)) for g in (True, False))
    assert grouped <= 0.03
    assert random > 0.3


@pytest.mark.parametrize("grouped", [True, False])
def test_seed_and_epoch_decide_the_order(grouped: bool):
    lengths = headline_lengths(2_500)

    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = batcher(lengths, grouped=grouped, seed=seed)
        batches.epoch(3)  # what was asked for before does not matter
        return [batch.tolist() for batch in batches.epoch(epoch)]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_long_and_short_batches_are_mixed_so_that_no_epoch_goes_from_short_to_long():
    lengths = headline_lengths(3200)
    means = [float(lengths[batch].mean()) for batch in batcher(lengths).epoch(0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


@pytest.mark.parametrize(("rows", "most"), [(100, 0.2), (1_500, 0.012), (3_000, 0.05), (20_000, 0.04)])
def test_hardly_any_batch_mates_stay_together_from_one_epoch_to_the_next(rows: int, most: float):
    """Random batches of so many rows keep 15, 1, 0.5 and 0.1 %."""
    batches = batcher(headline_lengths(rows))
    stay = [mates_that_stay(batches.epoch(number), batches.epoch(number + 1)) for number in range(4)]
    assert np.mean(stay) < most


def test_so_few_batches_that_they_would_meet_again_soon_are_random():
    lengths = headline_lengths(2_048)
    batches = [batcher(lengths, grouped=grouped).epoch(1) for grouped in (True, False)]
    assert all(np.array_equal(one, other) for one, other in zip(*batches, strict=True))


@pytest.mark.parametrize("rows", [2_400, 2_403])
def test_the_longest_row_has_no_batch_of_its_own_kind(rows: int):
    """Neither in company, most of which changes, nor in place, nor in the batch that is smaller."""
    lengths = headline_lengths(rows)
    lengths[0] = 500
    batches = batcher(lengths)
    epochs = [batches.epoch(number) for number in range(40)]
    places = [next(i for i, batch in enumerate(epoch) if 0 in batch) for epoch in epochs]
    found = [epoch[place] for epoch, place in zip(epochs, places, strict=True)]
    assert len(set(places)) > 20
    assert sum(len(batch) < 16 for batch in found) < 8
    assert len(set(np.concatenate(found).tolist())) > 100


def test_a_sample_pads_as_all_rows_would():
    lengths = headline_lengths(40_000)
    whole = padding_share(lengths, Batcher(lengths, 16, seed=1).epoch(0))
    sample = Batcher(lengths[:4000], 16, seed=1, sample_of=40_000)
    assert padding_share(lengths[:4000], sample.epoch(0)) == pytest.approx(whole, abs=0.015)


def test_the_padding_share_is_what_is_computed_beyond_the_tokens():
    lengths = np.array([4, 2, 5])
    assert padding_share(lengths, [np.array([0, 1]), np.array([2])]) == pytest.approx(1 - 11 / 13)
    assert padding_share(lengths, [np.array([0]), np.array([1]), np.array([2])]) == 0
    assert padding_share(np.array([], dtype=np.int64), []) == 0
