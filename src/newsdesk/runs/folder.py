"""The folder of a run: what is in it, how it is sealed, and how another takes its place. No torch in here.

Nothing is removed that newsdesk did not write. A run that replaces another is written to a folder inside of
it, ``.next``, and takes its place when it is finished: until then the old one can be used, and the new one be
resumed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from newsdesk.data.duplicates import KNOWN_TEXTS, KnownTexts
from newsdesk.errors import UserError, listed
from newsdesk.files import (
    held_alone,
    make_folder,
    read_regular,
    remove_empty,
    require_no_way_out,
    sha256_of,
    write_text,
)
from newsdesk.runs.calibration import CALIBRATION, CALIBRATION_ROWS, read_held_out_rows
from newsdesk.runs.labels import LABELS, LabelKind, Labels
from newsdesk.runs.linear_model import LINEAR_MODEL
from newsdesk.runs.manifest import Manifest
from newsdesk.runs.off_topic import OFF_TOPIC
from newsdesk.runs.ready_made import located, ready_made
from newsdesk.stored import read_content, read_stored, write_stored

MANIFEST = "manifest.json"
CARD = "README.md"
METRICS = "metrics.json"
HEADER = "# The recipe of a run of newsdesk: every value, and where it came from.\n"
"""How a run's recipe.toml begins, so that no other file of that name is taken for one."""

_OF_TRAINING = {
    *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    *(LABELS, "log.jsonl", "recipe.toml", "tracking.json"),
    *(f"tokenizer/{name}" for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")),
    *(f"tokenizer/{name}" for name in ("special_tokens_map.json", "added_tokens.json", "vocab.txt")),
    *(f"tokenizer/{name}" for name in ("vocab.json", "merges.txt", "tokenizer.model", "spiece.model")),
}
"""What an unfinished run keeps when it is resumed; the rest belongs to a state that will not be the last."""
_OF_THE_END = {METRICS, CALIBRATION, CALIBRATION_ROWS, OFF_TOPIC, LINEAR_MODEL, KNOWN_TEXTS}
_CHECKPOINT = re.compile(r"checkpoints/step-\d+-[0-9a-f]+\.safetensors")
_PREDICTIONS, _PART = re.compile(r"predictions-(.+)\.csv"), re.compile(r"\..+\.part")
_REPORT = b'<meta name="generator" content="newsdesk'
_ORIGIN = re.compile(r"^\w+ = .*  # (default|flag|flag --set|recipe .+|imported)$", re.MULTILINE)
"""A line of a recipe from before it had a header."""


@dataclass(frozen=True)
class ModelFolder:
    """What the folders of a run and of an exported model share; nothing is read before it is needed."""

    path: Path
    fix: ClassVar[str]

    @property
    def metrics(self) -> Path:
        """Evaluation results by split, once there are some."""
        return self.path / METRICS

    def known_texts(self) -> KnownTexts | None:
        """Hashes of the texts it learned from; None in a run made without. Raises UserError if damaged."""
        return KnownTexts.of_folder(self.path)

    @cached_property
    def labels(self) -> Labels:
        """Class names in id order, how a row becomes a text, what is read of it."""
        return Labels.read(self.path, fix=self.fix)


@dataclass(frozen=True)
class RunFolder(ModelFolder):
    """Paths and facts of one run."""

    fix = "copy the run again from an undamaged copy, or train it again"

    @property
    def adapter(self) -> Path:
        """PEFT's two files."""
        return self.path / "adapter"

    @property
    def tokenizer(self) -> Path:
        """tokenizer.json and its settings."""
        return self.path / "tokenizer"

    @property
    def recipe(self) -> Path:
        """Every value of the recipe and where it came from."""
        return self.path / "recipe.toml"

    @property
    def log(self) -> Path:
        """One event a line."""
        return self.path / "log.jsonl"

    @property
    def checkpoints(self) -> Path:
        """What an unfinished training is resumed from."""
        return self.path / "checkpoints"

    @property
    def off_topic(self) -> Path:
        """What tells off-topic texts; missing where no rows were held out."""
        return self.path / OFF_TOPIC

    @cached_property
    def manifest(self) -> Manifest:
        """Versions, seeds, data fingerprints, the base model, and the sha256 of every file."""
        return read_stored(self.path / MANIFEST, Manifest, fix=RunFolder.fix)

    def write_labels(self, labels: Labels) -> None:
        """Write labels.json."""
        labels.write(self.path)
        self.__dict__.pop("labels", None)  # read before, they are out of date now

    def write_kind(self, kind: LabelKind) -> None:
        """Note in a finished run what its labels were in the program that gave them."""
        self.write_labels(replace(self.labels, kind=kind))
        self.reseal()

    def write_recipe(self, toml: str) -> None:
        """Write recipe.toml, with the header that identifies it."""
        write_text(self.recipe, HEADER + toml)

    def seal(self, manifest: Manifest, *, wrote: Path | None = None) -> None:
        """Write the manifest, last of all, with the sha256 of every other file of the run.

        ``wrote`` is a folder in the run, all of whose files newsdesk has just written: an export.
        """
        files = {*own_files(self.path, exported=manifest.files)} - {self.path / MANIFEST}
        if wrote is not None:
            files |= {path for path in wrote.rglob("*") if path.is_file()}
        if (self.path / CARD).is_file():
            files.add(self.path / CARD)
        sealed = sorted(file for file in files if not file.is_relative_to(self.checkpoints))
        hashes = {file.relative_to(self.path).as_posix(): sha256_of(file) for file in sealed}
        write_stored(self.path / MANIFEST, replace(manifest, files=hashes))
        self.__dict__.pop("manifest", None)  # read before, it is out of date now

    def reseal(self, *, wrote: Path | None = None) -> None:
        """Write the manifest again after files were added, its facts unchanged; ``wrote`` as for ``seal``."""
        self.seal(read_stored(self.path / MANIFEST, Manifest, fix=RunFolder.fix), wrote=wrote)

    def is_complete(self) -> bool:
        """Whether the run is sealed and its training came to its own end."""
        return (self.path / MANIFEST).is_file() and not self.manifest.is_interrupted

    def is_cross_validated(self) -> bool:
        """Whether models of folds answered the rows that it is calibrated on."""
        training, rows = self.manifest.training, read_held_out_rows(self.path)
        return training is not None and training.folds > 0 and rows is not None and rows.folds > 0

    def reopen(self) -> None:
        """Break the seal of an interrupted run to be resumed; remove what was made of its state so far."""
        stale = own_files(self.path)
        (self.path / MANIFEST).unlink(missing_ok=True)
        for file in stale:
            name = file.relative_to(self.path).as_posix()
            if name not in _OF_TRAINING and not _CHECKPOINT.fullmatch(name):
                remove_file(file, self.path)
        self.__dict__.pop("manifest", None)


def own_files(run: Path, *, exported: Mapping[str, str] | None = None) -> list[Path]:
    """The files in a folder that newsdesk wrote as parts of a run, without the card, which has an owner.

    Files of exports are known by the manifest, or by ``exported``, the files that one names. Links to folders
    are not followed.
    """
    if exported is None:
        exported = RunFolder(run).manifest.files if run_state(run) == "a finished run" else {}
    found = []
    for folder, folders, names in os.walk(run):
        if Path(folder) == run:
            folders[:] = [name for name in folders if not name.startswith(".")]
        evaluated = _evaluated_splits(Path(folder))
        for name in names:
            path = Path(folder) / name
            if _is_own(path, path.relative_to(run).as_posix(), evaluated, exported):
                found.append(path)
    return sorted(found)


def _is_own(path: Path, name: str, evaluated: Collection[str], exported: Mapping[str, str]) -> bool:
    if name in _OF_TRAINING or name in _OF_THE_END or name == MANIFEST or _CHECKPOINT.fullmatch(name):
        return True
    if name.startswith("export/"):
        return name in exported or _is_figure(path, evaluated)
    if _PART.fullmatch(path.name):  # what a kill left half written
        return "/" not in name or name.startswith(("adapter/", "tokenizer/", "checkpoints/"))
    return "/" not in name and (_is_figure(path, evaluated) or is_report(path))


def figures_in(folder: Path) -> list[Path]:
    """What evaluations left in a folder: metrics.json, and the predictions of the splits that it names."""
    evaluated = _evaluated_splits(folder)
    return [path for path in folder.iterdir() if path.is_file() and _is_figure(path, evaluated)]


def _is_figure(path: Path, evaluated: Collection[str]) -> bool:
    """Whether an evaluation left the file: metrics.json, or the predictions of a split that it names."""
    named = _PREDICTIONS.fullmatch(path.name)
    return bool(evaluated) and (path.name == METRICS or (named is not None and named[1] in evaluated))


def _evaluated_splits(folder: Path) -> Collection[str]:
    try:
        return read_content(folder / METRICS, fix="") if (folder / METRICS).is_file() else ()
    except UserError:
        return ()


def is_report(path: Path) -> bool:
    """Whether a file is a page that newsdesk report wrote."""
    if path.suffix != ".html" or not path.is_file():
        return False
    with path.open("rb") as stream:
        return _REPORT in stream.read(2000)


def remove_file(path: Path, top: Path) -> None:
    """Remove a file, and its folders up to ``top`` that this leaves empty."""
    path.unlink(missing_ok=True)
    for folder in path.relative_to(top).parents[:-1]:
        with suppress(OSError):
            (top / folder).rmdir()


def run_state(path: Path) -> Literal["a finished run", "an unfinished run"] | None:
    """What a folder holds, by the content of its files and not by their names; None: no run."""
    with suppress(UserError):
        read_stored(path / MANIFEST, Manifest, fix=RunFolder.fix)
        return "a finished run"
    try:
        recipe = read_regular(path / "recipe.toml").decode()
        Labels.read(path, fix=RunFolder.fix)
    except (OSError, ValueError, UserError):
        return None
    return "an unfinished run" if recipe.startswith(HEADER) or _ORIGIN.search(recipe) else None


def open_run(path: Path) -> RunFolder:
    """The finished run in a folder, or ready-made by that name. Raises UserError where there is neither."""
    path = located(path)
    if not path.is_dir():
        raise UserError(
            f"there is no run at {path}",
            found="no such folder" if not path.exists() else "a file, not a folder",
            fix="give the folder that newsdesk train --out wrote, or the name of a ready-made classifier: "
            + listed(ready_made()),
        )
    settle(path)
    run = RunFolder(path)
    if not (path / MANIFEST).is_file():
        if run_state(path):
            raise UserError(
                f"the run {path} is unfinished",
                found="it has a recipe but no manifest.json, which is written last",
                fix=f"continue it with newsdesk train --out {path} --resume",
            )
        raise UserError(
            f"{path} is not a run of newsdesk",
            found=", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "an empty folder",
            fix="give the folder that newsdesk train --out wrote; "
            "an adapter trained elsewhere becomes a run by newsdesk import-adapter",
        )
    return run


READY, MOVING = ".ready", ".moving"
"""Folders in a run's: a finished one that is to take its place, and the same while its files are moved."""


def settle(out: Path) -> None:
    """Let a run that waits in ``out`` take the place of the one there: what a kill may have left undone.

    The old run's own files go, its card stays, and so does what newsdesk did not write. Raises UserError
    where nothing can be written, or links lead elsewhere.
    """
    require_no_way_out(out, TOP_NAMES)
    ready, moving = out / READY, out / MOVING
    if not (ready.is_dir() or moving.is_dir()):
        return
    from filelock import FileLock

    try:
        with FileLock(out / ".settling.lock"):
            if ready.is_dir():
                # The manifest goes last: it tells which of the exports' files are newsdesk's.
                for file in sorted(own_files(out), key=lambda path: path == out / MANIFEST):
                    remove_file(file, out)
                ready.rename(moving)
            if moving.is_dir():
                files = [file for file in moving.rglob("*") if file.is_file()]
                for file in sorted(files, key=lambda path: path == moving / MANIFEST):
                    place = out / file.relative_to(moving)
                    if place.name == CARD and place.is_file():
                        continue
                    place.parent.mkdir(parents=True, exist_ok=True)
                    file.replace(place)
                shutil.rmtree(moving)
            (out / ".settling.lock").unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error


def unwritable(out: Path, error: OSError) -> UserError:
    """The error for a folder that no run can be written to."""
    return UserError(
        f"no run can be written to {out}", found=error.strerror, fix="choose another folder with --out"
    )


NEXT, FOLDS = ".next", ".folds"
_STAGING, _LOCK = ".staging", ".lock"
_WORKING = (NEXT, FOLDS, _STAGING, _LOCK, f".settling{_LOCK}")
_OF_EXPORTS = (
    *("onnx", "config.json", "model.safetensors", "adapter.safetensors"),
    *("quality.json", "tokenizer_config.json"),
)
TOP_NAMES = {
    *(name.partition("/")[0] for name in (*_OF_TRAINING, *_OF_THE_END, MANIFEST, "checkpoints/", "export/")),
    *(*_WORKING, READY, MOVING, *_OF_EXPORTS, "tokenizer.json"),
}
_NAMED = 6


def require_free(out: Path, *, overwrite: bool) -> None:
    """Raise UserError unless a run may be written to ``out``: nothing is there, or a run to be replaced."""
    if out.is_file():
        raise UserError(f"--out {out} is a file", fix="name a folder that does not exist yet")
    if not out.is_dir():
        return
    settle(out)
    names = sorted(entry.name for entry in out.iterdir() if entry.name not in _WORKING)
    if not names:
        return
    state = run_state(out)
    if not overwrite or state is None:
        raise UserError(
            f"--out {out} is not empty",
            found=state or f"no run of newsdesk, but {_shortened(names)}",
            fix="choose another folder" + (f", {_FIXES[state]}" if state else ""),
        )
    require_not_around_us(out)
    require_nothing_else(out, {*own_files(out), out / CARD})


_FIXES = {
    "a finished run": "or replace the run with --overwrite",
    "an unfinished run": "continue it with --resume, or replace it with --overwrite",
}


def require_not_around_us(folder: Path) -> None:
    """Raise UserError for the current folder, the home folder and what holds them: none is ever replaced."""
    real = folder.resolve()
    for place, what in ((Path.cwd(), "the current folder"), (Path.home(), "the home folder")):
        if place.resolve().is_relative_to(real):
            raise UserError(
                f"{folder} is never replaced",
                found=f"it is {what}, or holds it",
                fix="choose another folder with --out, or run the command from elsewhere",
            )


def require_nothing_else(folder: Path, ours: Collection[Path]) -> None:
    """Raise UserError, naming the files, when a folder to be replaced holds more than ``ours``."""
    others = []
    for inside, folders, names in os.walk(folder):
        here = Path(inside)
        if here == folder:
            folders[:] = [name for name in folders if name not in _WORKING]
        others += [here / name for name in names if here / name not in ours and name not in _WORKING]
        others += [here / name for name in folders if (here / name).is_symlink()]
    if others:
        raise UserError(
            f"{folder} holds files that newsdesk did not write, so nothing was replaced",
            found=_shortened(sorted(path.relative_to(folder).as_posix() for path in others)),
            fix="move them elsewhere, or choose another folder with --out",
        )


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def resumable(out: Path) -> RunFolder | None:
    """The training at ``out`` that can be resumed: one to replace the run there, else that run itself."""
    for path in (out / NEXT, out):
        settle(path)
        if run_state(path):
            return RunFolder(path)
    return None


def working_folder(out: Path, *, overwrite: bool) -> RunFolder:
    """Where a training that begins writes: ``out``, or a folder inside of the run to be replaced."""
    settle(out)
    return RunFolder(out / NEXT if overwrite and run_state(out) else out)


def put_in_place(run: RunFolder, out: Path) -> RunFolder:
    """Let a finished run take the place of the one at ``out``, where it was written to replace that."""
    if run.path == out:
        return run
    run.path.rename(out / READY)  # from here on, whoever opens it next finishes what a kill leaves undone
    settle(out)
    return RunFolder(out)


@contextmanager
def in_use(out: Path) -> Iterator[None]:
    """Keep every other process from training into ``out`` while the block runs.

    If the block leaves nothing in folders that were not there before, they go too. Raises UserError when
    another process is at work there, or nothing can be written.
    """
    busy = f"another process is training into {out}"
    with ExitStack() as stack:
        try:
            made = make_folder(out)
            stack.callback(remove_empty, made)
            fix = "wait until it is done, or choose another folder with --out"
            stack.enter_context(held_alone(out / _LOCK, busy, fix=fix))
        except OSError as error:
            raise unwritable(out, error) from error
        yield


@contextmanager
def staged(out: Path) -> Iterator[RunFolder]:
    """A new run to prepare; when the block is through it is at ``out``, in place of what newsdesk left there.

    If the block raises, ``out`` is left as it was found. Raises UserError where nothing can be written.
    """
    existed, staging = out.is_dir(), out / _STAGING
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    except OSError as error:
        raise unwritable(out, error) from error
    try:
        yield RunFolder(staging)
        staging.rename(out / READY)
        settle(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not existed and not any(out.iterdir()):
            out.rmdir()
