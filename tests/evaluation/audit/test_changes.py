"""An editor's decisions count first; what nobody asked for stays."""

from __future__ import annotations

import csv

import pytest

from newsdesk.errors import UserError
from newsdesk.evaluation.audit.changes import KINDS, Changes, decide, kinds_of, read_decisions
from newsdesk.evaluation.audit.findings import AuditReport, Suspect, Twin, write_findings


def twin(row, other, *, exact=True, conflict=False):
    labels = ("A", "B" if conflict else "A")
    return Twin(row, row + 2, labels[0], other, other + 2, labels[1], 1.0, exact, conflict, "copy")


REPORT = AuditReport(
    source="rows.csv",
    rows=12,
    label_counts={"A": 6, "B, or C": 6},
    unjudged=0,
    accuracy=0.9,
    noise=0.1,
    confusions=(),
    suspects=tuple(
        Suspect(row, row + 2, "A", "B, or C", 0.9, 0.1, 'a "text",\nof two lines') for row in (1, 2, 3, 4)
    ),
    duplicates=(twin(5, 0), twin(6, 0, exact=False), twin(8, 7, conflict=True)),
    conflicting_rows=(7, 8),
    against="test.csv",
    leaks=(twin(9, 0), twin(10, 1, exact=False)),
    seconds={},
)


def decided(tmp_path, *decisions, **changed):
    """Fill the column of decisions as an editor would, and read it back."""
    write_findings(REPORT, tmp_path, {})
    with (tmp_path / "label-errors.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["decision"] for row in rows] == [""] * 4
    for row, decision in zip(rows, decisions, strict=False):
        row.update(decision=decision, **changed)
    with (tmp_path / "filled.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return read_decisions(tmp_path / "filled.csv", REPORT)


def test_decisions_make_the_round_trip_through_the_csv(tmp_path):
    assert decided(tmp_path, "keep", "drop", "relabel", " Relabel to A ") == Changes(
        {2: "decided"}, {3: "B, or C", 4: "A"}, frozenset({1})
    )
    assert decided(tmp_path) == Changes({}, {})


def test_a_decision_that_is_none_names_its_line(tmp_path):
    with pytest.raises(UserError, match=r"filled.csv, line 2: 'maybe' is no decision"):
        decided(tmp_path, "maybe")
    with pytest.raises(UserError, match=r"(?s)line 4: no row is labelled 'D'.*B, or C"):
        decided(tmp_path, "", "relabel to D")


def test_decisions_on_other_data_are_refused(tmp_path):
    with pytest.raises(UserError, match="no suspect of this audit"):
        decided(tmp_path, "drop", line="77")
    (tmp_path / "other.csv").write_text("row,text\n1,a\n")
    with pytest.raises(UserError, match="missing: decision, given, line"):
        read_decisions(tmp_path / "other.csv", REPORT)


def test_each_kind_drops_its_rows_and_keeps_the_first_of_copies():
    dropped = {kind: set(decide(REPORT, [kind], None).drop) for kind in KINDS}
    assert dropped == {
        "label-errors": {1, 2, 3, 4},
        "duplicates": {5},
        "near-duplicates": {6},
        "conflicts": {7, 8},
        "leaks": {9, 10},
    }


def test_what_an_editor_decided_stands_whatever_else_is_dropped():
    decisions = Changes({2: "decided"}, {3: "B, or C"}, frozenset({1}))
    changes = decide(REPORT, KINDS, decisions)
    assert changes.relabel == {3: "B, or C"}
    assert changes.drop[2] == "decided"
    assert set(changes.drop) == {2, 4, 5, 6, 7, 8, 9, 10}
    assert changes.to_dict()["dropped"]["label-errors"] == 1


def test_nothing_is_dropped_unasked():
    with pytest.raises(UserError, match="--drop label-errors"):
        decide(REPORT, (), None)
    assert kinds_of(["leaks", "duplicates"]) == ("duplicates", "leaks")
