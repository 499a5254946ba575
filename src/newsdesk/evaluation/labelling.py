"""Labelling: from an unlabelled file to the rows that are asked in turn, with what a model guesses."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import ceil, floor
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from newsdesk.config import load_recipe
from newsdesk.data.columns import TextLayout, column_named, text_layout
from newsdesk.data.dialect import DETECTED, Dialect
from newsdesk.data.duplicates import duplicate_groups, near_copies
from newsdesk.data.examples import Examples
from newsdesk.data.fields import parsed
from newsdesk.data.given import TEXT, given_texts
from newsdesk.data.labelled import LabelFormat, table_labels
from newsdesk.data.load import load_split
from newsdesk.data.table import IN_MEMORY, Table
from newsdesk.errors import UserError, counted
from newsdesk.evaluation.audit.embeddings import EMBEDDINGS, embed, embed_stored
from newsdesk.evaluation.label_session import (
    Beginning,
    LabelledFile,
    LabelSession,
    Picked,
    session_folder,
)
from newsdesk.evaluation.picking import Answered, Pool, Rows, answered_rows
from newsdesk.evaluation.rows import known_texts_of
from newsdesk.model.catalog import resolve_base
from newsdesk.prediction.classifier import Classifier
from newsdesk.prediction.open_model import find_model, open_model
from newsdesk.progress import Progress
from newsdesk.runs.exported import ExportedModel
from newsdesk.runs.folder import RunFolder

MOST_ROWS = 20_000
"""Rows of a file that are looked at to pick from, drawn at random where there are more."""

_BASE = "all-MiniLM-L6-v2"
_SEED = 1997
_POSITION = re.compile(r"(?:column_)?[1-9]\d{0,3}")

Task = Literal["single", "multi"]


class Layout(TypedDict, total=False):
    """How the rows of a file become texts: arguments of `pick`, as in training; None: as the run's."""

    text: Sequence[str] | None
    template: str | None
    normaliser: str | None
    dialect: Dialect


@dataclass(frozen=True)
class Wanted:
    """How many rows are asked, and how they are chosen.

    Attributes:
        rows: to be labelled in the end, with those of earlier sessions on the same file.
        random: the share of them that is drawn at random from all rows, 0 to 1.
        batch: rows after whose answers the next ones are chosen.
        pool: rows that are looked at, drawn at random where the file has more.
        base: the encoder that embeds the texts, frozen; None: the run's own, else all-MiniLM-L6-v2.
    """

    rows: int = 100
    random: float = 0.0
    batch: int = 20
    pool: int = MOST_ROWS
    base: str | None = None


@dataclass(frozen=True)
class Pick:
    """A row to be labelled.

    Attributes:
        row: its 0-based position in the data, and ``line`` where it begins there, from 1.
        text: what the model reads.
        picked: why it was chosen.
        guess: what the model says of it: the probability of each label, calibrated if it is a run's, the
            most probable first; None without a model, and for rows that are drawn at random: to see it sways.
        labels: those that it would give the row.
    """

    row: int
    line: int
    text: str
    picked: Picked
    guess: Mapping[str, float] | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unlabelled:
    """Rows of a data file that nobody has labelled.

    Attributes:
        table, texts: all rows, and the text of each.
        layout: how rows become texts.
        form: how the labels are to be written.
        labels: those known, in id order.
        several: whether a text may have several of them.
        rows: int64, the positions of the rows to pick from, ascending.
        free: bool, which of these may be asked.
        drawn: the positions of those among them that are kept for random picks, in the order of the draw.
        left_out: how many rows are not asked, by the reason.
    """

    table: Table
    texts: tuple[str, ...]
    layout: TextLayout
    form: LabelFormat
    labels: tuple[str, ...]
    several: bool
    rows: Rows
    free: NDArray[np.bool_]
    drawn: tuple[int, ...]
    left_out: Mapping[str, int]

    def fingerprint(self) -> str:
        """A sha256 over all texts."""
        return Examples(self.texts, None, (), str(self.table.path)).fingerprint()


def read_unlabelled(
    data: str | Sequence[str],
    model: RunFolder | ExportedModel | None,
    wanted: Wanted,
    *,
    labels: Sequence[str] = (),
    label: str | None = None,
    task: Task = "single",
    progress: Progress | None = None,
    text: Sequence[str] | None = None,
    template: str | None = None,
    normaliser: str | None = None,
    dialect: Dialect = DETECTED,
) -> Unlabelled:
    """Read the rows of a file (or texts in a list) as ``model`` reads them, and say which are worth asking.

    Left out are rows without a text, rows that the label column gives a label already, rows that the model
    has learned from, and of copies and near copies all but the first. Raises UserError where none is left.
    """
    table = _table(data, dialect.asking(text or (), label, template), progress)
    columns: Any = {"text": text, "template": template}
    if model is None:
        layout = text_layout(table, label=label, normaliser=normaliser or "none", **columns)
    else:
        learned = model.labels.layout
        layout = replace(learned, normaliser=normaliser or learned.normaliser).for_table(table, **columns)
        labels, task = model.labels.names, model.labels.task
    texts, form = layout.texts(table), _form_of(model, label)
    place = np.random.Generator(np.random.PCG64(_SEED)).permutation(len(texts))
    left_out: dict[str, int] = {}
    is_out = np.zeros(len(texts), dtype=np.bool_)

    def leave_out(reason: str, rows: Collection[int]) -> None:
        fresh = [row for row in rows if not is_out[row]]
        is_out[fresh] = True
        left_out.update({reason: len(fresh)} if fresh else {})

    leave_out("without a text", [row for row, each in enumerate(texts) if not each.strip()])
    leave_out("labelled already", _labelled_rows(table, form, layout))
    leave_out("copies of others", [row for group in duplicate_groups(texts) for row in group[1:]])
    rows = np.sort(place[~is_out[place]][: wanted.pool])
    known = None if model is None else known_texts_of(model, progress)
    if known is not None:
        is_known = known.in_training(texts) | known.in_validation(texts)
        leave_out("known to the run", np.flatnonzero(is_known).tolist())
    near = near_copies([texts[row] for row in rows])
    leave_out("near copies of others", [int(rows[copy.row]) for copy in near])
    if not (~is_out[rows]).any():
        raise UserError(
            f"{table.path} has no row to be labelled",
            found="; ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "no rows",
            fix="give --data other rows, or leave out the column of labels if they are to be labelled anew",
        )
    # By its place in the draw alone: so it stays a random one while rows are labelled and runs trained.
    kept = place[: ceil(wanted.random * len(texts))]
    drawn = kept[np.isin(kept, rows)].tolist()
    names, several, free = tuple(labels), task == "multi", ~is_out[rows]
    return Unlabelled(table, texts, layout, form, names, several, rows, free, tuple(drawn), left_out)


def _table(data: str | Sequence[str], dialect: Dialect, progress: Progress | None) -> Table:
    if isinstance(data, str | Path):
        return load_split(str(data), "train", dialect=dialect, progress=progress).table
    rows = tuple((text,) for text in given_texts(data))
    return Table(Path(IN_MEMORY), (TEXT,), rows, tuple(range(1, len(rows) + 1)))


def _form_of(model: RunFolder | ExportedModel | None, label: str | None) -> LabelFormat:
    """How labels are written: to the column asked for, else as the rows that a run was trained on."""
    own = load_recipe(str(model.recipe)).recipe.data if isinstance(model, RunFolder) else None
    if own is not None and own.label_columns and label is None:
        return LabelFormat(columns=tuple(own.label_columns), task="multi")
    return LabelFormat(column=label or _plain_column(own.label if own else None))


def _plain_column(name: str | None) -> str | None:
    """The name, unless it is a path or a position, under which nothing can be written."""
    return None if name is None or parsed(name)[1] or _POSITION.fullmatch(name) else name


def _labelled_rows(table: Table, form: LabelFormat, layout: TextLayout) -> list[int]:
    """The rows that have a label in the column that labels are written to."""
    columns = form.columns or (form.column or "label",)
    if any(column_named(table, name) != name for name in columns) or set(columns) & set(layout.text_columns):
        return []
    stated = form if form.columns else LabelFormat(column=columns[0], task="multi")
    found = table_labels(table, stated, layout.text_columns)
    return [row for row, labels in enumerate(found.sets if found else ()) if labels]


@dataclass
class Picker:
    """Chooses the rows that are asked next, by what is answered so far.

    Attributes:
        rows: those to pick from.
        wanted: how many, and how.
        pool: the same as a picker sees them; None where all are drawn at random.
        assigned: which labels the classifier behind ``pool`` gives, bool (rows, labels); None:
            there is no classifier yet.
    """

    rows: Unlabelled
    wanted: Wanted
    pool: Pool | None
    assigned: NDArray[np.bool_] | None = None
    _queue: list[tuple[int, Picked]] = field(default_factory=list)
    _estimates: NDArray[np.float64] | None = None

    def next(
        self, answers: Mapping[int, Sequence[str]], passed: Collection[int], drawn: int, labels: Sequence[str]
    ) -> tuple[int, Picked] | None:
        """The row to ask next, and why; None where none is left.

        ``answers`` are the labels of rows by their positions in the data, ``passed`` those to leave alone,
        ``drawn`` how many of the answered ones were drawn at random.
        """
        done = {*answers, *passed}
        free = set(self.rows.rows[self.rows.free].tolist())
        waiting = [row for row in self.rows.drawn if row in free and row not in done]
        if waiting and (self.pool is None or floor(self.wanted.random * (len(answers) + 1)) > drawn):
            return waiting[0], "random"
        self._queue = [each for each in self._queue if each[0] not in done]
        if not self._queue and self.pool is not None:
            self._fill(answers, done, labels)
        if self._queue:
            return self._queue[0]
        return (waiting[0], "random") if waiting else None

    def _fill(
        self, answers: Mapping[int, Sequence[str]], done: Collection[int], labels: Sequence[str]
    ) -> None:
        """Choose a batch."""
        assert self.pool is not None
        taken = np.isin(self.rows.rows, [*done, *self.rows.drawn])
        free = np.flatnonzero(self.rows.free & ~taken)
        if not len(free):
            return
        answered = self._answered(answers, labels)
        count = min(self.wanted.batch, len(free))
        chosen, by_doubt = self.pool.pick(count, free, answered, seed=_SEED + len(answers))
        why: Picked = "uncertain" if by_doubt else "diverse"
        self._queue = [(int(self.rows.rows[place]), why) for place in chosen]
        if self.pool.probabilities is None:
            self._estimates = self.pool.estimates(answered)

    def _answered(self, answers: Mapping[int, Sequence[str]], labels: Sequence[str]) -> Answered:
        """The answers about rows to pick from; a session on another run may have some about others."""
        places = {row: place for place, row in enumerate(self.rows.rows.tolist())}
        known = [row for row in answers if row in places]
        return answered_rows([places[row] for row in known], [answers[row] for row in known], labels)

    def pick(self, row: int, picked: Picked, labels: Sequence[str]) -> Pick:
        """A row with what is known of it."""
        found = Pick(row, self.rows.table.lines[row], self.rows.texts[row], picked)
        place = int(np.searchsorted(self.rows.rows, row))
        known = None if self.pool is None else self.pool.probabilities
        known = self._estimates if known is None else known
        outside = place >= len(self.rows.rows) or self.rows.rows[place] != row
        if known is None or outside or picked == "random":
            return found
        if self.assigned is not None:
            given = self.assigned[place]
        elif self.rows.several:
            given = known[place] >= 0.5
        else:
            given = np.arange(known.shape[1]) == known[place].argmax()
        order = np.argsort(-known[place], kind="stable").tolist()
        guess = {labels[label]: float(known[place, label]) for label in order}
        return replace(found, guess=guess, labels=tuple(name for name in guess if given[labels.index(name)]))


def _prepared(
    rows: Unlabelled,
    model: RunFolder | ExportedModel | None,
    wanted: Wanted,
    folder: Path | None,
    progress: Progress | None,
) -> Picker:
    """A picker, for which texts are embedded and classified, in ``folder`` if they are to be kept."""
    if wanted.random >= 1:
        return Picker(rows, wanted, None)
    texts = [rows.texts[row] for row in rows.rows]
    name = wanted.base or (_BASE if model is None else _base_of(model))
    base = resolve_base(name, progress=progress, flag="--base")
    embeddings = embed(
        texts,
        base,
        None if folder is None else folder / EMBEDDINGS,
        purpose="picking rows",
        progress=progress,
    )
    if model is None:
        return Picker(rows, wanted, Pool(embeddings, rows.several))
    classifier = open_model(model, progress=progress)
    probabilities = embed_stored(
        texts,
        None if folder is None else folder / "probabilities",
        lambda: classifier.predict_probabilities,
        identity=classifier.fingerprint,
        columns=len(classifier.label_names),
        what="classifying",
        progress=progress,
    )
    return Picker(
        rows, wanted, Pool(embeddings, rows.several, probabilities), _assigned(classifier, probabilities)
    )


def _assigned(classifier: Classifier, probabilities: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    decisions = classifier.decisions
    return None if decisions is None else decisions.assigned(probabilities)


def _base_of(model: RunFolder | ExportedModel) -> str:
    of_run = model.manifest if isinstance(model, RunFolder) else model.manifest.run
    return of_run.base.reference


class Labelling:
    """Rows of a file that are asked one after the other, and the answers, each kept at once.

    Attributes:
        rows: those to pick from.
        session: the answers so far, and the labels to choose from.
        wanted: how many, and how they are chosen.
        grows: whether a run chooses them, which can be trained further on them.
    """

    def __init__(self, picker: Picker, session: LabelSession, *, grows: bool) -> None:
        """Ask what ``picker`` chooses; ``session`` keeps the answers."""
        self.rows, self.wanted, self.session, self.grows = picker.rows, picker.wanted, session, grows
        self._picker = picker

    def question(self) -> Pick | None:
        """The row to ask now; None where as many are labelled as were wanted, or none is left."""
        session = self.session
        if session.waiting:
            waiting = session.waiting[0]
            return self._picker.pick(waiting.row, _reason(waiting.picked), session.labels)
        if len(session.answers) >= self.wanted.rows:
            return None
        answers = {row: action.labels or () for row, action in session.answers.items()}
        drawn = sum(action.picked == "random" for action in session.answers.values())
        found = self._picker.next(answers, session.skipped, drawn, session.labels)
        return None if found is None else self._picker.pick(*found, session.labels)

    def answer(self, pick: Pick, labels: Sequence[str] | None) -> None:
        """Keep the labels of a row, None for a skipped one; new labels are added to those to choose from."""
        self.session.answer(pick.row, labels, pick.picked)

    def undo(self) -> bool:
        """Take back the last answer, whose row is asked again; False where there is none."""
        return self.session.undo() is not None


def _reason(picked: str) -> Picked:
    return "random" if picked == "random" else "diverse" if picked == "diverse" else "uncertain"


@contextmanager
def opened_labelling(
    model: str | Path | None,
    data: str,
    out: str | Path,
    wanted: Wanted,
    *,
    labels: Sequence[str] = (),
    label: str | None = None,
    task: Task = "single",
    progress: Progress | None = None,
    **layout: Unpack[Layout],
) -> Iterator[Labelling]:
    """Begin to label rows of a file, or go on with it.

    Args:
        model: a run or an export that says which rows it is unsure of; None: there is none yet.
        data: the file, folder or named data set; nothing of it is ever changed.
        out: the file of labelled rows to write, see `LabelledFile`; beside it is a folder of the session.
        wanted: how many rows, and how they are chosen.
        labels, task: without a model, the labels to choose from, and whether a text may have several.
        label: the column to write labels to; None: the run's own, else ``label``.
        progress: called while texts are embedded and classified; what is done is kept in the folder.
        layout: how rows become texts.

    Raises UserError where data, model or an earlier session do not allow it.
    """
    found = None if model is None else find_model(model)
    rows = read_unlabelled(
        data, found, wanted, labels=labels, label=label, task=task, progress=progress, **layout
    )
    target = LabelledFile(Path(out), rows.table, rows.form, rows.several)
    beginning = Beginning(rows.fingerprint(), rows.labels, rows.several, wanted.random)
    with LabelSession(target, beginning).opened() as session:
        if len(session.answers) >= wanted.rows:
            picker = Picker(rows, wanted, None)
        else:
            picker = _prepared(rows, found, wanted, session_folder(Path(out)), progress)
        yield Labelling(picker, session, grows=isinstance(found, RunFolder))


def pick(
    model: str | Path | None,
    data: str | Sequence[str],
    *,
    rows: int = 100,
    random: float = 0.0,
    base: str | None = None,
    pool: int = MOST_ROWS,
    progress: Progress | None = None,
    **layout: Unpack[Layout],
) -> list[Pick]:
    """The rows of unlabelled data that teach a run most, in the order in which to label them.

    ``[row.text for row in newsdesk.pick("runs/wire", "unlabelled.csv", rows=50)]``

    Args:
        model: a run or an export, which says what it is unsure of; None: rows that stand for all are picked.
        data: a file, folder, named data set, or a list of texts.
        rows: how many.
        random: the share of them that is drawn at random from all rows, for figures that hold for all.
        base: the encoder that embeds the texts, frozen; None: the run's own, else all-MiniLM-L6-v2.
        pool: rows of the data that are looked at, drawn at random where it has more.
        progress: called while texts are embedded and classified.
        layout: ``text``, ``template``, ``normaliser``, ``dialect``: as in training.

    Raises UserError when run, base or data cannot be used together.
    """
    found = None if model is None else find_model(model)
    wanted = Wanted(rows, random, rows, pool, base)
    unlabelled = read_unlabelled(data, found, wanted, progress=progress, **layout)
    picker = _prepared(unlabelled, found, wanted, None, progress)
    picks: list[Pick] = []
    while len(picks) < rows:
        done = {each.row for each in picks}
        drawn = sum(each.picked == "random" for each in picks)
        chosen = picker.next(dict.fromkeys(done, ()), (), drawn, unlabelled.labels)
        if chosen is None:
            break
        picks.append(picker.pick(*chosen, unlabelled.labels))
    return picks


def describe_left_out(rows: Unlabelled) -> str:
    """How many rows there are to pick from, and which are not asked, in a sentence."""
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in rows.left_out.items())
    free = f"{int(rows.free.sum()):,} of {counted(len(rows.texts), 'row')}"
    return f"{free} to pick from" + (f" (not asked: {reasons})" if reasons else "")
