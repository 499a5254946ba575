"""A stored file is read as the one type that wrote it, or refused with the field that is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

import newsdesk
from newsdesk.errors import UserError
from newsdesk.evaluation.evaluate import read_metrics, write_metrics
from newsdesk.exports.parity import ExportQuality
from newsdesk.runs.calibration import read_calibration
from newsdesk.runs.exported import QUALITY, ExportedModel, find_exported
from newsdesk.runs.folder import RunFolder, open_run
from newsdesk.runs.log import Finished, Started, read_log
from newsdesk.stored import KEY, OPTIONAL, UNSTORED, read_stored, write_stored

OLD = Path(__file__).parent / "old_run"
"""A run and its export from before files had a format, with two evaluations' worth of figures."""


@dataclass(frozen=True)
class Part:
    name: str
    share: float


@dataclass(frozen=True)
class Whole:
    origin: str = field(metadata={KEY: "from"})
    count: int
    kind: Literal["a", "b"]
    interval: tuple[float, float]
    parts: tuple[Part, ...]
    by_name: Mapping[str, int]
    licence: str | None
    note: str | None = field(default=None, metadata=OPTIONAL)
    texts: tuple[str, ...] = field(default=(), metadata=UNSTORED)
    added_later: bool = False


WHOLE = Whole("wire", 3, "a", (0.5, 1.0), (Part("x", 0.5), Part("y", 1.0)), {"z": 1}, None)


def written(folder: Path, **changes: Any) -> Path:
    """A file of WHOLE with some of its fields replaced; None takes a field away."""
    write_stored(folder / "file.json", WHOLE)
    content = json.loads((folder / "file.json").read_text()) | changes
    kept = {key: value for key, value in content.items() if value != "gone"}
    (folder / "file.json").write_text(json.dumps(kept))
    return folder / "file.json"


def refused(path: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        read_stored(path, Whole, fix="write it anew")
    return caught.value


def test_a_file_holds_what_was_written_and_its_format_first(tmp_path):
    path = tmp_path / "file.json"
    write_stored(path, replace(WHOLE, texts=("not for strangers",)))
    assert read_stored(path, Whole, fix="") == WHOLE
    content = json.loads(path.read_text())
    assert list(content) == [
        *("format", "from", "count", "kind", "interval", "parts", "by_name", "licence", "added_later")
    ]
    assert content["format"] == 1
    write_stored(path, replace(WHOLE, note="said", licence="mit"))
    assert read_stored(path, Whole, fix="") == replace(WHOLE, note="said", licence="mit")


def test_fields_that_came_later_or_are_not_known_do_not_matter(tmp_path):
    path = written(tmp_path, added_later="gone", format="gone", of_the_future={"a": 1})
    assert read_stored(path, Whole, fix="") == WHOLE


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"count": "gone"}, "no count"),
        ({"count": "3"}, 'count is "3", not a whole number'),
        ({"count": 3.0}, "count is 3.0, not a whole number"),
        ({"count": -5}, "count is -5, not a whole number from 0 on"),
        ({"count": 1 << 64}, "count is 18446744073709551616, not a whole number from 0 on"),
        ({"count": True}, "count is true, not a whole number"),
        ({"from": 5}, "from is 5, not a text"),
        ({"kind": "c"}, 'kind is "c", not one of a, b'),
        ({"interval": [0.5]}, "interval is an array of 1, not an array of 2"),
        ({"interval": [0.5, "1"]}, 'interval.1 is "1", not a number'),
        ({"parts": {}}, "parts is an object, not an array"),
        ({"parts": [{"name": "x"}]}, "no parts.0.share"),
        ({"parts": [3]}, "parts.0 is 3, not an object"),
        ({"by_name": {"z": 1.5}}, "by_name.z is 1.5, not a whole number"),
        ({"added_later": 0}, "added_later is 0, not true or false"),
        ({"format": "1"}, 'format is "1", not a version number'),
        ({"format": 0}, "format is 0, not a version number"),
    ],
)
def test_a_field_of_another_type_is_named_with_what_it_is(tmp_path, changes, found):
    error = refused(written(tmp_path, **changes))
    assert error.wrong == f"{tmp_path / 'file.json'} is missing or damaged"
    assert (error.found, error.fix) == (found, "write it anew")


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"null", b"\xff\xfe{}"])
def test_what_is_no_json_object_is_damaged(tmp_path, content):
    if content is not None:
        (tmp_path / "file.json").write_bytes(content)
    assert "is missing or damaged" in refused(tmp_path / "file.json").wrong


def test_a_file_of_a_newer_format_says_to_upgrade(tmp_path):
    error = refused(written(tmp_path, format=2, count="of another kind now"))
    assert error.wrong == f"{tmp_path / 'file.json'} was written by a newer version of newsdesk"
    assert error.found == "format 2; this version reads format 1"
    assert "--upgrade" in str(error.fix)


def contents_of(folder: Path) -> dict[str, Any]:
    """Every typed file of the run in a folder and of its export, as the types read them."""
    run = RunFolder(folder)
    export = find_exported(folder / "export" / "onnx-fp32")
    assert export is not None
    return {
        "manifest": run.manifest,
        "labels": run.labels,
        "metrics": read_metrics(run.metrics),
        "calibration": read_calibration(folder),
        "log": list(read_log(run.log)),
        "export manifest": export.manifest,
        "export labels": export.labels,
        "export calibration": read_calibration(export.path),
        "export quality": read_stored(export.path / QUALITY, ExportQuality, fix=""),
    }


@pytest.fixture
def old(tmp_path) -> Path:
    return shutil.copytree(OLD, tmp_path / "old")


def test_every_file_from_before_there_were_formats_still_opens(old):
    assert not any(
        '"format"' in file.read_text() for file in old.rglob("*.json") if file.parent.name == "old"
    )
    found = contents_of(old)
    manifest, test = found["manifest"], found["metrics"]["test"]
    assert (manifest.seed, manifest.data.train.rows, manifest.training.steps) == (42, 192, 12)
    assert manifest.data.validation.is_split_off
    assert manifest.data.validation.origin == manifest.data.train.source
    assert found["labels"].names == ("Business", "Science", "Sports")
    assert (test.metrics.rows, test.metrics.correct, test.baseline.accuracy) == (60, 32, 1.0)
    assert [at.error_rate for at in test.risk_coverage.coverage_at] == [0.01, 0.02, 0.05]
    assert test.calibration.temperature == found["calibration"].temperature == pytest.approx(1.2008, abs=1e-4)
    assert [type(found["log"][at].event) for at in (0, -1)] == [Started, Finished]
    assert found["export manifest"].run.base == manifest.base
    assert found["export quality"].tried[0].is_exact


def test_old_files_written_anew_are_of_the_new_format_and_say_the_same(old):
    before = contents_of(old)
    RunFolder(old).write_labels(before["labels"])
    write_metrics(before["metrics"]["test"], RunFolder(old).metrics)
    write_stored(old / "calibration.json", before["calibration"])
    export = ExportedModel(old / "export" / "onnx-fp32")
    write_stored(export.path / QUALITY, before["export quality"])
    write_stored(export.path / "calibration.json", before["export calibration"])
    before["export labels"].write(export.path)
    export.seal_calibration()
    RunFolder(old).reseal()
    after = contents_of(old)
    for name in ("manifest", "export manifest"):
        before[name], after[name] = replace(before[name], files={}), replace(after[name], files={})
    assert after == before
    written = ("manifest", "labels", "metrics", "calibration")
    assert all(json.loads((old / f"{name}.json").read_text())["format"] == 1 for name in written)
    written = ("manifest", "labels", "quality", "calibration")
    assert all(json.loads((export.path / f"{name}.json").read_text())["format"] == 1 for name in written)


def test_a_run_from_before_there_were_formats_predicts_and_is_reported(old, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(old.parent)
    assert len(newsdesk.load(old).predict(["goal coach league"]).labels) == 1
    report = newsdesk.report(old)
    page = report.path.read_text()
    assert "53.33\N{NO-BREAK SPACE}%" in page
    assert "linear SVM" in page
    assert newsdesk.compare(old, [old])[0].verdict == "both predict the same classes for all 60 rows"
    assert open_run(old).is_complete()


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("manifest.json", {"base": "roberta-base"}, 'base is "roberta-base", not an object'),
        (
            "manifest.json",
            {"files": {"../id_rsa": "0"}},
            "files names '../id_rsa', which is no path in the folder",
        ),
        ("labels.json", {"labels": [1, 2]}, "labels.0 is 1, not a text"),
        ("labels.json", {"labels": ["a", "b", "a"]}, "labels has 'a' twice"),
        ("labels.json", {"labels": []}, "labels is empty"),
        ("labels.json", {"max_length": 1 << 40}, "max_length is 1099511627776, not from 1 to 1,048,576"),
        ("calibration.json", {"folded": 1e30}, "a temperature of 1e+30"),
        ("metrics.json", {"test": {"split": "test"}}, "no test.source"),
        ("metrics.json", {"other": 3}, "other is 3, not an object"),
        ("calibration.json", {"temperature": "high"}, 'temperature is "high", not a number'),
    ],
    ids=str,
)
def test_each_file_of_a_run_is_refused_by_name_and_field(old, name, change, found):
    write_json = json.dumps(json.loads((old / name).read_text()) | change)
    (old / name).write_text(write_json)
    with pytest.raises(UserError) as caught:
        contents_of(old)
    assert caught.value.wrong == f"{old / name} is missing or damaged"
    assert caught.value.found == found
    (old / name).write_text(json.dumps({"format": 7}))
    with pytest.raises(UserError, match=rf"{name} was written by a newer version of newsdesk"):
        contents_of(old)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"confusion": [[1]]}, "confusion or per_class is not of the 3 classes"),
        ({"rows": 1}, "rows is 1, and not the sum of confusion"),
        ({"accuracy": 7.5}, "is not from 0 to 1"),
        ({"most_confident_errors": [1000]}, "a row beyond the last"),
    ],
)
def test_figures_that_do_not_go_together_are_refused(old, change, found):
    content = json.loads((old / "metrics.json").read_text())
    content["test"]["metrics"] |= change
    (old / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"metrics.json is missing or damaged") as caught:
        read_metrics(old / "metrics.json")
    assert found in (caught.value.found or "")
