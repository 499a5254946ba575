"""Many classifiers on one encoder: what their exports have in common is held, and computed, once.

Rows of a batch may each be of another classifier. A text that is asked of several passes the layers below
their adapters once, and the others with an adapter for each row.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import UserError, listed
from newsdesk.model.tokenizer import TokenIds, batches_by_tokens, lengths_of, pad
from newsdesk.prediction.onnx_session import default_threads
from newsdesk.prediction.shared_model import SharedClassifier, SharedGraphs, Shelf
from newsdesk.runs.exported import find_exported
from newsdesk.serving.batching import Computed, Row

T = TypeVar("T")
R = TypeVar("R")
Floats = NDArray[np.float32]
TOKENS_AT_ONCE = 1 << 14
"""Of texts whose states are kept between trunk and adapted layers: 25 MB where a token has 384 numbers."""
ADAPTERS_AT_ONCE = 3
"""Of a batch whose rows have several: each takes 2 MB as it is computed where a token has 384 numbers."""


@dataclass(eq=False)
class _Window:
    """A row of the encoder, and what is computed of it."""

    ids: TokenIds
    classifier: SharedClassifier
    logits: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    features: Floats | None = None


class SharedEncoder:
    """Classifiers that share an encoder, by name; added, replaced and removed while others are computed.

    A batch is computed by the classifiers that there were when it began. Exports may be on several base
    models, or have adapters on other layers: what they have in common is found by the sha256 of their files.
    """

    def __init__(self, *, threads: int | None = None) -> None:
        """``threads`` compute a batch; None: ``OMP_NUM_THREADS``, else the physical cores."""
        self._threads = threads or default_threads()
        self._shelf = Shelf()
        self._classifiers: Mapping[str, SharedClassifier] = {}  # never changed, only exchanged
        self._changing = threading.RLock()  # of a thread that is changing it, garbage may call `remove`

    @property
    def names(self) -> tuple[str, ...]:
        """What classifiers there are."""
        return tuple(self._classifiers)

    def classifier(self, name: str) -> SharedClassifier:
        """The classifier of a name: its tokenizer, labels, calibration and rules. Raises UserError."""
        return _found(self._classifiers, name)

    def add(self, name: str, export: str | Path) -> SharedClassifier:
        """Open an export of the kind ``onnx-shared`` under a name; one that had it is replaced.

        Raises UserError where there is no such export, or it is damaged; then nothing has changed.
        """
        classifier = self.open(export)
        self.put(name, classifier)
        return classifier

    def open(self, export: str | Path) -> SharedClassifier:
        """Open an export with what is open already, to be `put` under a name. Raises UserError as `add`."""
        exported = find_exported(Path(export))
        if exported is None or exported.kind != "onnx-shared":
            raise UserError(
                f"{export} does not share its encoder",
                found="no exported model"
                if exported is None
                else f"an exported model of kind {exported.kind}",
                fix="make one with newsdesk export RUN --to onnx-shared",
            )
        opened = SharedClassifier(exported, threads=self._threads, shelf=self._shelf)
        _give_memory_back()
        return opened

    def put(self, name: str, classifier: SharedClassifier) -> None:
        """Let a classifier that was opened here answer to a name."""
        with self._changing:
            self._classifiers = {**self._classifiers, name: classifier}

    def remove(self, name: str) -> None:
        """Forget a classifier; what no other shares with it is freed. Raises UserError without one."""
        with self._changing:
            _found(self._classifiers, name)
            self._classifiers = {key: each for key, each in self._classifiers.items() if key != name}

    def logits(self, rows: Sequence[Row]) -> list[Floats]:
        """The logits of each row, (classes,); raises as `compute`."""
        return [computed.logits for computed in self.compute(rows)]

    def logits_of_all(self, token_ids: TokenIds, names: Sequence[str]) -> dict[str, Floats]:
        """The logits of one text by several classifiers, (classes,) each; raises as `compute`."""
        return dict(zip(names, self.logits([(token_ids, name) for name in names]), strict=True))

    def compute(self, rows: Sequence[Row]) -> list[Computed]:
        """One result for each row, in their order; any number of threads may ask at once.

        What the rows of one text have in common is computed once. Raises UserError for a name that there is
        no classifier of, and where a graph cannot be computed.
        """
        there = self._classifiers
        places: dict[str, list[int]] = {}
        for place, (_, name) in enumerate(rows):
            places.setdefault(name, []).append(place)
        computed: list[Computed] = [Computed(np.zeros(0, np.float32))] * len(rows)
        for name in places:
            _found(there, name).require_linear_model()
        asked = [(there[name], [rows[place][0] for place in own]) for name, own in places.items()]
        for own, results in zip(places.values(), self._compute_all(asked), strict=True):
            for place, result in zip(own, results, strict=True):
                computed[place] = result
        return computed

    def _compute_all(
        self, asked: Sequence[tuple[SharedClassifier, Sequence[TokenIds]]]
    ) -> Iterator[list[Computed]]:
        """What is computed of each classifier's texts, in turn."""
        windowed = [classifier.tokenizer.windows.split(sequences) for classifier, sequences in asked]
        made: dict[tuple[SharedClassifier, bytes], _Window] = {}  # what is asked twice is computed once
        windows = [
            [made.setdefault((classifier, ids.tobytes()), _Window(ids, classifier)) for ids in of_texts.ids]
            for (classifier, _), of_texts in zip(asked, windowed, strict=True)
        ]
        by_graphs: dict[SharedGraphs, list[_Window]] = {}
        for window in made.values():
            by_graphs.setdefault(window.classifier.graphs, []).append(window)
        for of_graphs in by_graphs.values():
            self._fill(of_graphs)
        for (classifier, sequences), of_texts, rows in zip(asked, windowed, windows, strict=True):
            features = [row.features for row in rows if row.features is not None]
            logits, distances = classifier.pooled(
                sequences,
                of_texts,
                np.stack([row.logits for row in rows]),
                np.stack(features) if features else None,
            )
            logits = classifier.with_linear_model(logits, sequences)
            far = [None] * len(logits) if distances is None else distances.tolist()
            yield [Computed(*each) for each in zip(logits, far, strict=True)]

    def _fill(self, windows: Sequence[_Window]) -> None:
        """Compute windows of one pair of graphs, each of another text or classifier."""
        texts: dict[bytes, list[_Window]] = {}
        for window in windows:
            texts.setdefault(window.ids.tobytes(), []).append(window)
        alike = list(texts.values())
        lengths = lengths_of([each[0].ids for each in alike])
        batches = batches_by_tokens(lengths, SharedClassifier.tokens_per_batch)
        at_once = max(1, TOKENS_AT_ONCE // SharedClassifier.tokens_per_batch)
        for start in range(0, len(batches), at_once):
            slab = [[alike[place] for place in batch] for batch in batches[start : start + at_once]]
            calls = [call for made in self._each(_through_trunk, slab) for call in made]
            self._each(_Call.fill, calls)

    def _each(self, work: Callable[[T, bool], R], items: Sequence[T]) -> list[R]:
        """The results of all items: of one by all threads, of several by one thread each."""
        if self._threads == 1 or len(items) < 2:
            return [work(item, False) for item in items]
        return list(self._pool.map(work, items, [True] * len(items)))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, "newsdesk-shared-encoder")


@dataclass(frozen=True)
class _Call:
    """A batch for the adapted layers: states of its rows, or of one text for all, and where they go."""

    windows: Sequence[_Window]
    states: Floats
    mask: TokenIds
    features: Floats | None

    def fill(self, alone: bool) -> None:
        """Compute the windows."""
        classifiers = [window.classifier for window in self.windows]
        logits, others = classifiers[0].graphs.logits(
            self.states,
            self.mask,
            [classifier.adapter for classifier in classifiers],
            features=any(classifier.off_topic is not None for classifier in classifiers),
            alone=alone,
        )
        features = self.features if others is None else others
        for row, window in enumerate(self.windows):
            window.logits = logits[row, : window.classifier.adapter.classes]
            if features is not None and window.classifier.off_topic is not None:
                window.features = features[row % len(features)]


def _through_trunk(texts: Sequence[Sequence[_Window]], alone: bool) -> list[_Call]:
    """Compute the states of texts of like length, each given by the windows that have it.

    Texts that are asked of one classifier stay in one batch; of those that are asked of several, each has
    batches of its own, in which the first product is computed once.
    """
    first = texts[0][0].classifier
    input_ids, mask = pad([windows[0].ids for windows in texts], first.exported.pad_id)
    wanted = any(window.classifier.off_topic is not None for windows in texts for window in windows)
    states, features = first.graphs.states(input_ids, mask, features=wanted, alone=alone)
    single = [place for place, windows in enumerate(texts) if len(windows) == 1]
    calls = []
    is_mixed = len({texts[place][0].classifier for place in single}) > 1
    for rows in _parts(single, ADAPTERS_AT_ONCE if is_mixed else max(1, len(single))):
        of_texts = None if features is None else features[rows]
        calls.append(_Call([texts[place][0] for place in rows], states[rows], mask[rows], of_texts))
    for place, windows in enumerate(texts):
        if len(windows) == 1:
            continue
        length = len(windows[0].ids)
        own = states[place : place + 1, :length]
        of_text = None if features is None else features[place : place + 1]
        for part in _parts(windows, max(1, SharedClassifier.tokens_per_batch // length)):
            calls.append(_Call(part, own, np.ones((len(part), length), dtype=np.int64), of_text))
    return calls


def _give_memory_back() -> None:
    """Give what opening took for a while back to the system (glibc keeps it): a sixth of a classifier's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _found(classifiers: Mapping[str, SharedClassifier], name: str) -> SharedClassifier:
    if name not in classifiers:
        known = listed([repr(each) for each in classifiers]) or "none"
        raise UserError(f"there is no classifier {name!r}", found=known, fix="add it, or ask another")
    return classifiers[name]
