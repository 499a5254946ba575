"""The command line: each verb a thin function over a plain one; only this package prints or exits."""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn

import click

from newsdesk import __version__, errors
from newsdesk.cli.audit import audit
from newsdesk.cli.data import data, models
from newsdesk.cli.evaluate import calibrate, compare, evaluate, report
from newsdesk.cli.label import label
from newsdesk.cli.labels import labels
from newsdesk.cli.predict import explain, predict
from newsdesk.cli.publish import export, push
from newsdesk.cli.serve import serve
from newsdesk.cli.shared import DEBUG_FLAG, Verbs
from newsdesk.cli.sweep import sweep
from newsdesk.cli.train import import_adapter, train
from newsdesk.errors import UserError
from newsdesk.training import rank


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "NEWSDESK"},
    epilog="Every flag is an environment variable too: NEWSDESK_TRAIN_EPOCHS is train --epochs.",
)
@click.version_option(__version__, prog_name="newsdesk", allow_from_autoenv=False)
@DEBUG_FLAG
def cli() -> None:
    """Fine-tune a text encoder with LoRA to classify news, evaluate it honestly, and deploy it."""


for verb in (
    train,
    sweep,
    evaluate,
    calibrate,
    compare,
    report,
    labels,
    predict,
    explain,
    export,
    serve,
    import_adapter,
    push,
    audit,
    label,
    models,
    data,
):
    cli.add_command(verb)


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 a failure we explain, 2 wrong usage, 130 interrupted."""
    asked: dict[str, bool] = {}
    errors.end_process = _end_process
    if isinstance(sys.stdout, io.TextIOWrapper):  # a broken argument cannot be written as UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(standalone_mode=False, obj=asked) or 0
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (UserError, OSError, MemoryError) as error:
        explained = error if isinstance(error, UserError) else _refusal_of_the_system(error)
        if asked.get("debug") or explained is None:
            raise
        number = rank()
        click.echo(f"process {number}:\n{explained}" if number else explained, err=True)
        code = 1
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = 130
    finally:
        errors.end_process = None
    raise SystemExit(code)


def _end_process(error: UserError) -> None:
    """Exit as for any failure, though a thread is in a library that does not come back."""
    click.echo(error, err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _refusal_of_the_system(error: OSError | MemoryError) -> UserError | None:
    """What the operating system did not allow, in our form; None for a library's own kind of OSError."""
    if isinstance(error, MemoryError):
        return UserError(
            "there is not enough memory for this",
            found=str(error) or "the system gives no more",
            fix="give smaller files, or free some memory",
        )
    if error.errno is None:
        return None
    return UserError(
        f"the system refuses to read or write {error.filename or 'a file or stream'}",
        found=error.strerror,
        fix="check its permissions and the free space, or choose another place",
    )
