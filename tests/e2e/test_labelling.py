"""newsdesk label: rows asked in a pipe or a terminal, answered, taken back, gone on with, learned from."""

from __future__ import annotations

import csv
import json
import os
import select
import signal
import subprocess
import sys
import time

import pytest

import newsdesk as package
from newsdesk.data.stream import read_table
from topics import rows_with_several, written

pty = pytest.importorskip("pty")  # there is none on Windows

PATIENCE = 60
"""Seconds until a process is given up."""
TOPICS = ("Business", "Science", "Sports")


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def unlabelled(desk, tmp_path_factory):
    """The test rows without their desk, and a copy, a row without a text and rows that are known."""
    test, train = rows_of(desk.test), rows_of(desk.train)
    words = [row["words"] for row in test]
    words += [words[0].upper(), "", *(row["words"] for row in train[:5])]
    path = tmp_path_factory.mktemp("unlabelled") / "wire.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("number", "words"), *enumerate(words)])
    return path


@pytest.fixture(scope="module")
def truth(desk):
    """The desk of each text."""
    return {row["words"]: row["desk"] for row in (*rows_of(desk.test), *rows_of(desk.train))}


@pytest.fixture
def cold(newsdesk, unlabelled, tmp_path):
    """Label rows drawn at random, for which nothing has to be loaded."""

    def label(*lines, labels="Business,Science,Sports", rows=10, out=tmp_path / "out.csv", flags=()):
        asked = ("--data", unlabelled, "--text", "words", "--out", out, "--labels", labels, "--random", 1)
        stdin = "".join(f"{line}\n" for line in lines).encode()
        return newsdesk("label", *asked, "--rows", rows, *flags, stdin=stdin)

    return label


def test_what_a_run_picks_is_labelled_in_a_pipe_and_learned_from(
    newsdesk, trained, unlabelled, truth, desk, tmp_path
):
    out = tmp_path / "out.csv"
    picks = package.pick(trained, str(unlabelled), rows=30, random=0.2)
    assert len({each.row for each in picks}) == 30
    answers = "".join(f"{truth[each.text]}\n" for each in picks).encode()
    flags = ("--data", unlabelled, "--rows", 30, "--batch", 30, "--random", 0.2)
    asked = newsdesk("label", trained, *flags, "--out", out, stdin=answers)
    assert asked.code == 0, asked.err
    assert f"newsdesk train --from {trained} --data {out} --out RUN" in asked.out
    written = rows_of(out)
    assert [(row["number"], row["words"], row["picked"]) for row in written] == [
        (str(each.row), each.text, each.picked) for each in picks
    ]
    assert all(truth[row["words"]] == row["desk"] for row in written)
    assert sum(row["picked"] == "random" for row in written) == 6
    grown = newsdesk("train", "--from", trained, "--data", out, "--out", tmp_path / "run")
    assert grown.code == 0, grown.err
    # What was learned, and what is a copy, is not asked again.
    again = newsdesk("label", tmp_path / "run", "--data", unlabelled, "--out", tmp_path / "more.csv")
    assert "known to the run" in again.err
    assert "1 without a text" in again.err
    assert "1 copies of others" in again.err


def test_a_guess_is_shown_of_picked_rows_and_not_of_drawn_ones(trained, unlabelled):
    picks = package.pick(trained, str(unlabelled), rows=10, random=0.5)
    for each in picks:
        if each.picked == "random":
            assert each.guess is None
        else:
            assert sum(each.guess.values()) == pytest.approx(1, abs=1e-4)
            assert each.labels == (max(each.guess, key=each.guess.get),)
    certain = [max(each.guess.values()) for each in picks if each.guess]
    every = package.open_model(trained).predict_probabilities([row["words"] for row in rows_of(unlabelled)])
    assert max(certain) <= sorted(every.max(axis=1))[-20]  # none of those that it is surest of


def test_texts_of_a_notebook_are_picked_without_a_run(desk):
    texts = ["", *(row["words"] for row in rows_of(desk.test)[:20])]
    picks = package.pick(None, texts, rows=5, base=str(desk.base))
    assert {each.picked for each in picks} == {"diverse"}
    assert all(texts[each.row] == each.text for each in picks)


def test_answers_are_numbers_names_and_their_beginnings(cold, tmp_path):
    assert cold("1", "sports", "Sc", "+ Weather", "weather", "2", rows=6).code == 0
    given = [row["label"] for row in rows_of(tmp_path / "out.csv")]
    assert given == ["Business", "Sports", "Science", "Weather", "Weather", "Science"]


def test_where_no_row_is_left_it_ends(cold):
    ended = cold(*"1" * 200, rows=200)
    assert ended.code == 0
    assert "no row is left to ask" in ended.out


def test_undo_and_skip_hold_across_a_restart(cold, tmp_path):
    first = cold("1", "2", "s", "q")
    assert "2 of 10 rows labelled" in first.out
    assert "the same command goes on" in first.out
    asked = [line for line in first.err.splitlines() if ", line " in line]
    second = cold("u", "3", "u", "u", "q")  # the skipped row, which is labelled, then both are taken back
    again = [line for line in second.err.splitlines() if ", line " in line]
    assert again[1] == asked[2]
    assert "going on after 2 rows labelled before" in second.err
    assert [row["label"] for row in rows_of(tmp_path / "out.csv")] == ["Business"]
    done = cold(*"1" * 20, rows=10)
    written = rows_of(tmp_path / "out.csv")
    assert done.code == 0
    assert len(written) == len({row["number"] for row in written}) == 10
    assert "10 of 10 rows labelled" in cold(rows=10).out


def test_a_line_that_is_no_answer_ends_it_and_keeps_what_was_answered(cold, tmp_path):
    ended = cold("1", "Sprots", "2")
    assert ended.code == 1
    assert "answer 2 on standard input: there is no label 'Sprots'" in ended.err
    assert [row["label"] for row in rows_of(tmp_path / "out.csv")] == ["Business"]
    assert "could be Science, Sports" in cold("S").err
    assert "no guess that it could take" in cold("").err


@pytest.mark.parametrize(
    ("flags", "labels", "wrong"),
    [
        (["--text", "number"], "Business,Science,Sports", "other rows than those of --data"),
        ([], "Sports,Weather", "the labels Business, Science, Sports"),
        (["--random", "0.5"], "Business,Science,Sports", "--random 1"),
    ],
)
def test_a_file_of_other_rows_or_labels_is_not_gone_on_with(cold, tmp_path, flags, labels, wrong):
    cold("1", "2")
    before = (tmp_path / "out.csv").read_bytes()
    refused = cold("1", labels=labels, flags=flags)
    assert refused.code == 1
    assert wrong in refused.err
    assert (tmp_path / "out.csv").read_bytes() == before


def test_several_labels_a_text(cold, tmp_path):
    assert cold("1 3", "Sports; +Weather", "-", "2", rows=4, flags=["--task", "multi"]).code == 0
    given = [json.loads(row["label"]) for row in rows_of(tmp_path / "out.csv")]
    assert given == [["Business", "Sports"], ["Sports", "Weather"], [], ["Science"]]


def test_a_run_of_several_labels_proposes_those_it_would_give(newsdesk, desk, tmp_path):
    rows = list(rows_with_several(120, seed=5))
    train = written(tmp_path / "train.jsonl", rows[:90])
    flags = {
        "data.train": str(train),
        "data.text": ("words",),
        "data.label": "desks",
        "data.validation_share": 0.2,
        "model.base": str(desk.base),
        "training.epochs": 3.0,
    }
    settings = [flag.removeprefix("--set=") for flag in desk.flags if flag.startswith("--set=")]
    run = package.train(out=tmp_path / "run", flags=flags, overrides=settings).path
    data, out = tmp_path / "wire.csv", tmp_path / "out.jsonl"
    with data.open("w", newline="") as stream:
        csv.writer(stream).writerows([("number", "words"), *enumerate(text for text, _ in rows[90:])])
    (first,) = package.pick(run, str(data), rows=1)
    assert first.labels == tuple(
        sorted(package.open_model(run).predict([first.text])[0].labels, key=lambda name: -first.guess[name])
    )
    asked = ("label", run, "--data", data, "--out", out, "--rows", 3, "--batch", 1)
    assert newsdesk(*asked, stdin=b"\n-\n+ Weather, Sports\n").code == 0
    table = read_table(out)
    assert table.columns == ("number", "words", "desks", "picked")
    assert table.column("words")[0] == first.text
    assert [tuple(each) for each in table.column("desks")] == [first.labels, (), ("Weather", "Sports")]
    grown = newsdesk("train", "--from", run, "--data", out, "--out", tmp_path / "grown")
    assert grown.code == 0, grown.err
    assert "Weather" in package.open_model(tmp_path / "grown").label_names


def test_a_program_answers_rows_as_json(start, unlabelled, truth, tmp_path):
    """And whatever kills it, no row is asked twice and none that was answered is lost."""
    asked = ["label", "--data", unlabelled, "--text", "words", "--labels", ",".join(TOPICS), "--random", 1]
    seen = []
    for kill in (True, False):
        process = start(
            *asked, "--rows", 12, "--out", tmp_path / "out.jsonl", "--json", stdin=subprocess.PIPE
        )
        while "text" in (question := json.loads(process.stdout.readline())):
            assert question["choices"] == list(TOPICS)
            if kill and len(seen) == 5:
                process.send_signal(signal.SIGKILL)
                break
            seen.append(question["row"])
            process.stdin.write(truth[question["text"]] + "\n")
            process.stdin.flush()
        process.communicate(timeout=PATIENCE)
    assert len(set(seen)) == len(seen) == 12
    table = read_table(tmp_path / "out.jsonl")
    assert [int(number) for number in table.column("number")] == seen
    assert all(
        truth[text] == label for text, label in zip(table.column("words"), table.column("label"), strict=True)
    )


# So that Ctrl-C reaches the process, even if a shell has it ignored.
ON_A_TERMINAL = """
import fcntl, signal, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
from newsdesk.cli import main
main()
"""


class Terminal:
    """A process of the command line on a terminal of its own."""

    def __init__(self, *arguments):
        self.ours, theirs = pty.openpty()
        command = [sys.executable, "-c", ON_A_TERMINAL, *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "60", "TERM": "xterm"}
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
        self.process = subprocess.Popen(command, **streams, env=environment, start_new_session=True)
        os.close(theirs)
        self.shown = ""

    def wait_for(self, text):
        end = time.monotonic() + PATIENCE
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            if not select.select([self.ours], [], [], 1.0)[0]:
                continue
            try:
                self.shown += os.read(self.ours, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                break
        before, found, self.shown = self.shown.partition(text)
        assert found, before
        return before

    def press(self, keys):
        os.write(self.ours, keys.encode())

    def end(self):
        code = self.process.wait(timeout=PATIENCE)
        os.close(self.ours)
        return code


def test_keys_of_a_terminal(unlabelled, tmp_path):
    labels = [*TOPICS, *(f"Other {number}" for number in range(4, 13))]
    flags = ["--data", unlabelled, "--text", "words", "--labels", ",".join(labels), "--random", 1]
    screen = Terminal("label", *flags, "--out", tmp_path / "out.csv")
    screen.wait_for("1 of 100")
    screen.press("3")
    screen.wait_for("2 of 100")
    screen.press("12")  # may be 1, 10, 11 or 12
    screen.wait_for("3 of 100")
    screen.press("1\n")
    screen.wait_for("4 of 100")
    screen.press("u")
    screen.wait_for("3 of 100")
    screen.press("\x1b[A+Wetter\x7f\x7f\x7f\x7father\n")  # an arrow key says nothing
    screen.wait_for("4 of 100")
    screen.press("/oth\n")
    screen.wait_for("could be Other 4")
    screen.press("/other 7\n")
    screen.wait_for("5 of 100")
    screen.press("\n")
    screen.wait_for("no guess to take")
    screen.press("s")
    screen.wait_for("5 of 100")
    screen.press("\x03")
    screen.wait_for("4 of 100 rows labelled")
    screen.wait_for("the same command goes on")
    assert screen.end() == 130
    given = [row["label"] for row in rows_of(tmp_path / "out.csv")]
    assert given == ["Sports", "Other 12", "Weather", "Other 7"]


def test_several_labels_are_toggled_in_a_terminal(unlabelled, tmp_path):
    flags = ["--data", unlabelled, "--text", "words", "--labels", ",".join(TOPICS), "--task", "multi"]
    screen = Terminal("label", *flags, "--random", 1, "--rows", 2, "--out", tmp_path / "out.csv")
    screen.wait_for("1 of 2")
    screen.press("123")
    screen.wait_for("Business, Science, Sports  (Enter")
    screen.press("2\n")
    screen.wait_for("2 of 2")
    screen.press("\n")
    screen.wait_for("2 of 2 rows labelled")
    assert screen.end() == 0
    assert [json.loads(row["label"]) for row in rows_of(tmp_path / "out.csv")] == [["Business", "Sports"], []]


def test_texts_of_strangers_are_shown_safely_and_cut(newsdesk, tmp_path):
    data = tmp_path / "wire.csv"
    texts = [
        "bell\x07 and \x1b[2Jclear, \u202eturned",
        "\u0627\u0644\u0633\u0644\u0627\u0645 1",
        "word " * 4000,
    ]
    with data.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text",), *((text,) for text in texts)])
    flags = ("--data", data, "--labels", "a,b", "--random", 1, "--out", tmp_path / "out.csv", "--rows", 3)
    shown = newsdesk("label", *flags, stdin=b"1\n1\n1\n").err
    assert "bell? and ?[2Jclear, ?turned" in shown
    assert "\u2068\u0627\u0644\u0633\u0644\u0627\u0645 1\u2069" in shown
    assert "v shows all 19,999 characters" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        ([], "Give a RUN, or the labels"),
        (["--labels", "one"], "Give a RUN, or the labels"),
        (["--labels", "a,b", "--out", "out.parquet"], "names no format"),
    ],
)
def test_wrong_usage_is_one_sentence(newsdesk, unlabelled, flags, wrong, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = ["--data", unlabelled, "--text", "words", "--out", "out.csv", "--random", 1, *flags]
    ended = newsdesk("label", *given)
    assert ended.code in (1, 2)
    assert wrong in ended.err
