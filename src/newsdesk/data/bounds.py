"""Bounds on what reading a file takes: bytes that a compressed one grows to, memory, rows without sense."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from newsdesk.data.table import BadRow, Limits, Row
from newsdesk.errors import UserError
from newsdesk.files import memory_left

_CHUNK = 1 << 16


class PackedTooTightlyError(OSError):
    """A compressed stream that grows beyond what data do."""


TIGHTEST, FREELY_UNPACKED = 100, 1 << 24
"""Bytes made of one, once there are so many; text shrinks to a third, what is repeated to a fiftieth."""

_TIGHTEST_OF_FEW, _FEW = 500, 1 << 20
_PROBED = 1 << 18  # bytes of a compressed file
ROWS_BETWEEN_LOOKS = 1024


class MemoryWatch:
    """Looks now and then whether the rows of a file still fit into memory, half of which is for later."""

    def __init__(self, path: Path) -> None:
        self._path, self._looks, self._least = path, 0, memory_left() // 2

    def look(self, every: int = 1) -> None:
        """Raise UserError, at every so many calls, if less than half of what was free at first is left."""
        self._looks += 1
        if self._looks % every == 0 and memory_left() < self._least:
            raise UserError(
                f"{self._path.name} does not fit into memory",
                found="what was read of it takes half of the memory that was free",
                fix="give fewer rows; predict --input FILE --output FILE classifies files of any size",
            )


def unpacked(stream: BinaryIO, path: Path, limits: Limits) -> BinaryIO:
    """What a gzip-compressed stream holds; reading it raises PackedTooTightlyError beyond the limit.

    Raises UserError where its beginning tells that it is.
    """
    whole = io.BufferedReader(_Unpacked(stream, limits.unpacked), _CHUNK)
    try:
        while stream.tell() < _PROBED and whole.read(_CHUNK):
            pass
    except PackedTooTightlyError as error:
        raise packed_too_tightly(path, str(error)) from None
    except (EOFError, zlib.error, OSError):  # reading the rows reports it
        whole = io.BufferedReader(_Unpacked(stream, limits.unpacked), _CHUNK)
    else:
        whole.seek(0)
    return cast(BinaryIO, whole)


def require_unpackable(size: int, packed: int, what: str, path: Path, limits: Limits) -> None:
    """Raise UserError where ``packed`` bytes would grow to ``size`` bytes, which is beyond what data do."""
    if size > (limits.unpacked or max(FREELY_UNPACKED, TIGHTEST * packed)):
        raise packed_too_tightly(path, f"{what} would grow from {packed:,} bytes to {size:,}")


def packed_too_tightly(path: Path, found: str) -> UserError:
    """The error for a compressed file that grows, or would grow, beyond what data do."""
    return UserError(
        f"{path.name} is packed too tightly to be data",
        found=found,
        fix="if you trust it, unpack it and give the file that it holds, or raise the limit: --max-unpacked",
    )


class _Unpacked(io.RawIOBase):
    def __init__(self, stream: BinaryIO, limit: int | None) -> None:
        self._packed, self._limit = stream, limit
        stream.seek(0)
        self._file = gzip.GzipFile(fileobj=stream)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        chunk = self._file.read1(len(buffer))
        buffer[: len(chunk)] = chunk
        size = self._file.tell()
        if size > _FEW or self._limit is not None:
            packed = self._packed.tell()
            most = self._limit or max(FREELY_UNPACKED, TIGHTEST * packed)
            most = self._limit or min(most, max(_FEW, _TIGHTEST_OF_FEW * packed))
            if size > most:
                raise PackedTooTightlyError(f"it grows to more than {most:,} bytes")
        return len(chunk)


_MOST_FAULTS, _FAULTS_A_ROW = 10_000, 10


def hopeful(rows: Iterator[Row | BadRow], path: Path) -> Iterator[Row | BadRow]:
    """The same rows. Raises UserError where bad ones are so many that it is no file of rows."""
    good = bad = 0
    for row in rows:
        if isinstance(row, Row):
            good += 1
        else:
            bad += 1
            if bad > max(_MOST_FAULTS, _FAULTS_A_ROW * good):
                raise UserError(
                    f"{path.name} is not a file of rows",
                    found=f"{row.fault.wrong} in line {row.fault.line:,}, and {bad - 1:,} faults before",
                    fix="name how it is written (--delimiter, --quote, --encoding), or write the file again",
                )
        yield row
