"""A watched folder: every file that is dropped into it is classified into another folder, exactly once.

What was done is known from a journal in the output folder. A file is classified into a place of its own below
the journal's folder, a line of the journal says that this is done, and then its output is renamed into place:
whatever ends the process, it is either computed again, unseen, or renamed, once.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePath
from typing import Any, TypeAlias

from newsdesk import __version__
from newsdesk.data.dialect import Dialect
from newsdesk.errors import UserError, first_line
from newsdesk.files import open_regular, sync_folder
from newsdesk.prediction.abstention import PROMISES
from newsdesk.prediction.bulk import BulkEvent, NotComputedError, predict_file
from newsdesk.prediction.classifier import Classifier
from newsdesk.prediction.new_files import NewFiles
from newsdesk.prediction.output_formats import OUTPUT_TABLES
from newsdesk.prediction.output_table import (
    REJECTS_ENDING,
    Format,
    output_for,
    rejects_of,
)
from newsdesk.prediction.resumable_output import Counts
from newsdesk.prediction.watch_journal import HOME, Handled, Journal, Known, Stamp, name_of, text_of
from newsdesk.training import interruptible

_LONGEST_WAIT = 60.0  # seconds until what cannot be written is tried again
_SLICE = 0.2  # seconds within which a signal is noticed
# fmt: off
_OF_THE_PLACE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN,
    errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
    errno.ECONNRESET, errno.ECONNABORTED, errno.EAGAIN, errno.EBUSY, errno.EMFILE, errno.ENFILE,
}
# fmt: on
"""Errors of a disk, a share or this machine, which pass; all others are a file's own."""


@dataclass(frozen=True)
class Watching:
    """The folder is being watched; ``done`` and ``failed`` of its files were handled before."""

    folder: Path
    done: int
    failed: int


@dataclass(frozen=True)
class FileDone:
    """A file is classified, and its output in place."""

    name: str
    output: str
    counts: Counts


@dataclass(frozen=True)
class FileFailed:
    """A file cannot be classified; it is tried again when it changes, or model, settings or version do."""

    name: str
    error: UserError


@dataclass(frozen=True)
class Waiting:
    """Nothing can be read or written for now; it is tried again and again."""

    error: UserError


WatchEvent: TypeAlias = Watching | FileDone | FileFailed | Waiting | BulkEvent


@dataclass(frozen=True)
class Watched(Counts):
    """What one call did: the counts of so many files.

    Attributes:
        files, failed: how many were classified, and how many could not be.
        unsettled: how many were still being written at the end.
        stopped: whether a signal ended it.
    """

    files: int = 0
    failed: int = 0
    unsettled: int = 0
    stopped: bool = False


def watch_folder(
    predictor: Classifier,
    folder: str | Path,
    output: str | Path,
    *,
    format: Format | None = None,
    once: bool = False,
    interval: float = 1.0,
    settle: float = 1.0,
    observe: Callable[[WatchEvent], None] = lambda _event: None,
    **settings: Any,
) -> Watched:
    """Classify every file that is dropped into ``folder``, or below it, into ``output``, exactly once.

    A file is its path below the folder and its bytes: one whose bytes change is classified again, and its
    output replaced. It is taken when it has not changed for ``settle`` seconds. What cannot be classified is
    left out until it changes; while folders cannot be used, that is waited for. SIGINT or SIGTERM ends it:
    what is unfinished is resumed by the next call.

    Args:
        predictor: a run or exported model, from ``newsdesk.open_model``.
        folder: the files; none of them is changed. Hidden ones, unfinished ones by their names, and folders
            behind links are passed over.
        output: the folder of the outputs, in which ``.newsdesk`` keeps the journal.
        format: of all outputs; None: each file keeps its own.
        once: handle what is there, and return.
        interval: seconds between two looks at the folder.
        settle: seconds for which a file must not have changed.
        observe: called with every event.
        settings: those of ``predict_file`` that say what is read, named and promised.

    Raises:
        UserError: where the folders cannot be used together, another process watches for ``output``, or no
            file could be written with these settings; with ``once`` also where a folder cannot be used.
    """
    source, target = Path(folder).resolve(), Path(output).resolve()
    require_apart(source, target)
    promises = {name: settings[name] for name in settings if name in PROMISES}
    predictor.decision_rule(**promises)  # or refuse
    shape = {
        name: settings[name] for name in ("top_k", "all_probabilities", "indicators") if name in settings
    }
    several = predictor.task == "multi"
    OUTPUT_TABLES[format or "csv"](("text",), predictor.label_names, several=several, **shape)
    with Journal(target / HOME, source).opened() as journal, interruptible() as stop_asked:
        settings = {"format": format, **settings}
        watch = _Watch(predictor, source, target, journal, settings, settle, observe, stop_asked)
        return watch.run(interval, once=once)


def require_apart(folder: Path, output: Path) -> None:
    """Raise UserError for folders of which one cannot be watched, or the other not take the outputs."""
    source, target = folder.resolve(), output.resolve()
    if not source.is_dir():
        raise UserError(
            f"there is no folder {source} to watch", fix="make it, or give another one: --watch FOLDER"
        )
    if source.is_relative_to(target) or target.is_relative_to(source):
        raise UserError(
            "the watched folder and the output folder are in each other: outputs would be taken for input",
            found=f"--watch {source} --output {target}",
            fix="give --output a folder beside the watched one",
        )
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file, not a folder", fix="give --output the name of a folder")


class _Watch:
    """One call of `watch_folder`."""

    def __init__(
        self,
        predictor: Classifier,
        folder: Path,
        output: Path,
        journal: Journal,
        settings: dict[str, Any],
        settle: float,
        observe: Callable[[WatchEvent], None],
        stop_asked: Callable[[], bool],
    ) -> None:
        self._predictor, self._folder, self._output = predictor, folder, output
        self._journal, self._observe, self._stop_asked = journal, observe, stop_asked
        self._settle = settle
        self._format: Format | None = settings.pop("format")
        self._settings = settings
        said = {n: each.to_dict() if isinstance(each, Dialect) else each for n, each in settings.items()}
        identity = [__version__, predictor.fingerprint, self._format, said]
        self._tried_as = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        self._files = NewFiles(folder, journal, self._tried_as, settle)
        self._done = Watched()
        self._troubles: Counter[str] = Counter()
        self._said: dict[str, str] = {}  # what hinders the work, and the file that met it first
        self._has_work = self._may_wait = True  # what an earlier process may have left

    def run(self, interval: float, *, once: bool) -> Watched:
        """Look and classify until a signal comes; once: twice, so that what is still written shows."""
        failed = sum(known.tried_as is not None for known in self._journal.known.values())
        self._observe(Watching(self._folder, len(self._journal.known) - failed, failed))
        try:
            if once:
                self._look()
                self._pause(self._settle)
                self._look()
            else:
                self._watch(interval)
        except KeyboardInterrupt:
            return replace(self._done, stopped=True)
        return replace(self._done, unsettled=len(self._files.pending), stopped=self._stop_asked())

    def _watch(self, interval: float) -> None:
        wait = interval
        while not self._stop_asked():
            files = self._done.files
            try:
                self._look()
            except _UnavailableError as error:
                if error.found not in self._said:
                    self._observe(Waiting(error))
                self._said.setdefault(str(error.found), error.name)
                wait = min(_LONGEST_WAIT, max(interval, 2 * wait)) if self._done.files == files else interval
            else:
                self._said.clear()
                wait = min(interval, self._files.settled_in())
            self._pause(wait)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._stop_asked():
            time.sleep(min(left, _SLICE))

    def _look(self) -> None:
        """Handle what is ready. Raises _UnavailableError where a folder cannot be used."""
        with self._available("", self._folder):
            ready = self._files.ready()
        if not (ready or self._has_work or self._may_wait):
            return
        with self._available("", self._journal.path):
            self._journal.require_there()
            if self._may_wait:
                self._publish_what_is_done()
                self._may_wait = False
            self._journal.tidy(self._files.names)
        for name, stamp in sorted(ready, key=lambda each: self._troubles[each[0]]):
            if self._stop_asked():
                return
            with self._available(name, self._output):
                self._journal.require_there()
                self._take(name, stamp)
            del self._troubles[name]
            self._said = {found: met for found, met in self._said.items() if met != name}
        if not self._files.pending:
            shutil.rmtree(self._journal.work, ignore_errors=True)
            self._has_work = False

    @contextmanager
    def _available(self, name: str, place: Path) -> Iterator[None]:
        """Turn what hinders the folders' use into an _UnavailableError; ``name`` is tried after others."""
        try:
            yield
        except (OSError, UserError) as error:
            refused = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(refused, OSError):
                raise
            self._troubles[name] += 1
            self._may_wait = True
            raise _UnavailableError(name, os.fsdecode(refused.filename or place), refused) from error

    def _take(self, name: str, stamp: Stamp) -> None:
        """Classify a file, or say why it cannot be. Raises OSError where a folder cannot be used."""
        work: Path | None = None
        try:
            sha256 = self._sha256(name)
            known = self._journal.known.get(name)
            if known is not None and known.tried_as is None and known.sha256 == sha256:
                self._note(name, stamp, sha256)
                return
            output, form = self._output_of(name)
            work = self._journal.work / sha256[:16] / output
            self._has_work = True
            if work.exists():  # but not noted: a kill came between
                shutil.rmtree(work.parent)
            settings = {"format": form, "observe": self._seen, **self._settings}
            done = predict_file(self._predictor, self._folder / name, work, **settings)
            counts = Counts(**{each.name: getattr(done, each.name) for each in fields(Counts)})
        except Exception as error:
            self._refuse(name, stamp, work, error)
            return
        if self._files.stamp(name) != stamp:  # it was written to meanwhile
            shutil.rmtree(work.parent)
            return
        sync_folder(work.parent)
        handled = self._note(
            name, stamp, sha256, output=output, rows_read=counts.rows_read, rejected=counts.rejected
        )
        self._publish(handled)
        self._count(files=1, **asdict(counts))
        self._observe(FileDone(name, output, counts))

    def _sha256(self, name: str) -> str:
        """Of a file's bytes. Raises UserError for what is no file, and for one that may not be read."""
        path = self._folder / name
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder that may not be read"}
            raise UserError(
                f"{name} is no file",
                found=kinds.get(stat.S_IFMT(mode), "a pipe or a device"),
                fix="put the file itself into the watched folder",
            )
        try:
            with open_regular(path) as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except PermissionError:
            raise UserError(f"{name} may not be read", fix=f"chmod u+r {path}") from None

    def _output_of(self, name: str) -> tuple[str, Format]:
        """The output's place below the output folder, and its format. Raises UserError if it is taken."""
        output, form = output_for(name, self._format)
        if found := self._taken(name, output):
            fix = "give the file another name, or move what is there elsewhere"
            raise UserError(f"the output of {name} would take another one's place", found=found, fix=fix)
        return output, form

    def _taken(self, name: str, output: str) -> str:
        """What is in an output's place, or may come there; empty where it is free, or the file's own."""
        if output.endswith(REJECTS_ENDING):
            return f"{output} is for the bad rows of {output.removesuffix(REJECTS_ENDING)}"
        known, target = self._journal.known, self._output / output
        for other in {output, name.rpartition(".")[0]} - {name}:  # keeps its name, or has the ending added
            is_done = other in known and known[other].tried_as is None
            if is_done and output_for(other, self._format)[0] == output:
                return f"{output} is that of {other}"
        for above in PurePath(output).parents:
            if os.path.lexists(self._output / above) and not (self._output / above).is_dir():
                return f"{above} in the output folder is a file"
        has_output = name in known and known[name].has_output
        if target.is_dir() or (os.path.lexists(target) and not has_output):
            return f"{output} is in the output folder already"
        return ""

    def _note(self, name: str, stamp: Stamp, sha256: str, **facts: Any) -> Handled:
        if "output" in facts:
            facts["output"] = text_of(facts["output"])
        handled = Handled(text_of(name), stamp, sha256, int(time.time()), **facts)
        self._journal.add(handled)
        self._files.pending.pop(name, None)
        return handled

    def _seen(self, event: BulkEvent) -> None:
        self._observe(event)
        if self._stop_asked():
            raise KeyboardInterrupt

    def _refuse(self, name: str, stamp: Stamp, work: Path | None, error: Exception) -> None:
        """Note that a file cannot be classified; raise OSError where a folder cannot be used.

        What the model or newsdesk fails in is not noted: the file is tried again by the next process.
        """
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and self._is_of_the_place(cause):
            raise cause
        if self._files.stamp(name) != stamp:
            return  # gone, or written to meanwhile
        with suppress(UserError):
            self._sha256(name)  # an OSError: it is the disk or share that cannot be read
        if work is not None:
            shutil.rmtree(work.parent, ignore_errors=True)
        known = self._journal.known.get(name)
        has_output = known is not None and known.has_output
        shown = error if isinstance(error, UserError) else _explained(name, error)
        if isinstance(error, UserError | OSError) and not isinstance(error, NotComputedError):
            facts = {"failed": shown.wrong, "tried_as": self._tried_as, "has_output": has_output}
            self._note(name, stamp, "", **facts)
        else:
            self._journal.known[name] = Known(stamp, "", self._tried_as, has_output)
            self._files.pending.pop(name, None)
        self._count(failed=1)
        self._observe(FileFailed(name, shown))

    def _is_of_the_place(self, error: OSError) -> bool:
        named = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        in_output = Path(named).is_relative_to(self._output)
        return error.errno in _OF_THE_PLACE or (in_output and error.errno != errno.ENAMETOOLONG)

    def _count(self, **counts: int) -> None:
        now = self._done
        self._done = replace(now, **{name: getattr(now, name) + more for name, more in counts.items()})

    def _publish(self, handled: Handled) -> None:
        """Put a noted output in place, and its rejects before it; what is in place already stays."""
        output = name_of(handled.output or "")
        work, target = self._journal.work / handled.sha256[:16] / output, self._output / output
        target.parent.mkdir(parents=True, exist_ok=True)
        if rejects_of(work).is_file():
            rejects_of(work).replace(rejects_of(target))
        elif not handled.rejected:  # those of the file that was replaced
            rejects_of(target).unlink(missing_ok=True)
        if work.is_file():
            work.replace(target)
        shutil.rmtree(self._journal.work / handled.sha256[:16], ignore_errors=True)

    def _publish_what_is_done(self) -> None:
        """Put in place what an earlier process noted and did not live to rename."""
        work = self._journal.work
        left = {entry.name for entry in work.iterdir()} if work.is_dir() else set()
        for handled in self._journal.lines() if left else ():
            if handled.output is None or handled.sha256[:16] not in left:
                continue
            output = name_of(handled.output)
            place = work / handled.sha256[:16] / output
            if place.is_file() or rejects_of(place).is_file():
                self._publish(handled)
                counts = Counts(rows_read=handled.rows_read, rejected=handled.rejected)
                self._count(files=1, **asdict(counts))
                self._observe(FileDone(name_of(handled.name), output, counts))


class _UnavailableError(UserError):
    """A folder, disk or share cannot be used for now; ``name`` is the file that met it."""

    def __init__(self, name: str, place: str, error: OSError) -> None:
        self.name = name
        super().__init__(
            f"{place} cannot be used",
            found=error.strerror or str(error),
            fix="make room, or bring the disk or share back; it is tried again",
        )


def _explained(name: str, error: Exception) -> UserError:
    """The error for what nobody has explained yet."""
    if isinstance(error, OSError):
        found = error.strerror or str(error)
        return UserError(f"{name} cannot be read, or its output not written", found=found, fix="rename it")
    explained = UserError(
        f"{name} cannot be handled, which is a defect of newsdesk or a want of memory",
        found=f"{type(error).__name__}: {first_line(error)}",
        fix="newsdesk predict RUN --input FILE --output OTHER --debug shows where; each start tries again",
    )
    explained.__cause__ = error
    return explained
