"""An editor's decisions count first; what nobody asked for stays."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest

from newsdesk.errors import UserError
from newsdesk.evaluation.audit.cleaned_copy import KINDS, Changes, decide, read_decisions
from newsdesk.evaluation.audit.findings import AuditReport, Judgement, Twin, write_findings


def twin(row, other, *, exact=True, conflict=False):
    labels = ("A", "B" if conflict else "A")
    return Twin(row, row + 2, labels[0], other, other + 2, labels[1], 1.0, exact, conflict, "copy")


REPORT = AuditReport(
    source="rows.csv",
    rows=12,
    label_counts={"A": 6, "B, or C": 6},
    unjudged=0,
    accuracy=0.9,
    majority=0.5,
    noise=0.1,
    confusions=(),
    judgements=(
        *(
            Judgement(row, row + 2, "A", "B, or C", 0.9, 0.1, 'a "text",\nof two lines', suspect=True)
            for row in (1, 2, 3, 4)
        ),
        Judgement(0, 2, "A", "B, or C", 0.6, 0.4, "unsure", suspect=False),
        Judgement(5, 7, "A", "A", 0.9, 0.9, "sure", suspect=False),
        Judgement(11, 13, "A", "", None, None, "alone", suspect=False),
    ),
    duplicates=(twin(5, 0), twin(6, 0, exact=False), twin(8, 7, conflict=True)),
    conflicting_rows=(7, 8),
    against="test.csv",
    leaks=(twin(9, 0), twin(10, 1, exact=False)),
    seconds={},
)


def decided(tmp_path, *decisions, name="label-errors.csv", **changed):
    """Fill the column of decisions as an editor would, and read it back."""
    write_findings(REPORT, tmp_path, {})
    with (tmp_path / name).open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["decision"] for row in rows} == {""}
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
    assert decided(tmp_path, "", "relabel to b,  OR C") == decided(tmp_path, "", "relabel to B, or C")


def test_an_editor_can_go_on_down_the_list_of_all_rows(tmp_path):
    name = "quality.csv"
    assert decided(
        tmp_path, "", "", "", "drop", "relabel", "keep", "relabel to B, or C", name=name
    ) == Changes({4: "decided"}, {0: "B, or C", 11: "B, or C"}, frozenset({5}))
    for decisions in (["", "", "", "", "", "relabel"], ["", "", "", "", "", "", "relabel"]):
        with pytest.raises(UserError, match="suggests no other label"):
            decided(tmp_path, *decisions, name=name)


def test_every_row_is_written_with_its_quality_the_least_fitting_label_first(tmp_path):
    write_findings(REPORT, tmp_path, {})
    with (tmp_path / "quality.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5", "6", ""]
    assert [row["suspect"] for row in rows] == ["yes"] * 4 + ["no"] * 3
    assert [row["quality"] for row in rows] == ["0.1"] * 4 + ["0.4", "0.9", ""]
    assert (rows[4]["line"], rows[4]["given"], rows[4]["suggested"]) == ("2", "A", "B, or C")


def test_label_errors_are_not_dropped_by_an_audit_that_cannot_judge_them():
    weak = replace(REPORT, accuracy=0.7)
    assert weak.least_accuracy == 0.75
    with pytest.raises(UserError, match="cannot tell which labels are wrong") as caught:
        decide(weak, ["label-errors", "leaks"], None)
    assert caught.value.found == "held-out accuracy 70.0%; 75.0% or more is needed"
    assert set(decide(weak, ["leaks"], None).drop) == {9, 10}


def test_a_decision_that_is_none_names_its_line(tmp_path):
    with pytest.raises(UserError, match=r"filled.csv, line 2: 'maybe' is not a decision"):
        decided(tmp_path, "maybe")
    with pytest.raises(UserError, match=r"(?s)line 4: no row is labelled 'D'.*B, or C"):
        decided(tmp_path, "", "relabel to D")


def test_decisions_on_other_data_are_refused(tmp_path):
    with pytest.raises(UserError, match="not in the audited data"):
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
