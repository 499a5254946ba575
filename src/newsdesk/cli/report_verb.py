"""The verb report: what is known of a run becomes one page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from newsdesk.cli.shared import (
    JSON_FLAG,
    Verb,
    data_flags,
    flag,
    note,
    say,
    shown_fetching,
    terminal,
)


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@flag("--split", default="test", show_default=True, help="Which evaluation to tell of.")
@flag(
    "--data",
    help="Its rows; the run is evaluated on them first where it was not yet. Default: as evaluated.",
    metavar="NAME|PATH",
)
@flag(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write; default: RUN/report-SPLIT.html.",
    metavar="FILE",
)
@flag(
    "--plots",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the charts here, too, as SVG and PNG.",
    metavar="FOLDER",
)
@flag("--without-texts", is_flag=True, help="Quote none of the texts: many corpora may not be copied.")
@data_flags("text", "label", "template", "unknown_labels", "dialect")
@JSON_FLAG
def report(
    run: Path,
    split: str,
    data: str | None,
    out: Path | None,
    plots: Path | None,
    without_texts: bool,
    as_json: bool,
    columns: Mapping[str, Any],
) -> None:
    """Write a run's figures, charts and errors as one HTML file."""
    from newsdesk import api
    from newsdesk.display import RowCounter

    console = terminal()
    with shown_fetching(console) as progress, RowCounter(console, "evaluating") as rows:
        written = api.report(
            run,
            split=split,
            data=data,
            out=out,
            plots=plots,
            with_texts=not without_texts,
            progress=progress,
            **columns,
            count=rows.count,
            start=rows.start,
        )
    size = written.path.stat().st_size
    if as_json:
        files = [str(path) for path in written.plots]
        say({"report": str(written.path), "bytes": size, "plots": files, "missing": written.gaps})
        return
    for gap in written.gaps:
        note(console, f"note: {gap}")
    say([f"report saved to {written.path} ({size / 1e3:,.0f} kB)"])
