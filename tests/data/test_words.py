from __future__ import annotations

import pytest

from newsdesk.data.words import (
    isolated,
    language_of,
    language_tag,
    printable,
    without,
    word_spans,
    words_of,
)


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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Oil's prices ROSE", ["oil", "s", "prices", "rose"]),
        ("हिन्दी समाचार", ["हिन्दी", "समाचार"]),
        ("仅卖2759 LG节能", ["仅", "卖", "2759", "lg", "节", "能"]),
        ("ข่าวกีฬา", ["ข่", "า", "ว", "กี", "ฬ", "า"]),
        ("cafe\u0301 ＡＢ", ["café", "ab"]),
        ("... !", []),
    ],
)
def test_words_are_counted_alike_in_any_script(text, words):
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("أعلن الرئيس", "ar"),
        ("رئیس جمهور گفت", "fa"),
        ("وزیر اعظم نے کہا ہے کہ ٹیم", "ur"),
        ("ראש הממשלה", "he"),
        ("32寸LG节能液晶", "zh"),
        ("株価は上昇", "ja"),
        ("ข่าวกีฬา", "th"),
        ("Цены на нефть", "und-Cyrl"),
        ("Oil prices", None),
        ("12.5 %", None),
    ],
)
def test_a_language_is_told_by_its_script_where_that_tells_it(text, tag):
    assert language_tag(text) == tag


def test_right_to_left_words_are_set_apart_and_others_left_as_they_are():
    assert isolated("سياسة") == "\u2068سياسة\u2069"
    assert isolated("שלום 3") == "\u2068שלום 3\u2069"
    assert isolated("politics") == "politics"
    assert isolated("政治 12") == "政治 12"


def test_what_joins_letters_is_kept_and_what_cannot_be_shown_is_replaced():
    assert printable("می\u200cخواهم 👨\u200d👩") == "می\u200cخواهم 👨\u200d👩"
    assert printable("日本\u3000経済\xa05") == "日本 経済 5"
    assert printable("a\x1b[1m\u202eb\n") == "a?[1m?b?"


def test_the_language_of_texts_is_that_of_most_of_them():
    arabic, english = "أعلن الرئيس", "Oil prices"
    assert language_of([arabic, arabic, english]) == "ar"
    assert language_of([arabic, english, english]) is None
    assert language_of(["Цены на нефть"]) is None
    assert language_of([]) is None


def test_of_characters_that_become_many_no_more_is_read_than_of_a_long_text():
    ligature = "\ufdfa"  # becomes 18 characters, of four words
    assert (len(words_of(ligature)), len(words_of(ligature * 500))) == (4, 1501)
    assert sum(map(len, words_of(ligature * 100_000))) <= 400_000
