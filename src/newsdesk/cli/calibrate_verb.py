"""The verb calibrate: a temperature fitted anew, and kept with the rows that promises stand on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from newsdesk.calibration import Calibration


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@flag(
    "--data",
    multiple=True,
    help="Labelled rows that it did not learn from; may be given again. Default: a run's validation rows.",
    metavar="NAME|PATH",
)
@data_flags("text", "label", "template", "unknown_labels", "learned_rows", "dialect")
@JSON_FLAG
def calibrate(
    run: Path,
    data: tuple[str, ...],
    as_json: bool,
    columns: Mapping[str, Any],
) -> None:
    """Fit the temperature of a run and its exports, or of one export, on labelled rows.

    Promises of predict --abstain and --sets stand on these rows, and hold for texts like them.
    """
    from newsdesk import api
    from newsdesk.display import RowCounter

    console = terminal()
    with shown_fetching(console) as progress, RowCounter(console, "calibrating") as rows:
        made = api.calibrate(
            run,
            data,
            **columns,
            count=rows.count,
            start=rows.start,
            progress=progress,
            notice=lambda sentence: note(console, f"note: {sentence}"),
        )
    if as_json:
        say({str(folder): asdict(found) for folder, found in made.items()})
        return
    for folder, found in made.items():
        error, loss = found.expected_calibration_error, found.negative_log_likelihood
        say(
            [
                f"{folder}: temperature {found.temperature:.4f} by {found.source}",
                f"  calibration error {100 * error.before:.2f} points before, {100 * error.after:.2f} after",
                f"  negative log-likelihood {loss.before:.4f} nats a row before, {loss.after:.4f} after",
                *_for_other_programs(found),
            ]
        )


def _for_other_programs(found: Calibration) -> list[str]:
    """What transformers.js, optimum and pipelines make of an export that was calibrated anew."""
    if found.folded in (1.0, found.temperature):
        return []
    return [
        f"  other programs keep the export's own temperature, {found.folded:.4f}, which is in its weights; "
        "to give them this one: newsdesk export RUN --to KIND --overwrite --data FILE"
    ]
