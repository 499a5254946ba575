"""A session of labelling: every answer on disk, whatever ends the process, and no file of others changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from newsdesk.data.labelled import LabelFormat, to_examples
from newsdesk.data.stream import read_table
from newsdesk.data.table import Table
from newsdesk.errors import UserError
from newsdesk.evaluation.label_session import JOURNAL, Beginning, LabelledFile, LabelSession, session_folder

ROWS = tuple((str(number), f'text, "number" {number}\nand more') for number in range(8))
TABLE = Table(Path("wire.csv"), ("id", "text"), ROWS, tuple(range(2, 10)))
LABELS = ("a", "b; c", "d")
ONE_COLUMN = LabelFormat()


def session(path, *, form=ONE_COLUMN, several=False, data="x", labels=LABELS, random=0.0):
    target = LabelledFile(path, TABLE, form, several)
    return LabelSession(target, Beginning(data, tuple(labels), several, random)).opened()


def texts_and_labels(path, **reading):
    """What training reads of the file: the ids and the labels of its rows."""
    table = read_table(path)
    examples = to_examples(table, label="label", labelled=True, **reading)
    ids = table.column("id")
    if examples.is_multi:
        sets = [{examples.label_names[i] for i in row.nonzero()[0]} for row in examples.labels]
        return dict(zip(ids, sets, strict=True))
    return dict(zip(ids, (examples.label_names[each] for each in examples.labels), strict=True))


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.jsonl"])
def test_training_reads_what_was_answered(tmp_path, name):
    with session(tmp_path / name) as labelling:
        labelling.answer(3, ["b; c"], "uncertain")
        labelling.answer(0, ["a"], "random")
    assert texts_and_labels(tmp_path / name) == {"3": "b; c", "0": "a"}
    table = read_table(tmp_path / name)
    assert table.columns == ("id", "text", "label", "picked")
    assert table.column("text") == (ROWS[3][1], ROWS[0][1])
    assert table.column("picked") == ("uncertain", "random")


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_several_labels_and_none_are_read_back(tmp_path, name):
    with session(tmp_path / name, several=True) as labelling:
        labelling.answer(1, ["b; c", "a"], "uncertain")
        labelling.answer(2, [], "uncertain")
        labelling.answer(4, ["d"], "uncertain")
    assert texts_and_labels(tmp_path / name) == {"1": {"a", "b; c"}, "2": set(), "4": {"d"}}


def test_columns_of_0_and_1_are_written_as_the_run_was_trained(tmp_path):
    form = LabelFormat(columns=("a", "d"), task="multi")
    with session(tmp_path / "out.csv", form=form, several=True, labels=("a", "d")) as labelling:
        labelling.answer(1, ["d"], "uncertain")
        labelling.answer(2, ["new", "a"], "uncertain")
    table = read_table(tmp_path / "out.csv")
    assert table.columns == ("id", "text", "a", "d", "new", "picked")
    assert [row[2:5] for row in table.rows] == [("0", "1", "0"), ("1", "0", "1")]


def test_a_second_process_goes_on_and_can_take_answers_back(tmp_path):
    out = tmp_path / "out.csv"
    with session(out) as labelling:
        labelling.answer(3, ["a"], "uncertain")
        labelling.answer(5, None, "uncertain")
    with session(out) as labelling:
        assert (set(labelling.answers), labelling.skipped, labelling.resumed) == ({3}, {5}, 1)
        assert labelling.undo().row == 5
        assert labelling.undo().row == 3
        assert labelling.undo() is None
        assert [each.row for each in labelling.waiting] == [3, 5]
        assert not out.exists()
    with session(out) as labelling:  # whoever ended in between
        assert [each.row for each in labelling.waiting] == [3, 5]
        labelling.answer(3, ["d"], "uncertain")
        assert [each.row for each in labelling.waiting] == [5]
    assert texts_and_labels(out) == {"3": "d"}


def test_a_kill_loses_at_most_what_was_not_written_whole(tmp_path):
    """Cut anywhere, journal and file of a session are those of its first so many answers."""
    out = tmp_path / "out.csv"
    journal = session_folder(out) / JOURNAL
    states = [(0, b"")]
    with session(out) as labelling:
        for row in range(4):
            labelling.answer(row, ["a"], "uncertain")
            states.append((journal.stat().st_size, out.read_bytes()))
    whole = journal.read_bytes()
    begins = whole.index(b"\n") + 1
    for length in range(begins, len(whole) + 1, 7):
        before = max(number for number, (size, _) in enumerate(states) if size <= length)
        journal.write_bytes(whole[:length])
        out.write_bytes(states[before][1]) if before else out.unlink(missing_ok=True)
        with session(out) as labelling:
            assert list(labelling.answers) == list(range(before))
            assert (out.read_bytes() if before else b"") == states[before][1]
            labelling.answer(7, ["d"], "random")


def test_a_kill_between_journal_and_file_is_made_good(tmp_path):
    out = tmp_path / "out.csv"
    with session(out) as labelling:
        labelling.answer(0, ["a"], "uncertain")
        before = out.read_bytes()
        labelling.answer(1, ["d"], "uncertain")
        after = out.read_bytes()
    out.write_bytes(before)
    with session(out):
        assert out.read_bytes() == after


def test_a_beginning_cut_short_is_no_beginning(tmp_path):
    out = tmp_path / "out.csv"
    with session(out) as labelling:
        labelling.answer(0, ["a"], "uncertain")
    out.unlink()
    journal = session_folder(out) / JOURNAL
    journal.write_bytes(journal.read_bytes()[:20])
    with session(out, data="other") as labelling:
        assert not labelling.answers
        labelling.answer(2, ["d"], "uncertain")
    assert texts_and_labels(out) == {"2": "d"}


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        ({"data": "y"}, "other rows than those of --data"),
        ({"labels": ("d", "e")}, "the labels a, b; c, d"),
        ({"several": True}, "one label each"),
        ({"random": 0.5}, "--random 0"),
    ],
)
def test_going_on_with_something_else_is_refused(tmp_path, asked, wrong):
    with session(tmp_path / "out.csv") as labelling:
        labelling.answer(0, ["a"], "uncertain")
        labelling.answer(1, ["b; c"], "uncertain")
    written = (tmp_path / "out.csv").read_bytes()
    with pytest.raises(UserError, match=wrong), session(tmp_path / "out.csv", **asked):
        pass
    assert (tmp_path / "out.csv").read_bytes() == written


def test_what_is_refused_leaves_the_session_as_it_was(tmp_path):
    out = tmp_path / "labelled.csv"
    with session(out) as labelling:
        labelling.answer(3, ["a"], "uncertain")
    before = {path.name: path.read_bytes() for path in session_folder(out).iterdir()}
    for asked in ({"data": "other"}, {"random": 0.5}, {"several": True}):
        with pytest.raises(UserError), session(out, **asked):
            pass
    with session(out), pytest.raises(UserError, match="another process is labelling"), session(out):
        pass
    assert {path.name: path.read_bytes() for path in session_folder(out).iterdir()} == before
    with session(out) as labelling:
        assert labelling.resumed == 1


def test_a_run_that_has_learned_the_new_label_goes_on(tmp_path):
    out = tmp_path / "out.csv"
    with session(out) as labelling:
        labelling.answer(0, ["new"], "uncertain")
    with session(out) as labelling:
        assert labelling.labels == [*LABELS, "new"]
    with session(out, labels=(*LABELS, "more", "new")) as labelling:
        assert labelling.labels == [*LABELS, "more", "new"]


def test_a_run_whose_labels_are_in_another_order_goes_on(tmp_path):
    out, form = tmp_path / "out.csv", LabelFormat(columns=("a", "d"), task="multi")
    with session(out, form=form, several=True, labels=("a", "d")) as labelling:
        labelling.answer(0, ["a", "new"], "uncertain")
    with session(out, form=form, several=True, labels=("d", "a")) as labelling:
        assert labelling.labels == ["d", "a", "new"]
        labelling.answer(1, ["d"], "uncertain")
    with session(out, form=form, several=True, labels=("a", "d")):
        assert [row[2:5] for row in read_table(out).rows] == [("1", "0", "1"), ("0", "1", "0")]


def test_files_of_others_are_left_alone(tmp_path):
    out = tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(UserError, match="is there already"), session(out):
        pass
    assert out.read_text() == "mine"
    assert not session_folder(out).exists()
    out.unlink()
    with session(out) as labelling:
        labelling.answer(0, ["a"], "uncertain")
    out.write_bytes(out.read_bytes() + b"9,edited,d,random\n")
    with pytest.raises(UserError, match="was changed since"), session(out):
        pass
    assert out.read_bytes().endswith(b"edited,d,random\n")


def test_one_process_at_a_time(tmp_path):
    with (
        session(tmp_path / "out.csv"),
        pytest.raises(UserError, match="another process"),
        session(tmp_path / "out.csv"),
    ):
        pass


def test_nothing_is_left_where_nothing_was_answered(tmp_path):
    with session(tmp_path / "out.csv"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line", [b'{"row": 99, "picked": "x", "labels": ["a"]}\n', b'{"row": 1}\n', b"[]\n", b"no\n"]
)
def test_a_journal_that_is_none_is_refused(tmp_path, line):
    out = tmp_path / "out.csv"
    with session(out) as labelling:
        labelling.answer(0, ["a"], "uncertain")
    with (session_folder(out) / JOURNAL).open("ab") as stream:
        stream.write(line)
    with pytest.raises(UserError, match="damaged"), session(out):
        pass


def test_the_journal_has_a_format_and_a_newer_one_is_refused(tmp_path):
    out = tmp_path / "out.csv"
    with session(out) as labelling:
        labelling.answer(0, ["a"], "uncertain")
    journal = session_folder(out) / JOURNAL
    first, rest = journal.read_text().split("\n", 1)
    assert json.loads(first)["format"] == 1
    journal.write_text(json.dumps({**json.loads(first), "format": 2}) + "\n" + rest)
    with pytest.raises(UserError), session(out):
        pass


@pytest.mark.parametrize("name", ["out.parquet", "out", "out.csv.gz"])
def test_an_ending_that_cannot_be_written_is_refused_at_once(tmp_path, name):
    with pytest.raises(UserError, match="names no format"):
        session(tmp_path / name)


def test_what_is_no_file_in_place_of_the_labelled_one_is_refused_and_not_waited_for(tmp_path):
    out = tmp_path / "out.csv"
    with session(out) as labelling:
        labelling.answer(0, ["a"], "uncertain")
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("gone")):
        out.unlink()
        make(out)
        with pytest.raises(UserError, match="was changed since"), session(out):
            pass


@pytest.mark.parametrize("name", [JOURNAL, "lock", ""])
def test_nothing_is_written_or_cut_off_through_links_out_of_the_sessions_folder(tmp_path, name):
    """A line that is not finished is cut off a journal, but not off the file of somebody else."""
    out, other = tmp_path / "out.csv", tmp_path / "notes"
    folder = session_folder(out)
    with session(out) as labelling:
        labelling.answer(0, ["a"], "uncertain")
    if name:
        other.write_text("a line\nand one without an end")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(other)
    else:
        folder.rename(other)
        folder.symlink_to(other)
    if not name:
        outside = tmp_path.with_name(f"{tmp_path.name}-outside")
        other.rename(outside)
        folder.unlink()
        folder.symlink_to(outside)
        other = outside / JOURNAL
    before = other.read_bytes()
    with pytest.raises(UserError, match="link to a place outside"), session(out):
        pass
    assert other.read_bytes() == before
