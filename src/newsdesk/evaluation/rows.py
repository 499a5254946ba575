"""Labelled rows as a run or exported model reads them: those that a user names, and a run's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypedDict

from newsdesk.config import TrainingSection, load_recipe
from newsdesk.data.columns import column_named, to_examples
from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.data.duplicates import KnownTexts
from newsdesk.data.examples import Examples, joined
from newsdesk.data.labels import UnknownLabels
from newsdesk.data.load import TrainingData, load_training_data
from newsdesk.data.table import Table
from newsdesk.errors import UserError, counted
from newsdesk.progress import Progress
from newsdesk.runs.exported import ExportedModel
from newsdesk.runs.folder import RunFolder
from newsdesk.training.held_out import HeldOut

if TYPE_CHECKING:
    from newsdesk.data.load import TrainingData
    from newsdesk.progress import Progress


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


LearnedRowsRule = Literal["error", "drop", "keep"]
"""What to do about rows whose text the run learned from: refuse, leave them out, take them all the same."""


class Reading(TypedDict, total=False):
    """How a file of labelled rows is read: arguments of `evaluation_rows`, which verbs pass on."""

    text: Sequence[str] | None
    label: str | None
    template: str | None
    dialect: Dialect
    unknown_labels: UnknownLabels | None
    notice: Callable[[str], None]


def evaluation_rows(
    run: RunFolder | ExportedModel,
    data: str | Table,
    split: str,
    *,
    text: Sequence[str] | None = None,
    label: str | None = None,
    template: str | None = None,
    dialect: Dialect = DETECTED,
    unknown_labels: UnknownLabels | None = None,
    notice: Callable[[str], None] = lambda _sentence: None,
    progress: Progress | None = None,
) -> Examples:
    """The rows of a named data set, folder or file, with the run's text layout and class ids.

    Columns are those that ``text``, ``template`` and ``label`` name, else the ones the run was trained on,
    else those with usual names. ``unknown_labels`` says what to do about labels that are not classes of the
    run: ``count-wrong`` adds them to the classes of the rows, ``drop`` leaves their rows out, None refuses.
    ``notice`` is called with what a person should know of how labels were matched, a sentence each.
    Raises UserError when there are no rows, or they carry unknown labels.
    """
    from newsdesk.config import load_recipe
    from newsdesk.data.load import load_split

    trained_on = load_recipe(str(run.recipe)).recipe.data.label if isinstance(run, RunFolder) else None
    dialect = dialect.asking(text or run.labels.layout.text_columns, label or trained_on, template)
    table = load_split(data, split, dialect=dialect, progress=progress).table
    layout = run.labels.layout.for_table(table, text=text, template=template)
    if label is None and trained_on is not None:
        label = column_named(table, trained_on)
    rows = to_examples(
        table,
        layout,
        label=label,
        label_names=run.labels.names,
        labelled=True,
        unknown_labels=unknown_labels or "error",
    )
    for sentence in rows.matching.notes() if rows.matching is not None else ():
        notice(sentence)
    return rows


def unlearned_rows(
    found: RunFolder | ExportedModel,
    rows: Examples,
    learned_rows: LearnedRowsRule,
    *,
    notice: Callable[[str], None] = lambda _sentence: None,
    progress: Progress | None = None,
) -> Examples:
    """Of rows to calibrate or check a run or exported model on, those that it did not learn from.

    A classifier is surer, and more often right, on texts it learned from; what is promised by them does not
    hold for new ones. ``notice`` is called with what a person should know of the rows, a sentence each.
    Raises UserError where there are learned rows and they are not to be dropped or kept, or all are dropped.
    """
    known = known_texts_of(found, progress)
    if known is None:
        notice(f"it is not known which texts {found.path} learned from; rows among them promise too much")
        return rows
    learned, total = known.in_training(rows.texts), counted(len(rows), "row")
    share = f"{int(learned.sum()):,} of {total} ({learned.mean():.1%})"
    if learned.any() and (learned_rows == "error" or (learned_rows == "drop" and learned.all())):
        drop = "" if learned.all() else ", leave these out with --learned-rows drop"
        raise UserError(
            f"{found.path} learned from rows of {rows.source}, on which it is surer than on new texts",
            found=f"{share} with the text of a training row",
            fix=f"give rows that it did not learn from{drop}, or take them all with --learned-rows keep",
        )
    validated = known.in_validation(rows.texts)
    if validated.any():
        notice(
            f"{int(validated.sum()):,} of {total} ({validated.mean():.1%}) are validation rows of the run, "
            "some of which may have chosen its state"
        )
    if not learned.any():
        return rows
    if learned_rows == "drop":
        notice(f"{share} are training rows of the run and were left out")
        return rows.select((~learned).nonzero()[0])
    notice(f"{share} are training rows of the run: for new texts, what rests on them is too good")
    return rows


def training_rows(run: RunFolder | ExportedModel, progress: Progress | None) -> Examples:
    """The rows the run learned from and was validated on: a baseline, not validated, may use both."""
    data = rows_known_of(run, "a baseline", "evaluate without --baseline", progress)
    return joined([data.train, data.validation])


def known_texts_of(found: RunFolder | ExportedModel, progress: Progress | None = None) -> KnownTexts | None:
    """The texts that a run or exported model learned from, by the file it carries.

    Of a run without that file its rows are read again where they still are, from this disk alone. None
    where nothing is known. Raises UserError if the file is damaged.
    """

    known = found.known_texts()
    if known is not None or isinstance(found, ExportedModel):
        return known
    try:
        data = known_rows(found, purpose="", otherwise="", offline=True, progress=progress)
    except UserError:
        return None
    return KnownTexts.of(data.train.texts, data.validation.texts)


def rows_known_of(
    run: RunFolder | ExportedModel, what: str, otherwise: str, progress: Progress | None
) -> TrainingData:
    """A run's own rows, for ``what``. Raises UserError, with what to do ``otherwise``, without any."""

    if isinstance(run, ExportedModel):
        raise UserError(
            f"{what} needs the rows of a run",
            found=f"{run.path} is an exported model, which does not know them",
            fix=f"give the run, or {otherwise}",
        )
    return known_rows(run, purpose=f"{what} needs", otherwise=otherwise, progress=progress)
