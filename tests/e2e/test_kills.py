"""A file that is being classified outlives SIGKILL: no row is lost, none comes twice, no byte differs."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from textwrap import dedent

import pytest

pytest.importorskip("onnx")
from tiny_exports import WORDS, build_exported

ROWS, ROWS_PER_WINDOW, KILLS = 3750, 75, 10
MOST_WINDOWS = 4
"""Of a process that is to be killed: ten times as many do not reach the end, however late the kill comes."""
PATIENCE = 120
"""Seconds until a process is given up."""

SMALL_WINDOWS = dedent(
    f"""
    import itertools, os, time
    from newsdesk.prediction import bulk
    from newsdesk.prediction import classifier as text_classifier

    bulk.ROWS_PER_WINDOW = {ROWS_PER_WINDOW}
    at_once = text_classifier.Classifier.classify
    windows, most = itertools.count(1), int(os.environ["MOST_WINDOWS"])
    def slowly(*arguments, **named):
        time.sleep(0.01 if next(windows) <= most else 3600)
        return at_once(*arguments, **named)
    text_classifier.Classifier.classify = slowly
    from newsdesk.cli import main
    main()
    """
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return build_exported(tmp_path_factory.mktemp("exported") / "tiny")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Rows of text, every 97th of them bad."""
    words = [word for topic in WORDS.values() for word in topic]
    generator = random.Random(4)
    path = tmp_path_factory.mktemp("rows") / "in.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["number", "text"])
        for number in range(ROWS):
            text = "\n".join(generator.choices(words, k=generator.randint(1, 9)))
            writer.writerow([number, text, "too much"] if number % 97 == 96 else [number, text])
    return path


def begin(exported, source, output, most_windows=1_000_000):
    command = [
        sys.executable,
        "-c",
        SMALL_WINDOWS,
        "predict",
        exported,
        "--input",
        source,
        "--output",
        output,
    ]
    environment = {**os.environ, "MOST_WINDOWS": str(most_windows)}
    return subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)


def rows_done(output):
    journal = output.with_name(output.name + ".part.json")
    return json.loads(journal.read_text())["checkpoint"]["rows_read"] if journal.is_file() else 0


def kill_after_some_progress(process, output, generator):
    """Kill it within the next three windows or so, wherever it then is; its note on where it went on."""
    before, windows = rows_done(output), generator.randint(1, 3)
    deadline = time.monotonic() + PATIENCE
    while rows_done(output) < before + windows * ROWS_PER_WINDOW:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(generator.uniform(0, 0.03))
    process.send_signal(signal.SIGKILL)
    return process.communicate()[1]


@pytest.mark.parametrize("ending", ["csv", "jsonl.gz", "parquet"])
def test_ten_kills_change_no_byte(exported, source, tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    whole, broken = tmp_path / f"whole.{ending}", tmp_path / f"broken.{ending}"
    assert begin(exported, source, whole).wait(PATIENCE) == 0
    generator, notes = random.Random(ending), []
    for _ in range(KILLS if ending == "csv" else 2):
        process = begin(exported, source, broken, MOST_WINDOWS)
        notes.append(kill_after_some_progress(process, broken, generator))
        assert not broken.exists()
        with broken.with_name(broken.name + ".part").open("ab") as part:
            part.write(b"torn")  # what a machine that loses power may leave
    process = begin(exported, source, broken)
    assert process.wait(PATIENCE) == 0
    assert all("resuming after row" in note for note in [*notes[1:], process.stderr.read()])
    assert broken.read_bytes() == whole.read_bytes()
    rejects = [path.with_name(path.name + ".rejects.jsonl").read_text() for path in (whole, broken)]
    assert rejects[0] == rejects[1]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"{n}.{ending}{more}" for n in ("whole", "broken") for more in ("", ".rejects.jsonl")}
    if ending == "parquet":
        return
    content = (gzip.decompress if ending.endswith("gz") else bytes)(broken.read_bytes()).decode()
    rows = (
        map(json.loads, content.splitlines())
        if "jsonl" in ending
        else csv.DictReader(content.splitlines(True))
    )
    expected = [number for number in range(ROWS) if number % 97 != 96]
    assert [int(row["number"]) for row in rows] == expected
    assert len(rejects[0].splitlines()) == ROWS - len(expected)
