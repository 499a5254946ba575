"""What validation rows are for: some choose the best state, the others say how good it is.

And what to know of a training's rows before it begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from newsdesk.config import ModelSection, TrainingSection
from newsdesk.data.examples import LEAST_FIGURES, Examples
from newsdesk.data.load import TrainingData
from newsdesk.data.vocabulary import VocabularyFit
from newsdesk.errors import UserError, counted
from newsdesk.metrics import wilson_interval
from newsdesk.model.tokenizer import Encoded
from newsdesk.runs.label_decisions import strata
from newsdesk.training.batches import Schedule

Positions = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The parts of the validation rows, as ascending positions among them.

    A state chosen as the best of several on some rows looks better on them than it is. So where there is a
    choice, half of the rows of each class choose, and the other half calibrates: temperature and promises.

    Attributes:
        choosing: rows that the best state is chosen by; none: the last state is kept.
        calibrating: rows that it was not chosen by.
        states: how many states there are to choose from.
    """

    choosing: Positions
    calibrating: Positions
    states: int

    @classmethod
    def of(cls, labels: Positions, states: int, training: TrainingSection) -> HeldOut:
        """The parts of rows with these class ids, (rows,), when ``states`` states will be validated."""
        everything = np.arange(len(labels))
        if states < 2 or len(labels) < 2 * training.min_choosing_rows:
            return cls(everything[:0], everything, states)
        return cls(*cls.split(labels, training.seed), states)

    @staticmethod
    def split(labels: Positions, seed: int) -> tuple[Positions, Positions]:
        """Two halves of rows with these class ids, (rows,), each class in both; the first one chooses."""
        shuffled = np.random.default_rng(seed).permutation(len(labels))
        by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
        return np.sort(by_class[::2]), np.sort(by_class[1::2])

    @property
    def measured(self) -> Positions:
        """The rows that validations measure on."""
        return self.choosing if len(self.choosing) else self.calibrating

    def remarks(self, training: TrainingSection, *, several: bool = False) -> list[str]:
        """What to know of it before trusting the figures, a sentence each; of ``several`` labels or one."""
        rows = len(self.choosing) + len(self.calibrating)
        if not rows:
            return [
                "without validation rows there are no figures, no temperature and no promises; the last "
                "state is kept"
            ]
        remarks = []
        if len(self.choosing):
            remarks.append(
                f"{counted(len(self.choosing), 'validation row')} choose the best of "
                f"{counted(self.states, 'state')}, the other {len(self.calibrating):,} calibrate it"
            )
        elif self.states > 1:
            off = "; patience does not end the training" if training.patience else ""
            remarks.append(
                f"{counted(rows, 'validation row')} are too few to choose the best state by "
                f"({2 * training.min_choosing_rows:,} are needed): the last one is kept{off}"
            )
        if len(self.calibrating) < LEAST_FIGURES:
            remarks.append(_FEW_OF_SETS if several else _worth_of(len(self.calibrating)))
        return remarks


def classes_not_held_out(train: Examples, validation: Examples) -> list[str]:
    """A sentence on the classes without a validation row; none where all have one, or no row is held out."""
    if train.labels is None or validation.labels is None or not len(validation):
        return []
    rows, held_out = train.label_rows(), validation.label_rows()
    missing = np.flatnonzero((rows > 0) & (held_out == 0))
    if not len(missing):
        return []
    named = ", ".join(
        f"{train.label_names[label]} ({counted(int(rows[label]), 'row')})" for label in missing[:20]
    )
    more = f" and {len(missing) - 20:,} more" if len(missing) > 20 else ""
    classes = counted(int((rows > 0).sum()), "class")
    return [
        f"no validation row for {len(missing):,} of {classes}: {named}{more}; validation figures say nothing "
        "of them"
    ]


_FEW_OF_SETS = (
    f"few rows to measure by: below {LEAST_FIGURES}, thresholds and probabilities of rare labels are mostly "
    "those of all labels together, and --abstain can promise little; --folds 5 measures by all rows"
)


def _worth_of(rows: int) -> str:
    """What so few calibration rows can say at best, by the Wilson interval and the binomial tail."""
    low, high = wilson_interval(round(0.9 * rows), rows)
    lowest = 1 - 0.05 ** (1 / rows)
    promise = (
        f"--abstain can promise {lowest:.2g} at best" if lowest < 0.5 else "--abstain can promise nothing"
    )
    return (
        f"few rows to measure by: with {rows:,}, an accuracy near 90 % is known to within "
        f"{50 * (high - low):.0f} points (95 %), {promise}, and the temperature is rough; "
        f"from {LEAST_FIGURES} rows on they are worth more, and --folds 5 measures by all rows"
    )


def remarks_on_rows(
    data: TrainingData,
    encoded: Encoded | None,
    vocabulary: VocabularyFit | None,
    schedule: Schedule,
    training: TrainingSection,
    model: ModelSection,
) -> list[str]:
    """What to know of rows and steps before training, a sentence each.

    ``encoded`` and ``vocabulary`` are of the training rows, or of a sample; None without a tokenizer. Raises
    UserError where a linear model is to be stacked by rows that there are not.
    """
    if model.linear == "stack" and not (len(data.validation) or data.folds):
        raise UserError(
            "without validation rows it cannot be found how much a linear model should count",
            found="model.linear = stack, and no row held out",
            fix="give some with --valid FILE or --set data.validation_share=0.1, or leave out --stack",
        )
    remarks = list(data.notes)
    if vocabulary is not None and vocabulary.warning is not None:
        remarks.append(vocabulary.warning)
    if schedule.epochs > training.epochs:
        steps = counted(schedule.of_epochs, "step")
        remarks.append(
            f"{counted(training.epochs, 'epoch')} would be {steps}; training takes {schedule.total:,} "
            "(training.min_steps), unless you ask for epochs with --epochs"
        )
    if encoded is not None and encoded.truncation.cut:
        cut = encoded.truncation.describe(encoded.reach or model.max_length)
        key = "max_windows" if model.long_texts == "windows" else "max_length"
        remarks.append(f"training rows: {cut} (model.{key})")
    unreadable = 0 if encoded is None else int((~encoded.readable).sum())
    if unreadable:
        remarks.append(
            f"{counted(unreadable, 'training row')} with nothing to read: empty, or no known token"
        )
    remarks += classes_not_held_out(data.train, data.validation)
    if data.validation.labels is not None and not data.folds:
        held_out = HeldOut.of(strata(data.validation.labels), schedule.validations, training)
        remarks += held_out.remarks(training, several=data.validation.is_multi)
    return remarks
