"""Labelled rows as a run or artefact reads them: those that a user names, and a run's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.data.examples import Examples, joined
from newsdesk.data.known_texts import KnownTexts
from newsdesk.data.layout import column_named, to_examples
from newsdesk.errors import UserError
from newsdesk.inference.artefact import ArtefactFolder
from newsdesk.training.run_folder import RunFolder

if TYPE_CHECKING:
    from newsdesk.data.load import TrainingData
    from newsdesk.sources.source import Progress


def evaluation_rows(
    run: RunFolder | ArtefactFolder,
    data: str,
    split: str,
    *,
    text: Sequence[str] | None = None,
    label: str | None = None,
    template: str | None = None,
    dialect: Dialect = DETECTED,
    progress: Progress | None = None,
) -> Examples:
    """The rows of a named data set, folder or file, with the run's text layout and class ids.

    Columns are those that ``text``, ``template`` and ``label`` name, else the ones the run was trained on,
    else those with usual names. Raises UserError when there are no rows, or they carry labels that the run
    does not know.
    """
    from newsdesk.config import load_recipe
    from newsdesk.data.load import load_split

    trained_on = load_recipe(str(run.recipe)).recipe.data.label if isinstance(run, RunFolder) else None
    dialect = dialect.asking(text or run.labels.layout.text_columns, label or trained_on, template)
    table = load_split(data, split, dialect=dialect, progress=progress).table
    layout = run.labels.layout.for_table(table, text=text, template=template)
    if label is None and trained_on is not None:
        label = column_named(table, trained_on)
    return to_examples(
        table,
        text=layout.text_columns,
        label=label,
        template=layout.template,
        normaliser=layout.normaliser,
        label_names=run.labels.names,
        labelled=True,
    )


def training_rows(run: RunFolder | ArtefactFolder, progress: Progress | None) -> Examples:
    """The rows the run learned from and was validated on: a baseline, not validated, may use both."""
    data = rows_known_of(run, "a baseline", "evaluate without --baseline", progress)
    return joined([data.train, data.validation])


def known_texts_of(found: RunFolder | ArtefactFolder, progress: Progress | None = None) -> KnownTexts | None:
    """The texts that a run or artefact learned from, by the file it carries.

    Of a run without that file its rows are read again where they still are, from this disk alone. None
    where nothing is known. Raises UserError if the file is damaged.
    """
    from newsdesk.evaluation.known_rows import known_rows

    known = found.known_texts()
    if known is not None or isinstance(found, ArtefactFolder):
        return known
    try:
        data = known_rows(found, purpose="", otherwise="", offline=True, progress=progress)
    except UserError:
        return None
    return KnownTexts.of(data.train.texts, data.validation.texts)


def rows_known_of(
    run: RunFolder | ArtefactFolder, what: str, otherwise: str, progress: Progress | None
) -> TrainingData:
    """A run's own rows, for ``what``. Raises UserError, with what to do ``otherwise``, without any."""
    from newsdesk.evaluation.known_rows import known_rows

    if isinstance(run, ArtefactFolder):
        raise UserError(
            f"{what} needs the rows of a run",
            found=f"{run.path} is an artefact, which does not know them",
            fix=f"give the run, or {otherwise}",
        )
    return known_rows(run, purpose=f"{what} needs", otherwise=otherwise, progress=progress)
