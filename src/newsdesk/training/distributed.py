"""The processes that train one model together: one by itself, or those that torchrun started."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from newsdesk.errors import UserError, counted
from newsdesk.model.network import choose_device
from newsdesk.training import local_rank, started_by_torchrun

_SECONDS_TO_MEET = 600.0


@dataclass(frozen=True)
class Team:
    """This process among those that train one model; by itself it is the whole team.

    Every process holds the whole model and computes its share of every batch's rows; the sum of their
    gradients is what one process would have computed (synchronous data parallelism). So the recipe's batch
    size is the global one, however many processes there are.

    Attributes:
        rank: 0 for the lead, the process that logs and writes.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that logs and writes."""
        return self.rank == 0

    def shares(self, batch: NDArray[Any]) -> list[NDArray[Any]]:
        """The rows of a batch that each process computes; empty for some where there are few rows."""
        return [batch[rank :: self.size] for rank in range(self.size)]

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace ``tensor``, of one shape in all processes, by the sum over all of them; and return it."""
        if self.size > 1:
            with _explaining_loss_of_a_process():
                distributed.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by the sum over all processes, in one exchange; none counts as zero."""
        if self.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        total = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = total.split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def any(self, here: bool) -> bool:
        """Whether it is true in any process: all must ask, and all get the same answer."""
        return (
            here if self.size == 1 else bool(self.sum(torch.tensor(float(here), device=_exchange_device())))
        )

    def copy_from_lead(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors with the lead's, in place."""
        if self.size > 1:
            with torch.no_grad(), _explaining_loss_of_a_process():
                for tensor in tensors:
                    distributed.broadcast(tensor, src=0)

    def bytes_from_lead(self, content: bytes) -> bytes:
        """What the lead gives here, in every process; what the others give is not looked at."""
        if self.size == 1:
            return content
        device = _exchange_device()
        length = torch.tensor(len(content), device=device)
        self.copy_from_lead([length])
        buffer = torch.zeros(int(length), dtype=torch.uint8, device=device)
        if self.leads and content:
            buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self.copy_from_lead([buffer])
        return buffer.cpu().numpy().tobytes()


@contextmanager
def gathered(device_name: str) -> Iterator[tuple[Team, torch.device]]:
    """The team that this process belongs to and the device it computes on, for as long as the block runs.

    Under torchrun every process gets a GPU of its own, or a share of the CPU. Raises UserError for a device
    that is not there, or that several processes cannot share.
    """
    device = choose_device(device_name)
    if not started_by_torchrun():
        yield Team(), device
        return
    if device.type == "cuda":
        device = torch.device("cuda", local_rank())
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"process {device.index + 1} of this machine finds no GPU of its own",
                found=f"{counted(torch.cuda.device_count(), 'GPU')}",
                fix=f"use torchrun --nproc-per-node {torch.cuda.device_count()}",
            )
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise UserError(
            f"several processes cannot train on {device.type}",
            fix="train without torchrun, or with --set training.device=cpu",
        )
    store, rank, size = next(rendezvous("env://"))
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=_meet(store, rank, size), rank=rank, world_size=size)
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size()), device
    finally:
        distributed.destroy_process_group()


def _meet(store: Store, rank: int, size: int) -> Store:
    """A part of the store to which only the processes alive now write.

    After a restart torchrun's store still holds the addresses of lost processes, and an early process would
    connect to those. So the lead offers a new name to all that have signed in, lost or not, until all have
    answered under that name, which only live ones do.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"newsdesk/{rank}", own)
        name = store.get(own).decode()
        store.set(f"{name}/{rank}", "here")
        return PrefixStore(name, store)
    others, deadline = range(1, size), time.monotonic() + _SECONDS_TO_MEET
    while not store.check([f"{own}/{other}" for other in others]):
        for other in others:
            if store.check([f"newsdesk/{other}"]):
                store.set(store.get(f"newsdesk/{other}").decode(), own)
        if time.monotonic() > deadline:
            raise UserError(
                f"not all of the {size} processes that train together arrived",
                found=f"waited {_SECONDS_TO_MEET:.0f} seconds",
                fix="look at what the others printed; all machines need a torchrun with one --rdzv-endpoint",
            )
        time.sleep(0.05)
    return PrefixStore(own, store)


def _exchange_device() -> str:
    return "cuda" if distributed.get_backend() == "nccl" else "cpu"


@contextmanager
def _explaining_loss_of_a_process() -> Iterator[None]:
    """Turn a broken exchange, by which the others notice a lost process, into a UserError."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            "another process of this training was lost",
            found=str(error).strip().splitlines()[0],
            fix="torchrun --max-restarts N restarts all and resumes from the last checkpoint; "
            "or run the same command again with --resume",
        ) from error
