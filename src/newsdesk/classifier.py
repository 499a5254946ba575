"""The front door for programs and notebooks: a text classifier with scikit-learn's methods."""

from __future__ import annotations

import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.given import (
    LABEL,
    TEXT,
    GivenLabels,
    given_labels,
    given_table,
    given_texts,
    one_each,
    uneven,
)
from newsdesk.data.labels import LabelMatcher
from newsdesk.data.table import IN_MEMORY
from newsdesk.files import damaged
from newsdesk.progress import Progress, Unit

if TYPE_CHECKING:
    from newsdesk.evaluation.evaluate import Evaluation
    from newsdesk.evaluation.label_sets import LabelSetEvaluation
    from newsdesk.prediction.classifier import Classifier
    from newsdesk.prediction.predictions import Predictions
    from newsdesk.runs.labels import LabelKind
    from newsdesk.runs.log import Event

_KEYS = {
    "base": "model.base",
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "learning_rate": "training.learning_rate",
    "max_length": "model.max_length",
    "rank": "lora.rank",
    "alpha": "lora.alpha",
    "dropout": "lora.dropout",
    "validation_share": "data.validation_share",
    "folds": "data.folds",
    "device": "training.device",
    "seed": "training.seed",
}
"""The recipe key that each parameter stands for."""
_USUAL = "quick"


class TextClassifier:
    """Fine-tunes a text encoder with LoRA, in the manner of scikit-learn's classifiers.

    ``TextClassifier(recipe="quick", epochs=3).fit(texts, labels).predict(["oil prices fall"])``

    Texts and labels are lists, tuples, numpy arrays, pandas or polars Series, or columns of a
    ``datasets.Dataset``. Where a text may have several labels, these are lists of lists or sets, or a 0/1
    matrix: an array, a sparse one, both as scikit-learn's MultiLabelBinarizer gives them, or a frame. `fit`
    trains in a temporary folder; `save` keeps it as a run folder, the same that ``newsdesk train`` writes,
    which every verb of the command line takes. It works in scikit-learn's ``Pipeline``, ``GridSearchCV``,
    ``cross_val_score`` and ``clone``.

    Attributes, once fitted or loaded:
        classes_: (classes,) the labels as they were given, ascending; those of a matrix in its order.
        path_: the folder of the run or exported model.
    """

    _estimator_type = "classifier"

    classes_: NDArray[Any]
    path_: Path
    _columns: NDArray[np.int64]
    _loaded: Classifier | None
    _finalizer: Callable[[], object] | None

    def __init__(
        self,
        *,
        base: str | None = None,
        recipe: str = _USUAL,
        epochs: float | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        max_length: int | None = None,
        rank: int | None = None,
        alpha: float | None = None,
        dropout: float | None = None,
        validation_share: float | None = None,
        folds: int | None = None,
        device: str | None = None,
        seed: int | None = None,
        stack: bool = False,
        start_from: str | Path | TextClassifier | None = None,
        settings: Mapping[str, Any] | None = None,
        progress: bool | None = None,
        track: str | Sequence[str] | None = None,
    ) -> None:
        """Say what to train; nothing is checked or loaded before `fit`.

        Args:
            base: named base model, Hub id or local folder.
            recipe: ``quick``, ``best`` or ``seed``, or a TOML file; its values hold where the arguments below
                are None.
            epochs: passes over the training rows. batch_size: rows a step.
            learning_rate: of adapters and head. max_length: tokens that are read of a text.
            rank, alpha, dropout: of the adapters.
            validation_share: share of the rows held out to choose the best state and to calibrate.
            folds: cross-validate in so many parts instead, and learn from all rows in the end; 0: hold some
                out; None: 5 of fewer than 1,000 rows.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``. seed: of everything random.
            stack: add the scores of a linear model, which learns in seconds, to the encoder's.
            start_from: a fitted classifier, or a run, to go on from: it keeps what it knows, and learns new
                classes. Base and adapters are its own, and training is short.
            settings: any other recipe keys, such as ``{"lora.targets": ("all-linear",)}``.
            progress: show a bar while training; None: in notebooks and terminals.
            track: where to show the training: ``tensorboard``, ``mlflow``, ``wandb``, or several of them.
        """
        self.base = base
        self.recipe = recipe
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.max_length = max_length
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.validation_share = validation_share
        self.folds = folds
        self.device = device
        self.seed = seed
        self.stack = stack
        self.start_from = start_from
        self.settings = settings
        self.progress = progress
        self.track = track

    def fit(self, X: Any, y: Any, validation: tuple[Any, Any] | None = None) -> Self:  # noqa: N803
        """Train on texts (rows,) and their labels (rows,), or 0/1 for each label, (rows, labels).

        ``validation``: texts and labels to choose the best state and to calibrate by; without them a part of
        the rows is held out. Raises TypeError for what holds no texts or labels, ValueError for a matrix of
        anything but 0 and 1, and UserError for rows, labels or parameters that cannot be trained on.
        """
        from newsdesk import api
        from newsdesk.reports.tracking import Tracking

        labels = given_labels(y)
        table = given_table(given_texts(X), labels)
        held_out = None
        if validation is not None:
            held_out = given_table(given_texts(validation[0]), given_labels(validation[1]))
        folder = tempfile.mkdtemp(prefix="newsdesk-")
        finalizer = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        try:
            out, name = Path(folder) / "run", Path(self.recipe).stem
            with (
                _shown(self.progress) as (observe, progress),
                Tracking(self.track, out, observe, name=name) as tracking,
            ):
                run = api.train(
                    None if self.start_from is not None and self.recipe == _USUAL else self.recipe,
                    out=out,
                    flags=self._flags(held_out is not None, is_multi=labels.is_multi),
                    observe=tracking.observe,
                    progress=progress,
                    tables=(table, held_out),
                )
                run.write_kind(self._kind_with_earlier(_kind_of(labels.names or labels.flat())))
                tracking.finish(run)
        except BaseException:
            finalizer()
            raise
        self._use(run.path, finalizer)
        flat = [*(labels.names or labels.flat())]
        first = dict(reversed([*zip(_ids_of(flat, run.labels.names).tolist(), flat, strict=True)]))
        pairs = zip(self._columns, self.classes_, strict=True)
        self.classes_ = np.array([first.get(i, known) for i, known in pairs])  # "01", where the run has "1"
        return self

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """The likeliest class of each text, (rows,), as the labels were given; empty texts get one, too.

        Where a text may have several labels, 0 or 1 for each label, (rows, labels), in the order of
        ``classes_``, as scikit-learn's classifiers answer; `answers` names them.
        """
        decisions = self.classifier.decisions
        if decisions is not None:
            found = self.classifier.predict(given_texts(X), answer_empty=True).assigned
            return np.asarray(found[:, self._columns], dtype=np.int64)
        best = self.predict_proba(X).argmax(axis=1)
        answers: NDArray[Any] = self.classes_[best]
        return answers

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Calibrated probabilities, (rows, classes), in the order of ``classes_``; rows sum to one.

        Where a text may have several labels, each has a probability of its own, and rows do not.
        """
        found = self.classifier.predict(given_texts(X), answer_empty=True).probabilities.astype(np.float64)
        if self.classifier.task == "multi":
            return np.asarray(found[:, self._columns], dtype=np.float64)
        ordered: NDArray[np.float64] = (found / found.sum(axis=1, keepdims=True))[:, self._columns]
        return ordered

    def score(self, X: Any, y: Any) -> float:  # noqa: N803
        """The accuracy on labelled texts; labels of unknown classes count as errors.

        Where a text may have several labels: the share of texts that get just their own (subset accuracy).
        """
        if self.classifier.task == "multi":
            return self._subset_accuracy(X, given_labels(y))
        ids = _ids_of(one_each(y, "labels"), self.classifier.label_names)
        found = self.predict_proba(X).argmax(axis=1)
        if len(ids) != len(found):
            raise uneven(len(found), len(ids))
        return float(np.mean(self._columns[found] == ids))

    def _subset_accuracy(self, texts: Any, labels: GivenLabels) -> float:
        ids = LabelMatcher(self.classifier.label_names)
        wanted = [{ids.match(str(label)) for label in row} for row in labels.values]
        found = self.predict(texts)
        if len(wanted) != len(found):
            raise uneven(len(found), len(wanted))
        given = (set(self._columns[np.flatnonzero(row)].tolist()) for row in found)
        return float(np.mean([one == other for one, other in zip(given, wanted, strict=True)]))

    def answers(
        self,
        X: Any,  # noqa: N803
        *,
        abstain: float | None = None,
        confidence: float = 0.95,
        sets: float | None = None,
        off_topic: float | None = None,
    ) -> Predictions:
        """Predictions that may say "I don't know", with their reasons; see `Classifier.predict`.

        ``abstain`` is the error rate promised of the answered texts. Classes are named as in the run.
        """
        return self.classifier.predict(
            given_texts(X), abstain=abstain, confidence=confidence, sets=sets, off_topic=off_topic
        )

    def evaluate(
        self,
        X: Any,  # noqa: N803
        y: Any,
        *,
        split: str = "test",
    ) -> Evaluation | LabelSetEvaluation:
        """Accuracy, F1, calibration and the rest, with intervals, on texts that were not trained on.

        What ``newsdesk evaluate`` writes is kept in the run under the name ``split``. Raises UserError for
        labels that are not among ``classes_``.
        """
        from newsdesk import api

        self._require_fitted()
        table = given_table(given_texts(X), given_labels(y))
        return api.evaluate(self.path_, table, split=split)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Keep it as a run folder at ``path``, and return that.

        Raises UserError when something is there already, which only ``overwrite`` replaces, and then only a
        run of newsdesk.
        """
        from newsdesk import api

        self._require_fitted()
        named = self._finalizer is None  # a temporary folder's name is nobody's title
        return api.copy_run(self.path_, path, overwrite=overwrite, named=named).path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A classifier from a run folder, an exported model, or by the name of a ready-made one.

        Raises UserError where there is none.
        """
        classifier = cls()
        classifier._use(Path(path))
        return classifier

    @property
    def classifier(self) -> Classifier:
        """What predicts, with all that newsdesk can say of a text; see `newsdesk.load`."""
        self._require_fitted()
        if self._loaded is None:
            from newsdesk.prediction.open_model import open_model

            self._loaded = open_model(self.path_)
        return self._loaded

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002
        """The parameters by name, as scikit-learn asks for them."""
        return {name: getattr(self, name) for name in signature(type(self)).parameters}

    def set_params(self, **parameters: Any) -> Self:
        """Change parameters by name. Raises ValueError for one that there is not."""
        known = self.get_params()
        for name, value in parameters.items():
            if name not in known:
                raise ValueError(f"TextClassifier has no parameter {name!r}; it has {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        """The parameters that are not as they would be anyway."""
        default = signature(type(self)).parameters
        given = (f"{n}={v!r}" for n, v in self.get_params().items() if v != default[n].default)
        return f"TextClassifier({', '.join(given)})"

    def __sklearn_is_fitted__(self) -> bool:
        """Whether there is something to predict with."""
        return "path_" in self.__dict__

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn 1.6 and later ask of an estimator."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(one_d_array=True, two_d_array=False, string=True),
        )

    def __getstate__(self) -> dict[str, Any]:
        """Parameters and, once fitted, the bytes of its files: every copy has a folder of its own."""
        state = {**self.__dict__, "_loaded": None, "_finalizer": None}
        if "path_" in state:
            folder = state.pop("path_")
            state["_files"] = {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file()
            }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpack the files into a temporary folder."""
        files = state.pop("_files", None)
        self.__dict__.update(state)
        if files is None:
            return
        folder = Path(tempfile.mkdtemp(prefix="newsdesk-"))
        self._finalizer = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        for name, content in files.items():
            place = folder / "run" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        self.path_ = folder / "run"

    def _flags(self, validation: bool, *, is_multi: bool) -> dict[str, Any]:
        """The parameters under the recipe's keys."""
        flags = {key: getattr(self, name) for name, key in _KEYS.items()}
        flags["training.baseline"] = False  # nobody would see it, and a grid would pay for it many times
        flags["model.linear"] = "stack" if self.stack else None
        if self.start_from is not None:
            flags["training.start_from"] = str(self._start())
        data = {"data.train": IN_MEMORY, "data.text": (TEXT,), "data.label": LABEL}
        if is_multi:
            data["data.task"] = "multi"
        if validation:
            data["data.validation"] = IN_MEMORY
        return {**flags, **(self.settings or {}), **data}

    def _start(self) -> Path:
        """The folder or name of the run to go on from."""
        start = self.start_from
        if not isinstance(start, TextClassifier):
            return Path(str(start))
        start._require_fitted()
        return start.path_

    def _kind_with_earlier(self, kind: LabelKind) -> LabelKind:
        """What all labels are read as, where those of the run to go on from may be of another kind."""
        if self.start_from is None:
            return kind
        from newsdesk.runs.folder import open_run

        return kind if open_run(self._start()).labels.kind == kind else "text"

    def _use(self, path: Path, finalizer: Callable[[], object] | None = None) -> None:
        """Predict with the run or exported model at ``path`` from now on; a folder of an earlier fit goes."""
        from newsdesk.prediction.open_model import find_model
        from newsdesk.runs.labels import LABELS

        found = find_model(path)
        path, labels = found.path, found.labels
        try:
            values = np.array([_READ[labels.kind](name) for name in labels.names])
        except ValueError as error:
            fix = "copy the run again from an undamaged copy"
            raise damaged(path / LABELS, f"labels of the kind {labels.kind}: {error}", fix=fix) from None
        # A matrix of several labels a text has its own order; that of lists is ascending already.
        is_multi = labels.task == "multi"
        self._columns = np.arange(len(values)) if is_multi else np.argsort(values, kind="stable")
        self.classes_, self.path_, self._loaded = values[self._columns], path, None
        earlier, self._finalizer = getattr(self, "_finalizer", None), finalizer
        if earlier is not None:
            earlier()

    def _require_fitted(self) -> None:
        if self.__sklearn_is_fitted__():
            return
        wrong = "this TextClassifier is not fitted yet: call fit(texts, labels) or load(path)"
        try:
            from sklearn.exceptions import NotFittedError
        except ModuleNotFoundError:  # in the base install, which loads and predicts
            raise ValueError(wrong) from None
        raise NotFittedError(wrong)


def _kind_of(labels: Sequence[Any]) -> LabelKind:
    """What the labels were before they became names."""
    kinds = {type(label) for label in labels}  # True is an int, too, but none to be read from its name
    if kinds == {bool}:
        return "boolean"
    if kinds == {int}:
        return "integer"
    return "number" if kinds <= {int, float} else "text"


_READ: Mapping[str, Callable[[str], Any]] = {
    "boolean": lambda name: name == "True",
    "integer": int,
    "number": float,
    "text": str,
}


def _ids_of(labels: Sequence[Any], names: Sequence[str]) -> NDArray[np.int64]:
    """The class id of each label, (rows,); -1 for those that are no class of the run."""
    texts = [str(label) for label in labels]
    ids = LabelMatcher(names).matches(dict.fromkeys(texts))
    return np.array([ids.get(text, -1) for text in texts], dtype=np.int64)


@contextmanager
def _shown(progress: bool | None) -> Iterator[tuple[Callable[[Event], None], Progress]]:
    """Show a training as a bar, folds first: in notebooks, and on terminals, unless told otherwise."""
    from tqdm.auto import tqdm

    from newsdesk.runs.log import Remark, Started, Step, Validation

    quiet = None if "ipykernel" not in sys.modules else False  # None: where there is no terminal
    bar = tqdm(desc="training", unit="step", disable=quiet if progress is None else not progress)

    def observe(event: Event) -> None:
        """Move the bar on."""
        if isinstance(event, Started):
            bar.set_description("training", refresh=False)
            bar.reset(event.steps)
        elif isinstance(event, Step):
            bar.update(event.step - bar.n)
            bar.set_postfix(loss=f"{event.loss:.3f}", refresh=False)
        elif isinstance(event, Validation):
            share = event.accuracy if event.micro_f1 is None else event.micro_f1
            bar.set_postfix(validation=f"{share:.1%}")
        elif isinstance(event, Remark) and not bar.disable:
            bar.write(f"note: {event.text}")

    def count(done: int, total: int | None, what: str, unit: Unit = "bytes", /) -> None:
        """Move the bar on in steps of a fold."""
        if unit == "rows" and total is not None:
            if not done:
                bar.set_description(what, refresh=False)
                bar.reset(total)
            bar.update(done - bar.n)

    try:
        yield observe, count
    finally:
        bar.close()
