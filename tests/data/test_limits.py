"""What a stranger's file may hold has limits: rows beyond are bad rows, and memory is bounded."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from newsdesk.config import DataSection
from newsdesk.data import encoding
from newsdesk.data.check import check
from newsdesk.data.columns import TextLayout
from newsdesk.data.dialect import Dialect
from newsdesk.data.labelled import to_examples
from newsdesk.data.load import dialect_of
from newsdesk.data.stream import open_rows, read_table, read_with_faults
from newsdesk.data.table import LONGEST_TEXT, Row
from newsdesk.errors import UserError

LONG = "x" * 1_000_001
ROWS = [("a", "goal"), ("b", LONG), ("a", "bank")]


def written(path: Path, rows: list[tuple[str, str]]) -> Path:
    """The rows, with a header, in the format that the name says."""
    table = [("label", "text"), *rows]
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(dict(zip(table[0], row, strict=True)))}\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps([dict(zip(table[0], row, strict=True)) for row in rows]))
    elif path.suffix == ".txt":
        path.write_text("".join(f"{text}\n" for _, text in rows))
    elif path.suffix == ".parquet":
        label, text = zip(*rows, strict=True)
        parquet.write_table(pa.table({"label": label, "text": text}), path)
    else:
        path.write_text("".join(f"{label},{text}\n" for label, text in table))
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.txt", "a.parquet"])
def test_a_cell_that_is_too_long_rejects_its_row(name: str, tmp_path: Path):
    path = written(tmp_path / name, ROWS)
    table, (fault,) = read_with_faults(path)
    assert table.column("text") == ("goal", "bank")
    assert fault.wrong == "a cell is too long"
    assert fault.line == {"a.csv": 3, "a.json": 1}.get(name, 2)
    raised = Dialect(max_characters=2_000_000)
    assert read_table(path, raised).column("text") == tuple(text for _, text in ROWS)


@pytest.mark.parametrize("levels", [101, 900])
def test_a_cell_that_is_nested_too_deeply_rejects_its_row(levels: int, tmp_path: Path):
    path, nested = tmp_path / "a.jsonl", "[" * levels + "]" * levels
    path.write_text(f'{{"text": "goal"}}\n{{"text": "bank", "extra": {nested}}}\n{{"text": "orbit"}}\n')
    table, (fault,) = read_with_faults(path)
    assert table.column("text") == ("goal", "orbit")
    assert (fault.line, fault.wrong) == (2, "nested too deeply")


def test_a_line_far_beyond_the_longest_cell_is_not_held(tmp_path: Path):
    for name in ("a.csv", "a.jsonl", "a.txt"):
        table, (fault,) = read_with_faults(written(tmp_path / name, [*ROWS[:1], ("b", LONG * 17), *ROWS[2:]]))
        assert (len(table), fault.wrong) == (2, "the line is too long to be a row of text")


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ('{"text": "' + r"a \" ] } \\" * 2_200_000 + '"}', "a row is too long"),
        ('{"text": "x", "label": ' + "9" * 5000 + "}", "JSON that cannot be read unambiguously"),
        ("9" * 5000, "JSON that cannot be read unambiguously"),
        ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ],
    ids=["long", "digits", "number", "deep"],
)
def test_what_cannot_be_read_in_an_array_costs_its_row_and_no_other(value: str, wrong: str, tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text(f'[{{"text": "goal"}},\n{value},\n{{"text": "bank"}}]')
    table, (fault,) = read_with_faults(path)
    assert table.column("text") == ("goal", "bank")
    assert (fault.line, fault.wrong) == (2, wrong)
    path.write_text(path.read_text()[:-40])
    assert read_with_faults(path)[1][-1].wrong in ("the array is never closed", "broken JSON")


def test_columns_beyond_the_limit_reject_their_rows(tmp_path: Path):
    wide = ",".join("1" for _ in range(1001))
    (tmp_path / "a.csv").write_text(f"label,text\na,goal\n{wide}\nb,bank\n")
    (tmp_path / "b.csv").write_text(f"{wide}\n" * 9)
    many = {"text": "x", **{f"k{n}": 1 for n in range(1000)}}
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n{json.dumps(many)}\n{{"text": "b"}}\n')
    new = ({"text": "x", f"k{n}": 1} for n in range(1200))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, new)))
    parquet.write_table(pa.table({f"c{n}": ["x"] for n in range(1001)}), tmp_path / "a.parquet")
    for name, rows, faults in (("a.csv", 2, 1), ("a.jsonl", 2, 1), ("b.jsonl", 999, 201)):
        table, found = read_with_faults(tmp_path / name)
        assert (len(table), len(found)) == (rows, faults)
        assert {fault.wrong for fault in found} == {"too many columns"}
    for name in ("b.csv", "a.parquet"):
        with pytest.raises(UserError, match=r"line 1: too many columns\nfound: 1,001 where at most 1,000"):
            read_table(tmp_path / name)
        assert len(read_table(tmp_path / name, Dialect(max_columns=1001)).columns) == 1001


@pytest.mark.parametrize("content", [b"\n", b"\0", b"a", b"a,goal\n"])
def test_a_compressed_file_that_grows_too_much_is_refused_at_once(content: bytes, tmp_path: Path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(content * ((20 << 20) // len(content))))
    with pytest.raises(UserError, match="packed too tightly to be data"):
        read_table(path)


def test_what_a_compressed_file_may_grow_to_can_be_raised_and_lowered(tmp_path: Path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"text,label\n" + b"goal goal goal,a\n" * 100_000))
    assert len(read_table(path)) == 100_000
    with pytest.raises(UserError, match="it grows to more than 1,000,000 bytes"):
        read_table(path, Dialect(max_unpacked=1_000_000))
    bomb = gzip.compress(b"text,label\n" + b"goal goal goal,a\n" * 1_100_000)
    path.write_bytes(bomb)
    with pytest.raises(UserError, match="packed too tightly to be data"):
        read_table(path)
    with open_rows(path, Dialect(max_unpacked=1 << 30)) as rows:
        assert isinstance(next(rows.rows), Row)
    parquet.write_table(pa.table({"text": ["goal"] * 10_000}), tmp_path / "a.parquet")
    assert len(read_table(tmp_path / "a.parquet")) == 10_000
    with pytest.raises(UserError, match=r"a.parquet is packed too tightly(?s:.*)to 40,000"):
        read_table(tmp_path / "a.parquet", Dialect(max_unpacked=39_999))


def test_values_that_python_cannot_hold_reject_their_rows(tmp_path: Path):
    days = pa.array([0, 6_585_000, 0], pa.date32())  # the year 20,000
    texts = pa.array([b"goal", b"bank", b"\xff"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"text": texts, "day": days}), tmp_path / "a.parquet")
    table, faults = read_with_faults(tmp_path / "a.parquet")
    assert table.rows == (("goal", date(1970, 1, 1)),)
    assert [(fault.line, fault.wrong) for fault in faults] == [
        (2, "a date32[day] that cannot be read"),
        (3, "a string that cannot be read"),
    ]
    columns = [pa.array(["x"]), pa.array(["y"])]
    parquet.write_table(pa.Table.from_arrays(columns, names=["text", "text"]), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"two columns of b.parquet are named 'text'"):
        read_table(tmp_path / "b.parquet")


def test_a_file_that_is_nothing_but_faults_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoding, "_MOST_BLANK_LINES", 1000)
    (tmp_path / "a.csv").write_text("label,text\na,goal\n" + "x\n" * 20_000)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + "x\n" * 20_000)
    (tmp_path / "b.csv").write_text("label,text\na,goal\n" + "\n" * 1200)
    for name, found in (("a.csv", "10,000 faults"), ("a.jsonl", "10,000 faults"), ("b.csv", "blank lines")):
        with pytest.raises(UserError, match=rf"{name} is not a file of rows\nfound: .*{found}"):
            read_with_faults(tmp_path / name)


def test_a_file_of_a_folder_of_classes_that_is_too_long_is_a_bad_row(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.txt").write_text("goal")
    (tmp_path / "b" / "2.txt").write_text(LONG)
    os.truncate(tmp_path / "b" / "2.txt", 3 << 30)
    table, (fault,) = read_with_faults(tmp_path)
    assert (len(table), fault.line, fault.wrong) == (2, 3, "a cell is too long")


def test_a_sheet_has_as_many_rows_and_columns_as_it_can_have(tmp_path: Path):
    from openpyxl import Workbook

    book = Workbook()
    book.active.append(["label", "text"])
    book.active.append(["a", "goal"])
    book.active.cell(3, 1001).value = "far right"
    book.active.cell(4, 2).value = "bank"
    book.active.cell(5, 2).value = "far below"
    book.save(tmp_path / "whole.xlsx")
    path = tmp_path / "a.xlsx"
    with zipfile.ZipFile(tmp_path / "whole.xlsx") as whole, zipfile.ZipFile(path, "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name).replace(b'r="5"', b'r="900000000"'))
    table, faults = read_with_faults(path)
    assert table.rows == (("a", "goal"), (None, "bank"))
    assert [fault.line for fault in faults] == [3, (1 << 20) + 1]


def test_labels_that_are_none_are_faults_and_too_many_are_one_sentence(tmp_path: Path):
    deep = "[" * 900 + "]" * 900
    digits = "9" * 5000
    (tmp_path / "a.jsonl").write_text(
        f'{{"text": "goal", "label": "a"}}\n{{"text": "bank", "label": {deep}}}\n'
        f'{{"text": "bank", "label": {digits}}}\n{{"text": "bank", "label": "{digits}"}}\n'
    )
    report = check(tmp_path / "a.jsonl")
    assert [(fault.line, fault.wrong) for fault in report.malformed] == [
        (2, "nested too deeply"),
        (3, "JSON that cannot be read unambiguously"),
    ]
    assert all(len(str(fault)) < 300 for fault in report.label_faults)
    path = written(tmp_path / "a.csv", [(f"label {n}", "goal") for n in range(10_001)])
    with pytest.raises(UserError, match=r"too many classes in a\.csv\nfound: 10,001 labels in 10,001 rows"):
        to_examples(read_table(path))


def test_a_text_made_of_long_cells_is_refused_by_line(tmp_path: Path):
    cells = ["x" * 999_999] * 5
    (tmp_path / "a.jsonl").write_text(json.dumps({f"c{n}": cell for n, cell in enumerate(cells)}))
    with pytest.raises(UserError, match=r"a.jsonl, line 1: the text is too long"):
        TextLayout(tuple(f"c{n}" for n in range(5))).texts(read_table(tmp_path / "a.jsonl"))
    assert LONGEST_TEXT < 5 * 999_999


def test_the_limits_are_keys_of_a_recipe():
    data = DataSection(max_characters=7, max_columns=8, max_unpacked=9)
    assert dialect_of(data).limits == Dialect(max_characters=7, max_columns=8, max_unpacked=9).limits


_READ = """
import resource, sys
from pathlib import Path
import pyarrow.parquet
from newsdesk.data.stream import read_with_faults
from newsdesk.errors import UserError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
for name in sys.argv[1:]:
    try:
        print(len(read_with_faults(Path(name))[0]), "rows")
    except UserError as error:
        print(error.wrong)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS is Linux's")
def test_memory_is_bounded_whatever_a_file_holds(tmp_path: Path, write_file: Callable[..., Path]):
    huge = pa.array(["x" * 20_000_000])
    indices = pa.array([0] * 2000, pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, huge)
    parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    parquet.write_table(pa.table({"text": ["x" * 20_000_000, "goal"]}), tmp_path / "b.parquet")
    files = [
        tmp_path / "a.parquet",
        tmp_path / "b.parquet",
        write_file("a.csv.gz", gzip.compress(b"text\n" + b"goal\n" * (5 << 20))),
        write_file("a.csv", b"text\ngoal\n" + b"x" * 60_000_000 + b"\ngoal\n"),
        write_file(
            "b.csv", b",".join(b"c%d" % n for n in range(100)) + b"\n" + (b"xyz," * 99 + b"xyz\n") * 200_000
        ),
        write_file("a.json", b'[{"text": "' + b"x" * 60_000_000),
        write_file("a.jsonl", b'{"text": "goal"}\n{"text": ' + b"[" * 60_000_000 + b"\n"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", _READ, *map(str, files)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "0 rows",
        "1 rows",
        "a.csv.gz is packed too tightly to be data",
        "2 rows",
        "b.csv does not fit into memory",
        "0 rows",
        "1 rows",
    ]


@pytest.fixture
def write_file(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write
