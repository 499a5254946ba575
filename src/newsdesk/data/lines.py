"""Lines of a text file as they should be: UTF-8 without NUL bytes, every exception noted by line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from newsdesk.data.table import Fault
from newsdesk.errors import UserError

_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_FOREIGN_MAGIC = {
    b"\x1f\x8b": ("gzip-compressed", "add .gz to the file's name, or unpack it with gunzip"),
    b"PK\x03\x04": ("a zip archive (or a spreadsheet)", "unpack it, or save it as csv from the program"),
    b"PAR1": ("parquet", "give it the name ending .parquet"),
}
_PICKLE_PROTOCOLS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


class Line(NamedTuple):
    """One physical line: its 1-based number and its text, line end included."""

    number: int
    text: str


class LineReader(Iterator[Line]):
    """The lines of a binary stream, decoded, one at a time.

    A line with invalid UTF-8 or NUL bytes is still handed out, with substitutes, so that the structure
    around it (quotes that span lines) can be followed; it is noted in ``faults`` and ``bad_lines``, and
    the row that it belongs to must not be used. A compressed stream that breaks off ends the iteration
    with a fault and ``broken_off`` set.
    """

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        """Read from ``stream``; ``path`` is for messages."""
        self.path = path
        self.faults: list[Fault] = []
        self.bad_lines: set[int] = set()
        self.broken_off = False
        self._stream = stream
        self._number = 0

    def __next__(self) -> Line:
        """The next line. Raises UserError at the first one if the file is no text at all."""
        raw = self._next_raw()
        if self._number == 0:
            refuse_foreign(raw, self.path)
            raw = raw.removeprefix(_UTF8_BOM)
        if not raw:
            raise StopIteration
        self._number += 1
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            self._note(
                "the bytes are not UTF-8",
                f"byte 0x{raw[error.start]:02x} as byte {error.start + 1} of the line",
                f"convert the file: iconv -f WINDOWS-1252 -t UTF-8 {self.path.name} (or whatever wrote it)",
            )
            text = raw.decode(errors="replace")
        if "\0" in text:
            self._note(
                "there is a NUL byte",
                f"byte {raw.index(0) + 1} of the line",
                "remove it; if every other byte is NUL, the file is UTF-16 and iconv converts it",
            )
            text = text.replace("\0", "")
        return Line(self._number, text)

    def _next_raw(self) -> bytes:
        try:
            return self._stream.readline()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            if self._number == 0 and isinstance(error, gzip.BadGzipFile):
                raise UserError(
                    f"{self.path.name} is not gzip-compressed in spite of its name",
                    found=str(error),
                    mend="drop .gz from the file's name, or compress it with gzip",
                ) from None
            self.broken_off = True
            fault = Fault(
                self._number + 1,
                "the compressed data breaks off or is damaged here",
                found=str(error),
                mend="fetch or compress the file again",
            )
            self.faults.append(fault)
            return b""

    def _note(self, wrong: str, found: str, mend: str) -> None:
        self.bad_lines.add(self._number)
        self.faults.append(Fault(self._number, wrong, found, mend, encoding=True))


def refuse_foreign(first: bytes, path: Path) -> None:
    """Raise UserError if a file begins like a pickle, UTF-16 or another format instead of UTF-8 text."""
    if first.startswith(_PICKLE_PROTOCOLS):
        raise pickle_refused(path)
    if first.startswith(_UTF16_BOMS):
        raise UserError(
            f"{path.name} is encoded in UTF-16; newsdesk reads UTF-8",
            found="a UTF-16 byte-order mark at its beginning",
            mend=f"iconv -f UTF-16 -t UTF-8 {path.name} > NEW_FILE",
        )
    for magic, (what, mend) in _FOREIGN_MAGIC.items():
        if first.startswith(magic):
            raise UserError(
                f"{path.name} is not the text file that its name says", found=f"it is {what}", mend=mend
            )


def pickle_refused(path: Path) -> UserError:
    """The error for a pickle: loading one runs whatever code its author put there."""
    return UserError(
        f"{path.name} is a pickle or may hold one; newsdesk never loads pickles, since they can run any code",
        found="the ending or the first bytes of a pickle",
        mend="open it where you trust it and convert it, for example pandas.read_pickle(FILE)"
        ".to_csv('data.csv', index=False)",
    )
