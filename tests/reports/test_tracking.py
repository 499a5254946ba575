"""Trackers show a training as its log has it, whole and once, and cannot harm it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("tensorboard")
pytest.importorskip("wandb")
mlflow = pytest.importorskip("mlflow")
pytest.importorskip("flask_cors", reason="MLflow's server needs it")

import newsdesk  # noqa: E402
from newsdesk.errors import UserError  # noqa: E402
from newsdesk.reports import tracking  # noqa: E402
from newsdesk.reports.tracking import Tracked, Tracking  # noqa: E402
from newsdesk.runs.folder import RunFolder  # noqa: E402
from newsdesk.runs.log import Finished, Remark, Step, Validation, read_added, read_log  # noqa: E402

ADAPTER = "adapter/adapter_model.safetensors"


SERVER = """
import sys, threading
from mlflow.server import app
from werkzeug.serving import make_server

port = 0
for command in sys.stdin:
    if command.strip() == "start":
        server = make_server("127.0.0.1", port, app, threaded=True)
        port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
    else:
        server.shutdown()
        server.server_close()
    print(port, flush=True)
"""


class MLflowServer:
    """MLflow's own server on a port of 127.0.0.1, which can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        settings = {
            "MLFLOW_ALLOW_FILE_STORE": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "_MLFLOW_SERVER_FILE_STORE": str(folder / "store"),
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER],
            env={**os.environ, **settings},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "server.log").open("w"),
            text=True,
        )
        self.url = f"http://127.0.0.1:{self.start()}"

    def start(self) -> int:
        return self._do("start")

    def stop(self) -> None:
        self._do("stop")

    def _do(self, command: str) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@dataclass(frozen=True)
class Shown:
    """What MLflow's own client reads of a tracked run."""

    run: Any
    client: Any

    @classmethod
    def of(cls, folder: RunFolder) -> Shown:
        tracked = Tracked.of(folder)
        assert tracked is not None
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name("newsdesk").experiment_id
        (run,) = client.search_runs([experiment], f"tags.`newsdesk.id` = '{tracked.id}'")
        return cls(run, client)

    def steps(self, figure: str) -> list[int]:
        return [metric.step for metric in self.client.get_metric_history(self.run.info.run_id, figure)]

    def files(self, folder: str) -> set[str]:
        return {file.path for file in self.client.list_artifacts(self.run.info.run_id, folder)}

    def content(self, file: str) -> bytes:
        return Path(self.client.download_artifacts(self.run.info.run_id, file)).read_bytes()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    started = MLflowServer(tmp_path_factory.mktemp("mlflow"))
    yield started
    started.process.kill()
    started.process.wait()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(server, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_SENDS", 0.05)
    monkeypatch.setattr(tracking, "SECONDS_BEFORE_RETRY", 0.2)


@pytest.fixture
def recipe(tiny_recipe) -> Any:
    """12 steps, with three validations and checkpoints."""
    return tiny_recipe("training.validate_every=4")


@pytest.fixture
def remarks() -> list[str]:
    return []


@pytest.fixture
def noting(remarks) -> Callable[[Any], None]:
    """An observer that keeps remarks."""
    return lambda event: remarks.append(event.text) if isinstance(event, Remark) else None


def steps_of(run: RunFolder, kind: type[Step | Validation] = Step) -> list[int]:
    return [logged.event.step for logged in read_log(run.log, kind)]


def scalars(figure: str) -> dict[int, float]:
    """What TensorBoard's own reader finds in the one folder of event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = Path("tensorboard").iterdir()
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {event.step: event.value for event in reader.Scalars(figure)}


def test_the_adapter_is_the_same_whoever_looks_on(recipe):
    alone = newsdesk.train(recipe, out="alone")
    seen = newsdesk.train(recipe, out="seen", track=("tensorboard", "mlflow", "wandb"))
    assert (seen.path / ADAPTER).read_bytes() == (alone.path / ADAPTER).read_bytes()
    assert seen.recipe.read_bytes() == alone.recipe.read_bytes()


def test_tensorboard_shows_steps_validations_recipe_and_charts(recipe):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    run = newsdesk.train(recipe, out="wire", track="tensorboard")
    (folder,) = Path("tensorboard").iterdir()
    reader = EventAccumulator(str(folder))
    reader.Reload()
    losses = {logged.event.step: logged.event.loss for logged in read_log(run.log, Step)}
    assert scalars("training/loss") == pytest.approx(losses)
    assert list(scalars("validation/accuracy")) == steps_of(run, Validation)
    assert "plots/loss" in reader.Tags()["images"]
    started = HParamsPluginData.FromString(
        reader.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    )
    assert started.session_start_info.hparams["lora.rank"].number_value == 8


def test_mlflow_shows_the_run_its_plots_and_the_run_folder(recipe, topical_csv, noting, remarks):
    run = newsdesk.train(recipe, out="wire", track="mlflow", observe=noting)
    assert not [remark for remark in remarks if "mlflow" in remark]
    shown = Shown.of(run)
    assert shown.run.info.status == "FINISHED"
    assert shown.run.info.run_name == "wire"
    assert shown.run.data.params["lora.rank"] == "8"
    assert "192 training rows" in shown.run.data.tags["mlflow.note.content"]
    assert shown.steps("training/loss") == shown.steps("training/learning_rate") == steps_of(run)
    assert shown.steps("validation/accuracy") == steps_of(run, Validation)
    assert {"plots/loss.png", "plots/validation-accuracy.png"} <= shown.files("plots")
    assert shown.content(f"run/{ADAPTER}") == (run.path / ADAPTER).read_bytes()

    evaluation = newsdesk.evaluate(run.path, str(topical_csv), with_text=True)
    shown = Shown.of(run)
    assert shown.run.data.metrics["test/accuracy"] == evaluation.metrics.accuracy
    assert "plots/test-confusion-matrix.png" in shown.files("plots")
    assert shown.content("run/metrics.json") == run.metrics.read_bytes()
    assert not [file for file in shown.files("run") if "predictions" in file]  # they quote texts
    assert shown.steps("training/loss") == steps_of(run)


def test_weights_and_biases_is_offline_without_a_key(recipe):
    newsdesk.train(recipe, out="wire", track="wandb")
    (file,) = Path("wandb").glob("offline-run-*/run-*.wandb")
    for shown in (
        b"training/loss",
        b"validation/accuracy",
        b"lora.rank",
        b"192 training rows",
        b"plots/loss",
    ):
        assert shown in file.read_bytes()


KILLED = """
import os, signal, sys, time
import mlflow, newsdesk
from newsdesk.reports import tracking
from newsdesk.runs.folder import RunFolder
from newsdesk.runs.log import Step

tracking.SECONDS_BETWEEN_SENDS = 0.05
recipe, out, tests = sys.argv[1:]
sys.path.insert(0, tests)
from reports.test_tracking import Shown

def kill_once_ten_steps_are_shown(event):
    if isinstance(event, Step) and event.step == 10:
        while not (found := mlflow.MlflowClient().search_experiments(filter_string="name = 'newsdesk'")):
            time.sleep(0.05)
        while len(Shown.of(RunFolder(tracking.Path(out))).steps("training/loss")) < 10:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

newsdesk.train(recipe, out=out, track=["mlflow", "tensorboard"], observe=kill_once_ten_steps_are_shown)
"""


def test_a_killed_training_continues_its_tracked_run_and_shows_no_step_twice(recipe, tmp_path):
    Path("recipe.toml").write_text(recipe.to_toml())
    arguments = [sys.executable, "-c", KILLED, "recipe.toml", "wire", str(Path(__file__).parents[1])]
    killed = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
    assert killed.returncode == -9, killed.stderr
    run = newsdesk.train(out="wire", resume=True)  # the trackers are known
    assert Shown.of(run).steps("training/loss") == steps_of(run) == list(range(1, 13))
    assert Shown.of(run).steps("validation/loss") == [4, 8, 12]
    assert list(scalars("training/loss")) == steps_of(run)


def test_a_server_that_dies_gets_the_rest_when_it_is_back(recipe, server, noting, remarks):
    def fail(event: Any) -> None:
        noting(event)
        if isinstance(event, Step) and event.step == 6:
            while len(Shown.of(RunFolder(Path("wire"))).steps("training/loss")) < 6:
                time.sleep(0.02)
            server.stop()
        if isinstance(event, Step) and event.step > 6 and not troubled():
            time.sleep(0.2)  # tiny steps would be over before anything is sent
        if isinstance(event, Finished):
            server.start()

    def troubled() -> list[str]:
        return [remark for remark in remarks if "mlflow did not take" in remark]

    run = newsdesk.train(recipe, out="wire", track="mlflow", observe=fail)
    assert len(troubled()) == 1
    assert Shown.of(run).steps("training/loss") == steps_of(run)
    assert Shown.of(run).run.info.status == "FINISHED"


def test_an_absent_server_gets_everything_by_resume(recipe, server, noting, remarks, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody)
    run = newsdesk.train(recipe, out="wire", track="mlflow", observe=noting)
    assert [remark for remark in remarks if "mlflow" in remark and "--resume" in remark]
    assert run.is_complete()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    run = newsdesk.train(out="wire", resume=True)
    assert Shown.of(run).steps("training/loss") == steps_of(run)
    assert Shown.of(run).content(f"run/{ADAPTER}") == (run.path / ADAPTER).read_bytes()


def test_a_server_that_never_answers_is_not_waited_for(recipe, noting, remarks, monkeypatch):
    monkeypatch.setattr(tracking, "SECONDS_TO_FINISH", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        run = newsdesk.train(recipe, out="wire", track="mlflow", observe=noting)
        assert time.monotonic() - began < 10
    assert run.is_complete()
    assert [
        remark for remark in remarks if "mlflow did not take what is tracked: it did not answer" in remark
    ]


def test_what_cannot_be_written_is_one_remark(recipe, noting, remarks):
    Path("tensorboard").write_text("a file in the way of the folder")
    run = newsdesk.train(recipe, out="wire", track="tensorboard", observe=noting)
    assert run.is_complete()
    assert len([remark for remark in remarks if "tensorboard did not take" in remark]) == 1


def test_a_training_that_fails_is_shown_as_failed(recipe):
    def fail(event: Any) -> None:
        if isinstance(event, Step) and event.step == 6:
            raise UserError("nobody can know why")

    with pytest.raises(UserError, match="nobody can know"):
        newsdesk.train(recipe, out="wire", track="mlflow", observe=fail)
    shown = Shown.of(RunFolder(Path("wire")))
    assert (shown.run.info.status, shown.steps("training/loss")) == ("FAILED", [1, 2, 3, 4, 5, 6])


def test_a_run_in_place_of_another_is_tracked_as_a_new_one(recipe):
    old = Tracked.of(newsdesk.train(recipe, out="wire", track="tensorboard"))
    new = Tracked.of(newsdesk.train(recipe, out="wire", track="tensorboard", overwrite=True))
    assert new is not None
    assert old is not None
    assert new.id != old.id
    assert new.complete == ("tensorboard",)


def test_a_missing_package_is_named_before_anything_is_written(recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'newsdesk\[wandb\]'"):
        newsdesk.train(recipe, out="wire", track="wandb")
    assert not Path("wire").exists()


def test_an_unknown_tracker_is_refused(recipe):
    with pytest.raises(UserError, match="no tracker called 'tensorbord'"):
        newsdesk.train(recipe, out="wire", track="tensorbord")


def test_of_processes_that_train_together_the_first_one_alone_tracks(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    Tracking("tensorboard", Path("wire"), lambda _event: None).observe(Remark("begins nothing"))
    assert not Path("tensorboard").exists()


@pytest.mark.parametrize(
    "content",
    ['{"id": "../../../etc", "trackers": []}', '{"id": "%s", "trackers": ["prometheus"]}' % ("a" * 32), "[]"],
)
def test_a_damaged_tracking_file_is_refused_in_a_sentence(content, tmp_path):
    (tmp_path / "tracking.json").write_text(content)
    with pytest.raises(UserError, match=r"tracking\.json"):
        Tracked.of(RunFolder(tmp_path))


def test_a_classifier_in_a_program_is_tracked_with_the_labels_of_the_program(recipe):
    data, model = recipe.recipe.data, recipe.recipe.model
    rows = [line.partition(",") for line in Path(data.train).read_text().splitlines()[1:]]
    numbers = {label: number for number, label in enumerate(dict.fromkeys(label for label, _, _ in rows))}
    classifier = newsdesk.TextClassifier(
        base=model.base, epochs=0.5, max_length=32, device="cpu", folds=0, track="mlflow"
    )
    classifier.fit([text for _, _, text in rows], [numbers[label] for label, _, _ in rows])
    shown = Shown.of(RunFolder(classifier.path_))
    assert shown.run.info.run_name == "quick"
    assert b'"kind": "integer"' in shown.content("run/labels.json")


def test_a_line_that_is_still_being_written_is_read_when_it_is_whole(recipe, tmp_path):
    log = newsdesk.train(recipe, out="wire").log.read_bytes()
    grown = tmp_path / "log.jsonl"
    grown.write_bytes(log[:-40])
    first, place = read_added(grown, 0)
    grown.write_bytes(log)
    rest, end = read_added(grown, place)
    assert (len(rest), end) == (1, len(log))
    assert [*first, *rest] == list(read_log(grown))
