"""The check names every defect of a file by line, and a sound file is called sound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from newsdesk.cli.data import render_check
from newsdesk.data.check import Leak, LineGroups, Places, check
from newsdesk.data.dialect import Dialect
from newsdesk.data.vocabulary import ScriptFit, VocabularyFit
from newsdesk.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_a_sound_file_has_no_findings_and_is_counted(write):
    rows = [f"{what} is up,b\n{what} is down,a\n" for what in ("Oil", "Rain", "Gold", "Tin", "Rice")]
    report = check(write("a.csv", f"title,label\n{''.join(rows)}Wheat is up,b\n"))
    assert report.is_ok
    assert report.rows == 11
    assert report.columns == ("title", "label")
    assert (report.text_columns, report.label_column) == (("title",), "label")
    assert report.label_counts == {"b": 6, "a": 5}
    assert report.leakage is None
    assert report.token_lengths is None


def test_every_kind_of_defect_is_found_by_line(write):
    content = (
        b"text,label\n"
        b"Oil is up,b\n"
        b"oil  IS up,a\n"
        b" ,a\n"
        b"too,many,fields\n"
        b"caf\xe9,a\n"
        b"caf\xc3\x83\xc2\xa9 noir,a\n"
        b"lost \xef\xbf\xbd letter,a\n"
        b"bell \x07 rings,a\n"
        b"nothing known,\n"
        b"Gold,b\n"
        b"gold,b\n"
    )
    report = check(write("a.csv", content))
    assert not report.is_ok
    assert report.rows == 9
    assert report.label_counts == {"a": 5, "b": 3}
    assert [fault.line for fault in report.malformed] == [5]
    assert [(fault.line, fault.wrong.split()[0]) for fault in report.encoding] == [
        (6, "the"),
        (7, "UTF-8"),
        (8, "a"),
        (9, "a"),
    ]
    assert report.empty == Places(1, (4,))
    assert report.unlabelled == Places(1, (10,))
    assert report.duplicates == LineGroups(2, 4, ((2, 3), (11, 12)))
    assert report.conflicts == LineGroups(1, 2, ((2, 3),))


@pytest.mark.parametrize(
    "text", ["cafÃ© noir", "itâ€™s", "Â£5", "ð\u009f\u0098\u0080", "ÐŸÑ€Ð¸Ð²ÐµÑ‚", "ï»¿x"]
)
def test_mojibake_is_recognised(write, text):
    (fault,) = [
        f for f in check(write("a.txt", f"{text}\n")).encoding if f.wrong == "UTF-8 read in another encoding"
    ]
    assert fault.line == 1
    assert text[:2] in str(fault.found) or "\\x" in str(fault.found)


@pytest.mark.parametrize(
    "text",
    ["café, naïve, Ångström", "CAFÉ” — “Ðuro”", "it’s £5…", "Привет", "Chávez ¿qué?", "日本", "tab\there"],
)
def test_ordinary_letters_beyond_ascii_are_no_encoding_fault(write, text):
    assert check(write("a.txt", f"{text}\n")).is_ok


def test_texts_shared_with_the_test_file_are_named_exact_and_near(write):
    words = [f"w{i}" for i in range(40)]
    near = " ".join([*words[:-1], "other"])
    train = write("train.csv", f"text,label\nOil is up today,a\n{' '.join(words)},b\nRain again now,a\n")
    test = write("test.csv", f"text,label\nunrelated words only here,a\n{near},b\noil is UP  today,a\n")
    report = check(train, against=test)
    assert not report.is_ok
    assert report.leakage is not None
    assert (report.leakage.rows, report.leakage.exact, report.leakage.near) == (3, 1, 1)
    assert report.leakage.leaks[0] == Leak(line=2, other_line=4, similarity=1.0)
    assert report.leakage.leaks[1] == Leak(line=3, other_line=3, similarity=pytest.approx(37 / 39))
    unlike = check(test, against=write("other.txt", "nothing in common\n"))
    assert (unlike.leakage.exact, unlike.leakage.near) == (0, 0)


def test_a_malformed_second_file_is_an_error(write):
    good = write("a.csv", "text,label\na,b\n")
    with pytest.raises(UserError, match=r"test\.csv, line 2"):
        check(good, against=write("test.csv", "text,label\na\n"))


def test_token_lengths_are_measured_against_max_length(write):
    path = write("a.txt", "\n".join("w " * n for n in range(1, 101)))

    def tokenizer(texts):
        return [len(text.split()) + 2 for text in texts]

    lengths = check(path, tokenizer=tokenizer, max_length=92).token_lengths
    assert lengths is not None
    assert lengths.quantiles == {"50%": 52, "90%": 92, "95%": 97, "99%": 101, "100%": 102}
    assert lengths.mean == 52.5
    assert lengths.truncated == pytest.approx(0.10)
    without = check(path, tokenizer=tokenizer).token_lengths
    assert without is not None
    assert without.truncated is None
    assert check(write("b.csv", "text,label\n"), tokenizer=tokenizer).token_lengths is None


def test_layout_flags_reach_the_reading(write):
    path = write("a.csv", "Tor #39;s,x y,Sport\nOper,z w,Kultur\n")
    report = check(
        path,
        dialect=Dialect(header=False),
        text=["column_1", "column_2"],
        label="column_3",
        template="{column_1}|{column_2}",
        normaliser="ag_news",
        tokenizer=lambda texts: [texts.index("Tor's|x y") + 1, 1],
    )
    assert report.label_counts == {"Sport": 1, "Kultur": 1}


def test_class_numbers_beyond_ag_news_are_malformed_and_not_also_unlabelled(write):
    report = check(write("a.csv", "class_index,title\n1,a\n9,b\n,c\n"))
    assert [fault.line for fault in report.malformed] == [3]
    assert report.unlabelled == Places(1, (4,))
    assert report.label_counts == {"World": 1}


def test_a_file_without_one_readable_row_is_reported_and_not_raised(write):
    report = check(write("a.jsonl", b"{\n\xff\n"))
    assert report.rows == 0
    assert len(report.malformed) == len(report.encoding) == 1
    assert not report.is_ok


def test_the_report_is_json_and_its_lists_are_bounded(write):
    report = check(write("a.txt", "\n" * 500 + "same\nSAME\n"), tokenizer=lambda texts: [1] * len(texts))
    values = json.loads(json.dumps(report.to_dict()))
    assert values["empty"]["count"] == 500
    assert len(values["empty"]["lines"]) == 100
    assert values["duplicates"] == {"groups": 1, "rows": 2, "lines": [[501, 502]]}


def test_the_base_models_vocabulary_is_reported_and_is_no_fault_of_the_file(write):
    path = write("zh.csv", "text\n股基打头阵\n国安主场\n国安客场\n新基金\n")
    chinese = VocabularyFit(
        0.66,
        1.0,
        True,
        (ScriptFit("Chinese", "zh", 1.0, 0.66, 1.0),),
        bases=("--base multilingual-e5-small",),
    )
    fitting = VocabularyFit(0.001, 1.2, True, (ScriptFit("Chinese", "zh", 1.0, 0.001, 1.2),))
    report = check(path, vocabulary=lambda texts: chinese if len(texts) == 4 else fitting)
    assert report.is_ok
    assert report.to_dict()["vocabulary"]["unknown"] == 0.66
    lines = render_check(report)
    assert "unknown tokens: 66.0%; letters a token: 1.0" in lines
    assert ("  66% of the tokens are unknown to the base model: use --base multilingual-e5-small") in lines
    assert check(path, vocabulary=lambda _texts: fitting).to_dict()["vocabulary"]["warning"] is None


def test_near_copies_between_two_files_are_found_in_chinese(write):
    train = write(
        "train.csv", "text,label\n天鹅湖精装小户型20日开盘均价6000总价18万,a\n工银国际建材开局理想,b\n"
    )
    test = write("test.csv", "text,label\n高盛将买进名单,b\n天鹅湖精装小户型20日开盘均价6000总价18万(图),a\n")
    leakage = check(train, against=test).leakage
    assert (leakage.exact, leakage.near) == (0, 1)
    assert (leakage.leaks[0].line, leakage.leaks[0].other_line) == (2, 3)
