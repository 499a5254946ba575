"""Files that are either whole or absent: atomic writes and content hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from newsdesk.errors import UserError


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; on success flush it to disk and rename it into place.

    A reader sees the old file or the new one, never a part. If the block raises, or the disk fills up,
    the temporary file is removed and ``path`` is untouched. Raises UserError when the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)  # mkstemp ignores it, and a cache shared by a group needs it respected
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException as error:
        with suppress(FileNotFoundError):
            temporary.unlink()
        if is_disk_full(error):
            raise disk_full(path) from error
        raise


@contextmanager
def held_alone(lock_file: Path, wrong: str, *, fix: str, stays: bool = False) -> Iterator[None]:
    """Keep other processes out of a block that names the same file, which is removed unless it ``stays``.

    Raises UserError, with ``wrong`` and ``fix``, where one is in it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(wrong, found=f"it holds {lock_file}", fix=fix) from None
    try:
        yield
    finally:
        if not stays:
            lock_file.unlink(missing_ok=True)  # before it is released: it is still ours
        lock.release()


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it; returns the ones that were not there, from the top down."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove those folders, given from the top down, that have nothing in them."""
    for folder in reversed(folders):
        with suppress(OSError):
            folder.rmdir()


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left half written for ``path``; only for its sole writer."""
    for entry in path.parent.iterdir():
        if entry.name.startswith(f".{path.name}.") and entry.name.endswith(".part"):
            entry.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a loss of power, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def take_own(path: Path) -> None:
    """Put a copy in the place of a file that has other names, too: what is appended or cut off is not theirs.

    A folder that was copied by hard links (``cp -al``) has such files. Raises OSError for what is no regular
    file.
    """
    with open_regular(path) as stream:
        if os.fstat(stream.fileno()).st_nlink > 1:
            with atomic_writer(path) as own:
                shutil.copyfileobj(stream, own)


def cut_to_whole_lines(path: Path, *, fix: str) -> int:
    """Cut off the beginning of a line that a kill left unfinished; returns how many bytes stay.

    The file is to be appended to, and is one of its own afterwards: see `take_own`. Raises UserError, with
    ``fix``, for what is no file.
    """
    try:
        take_own(path)
        with open_regular(path) as stream:
            size = begin = stream.seek(0, os.SEEK_END)
            whole = 0
            while begin and not whole:
                if size - begin > LONGEST_LINE:
                    raise OSError(errno.EFBIG, f"a line of more than {LONGEST_LINE:,} bytes")
                end, begin = begin, max(0, begin - _TAIL)
                stream.seek(begin)
                whole = begin + stream.read(end - begin).rfind(b"\n") + 1
                whole = 0 if whole == begin else whole
        if whole < size:
            os.truncate(path, whole)
    except OSError as error:
        raise damaged(path, error.strerror or str(error), fix=fix) from None
    return whole


_TAIL = 1 << 16  # bytes that are looked at together
LONGEST_LINE = 64 << 20
"""Bytes of a line of a journal, at most."""


@contextmanager
def explaining_full_disk(path: Path) -> Iterator[None]:
    """Turn the failure to write to ``path`` for want of space into a UserError."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(path) from error
        raise


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed because disk, quota or the allowed size of a file is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically. Raises UserError when the disk is full."""
    with atomic_writer(path) as stream:
        stream.write(content)


def write_text(path: Path, content: str) -> None:
    """Write ``content`` to ``path`` atomically, as UTF-8 with ``\\n`` line ends."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` to ``path`` atomically, as indented JSON that git can diff."""
    write_bytes(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """``content`` as indented JSON in UTF-8; a lone surrogate, as in a name of other bytes, as its escape."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


LARGEST_JSON = 64 << 20
"""Bytes of a JSON file, at most; none that newsdesk or PEFT write comes near, tokenizers' may."""


def open_regular(path: Path) -> BufferedReader:
    """A file opened for reading. Raises OSError for pipes, devices and folders, and waits for none."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(handle, "rb")


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A safetensors file, whose tensors are read as numpy arrays. Raises OSError as `open_regular` does, and
    SafetensorError for a file that is damaged.
    """
    from safetensors import safe_open

    open_regular(path).close()  # safe_open would wait for a pipe
    with safe_open(path, framework="numpy") as tensors:
        yield tensors


@contextmanager
def stored_tensors(path: Path, *, fix: str) -> Iterator[Any]:
    """As `open_tensors`, for a file that one type writes and reads, in the block.

    Raises UserError, with ``fix``, where the file is missing or damaged, and for what the block finds wrong
    with it: a ValueError, a tensor that is not there, a shape or type that cannot be used as it is meant.
    """
    from safetensors import SafetensorError

    try:
        with open_tensors(path) as tensors:
            yield tensors
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        raise damaged(path, str(error), fix=fix) from None


def read_regular(path: Path, limit: int = LARGEST_JSON) -> bytes:
    """The bytes of a file. Raises OSError for what is no regular file, or larger than ``limit`` bytes."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", str(path))
        return stream.read(size)  # all of this is allocated at once


def memory_left() -> int:
    """Bytes of memory that this process may still take; very many where the system does not say."""
    found = [1 << 62]
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    with suppress(ImportError, OSError, ValueError):
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            found.append(limit - used)
    return max(0, min(found))


def parsed_json(content: bytes | str) -> Any:
    """JSON as Python's types. Raises ValueError for anything else: NaN, 1e999 and endless nesting."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    def finite(number: str) -> float:
        return found if math.isfinite(found := float(number)) else refuse(number[:40])

    try:
        return json.loads(content, parse_constant=refuse, parse_float=finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path, *, fix: str) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError with ``fix`` when it is missing, or holds no object."""
    try:
        content = parsed_json(read_regular(path))
    except (OSError, ValueError) as error:
        raise damaged(path, _reason(error), fix=fix) from None
    if not isinstance(content, dict):
        raise damaged(path, "no object in it", fix=fix)
    return content


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path in a folder is, by links, one outside of it; the Hub's cache counts as one folder."""
    top, found = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    cached = top.parent.name == "snapshots" and found.parent == top.parents[1] / "blobs"
    return not (found.is_relative_to(top) or cached)


def require_no_way_out(folder: Path, ours: Collection[str]) -> None:
    """Raise UserError for a link out of a folder at, or below, one of the names in it that are ours.

    Through it, files of others would be read, written, or moved. Links under other names are not looked at.
    """
    for inside, folders, names in os.walk(folder):
        top = Path(inside) == folder
        folders[:] = [name for name in folders if not top or name in ours]
        for name in (*folders, *names):
            path = Path(inside, name)
            if path.is_symlink() and (not top or name in ours) and leads_out(path, folder):
                raise UserError(
                    f"{folder} holds a link to a place outside of it",
                    found=f"{path.relative_to(folder)} -> {path.readlink()}",
                    fix="put the file or folder itself in its place",
                )


def require_no_links_out(folder: Path) -> None:
    """Raise UserError where a folder that is ours alone, or anything in it, is a link out of its place."""
    require_no_way_out(folder.absolute().parent, (folder.name,))
    if folder.is_dir():
        require_no_way_out(folder, [entry.name for entry in folder.iterdir()])


def damaged(path: Path, found: str, *, fix: str) -> UserError:
    """The error for a file that is not what was written there."""
    return UserError(f"{path} is missing or damaged", found=found, fix=fix)


def sha256_of(path: Path) -> str:
    """The hexadecimal sha256 of a file's bytes; a process reads a file once for it while it stays the same.

    A file counts as the same by its path, inode, size and times of change. One that changed in the last
    two seconds is read each time: a second edit within the clock's granularity would not show in these.
    """
    identity = _identity(path)
    if identity in _known_hashes:
        return _known_hashes[identity]
    found = _read_sha256(path)
    settled = time.time_ns() - _SETTLED_AFTER
    if identity == _identity(path) and max(identity[-2:]) < settled:
        _known_hashes[identity] = found
    return found


_SETTLED_AFTER = 2_000_000_000  # nanoseconds
_known_hashes: dict[tuple[str, int, int, int, int, int], str] = {}


def _identity(path: Path) -> tuple[str, int, int, int, int, int]:
    of = path.stat()
    return str(path.absolute()), of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns


def _read_sha256(path: Path) -> str:
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def disk_full(path: Path) -> UserError:
    """The error for a file that could not be written for want of space."""
    return UserError(
        f"no space left to write {path.name}",
        found=f"the disk or quota that holds {path.parent} is full; nothing half-written was left there",
        fix="free some space, or choose another place (--out for runs, NEWSDESK_CACHE for the cache)",
    )
