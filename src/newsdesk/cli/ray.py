"""What ``predict --engine ray`` adds: its flags, and what it shows of a job on many machines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from newsdesk.cli.shared import AnyCallable, flag, note, note_promise, note_reading, terminal
from newsdesk.errors import counted

if TYPE_CHECKING:
    from rich.console import Console

    from newsdesk.prediction.ray_bulk import RayEvent

_LINE_EVERY = 15.0  # seconds


def ray_flags(function: AnyCallable) -> AnyCallable:
    """Add the flags of ``--engine ray``, which come as ``ray_address``, ``ray_workers`` and ``ray_cores``."""
    flags: list[Callable[[AnyCallable], AnyCallable]] = [
        flag(
            "--ray-address",
            help="With --engine ray: the cluster; default: RAY_ADDRESS, else this machine.",
            metavar="HOST:PORT|ray://...",
        ),
        flag(
            "--ray-workers",
            type=click.IntRange(min=1),
            help="With --engine ray: how many; default: as many as the cluster has cores for now.",
        ),
        flag(
            "--ray-cores", type=click.IntRange(min=1), help="With --engine ray: of each worker; default: 1."
        ),
    ]
    for add in reversed(flags):
        function = add(function)
    return function


def refuse_ray_flags(ray: Mapping[str, Any]) -> None:
    """Raise click.UsageError if any of these flags was given: another engine computes."""
    given = [f"--{name.replace('_', '-')}" for name, value in ray.items() if value is not None]
    if given:
        raise click.UsageError(f"{given[0]} goes with --engine ray.")


def predict_with_ray(
    run: Path,
    source: str | None,
    output: str | None,
    *,
    ray_address: str | None,
    ray_workers: int | None,
    ray_cores: int | None,
    one_machine_only: bool,
    promise: Mapping[str, Any],
    **settings: Any,
) -> None:
    """Classify files on a Ray cluster, and say what became of them; settings as for ``predict_on_ray``.

    ``promise`` are those that ``Classifier.decision_rule`` takes.

    ``one_machine_only`` says whether texts, --json or --rejects were given. Raises click.UsageError for
    them, and where files do not come from and go to folders.
    """
    if one_machine_only or source in (None, "-") or output in (None, "-"):
        raise click.UsageError(
            "--engine ray takes --input FILE|FOLDER|URI and --output FOLDER|URI; texts, pipes, --json and "
            "--rejects are for one machine (bad rows go to _rejects in the output folder)."
        )
    from newsdesk.prediction.open_model import open_model
    from newsdesk.prediction.ray_bulk import predict_on_ray

    console = terminal()
    predictor = open_model(run, engine="onnx")
    totals = predict_on_ray(
        predictor,
        str(source),
        str(output),
        address=ray_address,
        workers=ray_workers,
        cores=ray_cores or 1,
        observe=_Progress(console).show,
        **settings,
        **promise,
    )
    rejected = f"; {totals.rejected:,} rejected, see {output}/_rejects" if totals.rejected else ""
    note(console, f"{counted(totals.shards, 'file')}, {counted(totals.rows_read, 'row')}{rejected}")
    note_reading(totals.truncation, predictor.max_length, totals.unreadable)
    if promise:
        rule = predictor.decision_rule(**promise, answer_empty=settings["answer_empty"])
        note_promise(rule, totals.unanswered, totals.rows_written)


class _Progress:
    """A line now and then: how many files are done, and how fast."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = self._last_line = time.monotonic()
        self._rows = 0

    def show(self, event: RayEvent) -> None:
        from newsdesk.prediction.ray_bulk import JobBegun

        if isinstance(event, JobBegun):
            if event.done:
                note(self._console, f"resuming: {event.done:,} of {counted(event.shards, 'file')} are done")
            return
        self._rows += event.counts.rows_read
        now = time.monotonic()
        if now - self._last_line >= _LINE_EVERY:
            rate = self._rows / (now - self._began)
            note(self._console, f"{event.done:,} of {counted(event.of, 'file')}, {rate:,.0f} rows/s")
            self._last_line = now
