from __future__ import annotations

import pytest

from newsdesk.inference.words import without, word_spans


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Oil prices rose, traders said.", ["Oil", "prices", "rose", "traders", "said"]),
        ("don't U.S. 3,000.5 AT&T well-known", ["don't", "U.S", "3,000.5", "AT", "T", "well", "known"]),
        ("one,two a, b", ["one", "two", "a", "b"]),
        ("Цены на нефть выросли", ["Цены", "на", "нефть", "выросли"]),
        ("हिन्दी समाचार", ["हिन्दी", "समाचार"]),
        ("می\u200cخواهم رفت", ["می\u200cخواهم", "رفت"]),
        ("株価は上昇 NTT", ["株", "価", "は", "上", "昇", "NTT"]),
        ("ข่าวกีฬา", ["ข่", "า", "ว", "กี", "ฬ", "า"]),
        ("!!! ?", ["!", "!", "!", "?"]),
        ("", []),
        (" \n", []),
    ],
)
def test_words_are_found_in_any_script(text, words):
    assert [text[start:end] for start, end in word_spans(text)] == words


@pytest.mark.parametrize(
    ("text", "word", "left"),
    [
        ("oil prices rose", "prices", "oil rose"),
        ("oil prices rose", "oil", "prices rose"),
        ("oil prices rose", "rose", "oil prices "),
        ("(oil) rose", "oil", "() rose"),
        ("株価", "株", "価"),
    ],
)
def test_a_deleted_word_leaves_no_double_space(text, word, left):
    start = text.index(word)
    assert without(text, [(start, start + len(word))]) == left


def test_several_words_are_deleted_in_any_order():
    text = "a b c d"
    assert without(text, [(6, 7), (0, 1), (4, 5)]) == "b "
    assert without(text, []) == text
