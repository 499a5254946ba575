"""A job on several machines: every row of every file comes once, whichever machine is lost meanwhile."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("pyarrow")
from newsdesk.data.dialect import Dialect
from newsdesk.errors import UserError
from newsdesk.prediction import ray_bulk
from newsdesk.prediction.bulk import predict_file
from newsdesk.prediction.open_model import open_model
from newsdesk.prediction.ray_bulk import JobBegun, ShardDone, predict_on_ray
from newsdesk.runs.calibration import HeldOutRows, store_calibration
from newsdesk.runs.exported import ExportedModel
from tiny_exports import WORDS, build_exported

FILES, ROWS, BAD_EVERY = 8, 500, 97
BAD = {number for number in range(FILES * ROWS) if number % BAD_EVERY == 0}
PATIENCE = 300
"""Seconds until a cluster is given up."""

LOSING_A_NODE = dedent(
    """
    import json, sys, time
    from pathlib import Path
    import ray
    from ray.cluster_utils import Cluster
    from newsdesk.prediction import ray_bulk
    from newsdesk.prediction.open_model import open_model

    exported, source, output, diary = sys.argv[1:]

    class Slow(ray_bulk.ShardWorker):
        def _classify(self, shard):
            node = ray.get_runtime_context().get_node_id()
            entry = Path(diary, f"{node} {shard.output.replace('/', '-')} {time.time_ns()}")
            entry.touch()
            time.sleep(1.5)
            counts = super()._classify(shard)
            entry.unlink()  # what stays was begun and not ended
            return counts

    ray_bulk.ShardWorker = Slow
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)

    def observe(event):
        if getattr(event, "done", 0) == 3:
            lost = nodes[0]
            while not list(Path(diary).glob(f"{lost.node_id} *")):
                time.sleep(0.01)
            cluster.remove_node(lost, allow_graceful=False)

    totals = ray_bulk.predict_on_ray(open_model(exported), source, output, observe=observe)
    alive = sum(node["Alive"] for node in ray.nodes())
    print(json.dumps({"alive": alive, "totals": vars(totals)}))
    ray.shutdown()
    cluster.shutdown()
    """
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return build_exported(tmp_path_factory.mktemp("exported") / "tiny")


@pytest.fixture
def source(tmp_path):
    """A folder of files, some packed, some in a folder below; every 97th row is bad."""
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    words = [word for topic in WORDS.values() for word in topic]
    for file in range(FILES):
        path = folder / ("below" if file % 2 else "") / f"part-{file}.csv{'.gz' if file % 3 == 0 else ''}"
        with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["number", "text"])
            for number in range(file * ROWS, (file + 1) * ROWS):
                row = [number, words[number % len(words)]]
                writer.writerow([*row, "too much"] if number in BAD else row)
    return folder


class OneProcess:
    """As much of Ray as the module calls, without its processes: what is promised of the rest of the code."""

    def __init__(self) -> None:
        self.data = self
        self.workers = self.worked = 0
        self.exceptions = SimpleNamespace(RayError=RuntimeError)
        self.running = False
        self.context = SimpleNamespace()
        self.DataContext = SimpleNamespace(get_current=lambda: self.context)
        self.address: object = "never connected"

    def is_initialized(self):
        return self.running

    def init(self, *, address, **_):
        if address == "nowhere":
            raise ConnectionError("no cluster\nat nowhere")
        self.address, self.running = address, True

    def shutdown(self):
        self.running = False

    def cluster_resources(self):
        return {"CPU": 4.0}

    def put(self, value):
        return value

    def get(self, value):
        return value

    def from_items(self, items, *, override_num_blocks):
        assert override_num_blocks == len(items)  # else a worker gets several files at once
        self.items = items
        return self

    def ActorPoolStrategy(self, *, size, **_):  # noqa: N802
        self.workers = size

    def map(self, worker, *, fn_constructor_args, num_cpus, compute):
        self.cores = num_cpus
        self.worker = worker(*fn_constructor_args)
        return self

    def iter_rows(self):
        for item in self.items:
            self.worked += 1
            yield self.worker(item)


@pytest.fixture
def one_process(monkeypatch):
    ray = OneProcess()
    modules = {"ray": ModuleType("ray"), "ray.data": ModuleType("ray.data")}
    for name in (name for name in dir(ray) if not name.startswith("_")):
        monkeypatch.setattr(modules["ray"], name, getattr(ray, name), raising=False)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return ray


def rows_in(folder: Path) -> list[dict[str, str]]:
    rows = []
    for path in sorted(folder.rglob("*.csv*")):
        if not path.relative_to(folder).parts[0].startswith("_"):
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as stream:
                rows += list(csv.DictReader(stream))
    return rows


def assert_all_rows_once(source: Path, output: Path) -> None:
    """Rows, columns, classes and rejects are right, and nothing half-written lies about."""
    rows = rows_in(output)
    assert sorted(int(row["number"]) for row in rows) == sorted(set(range(FILES * ROWS)) - BAD)
    assert all(row["text"] in WORDS[row["label"]] for row in rows)
    assert {tuple(row) for row in rows} == {("number", "text", "label", "probability", "reason")}
    rejects = [path.read_text().splitlines() for path in (output / "_rejects").rglob("*.jsonl")]
    assert sum(map(len, rejects)) == len(BAD)
    names = {path.relative_to(source).as_posix() for path in source.rglob("*.csv*")}
    notes = {f"_done/{name}.json" for name in names} | {f"_rejects/{name}.jsonl" for name in names}
    written = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert written == names | notes | {"_job.json"}


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'newsdesk[ray]'")
def test_every_row_comes_once_though_a_machine_is_lost(exported, source, tmp_path):
    output, diary = tmp_path / "out", tmp_path / "diary"
    diary.mkdir()
    # A fresh process: Ray needs sockets, which this one may not open.
    result = subprocess.run(
        [sys.executable, "-c", LOSING_A_NODE, *map(str, (exported, source, output, diary))],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert result.returncode == 0, result.stderr[-4000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["alive"] == 2  # of three, the head among them
    assert len(list(diary.iterdir())) == 1  # its worker was in the middle of a file
    totals = {
        "shards": FILES,
        "rows_read": FILES * ROWS,
        "rejected": len(BAD),
        "unanswered": 0,
        "unreadable": 0,
    }
    assert totals.items() <= report["totals"].items()
    assert_all_rows_once(source, output)


def test_each_file_becomes_a_file_with_its_bad_rows_aside(exported, source, tmp_path, one_process):
    events = []
    totals = predict_on_ray(open_model(exported), str(source), str(tmp_path / "out"), observe=events.append)
    assert (totals.shards, totals.rows_read, totals.rejected) == (FILES, FILES * ROWS, len(BAD))
    assert (totals.unanswered, totals.unreadable, totals.truncation.cut) == (0, 0, 0)
    assert_all_rows_once(source, tmp_path / "out")
    assert events[0] == JobBegun(FILES, 0)
    assert [event.done for event in events[1:]] == list(range(1, FILES + 1))
    assert (one_process.workers, one_process.cores, one_process.running) == (4, 1, False)


def test_empty_and_cut_texts_are_counted_and_the_empty_left_unanswered(exported, tmp_path, one_process):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text(f'number,text\n1,goal\n2," "\n3,{"goal " * 40}\n')
    source, predictor = str(tmp_path / "in"), open_model(exported)
    totals = predict_on_ray(predictor, source, str(tmp_path / "out"))
    assert (totals.unanswered, totals.unreadable, totals.cut, totals.lost) == (1, 1, 1, 26)
    reasons = [(row["label"], row["reason"]) for row in rows_in(tmp_path / "out")]
    assert reasons == [("Sports", ""), ("", "empty text"), ("Sports", "")]
    again = predict_on_ray(predictor, source, str(tmp_path / "out"))
    assert again == totals
    answered = predict_on_ray(predictor, source, str(tmp_path / "all"), answer_empty=True)
    assert (answered.unanswered, answered.unreadable) == (0, 0)


def test_the_same_call_goes_on_with_what_is_not_done(exported, source, tmp_path, one_process, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    predict_on_ray(open_model(exported), str(source), str(whole))

    def lost_at_the_third(event):
        if isinstance(event, ShardDone) and event.done == 3:
            raise RuntimeError("the driver is lost")

    with pytest.raises(UserError, match="give the same command again"):
        predict_on_ray(open_model(exported), str(source), str(broken), observe=lost_at_the_third)
    one_process.worked, events = 0, []
    predict_on_ray(open_model(exported), str(source), str(broken), observe=events.append)
    assert events[0] == JobBegun(FILES, 3)
    assert one_process.worked == FILES - 3
    assert rows_in(broken) == rows_in(whole)
    one_process.address = "never connected"
    assert predict_on_ray(open_model(exported), str(source), str(broken)).rows_read == FILES * ROWS
    assert one_process.address == "never connected"  # nothing was left to do


def test_work_that_is_asked_for_again_is_not_done_again(exported, source, tmp_path, one_process, monkeypatch):
    predict_on_ray(open_model(exported), str(source), str(tmp_path / "out"))
    monkeypatch.setattr(ray_bulk, "predict_file", None)
    assert one_process.worker(one_process.items[0])["rows_read"] == ROWS


def test_a_changed_input_is_classified_again(exported, source, tmp_path, one_process):
    predict_on_ray(open_model(exported), str(source), str(tmp_path / "out"))
    (source / "part-2.csv").write_text("number,text\n7,goal\n")
    totals = predict_on_ray(open_model(exported), str(source), str(tmp_path / "out"))
    assert totals.rows_read == (FILES - 1) * ROWS + 1
    (row,) = csv.DictReader((tmp_path / "out" / "part-2.csv").open())
    assert row["label"] == "Sports"
    assert not (tmp_path / "out" / "_rejects" / "part-2.csv.jsonl").exists()  # it had some before


def test_a_damaged_file_does_not_stop_the_others(exported, source, tmp_path, one_process):
    packed = source / "part-0.csv.gz"
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(UserError) as failure:
        predict_on_ray(open_model(exported), str(source), str(tmp_path / "out"))
    assert "part-0.csv.gz" in str(failure.value)
    assert len(list((tmp_path / "out" / "_done").rglob("*.json"))) == FILES - 1
    assert not (tmp_path / "out" / "part-0.csv.gz").exists()


def test_strict_stops_at_the_first_bad_row(exported, source, tmp_path, one_process):
    with pytest.raises(UserError, match="stopped at a file with a bad row"):
        predict_on_ray(open_model(exported), str(source), str(tmp_path / "out"), strict=True)
    assert one_process.worked == 1


def test_workers_that_write_elsewhere_are_noticed(exported, source, tmp_path, one_process, monkeypatch):
    monkeypatch.setattr(ray_bulk.ShardWorker, "_classify", lambda self, shard: ray_bulk.Counts(1, 0))
    with pytest.raises(UserError, match="not the one here"):
        predict_on_ray(open_model(exported), str(source), str(tmp_path / "out"))


def test_a_cluster_out_of_reach_is_explained(exported, source, tmp_path, one_process):
    with pytest.raises(UserError, match="at nowhere"):
        predict_on_ray(open_model(exported), str(source), str(tmp_path / "out"), address="nowhere")


def test_a_connection_that_was_there_stays(exported, source, tmp_path, one_process):
    one_process.running = True
    predict_on_ray(open_model(exported), str(source), str(tmp_path / "out"), workers=2, cores=3)
    assert (one_process.running, one_process.workers, one_process.cores) == (True, 2, 3)


def test_only_onnx_exports_travel_to_workers(tmp_path):
    of_torch = SimpleNamespace(path=tmp_path, engine="torch")
    with pytest.raises(UserError, match="--to onnx-int8"):
        predict_on_ray(of_torch, str(tmp_path), str(tmp_path / "out"))


def test_without_ray_the_error_names_the_extra(exported, source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"newsdesk\[ray\]"):
        predict_on_ray(open_model(exported), str(source), str(tmp_path / "out"))


def test_a_file_of_which_most_rows_are_rejected_fails_alone_and_gets_no_output(
    exported, tmp_path, one_process
):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "good.csv").write_text("n;text\n" + "1;goal, coach\n" * 9)
    (source / "bad.csv").write_text("n;text\n1;goal\n" + "2;bank;market\n" * 9)
    with pytest.raises(UserError, match=r"bad\.csv.*too many fields.*first in line 3") as caught:
        predict_on_ray(open_model(exported), str(source), str(output), dialect=Dialect(delimiter=";"))
    assert caught.value.wrong == "files not classified: 1"
    assert {path.name for path in output.rglob("*") if path.is_file()} == {
        *("good.csv", "good.csv.json", "_job.json")
    }
    with pytest.raises(UserError, match="it differs in dialect"):
        predict_on_ray(open_model(exported), str(source), str(output), dialect=Dialect(delimiter=","))


def test_without_ray_nothing_is_written(exported, source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"newsdesk\[ray\]"):
        predict_on_ray(open_model(exported), str(source), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_promises_are_the_same_on_a_cluster_as_on_one_machine(one_process, source, tmp_path):
    folder = build_exported(tmp_path / "tiny")
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=4, size=(400, 3)).astype(np.float32)
    labels = np.where(np.arange(400) % 20 > 0, logits.argmax(axis=1), 0)
    rows = HeldOutRows(logits, labels, "abc", readable=np.arange(400) % 4 > 0)
    store_calibration(folder, rows, "rows of a test")
    ExportedModel(folder).seal_calibration()
    predictor, promise = open_model(folder), {"abstain": 0.2, "sets": 0.9}
    assert predictor.decision_rule(**promise).rows == 300
    settings = {**promise, "answer_empty": False, "top_k": 2}
    totals = predict_on_ray(predictor, str(source), str(tmp_path / "out"), **settings)
    (tmp_path / "alone").mkdir()
    for path in source.rglob("*.csv*"):
        rejects = tmp_path / f"{path.name}.rejects"
        predict_file(predictor, path, tmp_path / "alone" / path.name, **settings, rejects=rejects)
    folders = (tmp_path / "out", tmp_path / "alone")
    ours, alone = (sorted(rows_in(at), key=lambda row: int(row["number"])) for at in folders)
    assert ours == alone
    assert totals.unanswered == sum(not row["label"] for row in ours)
    assert {"candidates", "reason"} <= set(ours[0])
    assert any(row["candidates"] for row in ours)
