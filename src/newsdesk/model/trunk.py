"""What the layers below the adapters compute for a text: training never changes it, so it is kept on disk.

    CACHE/trunk/KEY/states    (tokens, hidden) in 16 bits a number, text after text
    CACHE/trunk/KEY/index     a record for each text: a hash of its token ids, its first token, its tokens

KEY names the base model, the number of layers and the precision, so that runs which share these share the
states. A text's states are written before its record, under a lock: after a kill all recorded ones are whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from newsdesk.errors import UserError
from newsdesk.model.tokenizer import TokenIds, batches_by_tokens, lengths_of
from newsdesk.progress import Progress, counting, silent

STATES, INDEX, LOCK = "states", "index", "lock"
LIMIT = "NEWSDESK_TRUNK_GB"
"""The environment variable that says how many GB all kept states may take."""

_GB = 10**9
_USUAL_LIMIT_GB = 20.0
_SHARE_OF_FREE_SPACE = 0.5
_RECORD = np.dtype([("text", "V16"), ("first", "<i8"), ("tokens", "<i8")])
_TOKENS_PER_BATCH = 4096
_TOKENS_PER_RECORDING = 1 << 16
_OWN_FILES = {STATES, INDEX, LOCK}

Compute = Callable[[Sequence[TokenIds]], Tensor]


class TrunkStates:
    """The kept states of one trunk: filled once, read by every batch after."""

    def __init__(
        self, root: Path, identity: Mapping[str, str], *, hidden: int, dtype: torch.dtype, compute: Compute
    ) -> None:
        """Open, or begin, the states below ``root`` that ``identity`` names; nothing is written yet.

        Args:
            root: the folder of all trunks' states.
            identity: all that the states depend on besides the text: base model, layers, precision.
            hidden: numbers of a token's state.
            dtype: in which they are computed. bfloat16 is kept as it is, others as float16, whose rounding
                is the only difference from computing them anew.
            compute: token ids of texts to their padded states (rows, longest, hidden), without a gradient.
        """
        named = "\n".join(f"{name}: {value}" for name, value in sorted(identity.items()))
        self._folder = root / hashlib.sha256(named.encode()).hexdigest()[:32]
        self._hidden, self._dtype, self._compute = hidden, dtype, compute
        self._kept_dtype = dtype if dtype == torch.bfloat16 else torch.float16
        self._first: dict[bytes, int] = {}
        self._records = 0
        self._states: NDArray[np.int16] = np.zeros((0, hidden), dtype=np.int16)

    @property
    def texts(self) -> int:
        """How many texts are kept."""
        return len(self._first)

    def keep(self, sequences: Sequence[TokenIds], progress: Progress | None = None) -> None:
        """Compute and keep the states of all texts that are not kept yet, as far as the limit allows.

        Batches are made of all ``sequences`` alike, so that what a kill interrupted comes out the same. Waits
        while another process fills the same states. ``progress`` is called with the texts done. Raises
        UserError where the limit is no number.
        """
        unique = list({_name(ids): ids for ids in sequences}.values())
        limit = _limit_in_bytes()
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            (progress or silent)(0, None, "waiting for another newsdesk that computes the same layers")
            lock.acquire()
        try:
            self._open()
            os.utime(self._folder)
            missing = sum(len(ids) for ids in unique if _name(ids) not in self._first)
            room = self._make_room(2 * self._hidden * missing, limit)
            count = counting(progress, len(unique), "computing the lower layers once")
            self._fill(unique, len(self._states) + room // (2 * self._hidden), count)
            self._open()
        finally:
            lock.release()

    def batch(
        self, sequences: Sequence[TokenIds], to_length: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """States (rows, longest or ``to_length``, hidden) and mask of 1 and 0, int64 (rows, the same).

        The mask is None where nothing is padded. Texts that are not kept are computed.
        """
        lengths = lengths_of(sequences)
        width = to_length or int(lengths.max())
        kept = np.zeros((len(sequences), width, self._hidden), dtype=np.int16)
        missing = []
        for row, ids in enumerate(sequences):
            first = self._first.get(_name(ids))
            if first is None:
                missing.append(row)
            else:
                kept[row, : len(ids)] = self._states[first : first + len(ids)]
        states = torch.from_numpy(kept).view(self._kept_dtype)
        if missing:
            computed = self._computed([sequences[row] for row in missing])
            states[missing, : computed.shape[1]] = computed
        mask = torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64))
        return states.to(self._dtype), None if bool((lengths == width).all()) else mask

    @torch.no_grad()
    def _computed(self, sequences: Sequence[TokenIds]) -> Tensor:
        """(rows, longest, hidden) as it is kept, on the CPU."""
        return self._compute(sequences).to("cpu", self._kept_dtype)

    def _open(self) -> None:
        """Read the index, and map the states that it tells of; what lies beyond them was not finished."""
        content = b""
        with suppress(FileNotFoundError):
            content = (self._folder / INDEX).read_bytes()
        records = np.frombuffer(content[: len(content) // _RECORD.itemsize * _RECORD.itemsize], dtype=_RECORD)
        size = 2 * self._hidden
        states = self._folder / STATES
        there = states.stat().st_size // size if states.is_file() else 0
        ends = records["first"] + records["tokens"]
        whole = (records["first"] >= 0) & (records["tokens"] > 0) & (ends <= there)
        records = records if whole.all() else records[: int(np.argmin(whole))]
        tokens = int((records["first"] + records["tokens"]).max(initial=0))
        names = records["text"].tobytes()
        firsts = records["first"].tolist()
        self._first = {names[16 * row : 16 * row + 16]: first for row, first in enumerate(firsts)}
        self._records = len(records)
        if tokens:
            self._states = np.memmap(states, dtype=np.int16, mode="r", shape=(tokens, self._hidden))

    def _fill(self, sequences: list[TokenIds], most_tokens: int, count: Callable[[int], None]) -> None:
        """Append what is missing, up to ``most_tokens`` in all."""
        tokens = recorded = len(self._states)
        waiting: list[tuple[bytes, int, int]] = []
        with (
            _cut_at(self._folder / STATES, tokens * 2 * self._hidden) as states,
            _cut_at(self._folder / INDEX, self._records * _RECORD.itemsize) as index,
        ):

            def record() -> None:
                states.flush()
                os.fsync(states.fileno())
                index.write(np.array(waiting, dtype=_RECORD).tobytes())
                index.flush()
                waiting.clear()

            for rows in batches_by_tokens(lengths_of(sequences), _TOKENS_PER_BATCH):
                texts = [sequences[row] for row in rows]
                missing = [row for row, ids in enumerate(texts) if _name(ids) not in self._first]
                if missing and tokens < most_tokens:
                    computed = self._computed(texts).view(torch.int16).numpy()
                    for row in missing:
                        length = len(texts[row])
                        if tokens + length <= most_tokens:
                            states.write(computed[row, :length].tobytes())
                            waiting.append((_name(texts[row]), tokens, length))
                            tokens += length
                    if tokens - recorded >= _TOKENS_PER_RECORDING:
                        record()
                        recorded = tokens
                count(len(rows))
            record()

    def _make_room(self, wanted: int, limit: int) -> int:
        """How many of the ``wanted`` bytes may be written, after deleting the states of other trunks.

        Those that were used longest ago go first, and only where they make the difference.
        """
        root = self._folder.parent
        others = sorted(
            (folder for folder in root.iterdir() if folder != self._folder and _is_own(folder)),
            key=lambda folder: folder.stat().st_mtime,
        )
        own = _size(self._folder)
        while others and own + wanted + sum(map(_size, others)) > limit:
            shutil.rmtree(others.pop(0), ignore_errors=True)
        room = limit - own - sum(map(_size, others))
        return max(0, min(wanted, room, int(_SHARE_OF_FREE_SPACE * shutil.disk_usage(root).free)))


def _name(ids: TokenIds) -> bytes:
    """A text's 16 bytes in the index."""
    return hashlib.blake2b(np.ascontiguousarray(ids, dtype="<i8").tobytes(), digest_size=16).digest()


def _limit_in_bytes() -> int:
    given = os.environ.get(LIMIT)
    try:
        limit = _USUAL_LIMIT_GB if given is None else float(given)
        return max(0, int(limit * _GB))
    except (ValueError, OverflowError):
        raise UserError(
            f"{LIMIT} is not a number of GB", found=f"{LIMIT}={given}", fix=f"for example {LIMIT}=10"
        ) from None


def _is_own(folder: Path) -> bool:
    """Whether a folder holds what this module writes and nothing else."""
    return (
        folder.is_dir() and not folder.is_symlink() and {file.name for file in folder.iterdir()} <= _OWN_FILES
    )


def _size(folder: Path) -> int:
    states = folder / STATES
    return states.stat().st_size if states.is_file() else 0


def _cut_at(path: Path, position: int) -> BinaryIO:
    """A file to write to from ``position`` on; what is beyond is dropped."""
    path.touch()
    stream = path.open("r+b")
    stream.truncate(position)
    stream.seek(position)
    return stream
