"""The folder a training leaves: what lies where in it, and how it is sealed. No torch in here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from newsdesk.data.known_texts import KnownTexts
from newsdesk.data.layout import TextLayout
from newsdesk.errors import UserError
from newsdesk.files import make_folder, remove_empty, sha256_of, write_text
from newsdesk.off_topic import OFF_TOPIC
from newsdesk.stored import KEY, read_stored, write_stored
from newsdesk.training.manifest import Manifest

MANIFEST = "manifest.json"
LABELS = "labels.json"
_STAGING, _LOCK = ".staging", ".lock"
_OURS = (_STAGING, _LOCK)
_CHECKPOINTS = "checkpoints"
_OF_TRAINING = ("README.md", "adapter", _CHECKPOINTS, LABELS, "log.jsonl", "recipe.toml", "tokenizer")
"""What an unfinished run keeps when it goes on; the rest tells of a state that will not be the last.

The card may hold its owner's words, and is written anew at the end.
"""

_FIX = "copy the run anew from where it is whole, or train it again"


@dataclass(frozen=True)
class Labels:
    """What PEFT's folder forgets: class names in id order, how a row becomes a text, where it is cut."""

    names: tuple[str, ...] = field(metadata={KEY: "labels"})
    layout: TextLayout = field(metadata={KEY: "text"})
    max_length: int

    def write(self, folder: Path) -> None:
        """Write them as labels.json."""
        write_stored(folder / LABELS, self)

    @classmethod
    def read(cls, folder: Path, *, fix: str) -> Labels:
        """The labels.json of a run or an export. Raises UserError, with ``fix``, when it is damaged."""
        return read_stored(folder / LABELS, cls, fix=fix)


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run; nothing is read before it is asked for."""

    path: Path

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
        """What an unfinished training goes on from."""
        return self.path / _CHECKPOINTS

    @property
    def metrics(self) -> Path:
        """Evaluation results by split."""
        return self.path / "metrics.json"

    @property
    def off_topic(self) -> Path:
        """By which it says how foreign a text is; missing where no rows were held out."""
        return self.path / OFF_TOPIC

    def known_texts(self) -> KnownTexts | None:
        """Hashes of the texts it learned from; None in a run made without. Raises UserError if damaged."""
        return KnownTexts.of_folder(self.path)

    @cached_property
    def labels(self) -> Labels:
        """The content of labels.json."""
        return Labels.read(self.path, fix=_FIX)

    @cached_property
    def manifest(self) -> Manifest:
        """Versions, seeds, data fingerprints, the base model, and the sha256 of every file."""
        return read_stored(self.path / MANIFEST, Manifest, fix=_FIX)

    def write_labels(self, labels: Labels) -> None:
        """Write labels.json."""
        labels.write(self.path)
        self.__dict__.pop("labels", None)  # read before, they are out of date now

    def write_recipe(self, toml: str) -> None:
        """Write recipe.toml."""
        write_text(self.recipe, toml)

    def seal(self, manifest: Manifest) -> None:
        """Write the manifest, last of all, with the sha256 of every other file of the run."""
        files = sorted(file for file in self.path.rglob("*") if file.is_file() and self._belongs(file))
        hashes = {file.relative_to(self.path).as_posix(): sha256_of(file) for file in files}
        write_stored(self.path / MANIFEST, replace(manifest, files=hashes))
        self.__dict__.pop("manifest", None)  # read before, it is out of date now

    def reseal(self) -> None:
        """Write the manifest anew after files were added, its facts unchanged."""
        self.seal(read_stored(self.path / MANIFEST, Manifest, fix=_FIX))

    def is_complete(self) -> bool:
        """Whether the run is sealed and its training came to its own end."""
        return (self.path / MANIFEST).is_file() and not self.manifest.is_interrupted

    def reopen(self) -> None:
        """Break the seal of an interrupted run that goes on, and remove what was made of its state so far."""
        (self.path / MANIFEST).unlink(missing_ok=True)
        _remove([entry for entry in self.path.iterdir() if entry.name not in (*_OF_TRAINING, *_OURS)])
        self.__dict__.pop("manifest", None)

    def _belongs(self, file: Path) -> bool:
        first, *_ = parts = file.relative_to(self.path).parts
        return first not in (MANIFEST, _CHECKPOINTS) and not any(part.startswith(".") for part in parts)


def require_free(out: Path, *, overwrite: bool) -> None:
    """Raise UserError unless a run may be written to ``out``: nothing is there, or a run to be replaced."""
    if out.is_file():
        raise UserError(f"--out {out} is a file", fix="name a folder that does not exist yet")
    if not out.is_dir() or all(entry.name in _OURS for entry in out.iterdir()):
        return
    kinds = {MANIFEST: "a finished run", "recipe.toml": "an unfinished run"}
    found = next((kind for name, kind in kinds.items() if (out / name).is_file()), None)
    if not (overwrite and found):
        raise UserError(
            f"--out {out} is not empty",
            found=found or "files",
            fix="choose another folder" + (f", {_FIXES[found]}" if found else ""),
        )


_FIXES = {
    "a finished run": "or replace the run with --overwrite",
    "an unfinished run": "continue it with --resume, or replace it with --overwrite",
}


@contextmanager
def in_use(out: Path) -> Iterator[None]:
    """Keep every other process from training into ``out`` while the block runs.

    If the block leaves nothing in folders that were not there before, they go too. Raises UserError when
    another process is at work there, or nothing can be written.
    """
    from filelock import FileLock, Timeout

    try:
        made = make_folder(out)
        lock = FileLock(out / _LOCK)
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"another process is training into {out}",
            found=f"it holds {out / _LOCK}",
            fix="wait until it is done, or choose another folder with --out",
        ) from None
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        yield
    finally:
        (out / _LOCK).unlink(missing_ok=True)  # before it is released: it is still ours
        lock.release()
        remove_empty(made)


@contextmanager
def staged(out: Path) -> Iterator[RunFolder]:
    """A new run to prepare; when the block is through it takes the place of whatever ``out`` holds.

    If the block raises, ``out`` is left as it was found. Raises UserError where nothing can be written.
    """
    existed, staging = out.is_dir(), out / _STAGING
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        yield RunFolder(staging)
        # Broken off in the middle, either must look unfinished: the manifest goes first and comes last.
        old = sorted(out.iterdir(), key=lambda entry: entry.name != MANIFEST)
        _remove([entry for entry in old if entry.name not in _OURS])
        for new in sorted(staging.iterdir(), key=lambda entry: entry.name == MANIFEST):
            new.replace(out / new.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not existed and not any(out.iterdir()):
            out.rmdir()


def _remove(entries: list[Path]) -> None:
    for entry in entries:
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _unwritable(out: Path, error: OSError) -> UserError:
    return UserError(
        f"no run can be written to {out}", found=error.strerror, fix="choose another folder with --out"
    )


def open_run(path: Path) -> RunFolder:
    """A finished run. Raises UserError when the folder is missing, not a run, or an unfinished one."""
    if not path.is_dir():
        raise UserError(
            f"there is no run at {path}",
            found="no such folder" if not path.exists() else "a file, not a folder",
            fix="give the folder that newsdesk train --out wrote",
        )
    run = RunFolder(path)
    if not (path / MANIFEST).is_file():
        if run.recipe.is_file():
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
