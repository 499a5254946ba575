"""The folder of an exported model: what is in it, and whether it is as it was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from newsdesk.errors import UserError
from newsdesk.files import damaged, read_json, require_no_way_out, sha256_of
from newsdesk.runs.calibration import CALIBRATION, CALIBRATION_ROWS
from newsdesk.runs.exported_adapter import ADAPTER
from newsdesk.runs.folder import MANIFEST, TOP_NAMES, ModelFolder
from newsdesk.runs.linear_model import LINEAR_MODEL
from newsdesk.runs.manifest import ExportedRun, require_paths_inside
from newsdesk.runs.off_topic import OFF_TOPIC
from newsdesk.stored import read_stored, write_stored

Kind = Literal["merged", "onnx-fp32", "onnx-int8", "onnx-shared"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PREFERRED: tuple[Kind, ...] = ("onnx-int8", "onnx-fp32", "onnx-shared")
"""The kinds that a run predicts with where it has been exported, the first choice first."""
QUANTISED: tuple[Kind, ...] = ("onnx-int8", "onnx-shared")
"""The kinds that may lose a little of the run's quality."""

MODEL_FILES: dict[Kind, str] = {
    "merged": "model.safetensors",
    "onnx-fp32": "onnx/model.onnx",
    "onnx-int8": "onnx/model_quantized.onnx",
    "onnx-shared": "onnx/adapted_layers.onnx",
}
"""Where each kind keeps its weights; the onnx names are those that transformers.js and optimum look for."""
TRUNK = "onnx/trunk.onnx"
"""Of ``onnx-shared`` the graph below that of `MODEL_FILES`; what is the run's own is in `ADAPTER`."""

LOGITS, FEATURES = "logits", "features"
"""The outputs of every onnx graph."""
STATES = "states"
"""What passes from the graph below the adapters to the one above."""

QUALITY = "quality.json"
"""The figures by which the gate let an export pass."""

_MOST_TOKENS = 1 << 23
_FITTED = (CALIBRATION, CALIBRATION_ROWS, OFF_TOPIC, LINEAR_MODEL)
"""What is fitted on held-out rows, and may be again after the export."""


@dataclass(frozen=True, kw_only=True)
class ExportManifest:
    """The manifest of an export.

    Attributes:
        kind: what was exported.
        newsdesk: the version that wrote it.
        run: the run that it was made of.
        max_length: tokens that a text is cut to.
        files: the sha256 of every file but this one, by its path in the folder.
    """

    kind: Kind
    newsdesk: str
    run: ExportedRun
    max_length: int
    files: Mapping[str, str]

    def __post_init__(self) -> None:
        """Raise ValueError for files that are not in the export."""
        require_paths_inside(self.files)


@dataclass(frozen=True)
class ExportedModel(ModelFolder):
    """Paths and facts of one finished export; nothing is read before it is needed.

    The folder holds ``config.json`` and the tokenizer as transformers writes them, ``labels.json`` as a run
    has it, the model under the name that ``MODEL_FILES`` gives its kind, ``quality.json`` with the figures of
    the gate, the calibration of its own logits where rows were held out, and ``manifest.json``, written last.
    """

    fix = "copy the exported model again from an undamaged copy, or export it again with newsdesk export"

    @property
    def kind(self) -> Kind:
        """What was exported."""
        return self.manifest.kind

    @property
    def model(self) -> Path:
        """The file of the weights; where there are several, the one that gives the logits."""
        return self.path / MODEL_FILES[self.kind]

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of all files that hold weights."""
        return weights_of(self.kind)

    @cached_property
    def manifest(self) -> ExportManifest:
        """Kind, versions, the run it was made of, and the sha256 of every file."""
        return read_stored(self.path / MANIFEST, ExportManifest, fix=self.fix)

    @cached_property
    def pad_id(self) -> int:
        """The token id that fills rows up to the longest of their batch."""
        file = self.path / "config.json"
        found = read_json(file, fix=self.fix).get("pad_token_id") or 0
        if type(found) is not int or not 0 <= found < _MOST_TOKENS:
            raise damaged(file, f"pad_token_id is {found!r:.40}, which is no token's id", fix=self.fix)
        return found

    def verify(self, name: str | None = None) -> None:
        """Check the files, or the one called ``name``, against the manifest's sha256.

        Raises UserError for the first that is missing or differs.
        """
        recorded = self.manifest.files
        for file in recorded if name is None else (name,):
            path = self.path / file
            found = sha256_of(path) if path.is_file() else "no such file"
            if found != recorded.get(file):
                stated = recorded.get(file, "not named")
                raise damaged(path, f"{found}, in the manifest {stated}", fix=self.fix)

    def verify_model(self) -> None:
        """Check the files of the weights against the manifest. Raises UserError as ``verify`` does."""
        for name in self.weights:
            self.verify(name)

    def verify_calibration(self) -> None:
        """Check what was fitted on held-out rows, where it has it. Raises UserError as ``verify`` does."""
        for name in _FITTED:
            if name in self.manifest.files or (self.path / name).exists():
                self.verify(name)

    def seal_calibration(self) -> None:
        """Write the manifest again with the sha256 of a calibration that was made since."""
        hashes = {name: sha256_of(self.path / name) for name in _FITTED if (self.path / name).is_file()}
        write_stored(self.path / MANIFEST, replace(self.manifest, files={**self.manifest.files, **hashes}))
        self.__dict__.pop("manifest", None)  # read before, it is out of date now


def weights_of(kind: Kind) -> tuple[str, ...]:
    """The names of all files that hold weights of an export."""
    return (TRUNK, MODEL_FILES[kind], ADAPTER) if kind == "onnx-shared" else (MODEL_FILES[kind],)


def find_exported(path: Path) -> ExportedModel | None:
    """The finished export at ``path``; None for anything else, such as a run, whose manifest has no kind.

    Raises UserError where links lead out of it.
    """
    try:
        manifest = read_json(path / MANIFEST, fix=ExportedModel.fix)
    except UserError:
        return None
    if "kind" not in manifest:
        return None
    require_no_way_out(path, TOP_NAMES)
    return ExportedModel(path)


def preferred_export(run: Path) -> ExportedModel | None:
    """The export inside a run's folder that it predicts with, the first of `PREFERRED`; None without any."""
    return next(filter(None, (find_exported(run / "export" / kind) for kind in PREFERRED)), None)
