"""The manifest of a run: software, base model, data, training. No torch in here."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from newsdesk.runs.log import FinishReason
from newsdesk.stored import KEY, OPTIONAL

if TYPE_CHECKING:  # who opens a run need not wait for what fetches base models
    from newsdesk.model.catalog import ResolvedBase


def require_paths_inside(files: Iterable[str]) -> None:
    """Raise ValueError for a path that leads out of the folder whose manifest names it."""
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in name or "\0" in name:
            raise ValueError(f"files names {name!r:.80}, which is no path in the folder")


SPLIT_OFF = "split off "
"""How the source of validation rows begins that were a part of the training rows."""


@dataclass(frozen=True)
class BaseFacts:
    """The base model.

    Attributes:
        name: what finds it again from any working folder: its name, or the whole path of a local one.
        reference: what others can load it by: its Hub id where there is one, else the folder.
        sha256: of its weights.
        licence: as far as it is known.
    """

    name: str
    reference: str
    sha256: str | None
    licence: str | None = None


@dataclass(frozen=True)
class RowFacts:
    """Rows of one part of the data: their source (a name or path), their number, and their fingerprint."""

    source: str
    rows: int
    sha256: str

    @property
    def is_split_off(self) -> bool:
        """Whether they were a part of the training rows."""
        return self.source.startswith(SPLIT_OFF)

    @property
    def origin(self) -> str:
        """The name or path of the data they are from."""
        return self.source.removeprefix(SPLIT_OFF)


@dataclass(frozen=True)
class DataFacts:
    """What was learned from, what the best state was chosen on, and what may be done with the texts.

    Attributes:
        licence: of the texts, as far as it is known.
        train: the training rows.
        validation: the validation rows.
        language: of the training texts, where their script shows it: see ``language_of``.
        unknown_tokens: share of the training texts' tokens that the base model does not know, 0 to 1.
    """

    licence: str | None
    train: RowFacts
    validation: RowFacts
    language: str | None = None
    unknown_tokens: float | None = None


@dataclass(frozen=True)
class TrainingFacts:
    """How a training went.

    Attributes:
        finished: why it ended.
        steps: optimiser steps.
        epochs: passes over the training rows.
        best_step: the step whose state was kept.
        padding_share: share of padding among the tokens computed, 0 to 1.
        processes: how many trained together.
        choosing_rows: how many validation rows chose that state, and so do not calibrate it; 0: none did.
        folds: of the cross-validation that went before it; 0: there was none.
        remarks: notes on rows and steps from before it began, a sentence each.
    """

    finished: FinishReason
    steps: int
    epochs: float
    best_step: int
    padding_share: float
    processes: int = 1
    choosing_rows: int = 0
    folds: int = 0
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImportFacts:
    """The adapter that was imported: its folder, and the version of peft that wrote it."""

    origin: str = field(metadata={KEY: "from"})
    peft: str | None


@dataclass(frozen=True)
class ReplayedRows:
    """Rows of an earlier training that are learned from again, by what reads and splits them as then.

    Attributes:
        data: the data section of its recipe.
        seed: of its recipe.
        label_names: the classes that were known before it; none where it began anew.
        now: what its labels were called afterwards, where they were changed: the empty text for retired ones.
    """

    data: Mapping[str, Any]
    seed: int
    label_names: tuple[str, ...] = ()
    now: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class GrownFrom:
    """The run that a training went on from.

    Attributes:
        run: its folder, or its name where it came with newsdesk.
        sha256: of its weights.
        label_names: its classes in id order.
        replayed: what was learned from before and again now, the oldest first; none where it was not there.
        rows: how many training rows these are.
    """

    run: str
    sha256: str
    label_names: tuple[str, ...]
    replayed: tuple[ReplayedRows, ...] = ()
    rows: int = 0


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a run and all that is made of it come from.

    Attributes:
        newsdesk: the version that made the run.
        versions: those of Python and the packages that computed.
        base: the base model.
        description: the recipe's.
        seed: what the training drew from; None for an imported adapter.
        data: the rows; None likewise.
        imported: the adapter; None for a run that was trained here.
        grown: the run that the training went on from; None where it began anew.
    """

    newsdesk: str
    versions: Mapping[str, str]
    base: BaseFacts
    description: str = ""
    seed: int | None = field(default=None, metadata=OPTIONAL)
    data: DataFacts | None = field(default=None, metadata=OPTIONAL)
    imported: ImportFacts | None = field(default=None, metadata=OPTIONAL)
    grown: GrownFrom | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class ExportedRun(Provenance):
    """What an export says of its run; ``sha256`` is that of the run's manifest at the time."""

    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest(Provenance):
    """The manifest of a run.

    Attributes:
        training: how it went; None for an imported adapter.
        files: the sha256 of every file of the run but this one, by its path in the folder.
    """

    training: TrainingFacts | None = field(default=None, metadata=OPTIONAL)
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError for files that are not in the run."""
        require_paths_inside(self.files)

    @property
    def is_interrupted(self) -> bool:
        """Whether the training was stopped before its own end."""
        return self.training is not None and self.training.finished == "interrupted"

    @property
    def local_paths(self) -> tuple[str, ...]:
        """The places on the training machine that it names, sorted."""
        named = [self.base.reference]
        if self.data is not None:
            named += [self.data.train.origin, self.data.validation.origin]
        if self.imported is not None:
            named.append(self.imported.origin)
        if self.grown is not None:
            named.append(self.grown.run)
            named += [str(rows.data.get(part)) for rows in self.grown.replayed for part in _ROWS]
        return tuple(sorted({place for place in named if Path(place).is_absolute()}))

    def exported(self, sha256: str) -> ExportedRun:
        """What an export says of the run whose manifest this is, and has that ``sha256``."""
        shared = {of.name: getattr(self, of.name) for of in fields(Provenance)}
        return ExportedRun(**shared, sha256=sha256)


_ROWS = ("train", "validation")
"""What names files in a recipe's data section."""
_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "numpy")


def installed_versions() -> dict[str, str]:
    """Versions of all that computes."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def base_facts(base: ResolvedBase) -> BaseFacts:
    """The base model, with what finds it again from any working folder."""
    return BaseFacts(base.anywhere, base.reference, base.sha256, base.licence)
