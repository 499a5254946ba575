"""What a person said of rows, on disk before the next one is asked: a journal, and the file made of it."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from newsdesk.data.labelled import LabelFormat, LabelSet
from newsdesk.data.table import Cell, Table
from newsdesk.errors import UserError, listed
from newsdesk.files import (
    cut_to_whole_lines,
    damaged,
    explaining_full_disk,
    held_alone,
    make_folder,
    parsed_json,
    read_regular,
    require_no_links_out,
    write_bytes,
)
from newsdesk.prediction.output_table import json_line, output_names
from newsdesk.prediction.predictions import delimited_lines
from newsdesk.stored import (
    CURRENT,
    FORMAT,
    OPTIONAL,
    UNSAID,
    WrongContentError,
    from_content,
    to_content,
    with_format,
)

Picked = Literal["uncertain", "diverse", "random"]
"""Why a row was asked: the classifier is unsure of it; it is unlike the others; it was drawn."""

PICKED = "picked"
"""The column of the labelled file that says so."""
JOURNAL = "journal.jsonl"
"""The file of a session's folder that everything else is made of."""

_ENDING = ".session"
_LARGEST_JOURNAL = 1 << 30
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Beginning:
    """The first line of a journal: what all its rows and answers are of.

    Attributes:
        data: a sha256 over the texts of the data, in order.
        labels: the labels to choose from when it began.
        several: whether a text may have several of them.
        random: the share of the rows that are drawn at random.
    """

    data: str
    labels: tuple[str, ...]
    several: bool
    random: float


@dataclass(frozen=True)
class Action:
    """Each further line: what a person did with a row.

    Attributes:
        row: its 0-based position in the data.
        picked: why it was asked.
        labels: what it was given; None where it was skipped.
        undone: the last action that stands, on this row, is taken back.
    """

    row: int
    picked: str
    labels: LabelSet | None = field(default=None, metadata=OPTIONAL)
    undone: bool = field(default=False, metadata=UNSAID)


@dataclass
class LabelledFile:
    """How answers become a file that training reads: the data's own columns, then labels, then ``picked``.

    Attributes:
        path: the file, whose ending is .csv, .tsv, .jsonl or .ndjson.
        table: the data.
        form: how labels are written: 0/1 columns, else one column; several labels are a JSON list.
        several: whether a text may have several labels.
    """

    path: Path
    table: Table
    form: LabelFormat
    several: bool

    def __post_init__(self) -> None:
        """Raise UserError for a file that cannot be written, or is the data itself."""
        if self.path.suffix.lower() not in (*_DELIMITERS, *_LINES):
            raise UserError(
                f"the ending of {self.path.name} names no format that labels are written in",
                found=self.path.suffix or "no ending",
                fix=f"end --out in {', '.join((*_DELIMITERS, *_LINES))}",
            )
        if self.path.is_dir() or _same(self.path, self.table.path):
            raise UserError(
                "--out is a folder, not a file" if self.path.is_dir() else "--out is the data itself",
                found=str(self.path),
                fix="give --out the name of a new file; the data is never changed",
            )
        own = self.form.columns or (self.column,)
        self._kept = [name for name in self.table.columns if name not in own]
        self._picked = output_names([PICKED], [*self.table.columns, *own])[0]

    @property
    def column(self) -> str:
        """The column of the labels, where it is one."""
        return self.form.column or "label"

    def content(self, answers: Collection[Action]) -> bytes:
        """The bytes of the file with these answers; new labels get columns after those there were."""
        given = [label for each in answers for label in each.labels or ()]
        marked = tuple(dict.fromkeys((*self.form.columns, *given))) if self.form.columns else ()
        columns = [*self._kept, *(marked or [self.column]), self._picked]
        lines = (self._cells(each, marked) for each in answers)
        if self.path.suffix.lower() in _LINES:
            return b"".join(json_line(dict(zip(columns, cells, strict=True))) for cells in lines)
        delimiter = _DELIMITERS[self.path.suffix.lower()]
        return b"".join(delimited_lines([columns, *lines], delimiter))

    def _cells(self, answer: Action, marked: Sequence[str]) -> list[Cell]:
        row = dict(zip(self.table.columns, self.table.rows[answer.row], strict=True))
        given = answer.labels or ()
        cells: list[Cell] = [row[name] for name in self._kept]
        if marked:
            cells += [int(label in given) for label in marked]
        else:
            cells.append(list(given) if self.several else given[0])
        return [*cells, answer.picked]


class LabelSession:
    """The answers to the rows of one data file, each on the disk when `answer` returns.

    A journal takes a line for every action, and the labelled file is written anew from it, atomically: a kill
    between the two loses nothing, and what a kill left half written of a line was not answered yet.

    Attributes:
        labels: those to choose from, typed-in ones at the end.
        answers: the row and its action, in the order of the answers.
        skipped: rows that were not to be labelled.
        waiting: rows whose answer was taken back and that are to be asked before any other.
        resumed: how many answers an earlier process had taken.
    """

    def __init__(self, target: LabelledFile, beginning: Beginning) -> None:
        """Take what is asked for; `opened` reads what was answered before."""
        self.labels = list(beginning.labels)
        self.answers: dict[int, Action] = {}
        self.skipped: set[int] = set()
        self.waiting: list[Action] = []
        self.resumed = 0
        self._target, self._beginning = target, beginning
        self._actions: list[Action] = []  # those that stand
        self.folder = session_folder(target.path)
        self._journal = self.folder / JOURNAL

    @contextmanager
    def opened(self) -> Iterator[LabelSession]:
        """Resume or begin, and keep others from it meanwhile.

        Raises UserError where another process is at it, where its rows or labels are not these, where a file
        is in the way or was changed by someone else, or links lead out of the session's folder.
        """
        if not self._journal.exists() and os.path.lexists(self._target.path):
            raise UserError(
                f"{self._target.path} is there already, and no labelling that could go on",
                found=f"no {self._journal} beside it",
                fix="give --out another name, or move the file away",
            )
        require_no_links_out(self.folder)
        made = make_folder(self.folder)
        busy = f"another process is labelling into {self._target.path}"
        fix = "finish there first, or give --out another name"
        with ExitStack() as afterwards, held_alone(self.folder / "lock", busy, fix=fix):
            if self._journal.exists() and cut_to_whole_lines(self._journal, fix=_FIX):
                self._restore()
            else:
                self._write(with_format(to_content(self._beginning)))
            afterwards.callback(self._discard_nothing_done, made)
            yield self

    def answer(self, row: int, labels: Sequence[str] | None, picked: str) -> None:
        """Take a row's labels, None for a skipped row; both files are on the disk afterwards.

        Labels that are not known yet are added. Raises UserError when the disk is full.
        """
        action = Action(row, picked, None if labels is None else tuple(labels))
        self._write(to_content(action))
        self._apply(action)
        self._publish()

    def undo(self) -> Action | None:
        """Take the last action back, which is returned: its row waits to be asked again. None: there is none.

        An action of an earlier process can be taken back, too.
        """
        if not self._actions:
            return None
        last = self._actions[-1]
        action = Action(last.row, last.picked, undone=True)
        self._write(to_content(action))
        self._apply(action)
        self._publish()
        return last

    def _apply(self, action: Action) -> None:
        if action.undone:
            last = self._actions.pop()
            if last.row != action.row:
                raise WrongContentError(f"row {action.row} is undone where row {last.row} was the last")
            self.answers.pop(last.row, None)
            self.skipped.discard(last.row)
            self.waiting.insert(0, last)
            return
        self._actions.append(action)
        self.waiting = [each for each in self.waiting if each.row != action.row]
        if action.labels is None:
            self.skipped.add(action.row)
        else:
            self.answers[action.row] = action
            self.labels += [label for label in action.labels if label not in self.labels]

    def _publish(self) -> None:
        """Write the labelled file; while there is no answer there is none."""
        if self.answers:
            write_bytes(self._target.path, self._content())
        else:
            self._target.path.unlink(missing_ok=True)

    def _content(self) -> bytes:
        return self._target.content(list(self.answers.values()))

    def _write(self, content: dict[str, Any]) -> None:
        with explaining_full_disk(self._journal), self._journal.open("ab") as stream:
            stream.write(json.dumps(content).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _restore(self) -> None:
        """Do again what the journal says, and write the labelled file where a kill came before that."""
        beginning, actions = _read_journal(self._journal)
        self._require_same(beginning, actions)
        states = [self._content() if self.answers else b""]
        try:
            for action in actions:
                if action.row >= len(self._target.table):
                    raise WrongContentError(f"row {action.row} is beyond the data")
                self._apply(action)
                if action in actions[-2:]:
                    states.append(self._content() if self.answers else b"")
        except (IndexError, WrongContentError) as error:
            raise damaged(self._journal, str(error), fix=_FIX) from None
        self.resumed = len(self.answers)
        path = self._target.path
        if os.path.lexists(path) and _content_of(path) not in states[-2:]:
            raise UserError(
                f"{path} was changed since its rows were labelled, and going on would undo that",
                found="other content than the journal of the session gives",
                fix="give --out another name; rows that a run has learned from are not asked again",
            )
        self._publish()

    def _require_same(self, beginning: Beginning, actions: Sequence[Action]) -> None:
        """Raise UserError unless the journal is of these rows, and the labels it has used are known.

        So it goes on with a run that was trained meanwhile and has classes more.
        """
        asked, path = self._beginning, self._target.path
        used = dict.fromkeys(label for action in actions for label in action.labels or ())
        fix = "give --out another name, or repeat the command that the file was begun with"
        if beginning.data != asked.data:
            wrong, found = "other rows than those of --data, or their texts read in another way", ""
        elif beginning.several != asked.several:
            wrong = f"texts of {'several labels' if beginning.several else 'one label'} each"
            found = f"now {'several are' if asked.several else 'one is'} asked for"
        elif beginning.random != asked.random:
            wrong, found = f"rows picked with --random {beginning.random:g}", f"--random {asked.random:g}"
        elif not (set(used) <= set(asked.labels) or set(asked.labels) <= {*beginning.labels, *used}):
            wrong, found = f"the labels {listed(beginning.labels)}", f"now {listed(asked.labels)}"
        else:
            if not set(used) <= set(asked.labels):  # those of the run keep their places
                self.labels += [label for label in beginning.labels if label not in asked.labels]
            return
        raise UserError(f"{path} was begun with {wrong}", found=found or None, fix=fix)

    def _discard_nothing_done(self, made: Sequence[Path]) -> None:
        """Leave nothing of a session in which nothing was done but what was computed for it."""
        if self._actions or self.waiting:
            return
        self._journal.unlink(missing_ok=True)
        for folder in reversed(made):
            if not any(folder.iterdir()):
                folder.rmdir()


_FIX = "put the original back, or give --out another name"


def _same(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


def session_folder(target: Path) -> Path:
    """The folder of what is needed to go on labelling into a file; nothing else needs it."""
    return target.with_name(target.name + _ENDING)


def _content_of(path: Path) -> bytes | None:
    """What a file holds; None for what is none that a session wrote."""
    try:
        return read_regular(path, _LARGEST_JOURNAL)
    except OSError:
        return None


def _read_journal(path: Path) -> tuple[Beginning, list[Action]]:
    """What a journal holds. Raises UserError for one that is damaged or of a newer version."""
    try:
        content = read_regular(path, _LARGEST_JOURNAL).decode()
        first, *others = [parsed_json(line) for line in content.splitlines()]
        if isinstance(first, dict) and first.pop(FORMAT, CURRENT) != CURRENT:
            raise WrongContentError(f"another {FORMAT} than {CURRENT}")
        return from_content(Beginning, first), [from_content(Action, each, "line") for each in others]
    except (OSError, ValueError) as error:
        raise damaged(path, str(error), fix=_FIX) from None
