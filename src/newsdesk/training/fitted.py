"""What is fitted beside adapters and head as a training ends: calibration, off-topic score, linear model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from newsdesk.config import Recipe
from newsdesk.data.load import TrainingData
from newsdesk.errors import counted
from newsdesk.model.network import predict_with_features
from newsdesk.model.tokenizer import TokenIds
from newsdesk.runs.calibration import HeldOutRows, store_calibration
from newsdesk.runs.folder import RunFolder
from newsdesk.runs.label_decisions import strata
from newsdesk.runs.linear_model import LinearModel, Stack
from newsdesk.runs.log import Remark
from newsdesk.runs.off_topic import OffTopicScore, off_topic_score
from newsdesk.training.folds import OutOfFold
from newsdesk.training.loop import TrainingLoop


def keep_fitted(
    run: RunFolder,
    data: TrainingData,
    loop: TrainingLoop,
    recipe: Recipe,
    *,
    special: tuple[int, int],
    readable: NDArray[np.bool_],
    out_of_fold: OutOfFold | None = None,
    linear: bool = True,
    off_topic: bool = True,
) -> tuple[list[Remark], NDArray[np.float32] | None]:
    """Fit what belongs to the kept state and write it into the run: on rows that the state was not chosen by.

    And, on the training rows, the linear model beside it, where the recipe wants one.

    Args:
        run, data, loop, recipe: the training, which has come to its end.
        special: how many special tokens begin and end each text.
        readable: which validation rows can be classified, (rows,).
        out_of_fold: what a cross-validation said of the training rows, which takes the place of validation.
        linear, off_topic: whether to fit the linear model, and the off-topic score.

    Returns:
        Remarks on what was fitted, and what the run says of all validation rows, logits (rows, classes).
    """
    calibrating, choosing = loop.held_out.calibrating, loop.held_out.choosing
    score, distances = _off_topic(loop, out_of_fold) if off_topic else (None, None)
    model = _linear_model(loop, recipe, data, special) if linear else None
    answers = None
    if out_of_fold is not None:
        calibrating = np.arange(len(data.train))
        answers = out_of_fold.held_out(data.train.fingerprint())
        distances = answers.distances
    elif loop.best_logits is not None:
        scores = None if model is None else model.scores(loop.validation.token_ids)
        columns = (loop.best_logits, loop.validation.labels, data.validation.fingerprint(), None, readable)
        answers = HeldOutRows(*columns, scores)
    if score is not None and distances is not None:
        score.with_reference(distances).save(run.off_topic)
    remarks = []
    if model is not None:
        if answers is not None and answers.linear is not None:
            asked = recipe.model.linear == "stack"
            stack = Stack.of(answers.logits, answers.linear, answers.labels, choosing)
            model, remark = model.with_stack(stack.weight if asked else 0.0), stack.remark(asked=asked)
            answers = replace(answers, logits=model.stacked(answers.logits, answers.linear))
            remarks += [] if remark is None else [Remark(remark)]
        model.save(run.path)
    if answers is None:
        return remarks, None
    rows = (data.train if answers.folds else data.validation).select(calibrating)
    kept = replace(answers.select(calibrating), sha256=rows.fingerprint(), distances=distances)
    others = f", not those {len(choosing):,} that chose the state" if len(choosing) else ""
    source = f"{counted(len(rows), 'validation row')} of {rows.source}{others}"
    if answers.folds:
        source = f"{counted(len(rows), 'row')} of {rows.source}, cross-validated in "
        source += counted(answers.folds, "fold")
    store_calibration(run.path, kept, f"{source}, computed in {loop.network.precision}")
    return remarks, answers.logits


def _off_topic(
    loop: TrainingLoop, out_of_fold: OutOfFold | None
) -> tuple[OffTopicScore | None, NDArray[np.float32] | None]:
    """The score, and the distances of the rows that calibrate; of a cross-validation the folds have them."""

    def features_of(sequences: Sequence[TokenIds]) -> NDArray[np.float32]:
        return predict_with_features(loop.network, sequences, batch_size=2 * loop.training.batch_size)[1]

    held_out = [loop.validation.token_ids[row] for row in loop.held_out.calibrating]
    if out_of_fold is not None:
        held_out = loop.rows.token_ids[:1]
    fitted = off_topic_score(features_of, loop.rows.token_ids, strata(loop.rows.labels), held_out)
    return (None, None) if fitted is None else fitted


def _linear_model(
    loop: TrainingLoop, recipe: Recipe, data: TrainingData, special: tuple[int, int]
) -> LinearModel | None:
    """Learned from all training rows; None where none is wanted."""
    wanted, training = recipe.model.linear, recipe.training
    if wanted == "off" or (wanted == "auto" and not training.baseline):
        return None
    return LinearModel.fit(
        loop.rows.token_ids,
        loop.rows.labels,
        len(data.train.label_names),
        opening=special[0],
        closing=special[1],
        seed=training.seed,
    )
