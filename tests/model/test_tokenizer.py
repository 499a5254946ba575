"""Texts become token ids of bounded length, the same ones that transformers gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from newsdesk.errors import UserError
from newsdesk.model.tokenizer import (
    EMPTY_TEXT,
    NO_KNOWN_TOKEN,
    TextTokenizer,
    Truncation,
    length_sorted_batches,
    limit_words,
    pad,
)

TEXTS = ["Market shares, market profit!", "", "zebra naïve 42", "goal " * 60]


@pytest.fixture(params=["bert", "roberta"])
def base(request: pytest.FixtureRequest, tiny_base: Callable[..., Path]) -> Path:
    return tiny_base(request.param)


def test_token_ids_are_those_of_transformers(base: Path):
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(base)(TEXTS, truncation=True, max_length=16)["input_ids"]
    encoded = TextTokenizer.from_folder(base, 16).encode(TEXTS)
    assert [ids.tolist() for ids in encoded] == reference
    assert {ids.dtype for ids in encoded} == {np.dtype(np.int64)}
    assert max(len(ids) for ids in encoded) == 16


def test_without_a_length_nothing_is_cut(base: Path):
    tokenizer = TextTokenizer.from_folder(base, None)
    assert tokenizer.max_length is None
    assert tokenizer.lengths(TEXTS)[3] >= 60
    assert tokenizer.lengths(TEXTS) == [len(ids) for ids in tokenizer.encode(TEXTS)]


def test_settings_saved_in_the_file_are_replaced(base: Path, tmp_path: Path):
    from tokenizers import Tokenizer

    saved = Tokenizer.from_file(str(base / "tokenizer.json"))
    saved.enable_truncation(4)
    saved.enable_padding(length=9)
    saved.save(str(tmp_path / "tokenizer.json"))
    assert TextTokenizer.from_folder(tmp_path, 16).lengths(TEXTS) == TextTokenizer.from_folder(
        base, 16
    ).lengths(TEXTS)


def test_broken_characters_become_question_marks(base: Path):
    tokenizer = TextTokenizer.from_folder(base, 16)
    (broken,), (mark,) = tokenizer.encode(["market \ud83d goal"]), tokenizer.encode(["market ? goal"])
    assert broken.tolist() == mark.tolist()


@pytest.mark.parametrize("length", [1, 2])
def test_a_length_without_room_for_text_is_refused(base: Path, length: int):
    with pytest.raises(UserError, match=f"maximum length of {length} leaves no room for text") as refused:
        TextTokenizer.from_folder(base, length)
    assert "model.max_length must be 3 or more" in refused.value.found
    assert TextTokenizer.from_folder(base, 3).lengths(["market goal"]) == [3]


def test_lengths_before_cutting_are_those_of_transformers_without_a_limit(base: Path):
    from transformers import AutoTokenizer

    reference = [len(ids) for ids in AutoTokenizer.from_pretrained(base)(TEXTS)["input_ids"]]
    encoded = TextTokenizer.from_folder(base, 16).encode_whole(TEXTS)
    assert encoded.lengths.tolist() == reference
    counts = encoded.truncation
    assert (counts.texts, counts.tokens) == (4, sum(reference))
    assert counts.cut == sum(length > 16 for length in reference)
    assert counts.lost == sum(max(0, length - 16) for length in reference)
    assert counts + counts == Truncation(8, 2 * counts.cut, 2 * counts.tokens, 2 * counts.lost)
    assert TextTokenizer.from_folder(base, None).encode_whole(TEXTS).truncation.lost == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", EMPTY_TEXT),
        (" \n\t\u3000", EMPTY_TEXT),
        ("\u200b\x00\ufeff\x07", EMPTY_TEXT),
        ("market", None),
        ("\U0001f600 market", None),
        ("ox", None),
    ],
)
def test_texts_with_nothing_to_see_are_named(base: Path, text: str, reason: str | None):
    assert TextTokenizer.from_folder(base, 16).encode_whole([text]).unreadable == (reason,)


def test_texts_of_unknown_tokens_alone_are_named(tiny_base: Callable[..., Path]):
    tokenizer = TextTokenizer.from_folder(tiny_base("bert"), 16)
    texts = ["\u7b2c\u4e09 \u5b63", "\u7b2c goal", "\U0001f600"]
    assert tokenizer.encode_whole(texts).unreadable == (NO_KNOWN_TOKEN, None, NO_KNOWN_TOKEN)
    by_bytes = TextTokenizer.from_folder(tiny_base("roberta"), 16)
    assert by_bytes.encode_whole(texts).unreadable == (None, None, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "goal",
        "goal " * 300,
        "goal, coach! (bank) -- market... " * 50,
        "\u7b2c\u4e09\u5b63\u5ea6 goal " * 60,
        "a\u200cb \u200b c\x00 \u0301 " * 60,
        "caf\u00e9 na\u00efve $5 \u20ac7 it's U.S. " * 40,
        "x" * 40,
        "\n\n goal\u3000coach\n" * 60,
    ],
)
def test_words_that_are_never_read_can_be_dropped_and_are_counted_all_the_same(base, text, tmp_path):
    from tokenizers import Tokenizer

    limited = Tokenizer.from_file(str(base / "tokenizer.json"))
    limit_words(limited, 16)
    whole = TextTokenizer.from_folder(base, 16).encode_whole([text])
    limited.no_truncation()
    kept = limited.encode(text).ids
    assert kept[:15] == whole.ids[0].tolist()[:15]
    assert len(kept) <= whole.lengths[0]
    limited.save(str(tmp_path / "tokenizer.json"))
    again = TextTokenizer.from_folder(tmp_path, 16).encode_whole([text])
    assert again.ids[0].tolist() == whole.ids[0].tolist()
    assert again.lengths.tolist() == whole.lengths.tolist()


def test_a_limit_of_words_keeps_what_follows_short(base):
    from tokenizers import Tokenizer

    limited = Tokenizer.from_file(str(base / "tokenizer.json"))
    limit_words(limited, 16)
    assert len(limited.encode("goal coach bank " * 500).ids) <= 16 + 14
    assert len(limited.encode("goal " * 14).ids) == 16


def test_sentencepiece_marks_before_an_unknown_word_say_nothing():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0), ("\u2581goal", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    read = TextTokenizer(tokenizer, 8).encode_whole(["zzz", "goal zzz", "  "])
    assert read.unreadable == (NO_KNOWN_TOKEN, None, EMPTY_TEXT)


def test_a_folder_without_a_tokenizer_says_how_to_get_one(tmp_path: Path):
    with pytest.raises(UserError, match=r"no tokenizer\.json") as raised:
        TextTokenizer.from_folder(tmp_path, 16)
    assert "save_pretrained" in (raised.value.fix or "")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is not a tokenizer file"):
        TextTokenizer.from_folder(tmp_path, 16)


def test_rows_are_padded_to_the_longest_or_to_a_length():
    sequences = [np.array([5, 6, 7]), np.array([8])]
    input_ids, mask = pad(sequences, pad_id=1)
    assert input_ids.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    input_ids, mask = pad(sequences, pad_id=0, to_length=5)
    assert input_ids.shape == mask.shape == (2, 5)
    assert mask.sum() == 4


def test_batches_go_from_long_to_short_and_hold_every_row_once():
    lengths = np.array([3, 9, 1, 9, 4])
    batches = length_sorted_batches(lengths, 2)
    assert [batch.tolist() for batch in batches] == [[1, 3], [4, 0], [2]]
    assert length_sorted_batches(np.array([], dtype=np.int64), 2) == []


CHINESE = ["股基打头阵 新基金公司生产线开工", "科比效仿乔丹学高智商篮球"]
ARABIC = ["أعلن الرئيس اليوم عن خطة اقتصادية جديدة", "فاز الفريق بالمباراة"]


def test_texts_that_a_vocabulary_knows_call_for_no_other_base(base: Path):
    fit = TextTokenizer.from_folder(base, 16).fit(["Market shares market profit", "goal coach striker"] * 40)
    assert (fit.unknown, fit.syllabic, fit.warning) == (0.0, False, None)
    assert fit.letters_per_token > 3


def test_unknown_tokens_are_counted_without_the_special_ones(tiny_base: Callable[..., Path]):
    tokenizer = TextTokenizer.from_folder(tiny_base("bert"), 32)
    fit = tokenizer.fit(["market 股 shares 基"])
    assert fit.unknown == 0.5
    assert tokenizer.encode_whole(["market 股 shares 基", ""]).unknown_share == 0.5
    assert tokenizer.encode_whole([]).unknown_share == 0.0
    assert tokenizer.fit(CHINESE).unknown == 1.0
    assert tokenizer.fit(CHINESE).warning == (
        "100% of the tokens are unknown to the base model: use --base multilingual-e5-small or "
        "--base granite-embedding-107m-multilingual"
    )
    assert (tokenizer.fit([]).unknown, tokenizer.fit(["", " "]).warning) == (0.0, None)


@pytest.mark.parametrize("texts", [CHINESE, ARABIC])
def test_a_byte_level_vocabulary_knows_every_token_but_spells_foreign_scripts_out(
    tiny_base: Callable[..., Path], texts: list[str]
):
    fit = TextTokenizer.from_folder(tiny_base("roberta"), 32).fit(texts)
    assert fit.unknown == 0.0
    assert fit.letters_per_token < 1
    assert "letters a token" in str(fit.warning)


def test_unknown_pieces_of_a_unigram_vocabulary_are_counted():
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = [("<s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in ("▁", "股基", "打头阵", "oil"))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    assert TextTokenizer(tokenizer, None).fit(["股基打头阵"]).warning is None
    assert TextTokenizer(tokenizer, None).fit(["oil 体育"]).unknown == pytest.approx(1 / 4)
