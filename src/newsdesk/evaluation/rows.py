"""Labelled rows as a run or exported model reads them: those that a user names, and a run's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypedDict, Unpack

from newsdesk.config import DataSection, load_recipe
from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.data.duplicates import KnownTexts
from newsdesk.data.examples import Examples, joined
from newsdesk.data.growing import columns_as_learned
from newsdesk.data.labelled import to_examples
from newsdesk.data.labels import UnknownLabels
from newsdesk.data.load import TrainingData, load_split
from newsdesk.data.table import Table
from newsdesk.errors import UserError, counted
from newsdesk.progress import Progress
from newsdesk.runs.exported import ExportedModel
from newsdesk.runs.folder import RunFolder
from newsdesk.runs.ready_made import name_of
from newsdesk.training.growing import rows_of_run
from newsdesk.training.linear_baseline import BaselineResult, linear_baseline


def known_rows(
    found: RunFolder | ExportedModel,
    *,
    purpose: str,
    otherwise: str,
    offline: bool = False,
    progress: Progress | None = None,
) -> TrainingData:
    """A run's own training and validation rows, by its recipe.

    ``purpose`` says in an error who needs them ("a baseline learns from"), ``otherwise`` what to do without.
    ``offline`` takes named data sets from the cache alone.
    Raises UserError when they are not known, as of an exported model, or no longer the same.
    """
    if isinstance(found, ExportedModel):
        raise UserError(
            f"{purpose} the rows of a run",
            found=f"{found.path} is an exported model, which does not know them",
            fix=f"give the run, or {otherwise}",
        )
    if name := name_of(found.path):
        raise UserError(
            f"{purpose} the run's own training rows",
            found=f"{name} comes with newsdesk, without any of them",
            fix=otherwise,
        )
    if found.manifest.data is None:
        raise UserError(
            f"{purpose} the run's own training rows",
            found=f"{found.path} is an imported adapter, whose training rows are not known",
            fix=otherwise,
        )
    return rows_of_run(found, otherwise=otherwise, offline=offline, progress=progress)


LearnedRowsRule = Literal["error", "drop", "keep"]
"""What to do about rows whose text the run learned from: refuse them, leave them out, or keep them."""


class Reading(TypedDict, total=False):
    """How a file of labelled rows is read: arguments of `evaluation_rows`, which verbs pass on."""

    text: Sequence[str] | None
    label: str | None
    label_separator: str | None
    label_columns: Sequence[str] | None
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
    label_separator: str | None = None,
    label_columns: Sequence[str] | None = None,
    template: str | None = None,
    dialect: Dialect = DETECTED,
    unknown_labels: UnknownLabels | None = None,
    notice: Callable[[str], None] = lambda _sentence: None,
    progress: Progress | None = None,
) -> Examples:
    """The rows of a named data set, folder or file, with the run's text layout and class ids.

    Columns are those that ``text``, ``template``, ``label`` and ``label_columns`` name, else the ones the run
    was trained on, else those with usual names; so it is with ``label_separator``. Whether a text may have
    several labels is the run's, not the file's. ``unknown_labels`` says what to do about labels that are not
    classes of the run: ``count-wrong`` adds them to the classes of the rows, ``drop`` leaves their rows out,
    None refuses. ``notice`` is called with what a person should know about how labels were matched, a
    sentence each.
    Raises UserError when there are no rows, or they carry unknown labels.
    """
    own = load_recipe(str(run.recipe)).recipe.data if isinstance(run, RunFolder) else DataSection()
    columns = (*(text or run.labels.layout.text_columns), *(label_columns or own.label_columns))
    dialect = dialect.asking(columns, label or own.label, template)
    table = load_split(data, split, dialect=dialect, progress=progress).table
    layout = run.labels.layout.for_table(table, text=text, template=template)
    columns_of_labels = columns_as_learned(
        table, own, label=label, label_separator=label_separator, label_columns=label_columns
    )
    rows = to_examples(
        table,
        layout,
        **columns_of_labels,
        task=run.labels.task,
        label_names=run.labels.names,
        labelled=True,
        unknown_labels=unknown_labels or "error",
    )
    for sentence in rows.matching.notes() if rows.matching is not None else ():
        notice(sentence)
    return rows


def unlearned_rows(
    found: RunFolder | ExportedModel,
    data: Sequence[str],
    learned_rows: LearnedRowsRule,
    *,
    progress: Progress | None = None,
    **reading: Unpack[Reading],
) -> Examples:
    """Labelled rows to calibrate or check a run or exported model on: those that it did not learn from.

    A classifier is more confident, and more often right, on texts it learned from; what they promise does
    not hold for new ones. ``notice`` is called with what a person should know about the rows.
    Raises UserError as `evaluation_rows` does, where unknown labels are to be counted as errors, and where
    there are learned rows and they are not to be dropped or kept, or all are dropped.
    """
    if reading.get("unknown_labels") == "count-wrong":
        raise UserError(
            "rows of unknown classes can be counted as errors only in an evaluation",
            found="--unknown-labels count-wrong",
            fix="leave them out with --unknown-labels drop",
        )
    rows = joined([evaluation_rows(found, name, "test", progress=progress, **reading) for name in data])
    notice: Callable[[str], None] = reading.get("notice", lambda _sentence: None)
    known = known_texts_of(found, progress)
    if known is None:
        notice(
            f"it is not known which texts {found.path} learned from; if these rows are among them, what is "
            "promised is too optimistic"
        )
        return rows
    learned, total = known.in_training(rows.texts), counted(len(rows), "row")
    share = f"{int(learned.sum()):,} of {total} ({learned.mean():.1%})"
    if learned.any() and (learned_rows == "error" or (learned_rows == "drop" and learned.all())):
        drop = "" if learned.all() else ", leave these out with --learned-rows drop"
        raise UserError(
            f"{found.path} learned from rows of {rows.source}, so that its error rate there is too low",
            found=f"{share} with the text of a training row",
            fix=f"give rows that it did not learn from{drop}, or keep them all with --learned-rows keep",
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
    notice(
        f"{share} are training rows of the run: for new texts, what is estimated on them is too optimistic"
    )
    return rows


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


def baseline_of(
    run: RunFolder | ExportedModel, test: Examples, progress: Progress | None = None
) -> BaselineResult:
    """The baseline from a run's own rows: since it is not validated, it may learn from all of them.

    Raises UserError as `known_rows` and `linear_baseline` do.
    """
    purpose, otherwise = "a baseline needs", "evaluate without --baseline"
    own = known_rows(run, purpose=purpose, otherwise=otherwise, progress=progress)
    return linear_baseline(joined([own.train, own.validation]), test, seed=0, progress=progress)
