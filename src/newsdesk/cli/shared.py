"""What the verbs share: flags, the output streams, and a group that suggests the verb that was meant."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from newsdesk.sources.source import Progress

JSON_FLAG = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
_DATA_FLAGS = (
    click.option("--text", help="Text columns, comma-separated, in order.", metavar="COLUMNS"),
    click.option("--label", help="The column that holds the class.", metavar="COLUMN"),
    click.option("--template", help="How columns make one text, such as '{title}. {body}'."),
    click.option("--normaliser", help="Text normaliser: none, whitespace or ag_news."),
    click.option(
        "--header/--no-header", default=None, help="Whether csv files have a header; default: detected."
    ),
)


class Verbs(click.Group):
    """A group that answers a mistyped verb with the closest one, and lists verbs as they were written."""

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


def with_data_flags(command: Any) -> Any:
    """Add the flags that say how a file's columns become texts and classes."""
    for option in reversed(_DATA_FLAGS):
        command = option(command)
    return command


def names_of(joined: str | None) -> tuple[str, ...] | None:
    """Comma-separated names, spaces around them dropped."""
    return None if joined is None else tuple(name.strip() for name in joined.split(",") if name.strip())


def say(result: Any) -> None:
    """Print a result on standard output: lines as they are, anything else as one JSON document."""
    if isinstance(result, list) and all(isinstance(line, str) for line in result):
        click.echo("\n".join(result))
    else:
        click.echo(json.dumps(result, indent=2, ensure_ascii=False))


def terminal() -> Console:
    """Standard error, where progress and notes go: standard output is for results."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def shown_fetching(console: Console) -> Iterator[Progress]:
    """An observer that shows downloads on ``console``."""
    from newsdesk.display import fetching

    with fetching(console) as progress:
        yield progress
