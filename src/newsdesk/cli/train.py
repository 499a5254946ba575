"""The verbs that make and measure a run: train, evaluate, import-adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from newsdesk.cli.shared import (
    JSON_FLAG,
    Verb,
    data_flags,
    flag,
    names_of,
    note,
    say,
    shown_progress,
    terminal,
)

if TYPE_CHECKING:
    from newsdesk.config import ResolvedRecipe

_RUN = click.argument("run", type=click.Path(path_type=Path))


@click.command(cls=Verb)
@flag("--recipe", help="A recipe's name (quick, best, seed) or a TOML file.")
@flag(
    "--data", "train_data", help="Training rows: a named data set, a file, or a folder.", metavar="NAME|PATH"
)
@flag("--valid", help="A file of validation rows; default: split off the training rows.", metavar="PATH")
@flag("--base", help="A named base model, a Hub id or a local folder.", metavar="NAME|PATH")
@flag("--out", type=click.Path(path_type=Path), help="The run folder to write.", metavar="RUN")
@data_flags("text", "label", "template", "normaliser", "unknown_labels", "dialect")
@flag(
    "--epochs",
    type=float,
    help="Passes over the training rows; default: the recipe's, and 200 steps at least.",
)
@flag(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any recipe value, such as lora.rank=16."
)
@flag("--overwrite", is_flag=True, help="Replace the run at --out, once the new one is finished.")
@flag(
    "--resume",
    is_flag=True,
    help="Go on with the training at --out, by its own recipe.",
)
@flag(
    "--dry-run", is_flag=True, help="Show parameters, steps, learning rates and an estimate; train nothing."
)
@JSON_FLAG
def train(
    recipe: str | None,
    train_data: str | None,
    valid: str | None,
    base: str | None,
    out: Path | None,
    epochs: float | None,
    overrides: tuple[str, ...],
    overwrite: bool,
    resume: bool,
    dry_run: bool,
    as_json: bool,
    columns: Mapping[str, Any],
) -> None:
    """Train a classifier and leave a run folder."""
    from newsdesk.api import recipe_for
    from newsdesk.prediction.open_model import needing_train_extra
    from newsdesk.runs.folder import resumable
    from newsdesk.training import rank

    flags = {
        "data.train": train_data,
        "data.validation": valid,
        "model.base": base,
        **{f"data.{name}": value for name, value in columns.items() if name != "dialect"},
        **{f"data.{name}": value for name, value in columns["dialect"].to_dict().items()},
        "training.epochs": epochs,
    }
    if overwrite and resume:
        raise click.UsageError("--overwrite begins anew and --resume goes on: give one of them.")
    resolved = recipe_for(out, recipe, flags, overrides, resume=resume)
    if resume and not dry_run and out is not None and rank() == 0 and resumable(out) is None:
        note(terminal(), f"nothing to resume at {out}: a new training begins by what was asked for")
    if dry_run:
        with needing_train_extra("a dry run"):
            from newsdesk.training.plan import make_plan, render_plan

            plan = make_plan(resolved)
        say(plan.to_dict() if as_json else render_plan(plan))
        return
    if out is None:
        raise click.UsageError("Missing option '--out': the folder that the run is written to.")
    _train_and_tell(resolved, out, overwrite=overwrite, resume=resume, as_json=as_json)


def _train_and_tell(
    resolved: ResolvedRecipe, out: Path, *, overwrite: bool, resume: bool, as_json: bool
) -> None:
    """Train with a display; of several processes that train together the first one alone shows anything."""
    from newsdesk.api import train as training
    from newsdesk.cli.display import TrainingDisplay
    from newsdesk.stored import to_content
    from newsdesk.training import rank

    console = terminal()
    console.quiet = rank() > 0
    display = TrainingDisplay(console)
    with shown_progress(console) as progress:
        try:
            run = training(
                resolved, out=out, observe=display.show, overwrite=overwrite, resume=resume, progress=progress
            )
        finally:
            display.close()
    if rank() > 0:
        return
    interrupted = run.manifest.is_interrupted
    ending = f"run saved to {out}"
    if interrupted:
        ending = f"interrupted; a usable run was saved to {run.path}"
        if run.path == out:
            ending += "; continue it with --resume"
        else:
            ending += (
                f", while {out} is as it was; with --resume the new one goes on and takes its place when it"
            )
            ending += " has finished"
    say({"run": str(run.path), **to_content(run.manifest.training)} if as_json else [ending])
    if interrupted:
        click.get_current_context().exit(130)


@click.command(cls=Verb)
@_RUN
@flag(
    "--data", required=True, help="Labelled rows: a named data set, a file, or a folder.", metavar="NAME|PATH"
)
@flag("--split", default="test", show_default=True, help="Which split; the key in metrics.json.")
@flag("--baseline", is_flag=True, help="Also fit TF-IDF + linear SVM on the training rows, and compare.")
@flag("--with-text", is_flag=True, help="Put the texts into the predictions file.")
@data_flags("text", "label", "template", "unknown_labels", "dialect")
@JSON_FLAG
def evaluate(
    run: Path,
    data: str,
    split: str,
    baseline: bool,
    with_text: bool,
    as_json: bool,
    columns: Mapping[str, Any],
) -> None:
    """Measure a run on labelled rows, with intervals."""
    from newsdesk import api
    from newsdesk.cli.tables import render_errors, render_evaluation, render_notes
    from newsdesk.evaluation.predicted_rows import predictions_path

    console = terminal()
    with shown_progress(console) as progress:
        result = api.evaluate(
            run,
            data,
            split=split,
            **columns,
            baseline=baseline,
            with_text=with_text,
            progress=progress,
        )
    if as_json:
        say(result.to_dict())
    else:
        table = render_evaluation(result)
        say([*table, *render_errors(result.errors), *render_notes(result)])
        note(console, f"every row's probabilities are in {predictions_path(run, split)}")


@click.command("import-adapter", cls=Verb)
@click.argument("adapter", type=click.Path(path_type=Path))
@flag("--out", type=click.Path(path_type=Path), required=True, help="The run folder to write.", metavar="RUN")
@flag("--base", help="The base it was trained on; default: what the adapter names.", metavar="NAME|PATH")
@flag("--labels", help="Class names in id order, comma-separated.", metavar="NAMES")
@flag(
    "--max-length",
    type=click.IntRange(min=2),
    default=128,
    show_default=True,
    help="Tokens a text is cut to.",
)
@data_flags("text", "template", "normaliser")
@flag("--overwrite", is_flag=True, help="Replace the run that is at --out.")
def import_adapter(
    adapter: Path,
    out: Path,
    base: str | None,
    labels: str | None,
    max_length: int,
    overwrite: bool,
    columns: Mapping[str, Any],
) -> None:
    """Make a run of an adapter folder that transformers + peft trained."""
    from newsdesk.data.columns import TextLayout
    from newsdesk.prediction.open_model import needing_train_extra
    from newsdesk.reports.model_card import refresh_card

    with shown_progress() as progress, needing_train_extra("importing an adapter"):
        from newsdesk.training.import_adapter import import_adapter as importing

        run = importing(
            adapter,
            out,
            base=base,
            label_names=names_of(labels),
            layout=TextLayout(
                columns["text"] or ("text",), columns["template"], columns["normaliser"] or "none"
            ),
            max_length=max_length,
            overwrite=overwrite,
            progress=progress,
        )
    refresh_card(run, retrained=True)
    say([f"run saved to {out}; its classes are {', '.join(run.labels.names)}"])
