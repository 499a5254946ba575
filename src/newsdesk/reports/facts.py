"""What the files of a run say of it, for its model card and its report; what they do not say is None."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

from newsdesk.config import Recipe, load_recipe
from newsdesk.data.load import DATA_SETS
from newsdesk.errors import UserError, counted
from newsdesk.evaluation.evaluate import Evaluation, read_metrics
from newsdesk.evaluation.label_sets import LabelSetEvaluation, read_label_set_metrics
from newsdesk.files import open_tensors
from newsdesk.hub.cache import Slot
from newsdesk.hub.source import HubSource
from newsdesk.metrics import Metrics
from newsdesk.model.catalog import BASE_MODELS
from newsdesk.runs.calibration import Calibration, read_calibration
from newsdesk.runs.folder import RunFolder
from newsdesk.runs.labels import Labels
from newsdesk.runs.linear_model import LinearModel
from newsdesk.runs.log import Finished, Started, read_log
from newsdesk.runs.manifest import Manifest

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class Source:
    """Where rows came from, without private paths: of a local path only the last name.

    Attributes:
        shown: the data set's name, or the name of the file or folder.
        name: the name that newsdesk knows the data set by, else None.
    """

    shown: str
    name: str | None

    @classmethod
    def of(cls, recorded: str) -> Source:
        """The source that a manifest or metrics.json records: a name, or a path."""
        if recorded in DATA_SETS:
            return cls(recorded, recorded)
        for name in DATA_SETS:
            if Path(recorded).is_relative_to(Slot("data", name).folder):
                return cls(name, name)
        return cls(Path(recorded).name or recorded, None)

    @property
    def hub_id(self) -> str | None:
        """Its id on the Hub, where it has one."""
        source = DATA_SETS[self.name].source if self.name else None
        return source.repo_id if isinstance(source, HubSource) else None


def dataset_licence(recorded: str) -> str | None:
    """The licence of the texts of a recorded source, where it is a data set known by name."""
    name = Source.of(recorded).name
    return DATA_SETS[name].licence if name else None


class Rows(NamedTuple):
    """One part of the data: what it was used for, where it came from, how many rows, and their sha256."""

    part: str
    source: Source
    total: int
    sha256: str


@dataclass(frozen=True)
class RunFacts:
    """All that a model card is written from.

    Attributes:
        name: the model's name.
        repo_id: ``organisation/name`` on the Hub; None for a run on this disk.
        manifest: the run's manifest.
        recipe: the run's recipe.
        labels: class names, text layout, length.
        splits: evaluations by split, as in metrics.json, where a text has one label.
        sets: the same where it may have several.
        calibration: the temperature and what it was fitted on; None for a run without.
        tells_off_topic: whether the run can recognise off-topic texts.
        is_stacked: whether a linear model has a part in its answers.
        started: the log's first event; None where it cannot be read.
        seconds: how long training took; None where the log does not say.
        parameters: numbers stored in the adapter: factors, head and whatever else was trained.
    """

    name: str
    repo_id: str | None
    manifest: Manifest
    recipe: Recipe
    labels: Labels
    splits: Mapping[str, Evaluation]
    sets: Mapping[str, LabelSetEvaluation]
    calibration: Calibration | None
    tells_off_topic: bool
    is_stacked: bool
    started: Started | None
    seconds: float | None
    parameters: int | None

    @classmethod
    def of(cls, run: RunFolder, repo_id: str | None = None) -> RunFacts:
        """Read a finished run. Raises UserError for files that are missing or damaged."""
        started, seconds = _beginning_and_duration(run.log)
        linear = LinearModel.of_folder(run.path, len(run.labels.names))
        return cls(
            name=repo_id.rpartition("/")[2] if repo_id else run.path.resolve().name,
            repo_id=repo_id,
            manifest=run.manifest,
            recipe=load_recipe(str(run.recipe)).recipe,
            labels=run.labels,
            splits=read_metrics(run.metrics),
            sets=read_label_set_metrics(run.metrics),
            calibration=read_calibration(run.path, run.labels),
            tells_off_topic=run.off_topic.is_file(),
            is_stacked=linear is not None and linear.stack > 0,
            started=started,
            seconds=seconds,
            parameters=_stored_parameters(run.adapter / "adapter_model.safetensors"),
        )

    @property
    def base(self) -> str:
        """The base model as others can name it: its Hub id, else the name of its folder."""
        return self.base_on_hub or Path(self.manifest.base.reference).name

    @property
    def base_on_hub(self) -> str | None:
        """The base model's Hub id, where it has one."""
        reference = self.manifest.base.reference
        return reference if _HUB_ID.fullmatch(reference) else None

    @property
    def base_parameters(self) -> int | None:
        """How many numbers the base model holds; None where it is not one of the catalogue."""
        known = (base for base in BASE_MODELS.values() if base.name == self.manifest.base.name)
        return next((base.parameters for base in known), None)

    @property
    def base_licence(self) -> str | None:
        """The identifier of the base model's licence, as far as it is known."""
        licence = self.manifest.base.licence
        return licence if licence is not None and _LICENCE_ID.fullmatch(licence) else None

    @property
    def data_licence(self) -> str | None:
        """The training texts' licence, as far as it is known."""
        return None if self.manifest.data is None else self.manifest.data.licence

    @property
    def train_source(self) -> Source | None:
        """Where the training rows came from; None for an adapter that was trained elsewhere."""
        return None if self.manifest.data is None else Source.of(self.manifest.data.train.origin)

    @property
    def rows(self) -> Sequence[Rows]:
        """The rows it was trained, validated and evaluated on."""
        parts = []
        if (data := self.manifest.data) is not None:
            training = self.manifest.training
            folds = 0 if training is None else training.folds
            kept = "validation, split off training" if data.validation.is_split_off else "validation"
            learned = f"training, cross-validated in {counted(folds, 'fold')}" if folds else "training"
            for part, rows in ((learned, data.train), (kept, data.validation)):
                if folds and not rows.rows:
                    continue
                parts.append(Rows(part, Source.of(rows.origin), rows.rows, rows.sha256))
        measured: list[tuple[str, Evaluation | LabelSetEvaluation]] = [
            *self.splits.items(),
            *self.sets.items(),
        ]
        for split, entry in measured:
            source = Source.of(entry.source)
            parts.append(Rows(f"evaluation: {split}", source, entry.metrics.rows, entry.fingerprint))
        return parts

    @property
    def remarks(self) -> Sequence[str]:
        """What was noted about rows and steps before training, a sentence each."""
        return self.manifest.training.remarks if self.manifest.training is not None else ()

    @property
    def language(self) -> str | None:
        """The language of the training texts: by their script, or English for all data sets known by name."""
        if self.train_source is not None and self.train_source.name:
            return "en"
        return None if self.manifest.data is None else self.manifest.data.language


def _beginning_and_duration(log: Path) -> tuple[Started | None, float | None]:
    """What a log says of the start of the newest training, and how many seconds it took to the end."""
    started, seconds = None, None
    with suppress(UserError):  # a missing or damaged log says nothing
        for entry in read_log(log, Started, Finished):
            if isinstance(entry.event, Started):
                started = entry.event
            else:
                seconds = entry.seconds
    return started, seconds


def _stored_parameters(weights: Path) -> int | None:
    """How many numbers a safetensors file holds; None for one that cannot be read."""
    from safetensors import SafetensorError

    try:
        with open_tensors(weights) as stored:
            shapes: list[list[int]] = [stored.get_slice(name).get_shape() for name in stored.keys()]  # noqa: SIM118
            return sum(map(prod, shapes))
    except (OSError, SafetensorError):
        return None


class Confusion(NamedTuple):
    """Rows of one class that were given another label, and their share of the first class."""

    true_label: str
    predicted_label: str
    rows: int
    share: float


def confusions(metrics: Metrics) -> list[Confusion]:
    """All pairs of classes that were confused, the most frequent first."""
    names = metrics.label_names
    pairs = [
        Confusion(names[true], names[predicted], rows, rows / sum(counts))
        for true, counts in enumerate(metrics.confusion)
        for predicted, rows in enumerate(counts)
        if rows and predicted != true
    ]
    return sorted(pairs, key=lambda pair: -pair.rows)


def duration(seconds: float) -> str:
    """``45 s``, ``5 min 30 s``, ``1 h 05 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
