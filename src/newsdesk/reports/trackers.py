"""What shows trainings: TensorBoard, MLflow, Weights & Biases, and what each of them is told."""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from newsdesk import __version__
from newsdesk.config import SECTIONS, load_recipe
from newsdesk.evaluation.evaluate import read_metrics
from newsdesk.evaluation.label_sets import read_label_set_metrics
from newsdesk.files import write_bytes
from newsdesk.reports.parts import TrainingContent, training_story
from newsdesk.reports.plots import Chart, as_png, draw_evaluation, draw_training
from newsdesk.runs.calibration import read_calibration
from newsdesk.runs.folder import MANIFEST, RunFolder
from newsdesk.runs.log import Step, Validation

SECONDS_TO_FINISH = 60.0
"""How long a finished training waits for its trackers, all together."""

_SECONDS_TO_ANSWER = 20.0
_NOT_IN_NAMES = re.compile(r"[^\w./ -]")


@dataclass(frozen=True)
class Beginning:
    """What a tracker is told first: the run's id and name, and its recipe by dotted keys."""

    id: str
    name: str
    parameters: Mapping[str, str | int | float | bool]

    @classmethod
    def of(cls, run: RunFolder, identity: str, name: str) -> Beginning:
        """That of a run, which may be unfinished."""
        recipe = load_recipe(str(run.recipe)).recipe
        values = {
            f"{section}.{key}": ", ".join(value) if isinstance(value, tuple) else value
            for section in SECTIONS
            for key, value in getattr(recipe, section)
            if value is not None
        }
        return cls(identity, name, values)


@dataclass(frozen=True)
class Point:
    """Figures of one step, and when they were measured, in seconds since 1970."""

    kind: Literal["training", "validation"]
    step: int
    time: float
    figures: Mapping[str, float]

    @classmethod
    def of(cls, event: Step | Validation, at: float) -> Point:
        """That of an event; figures that are not finite are left out."""
        names = (
            ("loss", "learning_rate", "gradient_norm", "epoch")
            if isinstance(event, Step)
            else ("loss", "accuracy", "macro_f1")
        )
        kind: Literal["training", "validation"] = "training" if isinstance(event, Step) else "validation"
        figures = {f"{kind}/{name}": float(getattr(event, name)) for name in names}
        if isinstance(event, Validation) and event.micro_f1 is not None:
            figures[f"{kind}/micro_f1"] = event.micro_f1
        finite = {name: value for name, value in figures.items() if math.isfinite(value)}
        return cls(kind, event.step, at, finite)


@dataclass(frozen=True)
class Ending:
    """What a tracker is told last.

    Attributes:
        status: how the training ended.
        time: when, in seconds since 1970.
        step: the one whose state is kept.
        figures: of the whole run: its calibration, its evaluations.
        files: those of the run, by their paths in its folder.
        charts: drawings as PNG files, by name.
    """

    status: Literal["finished", "interrupted", "failed"]
    time: float
    step: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    charts: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, run: RunFolder, scratch: Path) -> Ending:
        """That of a finished or interrupted run; ``scratch`` takes the charts, where matplotlib is there."""
        training, calibration = run.manifest.training, read_calibration(run.path)
        assert training is not None  # an imported adapter is never tracked
        evaluations = read_metrics(run.metrics)
        figures = {"final/steps": training.steps, "final/padding_share": training.padding_share}
        if calibration is not None:
            figures["calibration/temperature"] = calibration.temperature
            figures["calibration/error"] = calibration.expected_calibration_error.after
        story = training_story(run.log)
        charts = (
            draw_training(story) if find_spec("matplotlib") and isinstance(story, TrainingContent) else ()
        )
        drawn = {chart.name: chart for chart in charts}
        for split, evaluation in evaluations.items():
            name = _NOT_IN_NAMES.sub("_", split)
            for of in ("accuracy", "macro_f1", "negative_log_likelihood", "expected_calibration_error"):
                figures[f"{name}/{of}"] = getattr(evaluation.metrics, of)
            for chart in draw_evaluation(evaluation) if find_spec("matplotlib") else ():
                drawn[f"{name}-{chart.name}"] = chart
        for split, of_sets in read_label_set_metrics(run.metrics).items():
            name = _NOT_IN_NAMES.sub("_", split)
            for of in ("micro_f1", "macro_f1", "subset_accuracy", "negative_log_likelihood"):
                figures[f"{name}/{of}"] = getattr(of_sets.metrics, of)
        # Predictions and reports may quote texts of a corpus; exports are as large as the base model.
        names = [
            name for name in run.manifest.files if not name.startswith(("predictions-", "report-", "export/"))
        ]
        return cls(
            status="interrupted" if run.manifest.is_interrupted else "finished",
            time=run.log.stat().st_mtime,
            step=training.best_step,
            figures={name: float(value) for name, value in figures.items() if math.isfinite(value)},
            files={name: run.path / name for name in (*names, MANIFEST)},
            charts=_written(drawn, scratch),
        )


def _written(charts: Mapping[str, Chart], folder: Path) -> dict[str, Path]:
    paths = {name: folder / f"{name}.png" for name in charts}
    for name, chart in charts.items():
        write_bytes(paths[name], as_png(chart.figure))
    return paths


class Tracker(Protocol):
    """What shows trainings. Its methods are called in this order, and may raise and wait as they like."""

    def begin(self, beginning: Beginning) -> Mapping[str, int]:
        """Begin a tracked run or continue the one with this id; the last step it has of each kind."""

    def describe(self, text: str) -> None:
        """Show what to know of the training, in Markdown, in place of what was shown before."""

    def add(self, points: Sequence[Point]) -> None:
        """Show points, in the order of their steps."""

    def end(self, ending: Ending) -> None:
        """Show what the run came to, and let go of it."""


class TensorBoard:
    """Event files in ``tensorboard/NAME-ID``, for ``tensorboard --logdir tensorboard``."""

    packages = ("tensorboard",)

    def begin(self, beginning: Beginning) -> Mapping[str, int]:
        """Begin a file that replaces those of earlier processes: TensorBoard drops what they have."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = Path("tensorboard") / f"{beginning.name}-{beginning.id[:8]}"
        # Files are read in the order of their names: the second, then the process.
        while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
            time.sleep(0.05)
        self.writer = SummaryWriter(str(folder), purge_step=0, flush_secs=10)
        for summary in hparams(dict(beginning.parameters), {}):
            self.writer._get_file_writer().add_summary(summary)
        return {}

    def describe(self, text: str) -> None:
        """As a text."""
        self.writer.add_text("training", text)

    def add(self, points: Sequence[Point]) -> None:
        """As scalars."""
        for point in points:
            for name, value in point.figures.items():
                self.writer.add_scalar(name, value, point.step, walltime=point.time)
        self.writer.flush()

    def end(self, ending: Ending) -> None:
        """As scalars and images."""
        import numpy as np

        for name, value in ending.figures.items():
            self.writer.add_scalar(name, value, ending.step)
        if ending.charts:
            from PIL import Image  # comes with matplotlib, which drew them

            for name, path in ending.charts.items():
                pixels = np.asarray(Image.open(path).convert("RGB"))
                self.writer.add_image(f"plots/{name}", pixels, ending.step, dataformats="HWC")
        self.writer.close()


class MLflow:
    """A run on the server of ``MLFLOW_TRACKING_URI``, else in MLflow's own local store."""

    packages = ("mlflow", "sqlalchemy", "alembic")
    _METRICS_A_REQUEST = 1000  # MLflow's limits
    _PARAMETERS_A_REQUEST = 100
    _LONGEST_PARAMETER = 6000

    def begin(self, beginning: Beginning) -> Mapping[str, int]:
        """Find the run by its tag, or create it."""
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of the tables that it creates
        self.client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "newsdesk")
        with suppress(MlflowException):  # it is there already
            self.client.create_experiment(name)
        experiment = self.client.get_experiment_by_name(name).experiment_id
        found = self.client.search_runs([experiment], f"tags.`newsdesk.id` = '{beginning.id}'", max_results=1)
        if not found:
            tags = {"newsdesk.id": beginning.id, "newsdesk.version": __version__}
            created = self.client.create_run(experiment, tags=tags, run_name=beginning.name)
        self.id = (found[0] if found else created).info.run_id
        if found and found[0].info.status != "FINISHED":
            self.client.update_run(self.id, status="RUNNING")
        parameters = [
            Param(key, str(value)[: self._LONGEST_PARAMETER]) for key, value in beginning.parameters.items()
        ]
        for start in range(0, len(parameters), self._PARAMETERS_A_REQUEST):
            self.client.log_batch(self.id, params=parameters[start : start + self._PARAMETERS_A_REQUEST])
        histories = {
            kind: self.client.get_metric_history(self.id, f"{kind}/loss")
            for kind in ("training", "validation")
        }
        return {kind: max((metric.step for metric in of), default=0) for kind, of in histories.items()}

    def describe(self, text: str) -> None:
        """As the run's description."""
        self.client.set_tag(self.id, "mlflow.note.content", text)

    def add(self, points: Sequence[Point]) -> None:
        """As metrics."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, round(1000 * point.time), point.step)
            for point in points
            for name, value in point.figures.items()
        ]
        for start in range(0, len(metrics), self._METRICS_A_REQUEST):
            self.client.log_batch(self.id, metrics[start : start + self._METRICS_A_REQUEST])

    def end(self, ending: Ending) -> None:
        """As metrics, artefacts and the run's status."""
        known = self.client.get_run(self.id).data.metrics
        for name, value in ending.figures.items():
            if known.get(name) != value:
                self.client.log_metric(self.id, name, value, step=ending.step)
        for path in ending.charts.values():
            self.client.log_artifact(self.id, str(path), "plots")
        for name, path in ending.files.items():
            self.client.log_artifact(self.id, str(path), str(Path("run", name).parent.as_posix()))
        status = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}[ending.status]
        self.client.set_terminated(self.id, status, round(1000 * ending.time))


class WeightsAndBiases:
    """A run of the project ``WANDB_PROJECT``; offline, in the folder ``wandb``, unless there is a key."""

    packages = ("wandb",)

    def begin(self, beginning: Beginning) -> Mapping[str, int]:
        """Begin or continue a run; offline one that is to replace those of earlier processes."""
        import wandb

        wandb.setup(wandb.Settings(silent=True))  # it also tells of the key that it finds
        mode: Any = os.environ.get("WANDB_MODE") or (
            "online" if os.environ.get("WANDB_API_KEY") else "offline"
        )
        alone = wandb.run is None
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "newsdesk"),
                id=beginning.id,
                name=beginning.name,
                config=dict(beginning.parameters),
                mode=mode,
                dir=os.environ.get("WANDB_DIR", Path.cwd()),  # else that of the process's first run
                resume="allow" if mode == "online" else None,
                reinit="create_new",
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    init_timeout=_SECONDS_TO_ANSWER,
                    finish_timeout=SECONDS_TO_FINISH,
                ),
            )
        except Exception:
            if alone:
                wandb.teardown()  # else the id counts as in use when this is tried again
            raise
        return dict.fromkeys(("training", "validation"), self.run.starting_step - 1)

    def describe(self, text: str) -> None:
        """As the run's notes."""
        self.run.notes = text

    def add(self, points: Sequence[Point]) -> None:
        """As history."""
        for point in points:
            self.run.log(dict(point.figures), step=point.step)

    def end(self, ending: Ending) -> None:
        """As summary and images."""
        import wandb

        self.run.summary.update(dict(ending.figures))
        if ending.charts:
            self.run.log({f"plots/{name}": wandb.Image(str(path)) for name, path in ending.charts.items()})
        self.run.finish(exit_code=0 if ending.status == "finished" else 1)


TRACKERS: Mapping[str, type[TensorBoard | MLflow | WeightsAndBiases]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}
"""What --track takes."""
