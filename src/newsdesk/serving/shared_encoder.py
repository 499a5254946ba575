"""Many classifiers on one encoder: what their exports have in common is held, and computed, once.

Rows of a batch may each be of another classifier. A text that is asked of several passes the layers below
their adapters once, and the others with an adapter for each row.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import UserError, listed
from newsdesk.model.tokenizer import TokenIds, batches_by_tokens, lengths_of, pad
from newsdesk.prediction.onnx_session import default_threads
from newsdesk.prediction.shared_model import SharedClassifier, SharedGraphs, Shelf
from newsdesk.runs.exported import find_exported

T = TypeVar("T")
Floats = NDArray[np.float32]
Row = tuple[TokenIds, str]
"""The token ids of a text as its classifier's tokenizer makes them, and the name of the classifier."""

TOKENS_AT_ONCE = 1 << 14
"""Of texts whose states are kept between trunk and adapted layers: 25 MB where a token has 384 numbers."""


@dataclass(frozen=True)
class Computed:
    """What is computed of a row.

    Attributes:
        logits: (classes,), with the scores of a linear model where one is stacked.
        distance: how far off topic the text is; None where the classifier has no such score.
    """

    logits: Floats
    distance: float | None = None


@dataclass(eq=False)
class _Window:
    """A row of the encoder, and what is computed of it."""

    ids: TokenIds
    classifier: SharedClassifier
    logits: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    features: Floats | None = None


class SharedEncoder:
    """Classifiers that share an encoder, by name; added, replaced and removed while others are computed.

    A batch is computed by the classifiers that there were when it began. Exports on several base models, or
    with adapters on other layers, are welcome: what they have in common is found by the sha256 of their files.
    """

    def __init__(self, *, threads: int | None = None) -> None:
        """``threads`` compute a batch; None: ``OMP_NUM_THREADS``, else the physical cores."""
        self._threads = threads or default_threads()
        self._shelf = Shelf()
        self._classifiers: Mapping[str, SharedClassifier] = {}  # never changed, only exchanged
        self._changing = threading.Lock()

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
        exported = find_exported(Path(export))
        if exported is None or exported.kind != "onnx-shared":
            raise UserError(
                f"{export} does not share its encoder",
                found="no exported model" if exported is None else f"an exported model of kind {exported.kind}",
                fix="make one with newsdesk export RUN --to onnx-shared",
            )
        classifier = SharedClassifier(exported, threads=self._threads, shelf=self._shelf)
        with self._changing:
            self._classifiers = {**self._classifiers, name: classifier}
        return classifier

    def remove(self, name: str) -> None:
        """Forget a classifier; what nobody shares with it any longer is freed. Raises UserError without one."""
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
        asked = [(_found(there, name), [rows[place][0] for place in own]) for name, own in places.items()]
        for own, results in zip(places.values(), self._compute_all(asked), strict=True):
            for place, result in zip(own, results, strict=True):
                computed[place] = result
        return computed

    def _compute_all(
        self, asked: Sequence[tuple[SharedClassifier, Sequence[TokenIds]]]
    ) -> Iterable[list[Computed]]:
        windowed = [classifier.tokenizer.windows.split(sequences) for classifier, sequences in asked]
        windows = [
            [_Window(ids, classifier) for ids in of_texts.ids]
            for (classifier, _), of_texts in zip(asked, windowed, strict=True)
        ]
        by_graphs: dict[SharedGraphs, list[_Window]] = {}
        for window in (each for of_classifier in windows for each in of_classifier):
            by_graphs.setdefault(window.classifier.graphs, []).append(window)
        for graphs, of_graphs in by_graphs.items():
            self._fill(graphs, of_graphs)
        for (classifier, sequences), of_texts, rows in zip(asked, windowed, windows, strict=True):
            logits = np.stack([row.logits for row in rows])
            features = [row.features for row in rows if row.features is not None]
            yield [
                Computed(*each)
                for each in zip(
                    *classifier.answers(sequences, of_texts, logits, np.stack(features) if features else None),
                    strict=True,
                )
            ]
