"""Labelled rows as a run or exported model reads them: those that a user names, and a run's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from newsdesk.config import TrainingSection, load_recipe
from newsdesk.data.columns import column_named, to_examples
from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.data.duplicates import KnownTexts, LearnedRows
from newsdesk.data.examples import Examples, joined
from newsdesk.data.labels import UnknownLabels
from newsdesk.data.load import TrainingData, load_training_data
from newsdesk.data.stream import read_table
from newsdesk.data.table import Cell
from newsdesk.errors import UserError, counted
from newsdesk.evaluation.evaluate import Evaluation, predictions_path, read_metrics
from newsdesk.prediction.predictions import PROBABILITY_DIGITS, WRITTEN, probability_column
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


SMALLEST_WRITTEN = 0.5 * 10**-PROBABILITY_DIGITS
"""What a probability written as 0 is taken for: half of the last digit."""


@dataclass(frozen=True, eq=False)
class PredictedRows:
    """Every evaluated row of one classifier.

    Attributes:
        name: the run, exported model or file, as it was given.
        split: the evaluation's name; None for a file that stands alone.
        source: where the rows came from; None likewise.
        fingerprint: of the rows, by ``Examples.fingerprint``; None likewise.
        numbers: the rows' own numbers.
        true_labels: their classes.
        predicted_labels: what they were taken for.
        true_probabilities: float64 (rows,), those of the true classes; None where the file has none.
        texts: one a row, where the file holds them.
        learned: how many of the rows the classifier knew before; None where that is not known.
    """

    name: str
    split: str | None
    source: str | None
    fingerprint: str | None
    numbers: tuple[str, ...]
    true_labels: tuple[str, ...]
    predicted_labels: tuple[str, ...]
    true_probabilities: NDArray[np.float64] | None
    texts: tuple[str, ...] | None
    learned: LearnedRows | None = None

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.numbers)


def read_predicted_rows(path: str | Path, split: str) -> PredictedRows:
    """The evaluation of ``split`` in a run or exported model, or a file of predictions, of whatever split.

    Raises UserError when there is none, or it is not as an evaluation leaves it.
    """
    given = Path(path)
    if given.is_dir():
        file = predictions_path(given, split)
        facts = read_metrics(given / "metrics.json").get(split)
        if facts is None or not file.is_file():
            raise _not_evaluated(given, split)
        return _read(file, str(path), facts)
    if not given.is_file():
        raise UserError(
            f"there is nothing to compare at {path}",
            found="neither a folder nor a file",
            fix="give runs, exported models, or the files predictions-SPLIT.csv that newsdesk evaluate wrote",
        )
    named = re.fullmatch(r"predictions-(.+)\.csv", given.name)
    facts = read_metrics(given.parent / "metrics.json").get(named[1]) if named else None
    return _read(given, str(path), facts)


def _read(file: Path, name: str, facts: Evaluation | None) -> PredictedRows:
    table = read_table(file, WRITTEN)
    missing = {"row", "true_label", "predicted_label"} - set(table.columns)
    if missing:
        raise _unusable(file, f"no column {', '.join(sorted(missing))}")
    columns = dict(zip(table.columns, zip(*table.rows, strict=True), strict=True)) if table.rows else {}
    if not columns:
        raise _unusable(file, "no rows")
    true_labels = tuple(map(str, columns["true_label"]))
    rows = PredictedRows(
        name=name,
        split=facts.split if facts else None,
        source=facts.source if facts else None,
        fingerprint=facts.fingerprint if facts else None,
        numbers=tuple(map(str, columns["row"])),
        true_labels=true_labels,
        predicted_labels=tuple(map(str, columns["predicted_label"])),
        true_probabilities=_true_probabilities(file, columns, true_labels),
        texts=tuple(map(str, columns["text"])) if "text" in columns else None,
        learned=facts.learned if facts else None,
    )
    if facts is not None:
        _require_those_measured(file, rows, facts)
    return rows


def _true_probabilities(
    file: Path, columns: Mapping[str, tuple[Cell, ...]], true_labels: tuple[str, ...]
) -> NDArray[np.float64] | None:
    """The probability of each row's class; None unless every class has its column."""
    names = [probability_column(label) for label in true_labels]
    if not set(names) <= set(columns):
        return None
    try:
        return np.array([float(str(columns[name][row])) for row, name in enumerate(names)])
    except ValueError as error:
        raise _unusable(file, str(error)) from None


def _require_those_measured(file: Path, rows: PredictedRows, facts: Evaluation) -> None:
    """Refuse a file that is not of the evaluation that gave the figures beside it."""
    pairs = zip(rows.true_labels, rows.predicted_labels, strict=True)
    right = sum(true == predicted for true, predicted in pairs)
    stated = facts.metrics
    if (len(rows), right) != (stated.rows, stated.correct):
        raise _unusable(
            file, f"{right:,} of {counted(len(rows), 'row')} right; metrics.json has {stated.accuracy:.2%}"
        )


def _not_evaluated(folder: Path, split: str) -> UserError:
    evaluated = ", ".join(read_metrics(folder / "metrics.json"))
    return UserError(
        f"{folder} has no predictions on {split!r}",
        found=f"it was evaluated on {evaluated}" if evaluated else "it was not evaluated, or is no run",
        fix=f"evaluate all of them on the same rows with --data NAME|PATH, or one by one: "
        f"newsdesk evaluate {folder} --data NAME|PATH --split {split}",
    )


def _unusable(file: Path, found: str) -> UserError:
    return UserError(
        f"{file} is not a file of predictions as newsdesk evaluate leaves it",
        found=found,
        fix="evaluate again: newsdesk evaluate RUN --data NAME|PATH",
    )


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
    data: str,
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
        text=layout.text_columns,
        label=label,
        template=layout.template,
        normaliser=layout.normaliser,
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
