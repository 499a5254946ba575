"""The verbs that make a run: train and import-adapter."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from newsdesk.cli.shared import (
    JSON_FLAG,
    PATH,
    Function,
    flag,
    names_of,
    note,
    reading_flags,
    say,
    shown_progress,
    terminal,
    verb,
)

if TYPE_CHECKING:
    from newsdesk.config import ResolvedRecipe


def recipe_flags(function: Function) -> Function:
    """Add the flags that say what to train; they come as ``recipe``, ``flags`` and ``overrides``.

    Which are the arguments of `newsdesk.config.load_recipe`.
    """

    @wraps(function)
    def with_recipe(
        train_data: str | None,
        valid: str | None,
        unlabelled: str | None,
        base: str | None,
        epochs: float | None,
        baseline: bool | None,
        stack: bool | None,
        dialect: Any,
        **given: Any,
    ) -> Any:
        columns = ["text", "label", "label_separator", "label_columns", "task", "template", "normaliser"]
        columns.append("unknown_labels")
        read_as = {name: given.pop(name) for name in columns} | dialect.to_dict()
        flags = {f"data.{name}": value for name, value in read_as.items()}
        flags |= {"data.train": train_data, "data.validation": valid, "data.unlabelled": unlabelled}
        flags |= {"model.base": base, "training.epochs": epochs, "training.baseline": baseline}
        flags["model.linear"] = {True: "stack", False: "off", None: None}[stack]
        return function(flags=flags, **given)

    added = reading_flags("text", "label", "task", "template", "normaliser", "dialect")(with_recipe)
    for add in reversed(_RECIPE_FLAGS):
        added = add(added)
    return added


_RECIPE_FLAGS = (
    flag("--recipe", help="A recipe's name (quick, best, few, seed) or a TOML file."),
    flag(
        "--data",
        "train_data",
        help="Training rows: a named data set, a file, or a folder.",
        metavar="NAME|PATH",
    ),
    flag("--valid", help="A file of validation rows; default: split off the training rows.", metavar="PATH"),
    flag(
        "--unlabelled",
        help="A file of texts without labels to learn from, too, where labelled rows are few.",
        metavar="PATH",
    ),
    flag("--base", help="A named base model, a Hub id or a local folder.", metavar="NAME|PATH"),
    flag(
        "--unknown-labels",
        type=click.Choice(("error", "drop")),
        help="Validation rows of classes that the training rows do not have: refuse (the default), leave "
        "out.",
    ),
    flag(
        "--epochs",
        type=float,
        help="Passes over the training rows; default: the recipe's, and at least 200 steps.",
    ),
    flag(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any recipe value, such as lora.rank=16.",
    ),
    flag(
        "--baseline/--no-baseline",
        default=None,
        help="Measure a linear model on the validation rows first.  [default: --baseline]",
    ),
    flag(
        "--stack/--no-stack",
        default=None,
        help="Add a linear model's scores to the encoder's, or keep none.  [default: keep one beside it]",
    ),
)


@verb()
@recipe_flags
@flag(
    "--from",
    "start_from",
    help="A run to train further on --data, its own rows replayed: it keeps what it knows, and learns new "
    "classes.",
    metavar="RUN",
)
@flag(
    "--folds",
    type=click.IntRange(min=0, max=20),
    help="Cross-validate in so many parts, then learn from all rows; 0: hold some out.  [default: 5 of fewer "
    "than 1,000 rows]",
)
@flag("--out", type=PATH, help="The run folder to write.", metavar="RUN")
@flag(
    "--track",
    multiple=True,
    type=click.Choice(("tensorboard", "mlflow", "wandb")),
    help="Show the training there, too; may be repeated.",
)
@flag("--overwrite", is_flag=True, help="Replace the run at --out, once the new one is finished.")
@flag("--resume", is_flag=True, help="Continue the training at --out, with its own recipe.")
@flag(
    "--dry-run", is_flag=True, help="Show parameters, steps, learning rates and an estimate; train nothing."
)
@JSON_FLAG
def train(
    recipe: str | None,
    flags: dict[str, Any],
    overrides: tuple[str, ...],
    start_from: str | None,
    folds: int | None,
    out: Path | None,
    track: tuple[str, ...],
    overwrite: bool,
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a classifier and save a run folder."""
    from newsdesk.api import recipe_for
    from newsdesk.prediction.open_model import needing_train_extra
    from newsdesk.runs.folder import resumable
    from newsdesk.training import rank

    if overwrite and resume:
        raise click.UsageError("--overwrite starts again and --resume continues: give one of them.")
    flags |= {"data.folds": folds, "training.start_from": start_from}
    resolved = recipe_for(out, recipe, flags, overrides, resume=resume)
    if resume and not dry_run and out is not None and rank() == 0 and resumable(out) is None:
        note(f"nothing to resume at {out}: a new training starts with what was asked for")
    if dry_run:
        with needing_train_extra("a dry run"):
            from newsdesk.cli.tables import render_plan
            from newsdesk.training.plan import make_plan

            plan = make_plan(resolved)
        say(plan.to_dict() if as_json else render_plan(plan))
        return
    if out is None:
        raise click.UsageError("Missing option '--out': the folder that the run is written to.")
    _train_and_tell(resolved, out, as_json=as_json, track=track, overwrite=overwrite, resume=resume)


def _train_and_tell(resolved: ResolvedRecipe, out: Path, *, as_json: bool, **settings: Any) -> None:
    """Train with a display; of several processes that train together only the first one shows anything."""
    from newsdesk.api import train as training
    from newsdesk.cli.display import TrainingDisplay
    from newsdesk.stored import to_content
    from newsdesk.training import rank

    console = terminal()
    console.quiet = rank() > 0
    with shown_progress(console) as progress, TrainingDisplay(console) as display:
        run = training(resolved, out=out, observe=display.show, progress=progress, **settings)
    if rank() > 0:
        return
    interrupted = run.manifest.is_interrupted
    ending = f"run saved to {out}"
    if interrupted:
        ending = f"interrupted; a usable run was saved to {run.path}"
        ending += (
            "; continue it with --resume"
            if run.path == out
            else f", and {out} is unchanged; --resume continues the new one, which replaces it when finished"
        )
    say({"run": str(run.path), **to_content(run.manifest.training)} if as_json else [ending])
    if interrupted:
        click.get_current_context().exit(130)


@verb("import-adapter")
@click.argument("adapter", type=PATH)
@flag("--out", type=PATH, required=True, help="The run folder to write.", metavar="RUN")
@flag("--base", help="The base it was trained on; default: what the adapter names.", metavar="NAME|PATH")
@flag("--labels", help="Class names in id order, comma-separated.", metavar="NAMES")
@flag(
    "--max-length",
    type=click.IntRange(min=2),
    default=128,
    show_default=True,
    help="Tokens a text is cut to.",
)
@reading_flags("text", "template", "normaliser")
@flag("--overwrite", is_flag=True, help="Replace the run that is at --out.")
def import_adapter(
    adapter: Path,
    out: Path,
    labels: str | None,
    text: tuple[str, ...] | None,
    template: str | None,
    normaliser: str | None,
    **settings: Any,
) -> None:
    """Make a run from an adapter folder that transformers + peft trained."""
    from newsdesk.data.columns import TextLayout
    from newsdesk.prediction.open_model import needing_train_extra
    from newsdesk.reports.model_card import refresh_card

    layout = TextLayout(text or ("text",), template, normaliser or "none")
    with shown_progress() as progress, needing_train_extra("importing an adapter"):
        from newsdesk.training.import_adapter import import_adapter as importing

        run = importing(
            adapter, out, label_names=names_of(labels), layout=layout, progress=progress, **settings
        )
    refresh_card(run, retrained=True)
    say([f"run saved to {out}; its classes are {', '.join(run.labels.names)}"])
