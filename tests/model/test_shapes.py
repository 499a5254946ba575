"""Few widths, little padding, and room for every length."""

from __future__ import annotations

import pytest

from newsdesk.training.train_step import bucket_length


def test_there_are_few_widths_and_none_is_much_wider_than_its_rows():
    widths = {length: bucket_length(length, 512) for length in range(1, 513)}
    assert len(set(widths.values())) == 20
    assert all(width >= length and width % 8 == 0 for length, width in widths.items())
    assert max(width / length for length, width in widths.items() if length > 32) < 1.25
    assert all(widths[width] == width for width in widths.values())
    assert [widths[length] for length in (1, 8, 9, 53, 64, 65, 128, 129)] == [8, 8, 16, 56, 64, 80, 128, 160]


def test_no_width_exceeds_the_positions_of_the_encoder():
    assert bucket_length(47, 48) == 48
    assert bucket_length(49, 50) == 50
    with pytest.raises(ValueError, match="51 tokens do not fit the encoder's 50 positions"):
        bucket_length(51, 50)
    with pytest.raises(ValueError, match="0 tokens"):
        bucket_length(0, 50)
