"""Checkpoints of a training: one file each, whole or absent, that proves itself by the hash in its name.

    checkpoints/step-00000120-9f86d081884c7d65.safetensors

A file holds the tensors of a ``Snapshot``; its header, the counters, what it was trained on, and the length
of the log. The two newest are kept, so that one of them is whole whatever happens to the other.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from newsdesk.errors import UserError
from newsdesk.files import damaged, parsed_json, read_regular, write_bytes
from newsdesk.model.classifier import restore_state, trainable_state
from newsdesk.stored import from_content, to_content

if TYPE_CHECKING:
    from peft import PeftModel


_STATES = 5
"""What a checkpoint may take of the trained parameters' bytes: these, the best, two moments, slack."""
_BESIDE = 64 << 20
"""Bytes for all else: names, counters, logits."""
_HASH_DIGITS = 16
_NAMES = "step-*.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What one file holds.

    Attributes:
        snapshot: the training's state.
        identity: hashes of what it was trained on.
        log_bytes: how long log.jsonl was.
        recipe: the values that it was trained by, as JSON; checkpoints of earlier versions have none.
    """

    snapshot: Snapshot
    identity: Mapping[str, str]
    log_bytes: int
    recipe: Mapping[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run: written, pruned, found again."""

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, str],
        recipe: Mapping[str, Any] | None = None,
        *,
        trained_bytes: int = 0,
    ) -> None:
        """Keep checkpoints in ``folder``.

        ``identity`` names what the training depends on, by hashes; ``recipe`` has the values that it goes by,
        as JSON. Files too large for so many bytes of trained parameters are taken for damaged ones.
        """
        self._folder = folder
        self._identity = dict(identity)
        self._recipe = dict(recipe or {})
        self._largest = _STATES * trained_bytes + _BESIDE
        self._newest: Path | None = None

    def save(self, snapshot: Snapshot, log_bytes: int) -> Path:
        """Write a checkpoint, then remove all but it and the one before.

        Raises UserError when there is no space; all earlier ones are still there then.
        """
        content = encode(Checkpoint(snapshot, self._identity, log_bytes, self._recipe))
        path = self._folder / f"step-{snapshot.counters.step:08d}-{_hash(content)}.safetensors"
        try:
            write_bytes(path, content)
        except UserError as error:
            raise _not_written(error, self._newest, self._folder.parent) from error
        for old in self._own():
            if old not in (path, self._newest):
                old.unlink(missing_ok=True)
        self._newest = path
        return path

    def find(self) -> tuple[bytes, tuple[str, ...]]:
        """The bytes of the newest checkpoint that is whole, by its hash, which the next ``save`` keeps.

        Empty without one. And the names of newer files whose bytes are not those that were written.
        """
        passed_over: list[str] = []
        for path in sorted(self._folder.glob(_NAMES), reverse=True):
            with suppress(OSError):  # no regular file, or far too large
                content = read_regular(path, self._largest)
                if path.stem.endswith(f"-{_hash(content)}"):
                    self._newest = path
                    return content, tuple(passed_over)
            passed_over.append(path.name)
        return b"", tuple(passed_over)

    def require_same_ground(self, checkpoint: Checkpoint) -> None:
        """Raise UserError when the training stood on other rows, base model or recipe than now."""
        identity, before = checkpoint.identity, checkpoint.recipe
        ground = [name for name, value in self._identity.items() if identity.get(name, value) != value]
        keys = [
            f"{key} = {value!r:.80}, trained with {before[key]!r:.80}"
            for key, value in self._recipe.items()
            if key in before and json.dumps(before[key]) != json.dumps(value)  # 1 is a step, 1.0 an epoch
        ]
        if ground:
            keys.append(f"the {' and the '.join(ground)} had another sha256 before")
        if keys:
            raise UserError(
                f"{self._folder.parent} cannot be resumed: "
                f"{'what it was trained on' if ground else 'its recipe.toml'} has changed",
                found="\n       ".join(keys),
                fix="put the original back, or start over with --overwrite in place of --resume",
            )

    def unusable(self, found: str) -> UserError:
        """The error for the checkpoint that `find` gave, where it is none of this training."""
        path = self._newest or self._folder
        return damaged(path, found, fix="delete it to resume from the one before, or start over: --overwrite")

    def clear(self) -> None:
        """Remove all of them: the training is over."""
        for path in self._own():
            path.unlink(missing_ok=True)
        with suppress(OSError):  # not there, or something in it that is not ours
            self._folder.rmdir()

    def _own(self) -> list[Path]:
        """Checkpoints, and what a kill left half written of one."""
        return [*self._folder.glob(_NAMES), *self._folder.glob(f".{_NAMES}.*.part")]


def encode(checkpoint: Checkpoint) -> bytes:
    """A checkpoint as the bytes of one safetensors file."""
    from safetensors.torch import save

    counters = checkpoint.snapshot.counters
    facts = to_content(_Facts(counters, checkpoint.identity, checkpoint.log_bytes, checkpoint.recipe))
    return save(dict(checkpoint.snapshot.tensors), metadata={"newsdesk": json.dumps(facts)})


def decode(content: bytes) -> Checkpoint:
    """The inverse of ``encode``, for bytes whose hash was checked. Raises ValueError for any others."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
        # The format is a header's length in 8 bytes, the header as JSON, the tensors' bytes.
        header = parsed_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
        found = from_content(_Facts, json.loads(header["__metadata__"]["newsdesk"]))
    except (SafetensorError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no checkpoint: {error}") from None
    return Checkpoint(Snapshot(tensors, found.counters), found.identity, found.log_bytes, found.recipe)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_HASH_DIGITS]


def _not_written(error: UserError, newest: Path | None, run: Path) -> UserError:
    whole = "no earlier one is there" if newest is None else f"{newest.name} is whole"
    return UserError(
        f"no checkpoint could be written: {error.wrong}",
        found=f"{error.found}; {whole}",
        fix=f"free some space, then continue with  newsdesk train --out {run} --resume",
    )


_TRAINED, _BEST, _OPTIMISER = "trained", "best", "optimiser"


@dataclass(frozen=True)
class Counters:
    """How far a training has come, and how good it was; checkpoints of earlier versions lack some of it."""

    step: int
    validated_step: int = 0
    best_step: int = 0
    best_score: float = -math.inf
    best_loss: float = math.inf
    validations_without_gain: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    recent_losses: tuple[float, ...] = ()
    scaler: Mapping[str, Any] = field(default_factory=dict)

    def require_within(self, steps: int) -> None:
        """Raise ValueError unless a training of so many ``steps`` can have come to this."""
        if not 0 <= max(self.validated_step, self.best_step) <= self.step <= steps:
            raise ValueError(f"step {str(self.step)[:20]} of a training of {steps:,} steps")
        for name in ("validated_step", "best_step", "validations_without_gain", "tokens"):
            if not 0 <= getattr(self, name) < 1 << 62:
                raise ValueError(f"{name} is {str(getattr(self, name))[:20]}")
        if not self.tokens <= self.padded_tokens < 1 << 62:
            raise ValueError(f"padded_tokens is {str(self.padded_tokens)[:20]}")
        if any(map(math.isnan, (self.best_score, self.best_loss))):
            raise ValueError("best_score or best_loss is nan")
        if not all(map(math.isfinite, self.recent_losses)):
            raise ValueError("recent_losses has one that is no finite number")


@dataclass(frozen=True)
class _Facts:
    """What the header of a checkpoint says."""

    counters: Counters
    identity: Mapping[str, str]
    log_bytes: int
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """All that the rest of a training depends on.

    Attributes:
        tensors: trained parameters, the best ones so far, the optimiser's moments; by name, on the CPU.
        counters: steps and tokens done, scores, patience.
    """

    tensors: Mapping[str, Tensor]
    counters: Counters


def gather_state(
    model: PeftModel, optimiser: torch.optim.Optimizer, best: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Copies of the trained parameters, the best ones and the optimiser's state, under flat names."""
    tensors = {f"{_TRAINED}/{name}": tensor for name, tensor in trainable_state(model).items()}
    tensors |= {f"{_BEST}/{name}": tensor for name, tensor in best.items()}
    for number, values in optimiser.state_dict()["state"].items():
        tensors |= {f"{_OPTIMISER}/{number}/{name}": value for name, value in values.items()}
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def hand_out_state(
    snapshot: Snapshot, model: PeftModel, optimiser: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Put a snapshot's tensors back in place, and return the best parameters so far.

    Raises ValueError when they do not belong to this model.
    """
    trained = trainable_state(model)
    slots = {f"{part}/{name}": tensor for part in (_TRAINED, _BEST) for name, tensor in trained.items()}
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for number, parameter in enumerate(parameters):
        for name in _MOMENTS:
            slots[f"{_OPTIMISER}/{number}/{name}"] = torch.zeros(()) if name == "step" else parameter
    _require_fitting(snapshot, slots)
    restore_state(model, {name: snapshot.tensors[f"{_TRAINED}/{name}"] for name in trained})
    found: dict[int, dict[str, Tensor]] = {}
    for full_name in snapshot.tensors:
        part, _, number_and_name = full_name.partition("/")
        if part == _OPTIMISER:
            of, _, name = number_and_name.partition("/")
            found.setdefault(int(of), {})[name] = snapshot.tensors[full_name]
    if incomplete := [of for of, moments in found.items() if moments.keys() != set(_MOMENTS)]:
        raise ValueError(f"the optimiser's state of parameter {incomplete[0]} is incomplete")
    optimiser.load_state_dict({**optimiser.state_dict(), "state": found})
    best = f"{_BEST}/"
    return {name.removeprefix(best): of for name, of in snapshot.tensors.items() if name.startswith(best)}


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter that it has moved."""


def _require_fitting(snapshot: Snapshot, slots: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless every tensor has a slot of its shape, and all trained ones are there."""
    for name, tensor in snapshot.tensors.items():
        slot = slots.get(name)
        if slot is None or tensor.shape != slot.shape or tensor.dtype != slot.dtype:
            raise ValueError(f"the snapshot is of another model: {name:.80} of shape {tuple(tensor.shape)}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name:.80} holds numbers that are not finite")
    best_is_due = snapshot.counters.best_step > 0
    for name in slots:
        due = name.startswith(f"{_TRAINED}/") or (best_is_due and name.startswith(f"{_BEST}/"))
        if due and name not in snapshot.tensors:
            raise ValueError(f"the snapshot is of another model: it lacks {name:.80}")
