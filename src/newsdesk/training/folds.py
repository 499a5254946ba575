"""Cross-validation: every training row answered by a model that learned from neither it nor its copies.

Each fold is a training of its own, in a folder inside of the run's, and resumed as any training is. They are
removed when the run is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.config import DataSection, Recipe, ResolvedRecipe
from newsdesk.data.load import TrainingData
from newsdesk.errors import UserError, counted
from newsdesk.files import damaged, read_regular, stored_tensors, write_bytes, write_text
from newsdesk.label_set_metrics import Counts
from newsdesk.metrics import wilson_interval
from newsdesk.runs.calibration import (
    HeldOutRows,
    cross_validated_counts,
    fit_temperature,
    read_held_out_rows,
    softmax,
)
from newsdesk.runs.folder import RunFolder, unwritable
from newsdesk.runs.label_decisions import LabelDecisions
from newsdesk.runs.log import Started, Validation, read_log
from newsdesk.training.loop import validation_figures

Logits = NDArray[np.float32]
KeepLogits = Callable[[int, Logits], None]
TrainFold = Callable[[int, TrainingData, Path, KeepLogits], RunFolder]
"""Trains one fold, counted from 0, into a folder; it calls back with step and logits of every validation."""

_IDENTITY = "identity"
_LEVEL = 0.05
_FIX = "start over with newsdesk train --overwrite"


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What is said of each training row by the model of its fold.

    Attributes:
        logits: by the kept state, float32 (rows, classes).
        labels: class ids (rows,), or truth values (rows, labels).
        fold_of: the fold of each row, (rows,).
        states: the same logits of every state that was validated, the share of the steps it was reached
            after, 0 to 1, being the key.
        kept: which of the shares is that of the kept state.
        distances: from the training topics, (rows,); None where none were measured. readable: (rows,).
        linear: scores of the linear models beside the encoders, (rows, classes); None where there are none.
    """

    logits: Logits
    labels: NDArray[Any]
    fold_of: NDArray[np.int64]
    states: dict[float, Logits]
    kept: float
    distances: NDArray[np.float32] | None
    readable: NDArray[np.bool_] | None
    linear: Logits | None

    @property
    def folds(self) -> int:
        """How many there are."""
        return int(self.fold_of.max()) + 1

    @property
    def given(self) -> NDArray[Any]:
        """What the folds' models answer, in the shape of the labels."""
        return self.logits > 0 if self.labels.ndim == 2 else self.logits.argmax(axis=1)

    def held_out(self, sha256: str) -> HeldOutRows:
        """The rows as calibration and promises want them; ``sha256`` is their fingerprint."""
        columns = (self.distances, self.readable, self.linear)
        return HeldOutRows(self.logits, self.labels, sha256, *columns, folds=self.folds)

    def validations(self, steps: int, per_epoch: int) -> Iterator[Validation]:
        """What was measured, as events of a training on all rows of so many steps."""
        for share, logits in self.states.items():
            step = max(1, round(share * steps))
            figures = validation_figures(logits, self.labels)
            yield replace(figures, step=step, epoch=step / per_epoch, best=share == self.kept)

    def remark(self) -> str:
        """How good the models of the folds are, a sentence."""
        rows, several, given = len(self.labels), self.labels.ndim == 2, self.given
        parts = [self.fold_of == fold for fold in range(self.folds)]
        by = "each by a model that learned from neither it nor its copies"
        if several:
            scores = [float(Counts.of(given[part], self.labels[part]).micro_f1()) for part in parts]
            whole = float(Counts.of(given, self.labels).micro_f1())
            found = f"micro F1 {whole:.2%} of {counted(rows, 'row')}"
        else:
            right = given == self.labels
            scores = [float(right[part].mean()) for part in parts]
            low, high = wilson_interval(*cross_validated_counts(int(right.sum()), rows))
            found = f"accuracy {right.mean():.2%} [{low:.2%}, {high:.2%}] of {counted(rows, 'row')}"
        spread = f"between {min(scores):.2%} and {max(scores):.2%} in each"
        return f"cross-validated in {counted(self.folds, 'fold')}: {found}, {by}; {spread}"


def section_of(recipe: Recipe, processes: int = 1, begun: RunFolder | None = None) -> DataSection:
    """What the recipe says of the rows, without folds where nobody asked for them and they do not fit.

    Folds train in one process, and have no patience: whoever asks for that has rows held out. A training that
    was ``begun`` goes on with those it has. Raises UserError where folds are asked for in several
    ``processes``.
    """
    if recipe.data.folds and processes > 1:
        raise UserError(
            "a cross-validation trains in one process",
            found=f"{counted(recipe.data.folds, 'fold')}, and {processes:,} processes of torchrun",
            fix="leave out --folds, or train without torchrun",
        )
    if recipe.data.folds is not None:
        return recipe.data
    folds = None if processes == 1 and recipe.training.patience is None else 0
    if folds is None and begun is not None and begun.log.is_file():
        started = (logged.event for logged in read_log(begun.log, Started))
        folds = next((event.folds for event in started if isinstance(event, Started)), None)
    return recipe.data.model_copy(update={"folds": folds})


def of_one_fold(recipe: Recipe, rows: int) -> ResolvedRecipe:
    """The recipe that each fold is trained by, of so many rows in all: the last state answers.

    Where a linear model is wanted the fold has its own, whose scores are added to nothing.
    """
    linear, training = recipe.model.linear, recipe.training
    wanted = linear == "stack" or (linear == "auto" and training.baseline)
    alike = {"min_choosing_rows": rows + 1, "patience": None, "baseline": wanted}
    sections = {
        "data": recipe.data.model_copy(update={"folds": 0}),
        "model": recipe.model.model_copy(update={"linear": "auto" if wanted else "off"}),
        "training": training.model_copy(update=alike),
    }
    return ResolvedRecipe(recipe.model_copy(update=sections), {})


def cross_validated(
    data: TrainingData, folder: Path, identity: str, train_fold: TrainFold
) -> OutOfFold | None:
    """Train every fold, or what is left of that, and join their answers; None where one was interrupted.

    Args:
        data: the rows and their folds.
        folder: for the folds' trainings; what is in it of another ``identity`` is removed.
        identity: of recipe and rows.
        train_fold: what trains.
    """
    try:
        _begin(folder, identity)
        for fold in range(data.folds):
            _states_of(folder, fold).mkdir(exist_ok=True)
    except OSError as error:
        raise unwritable(folder.parent, error) from error
    for fold in range(data.folds):
        place = _states_of(folder, fold)

        def keep(step: int, logits: Logits, place: Path = place) -> None:
            from safetensors.numpy import save

            write_bytes(place / f"{step}.safetensors", save({"logits": np.ascontiguousarray(logits)}))

        run = train_fold(fold, data.of_fold(fold), _run_of(folder, fold), keep)
        if run.manifest.is_interrupted:
            return None
    return _joined(data, folder)


def _begin(folder: Path, identity: str) -> None:
    """Leave in the folder what belongs to this cross-validation, if anything is there."""
    mark = folder / _IDENTITY
    if not mark.is_file() or read_regular(mark) != identity.encode():
        if folder.is_dir():
            shutil.rmtree(folder)
        folder.unlink(missing_ok=True)
        folder.mkdir(parents=True)
        write_text(mark, identity)


def _run_of(folder: Path, fold: int) -> Path:
    return folder / str(fold + 1)


def _states_of(folder: Path, fold: int) -> Path:
    return folder / f"{fold + 1}-states"


def _joined(data: TrainingData, folder: Path) -> OutOfFold:
    fold_of, truth = data.fold_of, data.train.labels
    assert fold_of is not None
    assert truth is not None
    shape = len(truth), len(data.train.label_names)
    states: list[dict[float, Logits]] = []
    answers: list[HeldOutRows] = []
    for fold in range(data.folds):
        rows = int((fold_of == fold).sum())
        found = read_held_out_rows(_run_of(folder, fold))
        if found is None or found.logits.shape != (rows, shape[1]):
            raise damaged(_run_of(folder, fold), "the answers to its rows are missing", fix=_FIX)
        answers.append(found)
        states.append(dict(_states(folder, fold, (rows, shape[1]))))
    if len({len(of_fold) for of_fold in states}) > 1:  # rounded to other numbers of validations
        states = [{1.0: list(of_fold.values())[-1]} for of_fold in states]

    def whole(parts: list[NDArray[Any]]) -> NDArray[Any]:
        joined = np.empty((len(truth), *parts[0].shape[1:]), dtype=parts[0].dtype)
        for fold, part in enumerate(parts):
            joined[fold_of == fold] = part
        return joined

    def column(name: str) -> NDArray[Any] | None:
        parts = [getattr(found, name) for found in answers]
        return None if any(part is None for part in parts) else whole(parts)

    shares = [float(np.mean(of_state)) for of_state in zip(*states, strict=True)]
    logits = [whole(list(parts)) for parts in zip(*(of_fold.values() for of_fold in states), strict=True)]
    by_share = dict(zip(shares, logits, strict=True))
    kept = kept_state(by_share, truth)
    columns = (column(name) for name in ("distances", "readable", "linear"))
    return OutOfFold(by_share[kept], truth, fold_of, by_share, kept, *columns)


def _states(folder: Path, fold: int, shape: tuple[int, int]) -> Iterator[tuple[float, Logits]]:
    """The share of its steps after which each state of a fold was validated, and its logits."""
    run = RunFolder(_run_of(folder, fold))
    validated = (logged.event for logged in read_log(run.log, Validation))
    steps = [event.step for event in validated if isinstance(event, Validation)]
    for step in steps:
        path = _states_of(folder, fold) / f"{step}.safetensors"
        with stored_tensors(path, fix=_FIX) as file:
            logits = file.get_tensor("logits")
            if logits.shape != shape or not np.isfinite(logits).all():
                raise ValueError(f"logits are not {shape} finite numbers")
        yield step / steps[-1], logits.astype(np.float32)


def kept_state(states: dict[float, Logits], labels: NDArray[Any]) -> float:
    """The share of the steps after which the state to keep is reached: all of them, as a rule.

    An earlier state is kept where its calibrated answers are clearly better, by the loss of each row: the
    best of several states on some rows looks better on them than it is, and these rows calibrate, too.
    """
    last = max(states)
    losses = {share: _losses(logits, labels) for share, logits in states.items()}
    best = min(losses, key=lambda share: (losses[share].mean(), -share))
    gained = losses[last] - losses[best]
    spread = gained.std() / len(gained) ** 0.5
    needed = NormalDist().inv_cdf(1 - _LEVEL / max(1, len(states) - 1))
    return best if gained.mean() > needed * spread else last


def _losses(logits: Logits, labels: NDArray[Any]) -> NDArray[np.float64]:
    """-ln p of what is true of each row, (rows,), by calibrated probabilities, in nats."""
    if labels.ndim == 2:
        given = LabelDecisions.fit(logits, labels).probabilities(logits).astype(np.float64)
        of_true = np.where(labels, given, 1 - given)
        return np.asarray(-np.log(of_true.clip(1e-12)).sum(axis=1), dtype=np.float64)
    given = softmax(logits, fit_temperature(logits, labels)).astype(np.float64)
    return np.asarray(-np.log(given[np.arange(len(labels)), labels].clip(1e-12)), dtype=np.float64)
