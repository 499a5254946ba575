"""Every epoch sees every row once, in an order the seed decides, with hardly any padding."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.training.batches import epoch_batches, padding_share


def headline_lengths(rows: int = 20_000) -> np.ndarray:
    """Token counts spread as those of AG News: a median near 50, a long tail, cut at 128."""
    draws = np.random.default_rng(0).lognormal(mean=3.9, sigma=0.35, size=rows)
    return np.clip(draws.astype(np.int64), 8, 128)


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 5000])
def test_an_epoch_holds_every_row_once_in_batches_of_the_size(rows: int, grouped: bool):
    batches = epoch_batches(headline_lengths(rows), 16, seed=1, epoch=0, group_by_length=grouped)
    assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
    assert sorted(len(batch) for batch in batches)[1:] == [16] * (len(batches) - 1)
    assert len(batches) == -(-rows // 16)


def test_grouped_batches_of_16_pad_less_than_5_percent_where_others_pad_a_third():
    lengths = headline_lengths()
    grouped, mixed = (
        padding_share(lengths, epoch_batches(lengths, 16, seed=3, epoch=0, group_by_length=group))
        for group in (True, False)
    )
    assert grouped < 0.05
    assert mixed > 0.3


@pytest.mark.parametrize("grouped", [True, False])
def test_seed_and_epoch_decide_the_order(grouped: bool):
    lengths = headline_lengths(500)

    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = epoch_batches(lengths, 16, seed=seed, epoch=epoch, group_by_length=grouped)
        return [batch.tolist() for batch in batches]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_long_and_short_batches_are_mixed_so_that_no_epoch_goes_from_short_to_long():
    lengths = headline_lengths(3200)
    batches = epoch_batches(lengths, 16, seed=1, epoch=0, group_by_length=True)
    means = [float(lengths[batch].mean()) for batch in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


def test_which_rows_share_a_batch_changes_from_epoch_to_epoch():
    lengths = headline_lengths(10_000)
    first, second = (
        {frozenset(b.tolist()) for b in epoch_batches(lengths, 16, seed=1, epoch=epoch, group_by_length=True)}
        for epoch in (0, 1)
    )
    assert len(first & second) < 0.01 * len(first)


def test_the_padding_share_is_what_is_computed_beyond_the_tokens():
    lengths = np.array([4, 2, 5])
    assert padding_share(lengths, [np.array([0, 1]), np.array([2])]) == pytest.approx(1 - 11 / 13)
    assert padding_share(lengths, [np.array([0]), np.array([1]), np.array([2])]) == 0
    assert padding_share(np.array([], dtype=np.int64), []) == 0
