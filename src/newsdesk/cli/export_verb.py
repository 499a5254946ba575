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
    help="Labelled rows to compare on; default: validation rows, filled up with training rows below 1,000.",
    metavar="NAME|PATH",
)
@flag("--max-loss", type=float, metavar="POINTS", help="Accuracy that onnx-int8 may lose; default: 0.2.")
@flag(
    "--max-loss-upper",
    type=float,
    metavar="POINTS",
    help="Accuracy that it may lose at the upper end of the 95 % interval; default: 0.5.",
)
@flag("--overwrite", is_flag=True, help="Replace the artefact that is there.")
@data_flags("text", "label", "template", "unknown_labels", "learned_rows", "dialect")
@JSON_FLAG
def export(
    run: Path,
    kind: Any,
    out: Path | None,
    data: str | None,
    max_loss: float | None,
    max_loss_upper: float | None,
    overwrite: bool,
    as_json: bool,
    columns: Mapping[str, Any],
) -> None:
    """Write a run as transformers or ONNX files, once they are found to do what the run does."""
    from newsdesk import api
    from newsdesk.inference.gate import render_progress, render_tried
    from newsdesk.stored import to_content

    limits = {"max_loss": max_loss, "max_loss_upper": max_loss_upper}
    given: dict[str, Any] = {name: points for name, points in limits.items() if points is not None}
    if given and kind != "onnx-int8":
        raise click.UsageError(
            "--max-loss and --max-loss-upper go with --to onnx-int8; other kinds lose nothing."
        )
    console = terminal()
    with shown_fetching(console) as progress:
        made = api.export(
            run,
            kind,
            out=out,
            data=data,
            **columns,
            **given,
            overwrite=overwrite,
            progress=progress,
            observe=lambda quality: note(console, render_progress(quality)),
            notice=lambda sentence: note(console, f"note: {sentence}"),
        )
    if as_json:
        say({"path": str(made.path), **to_content(made.quality)})
    else:
        quality = made.quality
        table = render_tried(quality.tried, quality.rows, quality.limits)
        say([*table, f"export saved to {made.path}"])
