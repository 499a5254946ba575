"""An exported model that shares its encoder with others: opened alone, or with all that they have in common.

A text passes the trunk once, whatever number of runs it is asked of; then the adapted layers, with the
adapter of a run for each row.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from newsdesk.model.tokenizer import TextTokenizer, TokenIds
from newsdesk.model.tokenizer_file import TOKENIZER
from newsdesk.prediction.onnx_check import TOKENS, Port
from newsdesk.prediction.onnx_session import OnnxGraph
from newsdesk.prediction.open_model import INPUTS, Checks, OnnxClassifier, Outputs
from newsdesk.runs.exported import FEATURES, LOGITS, MODEL_FILES, STATES, TRUNK, ExportedModel
from newsdesk.runs.exported_adapter import ADAPTER, ExportedAdapter, stacked
from newsdesk.runs.exported_adapter import INPUTS as OF_ADAPTERS

T = TypeVar("T")
Floats = NDArray[np.float32]
IDS, MASK = INPUTS


class Shelf:
    """What exports have in common and is open, by its sha256: held once, for as long as one of them is."""

    def __init__(self) -> None:
        self._kept: WeakValueDictionary[Any, Any] = WeakValueDictionary()
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], T]) -> T:
        """What is kept under a key; made, and kept, where there is none."""
        with self._lock:
            found: T | None = self._kept.get(key)
            if found is None:
                found = self._kept[key] = make()
            return found


@dataclass(frozen=True)
class SharedGraphs:
    """The two graphs of an encoder: what no adapter changes, and the layers that have adapters."""

    trunk: OnnxGraph
    adapted: OnnxGraph

    @classmethod
    def of(
        cls, exported: ExportedModel, adapter: ExportedAdapter, threads: int, shelf: Shelf | None
    ) -> SharedGraphs:
        """Open an export's graphs, or take them from the shelf.

        Raises as `OnnxGraph`, and UserError where a file that goes on the shelf is not as the manifest says.
        """
        states = Port("float32", (None, None, adapter.hidden))

        def opened(name: str, inputs: dict[str, Port], outputs: dict[str, Port]) -> OnnxGraph:
            def make() -> OnnxGraph:
                if shelf is not None:
                    exported.verify(name)
                return OnnxGraph(exported.path / name, inputs, outputs, threads=threads)

            key = exported.manifest.files.get(name), threads, *inputs.values()
            return make() if shelf is None else shelf.get(key, make)

        own = {name: Port(OF_ADAPTERS[name], axes) for name, axes in adapter.axes.items()}
        logits = Port("float32", (None, None))
        return cls(
            opened(TRUNK, INPUTS, {STATES: states}),
            opened(MODEL_FILES["onnx-shared"], {STATES: states, MASK: TOKENS, **own}, {LOGITS: logits}),
        )

    def states(
        self, input_ids: TokenIds, attention_mask: TokenIds, *, features: bool, alone: bool = False
    ) -> tuple[Floats, Floats | None]:
        """What the adapted layers begin with, (rows, length, hidden), and features (rows, hidden).

        The features are None where they are not asked for, and where the adapted layers give them.
        """
        inputs: dict[str, NDArray[Any]] = {IDS: input_ids, MASK: attention_mask}
        wanted = [STATES, FEATURES] if features and FEATURES in self.trunk.outputs else [STATES]
        found, *of_texts = self.trunk.run(wanted, inputs, tokens=input_ids.size, alone=alone)
        return found, of_texts[0] if of_texts else None

    def logits(
        self,
        states: Floats,
        attention_mask: TokenIds,
        adapters: Sequence[ExportedAdapter],
        *,
        features: bool,
        alone: bool = False,
    ) -> tuple[Floats, Floats | None]:
        """Logits (rows, most classes) of rows, each by its adapter; features where the trunk gave none.

        ``states`` are of the rows of ``attention_mask`` (rows, length), or those of one text for all.
        """
        inputs: dict[str, NDArray[Any]] = {STATES: states, MASK: attention_mask, **stacked(adapters)}
        wanted = [LOGITS, FEATURES] if features and FEATURES not in self.trunk.outputs else [LOGITS]
        found, *of_rows = self.adapted.run(wanted, inputs, tokens=attention_mask.size, alone=alone)
        return found, of_rows[0] if of_rows else None


class SharedClassifier(OnnxClassifier):
    """An exported model of the kind ``onnx-shared``, ready to classify texts.

    Attributes:
        adapter: what is its own.
        graphs: what it shares.
    """

    adapter: ExportedAdapter
    graphs: SharedGraphs

    def __init__(
        self,
        exported: ExportedModel,
        *,
        threads: int | None = None,
        checks: Checks = "read",
        shelf: Shelf | None = None,
    ) -> None:
        """Open what is not on the ``shelf`` yet, and check the files' sha256. Raises as `open_model`."""
        self._shelf = shelf
        super().__init__(exported, threads=threads, checks=checks)
        self.off_topic = self.off_topic and self.off_topic.halved()  # the largest part of what is its own

    def _verify(self, exported: ExportedModel, checks: Checks) -> None:
        if self._shelf is None or checks == "all":
            super()._verify(exported, checks)
        else:  # others are checked as they go on the shelf
            exported.verify(ADAPTER)
            exported.verify_calibration()

    def _open_tokenizer(self, exported: ExportedModel) -> TextTokenizer:
        if self._shelf is None:
            return super()._open_tokenizer(exported)

        def make() -> TextTokenizer:
            exported.verify(TOKENIZER)
            return super(SharedClassifier, self)._open_tokenizer(exported)

        labels = exported.labels
        key = exported.manifest.files.get(TOKENIZER), labels.max_length, labels.long_texts
        return self._shelf.get(key, make)

    def _open_graphs(self, exported: ExportedModel) -> None:
        self.adapter = ExportedAdapter.of_folder(exported.path, len(exported.labels.names))
        self.graphs = SharedGraphs.of(exported, self.adapter, self._threads, self._shelf)

    def _compute(self, input_ids: TokenIds, attention_mask: TokenIds, *, alone: bool = False) -> Outputs:
        wanted = FEATURES in self._wanted
        states, features = self.graphs.states(input_ids, attention_mask, features=wanted, alone=alone)
        adapters = [self.adapter] * len(input_ids)
        logits, others = self.graphs.logits(states, attention_mask, adapters, features=wanted, alone=alone)
        return [each for each in (logits, features, others) if each is not None]
