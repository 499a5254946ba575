"""Copies are found whatever their case and spacing, near copies by an exact similarity."""

from __future__ import annotations

import random

import pytest

from newsdesk.data import duplicates
from newsdesk.data.duplicates import (
    conflicting_groups,
    duplicate_groups,
    near_copies,
    near_duplicates,
    shared_texts,
)


def headline(seed: int, words: int = 40) -> list[str]:
    generator = random.Random(seed)
    return [f"w{generator.randrange(5000)}" for _ in range(words)]


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + 3]) for i in range(max(len(words) - 2, 1))}


def jaccard(first: str, second: str) -> float:
    a, b = shingles(first), shingles(second)
    return len(a & b) / len(a | b)


def test_copies_are_grouped_without_regard_to_case_and_space_and_empty_texts_are_none():
    texts = ["Oil rises", "", "oil  RISES ", "Rain", " ", "oil rises", "rain"]
    assert duplicate_groups(texts) == ((0, 2, 5), (3, 6))


def test_copies_under_two_labels_conflict():
    assert conflicting_groups(["a", "A", "b", "b"], ["x", "y", "x", "x"]) == ((0, 1),)


def test_an_exact_match_names_the_first_row_of_the_other_set():
    exact, _ = shared_texts(["b", "Oil", "oil", ""], ["OIL ", "x", "", "b"])
    assert [(one.row, one.match) for one in exact] == [(0, 1), (3, 0)]


def test_every_pair_above_the_threshold_is_found_with_its_exact_similarity_and_none_below():
    generator = random.Random(4)
    first = [headline(seed) for seed in range(300)]
    second = []
    for row in range(300):
        words = list(first[row])
        for _ in range(row % 6):
            words[generator.randrange(len(words))] = "changed"
        second.append(" ".join(words))
    texts = [" ".join(words) for words in first]
    expected = {row: jaccard(texts[row], second[row]) for row in range(300)}
    found = near_duplicates(texts, second)
    assert {n.row for n in found} == {row for row, value in expected.items() if value >= 0.8}
    assert 50 < len(found) < 250
    for near in found:
        assert near.match == near.row
        assert near.similarity == pytest.approx(expected[near.row])


def test_the_most_similar_row_is_named_and_ties_go_to_the_first():
    words = headline(1)
    slightly, more = [*words[:-1], "other"], [*words[:-2], "two", "others"]
    first = [" ".join(w) for w in (headline(2), more, slightly, slightly)]
    (near,) = near_duplicates(first, [" ".join(words)])
    assert near.match == 2


def test_punctuation_and_case_do_not_hide_a_copy():
    (near,) = near_duplicates(["Oil prices: up again"], ["unrelated news here", "OIL PRICES up - again!"])
    assert (near.row, near.match, near.similarity) == (1, 0, 1.0)


def test_short_texts_match_only_as_a_whole_and_wordless_ones_never():
    first = ["oil up", "rain", "", "...", "oil"]
    second = ["oil", "Oil up", "up oil", "...", "", "rain falls"]
    assert [(n.row, n.match) for n in near_duplicates(first, second)] == [(0, 4), (1, 0)]
    assert near_duplicates([], ["a b c"]) == near_duplicates(["a b c"], [""]) == ()


def test_a_lower_threshold_finds_more():
    words = headline(3)
    altered = [*words[:10], "x", *words[11:20], "y", *words[21:]]
    first, second = [" ".join(words)], [" ".join(altered)]
    assert near_duplicates(first, second) == ()
    (near,) = near_duplicates(first, second, threshold=0.6)
    assert near.similarity == pytest.approx(jaccard(first[0], second[0]))


def test_within_one_set_a_near_copy_names_the_earlier_row_and_exact_copies_are_left_to_the_groups():
    words = headline(5)
    near, other = " ".join([*words[:-1], "other"]), " ".join(headline(6))
    texts = [other, " ".join(words), " ".join(words).upper(), near, "", near]
    assert [(one.row, one.match) for one in near_copies(texts)] == [(3, 1)]
    assert near_copies([]) == near_copies(["oil"]) == ()


def test_texts_shared_with_another_set_are_exact_or_near_but_never_both():
    words = headline(7)
    near = " ".join([*words[:-1], "other"])
    exact, nearly = shared_texts(["Oil", " ".join(words)], ["rain", near, "oil"])
    assert [(one.row, one.match, one.similarity) for one in exact] == [(2, 0, 1.0)]
    assert [(one.row, one.match) for one in nearly] == [(1, 1)]


@pytest.mark.parametrize(
    ("text", "nearly", "other"),
    [
        (
            "天鹅湖精装小户型20日开盘均价6000总价18万",
            "天鹅湖精装小户型20日开盘均价6000总价18万(图)",
            "工银国际中国建材2011年开局理想",
        ),
        (
            "摩根大通今日宣布下调金融界评级至中性并维持目标价",
            "摩根大通今日宣布下调金融界评级至中立并维持目标价",
            "摩根大通买入",
        ),
        (
            "日経平均株価は大幅に上昇して取引を終えた",
            "日経平均株価は大幅に上昇し取引を終えた",
            "台風が近づいている",
        ),
        (
            "นายกรัฐมนตรีประกาศยุบสภาและจัดการเลือกตั้งทั่วไป",
            "นายกรัฐมนตรีประกาศยุบสภาและจัดการเลือกตั้งทั่วไปแล้ว",
            "ทีมชาติไทยชนะเวียดนามสองประตูต่อศูนย์",
        ),
        ("ລັດຖະບານລາວປະກາດນະໂຍບາຍເສດຖະກິດໃໝ່", "ລັດຖະບານລາວປະກາດນະໂຍບາຍເສດຖະກິດໃໝ່ມື້ນີ້", "ຝົນຕົກໜັກໃນນະຄອນຫຼວງ"),
        ("រដ្ឋាភិបាលកម្ពុជាប្រកាសគោលនយោបាយថ្មី", "រដ្ឋាភិបាលកម្ពុជាប្រកាសគោលនយោបាយថ្មីៗ", "ភ្លៀងធ្លាក់ខ្លាំងនៅភ្នំពេញ"),
        ("မြန်မာနိုင်ငံတွင်ရွေးကောက်ပွဲကျင်းပမည်ဟုကြေညာသည်", "ယနေ့မြန်မာနိုင်ငံတွင်ရွေးကောက်ပွဲကျင်းပမည်ဟုကြေညာသည်", "မိုးသည်းထန်စွာရွာသွန်းသည်"),
        (
            "苹果发布iPhone新品 售价999美元起 今日开放预订",
            "苹果发布iPhone新品，售价999美元起，今日开放预订了",
            "苹果树开花",
        ),
    ],
)
def test_near_copies_are_found_in_scripts_without_spaces(text, nearly, other):
    assert [(one.row, one.match) for one in near_copies([other, text, nearly])] == [(2, 1)]


def test_the_same_letters_encoded_otherwise_are_a_copy():
    assert duplicate_groups(["Café São", "Cafe\u0301 Sa\u0303o"]) == ((0, 1),)
    (near,) = near_duplicates(["１２号 トヨタ 発表 する"], ["12号 トヨタ、発表、する"])
    assert near.similarity == 1.0


def test_texts_of_one_subject_in_chinese_are_no_near_copies():
    assert near_copies(["国安球员庆幸只输0比3", "国安球员庆祝2比1取胜", "国安主场输球"]) == ()


def test_pairs_grow_with_the_rows_where_thousands_are_near_copies_of_one_text(monkeypatch):
    words = [f"word{number}" for number in range(40)]
    texts = [" ".join([*words, f"edition{number}"]) for number in range(3000)]
    compared = []
    original = duplicates._jaccard
    monkeypatch.setattr(duplicates, "_jaccard", lambda *sets: compared.append(1) or original(*sets))
    found = near_copies(texts)
    assert [one.row for one in found] == list(range(1, 3000))  # each resembles an earlier one
    assert len(compared) < 50 * len(texts)  # of 4.5 million pairs
