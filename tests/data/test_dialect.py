"""Delimiter, quote, header and encoding are told from the file, or stated."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from newsdesk.data.columns import text_layout
from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.data.labelled import to_examples
from newsdesk.data.stream import read_table, read_with_faults
from newsdesk.errors import UserError

GERMAN = [
    ("Wirtschaft", "Die Börse schließt höher; Banken erhöhen ihre Gebühren, und alle zahlen"),
    ("Sport", "Die Läuferin stürzt vor dem Ziel; der Stürmer schießt, wie so oft, das Tor"),
    ("Kultur", "Das Museum zeigt späte Gemälde; der Regisseur ändert, sagt er, das Stück"),
]
ROWS = [(GERMAN[n % 3][0], f"Nr. {n}: {GERMAN[n % 3][1]}") for n in range(24)]
TURKISH = "Haber Metni,Kategori\n" + "".join(
    f"{text} {n},{label}\n"
    for n in range(8)
    for text, label in (
        ("Takım ligde şampiyon oldu ve kupayı aldı", "Spor"),
        ("Merkez bankası faizi artırdı", "Ekonomi"),
    )
)


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes, encoding: str = "utf-8") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return path

    return write


def lines_of(rows, delimiter, quote="", header="", end="\n"):
    written = [
        delimiter.join(f"{quote}{cell.replace(quote, 2 * quote) if quote else cell}{quote}" for cell in row)
        for row in rows
    ]
    return "".join(line + end for line in ([header] if header else []) + written)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("delimiter", "quote"),
    [(";", '"'), (",", '"'), ("|", ""), ("\t", ""), (";", "'"), (",", "'"), ("\t", '"')],
)
def test_delimiter_and_quote_are_found_whatever_the_name_and_the_line_ends(
    write, name, end, delimiter, quote
):
    for header in ("", delimiter.join(("Ressort", "Der Text"))):
        content = lines_of(ROWS, delimiter, quote, header, end).encode()
        table, faults = read_with_faults(
            write(name, gzip.compress(content) if name.endswith("gz") else content)
        )
        assert not faults
        assert table.rows == tuple(ROWS)
        assert table.dialect is not None
        assert table.dialect.delimiter == delimiter
        assert table.has_header is bool(header)
        assert table.columns == (("Ressort", "Der Text") if header else ("label", "text"))


def test_quotes_seldom_needed_are_found_and_the_other_kind_stays_in_the_texts(write):
    rows = [
        (f"{n % 2}x", 'Er sagt "nein" und geht' if n % 5 else 'So; sagt "er"; geht es') for n in range(40)
    ]
    content = "".join(
        f"{label};{text if ';' not in text else chr(39) + text + chr(39)}\r\n" for label, text in rows
    )
    table = read_table(write("a.csv", content))
    assert table.rows == tuple(rows)
    assert table.dialect is not None
    assert table.dialect.quote == "'"


def test_apostrophes_in_texts_are_no_quotes(write):
    content = (
        "text,label\n"
        + "'Tis the season,a\n'Big Brother' star wins,b\nIt's the 'end',a\n'Oil' up 'again',b\n" * 6
    )
    table, faults = read_with_faults(write("a.csv", content))
    assert not faults
    assert table.rows[1] == ("'Big Brother' star wins", "b")


def test_a_stray_quote_in_tabbed_lines_is_a_character(write):
    content = '"Offen und nie zu\ta\n' + "".join(f"Text {n} steht hier\t{'ab'[n % 2]}\n" for n in range(30))
    table, faults = read_with_faults(write("a.tsv", content))
    assert not faults
    assert table.rows[0] == ('"Offen und nie zu', "a")


def test_quotes_that_never_quote_in_tabbed_lines_are_characters(write):
    rows = [('"goal "x" coach', "a"), ("bank", "b"), ('"it', "b"), ('so "it" is', "a")]
    table, faults = read_with_faults(write("a.tsv", lines_of(rows, "\t", header="text\tlabel")))
    assert not faults
    assert table.rows == tuple(rows)
    quoted = lines_of([(f"Text {n}", "ab"[n % 2]) for n in range(9)], "\t", '"') + '"Offen\ta\n'
    assert [fault.line for fault in read_with_faults(write("b.tsv", quoted))[1]] == [10]


def test_line_breaks_and_doubled_quotes_in_cells_are_understood(write):
    rows = [(f'Zeile {n}\nzweite; Zeile, "so" steht\'s da', "ab"[n % 2]) for n in range(9)]
    assert read_table(write("a.csv", lines_of(rows, ";", '"', "Inhalt;Art"))).rows == tuple(rows)


def test_decimal_commas_do_not_make_columns(write):
    content = "".join(
        f"{n},5;{'ab'[n % 2]};Der Kurs steht bei {n},25 Euro nach {n} Tagen\n" for n in range(12)
    )
    table = read_table(write("a.csv", content))
    assert table.columns == ("column_1", "label", "text")
    assert table.rows[3][2] == "Der Kurs steht bei 3,25 Euro nach 3 Tagen"


@pytest.mark.parametrize("seed", range(5))
def test_texts_full_of_delimiters_fool_nobody(write, seed):
    draw = random.Random(seed)
    words = ["der", "die, also", "das;", "und |", "so", "wie; auch,", "immer"]
    texts = [" ".join(draw.choices(words, k=12)) for _ in range(60)]
    for delimiter in ",;\t|":
        rows = [(str(n), text, draw.choice(["Sport", "Kultur"])) for n, text in enumerate(texts)]
        table = read_table(
            write(
                "a.csv", lines_of(rows, delimiter, '"', delimiter.join(("Nummer", "Was da steht", "Ressort")))
            )
        )
        assert table.rows == tuple(rows)
    assert (
        len(read_table(write("b.csv", lines_of([(text,) for text in texts], ",", '"', "text"))).columns) == 1
    )


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("text;label\n", ("text", "label")),
        ("\ufefftext;label\na;b\n", ("text", "label")),
        ("\ufeff\ufefftext,label\na,b\n", ("text", "label")),
        ("text,label,,\na,b\nc,d\n", ("text", "label")),
        ("text,label,,\na,b,,\nc,d,,\n", ("text", "label", "column_3", "column_4")),
        ("text;label\na;b;\nc;d;;\n", ("text", "label")),
        ("0,1\nOil rises again,Business\nA goal falls,Sport\n", ("0", "1")),
        ("text,label\na,b\n\n \n\t\n\n", ("text", "label")),
        ("Überschrift,Größe\nÖl steigt heute,12\nRegen fällt,13\n", ("Überschrift", "Größe")),
    ],
)
def test_headers_as_people_write_them(write, content, columns):
    table, faults = read_with_faults(write("a.csv", content))
    assert table.columns == columns
    assert table.has_header
    assert not faults


def test_row_numbers_that_the_header_does_not_name_are_a_column(write):
    content = '"text","label"\n' + "".join(f'"{n}","Oil, {n}","a"\n' for n in range(1, 6))
    table, faults = read_with_faults(write("a.csv", content))
    assert not faults
    assert (table.columns, table.rows[0]) == (("column_1", "text", "label"), ("1", "Oil, 1", "a"))
    trailing = write("b.csv", "text,label\nOil,a,\nRain,b,\n")
    assert read_table(trailing).rows == (("Oil", "a"), ("Rain", "b"))
    too_many = write("c.csv", "text,label\nOil,up,a\nOil,down,b\nRain,falls,b\n")
    with pytest.raises(UserError, match="--delimiter, --quote"):
        read_table(too_many)


def test_a_header_of_several_words_in_any_script_is_told_by_the_classes_below_it(write):
    assert read_table(write("a.csv", TURKISH)).columns == ("Haber Metni", "Kategori")
    chinese = "新闻 标题\t类别\n" + "".join(
        f"交行拟明年赴港发行人民币债券{n}\tfinance\n国足主场{n}战平对手无缘世界杯\tsports\n" for n in range(3)
    )
    assert read_table(write("a.tsv", chinese)).columns == ("新闻 标题", "类别")
    without = chinese.partition("\n")[2]
    table = read_table(write("b.tsv", without))
    assert (len(table), table.columns) == (6, ("text", "label"))


def test_names_that_flags_give_make_the_first_line_a_header(write):
    path = write("a.csv", "Haber Metni,Kategori\nkısa,Spor\nuzun,Ekonomi\n")
    assert not read_table(path).has_header or read_table(path).columns == ("Haber Metni", "Kategori")
    for dialect in (
        DETECTED.asking(["Haber Metni"]),
        DETECTED.asking(label="kategori"),
        DETECTED.asking(template="{Haber Metni}!"),
    ):
        assert read_table(path, dialect).columns == ("Haber Metni", "Kategori")
    semicolons = write("b.csv", "Haber Metni;Kategori\nkısa, ama öz;Spor\nuzun, çok;Ekonomi\n")
    assert read_table(semicolons, DETECTED.asking(label="Kategori")).columns == ("Haber Metni", "Kategori")


def test_columns_without_a_header_are_asked_for_by_their_place(write):
    path = write("a.csv", "".join(f"{n % 2 + 1},Die Nachricht Nummer {n} steht hier\n" for n in range(8)))
    for text, label in (("2", "1"), ("column_2", "column_1")):
        table = read_table(path, DETECTED.asking([text], label))
        assert len(table) == 8
        examples = to_examples(table, text_layout(table, text=[text]), label=label)
        assert examples.texts[0] == "Die Nachricht Nummer 0 steht hier"
        assert examples.label_names == ("1", "2")
    numbered = write("b.csv", "0,1\nOil rises today,Business\nA goal falls,Sport\n")
    table = read_table(numbered, DETECTED.asking(["0"], "1"))
    assert to_examples(table, text_layout(table, text=["0"]), label="1").label_names == ("Business", "Sport")


def test_a_name_may_be_written_with_either_kind_of_accent(write):
    table = read_table(
        write("a.csv", "Cate\u0301gorie,Texte\nSport,Le but est marque\nSport,La fin du match\n")
    )
    assert to_examples(table, text_layout(table, text=["Texte"]), label="Cat\u00e9gorie").label_names == (
        "Sport",
    )


def test_the_fix_names_the_columns_of_the_file(write):
    content = "Résumé de l'article;Catégorie\n" + "".join(
        f"Le but numéro {n} est marqué;{'ab'[n % 2]}\n" for n in range(8)
    )
    with pytest.raises(UserError, match="--text \"Résumé de l'article\" --label 'Catégorie'"):
        to_examples(read_table(write("a.csv", content)))


def test_a_column_that_is_the_same_in_all_rows_is_no_class_beside_another(write):
    content = "".join(f"Reuters;Die Nachricht {n} steht hier;{'ab'[n % 2]}\n" for n in range(8))
    assert read_table(write("a.csv", content)).columns == ("column_1", "text", "label")


def test_the_text_is_told_without_a_label_beside_it(write):
    content = "".join(f"{1000 + n};Die Nachricht Nummer {n} steht hier;{n}.5.2026\n" for n in range(9))
    assert read_table(write("a.csv", content)).columns == ("column_1", "text", "column_3")


def test_the_line_in_which_excel_names_the_delimiter_is_no_row(write):
    for first in ("sep=;", '"sep=;"', "SEP=;"):
        table = read_table(
            write("a.csv", f"{first}\r\nInhalt;Art\r\nEins, zwei;a\r\nDrei;b\r\n"), Dialect(header=True)
        )
        assert (table.columns, table.lines) == (("Inhalt", "Art"), (3, 4))


def test_columns_that_cannot_be_told_are_asked_for_with_the_flags(write):
    table = read_table(
        write("a.csv", "Das ist ein Satz;Das ist noch einer\nUnd so geht es;immer weiter hier\n")
    )
    with pytest.raises(UserError, match="--text 2 --label 1"):
        to_examples(table)


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"delimiter": "||"}, "--delimiter"),
        ({"delimiter": ""}, "--delimiter"),
        ({"quote": "''"}, "--quote"),
        ({"delimiter": ";", "quote": ";"}, "--quote"),
        ({"encoding": "latin-17"}, "--encoding"),
        ({"encoding": "base64"}, "--encoding"),
    ],
)
def test_what_cannot_separate_quote_or_encode_is_refused(given, flag):
    with pytest.raises(UserError, match=flag):
        Dialect(**given)


def test_what_is_stated_is_done(write):
    path = write("a.csv", "text~label\n*a~b*~c\nd~e\n")
    assert read_table(path, Dialect(delimiter="~", quote="*")).rows == (("a~b", "c"), ("d", "e"))
    assert Dialect(delimiter="tab").delimiter == Dialect(delimiter=r"\t").delimiter == "\t"
    assert read_table(write("b.csv", 'text,label\n"a,b\n'), Dialect(quote="none")).rows == (('"a', "b"),)
    for content in ("text;label\na;b\n", "Haber Metni;Kategori\nkısa bir;Spor\nuzun bir;Spor\n"):
        with pytest.raises(UserError, match="--delimiter ';'"):
            read_table(write("c.csv", content), Dialect(delimiter=","))
    assert len(read_table(write("d.csv", "Oil; up\nRain; it falls\n"), Dialect(delimiter=","))) == 2


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_are_found_compressed_or_not(write, encoding, end):
    content = lines_of(ROWS, ";", '"', "Ressort;Der Text", end).encode(encoding)
    for path in (write("a.csv", content), write("a.csv.gz", gzip.compress(content))):
        table, faults = read_with_faults(path)
        assert not faults
        assert table.rows == tuple(ROWS)
        assert table.columns == ("Ressort", "Der Text")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1254", "Takım ligde şampiyon oldu ve Golcü oyuncu iki gol attı"),
        ("cp1252", "São Paulo não terá eleições amanhã, diz o Governo"),
        ("cp1252", "Ríkisstjórnin kynnti ný lög í gær, það er mikið að gera"),
        ("cp1252", "L\u2019été, le café fermé et l\u2019élection du président"),
        ("cp1252", "De coördinatie van de ministers in België"),
        ("cp1250", "Győzött a magyar válogatott, hűvös idő várható"),
        ("cp1250", "Příští týden bude chladněji, Česká republika"),
        ("iso8859_2", "Łódź: prezydent ogłosił wyniki, Gdańsk świętuje"),
        ("cp1251", "Банк повысил ставку, президент подписал закон"),
        ("koi8_r", "Банк повысил ставку, президент подписал закон"),
        ("cp1250", "Łódź: prezydent ogłosił wyniki wyborów, Gdańsk świętuje"),
        ("gb18030", "中国经济增长，足球比赛胜利，教育部宣布新政策"),
        ("cp932", "日本の経済は成長している。サッカーの試合に勝った"),
        ("cp949", "한국 경제가 성장했다. 축구 경기에서 이겼다"),
        ("cp1256", "أعلن البنك المركزي رفع الفائدة وفاز الفريق بالمباراة"),
        ("cp1252", "It\u2019s a \u201cna\u00efve\u201d idea, said the caf\u00e9"),
    ],
)
def test_older_encodings_are_told_by_their_texts(write, encoding, text):
    content = "text\tlabel\n" + "".join(f"{text} {n}\t{n % 2}\n" for n in range(6))
    table = read_table(write("a.tsv", content, encoding))
    assert table.rows[5][0] == f"{text} 5"
    assert "lines 2, 3, 4 ... are not UTF-8" in table.read_as


def test_one_broken_byte_is_a_fault_and_no_other_encoding(write):
    for sentence in ("plain ascii words", "schöne Wörter"):
        rows = [f"{sentence} {n},{n % 2}\n".encode() for n in range(10_000)]
        rows[777] = b"bro\xe9ken,1\n"
        table, faults = read_with_faults(write("a.csv", b"text,label\n" + b"".join(rows)))
        assert len(table) == 9_999
        assert [(fault.line, fault.encoding) for fault in faults] == [(779, True)]
        assert "--encoding" in str(faults[0].fix)
        assert table.dialect is not None
        assert table.dialect.encoding == "utf-8"


def test_a_stated_encoding_is_used_and_what_it_lacks_is_a_fault_by_line(write):
    path = write("a.csv", b"text,label\ncaf\xe9,a\nbad \x81 byte,b\n")
    table, faults = read_with_faults(path, Dialect(encoding="windows-1252"))
    assert table.rows == (("café", "a"),)
    assert [fault.line for fault in faults] == [3]
    assert "not cp1252" in faults[0].wrong
    with pytest.raises(UserError, match="UTF-16"):
        read_table(write("b.csv", "text,label\na,b\n", "utf-16"), Dialect(encoding="utf-8"))


def test_full_width_commas_separate_columns_where_every_row_has_them_and_are_prose_elsewhere(write):
    rows = [("体育", "球队赢得了比赛"), ("财经", "银行公布利润"), ("科技", "望远镜发现行星")] * 5
    for delimiter in "，；":
        table = read_table(write("a.csv", lines_of(rows, delimiter, header=f"label{delimiter}text")))
        assert table.columns == ("label", "text")
        assert table.rows == tuple(rows)
        assert delimiter in table.read_as
    prose = [(f"球队赢得了比赛，{number}" + "，大家高兴" * (number % 2),) for number in range(9)]
    assert read_table(write("b.csv", lines_of(prose, ",", header="text"))).rows == tuple(prose)
    quoted = [(label, f"{text}，大家高兴") for label, text in rows]
    assert read_table(write("c.csv", lines_of(quoted, ",", header="label,text"))).rows == tuple(quoted)
