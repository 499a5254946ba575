"""Examples + model to a run, as a stream of events; here what torchrun tells a process that it started."""

from __future__ import annotations

import os

_SET_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun, or a scheduler like it, started."""
    return all(name in os.environ for name in _SET_BY_TORCHRUN)


def rank() -> int:
    """This process's number among them, 0 for the one that logs and writes; 0 without torchrun."""
    return int(os.environ["RANK"]) if started_by_torchrun() else 0


def local_rank() -> int:
    """This process's number among those on the same machine."""
    return int(os.environ["LOCAL_RANK"]) if started_by_torchrun() else 0


def restarted() -> bool:
    """Whether torchrun restarted this process because one of the team was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
