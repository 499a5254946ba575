"""Checkpoints of a training: one file each, whole or absent, that proves itself by the hash in its name.

    checkpoints/step-00000120-9f86d081884c7d65.safetensors

A file holds the tensors of a ``Snapshot``; its header, the counters, what it was trained on, and the length
of the log. The two newest are kept, so that one of them is whole whatever happens to the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from newsdesk.errors import UserError
from newsdesk.files import read_regular, write_bytes
from newsdesk.model.classifier import restore_state, trainable_state

if TYPE_CHECKING:
    from peft import PeftModel


_LARGEST = 8 << 30
_HASH_DIGITS = 16
_NAMES = "step-*.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What one file holds.

    Attributes:
        snapshot: the training's state.
        identity: hashes of what it was trained on.
        log_bytes: how long log.jsonl was.
    """

    snapshot: Snapshot
    identity: Mapping[str, str]
    log_bytes: int


class Checkpoints:
    """The checkpoints of one run: written, pruned, found again."""

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        """Keep checkpoints in ``folder``; ``identity`` names what the training depends on, by hashes."""
        self._folder = folder
        self._identity = dict(identity)
        self._newest: Path | None = None

    def save(self, snapshot: Snapshot, log_bytes: int) -> Path:
        """Write a checkpoint, then remove all but it and the one before.

        Raises UserError when there is no space; all earlier ones are still there then.
        """
        content = encode(Checkpoint(snapshot, self._identity, log_bytes))
        path = self._folder / f"step-{snapshot.counters['step']:08d}-{_hash(content)}.safetensors"
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
            content = read_regular(path, _LARGEST)
            if path.stem.endswith(f"-{_hash(content)}"):
                self._newest = path
                return content, tuple(passed_over)
            passed_over.append(path.name)
        return b"", tuple(passed_over)

    def require_same_ground(self, checkpoint: Checkpoint) -> None:
        """Raise UserError when the training stood on other rows or another base model than now."""
        changed = [name for name, value in self._identity.items() if checkpoint.identity.get(name) != value]
        if changed:
            raise UserError(
                f"{self._folder.parent} cannot be resumed: what it was trained on has changed",
                found=f"the {' and the '.join(changed)} had another sha256 before",
                fix="put the original back, or start over with --overwrite in place of --resume",
            )

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

    facts = {
        "counters": checkpoint.snapshot.counters,
        "identity": checkpoint.identity,
        "log_bytes": checkpoint.log_bytes,
    }
    return save(dict(checkpoint.snapshot.tensors), metadata={"newsdesk": json.dumps(facts)})


def decode(content: bytes) -> Checkpoint:
    """The inverse of ``encode``, for bytes whose hash was checked."""
    from safetensors.torch import load

    # The format is a header's length in 8 bytes, the header as JSON, the tensors' bytes.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    facts = json.loads(header["__metadata__"]["newsdesk"])
    return Checkpoint(Snapshot(load(content), facts["counters"]), facts["identity"], facts["log_bytes"])


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
class Snapshot:
    """All that the rest of a training depends on.

    Attributes:
        tensors: trained parameters, the best ones so far, the optimiser's moments; by name, on the CPU.
        counters: JSON types: steps and tokens done, scores, patience.
    """

    tensors: Mapping[str, Tensor]
    counters: Mapping[str, Any]


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
    parts: dict[str, dict[str, Tensor]] = {_TRAINED: {}, _BEST: {}, _OPTIMISER: {}}
    for full_name, tensor in snapshot.tensors.items():
        part, _, name = full_name.partition("/")
        parts[part][name] = tensor
    shapes = {name: tensor.shape for name, tensor in trainable_state(model).items()}
    if {name: tensor.shape for name, tensor in parts[_TRAINED].items()} != shapes:
        raise ValueError("the snapshot is of another model: its trained parameters differ")
    restore_state(model, parts[_TRAINED])
    moments: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in parts[_OPTIMISER].items():
        number, _, name = full_name.partition("/")
        moments.setdefault(int(number), {})[name] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    return parts[_BEST]
