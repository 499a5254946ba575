"""Duplicates: the same text twice, under two labels, or (nearly) on both sides of a split."""

from __future__ import annotations

import os
import unicodedata
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.words import is_ideograph, words_of
from newsdesk.errors import counted
from newsdesk.files import stored_tensors, write_bytes

_BANDS, _ROWS_PER_BAND = 25, 5  # a pair of similarity 0.8 is missed with probability (1 - 0.8**5)**25 = 5e-5
_AT_EACH_END = 8  # rows of a band that a row is paired with, from the first on and back from itself
_SEED = 1997

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class NearDuplicate:
    """A row and the row of another set (or an earlier one of its own) that it resembles most.

    Attributes:
        row: 0-based position in the second set.
        match: 0-based position in the first set.
        similarity: Jaccard similarity of their shingles, in [threshold, 1].
    """

    row: int
    match: int
    similarity: float


def fold(text: str) -> str:
    """A text as copies are compared: without regard to case, white space and Unicode composition (NFC)."""
    return " ".join(unicodedata.normalize("NFC", text.casefold()).split())


def duplicate_groups(texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The rows of each text that occurs more than once (folded), in row order; empty texts do not count."""
    groups: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        groups[fold(text)].append(row)
    return tuple(tuple(rows) for text, rows in groups.items() if text and len(rows) > 1)


def conflicting_groups(texts: Sequence[str], labels: Sequence[object]) -> tuple[tuple[int, ...], ...]:
    """Those duplicate groups whose rows do not all carry the same label."""
    return tuple(rows for rows in duplicate_groups(texts) if len({labels[row] for row in rows}) > 1)


def near_duplicates(
    first: Sequence[str], second: Sequence[str], *, threshold: float = 0.8
) -> tuple[NearDuplicate, ...]:
    """For each row of ``second`` that resembles a row of ``first``: the one that it resembles most.

    Resemblance is the Jaccard similarity of the sets of shingles (Broder, 1997): three words in a row, folded
    to lower case and freed of punctuation. Where a script has no spaces, characters count as words, and two
    Chinese characters or hiragana make a shingle, since each says about half a word. Candidates
    come from MinHash signatures in 25 bands of 5 (Leskovec et al., Mining of Massive Datasets, section 3.4)
    and are then compared exactly, so nothing below ``threshold`` is reported and next to nothing at or above
    0.8 is missed. Deterministic. Texts without words resemble nothing.
    """
    shingles, split = _shingle_sets([*first, *second]), len(first)
    found = _most_similar(shingles, range(split), range(split, len(shingles)), threshold)
    return tuple(NearDuplicate(one.row - split, one.match, one.similarity) for one in found)


def near_copies(texts: Sequence[str], *, threshold: float = 0.8) -> tuple[NearDuplicate, ...]:
    """For each row that resembles an earlier one without being its copy: the one that it resembles most.

    Both positions are in ``texts``. Of exact copies (folded) only the first row is looked at: see
    ``duplicate_groups``. Resemblance is that of ``near_duplicates``.
    """
    copies = {row for group in duplicate_groups(texts) for row in group[1:]}
    rows = [row for row in range(len(texts)) if row not in copies]
    return _most_similar(_shingle_sets(texts), rows, rows, threshold)


def shared_texts(
    first: Sequence[str], second: Sequence[str]
) -> tuple[tuple[NearDuplicate, ...], tuple[NearDuplicate, ...]]:
    """The rows of ``second`` whose text is in ``first`` too: exactly (folded), and else nearly.

    Of several rows of ``first`` with the text, the first is named.
    """
    known: dict[str, int] = {}
    for row, text in enumerate(first):
        known.setdefault(fold(text), row)
    known.pop("", None)
    matches = [known.get(fold(text)) for text in second]
    rest = [row for row, match in enumerate(matches) if match is None]
    near = near_duplicates(first, [second[row] for row in rest])
    return (
        tuple(NearDuplicate(row, match, 1.0) for row, match in enumerate(matches) if match is not None),
        tuple(NearDuplicate(rest[one.row], one.match, one.similarity) for one in near),
    )


def _most_similar(
    shingles: Sequence[Hashes], left: Sequence[int], right: Sequence[int], threshold: float
) -> tuple[NearDuplicate, ...]:
    """For each row of ``right`` the row of ``left`` before it that is most similar; ties go to the first."""
    best: dict[int, tuple[float, int]] = {}
    for match, row in _candidates(shingles, left, right):
        similarity = _jaccard(shingles[match], shingles[row])
        if similarity >= threshold and (similarity, -match) > best.get(row, (0.0, 0)):
            best[row] = (similarity, -match)
    return tuple(
        NearDuplicate(row, -negated, similarity) for row, (similarity, negated) in sorted(best.items())
    )


def _shingle_sets(texts: Sequence[str]) -> list[Hashes]:
    """The distinct shingles of each text as sorted 64-bit hashes; a shorter text is one as a whole."""
    vocabulary: dict[str, int] = {}  # odd numbers for ideographs

    def number(word: str) -> int:
        return vocabulary.setdefault(word, 2 * len(vocabulary) + 2 + is_ideograph(word))

    sets = []
    for text in texts:
        ids = np.array([vocabulary.get(word) or number(word) for word in words_of(text)], dtype=np.uint64)
        pairs = _mix(_mix(ids[:-1]) ^ ids[1:])
        triples = _mix(pairs[:-1] ^ ids[2:])
        hashes = np.concatenate([triples[ids[:-2] % 2 == 0], pairs[ids[:-1] % 2 == 1]])
        if not len(hashes):
            hashes = pairs if len(pairs) else _mix(ids)
        sets.append(np.unique(hashes))
    return sets


def _mix(values: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele et al., 2014): a bijection of 64-bit numbers that looks random."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _candidates(
    shingles: Sequence[Hashes], left: Sequence[int], right: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """The pairs (row of ``left``, later row of ``right``) that agree in at least one band, each pair once.

    Of many rows that agree in a band a row is paired with the first and with the last before it alone: else
    thousands of near copies of one text would make millions of pairs.
    """
    left, right = ([row for row in rows if len(shingles[row])] for rows in (left, right))
    if not left or not right:
        return
    rows, many = [*left, *right], len(left)
    flat = np.concatenate([shingles[row] for row in rows])
    starts = np.cumsum([0] + [len(shingles[row]) for row in rows[:-1]])
    salts = np.random.Generator(np.random.PCG64(_SEED)).integers(
        0, 2**63, (_BANDS, _ROWS_PER_BAND), np.uint64
    )
    seen: set[tuple[int, int]] = set()
    for band in salts:
        keys = np.zeros(len(rows), dtype=np.uint64)
        for salt in band:
            keys = _mix(keys ^ np.minimum.reduceat(_mix(flat ^ salt), starts))
        buckets: dict[int, list[int]] = defaultdict(list)
        shared = np.flatnonzero(np.isin(keys[:many], keys[many:]))
        for place, key in zip(shared.tolist(), keys[shared].tolist(), strict=True):
            buckets[key].append(left[place])
        for key, row in zip(keys[many:].tolist(), right, strict=True):
            bucket = buckets.get(key, [])
            before = bisect_left(bucket, row)
            first = max(0, before - _AT_EACH_END)
            matches = bucket[: min(_AT_EACH_END, first)] + bucket[first:before]
            fresh = {(match, row) for match in matches} - seen
            seen |= fresh
            yield from fresh


def _jaccard(first: Hashes, second: Hashes) -> float:
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)


KNOWN_TEXTS = "known_texts.safetensors"

_FORMAT = "1"
_FIX = "copy it again from where it is whole, or train the run again"


@dataclass(frozen=True)
class LearnedRows:
    """How many of some rows a run already knows; their texts are compared without regard to case and space.

    Attributes:
        rows: how many were looked at.
        training: those whose text is among the run's training rows.
        validation: those whose text is among its validation rows, and not among the training rows.
        share: the share of the rows that the run knows, 0 to 1.
    """

    rows: int
    training: int
    validation: int
    share: float

    def note(self) -> str:
        """How many rows were not new to the run, and what that does to their figures, in a sentence."""
        if not self.training + self.validation:
            rows = counted(self.rows, "row")
            return f"no text of these {rows} is among the run's training or validation texts"
        return (
            f"{100 * self.share:.2f} % of these rows are not new to the run: the texts of {self.training:,} "
            f"of {self.rows:,} are among its training texts, of {self.validation:,} among its validation "
            "texts; on new texts it is likely to do worse"
        )


@dataclass(frozen=True, eq=False)
class KnownTexts:
    """The training and validation texts of a run.

    Of each text the file keeps 64 bits of its BLAKE2b hash, folded (``duplicates.fold``): 8 bytes a text.
    A new text is taken for a known one with a probability of texts / 2**64. The file shows of a given text
    whether it is among them; the texts themselves cannot be recovered from it. Empty texts are not kept.

    Attributes:
        training: sorted hashes of what was learned from, uint64, without repetition.
        validation: sorted hashes of the validation rows, likewise.
    """

    training: Hashes
    validation: Hashes

    @classmethod
    def of(cls, training: Sequence[str], validation: Sequence[str]) -> Self:
        """The known texts of these rows."""
        empty = _hashes([""])
        return cls(np.setdiff1d(_hashes(training), empty), np.setdiff1d(_hashes(validation), empty))

    def joined(self, other: KnownTexts) -> KnownTexts:
        """What either knows."""
        pairs = ((self.training, other.training), (self.validation, other.validation))
        return KnownTexts(*(np.union1d(one, another) for one, another in pairs))

    def in_training(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Which of the texts are among the training rows, shape (texts,)."""
        return np.isin(_hashes(texts), self.training)

    def in_validation(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Which of the texts are among the validation rows and not among the training rows, (texts,)."""
        hashes = _hashes(texts)
        return np.isin(hashes, self.validation) & ~np.isin(hashes, self.training)

    def learned_rows(self, texts: Sequence[str]) -> LearnedRows:
        """How many of the texts the run learned from, or was validated on."""
        training, validation = self.in_training(texts), self.in_validation(texts)
        rows, known = len(texts), int((training | validation).sum())
        return LearnedRows(rows, int(training.sum()), int(validation.sum()), known / rows if rows else 0.0)

    def save(self, folder: Path) -> None:
        """Write it into a run or an export, atomically."""
        from safetensors.numpy import save

        tensors = {"training": self.training, "validation": self.validation}
        write_bytes(folder / KNOWN_TEXTS, save(tensors, metadata={"format": _FORMAT}))

    @classmethod
    def of_folder(cls, folder: Path) -> Self | None:
        """Those that a run or an export carries; None where it has none. Raises UserError if damaged."""
        file = folder / KNOWN_TEXTS
        if not os.path.lexists(file):
            return None
        with stored_tensors(file, fix=_FIX) as content:
            if (content.metadata() or {}).get("format") != _FORMAT:
                raise ValueError(f"a format other than {_FORMAT}")
            hashes = [content.get_tensor(name) for name in ("training", "validation")]
            if any(one.dtype != np.uint64 or one.ndim != 1 for one in hashes):
                raise ValueError("hashes that are no list of 64-bit numbers")
            return cls(*hashes)


def _hashes(texts: Iterable[str]) -> Hashes:
    """The hash of each folded text, uint64 (texts,)."""
    folded = (fold(text).encode("utf-8", "surrogatepass") for text in texts)
    digests = b"".join(blake2b(text, digest_size=8).digest() for text in folded)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)
