"""Lines of a text file as they should be: decoded, without NUL bytes, every exception noted by line."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from newsdesk.data.encoding import LONGEST_LINE, UTF8, Encoding, as_utf8
from newsdesk.data.table import Fault
from newsdesk.errors import UserError

_BLOCK = 1 << 20
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_FOREIGN_MAGIC = {
    b"\x1f\x8b": ("gzip-compressed", "add .gz to the file's name, or unpack it with gunzip"),
    b"PK\x03\x04": ("a zip archive or a spreadsheet", "give it the name ending .zip or .xlsx"),
    b"\xd0\xcf\x11\xe0": ("an old or a protected Office file", "open it there and save it as csv"),
    b"%PDF": ("a PDF", "save its text as csv or txt"),
    b"<!DOCTYPE": ("a web page", "download the file itself: the page may ask for a login"),
    b"<html": ("a web page", "download the file itself: the page may ask for a login"),
    b"BZh": ("bzip2-compressed", "unpack it with bunzip2"),
    b"\xfd7zXZ": ("xz-compressed", "unpack it with unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd-compressed", "unpack it with unzstd"),
    b"PAR1": ("parquet", "give it the name ending .parquet"),
}
_PICKLE_PROTOCOLS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


class Line(NamedTuple):
    """One physical line.

    Attributes:
        number: 1-based.
        text: its characters, line end included; substitutes where they could not be had.
        raw: its bytes.
        fault: why it cannot be used, if it cannot.
    """

    number: int
    text: str
    raw: bytes
    fault: Fault | None = None


class LineReader(Iterator[Line]):
    """The lines of a binary stream, decoded, one at a time.

    A line with NUL bytes, or bytes that the encoding does not have, is still handed out, with substitutes
    and its fault, so that the structure around it (quotes that span lines) can be followed; the row that it
    belongs to must not be used. A compressed stream that breaks off ends the iteration and leaves its fault
    in ``broken_off``.
    """

    def __init__(self, stream: BinaryIO, path: Path, encoding: Encoding | None = None) -> None:
        """Read from ``stream``; ``path`` is for messages; None: UTF-8."""
        self.path = path
        self.broken_off: Fault | None = None
        self.encoding = encoding or Encoding()
        self._stream = as_utf8(stream, self.encoding)
        self._number = 0
        self._ahead: deque[Line] = deque()

    def __next__(self) -> Line:
        """The next line. Raises UserError at the first one if the file is no text at all."""
        return self._ahead.popleft() if self._ahead else self._read()

    def first(self, count: int, characters: int) -> list[Line]:
        """The first lines, so many or until they have so many characters; they will still be handed out."""
        while len(self._ahead) < count and characters > 0:
            try:
                line = self._read()
            except StopIteration:
                break
            self._ahead.append(line)
            characters -= len(line.text)
        return list(self._ahead)

    def blocks(self) -> Iterator[bytes]:
        """The bytes of the file in UTF-8, block by block, instead of its lines."""
        while block := self._guarded(lambda: self._stream.read(_BLOCK)):
            if self._number == 0:
                self._refuse(block)
                block = block.removeprefix(_UTF8_BOM)
            self._number += block.count(b"\n") or 1
            yield block

    def _read(self) -> Line:
        raw = self._guarded(self._next_raw)
        if self._number == 0:
            self._refuse(raw)
            raw = raw.removeprefix(_UTF8_BOM)
        if not raw:
            raise StopIteration
        self._number += 1
        if len(raw) > LONGEST_LINE:
            return Line(self._number, "", raw[:LONGEST_LINE], self._too_long())
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            return Line(self._number, raw.decode(errors="replace"), raw, self._not_decoded(raw, error.start))
        if "\0" in text:
            return Line(self._number, text.replace("\0", ""), raw, self._nul(raw))
        return Line(self._number, text, raw)

    def _refuse(self, beginning: bytes) -> None:
        refuse_foreign(beginning, self.path)
        if beginning.startswith(_UTF16_BOMS):  # said to be UTF-8, or from a pipe
            raise UserError(
                f"{self.path.name} is encoded in UTF-16",
                found="a UTF-16 byte-order mark at its beginning",
                fix="read it with --encoding utf-16",
            )

    def _next_raw(self) -> bytes:
        raw = self._stream.readline(LONGEST_LINE + 1)
        rest = raw
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = self._stream.readline(LONGEST_LINE + 1)
        return raw

    def _guarded(self, read: Callable[[], bytes]) -> bytes:
        """What ``read`` gives; nothing where the compressed data are damaged, which is noted."""
        try:
            return read()
        except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
            if self._number == 0 and isinstance(error, gzip.BadGzipFile):
                raise UserError(
                    f"{self.path.name} is not gzip-compressed in spite of its name",
                    found=str(error),
                    fix="drop .gz from the file's name, or compress it with gzip",
                ) from None
            self.broken_off = Fault(
                self._number + 1,
                "the compressed data breaks off or is damaged here",
                found=str(error),
                fix="fetch or compress the file again",
            )
            return b""

    def _not_decoded(self, raw: bytes, position: int) -> Fault:
        if self.encoding.name != UTF8:
            return Fault(
                self._number,
                f"the bytes are not {self.encoding.name}",
                f"in {raw.decode(errors='replace')[:60]!r}",
                "name another encoding with --encoding, or fix the line",
                encoding=True,
            )
        return Fault(
            self._number,
            "the bytes are not UTF-8",
            f"byte 0x{raw[position]:02x} as byte {position + 1} of the line",
            "fix the line; if all of the file is in another encoding, name it, for example --encoding cp1252",
            encoding=True,
        )

    def _nul(self, raw: bytes) -> Fault:
        return Fault(
            self._number,
            "there is a NUL byte",
            f"byte {raw.index(0) + 1} of the line",
            "remove it; if every other byte is NUL, the file is UTF-16: --encoding utf-16-le",
            encoding=True,
        )

    def _too_long(self) -> Fault:
        return Fault(
            self._number,
            "the line is too long to be a row of text",
            f"more than {LONGEST_LINE:,} bytes without a line end",
            "end each row with \\n",
        )


def refuse_foreign(first: bytes, path: Path) -> None:
    """Raise UserError if a file begins like a pickle, another format instead of text."""
    if first.startswith(_PICKLE_PROTOCOLS):
        raise pickle_refused(path)
    for magic, (what, fix) in _FOREIGN_MAGIC.items():
        if first.startswith(magic):
            raise UserError(
                f"{path.name} is not the text file that its name says", found=f"it is {what}", fix=fix
            )


def pickle_refused(path: Path) -> UserError:
    """The error for a pickle: loading one runs whatever code its author put there."""
    return UserError(
        f"{path.name} is a pickle or may hold one; newsdesk never loads pickles, since they can run any code",
        found="the ending or the first bytes of a pickle",
        fix="open it where you trust it and convert it, for example pandas.read_pickle(FILE)"
        ".to_csv('data.csv', index=False)",
    )
