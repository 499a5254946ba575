"""An output that is gone once it is written: standard output, a pipe, a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from newsdesk.inference.part_file import Checkpoint, Convert


class DirectOutput:
    """Takes what a part file takes, and keeps no journal.

    Attributes:
        checkpoint: how far it has come.
    """

    def __init__(self, sink: BinaryIO, rejects: BinaryIO | None) -> None:
        self.checkpoint = Checkpoint()
        self._sink = sink
        self._rejects = rejects

    def append(self, output: bytes, rejects: bytes, **counts: int) -> None:
        """Write both at once."""
        self._sink.write(output)
        self._sink.flush()
        if self._rejects is not None:
            self._rejects.write(rejects)
        self.checkpoint = self.checkpoint.plus(**counts)


@contextmanager
def direct_output(
    destination: Path | BinaryIO, rejects: Path | None, convert: Convert | None
) -> Iterator[DirectOutput]:
    """Write to a stream or a pipe's path, through ``convert`` in the end where the format needs it."""
    with ExitStack() as files:
        sink = files.enter_context(destination.open("wb")) if isinstance(destination, Path) else destination
        waiting = files.enter_context(TemporaryFile()) if convert is not None else None
        taker = files.enter_context(rejects.open("wb")) if rejects else None
        output = DirectOutput(waiting or sink, taker)
        try:
            yield output
        except BaseException:
            if rejects is not None and not output.checkpoint.rows_read:
                rejects.unlink(missing_ok=True)
            raise
        if convert is not None and waiting is not None:
            waiting.seek(0)
            convert(waiting, sink)
