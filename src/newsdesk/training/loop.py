"""The training loop: a generator of events. No printing, no files, no clock in here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from newsdesk.config import TrainingSection
from newsdesk.errors import UserError
from newsdesk.metrics import evaluate_probabilities
from newsdesk.model.classifier import restore_state, trainable_state
from newsdesk.model.network import Network, predict_logits
from newsdesk.model.tokenizer import TokenIds
from newsdesk.training.batches import epoch_batches
from newsdesk.training.events import Event, Finished, FinishReason, Started, Step, Validation
from newsdesk.training.optimisation import build_loss, build_optimiser, rate_factor, warmup_steps


@dataclass(frozen=True)
class EncodedRows:
    """Rows as the network wants them: token ids of each, and class ids of shape (rows,)."""

    token_ids: list[TokenIds]
    labels: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, (rows,)."""
        return np.array([len(ids) for ids in self.token_ids], dtype=np.int64)


def steps_per_epoch(rows: int, training: TrainingSection) -> int:
    """Optimiser steps in one pass over the rows."""
    return math.ceil(math.ceil(rows / training.batch_size) / training.accumulation)


def total_steps(rows: int, training: TrainingSection) -> int:
    """Optimiser steps of the whole training; at least one."""
    return max(1, round(steps_per_epoch(rows, training) * training.epochs))


def train(
    network: Network,
    rows: EncodedRows,
    validation: EncodedRows,
    training: TrainingSection,
    *,
    max_length: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Train the network's adapters and head in place, telling what happens as it happens.

    After ``Finished`` the network holds the best state by ``training.metric`` on the validation rows, or
    the last state where there are none. ``stopped`` is asked after every step; when it says True, training
    ends there with reason ``interrupted``.

    Raises UserError when the loss is no longer a number, naming the step and the batch's rows.
    """
    run = _Run(network, rows, validation, training, max_length)
    yield Started(
        steps=run.steps,
        epochs=training.epochs,
        rows=len(rows.token_ids),
        validation_rows=len(validation.token_ids),
        device=str(network.device),
        precision=network.precision,
        engine=network.engine,
    )
    reason: FinishReason = "completed"
    for done, batches in enumerate(islice(run.batch_groups(), run.steps), start=1):
        yield run.take_step(done - 1, batches)
        interrupted = stopped()
        if run.validates_after(done) and not interrupted:
            yield run.validate(done)
        if interrupted or run.has_run_out_of_patience():
            reason = "interrupted" if interrupted else "early-stopping"
            break
    run.restore_best()
    yield Finished(
        step=done,
        epoch=done / run.per_epoch,
        reason=reason,
        best_step=run.best_step or done,
        padding_share=1.0 - run.tokens / run.padded_tokens,
    )


class _Run:
    """The moving parts of one training: optimiser, counters and the best state so far."""

    def __init__(
        self,
        network: Network,
        rows: EncodedRows,
        validation: EncodedRows,
        training: TrainingSection,
        max_length: int,
    ) -> None:
        self.network, self.rows, self.validation, self.training = network, rows, validation, training
        self.per_epoch = steps_per_epoch(len(rows.token_ids), training)
        self.steps = total_steps(len(rows.token_ids), training)
        self.warmup = warmup_steps(training.warmup, self.steps)
        self.pad_to = max_length if training.pad_to_max_length else None
        self.optimiser = build_optimiser(network.model, training)
        self.trained = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.loss = build_loss(training, rows.labels, network.model.config.num_labels).to(network.device)
        self.scaler = torch.amp.GradScaler(network.device.type, enabled=network.precision == "float16")
        self.tokens = self.padded_tokens = 0
        self.best_score = -math.inf
        self.best_step = 0
        self.best_state: dict[str, Tensor] = {}
        self.validations_without_gain = 0
        network.train()

    def batch_groups(self) -> Iterator[list[NDArray[np.int64]]]:
        """Batches in groups of ``accumulation``, one optimiser step each, epoch after epoch without end."""
        lengths, epoch = self.rows.lengths, 0
        while True:
            batches = epoch_batches(
                lengths,
                self.training.batch_size,
                seed=self.training.seed,
                epoch=epoch,
                group_by_length=self.training.group_by_length,
            )
            for start in range(0, len(batches), self.training.accumulation):
                yield batches[start : start + self.training.accumulation]
            epoch += 1

    def take_step(self, step: int, batches: list[NDArray[np.int64]]) -> Step:
        """One optimiser step over the mean loss of all rows in ``batches``."""
        factor = rate_factor(step, steps=self.steps, warmup=self.warmup, schedule=self.training.schedule)
        for group in self.optimiser.param_groups:
            group["lr"] = factor * group["full"]
        all_rows = sum(len(batch) for batch in batches)
        loss = sum(self._backward(batch, len(batch) / all_rows) for batch in batches)
        if not math.isfinite(loss):
            raise _diverged(step + 1, loss, _batch_rows(batches), self.training.learning_rate)
        norm = self._clip_and_update()
        tokens, padded = self._count_tokens(batches)
        return Step(
            step=step + 1,
            epoch=(step + 1) / self.per_epoch,
            loss=loss,
            learning_rate=factor * self.training.learning_rate,
            gradient_norm=norm,
            rows=all_rows,
            tokens=tokens,
            padded_tokens=padded,
        )

    def _backward(self, batch: NDArray[np.int64], share: float) -> float:
        logits = self.network([self.rows.token_ids[row] for row in batch], self.pad_to)
        labels = torch.from_numpy(self.rows.labels[batch]).to(self.network.device)
        loss = self.loss(logits, labels) * share
        self.scaler.scale(loss).backward()
        return float(loss.detach())

    def _clip_and_update(self) -> float:
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.training.clip or math.inf)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        return float(norm)

    def _count_tokens(self, batches: list[NDArray[np.int64]]) -> tuple[int, int]:
        lengths = [[len(self.rows.token_ids[row]) for row in batch] for batch in batches]
        tokens = sum(map(sum, lengths))
        padded = sum((self.pad_to or max(batch)) * len(batch) for batch in lengths)
        self.tokens += tokens
        self.padded_tokens += padded
        return tokens, padded

    def validates_after(self, done: int) -> bool:
        """Whether validation is due after ``done`` steps: at its interval, and at the very end."""
        if not self.validation.token_ids:
            return False
        every = self.training.validate_every
        if every is None:
            every = self.per_epoch
        elif isinstance(every, float):
            every = max(1, round(every * self.per_epoch))
        return done == self.steps or (every > 0 and done % every == 0)

    def validate(self, done: int) -> Validation:
        """Measure on the validation rows; remember the state when it is the best so far."""
        logits = predict_logits(self.network, self.validation.token_ids)
        if not np.isfinite(logits).all():
            raise _diverged(done, math.nan, "validation rows", self.training.learning_rate)
        names = [str(label) for label in range(logits.shape[1])]
        probabilities = torch.from_numpy(logits).double().softmax(-1).numpy()
        metrics = evaluate_probabilities(probabilities, self.validation.labels, names)
        loss = metrics.negative_log_likelihood
        score = {"accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1, "loss": -loss}[
            self.training.metric
        ]
        best = score > self.best_score
        if best:
            self.best_score, self.best_step = score, done
            self.best_state = trainable_state(self.network.model)
        self.validations_without_gain = 0 if best else self.validations_without_gain + 1
        return Validation(done, done / self.per_epoch, loss, metrics.accuracy, metrics.macro_f1, best)

    def has_run_out_of_patience(self) -> bool:
        """Whether as many validations in a row as ``training.patience`` brought no gain."""
        patience = self.training.patience
        return patience is not None and self.validations_without_gain >= patience

    def restore_best(self) -> None:
        """Put the best validated state back into the network, if there was one."""
        restore_state(self.network.model, self.best_state)


def _batch_rows(batches: list[NDArray[np.int64]]) -> str:
    return f"training rows {', '.join(str(row) for row in np.concatenate(batches)[:16])} in the batch"


def _diverged(step: int, loss: float, rows: str, learning_rate: float) -> UserError:
    return UserError(
        f"training diverged: the loss is {loss} at step {step}",
        found=f"{rows}, learning rate {learning_rate:g}",
        mend=f"lower it, for example --set training.learning_rate={learning_rate / 3:.1g}, "
        "or use --set training.precision=float32",
    )
