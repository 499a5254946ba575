"""A cleaned copy differs from its original where it was told to, and nowhere else."""

from __future__ import annotations

import gzip
import json

import pytest

from newsdesk.data.stream import read_table
from newsdesk.errors import UserError
from newsdesk.evaluation.audit.cleaned_copy import require_free_target, write_cleaned

CSV = b'\xef\xbb\xbflabel,text\r\nA,"two\r\nlines"\r\nB, plain \r\n\r\nA,"say ""hi"""\r\nB,last'
JSONL = (
    b'{"text": "one", "label": 1, "extra": 2}\n{"label": 0, "text": "\\u00e9 two"}\n{"text":"3","label":1}'
)
TAB = b"Category\tText\nd\ts\nclass\tmeta\nearn\tone\ntrade\ttwo\nearn\tthree\n"


def cleaned(tmp_path, name, content, *, drop=(), relabel=None, column="label", target=None):
    source = tmp_path / name
    source.write_bytes(content)
    written = tmp_path / (target or f"cleaned-{name}")
    cells = {row: {column: cell} for row, cell in (relabel or {}).items()}
    write_cleaned(read_table(source), written, drop=drop, relabel=cells)
    assert source.read_bytes() == content
    return written.read_bytes()


def test_without_changes_every_byte_is_kept(tmp_path):
    assert cleaned(tmp_path, "rows.csv", CSV) == CSV
    assert cleaned(tmp_path, "rows.jsonl", JSONL) == JSONL
    assert cleaned(tmp_path, "rows.tab", TAB, column="Category") == TAB


def test_rows_go_with_all_their_lines_and_a_relabelled_one_keeps_its_cells(tmp_path):
    expected = b"\xef\xbb\xbflabel,text\r\nA, plain \r\n\r\nB,last".replace(b"\r\n\r\n", b"\r\n")
    assert cleaned(tmp_path, "rows.csv", CSV, drop={0, 2}, relabel={1: "A"}) == expected


def test_json_keeps_its_keys_and_their_types(tmp_path):
    lines = cleaned(tmp_path, "rows.jsonl", JSONL, drop={2}, relabel={0: 0}).splitlines()
    assert [json.loads(line) for line in lines] == [
        {"text": "one", "label": 0, "extra": 2},
        {"label": 0, "text": "\u00e9 two"},
    ]


def test_orange_headers_stay(tmp_path):
    written = cleaned(tmp_path, "rows.tab", TAB, drop={1}, relabel={2: "trade"}, column="Category")
    assert written == b"Category\tText\nd\ts\nclass\tmeta\nearn\tone\ntrade\tthree\n"


def test_packed_files_stay_packed_by_their_name(tmp_path):
    packed = cleaned(tmp_path, "rows.csv.gz", gzip.compress(CSV), drop={0})
    assert gzip.decompress(packed) == CSV.replace(b'A,"two\r\nlines"\r\n', b"")


def test_parquet_keeps_columns_types_and_metadata(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    schema = pyarrow.schema(
        [("text", pyarrow.string()), ("label", pyarrow.int8())], metadata={"huggingface": "{}"}
    )
    table = pyarrow.table({"text": ["a", "b", "c"], "label": [0, 1, None]}, schema=schema)
    parquet.write_table(table, tmp_path / "rows.parquet")
    target = tmp_path / "cleaned.parquet"
    source = read_table(tmp_path / "rows.parquet")
    write_cleaned(source, target, drop={1}, relabel={0: {"label": 1}})
    found = parquet.read_table(target)
    assert found.to_pydict() == {"text": ["a", "c"], "label": [1, None]}
    assert found.schema.equals(schema, check_metadata=True)


def test_odd_targets_are_refused(tmp_path):
    (tmp_path / "rows.csv").write_bytes(CSV)
    (tmp_path / "there.csv").write_bytes(b"x")
    (tmp_path / "link.csv").symlink_to(tmp_path / "rows.csv")
    table = read_table(tmp_path / "rows.csv")
    for name, message in {
        "rows.csv": "never changed",
        "link.csv": "never changed",
        "there.csv": "something at",
        "other.jsonl": "has the format of the data, csv",
        "rows.xlsy": "not known",
        "": "something at",
    }.items():
        with pytest.raises(UserError, match=message):
            require_free_target(table, tmp_path / name)
    assert (tmp_path / "rows.csv").read_bytes() == CSV


@pytest.mark.parametrize("end", ["\r\n", "\r"])
@pytest.mark.parametrize(
    ("encoding", "delimiter", "quote"),
    [("cp1252", ";", "'"), ("utf-16", "\t", '"'), ("utf-8-sig", "|", '"'), ("gb18030", ",", '"')],
)
def test_a_copy_is_written_in_the_dialect_and_encoding_of_the_data(tmp_path, encoding, delimiter, quote, end):
    rows = [("AB"[n % 2], f"Die B\u00f6rse{delimiter} Nr. {n}, schlie\u00dft") for n in range(6)]

    def text(rows):
        cells = [("label", "text"), *rows]
        return "".join(delimiter.join(f"{quote}{cell}{quote}" for cell in row) + end for row in cells)

    if encoding == "gb18030":
        rows = [
            (label, f"交行拟明年赴港发行人民币债券,国足主场战平对手 {n}") for n, (label, _) in enumerate(rows)
        ]
    written = cleaned(tmp_path, "rows.csv", text(rows).encode(encoding), drop={1}, relabel={2: "C"})
    expected = [rows[0], ("C", rows[2][1]), *rows[3:]]
    assert read_table(tmp_path / "cleaned-rows.csv").rows == tuple(expected)
    untouched = text([rows[0], *rows[3:]]).encode(encoding).splitlines(keepends=True)
    assert set(untouched) <= set(written.splitlines(keepends=True))


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.zip", "rows.xlsx"])
def test_what_cannot_be_copied_line_by_line_is_refused(tmp_path, name):
    from newsdesk.data.table import Table

    table = Table(tmp_path / name, ("text", "label"), (("a", "b"), ("c", "d")), (1, 1), has_header=True)
    with pytest.raises(UserError, match="csv, tsv, jsonl or parquet"):
        require_free_target(table, tmp_path / f"new-{name}")


def test_several_labels_are_written_as_the_file_writes_them(tmp_path):
    """Ids of the Hub's ClassLabel, marks of any spelling, JSON in csv, cells with a separator."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    from newsdesk.evaluation.audit.audited_rows import load_audited

    names = {"names": ["sport", "money"], "_type": "ClassLabel"}
    types = {"label": {"feature": names, "_type": "Sequence"}}
    ids = pyarrow.array([[0], [1, 0], []], pyarrow.list_(pyarrow.int64()))
    table = pyarrow.table({"text": ["a", "b", "c"], "label": ids})
    huggingface = {"huggingface": json.dumps({"info": {"features": types}})}
    parquet.write_table(table.replace_schema_metadata(huggingface), tmp_path / "ids.parquet")
    (tmp_path / "marks.csv").write_text("text;sport;money\na;yes;0.0\nb;yes;1.0\nc;no;\n")
    (tmp_path / "json.csv").write_text('text,label\na,"[""sport""]"\nb,"[""money"", ""sport""]"\nc,[]\n')
    (tmp_path / "joined.csv").write_text("text,label\na,sport\nb,money | sport\nc,\n")
    forms = {
        "ids.parquet": {},
        "marks.csv": {"label_columns": ["sport", "money"]},
        "json.csv": {},
        "joined.csv": {"label_separator": "|"},
    }
    for name, form in forms.items():
        rows = load_audited(str(tmp_path / name), split="train", **form)
        cells = rows.cells({0: ("sport", "money"), 1: (), 2: ("money",)})
        write_cleaned(rows.table, tmp_path / f"new-{name}", drop=(), relabel=cells)
        again = load_audited(str(tmp_path / f"new-{name}"), split="train", **form)
        assert [set(each.split(";")) for each in again.labels] == [{"sport", "money"}, {""}, {"money"}]
    assert parquet.read_table(tmp_path / "new-ids.parquet")["label"].to_pylist() == [[0, 1], [], [1]]
    assert (tmp_path / "new-marks.csv").read_text() == "text;sport;money\na;yes;1.0\nb;no;0.0\nc;no;1.0\n"
    assert (tmp_path / "new-joined.csv").read_text() == "text,label\na,sport|money\nb,\nc,money\n"
