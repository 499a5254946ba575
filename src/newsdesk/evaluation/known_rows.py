"""The rows a run learned from and was validated on, found again and proven to be the same."""

from __future__ import annotations

from dataclasses import replace

from newsdesk.config import TrainingSection, load_recipe
from newsdesk.data.examples import Examples
from newsdesk.data.load import TrainingData, load_training_data
from newsdesk.errors import UserError, counted
from newsdesk.sources.source import Progress
from newsdesk.training.held_out import HeldOut
from newsdesk.training.run_folder import RunFolder


def known_rows(
    run: RunFolder, *, purpose: str, otherwise: str, offline: bool = False, progress: Progress | None = None
) -> TrainingData:
    """The run's own training and validation rows, by its recipe.

    ``purpose`` says in an error who needs them ("a baseline learns from"), ``otherwise`` what to do without.
    ``offline`` takes named data sets from the cache alone.
    Raises UserError when they are not known, or no longer the same.
    """
    recorded = run.manifest.data
    if recorded is None:
        raise UserError(
            f"{purpose} the run's own training rows",
            found=f"{run.path} is an imported adapter, whose training rows are not known",
            fix=otherwise,
        )
    recipe = load_recipe(str(run.recipe)).recipe
    for proportional in (False, True):  # runs of version 0.1 were split so
        data = load_training_data(
            recipe.data,
            seed=recipe.training.seed,
            offline=offline,
            progress=progress,
            proportional=proportional,
        )
        changed = [
            (name, part)
            for name, part, facts in (
                ("train", data.train, recorded.train),
                ("validation", data.validation, recorded.validation),
            )
            if part.fingerprint() != facts.sha256
        ]
        if not changed:
            return replace(data, choosing=_choosing_rows(run, recipe.training, data.validation))
    name, part = changed[0]
    raise UserError(
        f"the {name} rows are no longer those that {run.path} was trained with",
        found=f"{counted(len(part), 'row')} in {part.source} with another sha256 than the manifest's",
        fix=f"put the original file back, or {otherwise}",
    )


def _choosing_rows(run: RunFolder, training: TrainingSection, validation: Examples) -> tuple[int, ...]:
    """Positions of the validation rows that chose the run's state; unknown, so none, in earlier versions."""
    if run.manifest.training is None or not run.manifest.training.choosing_rows or validation.labels is None:
        return ()
    return tuple(HeldOut.split(validation.labels, training.seed)[0].tolist())
