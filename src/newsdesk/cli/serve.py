"""The verb that serves models over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from newsdesk.cli.shared import PATH, compute_small_products_alone, flag, promise_flags, say, verb

_AT_LEAST_ONE = click.IntRange(min=1)
_SECONDS = click.FloatRange(min=0)


@verb()
@click.argument("runs", nargs=-1, metavar="RUN [RUN ...]")
@flag("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0: for other machines.")
@flag("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@flag("--threads", type=_AT_LEAST_ONE, help="That compute; default: the physical cores.")
@flag(
    "--batch-tokens", type=_AT_LEAST_ONE, default=512, show_default=True, help="Tokens of a batch, at most."
)
@flag(
    "--max-waiting",
    type=_AT_LEAST_ONE,
    default=2048,
    show_default=True,
    help="Texts in the server at once; requests beyond are refused with status 429.",
)
@flag("--max-texts", type=_AT_LEAST_ONE, default=256, show_default=True, help="Of a request.")
@flag("--max-characters", type=_AT_LEAST_ONE, default=100_000, show_default=True, help="Of a text.")
@flag(
    "--max-body",
    type=_AT_LEAST_ONE,
    default=4 << 20,
    show_default=True,
    metavar="BYTES",
    help="Of a request.",
)
@flag("--max-connections", type=_AT_LEAST_ONE, default=1000, show_default=True, help="Open at once.")
@flag(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Within which a request is answered or refused.",
)
@flag(
    "--slow-client",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="That a client may take to send a request; then it is cut off.",
)
@flag(
    "--drain",
    type=_SECONDS,
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="That requests in progress may take once the server is told to stop.",
)
@flag(
    "--watch",
    type=_SECONDS,
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks at the folders for runs that are new, changed or gone; 0: never.",
)
@flag("--tokens", type=PATH, metavar="FILE", help="The tokens of whoever may use it; default: everyone may.")
@flag("--make-token", metavar="NAME", help="Print a new token, add its hash to --tokens, and end.")
@flag(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="TEXTS",
    help="Texts a second for each token; default: any number.",
)
@flag("--manage", is_flag=True, help="Let requests load models anew and remove them.")
@flag("--allowed-host", multiple=True, metavar="NAME", help="By which a loopback server may be called, too.")
@flag("--no-truncate", is_flag=True, help="Refuse texts that are too long in TEI's protocol, not cut them.")
@flag("--log-texts", is_flag=True, help="Log the texts of requests.")
@promise_flags
def serve(
    runs: tuple[str, ...], make_token: str | None, no_truncate: bool, promise: Mapping[str, Any], **given: Any
) -> None:
    """Serve classifiers over HTTP, to clients of several protocols.

    RUN is a run, an export, a classifier of newsdesk models list, one of these as NAME=RUN, or a folder of
    runs. A run with an ONNX export is served by that, without PyTorch. --abstain and the like say what is
    promised where a request asks for nothing else.
    """
    from newsdesk.errors import missing_package

    compute_small_products_alone()
    try:
        import fastapi  # noqa: F401
        import httptools  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_package(error.name or "fastapi", "serve", "serving") from None
    tokens: Path | None = given["tokens"]
    if make_token is not None:
        from newsdesk.serving.access import make_token as make

        if tokens is None:
            raise click.UsageError("--make-token needs --tokens FILE.")
        say([make(tokens, make_token, manage=given["manage"])])
        return
    if not runs:
        raise click.UsageError("Nothing to serve: give a run, an export, or a folder of them.")
    from newsdesk import errors
    from newsdesk.serving.server import serve as serve_models
    from newsdesk.serving.settings import Settings

    given["allowed_hosts"] = given.pop("allowed_host")
    settings = Settings(**given, truncates=not no_truncate, promise=promise)  # type: ignore[arg-type]
    errors.end_process = None  # one model of many may be late
    serve_models(runs, settings)
