"""Text files as lines in UTF-8: their encoding, told from their bytes or stated, and faults by line."""

from __future__ import annotations

import codecs
import gzip
import io
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from newsdesk.data.bounds import ROWS_BETWEEN_LOOKS, MemoryWatch, PackedTooTightlyError, packed_too_tightly
from newsdesk.data.table import Fault, Limits
from newsdesk.errors import UserError

UTF8 = "utf-8"
LONGEST_LINE = 1 << 24
"""Bytes of a line; what is longer is not text, and is not held in memory."""

_MOST_BLANK_LINES = 1 << 20
_LINE_WITHOUT_END = 1 << 30  # bytes after which the next line is not looked for
_BYTES_A_CHARACTER = 16  # of a line for each of its longest cell: other cells, escapes
_CHUNK = 1 << 16
_BLOCK = 1 << 20
_SCANNED_BYTES = 1 << 26  # in which lines that are not ASCII are looked for
_SCANNED_LINES = 2_000_000
_LINES_THAT_DECIDE = 1000
_LEAST_SHARE = 0.001  # of all lines; fewer that are not UTF-8 are faults, not another encoding
_SO_FEW_LINES = 2
_SAMPLE_BYTES = 1 << 16
_BOMS = (
    (codecs.BOM_UTF8, UTF8),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LATIN = [
    *("cp1252", "cp1250", "cp1254", "cp1257", "iso8859_2", "iso8859_9", "mac_roman", "cp437", "cp850"),
]
_OTHER_SCRIPTS = [
    *("cp1251", "cp1253", "cp1255", "cp1256", "koi8_r", "gb18030", "big5", "cp932", "euc_jp", "cp949"),
]
_SHARE_OF_OTHER_SCRIPTS = 0.2  # of the bytes of lines that are not ASCII
_TURKISH = b"\xfd\xfe\xf0\xdd\xde\xd0"  # dotless i, s with cedilla, soft g; in Icelandic y, thorn, eth
_ICELANDIC_VOWELS = b"\xe1\xed\xfa\xe6"
_HUNGARIAN = b"\xf5\xfb\xd5\xdb"  # o and u with double acute; else with tilde and circumflex
_CZECH = b"\xf8\xec\xf9\xd8\xcc\xd9"  # r and e with caron, u with ring; else o with stroke and grave accents
_ACUTES = b"\xfd\xed\xe1"
_NORDIC = b"\xe5\xe6"
_PORTUGUESE = (b"\xe7\xe3o", b"\xe3o ", b"\xf5es")
_NOT_HUNGARIAN = b"\xe0\xe3\xe7\xe8\xea\xf1"
_MAGIC = {
    b"\x1f\x8b": ("gzip-compressed", "add .gz to the file's name, or unpack it with gunzip"),
    b"PK\x03\x04": ("a zip archive or a spreadsheet", "give it the name ending .zip or .xlsx"),
    b"\xd0\xcf\x11\xe0": ("an old or a protected Office file", "open it there and save it as csv"),
    b"%PDF": ("a PDF", "save its text as csv or txt"),
    b"<!DOCTYPE html": ("a web page", "download the file itself: the page may ask for a login"),
    b"<!DOCTYPE HTML": ("a web page", "download the file itself: the page may ask for a login"),
    b"<html": ("a web page", "download the file itself: the page may ask for a login"),
    b"BZh": ("bzip2-compressed", "unpack it with bunzip2"),
    b"\xfd7zXZ": ("xz-compressed", "unpack it with unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd-compressed", "unpack it with unzstd"),
    b"PAR1": ("parquet", "give it the name ending .parquet"),
}
_PICKLE_PROTOCOLS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


USUAL = Limits()
MARK = "\udcff"
"""Stands for bytes that the encoding does not have, under the error handler ``newsdesk-mark``."""


@dataclass(frozen=True)
class Encoding:
    """An encoding and what decided for it.

    Attributes:
        name: as Python knows it.
        evidence: what decided, for people, with the lines; empty for UTF-8 without a doubt.
        carriage_returns: whether lines end in carriage returns alone, as old Macintosh programs write them.
    """

    name: str = UTF8
    evidence: str = ""
    carriage_returns: bool = False


def detect_encoding(stream: BinaryIO, given: str | None = None) -> Encoding:
    """The encoding of a binary stream, which is left where it was; ``given`` is believed.

    A byte-order mark decides; without one, what is valid UTF-8 is UTF-8. Only where nearly all lines that
    are not ASCII are not UTF-8 either, and there are several, is it another encoding, guessed from these
    lines by charset-normalizer. A few such lines among many are faults of a UTF-8 file. Of a stream that
    cannot seek only the mark is read.
    """
    if not stream.seekable():
        head = stream.peek(4)[:4] if isinstance(stream, io.BufferedReader) else b""
        return Encoding(given or mark_of(head) or UTF8)
    start = stream.tell()
    try:
        head = stream.read(_CHUNK)
        stream.seek(start)
        name = given or mark_of(head) or _utf16_without_mark(head)
        text = head.decode(name or "latin-1", errors="ignore")
        macintosh = "\r" in text.rstrip("\r") and "\n" not in text
        if name is not None:
            stated = given is not None or name == UTF8
            return Encoding(name, "" if stated else "by its first bytes", macintosh)
        lines = as_utf8(stream, Encoding(carriage_returns=True)) if macintosh else stream
        return replace(encoding_of(_lines_within(lines, _SCANNED_BYTES)), carriage_returns=macintosh)
    except (EOFError, zlib.error, OSError, zipfile.BadZipFile):  # reading the rows reports it
        return Encoding(given or UTF8)
    finally:
        stream.seek(start)


def as_utf8(stream: BinaryIO, encoding: Encoding) -> BinaryIO:
    """The stream's text in UTF-8, with line feeds; bytes that the encoding lacks become invalid UTF-8."""
    if encoding.name == UTF8 and not encoding.carriage_returns:
        return stream
    return cast(BinaryIO, io.BufferedReader(_Transcoded(stream, encoding), _CHUNK))


def mark_of(head: bytes) -> str | None:
    """The encoding that a byte-order mark at the beginning states; None without one."""
    return next((name for mark, name in _BOMS if head.startswith(mark)), None)


def _utf16_without_mark(head: bytes) -> str | None:
    """UTF-16 of mostly Latin text has a NUL in every other byte."""
    pairs = len(head) // 2
    for name, zeros in (("utf-16-le", head[1::2].count(0)), ("utf-16-be", head[0::2].count(0))):
        if pairs > 3 and zeros > 0.6 * pairs and head.count(0) < 1.2 * zeros:
            return name
    return None


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _lines_within(stream: BinaryIO, size: int) -> Iterator[bytes]:
    lines = _SCANNED_LINES
    while size > 0 and (lines := lines - 1) and (line := stream.readline(LONGEST_LINE)):
        size -= len(line)
        yield line


def encoding_of(texts: Iterable[bytes], what: str = "lines") -> Encoding:
    """The encoding of lines, or of texts in files of their own, by the first thousand that are not ASCII."""
    number = valid = 0
    words = [0, 0]  # of the first texts, that are not ASCII: valid, invalid
    places: list[int] = []
    sample = b""
    for number, text in enumerate(texts, start=1):
        if text.isascii():
            continue
        if number <= _SO_FEW_LINES:
            for word in text.split():
                if not word.isascii():
                    words[not _is_utf8(word)] += 1
        if _is_utf8(text):
            valid += 1
        else:
            places.append(number)
            sample += text[:_SAMPLE_BYTES] if len(sample) < _SAMPLE_BYTES else b""
        if valid + len(places) == _LINES_THAT_DECIDE:
            break
    # All of a file may be in one line: then its words decide.
    valid, invalid = words if number <= _SO_FEW_LINES else (valid, len(places))
    if invalid < max(2, 20 * valid, _LEAST_SHARE * number):
        return Encoding()
    name = _guess(sample)
    shown = ", ".join(map(str, places[:3])) + (" ..." if len(places) > 3 else "")
    read = (word[:40] for word in sample.decode(name, errors="replace").split() if not word.isascii())
    which = f"{what} {shown} are" if len(places) > 1 else f"{what[:-1]} {shown} is"
    return Encoding(name, f"{which} not UTF-8, and read {next(read, '')!r}")


def _guess(sample: bytes) -> str:
    """The legacy encoding that makes the likeliest text of these bytes, as charset-normalizer ranks them.

    Other scripts than Latin come into question only where many bytes are beyond ASCII. Of encodings of Latin
    script that make equally orderly text, Western European comes first, unless its reading has symbols
    within words, or the letters of Turkish, Hungarian or Czech without those of its own languages.
    """
    from charset_normalizer import from_bytes

    beyond = sum(byte > 127 for byte in sample) / len(sample)
    candidates = _LATIN if beyond < _SHARE_OF_OTHER_SCRIPTS else [*_LATIN, *_OTHER_SCRIPTS]
    matches = list(from_bytes(sample, cp_isolation=candidates, preemptive_behaviour=False))
    if not matches:
        return "cp1252"
    best = matches[0]
    found = {name: match for match in reversed(matches) for name in match.could_be_from_charset}
    western = found.get("cp1252")
    portuguese = any(ending in sample for ending in _PORTUGUESE)  # whose accents in a row count as disorder
    orderly = western is not None and (western.chaos <= best.chaos or portuguese)
    if orderly and not _is_central_european(sample):
        turkish = _count(sample, _TURKISH) > 5 * _count(sample, _ICELANDIC_VOWELS)
        return "cp1254" if turkish else "cp1252"
    if western is None and best.encoding != "cp1250":
        return str(best.encoding)
    central = [name for name in ("cp1250", "iso8859_2") if name in found]
    if not central:
        return str(best.encoding)
    return max(central, key=lambda name: sum(map(str.isalpha, sample.decode(name, "ignore"))))


def _is_central_european(sample: bytes) -> bool:
    """Whether a reading as Western European has symbols within words that are letters of Central Europe, or
    the letters of Hungarian or Czech without those that Western languages have beside theirs.
    """
    western, central = (sample.decode(name, "replace") for name in ("cp1252", "cp1250"))
    symbols = sum(
        central[n - 1 : n + 2].isalpha() and (not western[n].isalpha() or western[n] in "ªº")
        for n in range(1, len(sample) - 1)
    )
    hungarian = _count(sample, _HUNGARIAN) > 1 and not _count(sample, _NOT_HUNGARIAN)
    czech = _count(sample, _CZECH) > 1 and _count(sample, _ACUTES) and not _count(sample, _NORDIC)
    return symbols > 1 or hungarian or bool(czech)


def _count(sample: bytes, characters: bytes) -> int:
    return sum(map(sample.count, (bytes([character]) for character in characters)))


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return MARK, error.end


codecs.register_error("newsdesk-mark", _mark)


class _Transcoded(io.RawIOBase):
    def __init__(self, stream: BinaryIO, encoding: Encoding) -> None:
        self._stream = stream
        plain = encoding.name == UTF8  # whose faulty bytes stay as they are, for messages
        self._decoder = None if plain else codecs.getincrementaldecoder(encoding.name)("newsdesk-mark")
        self._carriage_returns = encoding.carriage_returns
        self._ready = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            chunk = self._stream.read(_CHUNK)
            self._ended = not chunk
            if self._decoder is not None:
                chunk = self._decoder.decode(chunk, final=not chunk).encode(UTF8, "surrogatepass")
            self._ready = chunk.replace(b"\r", b"\n") if self._carriage_returns else chunk
        taken = self._ready[: len(buffer)]
        buffer[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)


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

    def __init__(
        self, stream: BinaryIO, path: Path, encoding: Encoding | None = None, *, limits: Limits = USUAL
    ) -> None:
        """Read from ``stream``; ``path`` is for messages; None: UTF-8."""
        self.path, self.limits, self._memory = path, limits, MemoryWatch(path)
        more = max(0, limits.characters - USUAL.characters)
        self.longest = LONGEST_LINE + _BYTES_A_CHARACTER * more
        self.broken_off: Fault | None = None
        self.encoding = encoding or Encoding()
        self._stream = as_utf8(stream, self.encoding)
        self._number = self._blank = 0
        self._ahead: deque[Line] = deque()

    def __next__(self) -> Line:
        """The next line. Raises UserError at the first one if the file is not text."""
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

    def put_back(self, lines: Sequence[Line]) -> None:
        """Hand these lines out again, before others."""
        self._ahead.extendleft(reversed(lines))

    def blocks(self) -> Iterator[bytes]:
        """The bytes of the file in UTF-8, block by block, instead of its lines."""
        while block := self._guarded(lambda: self._stream.read(_BLOCK)):
            block = self._beginning(block)
            self._memory.look()
            self._number += block.count(b"\n") or 1
            yield block

    def _read(self) -> Line:
        raw = self._beginning(self._guarded(self._next_raw))
        if not raw:
            raise StopIteration
        self._number += 1
        self._memory.look(every=ROWS_BETWEEN_LOOKS)
        self._blank = self._blank + 1 if raw.isspace() else 0
        if self._blank > _MOST_BLANK_LINES:
            raise UserError(
                f"{self.path.name} is not a file of rows",
                found=f"more than {_MOST_BLANK_LINES:,} blank lines in a row, to line {self._number:,}",
                fix="remove them",
            )
        number, fault = self._number, None
        try:
            text, invalid = raw.decode(), None
        except UnicodeDecodeError as error:
            text, invalid = raw.decode(errors="replace"), error.start
        if len(raw) > self.longest:
            text, raw = "", raw[: self.longest]
            found = f"more than {self.longest:,} bytes without a line end"
            fix = "end each row with \\n, or raise the limit: --max-characters"
            fault = Fault(number, "the line is too long to be a row of text", found, fix)
        elif invalid is not None:
            found = f"byte 0x{raw[invalid]:02x} as byte {invalid + 1} of the line"
            if self.encoding.name != UTF8:  # whose bytes are not those of the file
                found = f"in {text[:60]!r}"
            fault = not_decoded(number, self.encoding.name, found)
        elif "\0" in text:
            fault = Fault(
                number,
                "there is a NUL byte",
                f"byte {raw.index(0) + 1} of the line",
                "remove it; if every other byte is NUL, the file is UTF-16: --encoding utf-16-le",
                encoding=True,
            )
        return Line(number, text.replace("\0", ""), raw, fault)

    def _beginning(self, first: bytes) -> bytes:
        """What was read, without a byte-order mark if it is the file's beginning."""
        if self._number:
            return first
        refuse_other_format(first, self.path)
        if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # said to be UTF-8, or from a pipe
            raise UserError(
                f"{self.path.name} is encoded in UTF-16",
                found="a UTF-16 byte-order mark at its beginning",
                fix="read it with --encoding utf-16",
            )
        return first.removeprefix(codecs.BOM_UTF8)

    def _next_raw(self) -> bytes:
        raw = self._stream.readline(self.longest + 1)
        rest, size = raw, 0
        while len(rest) > self.longest and not rest.endswith(b"\n"):
            rest = self._stream.readline(self.longest + 1)
            if (size := size + len(rest)) > _LINE_WITHOUT_END:
                raise UserError(
                    f"{self.path.name} is not text",
                    found=f"more than {_LINE_WITHOUT_END:,} bytes without a line end",
                    fix="check how the file was made",
                )
        return raw

    def _guarded(self, read: Callable[[], bytes]) -> bytes:
        """What ``read`` gives; nothing where the compressed data are damaged, which is noted."""
        try:
            return read()
        except PackedTooTightlyError as error:
            raise packed_too_tightly(self.path, str(error)) from None
        except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
            if self._number == 0 and isinstance(error, gzip.BadGzipFile):
                raise UserError(
                    f"{self.path.name} is not gzip-compressed, although its name says so",
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


def not_decoded(line: int, encoding: str, found: str | None = None, what: str = "the bytes are") -> Fault:
    """The fault of bytes that the encoding does not have."""
    name = "UTF-8" if encoding == UTF8 else encoding
    fix = "fix the line; if the whole file is in another encoding, name it, for example --encoding cp1252"
    return Fault(line, f"{what} not {name}", found, fix, encoding=True)


def refuse_other_format(first: bytes, path: Path) -> None:
    """Raise UserError if a file begins like a pickle, another format instead of text."""
    if first.startswith(_PICKLE_PROTOCOLS):
        raise pickle_refused(path)
    for magic, (what, fix) in _MAGIC.items():
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
