"""Character encodings: told from a file's bytes where nobody states them, and read as UTF-8."""

from __future__ import annotations

import codecs
import io
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

UTF8 = "utf-8"
LONGEST_LINE = 1 << 26
"""Bytes of a line; what is longer is no text, and would not be held in memory."""

_CHUNK = 1 << 16
_SCANNED_BYTES = 1 << 26
"""Bytes in which lines that are not ASCII are looked for."""

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
    are not ASCII are no UTF-8 either, and there are several, is it another encoding, guessed from these
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
            return Encoding(name, "" if stated else "told by its first bytes", macintosh)
        lines = as_utf8(stream, Encoding(carriage_returns=True)) if macintosh else stream
        return replace(_by_lines(lines), carriage_returns=macintosh)
    except (EOFError, zlib.error, OSError, zipfile.BadZipFile):  # whoever reads the rows reports the damage
        return Encoding(given or UTF8)
    finally:
        stream.seek(start)


def encoding_of_texts(texts: Iterable[bytes]) -> Encoding:
    """As ``detect_encoding``, of texts in files of their own; numbers in the evidence are the files'."""
    evidence = _Evidence()
    for number, text in enumerate(texts, start=1):
        evidence.take(number, text)
    return evidence.verdict("files")


def as_utf8(stream: BinaryIO, encoding: Encoding) -> BinaryIO:
    """The stream's text in UTF-8, with line feeds. Bytes that the encoding does not have are no UTF-8."""
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


def _by_lines(stream: BinaryIO) -> Encoding:
    evidence, scanned, number = _Evidence(), 0, 0
    while scanned < _SCANNED_BYTES and evidence.count < _LINES_THAT_DECIDE:
        line = stream.readline(LONGEST_LINE)
        if not line:
            break
        number += 1
        scanned += len(line)
        evidence.take(number, line)
    return evidence.verdict()


class _Evidence:
    """Lines that are not ASCII: how many are UTF-8, and those that are not; of the first lines the words."""

    def __init__(self) -> None:
        self.lines = self._valid = self._invalid = 0
        self._words = [0, 0]  # valid, invalid
        self._places: list[int] = []
        self._sample = b""

    @property
    def count(self) -> int:
        return self._valid + self._invalid

    def take(self, number: int, line: bytes) -> None:
        self.lines = number
        if line.isascii():
            return
        if number <= _SO_FEW_LINES:
            for word in line.split():
                if not word.isascii():
                    self._words[not _is_utf8(word)] += 1
        if _is_utf8(line):
            self._valid += 1
            return
        self._invalid += 1
        self._places.append(number)
        if len(self._sample) < _SAMPLE_BYTES:
            self._sample += line[:_SAMPLE_BYTES]

    def verdict(self, what: str = "lines") -> Encoding:
        # All of a file may stand in one line: then its words decide.
        valid, invalid = self._words if self.lines <= _SO_FEW_LINES else (self._valid, self._invalid)
        if invalid < max(2, 20 * valid, _LEAST_SHARE * self.lines):
            return Encoding()
        name = _guess(self._sample)
        shown = ", ".join(map(str, self._places[:3])) + (" ..." if len(self._places) > 3 else "")
        word = next(
            (word[:40] for word in self._sample.decode(name, errors="replace").split() if not word.isascii()),
            "",
        )
        places = f"{what} {shown} are" if len(self._places) > 1 else f"{what[:-1]} {shown} is"
        return Encoding(name, f"{places} not UTF-8, and read {word!r}")


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
