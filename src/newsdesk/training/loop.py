"""The training loop: a generator of events. No printing, no files, no clock in here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from newsdesk.config import TrainingSection
from newsdesk.label_set_metrics import Counts, binary_log_loss
from newsdesk.metrics import evaluate_probabilities
from newsdesk.model.classifier import restore_state, trainable_state
from newsdesk.model.network import Network, predict_logits
from newsdesk.model.tokenizer import TokenIds, lengths_of
from newsdesk.runs.label_decisions import strata
from newsdesk.runs.log import Event, Finished, FinishReason, Interrupted, Started, Step, Validation
from newsdesk.training.batches import Batcher, Schedule, parts_within, rate_factor
from newsdesk.training.checkpoints import Counters, Snapshot, gather_state, hand_out_state
from newsdesk.training.distributed import Team
from newsdesk.training.held_out import HeldOut
from newsdesk.training.train_step import (
    DivergenceWatch,
    StepArithmetic,
    build_loss,
    build_optimiser,
    cuda_graphs,
    row_weights,
    start_at_shares,
)

# Reading a loss makes the processor wait for an accelerator; read in groups, its queue rarely runs empty.
_STEPS_READ_AT_ONCE = 64


@dataclass(frozen=True)
class EncodedRows:
    """Token ids of each row, and class ids (rows,); of several labels a text truth values, (rows, labels)."""

    token_ids: list[TokenIds]
    labels: NDArray[Any]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, (rows,)."""
        return lengths_of(self.token_ids)


def train(
    network: Network,
    rows: EncodedRows,
    validation: EncodedRows,
    training: TrainingSection,
    *,
    max_length: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """The events of a :class:`TrainingLoop` that starts from the beginning, by itself."""
    return TrainingLoop(network, rows, validation, training, max_length=max_length).events(stopped)


class TrainingLoop:
    """Trains the network's adapters and head in place, and yields what happens as events.

    Between two events a ``snapshot`` can be taken; a fresh loop that ``restore``s it continues bit for bit as
    this one would have (on a CPU, with the same number of threads). Every step seeds what is random in it
    from the recipe's seed, its own number and the process's rank, so no random state has to be stored.

    Attributes:
        held_out: which of the validation rows choose the best state and which do not.
        end: the step after which it ends; before ``steps`` where it is known that an earlier state is better.
        best_logits: of the validation rows by the best state so far, (rows, classes); None before any.
    """

    def __init__(
        self,
        network: Network,
        rows: EncodedRows,
        validation: EncodedRows,
        training: TrainingSection,
        *,
        max_length: int,
        team: Team | None = None,
        drawn: NDArray[np.int64] | None = None,
    ) -> None:
        """Prepare a training of ``network`` on ``rows``, no window of them longer than ``max_length`` tokens.

        A batch is computed in parts of no more tokens than it has where no text is longer than that: memory
        does not grow with the windows of long texts.
        ``validation`` may be empty. ``drawn`` are the rows of an epoch where the network was trained before,
        some of them perhaps several times; None: all rows, and a fresh head. Raises ValueError without
        training rows.
        """
        if not rows.token_ids:
            raise ValueError("there are no rows to train on")
        self.network, self.rows, self.validation, self.training = network, rows, validation, training
        self.team = team or Team()
        # The windows that each row is computed in, and the tokens of each of them.
        self.windows, self.lengths = network.windows.shapes(rows.lengths)
        self.most_tokens = -(-training.batch_size // self.team.size) * max_length
        self.drawn = np.arange(len(rows.token_ids)) if drawn is None else drawn
        self.schedule = Schedule.of(len(self.drawn), training)
        self.steps = self.end = self.schedule.total
        self.batcher = Batcher(
            self.lengths[self.drawn],
            training.batch_size,
            seed=training.seed,
            group_by_length=training.group_by_length,
        )
        self.held_out = HeldOut.of(strata(validation.labels), self.schedule.validations, training)
        self.pad_to = max_length if training.pad_to_max_length else None
        classes = network.model.config.num_labels
        if rows.labels.ndim == 2 and drawn is None:
            start_at_shares(network.model, rows.labels.mean(axis=0))
        self.optimiser = build_optimiser(network.model, training)
        self.trained = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.team.copy_from_lead(self.trained)
        loss = build_loss(training, rows.labels, classes).to(network.device)
        self.row_weights = row_weights(loss, rows.labels)
        # Every number of windows would be a shape of its own.
        capture = cuda_graphs(network) if training.compile == "on" and (self.windows == 1).all() else None
        self.arithmetic = StepArithmetic(network, loss, self.optimiser, training.clip, capture)
        self.watch = DivergenceWatch(2 if rows.labels.ndim == 2 else classes, training)
        self.step = self.validated_step = self.best_step = 0
        self.best_score, self.best_loss = -math.inf, math.inf
        self.best_state: dict[str, Tensor] = {}
        self.best_logits: NDArray[np.float32] | None = None
        self.validations_without_gain = 0
        self.tokens = self.padded_tokens = 0
        network.train()

    def events(self, stopped: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Train to the end. After ``Finished`` the network holds the best state by ``training.metric`` on the
        validation rows that choose, or the last validated state where none do.

        ``stopped`` is asked after every step and during validation; when it says True, ``Interrupted``
        follows, the moment to take a last snapshot, and training ends with reason ``interrupted``.

        Raises UserError when the loss is no longer a number or far worse than guessing, naming the step and
        the batch's rows, and when another process of the team is lost.
        """
        yield Started(
            steps=self.steps,
            epochs=self.schedule.epochs,
            rows=len(self.rows.token_ids),
            validation_rows=len(self.validation.token_ids),
            choosing_rows=len(self.held_out.choosing),
            device=str(self.network.device),
            precision=self.network.precision,
            engine=self.network.engine,
        )
        reason: FinishReason = "completed"
        for steps in self._trained_steps():
            yield from steps
            interrupted = self.team.any(stopped())
            if self._validation_is_due() and not interrupted:
                validation = self._validate(stopped)
                interrupted = validation is None
                if validation is not None:
                    yield validation
            if interrupted:
                yield Interrupted(self.step, self.epoch)
            patience = self.training.patience
            if interrupted or (patience is not None and self.validations_without_gain >= patience):
                reason = "interrupted" if interrupted else "early-stopping"
                break
        restore_state(self.network.model, self.best_state)
        yield Finished(
            step=self.step,
            epoch=self.epoch,
            reason=reason,
            best_step=self.best_step or self.step,
            padding_share=1.0 - self.tokens / max(1, self.padded_tokens),
        )

    def snapshot(self) -> Snapshot:
        """All that the rest of the training depends on, as it is between two events."""
        counters = Counters(
            recent_losses=tuple(self.watch.recent),
            scaler=self.arithmetic.scaler.state_dict(),
            **{name: getattr(self, name) for name in _COUNTERS},
        )
        tensors = gather_state(self.network.model, self.optimiser, self.best_state)
        if self.best_logits is not None:
            tensors[_BEST_LOGITS] = torch.from_numpy(self.best_logits)
        return Snapshot(tensors, counters)

    def restore(self, snapshot: Snapshot) -> None:
        """Take up where ``snapshot`` was taken. Raises ValueError when it is of another training."""
        counters, scaler = snapshot.counters, self.arithmetic.scaler
        counters.require_within(self.steps)
        if {name: type(value) for name, value in counters.scaler.items()} != {
            name: type(value) for name, value in scaler.state_dict().items()
        }:
            raise ValueError("it was taken in another precision")
        tensors = dict(snapshot.tensors)
        logits = tensors.pop(_BEST_LOGITS, None)  # missing in checkpoints of earlier versions
        shape = (len(self.validation.token_ids), self.network.model.config.num_labels)
        if logits is not None and (tuple(logits.shape) != shape or not logits.isfinite().all()):
            raise ValueError(f"{_BEST_LOGITS} are not {shape} finite numbers")
        self.best_logits = None if logits is None else logits.float().numpy()
        self.best_state = hand_out_state(
            replace(snapshot, tensors=tensors), self.network.model, self.optimiser
        )
        for name in _COUNTERS:
            setattr(self, name, getattr(counters, name))
        self.watch.recent = list(counters.recent_losses)
        scaler.load_state_dict(dict(counters.scaler))

    @property
    def epoch(self) -> float:
        """Passes over the rows so far."""
        return self.step / self.schedule.per_epoch

    def falls_on(self, every: int | float) -> bool:
        """Whether the last step ends an interval of so many steps or epochs; 0: never."""
        interval = self.schedule.interval(every, self.training)
        return interval > 0 and self.step % interval == 0

    def _trained_steps(self) -> Iterator[list[Step]]:
        """Train, in groups of steps whose losses are read together; after a restore the first is empty."""
        if self.step:
            yield []
        together = 1 if self.network.device.type == "cpu" else _STEPS_READ_AT_ONCE
        waiting: list[tuple[Step, str, Tensor, Tensor]] = []
        for batches in self._batch_groups():
            waiting.append(self._take_step(batches))
            if len(waiting) == together or self._validation_is_due() or self.step == self.end:
                yield self._read(waiting)
                waiting = []

    def _batch_groups(self) -> Iterator[list[NDArray[np.int64]]]:
        """What is left of the training: batches in groups of ``accumulation``, one optimiser step each."""
        while self.step < self.end:
            epoch, done = divmod(self.step, self.schedule.per_epoch)
            batches = [self.drawn[places] for places in self.batcher.epoch(epoch)]
            together = self.training.accumulation
            for start in range(done * together, len(batches), together):
                if self.step < self.end:
                    yield batches[start : start + together]

    def _take_step(self, batches: list[NDArray[np.int64]]) -> tuple[Step, str, Tensor, Tensor]:
        """One optimiser step over the mean loss of all rows; its loss and norm stay on the device."""
        _seed_step(self.training.seed, self.step, self.team.rank)
        schedule, warmup = self.training.schedule, self.schedule.warmup
        factor = rate_factor(self.step, steps=self.steps, warmup=warmup, schedule=schedule)
        self.arithmetic.set_learning_rates(factor)
        total_weight = sum(float(self.row_weights[batch].sum()) for batch in batches)
        loss = torch.zeros((), device=self.network.device)
        for batch in batches:
            for part in self._parts(self.team.shares(batch)[self.team.rank]):
                sequences = [self.rows.token_ids[row] for row in part]
                labels = self.rows.labels[part]
                loss += self.arithmetic.add_gradients(sequences, labels, total_weight, self.pad_to)
        self.team.sum_gradients(self.trained)
        norm = self.arithmetic.update()
        tokens, padded = self._count_tokens(batches)
        self.step += 1
        step = Step(
            step=self.step,
            epoch=self.epoch,
            loss=math.nan,
            learning_rate=factor * self.training.learning_rate,
            gradient_norm=math.nan,
            rows=sum(len(batch) for batch in batches),
            tokens=tokens,
            padded_tokens=padded,
        )
        return step, _rows_in(batches), loss, norm

    def _parts(self, share: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """One process's share of a batch, in parts that are computed one after the other."""
        lengths = self.lengths if self.pad_to is None else np.full_like(self.lengths, self.pad_to)
        return parts_within(share, self.windows, lengths, self.most_tokens)

    def _read(self, waiting: list[tuple[Step, str, Tensor, Tensor]]) -> list[Step]:
        """The steps with losses and norms fetched from the device. Raises UserError on divergence."""
        losses = self.team.sum(torch.stack([loss for _, _, loss, _ in waiting])).tolist()
        norms = torch.stack([norm for *_, norm in waiting]).tolist()
        steps = []
        for (step, rows, *_), loss, norm in zip(waiting, losses, norms, strict=True):
            self.watch.check(step.step, loss, rows)
            steps.append(replace(step, loss=loss, gradient_norm=norm))
        return steps

    def _count_tokens(self, batches: list[NDArray[np.int64]]) -> tuple[int, int]:
        """Real and computed tokens of one step, over the whole team."""
        shares = (share for batch in batches for share in self.team.shares(batch))
        parts = [(self.windows[part], self.lengths[part]) for share in shares for part in self._parts(share)]
        tokens = sum(int((windows * lengths).sum()) for windows, lengths in parts)
        width = self.arithmetic.width
        padded = sum(
            width(int(lengths.max()), self.pad_to) * int(windows.sum()) for windows, lengths in parts
        )
        self.tokens += tokens
        self.padded_tokens += padded
        return tokens, padded

    def _validation_is_due(self) -> bool:
        """Whether to validate now: at its interval and at the very end, and once only."""
        if not self.validation.token_ids or self.step == self.validated_step:
            return False
        interval = self.schedule.validate_every
        return self.step == self.end or (interval > 0 and self.step % interval == 0)

    def _validate(self, stopped: Callable[[], bool]) -> Validation | None:
        """Measure on the rows that choose; remember the state when it is the best so far; None if stopped."""
        logits = self._validation_logits(stopped)
        if logits is None:
            return None
        if not np.isfinite(logits).all():
            raise self.watch.error(self.step, "the validation loss is nan", "validation rows")
        measured = self.held_out.measured
        found = validation_figures(logits[measured], self.validation.labels[measured])
        best = self._is_best(found)
        if best:
            self.best_step = self.step
            self.best_state, self.best_logits = trainable_state(self.network.model), logits
        self.validated_step = self.step
        return replace(found, step=self.step, epoch=self.epoch, best=best)

    def _is_best(self, found: Validation) -> bool:
        """Whether this state is to be kept: the higher score, of equal ones the lower loss; else the last."""
        if not len(self.held_out.choosing):
            return True
        loss = found.loss
        accuracy = found.accuracy if found.micro_f1 is None else found.micro_f1
        score = {"accuracy": accuracy, "macro_f1": found.macro_f1, "loss": -loss}[self.training.metric]
        self.validations_without_gain = 0 if score > self.best_score else self.validations_without_gain + 1
        if (score, -loss) <= (self.best_score, -self.best_loss):
            return False
        self.best_score, self.best_loss = score, loss
        return True

    def _validation_logits(self, stopped: Callable[[], bool]) -> NDArray[np.float32] | None:
        """Logits of the validation rows, each process computing its share; None if stopped meanwhile."""
        own = self.team.shares(np.arange(len(self.validation.token_ids)))[self.team.rank]

        def give_up_if_stopped(*_done: object) -> None:
            if self.team.size == 1 and stopped():  # a process that left alone would keep the others waiting
                raise _StoppedError

        try:
            logits = predict_logits(
                self.network,
                [self.validation.token_ids[row] for row in own],
                batch_size=2 * self.training.batch_size,
                progress=give_up_if_stopped,
            )
        except _StoppedError:
            self.network.train()
            return None
        everyone = torch.zeros(len(self.validation.token_ids), logits.shape[1], device=self.network.device)
        everyone[torch.from_numpy(own)] = torch.from_numpy(logits).to(self.network.device)
        return self.team.sum(everyone).cpu().numpy()


_BEST_LOGITS = "best_logits"
_COUNTERS = (
    "step",
    "validated_step",
    "best_step",
    "best_score",
    "best_loss",
    "validations_without_gain",
    "tokens",
    "padded_tokens",
)


def validation_figures(logits: NDArray[np.float32], labels: NDArray[Any]) -> Validation:
    """How good logits (rows, classes) are, by step 0; label sets are those more probable than not."""
    classes = logits.shape[1]
    exact = torch.from_numpy(logits).double()
    micro_f1 = None
    if labels.ndim == 2:
        assigned = logits > 0
        counts = Counts.of(assigned, labels)
        loss = binary_log_loss(exact.sigmoid().numpy(), labels)
        accuracy = float((assigned == labels).all(axis=1).mean())
        micro_f1, macro_f1 = float(counts.micro_f1()), float(counts.macro_f1())
        occurring = int(counts.occurs.sum())
    else:
        metrics = evaluate_probabilities(exact.softmax(-1).numpy(), labels, list(map(str, range(classes))))
        loss, accuracy = metrics.negative_log_likelihood, metrics.accuracy
        macro_f1, occurring = metrics.macro_f1, metrics.macro_f1_classes
    return Validation(
        step=0,
        epoch=0.0,
        loss=loss,
        accuracy=accuracy,
        macro_f1=macro_f1,
        best=False,
        rows=len(labels),
        macro_f1_classes=occurring,
        classes=classes,
        micro_f1=micro_f1,
    )


class _StoppedError(Exception):
    """Validation was given up."""


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch on all devices for one step of one process."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def _rows_in(batches: list[NDArray[np.int64]]) -> str:
    return f"training rows {', '.join(str(row) for row in np.concatenate(batches)[:16])} in the batch"
