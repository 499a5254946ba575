"""What the verbs share: flags, the output streams, and a group that suggests the verb that was meant."""

from __future__ import annotations

import csv
import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

import click

if TYPE_CHECKING:
    from rich.console import Console

    from newsdesk.model.tokenizer import Truncation
    from newsdesk.prediction.abstention import DecisionRule
    from newsdesk.progress import Progress, Unit


AnyCallable = TypeVar("AnyCallable", bound=Callable[..., Any])


class Flag(click.Option):
    """An option that is an environment variable too, called as the flag is: ``NEWSDESK_PREDICT_INPUT``."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """The variable's value; None where it is not set or empty."""
        name = self.opts[-1].lstrip("-").replace("-", "_").upper()
        return os.environ.get(f"{ctx.auto_envvar_prefix}_{name}") or None


def flag(*names: str, **settings: Any) -> Callable[[AnyCallable], AnyCallable]:
    """``click.option`` for a :class:`Flag`."""
    return click.option(*names, cls=Flag, **settings)


def _ask_for_traceback(ctx: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked:
        ctx.ensure_object(dict)["debug"] = True


_DEBUG: dict[str, Any] = {
    "is_flag": True,
    "expose_value": False,
    "callback": _ask_for_traceback,
    "help": "Show the traceback of a failure.",
}
DEBUG_FLAG = flag("--debug", **_DEBUG)
JSON_FLAG = flag("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
_DATA_FLAGS = {
    "text": flag("--text", help="Text columns, comma-separated, in order.", metavar="COLUMNS"),
    "label": flag("--label", help="The column that holds the class.", metavar="COLUMN"),
    "template": flag("--template", help="How columns make one text, such as '{title}. {body}'."),
    "normaliser": flag("--normaliser", help="Text normaliser: none, whitespace or ag_news."),
    "learned_rows": flag(
        "--learned-rows",
        type=click.Choice(("error", "drop", "keep")),
        default="error",
        help="Rows of --data that the run learned from: refuse (the default), leave out, take all the same.",
    ),
    "unknown_labels": flag(
        "--unknown-labels",
        type=click.Choice(("error", "count-wrong", "drop")),
        help="Rows whose label is not a class of the run: refuse (the default), count as errors, leave out.",
    ),
}
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
}


class Verb(click.Command):
    """A command that takes --debug at its end as well, where one adds it when a failure came."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.params.append(Flag(["--debug"], **_DEBUG))


class Verbs(click.Group):
    """A group that answers a mistyped verb with the closest one, and lists verbs as they were written."""

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


def data_flags(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the named flags of those that say how a file's columns become texts and classes.

    The verb gets them as one mapping by name, ``columns``; the text columns as a tuple. ``dialect`` stands
    for the flags that say how text files are written, and is a ``newsdesk.data.dialect.Dialect``.
    """
    flags = {name: _DATA_FLAGS[name] for name in names if name != "dialect"}
    dialect_flags = _DIALECT_FLAGS if "dialect" in names else {}

    def add(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def verb(**given: Any) -> None:
            from newsdesk.data.dialect import Dialect

            columns = {name: given.pop(name) for name in flags}
            columns["text"] = names_of(columns["text"])
            if dialect_flags:
                columns["dialect"] = Dialect(**{name: given.pop(name) for name in dialect_flags})
            function(**given, columns=columns)

        for add_flag in reversed([*flags.values(), *dialect_flags.values()]):
            verb = add_flag(verb)
        return verb

    return add


def names_of(joined: str | None) -> tuple[str, ...] | None:
    """Comma-separated names, spaces around them dropped; a name with a comma stands in double quotes."""
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
    """Standard output for bytes. Ends the command quietly when its reader has seen enough."""
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
            """Work on: that nobody reads the progress any more is no reason to lose a training."""
            _discard_from_now_on(self.file.fileno())

    return Notes(stderr=True)


def note(console: Console, text: str) -> None:
    """Write a line to the console as it is, neither wrapped nor coloured nor taken for markup."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def shown_progress(console: Console | None = None) -> Iterator[Progress]:
    """What shows progress on ``console``, else on standard error; loaded when there is something to show."""
    with ExitStack() as shown:
        displays: list[Progress] = []

        def show(done: int, total: int | None, what: str, unit: Unit = "bytes", /) -> None:
            if not displays:
                from newsdesk.cli.display import ProgressDisplay

                display = ProgressDisplay(console or terminal())
                shown.callback(display.close)
                displays.append(display.show)
            displays[0](done, total, what, unit)

        yield show


def _discard_from_now_on(descriptor: int) -> None:
    """Lead a stream whose reader is gone nowhere, so that what it still buffers cannot fail at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
_PROMISES = {
    "abstain": "Leave texts unanswered, so that at most this share of the answered ones is wrong.",
    "confidence": "How surely --abstain keeps that, over the draw of the calibration rows; default: 0.95.",
    "sets": "Name candidates for each text, which contain the true class for this share of texts.",
    "off_topic": "Leave texts unanswered that are as untypical as this share of the calibration rows.",
}


def promise_flags(function: AnyCallable) -> AnyCallable:
    """Add the flags that ask for a promise; they come as ``promise``, the arguments of ``decision_rule``.

    Those not given are left out. --confidence alone raises click.UsageError.
    """

    @wraps(function)
    def with_promise(*arguments: Any, **others: Any) -> Any:
        given = {name: share for name in _PROMISES if (share := others.pop(name)) is not None}
        if "confidence" in given and "abstain" not in given:
            raise click.UsageError("--confidence goes with --abstain.")
        return function(*arguments, **others, promise=given)

    wrapped = cast(AnyCallable, with_promise)
    for name in reversed(_PROMISES):
        add = flag(f"--{name.replace('_', '-')}", type=_SHARE, metavar="SHARE", help=_PROMISES[name])
        wrapped = add(wrapped)
    return wrapped


def note_reading(read: Truncation | None, max_length: int | None, unreadable: int) -> None:
    """Say how many texts were cut, and how many had nothing in them; nothing where all were read whole."""
    if unreadable:
        texts = "text has" if unreadable == 1 else "texts have"
        why = "empty, or without a known token; --answer-empty labels such texts too"
        note(terminal(), f"{unreadable:,} {texts} no label: {why}")
    if read is not None and read.cut and max_length is not None:
        note(terminal(), read.describe(max_length))


def note_promise(rule: DecisionRule | None, unanswered: int, rows: int) -> None:
    """Say how many rows were left unanswered, and what was promised of the others; nothing without a rule."""
    if rule is None:
        return
    if rule.promise is not None:
        note(terminal(), f"{unanswered:,} of {rows:,} left unanswered")
    for line in rule.describe():
        note(terminal(), line)
