"""Rows to batches and steps. No torch in here.

Batches are of similar length, so that little padding is computed. Rows sorted by length and cut into batches
would meet the same neighbours in every epoch, and where length depends on the class, batches would lean to
one class, which costs accuracy in short trainings. So every row gets a place by its length, which each epoch
blurs again, and batches come in random order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from newsdesk.config import TrainingSection

Rows = NDArray[np.int64]

_BLUR, _BLUR_OF_FEW = 12, 24
"""How far a row's place is blurred, in batches: the more, the better mixed, and the more padding."""
_FEW, _VERY_FEW = 500, 128
"""Few batches an epoch meet again soon, and their padding costs little time; very few are left random."""


class Batcher:
    """Batches of every epoch over the same rows; the same seed gives the same ones on every machine."""

    def __init__(
        self,
        lengths: Rows,
        batch_size: int,
        *,
        seed: int,
        group_by_length: bool = True,
        sample_of: int | None = None,
    ) -> None:
        """Prepare for rows of these ``lengths`` in tokens, (rows,).

        Args:
            lengths: tokens of each row. batch_size: rows a batch. seed: with the epoch it decides the order.
            group_by_length: False: random batches, as also where there are 128 or fewer. sample_of: the rows
            are a random sample of so many; their batches get as similar in length as theirs.
        """
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        batches = max(1.0, (sample_of or len(lengths)) / batch_size)
        blur = (_BLUR_OF_FEW if batches < _FEW else _BLUR) / batches
        self._blur = blur if group_by_length and batches > _VERY_FEW else None
        # From where to where a row may be in the order of lengths, 0 to 1: alike for rows of one length.
        _, group, sizes = np.unique(lengths, return_inverse=True, return_counts=True)
        ends = np.cumsum(sizes) / len(lengths)
        self._from, self._to = (ends - sizes / len(lengths))[group], ends[group]

    def epoch(self, number: int) -> list[Rows]:
        """All rows in batches of ``batch_size``, one of them maybe smaller; ``number`` is 0-based."""
        generator = np.random.default_rng([self._seed, number])
        rows = len(self._lengths)
        whole, rest = divmod(rows, self._batch_size)
        sizes = [self._batch_size] * whole + [rest] * (rest > 0)
        if self._blur is None:
            return np.split(generator.permutation(rows), np.cumsum(sizes)[:-1])
        places = generator.uniform(self._from, self._to) + generator.uniform(0, self._blur, rows)
        by_length = np.argsort(places, kind="stable")
        batches = np.split(by_length, np.cumsum(generator.permutation(sizes))[:-1])
        return [batches[position] for position in generator.permutation(len(batches))]


def parts_within(batch: Rows, windows: Rows, lengths: Rows, most_tokens: int) -> list[Rows]:
    """The rows of a batch in parts that are computed one after the other, their gradients added.

    Row i is computed as ``windows[i]`` sequences of ``lengths[i]`` tokens. A part has at most
    ``most_tokens``, padding included, or one row. Rows that need no parts keep their order.
    """
    if not len(batch) or windows[batch].sum() * lengths[batch].max() <= most_tokens:
        return [batch] if len(batch) else []
    longest_first = batch[np.argsort(-lengths[batch], kind="stable")]
    parts: list[Rows] = []
    start = held = 0
    for place, row in enumerate(longest_first):
        held += int(windows[row])
        if place > start and held * lengths[longest_first[start]] > most_tokens:
            parts.append(longest_first[start:place])
            start, held = place, int(windows[row])
    return [*parts, longest_first[start:]]


def padding_share(lengths: Rows, batches: list[Rows], windows: Rows | None = None) -> float:
    """The share of computed tokens that are padding when each batch is padded to its longest row.

    Row i has ``lengths[i]`` tokens, or as many in each of ``windows[i]`` sequences.
    """
    counts = np.ones_like(lengths) if windows is None else windows
    computed = sum(int(lengths[batch].max()) * int(counts[batch].sum()) for batch in batches)
    return 1.0 - int((lengths * counts).sum()) / computed if computed else 0.0


@dataclass(frozen=True)
class Schedule:
    """The optimiser steps of a training.

    Attributes:
        per_epoch: steps in one pass over the rows.
        of_epochs: steps in the recipe's epochs; at least one.
        total: as many, or ``training.min_steps``, whichever is more.
        epochs: passes over the rows that ``total`` steps make.
        warmup: steps until the full learning rate is reached.
        validate_every: steps from one validation to the next; 0: the only one is at the end.
    """

    per_epoch: int
    of_epochs: int
    total: int
    epochs: float
    warmup: int
    validate_every: int

    @classmethod
    def of(cls, rows: int, training: TrainingSection) -> Schedule:
        """The steps of a training on ``rows`` rows."""
        per_epoch = math.ceil(math.ceil(rows / training.batch_size) / training.accumulation)
        of_epochs = max(1, round(per_epoch * training.epochs))
        total = max(training.min_steps, of_epochs)
        epochs = training.epochs if total == of_epochs else total / per_epoch
        every = 1.0 if training.validate_every is None else training.validate_every
        schedule = cls(per_epoch, of_epochs, total, epochs, warmup_steps(training.warmup, total), 0)
        return replace(schedule, validate_every=schedule.interval(every, training))

    def interval(self, every: int | float, training: TrainingSection) -> int:
        """Steps from one validation or checkpoint to the next, given as steps or in epochs; 0 for never.

        Where ``min_steps`` makes a training longer than its epochs, these are spread over its length: so a
        recipe of three epochs is validated three times, however few rows there are.
        """
        if isinstance(every, int) or not every:
            return int(every)
        of_epoch = self.total / training.epochs if self.total > self.of_epochs else float(self.per_epoch)
        return max(1, round(every * of_epoch))

    @property
    def validations(self) -> int:
        """How many states will be validated: one at each interval, and the last."""
        return math.ceil(self.total / self.validate_every) if self.validate_every else 1


def warmup_steps(warmup: int | float, steps: int) -> int:
    """Warm-up in steps: an int is steps, a float a share of all; at most half of them, so that the full rate
    is reached and left again in a training that is shorter than its recipe's.
    """
    return min(steps // 2, warmup if isinstance(warmup, int) else math.ceil(warmup * steps))


def rate_factor(step: int, *, steps: int, warmup: int, schedule: str) -> float:
    """The share of the full learning rate that optimiser step ``step`` (0-based) uses.

    Rises linearly over ``warmup`` steps; then ``cosine`` (Loshchilov & Hutter, 2017) and ``linear`` fall
    to zero at ``steps``, ``constant`` stays. The same curves as transformers' schedules.
    """
    if step < warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    falling = max(1, steps - warmup)
    if schedule == "linear":
        return max(0.0, (steps - step) / falling)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / falling)))
