"""Data files are read whole or not at all, and every fault is named by its line."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
from pathlib import Path

import pytest

from newsdesk.data.dialect import Dialect
from newsdesk.data.stream import open_rows, read_stream, read_table, read_with_faults
from newsdesk.data.table import Table
from newsdesk.errors import UserError

OFFICIAL = '"3","Oil rises","Prices, again."\n"4","Probe lands","It said ""hello""."\n'


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(data)
        return path

    return write


def error_of(path: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        read_table(path)
    return caught.value


def test_official_ag_news_without_header_keeps_its_first_row_and_gets_its_column_names(write):
    table = read_table(write("train.csv", OFFICIAL))
    assert not table.has_header
    assert table.columns == ("class_index", "title", "description")
    assert table.rows == (
        ("3", "Oil rises", "Prices, again."),
        ("4", "Probe lands", 'It said "hello".'),
    )
    assert table.lines == (1, 2)


@pytest.mark.parametrize(
    ("content", "header"),
    [
        ("class_index,title,description\n3,a,b\n", True),
        ('"Class Index","Title","Description"\n"3","a","b"\n', True),
        ("text,label\nOil rises,2\n", True),
        (",text,label\n0,Oil rises,2\n", True),
        ("text\nOil rises\n", True),
        ("Ressort,Zeile\nSport,Tor gefallen\nKultur,Oper neu\n", True),
        ("wire no,what it says\n12,Tor gefallen\n13,Oper neu\n", True),
        ("Sport,Goal\nSport,Match\n", False),
        ("Oil rises today,2\nRain falls,1\n", False),
        ("Oil\nRain\n", False),
        ("3,title,description\n", False),
        ("Oil,Oil\n1,2\n", False),
        (",\n1,2\n", False),
        (f"label,{'long ' * 20}\na,b\n", False),
    ],
)
def test_a_header_is_told_from_a_first_row(write, content, header):
    assert read_table(write("a.csv", content)).has_header is header


def test_the_caller_overrules_header_detection(write):
    path = write("a.csv", "text,label\nOil,2\n")
    assert read_table(path, Dialect(header=False)).columns == ("column_1", "column_2")
    assert len(read_table(path, Dialect(header=False))) == 2
    assert read_table(write("b.csv", "x y z,q r\nOil,2\n"), Dialect(header=True)).columns == ("x y z", "q r")


def test_a_single_column_of_texts_with_semicolons_is_not_mistaken_for_another_delimiter(write):
    assert len(read_table(write("a.csv", "text\nOil; rain\n"))) == 1
    assert len(read_table(write("b.csv", "Oil up; rain down\nx; y\n"))) == 2


@pytest.mark.parametrize(
    ("content", "columns"),
    [("Oil is up,2\nRain is down,1\n", ("text", "label")), ("0,Oil is up\n1,Rain\n", ("label", "text"))],
)
def test_two_columns_without_header_are_named_when_one_of_them_is_numbers(write, content, columns):
    assert read_table(write("a.csv", content)).columns == columns


def test_quoted_line_breaks_belong_to_the_field_and_lines_are_counted_through_them(write):
    table = read_table(write("a.tsv", 'text\tlabel\n"two\nlines\t!"\t1\n\none\t2\n'))
    assert table.rows == (("two\nlines\t!", "1"), ("one", "2"))
    assert table.lines == (2, 5)


def test_a_field_longer_than_pythons_csv_limit_is_read(write):
    assert len(str(read_table(write("a.csv", f"text,label\n{'x' * 300_000},1\n")).rows[0][0])) == 300_000


def test_every_format_gives_the_same_rows_compressed_or_not(write):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = (("Öl, teuer", "a"), ("Regen", "b"))
    contents = {
        "a.csv": 'text,label\n"Öl, teuer",a\nRegen,b\n',
        "a.tsv": "text\tlabel\r\nÖl, teuer\ta\r\nRegen\tb\r\n",
        "a.tab": "text\tlabel\nstring\td\n\tclass\nÖl, teuer\ta\nRegen\tb\n",
        "a.jsonl": '{"text": "Öl, teuer", "label": "a"}\n\n{"label": "b", "text": "Regen"}',
        "a.ndjson": '\ufeff{"text": "\\u00d6l, teuer", "label": "a"}\n{"text": "Regen", "label": "b"}\n',
    }
    for name, content in contents.items():
        for path in (write(name, content), write(f"{name}.gz", gzip.compress(content.encode()))):
            assert read_table(path).rows == rows
            assert read_table(path).columns == ("text", "label")
    path = write("a.parquet", b"")
    parquet.write_table(pyarrow.table({"text": ["Öl, teuer", "Regen"], "label": ["a", "b"]}), path)
    assert read_table(path).rows == rows
    assert read_table(path).lines == (1, 2)


def test_plain_text_is_one_text_a_line_and_keeps_blank_lines_for_the_row_order(write):
    table = read_table(write("a.txt", 'Oil "rises\r\n\nRain, falls'))
    assert table.columns == ("text",)
    assert table.rows == (('Oil "rises',), ("",), ("Rain, falls",))


def test_orange_files_declare_their_class_and_blank_rows_are_dropped(write):
    content = "Author\tCategory\tText\nd\td\tstring\nclass\tmeta\tinclude=True\n\t\t\nann\tx\thello\n"
    table = read_table(write("a.tab", content))
    assert table.class_column == "Author"
    assert table.rows == (("ann", "x", "hello"),)
    assert table.lines == (5,)


def test_an_orange_file_with_no_roles_at_all_keeps_no_header_line_as_a_row(write):
    assert read_table(write("a.tab", "Text\nstring\n\nhello\n")).rows == (("hello",),)


def test_a_tab_file_without_the_three_header_lines_is_plain_tsv(write):
    table = read_table(write("a.tab", "text\tlabel\nhello\tx\nbye\ty\n"))
    assert table.rows == (("hello", "x"), ("bye", "y"))
    assert len(read_table(write("b.tab", "text\tlabel\nhello\tx\n"))) == 1


def test_jsonl_keeps_value_types_and_other_keys_and_fills_missing_ones_with_none(write):
    table = read_table(write("a.jsonl", '{"text": "a", "label": 3, "id": 1.5}\n{"text": "b", "meta": [1]}\n'))
    assert table.columns == ("text", "label", "id", "meta")
    assert table.rows == (("a", 3, 1.5, None), ("b", None, None, [1]))


def test_class_names_that_the_hubs_parquet_declares_are_kept(write):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = {
        "label": {"_type": "ClassLabel", "names": ["World", "Sports"]},
        "text": {"dtype": "string", "_type": "Value"},
    }
    table = pyarrow.table({"text": ["a"], "label": [1]})
    path = write("a.parquet", b"")
    for metadata, expected in (
        (json.dumps({"info": {"features": features}}), {"label": ("World", "Sports")}),
        ("[]", {}),
        ("{", {}),
    ):
        parquet.write_table(table.replace_schema_metadata({"huggingface": metadata}), path)
        assert read_table(path).class_names == expected


def test_a_table_gives_columns_and_records(write):
    table = read_table(write("a.csv", "text,label\na,1\nb,2\nc,3\n"))
    assert table.column("label") == ("1", "2", "3")
    assert next(iter(table.records())) == {"text": "a", "label": "1"}


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("csv", b"text,label\nOil,1\n"),
        ("jsonl", b'{"text": "Oil", "label": "1"}\n'),
        ("tsv.gz", gzip.compress(b"text\tlabel\nOil\t1\n", mtime=0)),
    ],
)
def test_an_open_stream_is_read_in_the_format_stated(form, content):
    table: Table = read_stream(io.BytesIO(content), form)
    assert table.rows == (("Oil", "1"),)


def read_from_pipe(content: bytes, form: str) -> Table:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as sink:
        sink.write(content)
    with os.fdopen(reading, "rb") as source:
        return read_stream(source, form)


def test_a_parquet_stream_that_cannot_seek_is_read():
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": ["a"]}), buffer)
    assert read_from_pipe(buffer.getvalue(), "parquet").rows == (("a",),)


def test_a_compressed_stream_that_cannot_seek_is_read():
    assert read_from_pipe(gzip.compress(b"text,label\nOil,1\n"), "csv.gz").rows == (("Oil", "1"),)


@pytest.mark.parametrize(
    ("name", "content", "line", "said"),
    [
        ("a.csv", "text,label\na,1\nb\nc,3\n", 3, ["too few fields", "1 where the first row has 2"]),
        ("a.csv", 'text,label\n"a\nb",1\nb,2,3\n', 4, ["too many fields", "3 where the first row has 2"]),
        ("a.csv", 'text,label\na,1\nb,"open\nc,3\n', 3, ["never closed", "line 3, character 3"]),
        ("a.csv", 'text,label\n"a\nb","open\nc\n', 2, ["never closed", "line 3, character 4"]),
        ("a.csv", 'text,label\n"a""b" c,1\n', 2, ["text follows the closing quote", "character 6"]),
        ("a.csv", "text,label\na\rb,1\n", 2, ["carriage return"]),
        ("a.csv", 'text,label\n"a"\rb,1\n', 2, ["text follows the closing quote"]),
        ("a.csv", "text,text\na,1\n", 1, ["two columns are named 'text'"]),
        ("a.csv", b"text,label\nok,1\ncaf\xe9,2\n", 3, ["not UTF-8", "0xe9 as byte 4"]),
        ("a.txt", b"ok\ncaf\xe9\n", 2, ["not UTF-8", "0xe9 as byte 4"]),
        ("a.tsv", b"text\tlabel\na\x00b\t1\n", 2, ["NUL byte", "byte 2"]),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', 2, ["broken JSON", "character"]),
        ("a.jsonl", '{"text": "a"}\n[1, 2]\n', 2, ["not a JSON object", "array", "jq"]),
        ("a.jsonl", '"text"\n', 1, ["not a JSON object", "str"]),
        ("a.jsonl", '{"text": "a", "text": "b"}\n', 1, ["'text' twice"]),
        ("a.jsonl", '{"text": NaN}\n', 1, ["NaN"]),
        ("a.jsonl", '{"text": "\\ud83d"}\n', 1, ["half of a surrogate pair"]),
        ("a.jsonl", "[" * 200_000 + "\n", 1, ["nested too deeply"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', 2, ["not UTF-8"]),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_line(write, name, content, line, said):
    path = write(name, content)
    error = error_of(path)
    assert error.wrong.startswith(f"{name}, line {line}: ")
    for phrase in said:
        assert phrase in str(error)
    assert error.fix


def test_all_faults_are_collected_and_the_good_rows_between_them_kept(write):
    content = b'text,label\na,1\n"b" b,2\nc\n\xff,4\nd,5\n"e,6\nf,7\n'
    table, faults = read_with_faults(write("a.csv", content))
    assert [fault.line for fault in faults] == [3, 4, 5, 7]
    assert [fault.encoding for fault in faults] == [False, False, True, False]
    assert table.rows == (("a", "1"), ("d", "5"), ("f", "7"))
    assert table.lines == (2, 6, 8)
    assert "3 more" in str(error_of(write("a.csv", content)))


def test_every_broken_quote_of_many_is_named_and_what_follows_is_read(write):
    table, faults = read_with_faults(write("a.csv", "text,label\n" + '"a" b,1\n' * 50 + "c,3\n"))
    assert [fault.line for fault in faults] == list(range(2, 52))
    assert table.rows == (("c", "3"),)


def test_a_quote_that_never_closes_does_not_swallow_a_large_file(write):
    many = "b" * 999 + ",2\n"
    table, faults = read_with_faults(write("a.csv", 'text,label\n"a,1\n' + many * 3000))
    assert [fault.line for fault in faults] == [2]
    assert "never closed" in faults[0].wrong
    assert len(table) == 3000


def test_a_line_without_end_is_a_fault_and_not_held_in_memory(write, monkeypatch):
    from newsdesk.data import encoding

    monkeypatch.setattr(encoding, "LONGEST_LINE", 1000)
    table, faults = read_with_faults(write("a.txt", "a\n" + "b" * 5000 + "\nc\n" + "d" * 1000))
    assert table.rows == (("a",), ("c",), ("d" * 1000,))
    assert [(fault.line, "too long" in fault.wrong) for fault in faults] == [(2, True)]


def test_gzip_truncated_within_a_quoted_field_is_no_open_quote(write):
    body = 'text,label\n"' + "".join(f"{i * 7919}\n" for i in range(20_000)) + '",1\n'
    _, faults = read_with_faults(write("a.csv.gz", gzip.compress(body.encode())[:-2000]))
    assert ["breaks off" in fault.wrong for fault in faults] == [True]


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.txt.gz"])
def test_truncated_gzip_is_a_fault_and_never_a_shorter_file(write, name):
    body = {"a.jsonl.gz": '{"text": "%d"}\n', "a.txt.gz": "%d\n"}.get(name, '"%d","\n"\n')
    packed = gzip.compress("".join(body % (i * 7919) for i in range(5000)).encode())
    error = error_of(write(name, packed[: len(packed) // 2]))
    assert "breaks off or is damaged" in error.wrong
    assert "line " in error.wrong


def test_damaged_gzip_is_a_fault(write):
    packed = bytearray(gzip.compress(b"text,label\na,1\n"))
    packed[-6] ^= 0xFF
    assert "breaks off or is damaged" in error_of(write("a.csv.gz", bytes(packed))).wrong


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz"])
def test_a_file_that_is_gzip_only_by_name_is_refused(write, name):
    assert "not gzip-compressed, although its name says so" in error_of(write(name, "text,label\n")).wrong


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"%PDF-1.7\n", "a PDF"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (gzip.compress(b"text\na\n", mtime=0), "add .gz"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"PAR1rest", "parquet"),
    ],
)
def test_files_of_another_kind_than_their_name_are_recognised(write, content, said):
    assert said in str(error_of(write("a.csv", content)))


class Bomb:
    def __reduce__(self):
        return (os.abort, ())


@pytest.mark.parametrize(
    ("name", "protocol"),
    [("a.pkl", 0), ("a.joblib", 2), ("a.pt", 4), ("a.bin.gz", 2), ("a.csv", 2), ("a.jsonl", 4), ("a.txt", 5)],
)
def test_a_pickle_is_never_loaded_whatever_its_name(write, name, protocol):
    error = error_of(write(name, pickle.dumps(Bomb(), protocol=protocol)))
    assert "never loads pickles" in error.wrong
    assert "to_csv" in (error.fix or "")


def test_a_pickle_named_parquet_is_not_loaded_either(write):
    pytest.importorskip("pyarrow")
    assert "pickle" in error_of(write("a.parquet", pickle.dumps(Bomb(), protocol=4))).wrong
    assert "not a whole parquet file" in error_of(write("b.parquet", b"PAR1 cut")).wrong
    assert "not a whole parquet file" in error_of(write("c.parquet", b"text,label")).wrong


def test_parquet_without_pyarrow_names_the_extra(write, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert "newsdesk[parquet]" in str(error_of(write("a.parquet", b"PAR1")))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", b""), ("a.csv", b"\xef\xbb\xbf"), ("a.jsonl", b"\n\n"), ("a.txt", b""), ("a.csv.gz", b"")],
)
def test_an_empty_file_says_so(write, name, content):
    packed = gzip.compress(content) if name.endswith(".gz") else content
    assert "is empty" in error_of(write(name, packed)).wrong


def test_an_empty_file_is_refused_before_a_row_is_asked_for(write):
    with pytest.raises(UserError, match="is empty"), open_rows(write("a.csv", "")):
        pass


def test_a_byte_order_mark_is_no_part_of_the_first_column(write):
    assert read_table(write("a.csv", b"\xef\xbb\xbftext,label\na,1\n")).columns == ("text", "label")


def test_a_missing_file_names_its_nearest_neighbours(write):
    path = write("train.csv", OFFICIAL)
    error = error_of(path.with_name("trian.csv"))
    assert "train.csv" in str(error.found)
    assert str(path) in str(error.fix)
    assert "check the path" in str(error_of(path.parent / "nowhere" / "x.csv").fix)


def test_a_folder_an_unreadable_file_and_an_unknown_format_are_explained(tmp_path, write, monkeypatch):
    (tmp_path / "set.csv").mkdir()
    (tmp_path / "set.csv" / "train.csv").touch()
    assert "train.csv" in str(error_of(tmp_path / "set.csv").found)
    for name in ("a.xlsx", "noending", "a.gz", "a.parquet.gz"):
        assert error_of(write(name, "x")).fix

    def refuse(*_):
        raise PermissionError

    path = write("a.csv", OFFICIAL)
    monkeypatch.setattr(Path, "open", refuse)
    assert "may not be read" in error_of(path).wrong


def test_the_shared_ag_news_rows_are_read_without_a_fault():
    folder = Path(__file__).resolve().parents[3] / "shared" / "ag_news"
    if not folder.is_dir():
        pytest.skip("real AG News rows are not beside the repository (../shared/ag_news)")
    table, faults = read_with_faults(folder / "test.csv")
    assert not faults
    assert len(table) == 3800
    assert table.columns == ("class_index", "title", "description")
