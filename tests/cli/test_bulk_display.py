"""What a person sees of a file being classified."""

from __future__ import annotations

from pathlib import Path

import pytest

from consoles import Clock, file_console, screen_console, shown
from newsdesk.cli import display as bulk_display
from newsdesk.cli.display import BulkDisplay
from newsdesk.data.table import Fault
from newsdesk.prediction.bulk import Begun, Classified, Reject, WindowWritten
from newsdesk.prediction.resumable_output import Checkpoint

BAD = Reject(Fault(7, "not a text", "a number", "fix it"), {"text": 5})


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(bulk_display, "time", clock)
    return clock


@pytest.fixture
def file():
    return file_console()


@pytest.fixture
def screen():
    return screen_console()


def test_a_file_gets_a_line_now_and_then_with_rows_share_and_rate(file, clock):
    with BulkDisplay(file, names_rejects=False) as display:
        display.show(Begun(0, left_over=False))
        for window in range(1, 4):
            clock.now += 8.0
            display.show(Classified(4000 * window))
            display.show(WindowWritten(Checkpoint(rows_read=4000 * window), window / 4, ()))
    assert shown(file) == "row 8,000 (50%), 8,000 rows, 500 rows/s\n"


def test_what_an_earlier_process_did_is_told_and_not_counted_into_the_rate(file, clock):
    with BulkDisplay(file, names_rejects=False) as display:
        display.show(Begun(8000, left_over=True))
        clock.now += 20.0
        display.show(Classified(9000))
        display.show(WindowWritten(Checkpoint(rows_read=9000), None, ()))
    assert "resuming after row 8,000, where an earlier run stopped" in shown(file)
    assert "an unfinished output of other input or settings was dropped" in shown(file)
    assert "row 9,000, 9,000 rows, 50 rows/s" in shown(file)


def test_a_terminal_gets_a_bar_that_vanishes(screen, clock):
    with BulkDisplay(screen, names_rejects=False) as display:
        display.show(Begun(0, left_over=False))
        clock.now += 2.0
        display.show(Classified(100))
        display.show(WindowWritten(Checkpoint(rows_read=100), 0.25, ()))
        display.finish(Checkpoint(rows_read=100), Path("out.csv"), None)
    assert "classifying" in shown(screen)
    assert "25%" in shown(screen)
    assert "100 rows, 50 rows/s" in shown(screen)
    assert shown(screen).endswith("\x1b[2K")  # the last thing drawn is an empty line


def test_bad_rows_are_named_where_no_file_takes_them(file):
    with BulkDisplay(file, names_rejects=True) as display:
        display.show(WindowWritten(Checkpoint(rows_read=9, rejected=1), None, (BAD,)))
        display.finish(Checkpoint(rows_read=9, rejected=1), None, None)
    assert shown(file).splitlines() == ["line 7 rejected: not a text (a number)", "1 row of 9 rejected"]


@pytest.mark.parametrize(("rejects", "place"), [(None, "out.csv.rejects.jsonl"), ("bad.jsonl", "bad.jsonl")])
def test_the_end_says_how_many_were_set_aside_and_where(file, rejects, place):
    with BulkDisplay(file, names_rejects=False) as display:
        display.finish(Checkpoint(rows_read=9000, rejected=20), Path("out.csv"), rejects and Path(rejects))
    assert shown(file) == f"20 rows of 9,000 rejected; see {place}\n"
