"""The command line: each verb a thin function over a plain one; only this package prints or exits."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from newsdesk import __version__
from newsdesk.cli.named_verbs import data, models
from newsdesk.cli.run_verbs import evaluate, import_adapter, predict, train
from newsdesk.cli.shared import Verbs
from newsdesk.errors import UserError


@click.group(
    cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "NEWSDESK"}
)
@click.version_option(__version__, prog_name="newsdesk")
@click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
def cli(debug: bool) -> None:
    """Fine-tune a text encoder with LoRA to classify news, evaluate it honestly, and deploy it."""
    del debug  # main() looks for it: a failure may come before flags are parsed


for verb in (train, evaluate, predict, import_adapter, models, data):
    cli.add_command(verb)


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 a failure we explain, 2 wrong usage, 130 interrupted."""
    try:
        code = cli.main(standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        click.echo(error, err=True)
        code = 1
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = 130
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stderr.close()
        code = 0
    raise SystemExit(code)
