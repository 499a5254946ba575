"""The verb that shows the labels of a run, and changes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from newsdesk.cli.shared import JSON_FLAG, PATH, RUN, flag, notice, say, shown_progress, verb
from newsdesk.errors import UserError, counted, listed

if TYPE_CHECKING:
    from newsdesk.runs.folder import RunFolder

_MERGED = (
    "a merge is not exact without training: the probability of one label for two is a sum, which no row of "
    "the head gives"
)


@verb()
@RUN
@flag("--rename", multiple=True, help="Call a label otherwise; may be repeated.", metavar="OLD=NEW")
@flag("--retire", multiple=True, help="Drop a label; may be repeated.", metavar="LABEL")
@flag("--merge", multiple=True, help="Refused, with what to do instead: it needs training.", metavar="A,B=C")
@flag("--out", type=PATH, help="The run folder to write.", metavar="RUN")
@flag("--overwrite", is_flag=True, help="Replace the run that is at --out; without --out RUN itself.")
@JSON_FLAG
def labels(
    run: Path,
    rename: tuple[str, ...],
    retire: tuple[str, ...],
    merge: tuple[str, ...],
    out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Show the labels of a run, or rename and retire some, exactly and without training."""
    from newsdesk.reports.model_card import refresh_card
    from newsdesk.runs.folder import open_run
    from newsdesk.runs.label_changes import LabelChanges, change_labels

    if merge:
        raise UserError(
            _MERGED,
            found=f"--merge {listed(merge)}",
            fix="give the rows of both the one label, and train again: newsdesk train --data FILE --out RUN",
        )
    found = open_run(run)
    if not (rename or retire):
        if out is not None or overwrite:
            raise click.UsageError("Nothing to change: give --rename OLD=NEW or --retire LABEL.")
        _show(found, as_json=as_json)
        return
    if out is None and not overwrite:
        raise click.UsageError(
            "Name a folder for the changed run with --out, or change RUN with --overwrite."
        )
    changes = LabelChanges.of(found.labels, rename, retire)
    made, notes = change_labels(found, out or found.path, changes, overwrite=overwrite)
    refresh_card(made)
    if as_json:
        say({"run": str(made.path), "labels": list(made.labels.names), "notes": notes})
        return
    for note in notes:
        notice(note)
    say([f"run saved to {made.path}; its labels are {', '.join(made.labels.names)}"])


def _show(run: RunFolder, *, as_json: bool) -> None:
    """The labels with their rows, as far as these are known."""
    from newsdesk.cli.tables import render_columns
    from newsdesk.evaluation.rows import known_rows
    from newsdesk.runs.calibration import read_calibration, read_held_out_rows

    names, columns = run.labels.names, dict[str, list[Any]]()
    try:
        with shown_progress() as progress:
            data = known_rows(
                run, purpose="counts need", otherwise="do without", offline=True, progress=progress
            )
        columns = {"training rows": data.train.label_rows().tolist()}
        if len(data.validation):
            columns["validation rows"] = data.validation.label_rows().tolist()
    except UserError as error:
        notice(f"rows are not counted: {error.wrong}")
        held_out = read_held_out_rows(run.path, run.labels)
        if held_out is not None:
            is_of = (
                held_out.labels.T if held_out.is_multi else [held_out.labels == i for i in range(len(names))]
            )
            columns = {"held-out rows": [int(rows.sum()) for rows in is_of]}
    calibration = read_calibration(run.path, run.labels)
    if calibration is not None and calibration.decisions is not None:
        columns["threshold"] = [round(threshold, 4) for threshold in calibration.decisions.thresholds]
    lines = [
        {"label": name, **{column: values[label] for column, values in columns.items()}}
        for label, name in enumerate(names)
    ]
    if as_json:
        say({"run": str(run.path), "task": run.labels.task, "labels": lines, "was": run.labels.was or {}})
        return
    several = ", any number a text" if run.labels.task == "multi" else ""
    say([f"{counted(len(names), 'label')}{several}", *render_columns(lines)])
