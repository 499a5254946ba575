"""Labels renamed or retired in a finished run, without training, where that is exact. No torch in here.

Renamed, a label is the same row of the head under another name. Retired, its row is dropped: where a text has
one label, probabilities are then those of the other classes given that it is not this one; where it may have
several, those of the others stay as they are.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.duplicates import KNOWN_TEXTS
from newsdesk.data.growing import RETIRED
from newsdesk.data.labels import LabelMatcher
from newsdesk.errors import UserError, counted, listed
from newsdesk.files import stored_tensors, write_bytes
from newsdesk.runs.calibration import (
    CALIBRATION,
    CALIBRATION_ROWS,
    HeldOutRows,
    read_calibration,
    read_held_out_rows,
    store_calibration,
    write_calibration,
)
from newsdesk.runs.folder import METRICS, RunFolder, in_use, require_free, staged
from newsdesk.runs.labels import LabelKind, Labels
from newsdesk.runs.linear_model import LinearModel
from newsdesk.runs.off_topic import OFF_TOPIC
from newsdesk.runs.ready_made import require_own

_COPIED = ("recipe.toml", "log.jsonl", "tracking.json", OFF_TOPIC, KNOWN_TEXTS)
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_OUTPUT_LAYERS = ("classifier.out_proj", "classifier", "score")
_READS: dict[LabelKind, Any] = {
    "integer": int,
    "number": float,
    "boolean": {"True": 1, "False": 0}.__getitem__,
}

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class LabelChanges:
    """What each label of a run is called from now on, in id order; the empty text is for retired ones."""

    now: Mapping[str, str]

    @classmethod
    def of(cls, labels: Labels, renamed: Sequence[str] = (), retired: Sequence[str] = ()) -> LabelChanges:
        """By ``old=new`` texts, and names.

        Raises UserError for a label that there is not, two of one name, and where too few would be left.
        """
        matcher, now = LabelMatcher(labels.names), {name: name for name in labels.names}
        for change in renamed:
            old, new = _divided(change, matcher)
            now[old] = new
        for name in retired:
            now[_known(name, matcher, "--retire")] = RETIRED
        left = [name for name in now.values() if name != RETIRED]
        twice = [name for name, times in Counter(left).items() if times > 1]
        if twice:
            raise UserError(
                "two labels cannot get one name: their probabilities would have to be added",
                found=f"{twice[0]!r} for {listed([old for old, name in now.items() if name == twice[0]])}",
                fix="choose another name; labels that are to be one are learned again, from rows that have "
                "the one label: newsdesk train --data FILE",
            )
        least = 1 if labels.task == "multi" else 2
        if len(left) < least:
            raise UserError(
                f"a classifier needs {counted(least, 'label')} at least",
                found=f"{counted(len(left), 'label')} would be left: {listed(left) or 'none'}",
                fix="retire fewer",
            )
        return cls(now)

    @property
    def kept(self) -> Ids:
        """The ids of those that stay, ascending."""
        return np.flatnonzero([name != RETIRED for name in self.now.values()])

    @property
    def retired(self) -> list[str]:
        """Those that go."""
        return [old for old, name in self.now.items() if name == RETIRED]

    @property
    def renamed(self) -> dict[str, str]:
        """Old and new name of those that are called otherwise."""
        return {old: name for old, name in self.now.items() if name not in (old, RETIRED)}

    def of_labels(self, labels: Labels) -> Labels:
        """What labels.json says of them, and of what they were called in the training rows."""
        first = labels.was or {name: name for name in labels.names}
        was = {old: self.now.get(name, RETIRED) for old, name in first.items()}
        names = tuple(self.now[labels.names[label]] for label in self.kept)
        kind = labels.kind
        try:
            for name in names:
                _READS.get(kind, str)(name)
        except (ValueError, KeyError):  # a name that is no number any more
            kind = "text"
        return replace(labels, names=names, kind=kind, was=was)


def _divided(change: str, matcher: LabelMatcher) -> tuple[str, str]:
    """The label and the new name of ``old=new``; names may hold the sign themselves, if one is known."""
    places = [place for place, letter in enumerate(change) if letter == "="]
    if not places:
        raise UserError(
            "--rename takes OLD=NEW", found=f"--rename {change}", fix="for example --rename Sport=Sports"
        )
    known = [place for place in places if matcher.match(change[:place]) is not None]
    place = known[0] if known else places[0]
    new = change[place + 1 :].strip()
    if not new:
        raise UserError(
            "a label needs a name", found=f"--rename {change}", fix=f"to drop it: --retire {change[:place]}"
        )
    return _known(change[:place], matcher, "--rename"), new


def _known(name: str, matcher: LabelMatcher, flag: str) -> str:
    label = matcher.match(name)
    if label is None:
        raise UserError(
            f"the run has no label {name!r}",
            found=f"its labels are {listed(matcher.names)}",
            fix=f"give one of these to {flag}",
        )
    return matcher.names[label]


def change_labels(
    run: RunFolder, out: Path, changes: LabelChanges, *, overwrite: bool = False
) -> tuple[RunFolder, list[str]]:
    """Write a finished run with its labels changed to ``out``; and what to know of it, a sentence each.

    Held-out rows, temperature or thresholds, and the linear model follow. Figures, reports and exports are of
    the labels before, and are left out. With ``overwrite`` ``out`` may be the run's own folder, or another
    run. Raises UserError where nothing can be written there.
    """
    if out.resolve() == run.path.resolve():
        require_own(run.path, "other labels", otherwise="name a folder with --out")
    require_free(out, overwrite=overwrite)
    notes = _left_out(run)
    with in_use(out), staged(out) as new:
        for name in _COPIED:
            if (run.path / name).is_file():
                shutil.copyfile(run.path / name, new.path / name)
        for folder in (run.adapter, run.tokenizer):
            (new.path / folder.name).mkdir()
            for file in filter(Path.is_file, folder.iterdir()):
                shutil.copyfile(file, new.path / folder.name / file.name)
        new.write_labels(changes.of_labels(run.labels))
        if changes.retired:
            _drop_rows_of_head(new.adapter / _WEIGHTS, changes.kept, len(run.labels.names))
            if run.off_topic.is_file():
                notes.append(f"texts of {listed(changes.retired)} still count as on topic")
        notes += _calibrated(run, new, changes)
        linear = LinearModel.of_folder(run.path, len(run.labels.names))
        if linear is not None:
            kept = changes.kept
            replace(
                linear, weights=np.ascontiguousarray(linear.weights[:, kept]), bias=linear.bias[kept]
            ).save(new.path)
        new.seal(replace(run.manifest, files={}))
    return RunFolder(out), notes


def _left_out(run: RunFolder) -> list[str]:
    """What the run has that is of its labels before."""
    parts = []
    if (run.path / METRICS).is_file():
        parts.append("its figures: newsdesk evaluate measures it again")
    exports = [kind for kind in ("merged", "onnx-fp32", "onnx-int8") if (run.path / "export" / kind).is_dir()]
    if exports:
        parts.append(f"its exports ({listed(exports)}): newsdesk export makes them again")
    return [f"left out, as they are of the labels before: {part}" for part in parts]


def _calibrated(run: RunFolder, new: RunFolder, changes: LabelChanges) -> list[str]:
    """Write the held-out rows of the labels that are left, and what is fitted on them."""
    before, rows = read_calibration(run.path, run.labels), read_held_out_rows(run.path, run.labels)
    if not changes.retired:  # ids stay
        for name in (CALIBRATION, CALIBRATION_ROWS):
            if (run.path / name).is_file():
                shutil.copyfile(run.path / name, new.path / name)
        return []
    gone = f"without {listed(changes.retired)}"
    left = None if rows is None else _of_labels(rows, changes.kept)
    if before is None:
        return []
    if left is None and before.decisions is None:
        write_calibration(new.path, before)
        return [f"no held-out row is left {gone}: the temperature stays, and there are no promises"]
    if left is None or rows is None:
        return [f"without held-out rows its thresholds cannot be found again {gone}: newsdesk calibrate"]
    source = before.source if gone in before.source else f"{before.source}, {gone}"
    store_calibration(new.path, left, source, folded=before.folded)
    return []


def _of_labels(rows: HeldOutRows, kept: Ids) -> HeldOutRows | None:
    """The rows that have one of the labels that are kept, by ids among these; None where none has."""
    logits = np.ascontiguousarray(rows.logits[:, kept])
    linear = None if rows.linear is None else np.ascontiguousarray(rows.linear[:, kept])
    if rows.is_multi:
        labels = np.ascontiguousarray(rows.labels[:, kept])
        return replace(rows, logits=logits, labels=labels, linear=linear)
    having = np.flatnonzero(np.isin(rows.labels, kept))
    if not len(having):
        return None
    found = rows.select(having)
    return replace(
        found,
        logits=logits[having],
        labels=np.searchsorted(kept, found.labels),
        linear=None if linear is None else linear[having],
    )


def _drop_rows_of_head(weights: Path, kept: Ids, classes: int) -> None:
    """Leave in the head the rows of the labels that are kept. Raises UserError where there is none."""
    from safetensors.numpy import save

    with stored_tensors(weights, fix=RunFolder.fix) as file:
        tensors: dict[str, NDArray[Any]] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    layer = next(
        (f"{_PREFIX}{name}" for name in _OUTPUT_LAYERS if f"{_PREFIX}{name}.weight" in tensors), None
    )
    of_head = [name for name in (f"{layer}.weight", f"{layer}.bias") if name in tensors]
    if not of_head or any(tensors[name].shape[:1] != (classes,) for name in of_head):
        raise UserError(
            f"{weights} has no head whose rows could be dropped",
            found=f"no {' or '.join(_OUTPUT_LAYERS)} of {counted(classes, 'row')}",
            fix="rename labels, or train again without this one",
        )
    for name in of_head:
        tensors[name] = np.ascontiguousarray(tensors[name][kept])
    write_bytes(weights, save(tensors, metadata={"format": "pt"}))
