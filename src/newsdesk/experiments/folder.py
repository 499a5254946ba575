"""What is in the folder of a sweep, and which sweep it is.

DIR/recipe.toml                 the recipe, every value
DIR/sweep.json                  what is varied and how, and the fingerprints of the rows
DIR/journal.log                 Optuna's journal: points, states, scores
DIR/trials/0003/seed-42/        a training: log.jsonl, outcome.json, and its logits of the validation rows
DIR/trials/0003/seed-42/run/    the same while it is in work
DIR/best/                       the best trial's run
DIR/results.parquet, report.html
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from newsdesk import __version__
from newsdesk.config import ResolvedRecipe, changed_values, load_recipe
from newsdesk.errors import UserError
from newsdesk.experiments.space import Method
from newsdesk.files import damaged, make_folder, require_no_way_out, sha256_of, write_text
from newsdesk.runs.folder import HEADER, run_state, unwritable
from newsdesk.runs.manifest import RowFacts
from newsdesk.stored import OPTIONAL, read_stored, write_stored
from newsdesk.training.linear_baseline import BaselineResult

if TYPE_CHECKING:
    from filelock import BaseFileLock

SWEEP, RECIPE, JOURNAL, TRIALS, BEST = "sweep.json", "recipe.toml", "journal.log", "trials", "best"
RESULTS, REPORT, LOCK = ("results.parquet", "results.csv"), "report.html", ".lock"
BEGIN_AGAIN = "begin again with another --out, or put an undamaged copy in its place"
_OURS = {SWEEP, RECIPE, JOURNAL, TRIALS, BEST, *RESULTS, REPORT, LOCK, f"{JOURNAL}{LOCK}"}


@dataclass(frozen=True)
class SweepFacts:
    """What a sweep was begun with.

    Attributes:
        newsdesk: the version that began it.
        recipe: sha256 of recipe.toml.
        method: how points are chosen.
        vary: what is varied, as ``--vary`` takes it.
        seeds: trainings of a point, with the recipe's seed and those after it.
        folds: of a cross-validation; 0: the rows split off or given validate.
        prune: whether trials are ended early that do worse than most.
        trials: points at most, as last asked for; None: all of a grid or of one-by-one.
        budget: when no new trial is begun, as last asked for.
        train: the rows learned from; all of them, before folds and ``data.train_rows``.
        validation: the rows that trials are measured on; of a cross-validation the same as ``train``.
        baseline: what a linear model reaches on them.
    """

    newsdesk: str
    recipe: str
    method: Method
    vary: tuple[str, ...]
    seeds: int
    folds: int
    prune: bool
    trials: int | None
    budget: str | None
    train: RowFacts
    validation: RowFacts
    baseline: BaselineResult | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Outcome:
    """What a training came to, as outcome.json has it.

    Attributes:
        seed: its seed.
        fold: the fold held out, from 1 on; 0: none.
        seconds: of training and validation.
        tokens: trained on, without padding.
        steps: taken.
        parameters: trained.
    """

    seed: int
    fold: int
    seconds: float
    tokens: int
    steps: int
    parameters: int

    def write(self, folder: Path) -> None:
        """Write outcome.json."""
        write_stored(folder / _OUTCOME, self)

    @classmethod
    def read(cls, folder: Path) -> Outcome | None:
        """That of a training's folder; None where it is not through. Raises UserError when damaged."""
        path = folder / _OUTCOME
        return (
            read_stored(path, cls, fix=f"delete {folder}, and it is trained again") if path.exists() else None
        )


_OUTCOME = "outcome.json"


def lock_of(path: Path) -> BaseFileLock:
    """A lock of the operating system's."""
    from filelock import FileLock

    return FileLock(path)


def begun(folder: Path) -> tuple[ResolvedRecipe, SweepFacts] | None:
    """The recipe and facts of the sweep in a folder; None where there is none yet.

    Raises UserError for a folder that holds something else, links out of it, or damaged files.
    """
    if folder.is_file():
        raise UserError(f"--out {folder} is a file", fix="name a folder that does not exist yet")
    if not folder.is_dir():
        return None
    require_no_way_out(folder, _OURS)
    if not (folder / SWEEP).exists():
        names = sorted(entry.name for entry in folder.iterdir() if entry.name not in (LOCK, RECIPE))
        if names:
            raise UserError(
                f"--out {folder} is not empty, and no sweep",
                found=run_state(folder) or ", ".join(names[:6]),
                fix="choose another folder with --out",
            )
        return None
    facts = read_stored(folder / SWEEP, SweepFacts, fix=BEGIN_AGAIN)
    if not (folder / RECIPE).is_file() or sha256_of(folder / RECIPE) != facts.recipe:
        raise damaged(folder / RECIPE, "another sha256 than sweep.json says", fix=BEGIN_AGAIN)
    return load_recipe(str(folder / RECIPE)), facts


def begin(folder: Path, base: ResolvedRecipe, facts: SweepFacts) -> SweepFacts:
    """Write what a sweep begins with, or find it as asked for; what may change is written anew.

    Raises UserError, naming what differs, where the folder holds another sweep.
    """
    try:
        make_folder(folder)
        with lock_of(folder / LOCK):
            before = begun(folder)
            if before is None:
                write_text(folder / RECIPE, HEADER + base.to_toml())
                facts = replace(facts, newsdesk=__version__, recipe=sha256_of(folder / RECIPE))
                write_stored(folder / SWEEP, facts)
                return facts
            require_same(folder, before, base, facts)
            _require_same_rows(folder, before[1], facts)
            baseline = before[1].baseline or facts.baseline
            now = replace(before[1], trials=facts.trials, budget=facts.budget, baseline=baseline)
            if now != before[1]:
                write_stored(folder / SWEEP, now)
            return now
    except OSError as error:
        raise unwritable(folder, error) from error


def require_same(
    folder: Path, before: tuple[ResolvedRecipe, SweepFacts], base: ResolvedRecipe, facts: SweepFacts
) -> None:
    """Raise UserError where another recipe, or another space, is asked for than the folder's sweep has."""
    changed = changed_values(before[0].recipe, base.recipe)
    for name in ("method", "vary", "seeds", "folds", "prune"):
        began, now = getattr(before[1], name), getattr(facts, name)
        if began != now:
            changed.append(f"{name} = {began!r}, asked for {now!r}")
    if changed:
        raise UserError(
            f"{folder} holds another sweep, and can only be continued with its own recipe and space",
            found="\n       ".join(changed),
            fix="leave out all flags but --out and --resume, or choose another folder with --out",
        )


def _require_same_rows(folder: Path, before: SweepFacts, facts: SweepFacts) -> None:
    for name in ("train", "validation"):
        began, now = getattr(before, name), getattr(facts, name)
        if began.sha256 != now.sha256:
            raise UserError(
                f"the {name} rows are no longer those that {folder} began with",
                found=f"{now.rows:,} rows in {now.source}, {began.rows:,} when it began, with another sha256",
                fix="restore the original file, or choose another folder with --out",
            )
