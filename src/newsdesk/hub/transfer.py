"""Bytes from a server that may be slow, endless or hostile: every wait and every size has a limit.

`watched` lets any such work run in a thread of its own, so that its caller can say how far it is, end it when
too little arrives, and be interrupted at once. `read_answer` and `download` are the requests themselves, made
with the Hub client's session, so that proxies and certificates are those that were set for it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from newsdesk.errors import counted
from newsdesk.files import is_disk_full
from newsdesk.progress import Progress

T = TypeVar("T")

ANSWER_SECONDS = 10.0
"""For a server's whole answer to a question, such as what a repository holds."""
STALL_SECONDS = 10.0
"""In these at least `LEAST_BYTES` of a file have to arrive."""
PIP_SECONDS = 30.0
"""As these, for pip, which first reads what an index has."""
LEAST_BYTES = 8 << 10
LEAST_RATE = 32 << 10
"""Bytes a second over a whole transfer, at least, after the first minute."""
LONGEST_WAIT = 10
"""Seconds that a server may ask us to wait (Retry-After)."""
PAUSE_SECONDS = 1.0
"""Before a transfer that broke off is resumed."""

_REPORT_SECONDS = 0.25
_MOST_MEMORY = 1 << 30  # for an answer that the Hub's client reads whole
_MOST_WAITS = 1
_MOST_REDIRECTS = 5
_MOST_RESUMES = 5  # without a `_WORTHWHILE` part of the file in between
_WORTHWHILE = 1 << 20
_JOIN_SECONDS = 0.3  # pip is killed within 0.2


class TransferError(Exception):
    """A server that does not give what it should within the limits; the text is half a sentence."""


class WrongSizeError(TransferError):
    """A file of another size than was stated."""


class RefusedError(TransferError):
    """A server that answers with an error.

    Attributes:
        status: of HTTP. code: the Hub's word for it, if it has one. wait: what it says of when to ask again.
    """

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self.status, self.code = status, headers.get("X-Error-Code")
        if status == 401 and "credentials" not in headers.get("X-Error-Message", ""):
            self.code = "RepoNotFound"  # the Hub does not tell strangers what there is
        self.wait = headers.get("Retry-After")
        asked = "" if self.wait is None else f", and to ask again after {self.wait:.40}"
        super().__init__(f"it answered {status}{asked}")


@dataclass
class Watch:
    """What a thread at work and the one that waits for it tell each other.

    Attributes:
        patience: seconds in which something has to arrive.
        stop: set when nobody waits for the work any more.
        parts: how many files are whole, which may be too small to count.
        note: what the work itself waits for, in words.
    """

    patience: float
    stop: threading.Event = field(default_factory=threading.Event)
    parts: int = 0
    note: str = ""

    def require_wanted(self) -> None:
        """End the work when nobody waits for it."""
        if self.stop.is_set():
            raise TransferError("it was given up")


def watched(
    work: Callable[[Watch], T],
    what: str,
    progress: Progress,
    *,
    stall: float,
    folder: Path | None = None,
    total: int | None = None,
    most: int | None = None,
) -> T:
    """What ``work`` returns, done in a thread, while ``progress`` hears how much ``folder`` has grown.

    Args:
        work: gets a `Watch`, and should end soon after it says stop.
        what: the work in words.
        progress: called in this thread.
        stall: seconds in which `LEAST_BYTES` have to arrive.
        folder: where bytes arrive; None: the whole work has the time of a stall.
        total: the bytes that are expected, if that is known.
        most: the bytes that may arrive, if there is a limit.

    Raises TransferError when too little arrives, or too much, and whatever ``work`` raises.
    """
    watch, ended = Watch(stall), threading.Event()
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work(watch))
        except BaseException as error:  # handed over to the thread that waits
            failures.append(error)
        finally:
            ended.set()

    progress(0, total, what)
    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    try:
        _wait(ended, watch, what, progress, folder, total, most)
    finally:
        watch.stop.set()
        worker.join(_JOIN_SECONDS)
    if failures:
        raise failures[0]
    if folder is not None:
        progress(_size_of(folder) if total is None else total, total, what)
    return results[0]


def _wait(
    ended: threading.Event,
    watch: Watch,
    what: str,
    progress: Progress,
    folder: Path | None,
    total: int | None,
    most: int | None,
) -> None:
    size = largest = counted_size = counted_parts = 0
    stall, before = watch.patience, _memory()
    since = began = time.monotonic()
    while not ended.wait(_REPORT_SECONDS):
        now = time.monotonic()
        if folder is not None:
            size = _size_of(folder)
            largest = max(largest, size)
        if folder is None and _memory() - before > _MOST_MEMORY:
            raise TransferError(f"its answer takes more than {_MOST_MEMORY:,} bytes of memory")
        if most is not None and size > most:
            raise TransferError(f"more than {most:,} bytes arrived")
        if abs(size - counted_size) >= LEAST_BYTES or watch.parts > counted_parts:
            counted_size, counted_parts, since = size, watch.parts, now
        if now - since > stall:
            little = (
                f"fewer than {LEAST_BYTES:,} bytes arrived" if folder is not None else "no whole answer came"
            )
            raise TransferError(f"{little} in {counted(round(stall, 1), 'second')}")
        if folder is not None and now - began > 60 + (total or most or largest) / LEAST_RATE:
            raise TransferError(f"only {largest:,} bytes arrived in {now - began:,.0f} seconds")
        waits = watch.note or ("waiting for the server" if now - since > stall / 2 else "")
        shown = f"{what}: {waits}" if waits else what
        progress(largest if total is None else min(largest, total), total, shown)


def _memory() -> int:
    """The bytes of memory that this process has; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError):
        return 0


def _size_of(folder: Path) -> int:
    """The bytes of all files below ``folder``; files that vanish meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):  # unlike rglob, it survives folders that vanish under it
        for name in names:
            with suppress(OSError):
                total += Path(parent, name).stat().st_size
    return total


def read_answer(url: str, headers: Mapping[str, str], watch: Watch, *, most: int) -> bytes:
    """The body of the answer to a GET. Raises TransferError, or whatever the HTTP library does."""
    body = bytearray()
    with _answer(url, headers, watch) as answer:
        for piece in _pieces(answer):
            watch.require_wanted()
            body += piece
            if len(body) > most:
                raise TransferError(f"its answer is larger than {most:,} bytes")
    return bytes(body)


def download(url: str, headers: Mapping[str, str], target: Path, size: int | None, watch: Watch) -> None:
    """Write the file at ``url`` to ``target``; one that breaks off is resumed a few times.

    Raises WrongSizeError unless it has ``size`` bytes, where that is known, TransferError, whatever the HTTP
    library does, and OSError when it cannot be written.
    """
    fruitless = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as sink:
        while True:
            start = sink.tell()
            try:
                asking = {**headers, "Range": f"bytes={start}-"} if start else headers
                with _answer(url, asking, watch) as answer:
                    if start and not _continues(answer, start):
                        sink.seek(0)
                        sink.truncate()
                    _require_size(answer.headers.get("Content-Length"), sink.tell(), size)
                    for piece in _pieces(answer):
                        watch.require_wanted()
                        sink.write(piece)
                        if size is not None and sink.tell() > size:
                            raise WrongSizeError(f"more than the stated {size:,} bytes")
                break
            except Exception as error:  # of whichever HTTP library the client's version uses
                own = isinstance(error, TransferError)
                if own or is_disk_full(error) or (isinstance(error, OSError) and error.filename):
                    raise
                fruitless = 0 if sink.tell() - start >= _WORTHWHILE else fruitless + 1
                if fruitless > _MOST_RESUMES:
                    raise
                watch.stop.wait(PAUSE_SECONDS)
                watch.require_wanted()
        if size is not None and sink.tell() != size:
            raise WrongSizeError(f"{sink.tell():,} bytes, stated are {size:,}")
    watch.parts += 1


def _continues(answer: Any, start: int) -> bool:
    """Whether a server has understood that it should go on behind ``start`` bytes."""
    if answer.status_code != 206:
        return False
    if not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise TransferError("it resumes at another place than it was asked to")
    return True


def _require_size(stated: str | None, start: int, size: int | None) -> None:
    if stated is not None and stated.isdecimal() and size is not None and start + int(stated) != size:
        raise WrongSizeError(f"{start + int(stated):,} bytes, stated are {size:,}")


@contextmanager
def _answer(url: str, headers: Mapping[str, str], watch: Watch) -> Iterator[Any]:
    """The open answer to a GET, behind redirects; what is to stay with a host does not follow to another."""
    waits = redirects = 0
    sent = {**headers, "Accept-Encoding": "identity"}  # so that sizes are those of the files
    while True:
        with _opened(url, sent, watch.patience / 2) as answer:  # so that it may be resumed once
            status = int(answer.status_code)
            if status in (200, 206):
                encoding = answer.headers.get("Content-Encoding", "identity")
                if encoding.strip().lower() not in ("", "identity"):
                    raise TransferError(f"it answers in the encoding {encoding:.40}, which was not asked for")
                yield answer
                return
            location = answer.headers.get("Location")
            refused = RefusedError(status, answer.headers)
        if status in (301, 302, 303, 307, 308) and location is not None:
            redirects += 1
            if redirects > _MOST_REDIRECTS:
                raise TransferError(f"it redirects more than {_MOST_REDIRECTS} times")
            target = _redirected(url, location)
            if _origin(target) != _origin(url):
                sent = {key: sent[key] for key in sent if key.lower() not in ("authorization", "cookie")}
            url = target
            continue
        seconds = _waited(refused)
        waits += 1
        if seconds is None or waits > _MOST_WAITS:
            raise refused
        watch.note = f"the server asks to wait {counted(seconds, 'second')}"
        watch.stop.wait(seconds)
        watch.require_wanted()
        watch.note = ""


def _waited(refused: RefusedError) -> int | None:
    """The seconds that a server asks for, if it asks for few."""
    asked = (refused.wait or "").strip()
    if refused.status not in (429, 503) or not (asked.isascii() and asked.isdecimal() and len(asked) < 9):
        return None
    return int(asked) if int(asked) <= LONGEST_WAIT else None


def _redirected(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        _origin(target)
    except ValueError:
        raise TransferError(f"it redirects to {location[:80]!r}") from None
    schemes = ("https",) if urlsplit(url).scheme == "https" else ("https", "http")
    if urlsplit(target).scheme not in schemes or not urlsplit(target).hostname:
        raise TransferError(f"it redirects to {target[:80]!r}")
    return target


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _opened(url: str, headers: Mapping[str, str], seconds: float) -> Any:
    """A context manager of the answer, its body not yet read, by the library that the client is made with."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    session: Any = get_session()
    if callable(getattr(session, "stream", None)):  # httpx
        return session.stream("GET", url, headers=headers, timeout=seconds, follow_redirects=False)
    return closing(session.get(url, headers=headers, timeout=seconds, stream=True, allow_redirects=False))


def _pieces(answer: Any) -> Iterator[bytes]:
    pieces: Iterator[bytes]
    if hasattr(answer, "iter_raw"):
        pieces = answer.iter_raw()
    else:
        pieces = answer.raw.stream(1 << 16, decode_content=False)
    return pieces
