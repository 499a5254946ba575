"""What a model card tells, read from the files of a run; what they do not tell is None, never a guess."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from newsdesk.config import Recipe, load_recipe
from newsdesk.data.datasets import DATA_SETS
from newsdesk.errors import UserError
from newsdesk.evaluation.evaluate import Evaluation, read_metrics
from newsdesk.hub.cache import Slot
from newsdesk.hub.huggingface import HubSource
from newsdesk.runs.calibration import Calibration, read_calibration
from newsdesk.runs.folder import Labels, RunFolder
from newsdesk.runs.log import Finished, Logged, Started, read_log
from newsdesk.runs.manifest import Manifest

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class Source:
    """Where rows came from, as far as strangers may read it: of a local path the last name alone.

    Attributes:
        shown: the data set's name, or the file's or folder's own.
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
        """Its id on the Hub, where it lies there."""
        source = DATA_SETS[self.name].source if self.name else None
        return source.repo_id if isinstance(source, HubSource) else None


@dataclass(frozen=True)
class Rows:
    """One part of the data: what it served for, where it came from, how much it was, and its sha256."""

    part: str
    source: Source
    count: int
    sha256: str


@dataclass(frozen=True)
class CardFacts:
    """All that a card is written from.

    Attributes:
        name: the model's name.
        repo_id: ``organisation/name`` on the Hub; None for a run on this disk.
        manifest: the run's manifest.
        recipe: the run's recipe.
        labels: class names, text layout, length.
        splits: evaluations by split, as metrics.json has them.
        calibration: the temperature and what it was fitted on; None for a run without.
        tells_off_topic: whether the run can tell texts of other topics.
        started: what the log says of the training's beginning; None where it does not.
        finished: likewise, of its end.
        parameters: numbers stored in the adapter: factors, head and whatever else was trained.
    """

    name: str
    repo_id: str | None
    manifest: Manifest
    recipe: Recipe
    labels: Labels
    splits: Mapping[str, Evaluation]
    calibration: Calibration | None
    tells_off_topic: bool
    started: Started | None
    finished: Logged | None
    parameters: int | None

    @classmethod
    def of(cls, run: RunFolder, repo_id: str | None = None) -> CardFacts:
        """Read a finished run. Raises UserError for files that are missing or damaged."""
        events = _first_and_last(run.log)
        return cls(
            name=repo_id.rpartition("/")[2] if repo_id else run.path.resolve().name,
            repo_id=repo_id,
            manifest=run.manifest,
            recipe=load_recipe(str(run.recipe)).recipe,
            labels=run.labels,
            splits=read_metrics(run.metrics),
            calibration=read_calibration(run.path),
            tells_off_topic=run.off_topic.is_file(),
            started=next((one.event for one in events if isinstance(one.event, Started)), None),
            finished=next((one for one in events if isinstance(one.event, Finished)), None),
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
    def base_licence(self) -> str | None:
        """The base model's licence, as far as it is known."""
        licence = self.manifest.base.licence
        return licence if licence is not None and _LICENCE_ID.fullmatch(licence) else None

    @property
    def data_licence(self) -> str | None:
        """The training texts' licence, as far as it is known."""
        return None if self.manifest.data is None else self.manifest.data.licence

    @property
    def train_source(self) -> Source | None:
        """Where the training rows came from; None for an adapter that was trained elsewhere."""
        return next((rows.source for rows in self.rows if rows.part == "training"), None)

    @property
    def rows(self) -> Sequence[Rows]:
        """The rows it learned from, chose its best state on, and was measured on."""
        parts = []
        if (data := self.manifest.data) is not None:
            kept = "validation, split off training" if data.validation.is_split_off else "validation"
            for part, rows in (("training", data.train), (kept, data.validation)):
                parts.append(Rows(part, Source.of(rows.origin), rows.rows, rows.sha256))
        for split, entry in self.splits.items():
            source = Source.of(entry.source)
            parts.append(Rows(f"evaluation: {split}", source, entry.metrics.rows, entry.fingerprint))
        return parts

    @property
    def remarks(self) -> Sequence[str]:
        """What was said of rows and steps before training, a sentence each."""
        return self.manifest.training.remarks if self.manifest.training is not None else ()

    @property
    def language(self) -> str | None:
        """The language of the training texts: by their script, or English for all data sets known by name."""
        if self.train_source is not None and self.train_source.name:
            return "en"
        return None if self.manifest.data is None else self.manifest.data.language


def _first_and_last(log: Path) -> list[Logged]:
    """The newest events first of those that say on what it was trained and how long it took."""
    found: list[Logged] = []
    with suppress(UserError):  # what is missing or damaged tells nothing
        found.extend(read_log(log, Started, Finished))
    return found[::-1]


def _stored_parameters(weights: Path) -> int | None:
    """How many numbers a safetensors file holds, by its header."""
    try:
        with weights.open("rb") as stream:
            header: dict[str, Any] = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        shapes: list[list[int]] = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        return sum(prod(shape) for shape in shapes)
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        MemoryError,
    ):  # whatever a damaged one is
        return None
