"""The verb sweep: which values of a recipe are best, and which differences are noise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from newsdesk.cli.shared import JSON_FLAG, PATH, flag, note, say, shown_progress, terminal, verb
from newsdesk.cli.train import recipe_flags
from newsdesk.errors import UserError, counted

if TYPE_CHECKING:
    from newsdesk.config import ResolvedRecipe
    from newsdesk.experiments.results import SweepResults
    from newsdesk.experiments.sweep import Asked

_SHOWN = 12


@verb()
@click.argument("name", required=False, metavar="[SWEEP]")
@recipe_flags
@flag("--out", type=PATH, help="The folder to write; the same command continues it.", metavar="DIR")
@flag(
    "--vary",
    multiple=True,
    metavar="KEY=VALUES",
    help="Keys and values: lora.rank=1,4,16, training.learning_rate=1e-4..2e-3, or several keys together, "
    "lora.targets+lora.rank=attention:8,all-linear:4; may be repeated.",
)
@flag(
    "--method",
    type=click.Choice(("grid", "random", "tpe", "one-by-one")),
    help="All combinations (the default), random ones, those that Optuna's TPE expects most of, or one key "
    "after the other.",
)
@flag("--trials", type=click.IntRange(min=1), help="Points at most; default: all, of random and tpe 20.")
@flag("--seeds", type=click.IntRange(min=1), help="Trainings of each point; default: 1.")
@flag("--folds", type=click.IntRange(min=2), help="Cross-validate: every training row validates once.")
@flag(
    "--budget", help="Begin no trial after so much training, such as 45m, 2h or 5Mtokens.", metavar="AMOUNT"
)
@flag(
    "--prune/--no-prune",
    default=None,
    help="End trials whose validations are below the median of the others'.  [default: --no-prune]",
)
@flag("--resume", is_flag=True, help="Continue the sweep at --out, with its own recipe and space.")
@JSON_FLAG
def sweep(
    name: str | None,
    recipe: str | None,
    flags: dict[str, Any],
    overrides: tuple[str, ...],
    out: Path | None,
    resume: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Train a recipe with several values, and say which are best.

    SWEEP is a TOML file: a recipe with a section [sweep]. The sweep lessons comes with newsdesk.
    """
    from newsdesk.experiments.sweep import Asked

    if name is not None and recipe is not None:
        raise click.UsageError("SWEEP is a recipe with a section [sweep]: give it, or --recipe and --vary.")
    if out is None:
        raise click.UsageError("Missing option '--out': the folder that the sweep is written to.")
    given = recipe or name or overrides or asked["vary"] or any(value is not None for value in flags.values())
    if resume and given:
        raise click.UsageError("--resume takes recipe and space from --out; without it, they are compared.")
    wanted = Asked(**asked)
    if resume:
        base, wanted = _as_begun(out, wanted)
    elif name is not None:
        from newsdesk.experiments.sweep import read_sweep

        base, wanted = read_sweep(name, wanted, flags, overrides)
    else:
        from newsdesk.config import load_recipe

        base = load_recipe(recipe, flags, overrides)
    results = _sweep_and_tell(base, wanted, out)
    say(results.to_dict() if as_json else render_sweep(results))
    if not results.points and not results.interrupted and not results.in_work:
        click.get_current_context().exit(1)
    if results.interrupted:
        click.get_current_context().exit(130)


def _as_begun(out: Path, asked: Asked) -> tuple[ResolvedRecipe, Asked]:
    """Recipe and space of the sweep at ``out``; trials and budget may be others."""
    from dataclasses import replace

    from newsdesk.experiments.folder import begun

    found = begun(out)
    if found is None:
        raise UserError(
            f"there is no sweep to resume at {out}",
            fix="give the --out of a sweep that was begun, or say what to vary: --recipe, --data, --vary",
        )
    base, facts = found
    own = {name: getattr(facts, name) for name in ("vary", "method", "seeds", "prune")}
    own |= {"folds": facts.folds or None, "trials": facts.trials, "budget": facts.budget}
    given = {name: value for name, value in vars(asked).items() if value not in (None, ())}
    return base, replace(asked, **{**own, **given})


def _sweep_and_tell(base: ResolvedRecipe, asked: Asked, out: Path) -> SweepResults:
    """Sweep with a display; what it came to so far."""
    from newsdesk.api import sweep as sweeping
    from newsdesk.cli.display import SweepDisplay

    console = terminal()
    go_on = f"go on with newsdesk sweep --out {out} --resume"
    with shown_progress(console) as progress, SweepDisplay(console) as display:
        try:
            results = sweeping(base, out=out, observe=display.show, progress=progress, **vars(asked))
        except KeyboardInterrupt:
            display.close()
            note(f"what is finished is kept: {go_on}")
            raise
    if results.interrupted:
        note(f"interrupted; {go_on}")
    elif results.in_work:
        trials = counted(results.in_work, "trial")
        note(f"{trials} in work by other processes: the last one to end has all results")
    return results


def render_sweep(results: SweepResults) -> list[str]:
    """The lines that a terminal shows of a sweep: its best points, what is noise, and what to do next."""
    from newsdesk.cli.tables import render_columns
    from newsdesk.experiments.folder import REPORT

    if not results.points:
        return ["no trial is complete", *_others(results)]
    facts = results.study.facts
    rows = [
        {
            "trial": point.trial.number,
            **results.columns(point),
            results.metric_name: results.shown(point.score),
            "95 % interval": results.shown_interval(point.interval),
            "beside the best": f"{point.verdict}, {point.evidence}".removesuffix(", "),
            "seconds": f"{point.mean('seconds'):.0f}",
        }
        for point in results.points[:_SHOWN]
    ]
    more = len(results.points) - _SHOWN
    lines = [*render_columns(rows), *([f"and {more:,} more"] if more > 0 else []), ""]
    lines += [f"on {results.measured_on}, {counted(facts.seeds, 'seed')}", *_others(results)]
    if results.baseline_sentence is not None:
        lines.append(f"a linear model on these rows: {results.baseline_sentence}")
    lines += [results.noise_sentence, results.optimism_sentence, ""]
    if results.best_run is not None:
        lines.append(f"the best trial's run: {results.best_run}; measure it once on test rows:")
        lines.append(f"  newsdesk evaluate {results.best_run} --data TEST_ROWS")
    lines += ["the best point on all rows:", f"  {results.command}"]
    return [*lines, f"the page of this sweep: {results.study.folder / REPORT}"]


def _others(results: SweepResults) -> list[str]:
    return [
        f"trial {trial.number} {trial.state}{': ' if trial.reason else ''}{trial.reason}"
        for trial in results.others
    ]
