"""The files of a report: whole drawings beside the page, and a run that stays sealed."""

from __future__ import annotations

import json
import sys
import warnings
from xml.etree import ElementTree

import pytest

from newsdesk.errors import UserError
from newsdesk.files import sha256_of
from newsdesk.reports.page import Report, report_path, write_report
from report_runs import build_run


def no_classifier():
    raise UserError("no classifier here")


def written(made, **settings) -> Report:
    given = {"out": report_path(made.run.path, "test"), "plots": None, "quote": True}
    return write_report(
        made.run,
        "test",
        texts=made.rows.texts,
        classifier=no_classifier,
        **(given | settings),
    )


def test_every_chart_is_a_whole_svg_and_a_png(tmp_path):
    made = build_run(tmp_path / "run", names=("<b>", "$x_{1$", "日本", "a\x07b"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = written(made, plots=tmp_path / "plots")
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {path.name for path in report.plots}
    assert {path.stem for path in report.plots} == {
        *("confusion-matrix", "reliability", "risk-coverage", "length-accuracy"),
        *("loss", "validation-accuracy", "learning-rate"),
    }
    for path in report.plots:
        content = path.read_bytes()
        if path.suffix == ".png":
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
        else:
            assert ElementTree.fromstring(content).tag.endswith("svg")
    words = "".join(ElementTree.parse(tmp_path / "plots" / "confusion-matrix.svg").getroot().itertext())
    assert "$x_{1$" in words
    assert "日本" in words


@pytest.mark.parametrize("name", ["page.html", "plots/loss.svg", "plots/loss.png"])
def test_a_report_is_replaced_and_what_no_report_wrote_is_not(tmp_path, name):
    made = build_run(tmp_path / "run")
    for _time in range(2):
        written(made, out=tmp_path / "page.html", plots=tmp_path / "plots")
    (tmp_path / name).write_text("<html>mine</html>")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="newsdesk report did not write it") as refused:
        written(made, out=tmp_path / "page.html", plots=tmp_path / "plots")
    assert str(tmp_path / name) in refused.value.wrong
    assert ("--plots" if "/" in name else "--out") in str(refused.value.fix)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_report_in_the_run_is_sealed_with_it(tmp_path):
    made = build_run(tmp_path / "run")
    report = written(made)
    files = json.loads((made.run.path / "manifest.json").read_text())["files"]
    assert files["report-test.html"] == sha256_of(report.path)


def test_a_report_elsewhere_leaves_the_run_as_it_was(tmp_path):
    made = build_run(tmp_path / "run")
    before = {path: path.read_bytes() for path in made.run.path.rglob("*") if path.is_file()}
    assert written(made, out=tmp_path / "page.html").path.read_text().startswith("<!doctype html>")
    assert {path: path.read_bytes() for path in made.run.path.rglob("*") if path.is_file()} == before


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    made = build_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="needs the package") as caught:
        written(made)
    assert "newsdesk[report]" in str(caught.value.fix)
    assert not report_path(made.run.path, "test").exists()
