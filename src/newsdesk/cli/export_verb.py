"""The verb export: a run becomes an artefact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from newsdesk.cli.shared import JSON_FLAG, Verb, data_flags, flag, note, say, shown_fetching, terminal

KINDS = ("merged", "onnx-fp32", "onnx-int8")


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@flag("--to", "kind", type=click.Choice(KINDS), required=True, help="What to make of it.")
@flag(
    "--out",
    type=click.Path(path_type=Path),
    help="The folder to write; default: RUN/export/KIND.",
    metavar="DIR",
)
@flag(
    "--data",
    help="Labelled rows to hold it against; default: the run's own validation rows.",
    metavar="NAME|PATH",
)
@flag("--overwrite", is_flag=True, help="Replace the artefact that is there.")
@data_flags("text", "label", "template", "unknown_labels", "learned_rows", "dialect")
@JSON_FLAG
def export(
    run: Path,
    kind: Any,
    out: Path | None,
    data: str | None,
    overwrite: bool,
    as_json: bool,
    columns: Mapping[str, Any],
) -> None:
    """Write a run as transformers or ONNX files, once they are found to do what the run does."""
    from newsdesk import api
    from newsdesk.inference.gate import render_progress, render_tried
    from newsdesk.stored import to_content

    console = terminal()
    with shown_fetching(console) as progress:
        made = api.export(
            run,
            kind,
            out=out,
            data=data,
            **columns,
            overwrite=overwrite,
            progress=progress,
            observe=lambda quality: note(console, render_progress(quality)),
            notice=lambda sentence: note(console, f"note: {sentence}"),
        )
    if as_json:
        say({"path": str(made.path), **to_content(made.quality)})
    else:
        say([*render_tried(made.quality.tried), f"export saved to {made.path}"])
