"""The models that are served: found in folders, opened, tried out, and exchanged while requests are answered.

A request keeps the model that it was given until it is answered. So a model that takes another's place, or is
removed, changes nothing for requests in progress, and none is answered by two.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.fields import NEWS_FIELDS, value_at
from newsdesk.data.table import Fault
from newsdesk.data.words import normalise
from newsdesk.errors import UserError, listed
from newsdesk.files import sha256_of
from newsdesk.model.tokenizer import Encoded
from newsdesk.prediction.abstention import DecisionRule, Promises
from newsdesk.prediction.classifier import Classifier
from newsdesk.prediction.open_model import OnnxClassifier, find_model, open_model
from newsdesk.prediction.predictions import Predictions
from newsdesk.prediction.shared_model import SharedClassifier
from newsdesk.runs.exported import find_exported, preferred_export
from newsdesk.runs.folder import MANIFEST, RunFolder
from newsdesk.runs.ready_made import located, named
from newsdesk.serving.batching import Answered, Computed, Row
from newsdesk.serving.drift import StreamWatch
from newsdesk.serving.refusals import Refusal
from newsdesk.serving.shared_encoder import SharedEncoder

_RULES_KEPT = 64
_generations = count(1)


class ClassifierEngine:
    """Computes one classifier, whatever it is made of."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        # ONNX Runtime runs one session for several threads; torch modules keep state.
        self._alone: Any = nullcontext() if isinstance(classifier, OnnxClassifier) else threading.Lock()

    def compute(self, rows: Sequence[Row]) -> Sequence[Computed]:
        """See `newsdesk.serving.batching.Engine`."""
        with self._alone:
            logits, distances = self._classifier.outputs([ids for ids, _ in rows])
        if distances is None:
            return [Computed(row) for row in logits]
        return [Computed(row, float(far)) for row, far in zip(logits, distances, strict=True)]


@dataclass(eq=False)
class ServedModel:
    """A model that answers requests; never changed.

    Attributes:
        name: what requests call it.
        classifier: its tokenizer, labels, calibration and rules.
        engine: what computes it.
        promise: what is promised where a request asks for nothing else.
        since: when it was opened, in seconds of the epoch.
        key: what its engine knows it by: another for each time that a model is opened.
        watch: compares its answers with what it says of its calibration rows; None where it has none.
    """

    name: str
    classifier: Classifier
    engine: Any
    promise: Promises = field(default_factory=Promises)
    since: float = field(default_factory=time.time)
    key: str = ""

    def __post_init__(self) -> None:
        """Give it a key, and find out now whether it can promise what it is to promise."""
        self.key = self.key or f"{self.name}#{next(_generations)}"
        self.watch = _watch_of(self.classifier)
        self._rule = lru_cache(maxsize=_RULES_KEPT)(self._new_rule)
        self.rule(self.promise)

    @property
    def version(self) -> str:
        """The beginning of the fingerprint of all files that decide what it predicts."""
        return self.classifier.fingerprint[:12]

    def encode(self, texts: Sequence[str]) -> Encoded:
        """See `newsdesk.serving.batching.Model`."""
        normaliser = self.classifier.layout.normaliser
        return self.classifier.encode([normalise(text, normaliser) for text in texts])

    def text_of(self, given: str | Mapping[str, Any]) -> str:
        """The text of what a request gives: a text, or a row or news item whose columns make one.

        Raises Refusal where it has none of the columns, or something other than text in one.
        """
        if isinstance(given, str):
            return given
        layout = self.classifier.layout
        cells = {column: value_at(given, column) for column in layout.text_columns}
        if all(cell is None for cell in cells.values()):
            cells = {column: value_at(given, column) for column in NEWS_FIELDS if column != "subject"}
            texts = [cell for cell in cells.values() if isinstance(cell, str)]
            if texts:
                return " ".join(texts)
            columns = listed([repr(column) for column in layout.text_columns])
            raise Refusal("invalid", f"no text: {columns} missing or null, and no headline or body")
        text = layout.text_of(0, {**dict.fromkeys(layout.text_columns), **given})
        if isinstance(text, Fault):
            raise Refusal("invalid", f"{text.wrong}: {text.found}")
        return text

    def rule(self, asked: Mapping[str, Any]) -> DecisionRule | None:
        """The rule that keeps what is asked; may read calibration rows. Raises Refusal where it cannot."""
        wanted = {name: share for name, share in asked.items() if share is not None}
        return self._rule(tuple(sorted(wanted.items())))

    def _new_rule(self, asked: tuple[tuple[str, Any], ...]) -> DecisionRule | None:
        return self.classifier.decision_rule(**Promises(**dict(asked)))  # type: ignore[typeddict-item]

    def predictions(
        self, answered: Answered, rule: DecisionRule | None, *, answer_empty: bool = False
    ) -> Predictions:
        """What it says of texts by what was computed of them."""
        return self.classifier.predictions(
            answered.encoded, answered.logits, answered.distances, rule, answer_empty=answer_empty
        )

    def calibrated_logits(self, logits: NDArray[np.float32]) -> NDArray[np.floating]:
        """Logits whose softmax, or where texts may have several labels sigmoid, is the probabilities."""
        decisions = self.classifier.decisions
        if decisions is not None:
            return decisions.log_odds(logits)
        return logits / np.float32(self.classifier.temperature)


def _watch_of(classifier: Classifier) -> StreamWatch | None:
    """What tells whether texts have changed; None without calibration rows, and where these are all alike."""
    rows = classifier.held_out_rows()
    if rows is None:
        return None
    try:
        return StreamWatch(classifier.probabilities(rows.logits))
    except ValueError:
        return None


def sources_of(places: Sequence[str]) -> dict[str, Path]:
    """The folder of each model by its name, from what the command line says, in order.

    A place is a run, an export, the name of a ready-made classifier, one of these as ``NAME=PLACE``, or a
    folder of runs and exports; those whose names begin with a dot are still being copied. Raises UserError
    where there is nothing, and for a name that comes twice.
    """
    found: dict[str, Path] = {}
    for place in places:
        name, separator, rest = place.partition("=")
        named_path = Path(rest) if separator and not Path(place).exists() else None
        path = Path(place) if named_path is None else named_path
        entries = [(name, path)] if named_path is not None else list(_models_at(path))
        for called, folder in entries:
            if called in found:
                raise UserError(
                    f"two models would be called {called!r}",
                    found=f"{found[called]} and {folder}",
                    fix=f"name one of them, for example other={folder}",
                )
            found[called] = folder
    return found


def _models_at(path: Path) -> Iterator[tuple[str, Path]]:
    """The model at a place, or those in a folder of models, by name."""
    if not path.is_dir() or (path / MANIFEST).exists() or named(path):
        yield _name_of(path), path
        return
    visible = (entry for entry in sorted(path.iterdir()) if not entry.name.startswith("."))
    inside = [entry for entry in visible if (entry / MANIFEST).is_file()]
    if not inside:
        raise UserError(
            f"there is nothing to serve in {path}",
            found=listed([entry.name for entry in sorted(path.iterdir())], 8) or "an empty folder",
            fix="give the folder of a run, of an export, or one that holds such folders",
        )
    yield from ((entry.name, entry) for entry in inside)


def _name_of(path: Path) -> str:
    """A model's name by its folder: of an export in a run's folder, the run's."""
    absolute = path.absolute()
    return absolute.parents[1].name if absolute.parent.name == "export" else absolute.name


def state_of(path: Path) -> str | None:
    """What tells whether the model at a place is another one: its manifests; None where there is none."""
    with suppress(OSError, UserError):
        found = located(path)
        manifests = [found / MANIFEST, *sorted(found.glob(f"export/*/{MANIFEST}"))]
        return repr([sha256_of(each) for each in manifests])
    return None


Open = Callable[[Path], tuple[Classifier, Any]]
"""A classifier from a place, and the engine that computes it."""


def open_alone(path: Path) -> tuple[Classifier, Any]:
    """A classifier that is computed by itself, each batch by one thread."""
    classifier = open_model(path, threads=1)
    return classifier, ClassifierEngine(classifier)


def open_together() -> Open:
    """How a server opens models: exports that share their encoder for one engine, others each alone."""
    encoder = SharedEncoder(threads=1)

    def opened(path: Path) -> tuple[Classifier, Any]:
        found = find_model(path)
        export = preferred_export(found.path) if isinstance(found, RunFolder) else found
        if export is None or export.kind != "onnx-shared":
            return open_alone(path)
        return encoder.open(export.path), encoder

    return opened


class Models:
    """The models by name, the first of which answers requests that name none."""

    def __init__(
        self, sources: Mapping[str, Path], *, promise: Promises | None = None, opened: Open | None = None
    ) -> None:
        self.sources = dict(sources)
        self._promise = promise or Promises()
        self._opened = opened or open_together()
        self._served: dict[str, ServedModel] = {}
        self._states: dict[str, str | None] = {}
        self._changing = asyncio.Lock()

    def __iter__(self) -> Iterator[ServedModel]:
        """All that are served, in order."""
        return iter(tuple(self._served.values()))

    def __len__(self) -> int:
        """How many are served."""
        return len(self._served)

    def get(self, name: str | None = None) -> ServedModel:
        """The model of a name; of None, the first. Raises Refusal where there is none."""
        found = next(iter(self._served.values()), None) if name is None else self._served.get(name)
        if found is None:
            known = listed([repr(each) for each in self._served]) or "none"
            raise Refusal("unknown_model", f"there is no model {name!r}; there are {known}")
        return found

    def open(self, name: str) -> tuple[ServedModel, str | None]:
        """Open the model of a source, with its state before that, and serve it not yet; see `serve`.

        Raises UserError as `open_model` does, and where it cannot promise what it is to promise.
        """
        state = state_of(self.sources[name])
        classifier, engine = self._opened(self.sources[name])
        model = ServedModel(name, classifier, engine, self._promise)
        if isinstance(engine, SharedEncoder) and isinstance(classifier, SharedClassifier):
            engine.put(model.key, classifier)  # until no request holds it any longer
            weakref.finalize(model, engine.remove, model.key).atexit = False
        return model, state

    def serve(self, model: ServedModel, state: str | None) -> None:
        """Let a model answer all requests of its name that come from now on."""
        self._states[model.name] = state
        self._served[model.name] = model

    async def load(self, name: str, tried: Callable[[ServedModel], Any]) -> ServedModel:
        """Open a source's model anew, await ``tried``, and serve it in place of the one of its name.

        Raises Refusal for a name without source, and as `open` does; what was served then still is.
        """
        if name not in self.sources:
            raise Refusal("unknown_model", f"no model {name!r} was given to this server")
        async with self._changing:
            model, state = await asyncio.to_thread(self.open, name)
            await tried(model)
            self.serve(model, state)
            return model

    async def remove(self, name: str) -> None:
        """Serve the model of a name no longer. Raises Refusal where there is none, or it is the last."""
        async with self._changing:
            self.get(name)
            if len(self._served) == 1:
                raise Refusal("forbidden", "the last model is not removed")
            del self._served[name]

    def changed(self, places: Sequence[str]) -> tuple[list[str], list[str]]:
        """Names to load and to remove, since what is in the folders is not what was opened. Blocks."""
        with suppress(UserError, OSError):
            self.sources.update(sources_of(places))
        load, remove = [], []
        for name, path in self.sources.items():
            state = state_of(path)
            if state is None and name in self._served:
                remove.append(name)
            elif state is not None and state != self._states.get(name):
                load.append(name)
        return load, remove

    def failed(self, name: str, path: Path) -> None:
        """Remember a state that could not be opened, so that it is not tried until it changes."""
        self._states[name] = state_of(path)


WARM_UP = "Shares fell after the bank reported a quarterly loss."
"""What a model answers before anyone is told that it is ready."""


def is_answer(answered: Answered) -> bool:
    """Whether the answer to `WARM_UP` is one."""
    return bool(np.isfinite(answered.logits).all())


def is_exported(model: ServedModel) -> bool:
    """Whether an exported model answers, not a run by PyTorch."""
    return find_exported(model.classifier.path) is not None
