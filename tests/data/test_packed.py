"""JSON, zip archives, workbooks, and folders of classes give the rows that a csv file would give."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import struct
import zipfile
from pathlib import Path

import pytest

from newsdesk.data.columns import text_layout
from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.data.labelled import to_examples
from newsdesk.data.load import load_split
from newsdesk.data.stream import read_table, read_with_faults
from newsdesk.errors import UserError

RECORDS = [
    {
        "category": "THE WORLD",
        "headline": f"Öl steigt, {n} \u201ctimes\u201d",
        "tags": [n],
        "date": "2018-05-17",
    }
    for n in range(40)
]
CSV = "text,label\n" + "".join(f"Öl steigt {n},{'ab'[n % 2]}\n" for n in range(10))


def zipped(**members: str | bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return content.getvalue()


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz"])
@pytest.mark.parametrize("shape", ["array", "indented", "one line", "lines", "objects"])
def test_json_is_read_in_every_shape_that_holds_rows(write, monkeypatch, encoding, name, shape):
    monkeypatch.setattr("newsdesk.data.encoding._BLOCK", 700)  # so that objects lie across blocks
    text = {
        "array": "[\n" + ",\n".join(json.dumps(each, ensure_ascii=False) for each in RECORDS) + "\n]\n",
        "indented": "\n " + json.dumps(RECORDS, indent=1, ensure_ascii=False),
        "one line": json.dumps(RECORDS, ensure_ascii=False),
        "lines": "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in RECORDS),
        "objects": "\n".join(json.dumps(each, indent=2, ensure_ascii=False) for each in RECORDS),
    }[shape]
    content = text.encode(encoding)
    table, faults = read_with_faults(write(name, gzip.compress(content) if name.endswith("gz") else content))
    assert not faults
    assert list(table.records()) == RECORDS
    if shape == "indented":
        assert table.lines[:2] == (3, 11)


@pytest.mark.parametrize(
    ("content", "line", "said", "rows"),
    [
        ('[{"a": 1},\n{"a": 2},\n{"a": ', 3, "broken JSON", 2),
        ('[{"a": 1},\n{"a": 2}', 2, "never closed", 2),
        ('[{"a": 1},\n{"a": oops},\n{"a": 3}]', 2, "broken JSON", 1),
        ('[{"a": 1},\n"text",\n{"a": 3}]', 2, "not a JSON object", 2),
        ('[{"a": 1},\n{"a": 2, "a": 3},\n{"a": NaN},\n{"a": 3}]', 2, "unambiguously", 2),
        ('[{"a": 1}\n]\n[{"a": 2}]', 3, "something follows", 1),
        ('[{"a": 1},\n{"a": "\\ud83d"}]', 2, "half of a surrogate pair", 1),
    ],
)
def test_what_is_wrong_in_an_array_is_named_by_line_and_never_a_shorter_file(
    write, content, line, said, rows
):
    table, faults = read_with_faults(write("a.json", content))
    assert (faults[0].line, said in faults[0].wrong) == (line, True)
    assert len(table) == rows


def test_a_broken_byte_in_an_array_is_a_fault_of_its_row(write):
    table, faults = read_with_faults(write("a.json", b'[{"a": "ok"},\n{"a": "caf\xe9"},\n{"a": "ok"}]'))
    assert [(fault.line, fault.encoding) for fault in faults] == [(2, True)]
    assert len(table) == 2


def test_a_damaged_archive_of_json_is_no_shorter_file(write):
    packed = gzip.compress(json.dumps([{"a": n * 7919} for n in range(9000)]).encode())
    _, faults = read_with_faults(write("a.json.gz", packed[: len(packed) // 2]))
    assert ["breaks off" in fault.wrong for fault in faults] == [True]


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        ({"version": "1", "data": RECORDS}, "jq -c '.data[]'"),
        ({"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}, "orient='records'"),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_rows_within_one_object_are_named_with_the_way_out(write, value, fix, indent):
    with pytest.raises(UserError, match="not a list of rows") as caught:
        read_table(write("a.json", json.dumps(value, indent=indent)))
    assert fix in str(caught.value.fix)


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "deep/rows.csv.gz", "rows.parquet"])
def test_a_zip_archive_is_read_as_the_file_within(write, name):
    member: str | bytes = CSV
    if name.endswith(".gz"):
        member = gzip.compress(CSV.encode())
    elif name.endswith(".parquet"):
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        sink = io.BytesIO()
        plain = read_table(write("plain.csv", CSV))
        parquet.write_table(pyarrow.table({name: plain.column(name) for name in plain.columns}), sink)
        member = sink.getvalue()
    others = {"__MACOSX/._rows.csv": "x", "README.txt": "what it is", ".DS_Store": "x", "logo.png": "x"}
    table = read_table(write("a.zip", zipped(**others, **{name: member})))
    assert table.rows == read_table(write("b.csv", CSV)).rows
    assert "in the archive" in table.read_as


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (zipped(**{"a.csv": "x", "b.tsv": "y"}), "found: a.csv, b.tsv"),
        (zipped(**{"logo.png": "x"}), "no data files"),
        (zipped(), "no data files"),
        (b"text,label\na,b\n", "not a whole zip archive"),
        (zipped(**{"a.csv": CSV * 50})[:-30], "not a whole zip archive"),
        (zipped(**{"a.csv": "", "inner.zip": zipped(**{"b.csv": CSV})}), "is empty"),
    ],
)
def test_an_archive_that_cannot_be_taken_for_a_file_says_why(write, content, said):
    with pytest.raises(UserError, match=said):
        read_table(write("a.zip", content))


def test_an_encrypted_or_damaged_member_is_refused(write):
    plain = bytearray(zipped(**{"a.csv": CSV}))
    directory = plain.rindex(b"PK\x01\x02")
    flagged = bytearray(plain)
    flagged[directory + 8] |= 1
    with pytest.raises(UserError, match="encrypted"):
        read_table(write("a.zip", bytes(flagged)))
    damaged = bytearray(plain)
    damaged[directory + 16] ^= 0xFF  # its checksum
    with pytest.raises(UserError, match="breaks off or is damaged"):
        read_table(write("b.zip", bytes(damaged)))


def test_a_member_that_would_grow_beyond_all_measure_is_not_unpacked(write):
    bomb = bytearray(zipped(**{"../../a.csv": CSV}))
    directory = bomb.rindex(b"PK\x01\x02")
    bomb[directory + 24 : directory + 28] = struct.pack("<I", (1 << 32) - 2)  # its size, as stated
    with pytest.raises(UserError, match="packed too tightly"):
        read_table(write("a.zip", bytes(bomb)))
    assert len(read_table(write("b.zip", zipped(**{"../../a.csv": CSV})))) == 10
    assert not (Path(write("c", "")).parent.parent.parent / "a.csv").exists()


def workbook(*sheets: list[list[object]]) -> bytes:
    openpyxl = pytest.importorskip("openpyxl")
    book, content = openpyxl.Workbook(), io.BytesIO()
    for number, rows in enumerate(sheets):
        sheet = book.active if number == 0 else book.create_sheet()
        for row in rows:
            sheet.append(row)
    book.save(content)
    return content.getvalue()


def test_a_workbook_is_a_table_with_its_types(write):
    rows = [
        ["Haber Metni", "Kategori", "Tag", None],
        ["Takım şampiyon oldu", 1, datetime.date(2026, 11, 27), None],
        [None, None, None],
        ["Faiz arttı", 2, datetime.datetime(2026, 11, 27, 9, 30), None],
    ]
    path = write("a.xlsx", workbook(rows, [], [[]]))
    table = read_table(path)
    assert table.columns == ("Haber Metni", "Kategori", "Tag")
    assert table.rows == (
        ("Takım şampiyon oldu", 1, "2026-11-27"),
        ("Faiz arttı", 2, "2026-11-27T09:30:00"),
    )
    assert table.lines == (2, 4)
    assert to_examples(table, text_layout(table, text=["Haber Metni"]), label="Kategori").label_names == (
        "1",
        "2",
    )
    assert read_table(write("b.zip", zipped(**{"a.xlsx": path.read_bytes()}))).rows == table.rows


def test_a_workbook_without_a_header_is_told_and_asked_by_place(write):
    rows = [["Sport" if n % 2 else "Kultur", f"Die Nachricht {n} ist da"] for n in range(8)]
    path = write("a.xlsx", workbook(rows))
    assert read_table(path).columns == ("label", "text")
    table = read_table(path, DETECTED.asking(["2"], "1"))
    assert len(to_examples(table, text_layout(table, text=["2"]), label="1")) == 8
    assert read_table(path, Dialect(header=True)).columns == ("Kultur", "Die Nachricht 0 ist da")


def test_a_workbook_that_cannot_be_taken_for_a_table_says_why(write, monkeypatch):
    for content, said in (
        (workbook([["a"]], [["b"]]), "2 sheets"),
        (workbook([]), "is empty"),
        (b"\xd0\xcf\x11\xe0 protected", "protected Office file"),
        (zipped(**{"a.csv": CSV}), "not a whole Excel workbook"),
        (b"text,label\n", "not a whole zip archive"),
    ):
        with pytest.raises(UserError, match=said):
            read_table(write("a.xlsx", content))
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(UserError, match=r"newsdesk\[xlsx\]"):
        read_table(write("a.xlsx", zipped()))


@pytest.mark.parametrize(
    "name", ["a.xls", "a.ods", "a.docx", "a.pdf", "a.html", "a.tar.gz", "a.bz2", "a.sav"]
)
def test_other_formats_are_named_with_the_way_out(write, name):
    with pytest.raises(UserError, match="newsdesk does not read") as caught:
        read_table(write(name, "x"))
    assert caught.value.fix


TEXTS = {
    "Sport/001.txt": "Die Läuferin\ngewinnt.\n",
    "Sport/deep/2.TXT": "Tor",
    "Kultur/b.txt": "Die Oper ist schön",
    "Kultur/a.txt": "\ufeffDas Gemälde",
    "Kultur/.hidden.txt": "x",
    "Kultur/notes.md": "x",
    ".git/HEAD": "x",
    "empty/picture.png": "x",
}


def test_one_folder_for_each_class_is_a_data_set(write, tmp_path):
    for name, text in TEXTS.items():
        write(f"desk/{name}", text)
    table = load_split(str(tmp_path / "desk"), "train").table
    assert table.rows == (
        ("Das Gemälde", "Kultur", "Kultur/a.txt"),
        ("Die Oper ist schön", "Kultur", "Kultur/b.txt"),
        ("Die Läuferin\ngewinnt.", "Sport", "Sport/001.txt"),
        ("Tor", "Sport", "Sport/deep/2.TXT"),
    )
    assert load_split(str(tmp_path / "desk"), "test").table.rows == table.rows
    assert to_examples(table).label_names == ("Kultur", "Sport")


def test_train_and_test_may_stand_above_the_classes(write, tmp_path):
    for split, text in (("train", "lernen"), ("test", "prüfen")):
        for name in ("pos", "neg"):
            write(
                f"desk/{split}/{name}/17", f"{name} {text}"
            )  # files without an ending, as 20 Newsgroups has
    write("desk/README.txt", "what it is")
    for split, text in (("train", "lernen"), ("test", "prüfen")):
        assert load_split(str(tmp_path / "desk"), split).table.column("text") == (
            f"neg {text}",
            f"pos {text}",
        )
    with pytest.raises(UserError, match="has no split 'dev'"):
        load_split(str(tmp_path / "desk"), "dev")


def test_texts_in_folders_are_decoded_together_and_one_odd_file_is_a_fault(write, tmp_path):
    for n in range(6):
        write(f"latin/a/{n}.txt", f"schön {n}".encode("cp1252"))
        write(f"latin/b/{n}.txt", f"weiß {n}".encode("cp1252"))
        write(f"odd/a/{n}.txt", f"sch\u00f6n {n}")
        write(f"odd/b/{n}.txt", b"\xa3 5" if n == 3 else b"plain")
    assert read_table(tmp_path / "latin").rows[0][0] == "schön 0"
    table, faults = read_with_faults(tmp_path / "odd")
    assert len(table) == 11
    assert "b/3.txt" in faults[0].wrong
    assert read_table(tmp_path / "odd", Dialect(encoding="cp1252")).rows[9][0] == "£ 5"


def test_a_text_file_with_columns_is_a_table_and_one_without_is_not(write):
    assert read_table(write("a.txt", CSV)).columns == ("text", "label")
    assert read_table(write("b.txt", CSV.replace("text,label\n", "").replace(",", "\t"))).columns == (
        "text",
        "label",
    )
    assert read_table(write("c.txt", "Oil, up\nRain, down\n")).rows == (("Oil, up",), ("Rain, down",))
    assert read_table(write("d.txt", "Oil is; up\nRain is; down\n"), Dialect(delimiter=";")).columns == (
        "column_1",
        "column_2",
    )
    assert read_table(write("e.txt", "a\tb\nno tab\n")).columns == ("text",)
