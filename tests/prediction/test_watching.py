"""A watched folder: what is dropped into it is classified exactly once, whatever happens meanwhile."""

from __future__ import annotations

import csv
import gzip
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from newsdesk.errors import UserError
from newsdesk.prediction import bulk, new_files, watch_journal, watched_folder
from newsdesk.prediction.bulk import Begun, WindowWritten, predict_file
from newsdesk.prediction.open_model import open_model
from newsdesk.prediction.output_table import rejects_of
from newsdesk.prediction.watch_journal import HOME, JOURNAL, Journal
from newsdesk.prediction.watched_folder import FileDone, FileFailed, Waiting, watch_folder

TEXTS = ("goal coach", "bank market profit", "orbit", "tennis season", "", "genome laser")
ITEM = {"uri": "urn:x:1", "version": "1", "headlines": [{"value": "market bank"}]}


@pytest.fixture(scope="module")
def predictor(built):
    return open_model(built)


@pytest.fixture(autouse=True)
def small_windows_without_flushes(monkeypatch):
    """Kills need no flush of the disk; what a loss of power needs, a test cannot see."""
    monkeypatch.setattr(bulk, "ROWS_PER_WINDOW", 2)
    monkeypatch.setattr(os, "fsync", nothing)


@pytest.fixture
def place(tmp_path):
    """The watched folder and the output folder."""
    (tmp_path / "in").mkdir()
    return tmp_path / "in", tmp_path / "out"


def drop(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_csv(path: Path, rows: int, first: int = 0) -> Path:
    lines = (f"{n},{TEXTS[n % 6]}" + (",too much" if n % 7 == 6 else "") for n in range(first, first + rows))
    return drop(path, "n,text\n" + "".join(f"{line}\n" for line in lines))


def write_any(path: Path, number: int) -> Path:
    """A small file of some format, by its number, with contents of its own."""
    texts = [f"{TEXTS[(number + k) % 6]} {number}" for k in range(number % 4 + 1)]
    lines = "".join(json.dumps({"id": number, "text": text}) + "\n" for text in texts)
    kinds = {
        "csv": lambda name: write_csv(name, number % 9 + 1, first=number),
        "jsonl": lambda name: drop(name, lines),
        "txt": lambda name: drop(name, "\n".join(texts)),
        "json": lambda name: drop(name, json.dumps({**ITEM, "uri": f"urn:x:{number}"})),
        "jsonl.gz": lambda name: drop(name, gzip.compress(lines.encode(), mtime=0)),
        "ap/late.tsv": lambda name: drop(
            name, "text\tn\n" + "".join(f"{text}\t{number}\n" for text in texts)
        ),
    }
    ending, write = list(kinds.items())[number % len(kinds)]
    return write(path / f"{number:02}.{ending}" if "/" not in ending else path / f"ap/{number:02}.tsv")


def once(predictor, place, **settings):
    events = []
    done = watch_folder(predictor, *place, once=True, observe=events.append, **{"settle": 0.0, **settings})
    return done, [event for event in events if isinstance(event, FileDone | FileFailed)]


class Hands:
    """Stands for the clock and for all who use the folders while it waits: an action a wait, then the end."""

    def __init__(self) -> None:
        self.now, self.actions = 1000.0, []

    def monotonic(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds
        if not self.actions:
            raise KeyboardInterrupt
        self.actions.pop(0)()


@pytest.fixture
def watched_while(monkeypatch, predictor, place):
    """``watched_while(action, action)``: watch the folder, with an action at each wait; the events."""
    hands = Hands()
    monkeypatch.setattr(new_files, "time", hands)
    monkeypatch.setattr(watched_folder._Watch, "_pause", hands.pause)

    def watch(*actions, **settings):
        hands.actions, events = list(actions), []
        watch_folder(predictor, *place, observe=events.append, **settings)
        return [event for event in events if isinstance(event, FileDone | FileFailed | Waiting)]

    return watch


def nothing(*_given: object) -> None:
    """What somebody does who lets time pass."""


def journal_of(place):
    return [json.loads(line) for line in (place[1] / HOME / JOURNAL).read_text().splitlines()[1:]]


def outputs_of(place):
    found = (path for path in place[1].rglob("*") if path.is_file() and HOME not in path.parts)
    return {path.relative_to(place[1]).as_posix(): path.read_bytes() for path in found}


def predicted_alone(predictor, place, tmp_path, format=None):
    """What predict makes of each file on its own, under the names that a watched folder gives."""
    expected = {}
    for source in filter(Path.is_file, place[0].rglob("*")):
        name, form = watched_folder.output_for(source.relative_to(place[0]).as_posix(), format)
        output = tmp_path / "alone" / name
        output.parent.mkdir(parents=True, exist_ok=True)
        predict_file(predictor, source, output, format=form)
        expected[name] = output.read_bytes()
        if rejects_of(output).exists():
            expected[rejects_of(Path(name)).as_posix()] = rejects_of(output).read_bytes()
    return expected


@pytest.fixture(scope="module")
def dies_at(built):
    """Watch in a process that kills itself at the n-th change of a file in the output; whether it did."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "pytest",
            "onnx",
            "onnxruntime",
            "tokenizers",
            "newsdesk.prediction.watched_folder",
            "newsdesk.prediction.open_model",
        ]
    )

    def run(number: int, place) -> bool:
        process = context.Process(target=watch_and_die, args=(number, built, place))
        process.start()
        process.join(timeout=60)
        process.kill()  # only if it hangs
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        return process.exitcode != 0

    return run


def watch_and_die(number: int, exported: Path, place) -> None:
    changes = 0

    def count(event: str, given: tuple[object, ...]) -> None:
        nonlocal changes
        is_change = event in ("os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir") or (
            event == "open" and isinstance(given[1], str) and given[1] not in ("r", "rb")
        )
        changes += is_change and str(place[1]) in str(given[0])
        if changes == number:
            changes += 1  # the kill is an event, too
            os.kill(os.getpid(), signal.SIGKILL)

    bulk.ROWS_PER_WINDOW, os.fsync = 2, nothing
    predictor = open_model(exported, threads=1)
    sys.addaudithook(count)
    watch_folder(predictor, *place, once=True, settle=0.0)


def test_files_dropped_while_it_is_killed_again_and_again_are_all_classified_once(
    dies_at, predictor, place, tmp_path
):
    """Killed thirty times, each time one change later; what it has put out is taken away each time."""
    taken, deaths = {}, 0
    for number in range(30):
        write_any(place[0], 2 * number)
        write_any(place[0], 2 * number + 1)
        deaths += dies_at(number + 1, place)
        for name, content in outputs_of(place).items():
            assert name not in taken, f"{name} came twice"
            taken[name] = content
            (place[1] / name).unlink()
    assert deaths > 20
    done, _ = once(predictor, place)
    late = outputs_of(place)
    assert not late.keys() & taken.keys()
    assert done.failed == 0
    assert taken | late == predicted_alone(predictor, place, tmp_path)
    assert sum("output" in line for line in journal_of(place)) == 60
    assert not (place[1] / HOME / "work").exists()
    assert once(predictor, place)[1] == []


@pytest.mark.parametrize("moment", range(1, 32, 3))
def test_a_replaced_file_is_put_out_once_more_wherever_a_kill_comes(dies_at, predictor, place, moment):
    source = write_csv(place[0] / "a.csv", 9)
    once(predictor, place)
    before = outputs_of(place)
    write_csv(source, 5)
    died = dies_at(moment, place)
    seen = outputs_of(place)
    assert seen["a.csv"] in (before["a.csv"], b"".join(before["a.csv"].splitlines(keepends=True)[:6]))
    _, events = once(predictor, place)
    assert died or events == []
    assert list(csv.DictReader(outputs_of(place)["a.csv"].decode().splitlines()))[-1]["n"] == "4"
    assert outputs_of(place).keys() == {"a.csv"}  # the bad row was in the first one alone
    assert sum("output" in line for line in journal_of(place)) == 2


def test_a_file_is_taken_when_it_does_not_change_any_more(watched_while, place):
    path = place[0] / "a.csv"

    def more():
        with path.open("a") as stream:
            stream.write("goal\n")

    events = watched_while(lambda: drop(path, "text\n"), more, more, more, *[nothing] * 4, settle=2.0)
    assert [(event.name, event.counts.rows_read) for event in events] == [("a.csv", 3)]
    assert outputs_of(place)["a.csv"].count(b"Sports") == 3


def test_hidden_and_unfinished_names_wait_for_their_rename(watched_while, place):
    names = (".a.csv", "b.csv.part", "c.csv.filepart", "d.csv~", "e.csv.TMP")
    events = watched_while(
        lambda: [write_csv(place[0] / name, 2) for name in names],
        *[nothing] * 3,
        lambda: (place[0] / "b.csv.part").rename(place[0] / "b.csv"),
        *[nothing] * 3,
    )
    assert [event.name for event in events] == ["b.csv"]


def test_the_oldest_comes_first_and_folders_keep_their_shape(predictor, place):
    for age, name in enumerate(("z.csv", "ap/b/y.csv", "ap/x.csv")):
        os.utime(write_csv(place[0] / name, 1), (age, age))
    _, events = once(predictor, place)
    assert [(event.name, event.output) for event in events] == [
        (n, n) for n in ("z.csv", "ap/b/y.csv", "ap/x.csv")
    ]
    assert outputs_of(place).keys() == {"z.csv", "ap/b/y.csv", "ap/x.csv"}


def test_folders_without_end_and_names_without_sense_hinder_nothing(predictor, place):
    home = Path.cwd()
    os.chdir(place[0])
    try:
        for _ in range(25):  # beyond the longest path
            Path("d" * 200).mkdir()
            os.chdir("d" * 200)
        write_csv(Path("deep.csv"), 2)
    finally:
        os.chdir(home)
    drop(place[0] / ("d" * 200) / ("x" * 250 + ".csv"), "text\ngoal\n")
    write_csv(place[0] / ("d" * 200) / "good.csv", 2)
    done, events = once(predictor, place)
    assert (done.files, done.failed) == (1, 1)
    (failed,) = (event for event in events if isinstance(event, FileFailed))
    assert failed.error.found == "File name too long"
    assert once(predictor, place)[1] == []


def test_other_content_is_new_work_and_a_touch_or_another_name_is_what_it_says(predictor, place):
    path = write_csv(place[0] / "a.csv", 3)
    assert len(once(predictor, place)[1]) == 1
    os.utime(path, (5, 5))
    assert once(predictor, place)[1] == []
    assert once(predictor, place)[1] == []
    write_csv(path, 4)
    write_csv(place[0] / "same.csv", 4)
    _, events = once(predictor, place)
    assert [event.counts.rows_read for event in events] == [4, 4]
    path.unlink()
    assert once(predictor, place)[1] == []
    write_csv(path, 4)
    assert once(predictor, place)[1] == []


def test_what_cannot_be_classified_is_told_once_and_stops_nothing(predictor, place):
    drop(place[0] / "columns.csv", "x,y\n1,2\n")
    drop(place[0] / "pickle.csv", b"\x80\x04\x95")
    drop(place[0] / "empty.json", "")
    drop(place[0] / "story.docx", "PK")
    drop(place[0] / "cut.csv.gz", gzip.compress(b"text\n" + os.urandom(4000).hex().encode())[:-900])
    os.mkfifo(place[0] / "pipe.csv")
    (place[0] / "zero.csv").symlink_to("/dev/zero")
    (place[0] / "folder").symlink_to("/etc")
    write_csv(place[0] / "good.csv", 2)
    done, events = once(predictor, place)
    failed = {event.name: event.error for event in events if isinstance(event, FileFailed)}
    assert (done.files, done.failed) == (1, 8)
    assert failed["columns.csv"].fix == "name the text columns, for example --text x"
    assert failed["zero.csv"].found == failed["folder"].found == "a link"
    assert failed["pipe.csv"].found == "a pipe or a device"
    assert all(error.fix for error in failed.values())
    assert outputs_of(place).keys() == {"good.csv"}
    assert once(predictor, place)[1] == []
    drop(place[0] / "empty.json", json.dumps(ITEM))
    assert [event.name for event in once(predictor, place)[1]] == ["empty.json"]
    again = once(predictor, place, text=("x",))[1]  # of flags that were wrong
    assert [event.name for event in again if isinstance(event, FileDone)] == ["columns.csv"]


def test_bad_rows_go_beside_the_output_and_with_strict_the_file_is_refused(predictor, place):
    write_csv(place[0] / "a.csv", 9)
    _, (failed,) = once(predictor, place, strict=True)
    assert "line 8" in failed.error.wrong
    assert outputs_of(place) == {}
    done, _ = once(predictor, place)
    assert (done.rows_read, done.rejected) == (9, 1)
    assert outputs_of(place).keys() == {"a.csv", "a.csv.rejects.jsonl"}
    write_csv(place[0] / "a.csv", 2)
    once(predictor, place)
    assert outputs_of(place).keys() == {"a.csv"}


def test_what_the_model_or_newsdesk_fails_in_is_tried_again_at_the_next_start(predictor, place, monkeypatch):
    write_csv(place[0] / "a.csv", 2)
    not_a_number = np.full((2, 3), np.nan, dtype=np.float32)
    for outputs, found in (
        (lambda *_given, **_settings: (not_a_number, None), "does not predict numbers"),
        (lambda *_given, **_settings: 1 // 0, "ZeroDivisionError: integer division or modulo by zero"),
    ):
        with monkeypatch.context() as broken:
            broken.setattr(predictor, "encoder_outputs", outputs)
            _, (failed,) = once(predictor, place)
        assert found in str(failed.error)
        assert journal_of(place) == []
    assert once(predictor, place)[0].files == 1


def test_no_two_files_share_an_output(predictor, place):
    for name in ("a.csv", "a.jsonl", "a.jsonl.csv", "a.csv.rejects.jsonl"):
        drop(place[0] / name, "text\ngoal\n" if name.endswith("csv") else '{"text": "goal"}\n')
    _, events = once(predictor, place, format="csv")
    done = {event.name: event.output for event in events if isinstance(event, FileDone)}
    assert done.items() >= {"a.csv": "a.csv", "a.csv.rejects.jsonl": "a.csv.rejects.jsonl.csv"}.items()
    assert set(done.values()) == {"a.csv", "a.jsonl.csv", "a.csv.rejects.jsonl.csv"}
    (failed,) = (event for event in events if isinstance(event, FileFailed))
    assert {*done, failed.name} == {"a.csv", "a.jsonl", "a.jsonl.csv", "a.csv.rejects.jsonl"}
    assert "would take another one's place" in failed.error.wrong
    drop(place[0] / "b.csv.rejects.jsonl", '{"text": "goal"}\n')
    assert all(isinstance(event, FileFailed) for event in once(predictor, place)[1])


def test_a_folder_under_the_name_of_a_file_and_the_reverse_hinder_no_other(predictor, place):
    path = write_csv(place[0] / "a.csv", 2)
    drop(place[0] / "b.csv" / "inner.csv", "text\ngoal\n")
    assert once(predictor, place)[0].files == 2
    path.unlink()
    (place[0] / "b.csv" / "inner.csv").unlink()
    (place[0] / "b.csv").rmdir()
    drop(place[0] / "a.csv" / "inner.csv", "text\ngoal\n")
    write_csv(place[0] / "b.csv", 3)
    write_csv(place[0] / "good.csv", 3)
    done, events = once(predictor, place)
    found = {event.name: event.error.found for event in events if isinstance(event, FileFailed)}
    assert done.files == 1
    assert found == {
        "a.csv/inner.csv": "a.csv in the output folder is a file",
        "b.csv": "b.csv is in the output folder already",
    }


def test_a_file_that_somebody_else_wrote_is_not_overwritten(predictor, place):
    drop(place[1] / "a.csv", "mine\n")
    write_csv(place[0] / "a.csv", 2)
    for _ in range(2):
        _, (failed,) = once(predictor, place)
        assert failed.error.found == "a.csv is in the output folder already"
        assert outputs_of(place) == {"a.csv": b"mine\n"}
        os.utime(place[0] / "a.csv")
    (place[1] / "a.csv").unlink()
    for content, outcome in (("text\ngoal\n", FileDone), ("", FileFailed), ("text\norbit\n", FileDone)):
        drop(place[0] / "a.csv", content)
        assert [type(event) for event in once(predictor, place)[1]] == [outcome]


def test_ninjs_items_come_out_with_subjects(predictor, place):
    drop(place[0] / "ap" / "one.json", json.dumps(ITEM))
    drop(place[0] / "many.json", json.dumps([ITEM, {**ITEM, "uri": "urn:x:2"}]))
    once(predictor, place, format="ninjs")
    one = json.loads(outputs_of(place)["ap/one.json"])
    assert one["subjects"][0]["name"] == "Business"
    assert [item["uri"] for item in json.loads(outputs_of(place)["many.json"])] == ["urn:x:1", "urn:x:2"]


def test_names_of_any_bytes_are_names(predictor, place):
    names = (os.fsdecode(b"caf\xe9\n.csv"), "new\nline.csv", "żółć 東京.csv")
    for name in names:
        write_csv(place[0] / name, 2)
    assert once(predictor, place)[0].files == 3
    assert outputs_of(place).keys() == set(names)
    assert once(predictor, place)[1] == []


def test_a_full_disk_is_told_once_waited_for_and_keeps_others_from_nothing(watched_while, place):
    large = "text\n" + f"{'goal coach ' * 200}\n" * 20
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        events = watched_while(
            lambda: drop(place[0] / "large.csv", large),
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1])),
            *[nothing] * 3,
            lambda: drop(place[0] / "small.csv", "text\norbit\n"),
            *[nothing] * 3,
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before),
            *[nothing] * 2,
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [type(event) for event in events] == [Waiting, FileDone, FileDone]
    assert events[0].error.found == "File too large"
    assert [event.name for event in events[1:]] == ["small.csv", "large.csv"]


@pytest.mark.parametrize("which", [0, 1])
def test_a_folder_that_goes_away_is_waited_for_and_nothing_is_done_twice(watched_while, place, which):
    folder, away = place[which], place[which].with_name("away")

    def vanish():
        folder.rename(away)
        if which:
            folder.mkdir()  # what a mount point is while nothing is mounted

    def come_back():
        if which:
            folder.rmdir()
        away.rename(folder)

    write_csv(place[0] / "a.csv", 3)
    events = watched_while(
        *[nothing] * 3,
        vanish,
        lambda: write_csv((away if which == 0 else place[0]) / "b.csv", 3),
        *[nothing] * 3,
        come_back,
        *[nothing] * 3,
    )
    assert [type(event) for event in events] == [FileDone, Waiting, FileDone]
    assert [event.name for event in events[::2]] == ["a.csv", "b.csv"]


def test_a_signal_ends_it_at_once_and_the_next_call_resumes(predictor, place):
    write_csv(place[0] / "a.csv", 9)
    begun = []

    def stop(event):
        if isinstance(event, WindowWritten) and event.checkpoint.rows_read == 4:
            signal.raise_signal(signal.SIGTERM)

    assert watch_folder(predictor, *place, settle=0.0, observe=stop).stopped
    assert outputs_of(place) == {}
    done = watch_folder(predictor, *place, once=True, settle=0.0, observe=begun.append)
    assert [event.rows_before for event in begun if isinstance(event, Begun)] == [4]
    assert (done.files, done.rows_read, done.stopped) == (1, 9, False)


def test_what_is_still_written_is_left_for_the_next_time(predictor, place, monkeypatch):
    path = write_csv(place[0] / "a.csv", 3)
    monkeypatch.setattr(watched_folder._Watch, "_pause", lambda *_: write_csv(path, 4))
    done, events = once(predictor, place, settle=1e-6)
    assert (events, done.unsettled) == ([], 1)
    monkeypatch.undo()
    assert once(predictor, place, settle=1e-6)[0].rows_read == 4


def test_one_process_writes_to_an_output_folder(predictor, place, tmp_path):
    write_csv(place[0] / "a.csv", 3)
    with (
        Journal(place[1] / HOME, place[0]).opened(),
        pytest.raises(UserError, match="another process writes"),
    ):
        once(predictor, place)
    once(predictor, place)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="the outputs of another watched folder"):
        once(predictor, (tmp_path / "other", place[1]))
    with pytest.raises(UserError, match="in each other"):
        once(predictor, (place[0], place[0] / "out"))
    with pytest.raises(UserError, match="there is no folder"):
        once(predictor, (tmp_path / "nowhere", place[1]))


def test_settings_that_suit_no_file_are_refused_before_any(predictor, place):
    write_csv(place[0] / "a.csv", 3)
    for settings in ({"indicators": True}, {"abstain": 0.1}, {"format": "ninjs", "all_probabilities": True}):
        with pytest.raises(UserError):
            once(predictor, place, **settings)
    assert not place[1].exists()


def test_the_journal_forgets_what_is_gone_for_a_month_and_nothing_else(predictor, place, monkeypatch):
    now = [1_800_000_000.0]
    monkeypatch.setattr(watch_journal.time, "time", lambda: now[0])
    stays, goes = write_csv(place[0] / "stays.csv", 1), write_csv(place[0] / "goes.csv", 2)
    for rows in (3, 4, 5):
        write_csv(stays, rows)
        once(predictor, place)
    assert len(journal_of(place)) == 4
    goes.unlink()
    for day in range(1, 35):
        now[0] += 86_400
        once(predictor, place)
        names = [line["name"] for line in journal_of(place)]
        assert names == (["goes.csv", "stays.csv"] if day < 31 else ["stays.csv"]), day
    assert once(predictor, place)[1] == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"name": "a", "stamp": [1, 2], "sha256": "", "at": 1}\n', "line 2"),
        (b'{"name": "../a", "stamp": [1, 2, 3], "sha256": "", "at": 1}\n', "no place below"),
        (b'{"name": "a", "output": "/etc/a", "stamp": [1, 2, 3], "sha256": "", "at": 1}\n', "no place below"),
        (b'{"name": "a", "stamp": [1, 2, 3], "sha256": "../../a", "at": 1}\n', "sha256"),
        (b"[" * 100_000 + b"\n", "nested"),
    ],
)
def test_a_damaged_journal_is_refused_and_a_torn_line_is_not_missed(predictor, place, line, found):
    write_csv(place[0] / "a.csv", 1)
    once(predictor, place)
    journal = place[1] / HOME / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + line[:-1])
    assert once(predictor, place)[1] == []
    assert journal.read_bytes() == whole
    journal.write_bytes(whole.splitlines(keepends=True)[0] + line)
    with pytest.raises(UserError, match=f"(?s)missing or damaged.*{found}"):
        once(predictor, place)
    journal.write_bytes(whole.replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(UserError, match="another format"):
        once(predictor, place)


def test_a_folder_of_many_files_is_looked_at_rarely_while_nothing_comes(predictor, place, monkeypatch):
    """All files are looked at when something comes or goes, and else so seldom that it costs nothing."""
    for number in range(300):
        drop(place[0] / f"{number}.csv", "text\n")
    with Journal(place[1] / HOME, place[0]).opened() as journal:
        looks = new_files.NewFiles(place[0], journal, "", settle=0.0)
        monkeypatch.setattr(new_files, "_QUIET_AFTER", 0.0)
        assert len(looks.ready()) == 300
        looks.pending.clear()
        assert looks.ready() == []
        drop(place[0] / "new.csv", "text\n")
        end = time.monotonic() + 20
        while not looks.ready():
            assert time.monotonic() < end
        drop(place[0] / "0.csv", "text\ngoal\n")  # in place
        looks.pending.clear()
        while ("0.csv", looks.stamp("0.csv")) not in looks.ready():
            assert time.monotonic() < end


@pytest.mark.parametrize("name", [JOURNAL, "lock", "work"])
def test_nothing_is_written_or_cut_off_through_links_out_of_the_folder_of_the_journal(predictor, place, name):
    write_csv(place[0] / "a.csv", 2)
    once(predictor, place)
    other = place[1].parent / "notes"
    other.write_text("a line\nand one without an end")
    entry = place[1] / HOME / name
    if entry.is_dir():
        entry.rmdir()
    entry.unlink(missing_ok=True)
    entry.symlink_to(other)
    write_csv(place[0] / "b.csv", 2)
    with pytest.raises(UserError, match="link to a place outside"):
        once(predictor, place)
    assert other.read_text() == "a line\nand one without an end"


def test_a_journal_of_one_line_without_end_is_refused_at_once(predictor, place):
    write_csv(place[0] / "a.csv", 2)
    once(predictor, place)
    os.truncate(place[1] / HOME / JOURNAL, 1 << 40)  # of zeros that take no space on the disk
    with pytest.raises(UserError, match="missing or damaged"):
        once(predictor, place)
