"""Where a run may be written, and how it takes an older one's place. No torch in here.

Nothing is removed that newsdesk did not write. A run that replaces another is written to a folder inside of
it, ``.next``, and takes its place when it is finished: until then the old one can be used, and the new one be
resumed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from newsdesk.errors import UserError
from newsdesk.files import make_folder, remove_empty
from newsdesk.runs.folder import CARD, READY, RunFolder, own_files, run_state, settle, unwritable

NEXT = ".next"
_STAGING, _LOCK = ".staging", ".lock"
_WORKING = (NEXT, _STAGING, _LOCK, f".settling{_LOCK}")
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
    """The training at ``out`` that can go on: one that is to replace the run there, else that run itself."""
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
        raise unwritable(out, error) from error
    try:
        yield
    finally:
        (out / _LOCK).unlink(missing_ok=True)  # before it is released: it is still ours
        lock.release()
        remove_empty(made)


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
