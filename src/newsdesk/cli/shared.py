"""What the verbs share: flags, the output streams, and a group that suggests the verb that was meant."""

from __future__ import annotations

import csv
import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

if TYPE_CHECKING:
    from rich.console import Console

    from newsdesk.progress import Progress, Unit

Function = Callable[..., Any]


class Flag(click.Option):
    """An option that is an environment variable too, named like the flag: ``NEWSDESK_PREDICT_INPUT``."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """The variable's value; None where it is not set or empty."""
        name = self.opts[-1].lstrip("-").replace("-", "_").upper()
        return os.environ.get(f"{ctx.auto_envvar_prefix}_{name}") or None


def _ask_for_traceback(ctx: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked:
        ctx.ensure_object(dict)["debug"] = True


_DEBUG: dict[str, Any] = {
    "is_flag": True,
    "expose_value": False,
    "callback": _ask_for_traceback,
    "help": "Show the traceback of a failure.",
}


class Verb(click.Command):
    """A command that takes --debug at its end as well, where people add it after a failure."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.params.append(Flag(["--debug"], **_DEBUG))


class Verbs(click.Group):
    """A group that answers a mistyped verb with the closest one, and lists verbs in the order given."""

    command_class = Verb

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb. Raises click.UsageError, with a suggestion, when there is none."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], self.commands, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else f" Verbs: {', '.join(self.commands)}."
            raise click.UsageError(f"No such verb {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Verbs in the order of a run's life, not of the alphabet."""
        return list(self.commands)


verb = partial(click.command, cls=Verb)
flag = partial(click.option, cls=Flag)
PATH = click.Path(path_type=Path)


def _noting_names(_context: click.Context, _argument: click.Parameter, given: Any) -> Any:
    """Say what a ready-made classifier's licence asks, or that a folder of its name is used instead."""
    from newsdesk.runs.ready_made import named

    for path in dict.fromkeys(filter(None, given if isinstance(given, tuple) else (given,))):
        if known := named(path):
            instead = f"{path} here is used, not the ready-made classifier of that name"
            click.echo(f"note: {instead if path.exists() else known.notice}", err=True)
    return given


RUN = click.argument("run", type=PATH, callback=_noting_names)
RUN_IF_ANY = click.argument("run", required=False, type=PATH, callback=_noting_names)
RUNS = click.argument("runs", nargs=-1, type=PATH, metavar="RUN RUN [RUN ...]", callback=_noting_names)
DEBUG_FLAG = flag("--debug", **_DEBUG)
JSON_FLAG = flag("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
_READING_FLAGS = {
    "text": flag(
        "--text",
        callback=lambda _context, _flag, joined: names_of(joined),
        help="Text columns, comma-separated, in order.",
        metavar="COLUMNS",
    ),
    "label": flag("--label", help="The column that holds the class.", metavar="COLUMN"),
    "label_separator": flag(
        "--label-separator", help="Between the labels of a cell, such as ';'.", metavar="TEXT"
    ),
    "label_columns": flag(
        "--label-columns",
        callback=lambda _context, _flag, joined: names_of(joined),
        help="0/1 columns, a label each, comma-separated.",
        metavar="COLUMNS",
    ),
    "task": flag(
        "--task",
        type=click.Choice(("auto", "single", "multi")),
        help="Whether a text has one label or may have several; default: as the file and these flags say.",
    ),
    "template": flag("--template", help="How columns make one text, such as '{title}. {body}'."),
    "normaliser": flag("--normaliser", help="Text normaliser: none, whitespace or ag_news."),
    "learned_rows": flag(
        "--learned-rows",
        type=click.Choice(("error", "drop", "keep")),
        default="error",
        help="Rows of --data that the run learned from: refuse (the default), leave out, use anyway.",
    ),
    "unknown_labels": flag(
        "--unknown-labels",
        type=click.Choice(("error", "count-wrong", "drop")),
        help="Rows whose label is not a class of the run: refuse (the default), count as errors, leave out.",
    ),
}
_OF_LABELS = ("label", "label_separator", "label_columns")
_DIALECT_FLAGS = {
    "header": flag(
        "--header/--no-header",
        default=None,
        help="Whether the first row names the columns; default: detected.",
    ),
    "delimiter": flag(
        "--delimiter", help="Between two cells: , ; | or tab; default: detected.", metavar="CHARACTER"
    ),
    "quote": flag("--quote", help="Around cells: \", ' or none; default: detected.", metavar="CHARACTER"),
    "encoding": flag("--encoding", help="Of text files, such as cp1252; default: detected.", metavar="NAME"),
    "max_characters": flag(
        "--max-characters",
        type=click.IntRange(1, 4_000_000),
        help="Of a cell; rows beyond are bad rows; default: 1,000,000.",
    ),
    "max_columns": flag(
        "--max-columns",
        type=click.IntRange(min=1),
        help="Of a file, and keys of a JSON object; rows beyond are bad rows; default: 1,000.",
    ),
    "max_unpacked": flag(
        "--max-unpacked",
        type=click.IntRange(min=1),
        help="What a compressed file may grow to; default: a hundredfold, or 16 MiB.",
        metavar="BYTES",
    ),
}
_PROMISE_FLAGS = {
    "abstain": "Leave texts unanswered, so that at most this share of the answered ones is wrong.",
    "confidence": "How surely --abstain keeps that, over the draw of the calibration rows; default: 0.95.",
    "sets": "Name candidates for each text, which contain the true class for this share of texts.",
    "off_topic": "Leave texts unanswered that are as untypical as this share of the calibration rows.",
}


_WATCH_FLAGS = (
    flag(
        "--watch",
        "folder",
        type=PATH,
        help="A folder: each file dropped into it is classified into the folder --output, once.",
        metavar="FOLDER",
    ),
    flag("--once", is_flag=True, help="With --watch: what is there, then end; exit code 1 if a file failed."),
    flag(
        "--interval",
        type=click.FloatRange(min=0, min_open=True),
        help="With --watch: seconds between two looks; default: 1.",
        metavar="SECONDS",
    ),
    flag(
        "--settle",
        type=click.FloatRange(min=0),
        help="With --watch: seconds for which a file must not have changed; default: 1.",
        metavar="SECONDS",
    ),
)


def reading_flags(*names: str) -> Callable[[Function], Function]:
    """Add the named flags that say how a file's columns become texts and classes.

    ``label`` stands for all that say where labels are: --label, --label-separator and --label-columns.
    ``dialect`` stands for the flags that say how text files are written; the verb gets them as one
    ``newsdesk.data.dialect.Dialect``.
    """

    def add(function: Function) -> Function:
        def with_dialect(**given: Any) -> Any:
            from newsdesk.data.dialect import Dialect

            dialect = Dialect(**{name: given.pop(name) for name in _DIALECT_FLAGS})
            return function(**given, dialect=dialect)

        every = [each for name in names for each in (_OF_LABELS if name == "label" else (name,))]
        flags = [_READING_FLAGS[name] for name in every if name != "dialect"]
        if "dialect" not in names:
            return _added(function, flags)
        return _added(wraps(function)(with_dialect), [*flags, *_DIALECT_FLAGS.values()])

    return add


def promise_flags(function: Function) -> Function:
    """Add the flags that ask for a promise; they come as ``promise``, the arguments of ``decision_rule``.

    Those not given are left out. --confidence alone raises click.UsageError.
    """

    @wraps(function)
    def with_promise(**given: Any) -> Any:
        asked = {name: given.pop(name) for name in _PROMISE_FLAGS}
        promise = {name: share for name, share in asked.items() if share is not None}
        if "confidence" in promise and "abstain" not in promise:
            raise click.UsageError("--confidence needs --abstain.")
        return function(**given, promise=promise)

    flags = [
        flag(f"--{name.replace('_', '-')}", type=_SHARE, metavar="SHARE", help=text)
        for name, text in _PROMISE_FLAGS.items()
    ]
    return _added(with_promise, flags)


def watch_flags(function: Function) -> Function:
    """Add the flags of a watched folder; they come as ``watching``, arguments of ``watch_folder``.

    It is empty without --watch. Raises click.UsageError where they do not go with each other, or with others.
    """

    @wraps(function)
    def with_watching(**given: Any) -> Any:
        asked = {name: given.pop(name) for name in ("folder", "once", "interval", "settle")}
        watching = {name: value for name, value in asked.items() if value}
        if watching and not asked["folder"]:
            raise click.UsageError(f"--{next(iter(watching))} needs --watch.")
        others = [
            given["texts"],
            given["source"],
            given["as_json"],
            given["rejects"],
            given["engine"] == "ray",
        ]
        if watching and (any(others) or given["output"] in (None, "-")):
            raise click.UsageError(
                "--watch FOLDER takes --output FOLDER; texts, --input, --json, --rejects and --engine ray do "
                "not go with it (bad rows go beside each output)."
            )
        if asked["settle"] is not None:
            watching["settle"] = asked["settle"]
        return function(**given, watching=watching)

    return _added(with_watching, _WATCH_FLAGS)


def _added(function: Function, flags: Sequence[Callable[[Function], Function]]) -> Function:
    for add in reversed(flags):
        function = add(function)
    return function


def names_of(joined: str | None) -> tuple[str, ...] | None:
    """Comma-separated names without the spaces around them; a name with a comma is put in double quotes."""
    if joined is None:
        return None
    names = next(csv.reader([joined], skipinitialspace=True), [])
    return tuple(name.strip() for name in names if name.strip())


def say(result: Any) -> None:
    """Print a result on standard output: lines as they are, anything else as one JSON document."""
    with standard_output():
        if isinstance(result, list) and all(isinstance(line, str) for line in result):
            click.echo("\n".join(result))
        else:
            click.echo(json.dumps(result, indent=2, ensure_ascii=False))


@contextmanager
def standard_output() -> Iterator[BinaryIO]:
    """Standard output for bytes. Ends the command quietly when its reader has closed the pipe."""
    try:
        yield sys.stdout.buffer
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_from_now_on(sys.stdout.fileno())
        raise click.exceptions.Exit(0) from None


def terminal() -> Console:
    """Standard error, where progress and notes go: standard output is for results."""
    from rich.console import Console

    class Notes(Console):
        def on_broken_pipe(self) -> None:
            """Continue: that nobody reads the progress any more is no reason to lose a training."""
            _discard_from_now_on(self.file.fileno())

    return Notes(stderr=True)


def compute_small_products_alone() -> None:
    """Let numpy compute with one thread, where it is not imported yet and nothing else is said.

    Beside the threads of a graph, others for the small products of a batch would only spin.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def note(text: str, console: Console | None = None) -> None:
    """Write a line on standard error as it is, neither wrapped nor coloured nor read as markup."""
    (console or terminal()).print(text, highlight=False, markup=False, soft_wrap=True)


def notice(sentence: str) -> None:
    """Note what a person should know of rows and labels."""
    note(f"note: {sentence}")


@contextmanager
def shown_progress(console: Console | None = None) -> Iterator[Progress]:
    """What shows progress on ``console``, else on standard error; loaded when there is something to show."""
    with ExitStack() as shown:
        displays: list[Progress] = []

        def show(done: int, total: int | None, what: str, unit: Unit = "bytes", /) -> None:
            if not displays:
                from newsdesk.cli.display import ProgressDisplay

                displays.append(shown.enter_context(ProgressDisplay(console or terminal())).show)
            displays[0](done, total, what, unit)

        yield show


def _discard_from_now_on(descriptor: int) -> None:
    """Redirect a stream without a reader to nowhere, so that what it still buffers cannot fail at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
