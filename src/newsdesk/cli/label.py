"""newsdesk label: rows of an unlabelled file, asked one by one in a terminal or a pipe."""

from __future__ import annotations

import json
import re
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from newsdesk.cli.keys import Keys
from newsdesk.cli.shared import (
    JSON_FLAG,
    PATH,
    RUN_IF_ANY,
    flag,
    names_of,
    note,
    reading_flags,
    say,
    shown_progress,
    terminal,
    verb,
)
from newsdesk.data.words import isolated, printable
from newsdesk.errors import UserError, counted, listed

if TYPE_CHECKING:
    from newsdesk.evaluation.labelling import Labelling, Pick

Command = Literal["skip", "undo", "quit"]
Reply = tuple[str, ...] | Command
"""What a person says of a row: its labels, or what to do instead."""

_LINES_SHOWN = 10  # of a text, before a key shows all of it
_LABELS_SHOWN, _LIKELIEST_SHOWN = 30, 9
_LONGEST_NAME = 100
_KEYS = "Enter as guessed, s skip, u undo, v all of the text, / by name, + new label, ? all labels, q quit"
_LETTERS: dict[str, Command] = {"s": "skip", "u": "undo", "q": "quit"}


@verb()
@RUN_IF_ANY
@flag("--data", required=True, help="Unlabelled rows: a file, or a folder.", metavar="PATH")
@flag("--out", type=PATH, required=True, help="The file of labelled rows to write.", metavar="FILE")
@flag("--labels", help="Without a run: the labels to choose from, comma-separated.", metavar="NAMES")
@flag(
    "--rows",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="How many to label, with those that --out has already.",
)
@flag(
    "--random",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="The share of the rows that is drawn at random, to measure on; 1: all.",
)
@flag(
    "--batch",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Rows after whose answers the next ones are chosen.",
)
@flag(
    "--pool",
    type=click.IntRange(min=1),
    default=20_000,
    show_default=True,
    help="Rows to choose from, drawn at random where the file has more.",
)
@flag(
    "--base",
    help="The encoder that embeds the texts, frozen; default: the run's, else all-MiniLM-L6-v2.",
    metavar="NAME|PATH",
)
@flag("--guess/--no-guess", default=True, show_default=True, help="Show what the model guesses.")
@flag("--label", help="The column to write labels to; default: the run's, else label.", metavar="COLUMN")
@reading_flags("task", "text", "template", "normaliser", "dialect")
@JSON_FLAG
def label(
    run: Path | None,
    data: str,
    out: Path,
    labels: str | None,
    rows: int,
    random: float,
    batch: int,
    pool: int,
    base: str | None,
    guess: bool,
    task: str | None,
    as_json: bool,
    **reading: Any,
) -> None:
    """Label rows of your own, those first that teach a classifier most.

    RUN is a run or an export that says what it is unsure of; without one, name the labels with --labels. In a
    terminal a key is an answer; from a pipe each line is one. Every answer is on the disk before the next row
    is shown, and the same command goes on.
    """
    from newsdesk.evaluation.labelling import Wanted, opened_labelling

    names = names_of(labels) or ()
    if run is None and len(set(names)) < 1 + (task != "multi"):
        raise click.UsageError("Give a RUN, or the labels to choose from: --labels world,sport.")
    if run is not None and (names or task):
        raise click.UsageError("A run has its labels: leave --labels and --task out (+ adds a label).")
    wanted = Wanted(rows, random, batch, pool, base)
    with (
        shown_progress() as progress,
        opened_labelling(
            run,
            data,
            out,
            wanted,
            labels=tuple(dict.fromkeys(names)),
            task="multi" if task == "multi" else "single",
            progress=progress,
            **reading,
        ) as labelling,
    ):
        asker: Asker = _Json() if as_json else _Screen(guess) if sys.stdin.isatty() else _Lines(guess)
        to_the_end, interrupted = False, False
        try:
            asker.begin(labelling)
            to_the_end = _ask(labelling, asker)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            asker.end()
        _tell(labelling, out, run, to_the_end=to_the_end, as_json=as_json)
    if interrupted:
        click.get_current_context().exit(130)


def _ask(labelling: Labelling, asker: Asker) -> bool:
    """Ask row after row until enough are labelled, none is left, or, which is False, a person ends it."""
    while (pick := labelling.question()) is not None:
        reply = asker.ask(pick, labelling)
        if reply == "quit":
            return False
        if reply == "undo":
            if not labelling.undo():
                asker.tell("there is no answer to take back")
        else:
            labelling.answer(pick, None if reply == "skip" else reply)
    return True


def _tell(labelling: Labelling, out: Path, run: Path | None, *, to_the_end: bool, as_json: bool) -> None:
    """Say how many rows are labelled, and what to do next."""
    session = labelling.session
    picked: dict[str, int] = {}
    for action in session.answers.values():
        picked[action.picked] = picked.get(action.picked, 0) + 1
    if as_json:
        counts = {"labelled": len(session.answers), "skipped": len(session.skipped), **picked}
        say([json.dumps({"out": str(out), **counts})])
        return
    how = ", ".join(f"{count:,} {why}" for why, count in picked.items())
    lines = [f"{len(session.answers):,} of {counted(labelling.wanted.rows, 'row')} labelled: {how or 'none'}"]
    if session.skipped:
        lines.append(f"{counted(len(session.skipped), 'row')} skipped")
    if session.answers:
        lines.append(f"saved to {out}")
    if not to_the_end:
        lines.append("the same command goes on where this one stopped")
    elif not session.answers:
        lines.append("no row is left to ask")
    else:
        lines.append(f"learn from them: {shlex.join(_training(labelling, out, run))}")
        more = f"label more: the same command with --rows {2 * labelling.wanted.rows}"
        left = len(session.answers) >= labelling.wanted.rows
        lines.append(more if left else "no row is left to ask")
    say(lines)


def _training(labelling: Labelling, out: Path, run: Path | None) -> list[str]:
    """The command that learns from the labelled rows."""
    rows, text = labelling.rows, labelling.rows.layout.text_columns
    command = ["newsdesk", "train", *(["--from", str(run)] if labelling.grows else []), "--data", str(out)]
    if rows.form.columns:
        command += ["--label-columns", ",".join(labelling.session.labels)]
    elif not labelling.grows or rows.form.column is None:
        command += ["--label", rows.form.column or "label"]
    if rows.several and not labelling.grows and not rows.form.columns:
        command += ["--task", "multi"]
    if not labelling.grows:
        command += ["--text", ",".join(text)]
    return [*command, "--out", "RUN"]


# --- asking


@dataclass
class Asker(ABC):
    """Asks a person, or a program, for the labels of a row."""

    shows_guess: bool = True

    def begin(self, labelling: Labelling) -> None:
        """Say first what there is to label."""
        from newsdesk.evaluation.labelling import describe_left_out

        note(describe_left_out(labelling.rows))
        if labelling.session.resumed:
            note(f"going on after {counted(labelling.session.resumed, 'row')} labelled before")

    @abstractmethod
    def ask(self, pick: Pick, labelling: Labelling) -> Reply:
        """Show a row and return what is said of it."""

    def end(self) -> None:  # noqa: B027  # a pipe is left as it is
        """Leave the terminal as it was."""

    def tell(self, sentence: str) -> None:
        """Tell the person something in between."""
        note(sentence)


@dataclass
class _Lines(Asker):
    """Shows rows on standard error and reads one answer a line; what is no answer ends the command."""

    _answers: int = 0

    def ask(self, pick: Pick, labelling: Labelling) -> Reply:
        self._show(pick, labelling)
        line = sys.stdin.buffer.readline()
        if not line:
            return "quit"
        self._answers += 1
        entry = line.decode(errors="replace").strip()
        try:
            return reply_to(entry, pick, labelling.session.labels, several=labelling.rows.several)
        except ValueError as error:
            raise UserError(
                f"answer {self._answers} on standard input: {error}",
                found=f"{entry!r}; the labels are {listed(labelling.session.labels)}",
                fix="give the number or the name of a label, + NAME for a new one, or s, u or q",
            ) from None

    def _show(self, pick: Pick, labelling: Labelling) -> None:
        for line in rendered(pick, labelling, width=80, shows_guess=self.shows_guess):
            note(line)


@dataclass
class _Json(_Lines):
    """Writes each row as a line of JSON on standard output, for programs that answer line by line."""

    def begin(self, labelling: Labelling) -> None:
        """Write nothing but rows."""

    def _show(self, pick: Pick, labelling: Labelling) -> None:
        session = labelling.session
        number = {"number": len(session.answers) + 1, "of": labelling.wanted.rows}
        question = {**number, **asdict(pick), "choices": session.labels}
        say([json.dumps(question, ensure_ascii=False)])


class _Screen(Asker):
    """Shows rows in a terminal, where a key is an answer."""

    def begin(self, labelling: Labelling) -> None:
        super().begin(labelling)
        self._keys = Keys()
        note(f"keys: the number of a label, {_KEYS}")

    def end(self) -> None:
        self._keys.restore()

    def ask(self, pick: Pick, labelling: Labelling) -> Reply:
        width = terminal().width
        for line in rendered(pick, labelling, width=width, shows_guess=self.shows_guess):
            note(line)
        given = list(pick.labels) if self.shows_guess else []
        while True:
            reply = self._reply(pick, labelling, given)
            if reply is not None:
                return reply

    def _reply(self, pick: Pick, labelling: Labelling, given: list[str]) -> Reply | None:
        """What one key, or a few, say; None where it is no answer yet. ``given``: the labels toggled on."""
        labels, several = labelling.session.labels, labelling.rows.several
        key = self._keys.read()
        if key in _LETTERS:
            note(_LETTERS[key])
            return _LETTERS[key]
        if key == "\n":
            if several or given:
                note(", ".join(given) or "no label")
                return tuple(given)
            note("there is no guess to take: press the number of a label")
        elif key == "\x04":
            return "quit"
        elif key == "v":
            for line in wrapped(pick.text, terminal().width):
                note(line)
        elif key == "?":
            for line in menu(labels, range(len(labels)), terminal().width):
                note(line)
            note(f"keys: the number of a label, {_KEYS}")
        elif key.isdecimal() or key in ("/", "+"):
            entry = self._number(key, len(labels)) if key.isdecimal() else self._keys.line(f"{key} ")
            with self._explaining():
                return self._named(entry, key, labelling, given)
        return None

    def _named(self, entry: str | None, key: str, labelling: Labelling, given: list[str]) -> Reply | None:
        """The label that was typed; where there may be several, it is toggled instead. Raises ValueError."""
        if not entry:
            return None
        labels = labelling.session.labels
        if key.isdecimal():  # a place, even where labels are called by numbers
            if not 0 < int(entry) <= len(labels):
                raise ValueError(f"there is no label {entry}")
            name = labels[int(entry) - 1]
        else:
            name = new_label(entry, labels) if key == "+" else label_named(entry, labels)
        if not labelling.rows.several:
            note(isolated(name))
            return (name,)
        if name in given:
            given.remove(name)
        else:
            given.append(name)
        note(f"{', '.join(map(isolated, given)) or 'no label'}  (Enter: that is all)")
        return None

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            note(str(error))

    def _number(self, digit: str, most: int) -> str | None:
        """A number of as many digits as it takes to tell it from others; Enter ends it before."""
        typed = digit
        while 10 * int(typed) <= most:
            self._keys.show(f"\r{typed}")
            key = self._keys.read()
            if key == "\n":
                break
            if not key.isdecimal():
                self._keys.show("\r \r")
                return None
            typed += key
        self._keys.show("\r")
        return typed


# --- what is typed


def reply_to(entry: str, pick: Pick, labels: Sequence[str], *, several: bool) -> Reply:
    """What a line says of a row: ``s``, ``u``, ``q``, the number or name of a label, or ``+ NAME``.

    A name may be cut short where no other begins so; nothing is as guessed. Where a text may have several
    labels, they stand between commas or semicolons, and ``-`` is none. Raises ValueError for anything else.
    """
    if entry in _LETTERS:
        return _LETTERS[entry]
    if not entry:
        if pick.guess is None:
            raise ValueError("the line is empty, and there is no guess that it could take")
        return pick.labels
    if entry == "-" and several:
        return ()
    if not several:
        return (_one(entry, labels),)
    with suppress(ValueError):  # whose name may hold a comma
        return (label_named(entry, labels),)
    parts = entry.split() if re.fullmatch(r"[\d\s]+", entry) else re.split("[;,]", entry)
    return tuple(dict.fromkeys(_one(part.strip(), labels) for part in parts if part.strip()))


def _one(entry: str, labels: Sequence[str]) -> str:
    return new_label(entry[1:], labels) if entry.startswith("+") else label_named(entry, labels)


def label_named(entry: str, labels: Sequence[str]) -> str:
    """The label of that name or number from 1, or the only one whose name begins so. Raises ValueError."""
    from newsdesk.data.labels import LabelMatcher, folded

    found = LabelMatcher(labels).match(entry)
    if found is not None:
        return labels[found]
    if entry.isdecimal() and 0 < int(entry) <= len(labels):
        return labels[int(entry) - 1]
    begun = [name for name in labels if folded(name).startswith(folded(entry))] if entry else []
    if len(begun) == 1:
        return begun[0]
    raise ValueError(
        f"{entry!r:.60} could be {listed(begun, 5)}" if begun else f"there is no label {entry!r:.60}"
    )


def new_label(entry: str, labels: Sequence[str]) -> str:
    """A new label of that name, or the known one that is called so. Raises ValueError for no name."""
    from newsdesk.data.labels import LabelMatcher, labels_in, spelling

    name = spelling(entry.strip())
    found = LabelMatcher(labels).match(name)
    if found is not None:
        return labels[found]
    if not name or not name.isprintable() or len(name) > _LONGEST_NAME or labels_in(name) != (name,):
        raise ValueError(f"{entry.strip()!r:.60} cannot be the name of a label")
    return name


# --- what is shown


def rendered(pick: Pick, labelling: Labelling, *, width: int, shows_guess: bool) -> list[str]:
    """The lines of a question: where the row is from, its text, the labels, and the guess."""
    session, labels = labelling.session, labelling.session.labels
    text = wrapped(pick.text, width)
    if len(text) > _LINES_SHOWN:
        text = [*text[: _LINES_SHOWN - 1], f"  ... (v shows all {len(pick.text):,} characters)"]
    lines = [
        "",
        f"{len(session.answers) + 1} of {labelling.wanted.rows:,}, line {pick.line:,}, {pick.picked}",
        *text,
    ]
    likely = [labels.index(name) for name in pick.guess or ()][:_LIKELIEST_SHOWN] if shows_guess else []
    if len(labels) <= _LABELS_SHOWN:
        lines += menu(labels, range(len(labels)), width)
    else:
        lines += menu(labels, likely or range(_LIKELIEST_SHOWN), width)
        lines.append(f"  ? shows all {len(labels):,} labels")
    if pick.guess is not None and shows_guess:
        named = pick.labels if labelling.rows.several else tuple(pick.guess)[:2]
        guesses = ", ".join(f"{_shown(name)} {pick.guess[name]:.0%}" for name in named)
        lines.append(f"  guess: {guesses or 'no label'}")
    return lines


def menu(labels: Sequence[str], which: Sequence[int], width: int) -> list[str]:
    """The labels with their numbers, as many in a line as fit."""
    from rich.cells import cell_len

    entries = [f"{place + 1} {_shown(labels[place])}" for place in which]
    lines, line = [], ""
    for entry in entries:
        if line and cell_len(line) + 3 + cell_len(entry) > width - 2:
            lines.append(line)
            line = ""
        line += f"   {entry}" if line else f"  {entry}"
    return [*lines, line] if line else lines


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most ``width`` cells, harmless to a terminal, each reading in its direction."""
    from rich.console import Console
    from rich.text import Text

    shown = Text(printable(" ".join(text.split())))
    lines = shown.wrap(Console(width=width), max(10, width - 4))
    return [f"  {isolated(line.plain.rstrip())}" for line in lines]


def _shown(name: str) -> str:
    from newsdesk.cli.tables import cut

    return cut(name, 40)
