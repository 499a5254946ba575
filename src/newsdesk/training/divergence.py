"""What goes wrong inside a training step, in words that say what to change."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from newsdesk.config import TrainingSection
from newsdesk.errors import UserError, counted

_RECENT = 25
"""Steps over which the loss is averaged before it is called diverging: single batches jump."""

_TOO_HIGH = 5.0
"""Times the loss of guessing: no training that will still come to something is so wrong for so long."""


class DivergenceWatch:
    """Tells a training that is going nowhere from one that learns, by its losses alone.

    Attributes:
        recent: the losses of the last steps, oldest first; what a checkpoint has to keep.
    """

    def __init__(self, classes: int, training: TrainingSection) -> None:
        """Compare with the loss of guessing among ``classes``, its natural logarithm."""
        self._limit = _TOO_HIGH * math.log(max(2, classes))
        self._training = training
        self.recent: list[float] = []

    def check(self, step: int, loss: float, rows: str) -> None:
        """Take the loss of one step, computed on ``rows``, as a message names them.

        Raises UserError when it is not a number, or when the mean of the last 25 is five times what
        guessing costs.
        """
        self.recent = [*self.recent[1 - _RECENT :], loss]
        mean = sum(self.recent) / len(self.recent)
        if not math.isfinite(loss):
            raise self.error(step, f"the loss is {loss}", rows)
        if len(self.recent) == _RECENT and mean > self._limit:
            raise self.error(step, f"the mean loss of the last {_RECENT} steps is {mean:.3g}", rows)

    def error(self, step: int, what: str, rows: str) -> UserError:
        """The error for a training that diverged at ``step``."""
        rate = self._training.learning_rate
        return UserError(
            f"training diverged: {what} at step {step}",
            found=f"{rows}, learning rate {rate:g}",
            fix=f"lower it, for example --set training.learning_rate={rate / 3:.1g}, "
            "or use --set training.precision=float32",
        )


@contextmanager
def explaining_memory(training: TrainingSection) -> Iterator[None]:
    """Turn the failure to allocate memory, on a CPU or a GPU, into a UserError that suggests a batch size."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not _is_out_of_memory(error):
            raise
        raise _out_of_memory(error, training) from error


def _is_out_of_memory(error: Exception) -> bool:
    signs = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(s in str(error) for s in signs)


def _out_of_memory(error: Exception, training: TrainingSection) -> UserError:
    size, accumulation = training.batch_size, training.accumulation
    fix = "use a smaller base model, or a machine with more memory"
    if size > 1:
        half = -(-size // 2)
        fix = (
            f"use --set training.batch_size={half} --set training.accumulation={2 * accumulation}: "
            "as many rows a step, about half the memory; or a lower --set model.max_length"
        )
    return UserError(
        "out of memory while training",
        found=f"batches of {counted(size, 'row')}; "
        f"{str(error).strip().splitlines()[0] if str(error) else 'no more'}",
        fix=fix,
    )
