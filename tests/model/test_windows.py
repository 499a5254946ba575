"""The windows of a text cover it once and again, and their outputs become the text's."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from newsdesk.config import ModelSection
from newsdesk.errors import UserError
from newsdesk.model.tokenizer import TextTokenizer
from newsdesk.model.windows import LongTexts, Windowed, Windows
from newsdesk.runs.labels import Labels
from tiny_exports import PIECES, write_tokenizer

CLS, SEP = 2, 3


def text_of(tokens: int) -> np.ndarray:
    """A text of so many tokens, two of them special, no other two alike."""
    return np.array([CLS, *range(10, 8 + tokens), SEP], dtype=np.int64)


def windows_of(length: int, overlap: int, most: int = 1024, pooling: str = "mean") -> Windows:
    return Windows(length, 1, 1, LongTexts("windows", overlap, most, pooling))


@pytest.mark.parametrize(("length", "overlap"), [(3, 0), (8, 0), (8, 2), (8, 5), (17, 3), (128, 16)])
def test_windows_are_of_one_length_overlap_as_asked_and_cover_the_text(length, overlap):
    windows = windows_of(length, overlap)
    for tokens in (*range(3, 4 * length), 11 * length):
        text = text_of(tokens)
        found = windows.split([text]).ids
        (count,), (size,) = windows.shapes(np.array([tokens]))
        assert [len(ids) for ids in found] == [size] * count
        assert size <= length
        if tokens <= length:
            assert found[0] is text
            continue
        assert all(ids[0] == CLS and ids[-1] == SEP for ids in found)
        assert (found[0][1], found[-1][-2]) == (text[1], text[-2])
        shared = [left[-2] - right[1] + 1 for left, right in pairwise(found)]
        assert min(shared) >= overlap
        # One window fewer could not do it.
        assert (count - 1) * (length - 2 - overlap) + overlap < tokens - 2


def test_no_more_windows_are_read_than_asked_for():
    windows = windows_of(8, 2, most=3)
    assert windows.reach == 8 + 2 * 4
    read = windows.read(text_of(100).tolist())
    assert read == [*text_of(100)[:15], SEP]
    assert windows.shapes(np.array([16]))[0] == 3
    assert windows.read(text_of(16).tolist()) == text_of(16).tolist()


@pytest.mark.parametrize("special", [(1, 1), (1, 0), (0, 0)])
def test_head_and_tail_are_the_first_and_the_last_tokens(special):
    opening, closing = special
    ids = [*[CLS] * opening, *range(10, 40), *[SEP] * closing]
    read = Windows(9, *special, LongTexts("head-tail")).read(ids)
    room = 9 - opening - closing
    head, tail = room - room // 2, room // 2
    assert read == [*ids[: opening + head], *range(40 - tail, 40), *[SEP] * closing]
    short = ids[: opening + 3] + [SEP] * closing
    assert Windows(9, *special, LongTexts("head-tail")).read(short) == short


def test_outputs_are_pooled_text_by_text():
    values = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    counts = np.array([1, 3, 2])
    windowed = Windowed([text_of(4)] * 6, counts, "mean")
    by_hand = np.stack([values[0], values[1:4].mean(axis=0), values[4:].mean(axis=0)])
    np.testing.assert_allclose(windowed.pooled(values), by_hand, rtol=1e-6)
    largest = Windowed(windowed.ids, counts, "max")
    assert (largest.pooled(values) == np.stack([values[0], values[1:4].max(0), values[4:].max(0)])).all()
    np.testing.assert_allclose(largest.mean(values), by_hand, rtol=1e-6)
    assert [windowed.texts_in(np.array(rows)) for rows in ([0, 1], [2, 3, 5], [4])] == [2, 0, 1]


def test_windows_that_do_not_get_ahead_are_refused(tmp_path):
    write_tokenizer(tmp_path / "tokenizer.json")
    model = ModelSection(max_length=8, long_texts="windows", window_overlap=6)
    with pytest.raises(UserError, match="never reach the end") as raised:
        TextTokenizer.from_folder(tmp_path, 8, long_texts=LongTexts.of(model))
    assert "6 of the 6 tokens" in raised.value.found


def test_what_each_choice_reads_and_computes_is_said(tmp_path):
    write_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = TextTokenizer.from_folder(tmp_path, None)
    model = ModelSection(max_length=10, long_texts="head-tail", window_overlap=2, max_windows=3)
    lengths = np.array(tokenizer.lengths(["goal", " ".join(PIECES[4:16]), " ".join(PIECES[4:] * 2)]))
    assert lengths.tolist() == [3, 14, 62]
    own, cut, windows = tokenizer.choices(model, lengths)
    assert (own.choice, cut.choice, windows.choice) == ("head-tail", "cut", "windows")
    assert (own.read, own.computed) == (cut.read, cut.computed) == (3 + 10 + 10, 23)
    assert (windows.read, windows.computed) == (3 + 14 + 22, 3 + 2 * 9 + 3 * 10)
    assert windows.share == 39 / 79
    assert windows.times(own) == 51 / 23


def test_labels_of_texts_that_are_cut_say_nothing_of_windows(tmp_path):
    from newsdesk.data.columns import TextLayout

    cut = Labels(("a", "b"), TextLayout(("text",)), 8, long_texts=LongTexts.of(ModelSection()))
    cut.write(tmp_path)
    assert "long_texts" not in (tmp_path / "labels.json").read_text()
    model = ModelSection(max_length=8, long_texts="windows", window_overlap=0.25, pooling="max")
    whole = Labels(("a", "b"), TextLayout(("text",)), 8, long_texts=LongTexts.of(model))
    whole.write(tmp_path)
    assert Labels.read(tmp_path, fix="").long_texts == LongTexts("windows", 2, 16, "max")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"max_windows": 16', '"max_windows": 0'),
        ('"max_windows": 16', '"max_windows": 100000'),
        ("mean", "sum"),
    ],
)
def test_labels_with_impossible_windows_are_refused(tmp_path, before, after):
    from newsdesk.data.columns import TextLayout

    Labels(("a", "b"), TextLayout(("text",)), 8, long_texts=LongTexts("windows", 2, 16)).write(tmp_path)
    content = (tmp_path / "labels.json").read_text()
    assert before in content
    (tmp_path / "labels.json").write_text(content.replace(before, after))
    with pytest.raises(UserError, match="damaged"):
        Labels.read(tmp_path, fix="")
