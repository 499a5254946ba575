"""A watched folder: what is dropped into it is classified exactly once, whatever happens meanwhile."""

from __future__ import annotations

import csv
import gzip
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from newsdesk.prediction import bulk, watched_folder
from newsdesk.prediction.bulk import predict_file
from newsdesk.prediction.open_model import open_model
from newsdesk.prediction.output_table import rejects_of
from newsdesk.prediction.watch_journal import HOME, JOURNAL
from newsdesk.prediction.watched_folder import FileDone, FileFailed, watch_folder

TEXTS = ("goal coach", "bank market profit", "orbit", "tennis season", "", "genome laser")
ITEM = {"uri": "urn:x:1", "version": "1", "headlines": [{"value": "market bank"}]}


@pytest.fixture(scope="module")
def predictor(built):
    return open_model(built)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(bulk, "ROWS_PER_WINDOW", 2)


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

    bulk.ROWS_PER_WINDOW = 2
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
