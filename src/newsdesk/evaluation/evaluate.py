"""A model measured on labelled examples: figures for metrics.json, and its calibration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.duplicates import LearnedRows
from newsdesk.data.examples import Examples, aligned_labels
from newsdesk.data.labels import LabelMatching
from newsdesk.data.load import TrainingData
from newsdesk.errors import UserError, counted
from newsdesk.evaluation.rows import Reading, known_rows
from newsdesk.evaluation.significance import PairedComparison, compare_paired
from newsdesk.files import damaged, write_json
from newsdesk.metrics import Metrics, ReliabilityBin, confusion_matrix, evaluate_probabilities, reliability
from newsdesk.model.tokenizer import Encoded, Truncation
from newsdesk.prediction.abstention import RiskCoverage, risk_coverage
from newsdesk.prediction.open_model import RunClassifier, open_model
from newsdesk.progress import Progress
from newsdesk.runs.calibration import (
    Calibration,
    Change,
    HeldOutRows,
    read_calibration,
    read_held_out_rows,
    store_calibration,
)
from newsdesk.runs.exported import KINDS, ExportedModel, find_exported
from newsdesk.runs.folder import RunFolder
from newsdesk.runs.label_decisions import strata
from newsdesk.runs.linear_model import LinearModel, Stack
from newsdesk.runs.off_topic import OFF_TOPIC, off_topic_score
from newsdesk.stored import (
    OPTIONAL,
    UNSTORED,
    WrongContentError,
    from_content,
    read_content,
    to_content,
    with_format,
)
from newsdesk.training.linear_baseline import BaselineResult

if TYPE_CHECKING:
    from newsdesk.evaluation.label_sets import LabelSetEvaluation

LABEL_SETS = "label_sets"
"""What metrics.json calls the figures of texts with several labels."""
_FIX = "move it away and evaluate again"
AnyEvaluation = TypeVar("AnyEvaluation", "Evaluation", "LabelSetEvaluation")
_ERRORS_NAMED = 5
_CLEARLY_MORE = 0.2  # share of the rows that agree beyond the accuracy


@dataclass(frozen=True)
class RowError:
    """A row that a model got wrong, and how sure it was: what a person looks at first.

    Attributes:
        row: 0-based number of the row.
        true_label: its class.
        predicted_label: the class it was given.
        probability: that class's probability, 0 to 1.
        text: what the model read.
    """

    row: int
    true_label: str
    predicted_label: str
    probability: float
    text: str


@dataclass(frozen=True)
class Trust:
    """How far the confidence can be trusted on the evaluated rows.

    Attributes:
        temperature: what the logits were divided by; 1 where the model was never calibrated.
        expected_calibration_error: of the same rows without and with it, 0 to 1.
        negative_log_likelihood: the same, nats per row.
        reliability: bins of equally many rows, from unsure to sure.
    """

    temperature: float
    expected_calibration_error: Change
    negative_log_likelihood: Change
    reliability: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class TextsRead(Truncation):
    """How much of the evaluated texts the model read: how many were cut, and how many tokens that lost.

    Attributes:
        unreadable: rows whose text is empty or has no known token: ``predict`` gives them no label. So that
            figures of several models compare, they count by the most probable class.
        unreadable_right: how many of these are right by it.
        unknown_tokens: share of the tokens read that the base model does not know, 0 to 1.
    """

    unreadable: int = 0
    unreadable_right: int = 0
    unknown_tokens: float = 0.0

    @classmethod
    def of(cls, encoded: Encoded, correct: NDArray[np.bool_]) -> TextsRead:
        """Of rows as they were encoded, and which of them are classified correctly, (rows,)."""
        return cls(
            **vars(encoded.truncation),
            unreadable=int((~encoded.readable).sum()),
            unreadable_right=int((~encoded.readable & correct).sum()),
            unknown_tokens=round(encoded.unknown_share, 5),
        )


@dataclass(frozen=True)
class Evaluation:
    """One model on one split, with all that is needed to know what was measured: an entry of metrics.json.

    Attributes:
        split: the split's name, such as ``test``; the key under which metrics.json keeps it.
        source: where the rows came from.
        fingerprint: ``Examples.fingerprint()`` of the rows.
        model: the run or exported model that computed the probabilities.
        metrics: its figures.
        calibration: how far its confidence can be trusted.
        risk_coverage: what answering only the sure rows would gain.
        texts: how much of the texts it read.
        baseline: a linear model on the same rows, where one was asked for.
        comparison: the model and that baseline row by row.
        labels: how the labels of the rows were matched to the classes of the run, where that was needed.
        learned: how many of the rows have texts that the run learned from; None where that is not known.
        errors: the most confident errors with their texts; not stored, since many corpora may not be copied.
    """

    split: str
    source: str
    fingerprint: str
    model: str
    metrics: Metrics
    calibration: Trust | None = field(default=None, metadata=OPTIONAL)
    risk_coverage: RiskCoverage | None = field(default=None, metadata=OPTIONAL)
    texts: TextsRead | None = field(default=None, metadata=OPTIONAL)
    baseline: BaselineResult | None = field(default=None, metadata=OPTIONAL)
    comparison: PairedComparison | None = field(default=None, metadata=OPTIONAL)
    labels: LabelMatching | None = field(default=None, metadata=OPTIONAL)
    learned: LearnedRows | None = field(default=None, metadata=OPTIONAL)
    errors: tuple[RowError, ...] = field(default=(), metadata=UNSTORED)

    def notes(self) -> list[str]:
        """What a person should know about the evaluated rows, a sentence each."""
        unknown = "it is not known which texts the run learned from; these rows may be among them"
        notes = [unknown if self.learned is None else self.learned.note()]
        if self.labels is None:
            return notes
        notes += self.labels.notes()
        if self.labels.counted_wrong:
            notes.append(
                "rows of unknown classes count as certain and wrong: each of these classes has an F1 of 0 in "
                "macro F1, each row costs 36 nats in the negative log-likelihood"
            )
        found = _likelier_order(np.array(self.metrics.confusion), self.metrics.label_names)
        if self.labels.positions and found is not None:
            notes.append(
                f"WARNING: the class numbers seem to stand for other classes: {found}; write the names of "
                "the classes into the file"
            )
        return notes

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as JSON types; without a baseline there are no entries for one."""
        content: dict[str, Any] = to_content(self)
        return content


def evaluate_examples(
    probabilities: NDArray[np.floating],
    examples: Examples,
    label_names: Sequence[str],
    *,
    split: str,
    model: str,
    temperature: float = 1.0,
    uncalibrated: NDArray[np.floating] | None = None,
    baseline: BaselineResult | None = None,
    encoded: Encoded | None = None,
    learned: LearnedRows | None = None,
) -> Evaluation:
    """Measure probabilities (rows, classes) whose columns are ``label_names`` on labelled examples.

    The examples may name the same classes in another order. Classes under which their unknown labels are
    counted as errors follow ``label_names`` in all figures, each with a probability of 0.
    ``temperature`` is what the probabilities were made with, ``uncalibrated`` what they would be without it;
    None: the same. ``encoded`` is what the model read of the rows. Raises UserError for rows without labels
    or of any other class outside ``label_names``, ValueError where ``evaluate_probabilities`` does.
    """
    names = (*label_names, *(() if examples.matching is None else examples.matching.counted_wrong))
    labels = aligned_labels(examples, names)
    probabilities = padded(probabilities, len(names))
    metrics = before = evaluate_probabilities(probabilities, labels, names)
    if uncalibrated is not None:
        before = evaluate_probabilities(padded(uncalibrated, len(names)), labels, names)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1).astype(np.float64)
    correct: NDArray[np.bool_] = predicted == labels
    comparison = None
    if baseline is not None:
        ids = {name: i for i, name in enumerate(names)}
        comparison = compare_paired(labels, predicted, np.array([ids.get(n, -1) for n in baseline.predicted]))
    return Evaluation(
        split=split,
        source=examples.source,
        fingerprint=examples.fingerprint(),
        model=model,
        metrics=metrics,
        calibration=Trust(
            temperature,
            Change(before.expected_calibration_error, metrics.expected_calibration_error),
            Change(before.negative_log_likelihood, metrics.negative_log_likelihood),
            reliability(confidence, correct),
        ),
        risk_coverage=risk_coverage(confidence, correct),
        texts=None if encoded is None else TextsRead.of(encoded, correct),
        baseline=baseline,
        comparison=comparison,
        labels=examples.matching,
        learned=learned,
        errors=tuple(
            RowError(
                row, names[labels[row]], names[predicted[row]], float(confidence[row]), examples.texts[row]
            )
            for row in metrics.most_confident_errors[:_ERRORS_NAMED]
        ),
    )


def _likelier_order(counts: NDArray[np.integer], names: Sequence[str]) -> str | None:
    """Which classes are meant, where labels that count classes off agree far better in another order.

    ``counts`` is a confusion matrix, (classes, classes). None where the order is plausible.
    """
    order: dict[int, int] = {}
    for cell in np.argsort(-counts, axis=None, kind="stable").tolist():
        true, predicted = divmod(cell, len(names))
        if true not in order and predicted not in order.values():
            order[true] = predicted
    rows, right = int(counts.sum()), int(np.trace(counts))
    agreeing = int(sum(counts[true, predicted] for true, predicted in order.items()))
    if agreeing - right < _CLEARLY_MORE * rows:
        return None
    swapped = ", ".join(
        f"{names[true]} as {names[predicted]} ({counts[true, predicted]:,} of {counts[true].sum():,} rows)"
        for true, predicted in sorted(order.items())
        if true != predicted and counts[true, predicted]
    )
    before, after = 100 * right / rows, 100 * agreeing / rows
    return f"the run takes {swapped}; its accuracy is {before:.2f} %, in that order {after:.2f} %"


def require_plausible_numbers(
    examples: Examples, labels: NDArray[np.int64], logits: NDArray[np.floating], names: Sequence[str]
) -> None:
    """Refuse labels that count classes off, where the classifier shows that they count in another order.

    ``labels`` is (rows,), ``logits`` (rows, classes). Raises UserError: nothing may be fitted on such rows.
    """
    if examples.matching is None or not examples.matching.positions or examples.is_multi:
        return
    found = _likelier_order(confusion_matrix(labels, np.argmax(logits, axis=1), len(names)), names)
    if found is not None:
        raise UserError(
            f"the class numbers in {examples.source} seem to stand for other classes",
            found=f"{examples.matching.notes()[0]}; {found}",
            fix="write the names of the classes into the file",
        )


def padded(probabilities: NDArray[np.floating], classes: int) -> NDArray[np.floating]:
    """Probabilities (rows, classes of the run) with a column of zeros for each further class."""
    beyond = classes - probabilities.shape[1]
    return np.pad(probabilities, ((0, 0), (0, beyond))) if beyond > 0 else probabilities


def write_metrics(evaluation: Evaluation | LabelSetEvaluation, path: Path) -> None:
    """Put the evaluation into a metrics.json under its split's name, beside the splits already there.

    An earlier evaluation of the same split is replaced. Atomic. Raises UserError when the file there
    is not one of ours, and leaves it as it is.
    """
    content = {**read_entries(path), evaluation.split: to_content(evaluation)}
    write_json(path, with_format(content))


def read_entries(path: Path) -> dict[str, dict[str, Any]]:
    """What a metrics.json has by split, empty where there is none. Raises UserError if damaged."""
    if not path.exists():
        return {}
    found = read_content(path, fix=_FIX)
    for split, entry in found.items():
        if not isinstance(entry, dict):
            shown = json.dumps(entry, ensure_ascii=False)
            raise damaged(path, f"{split:.80} is {shown:.80}, not an object", fix=_FIX)
    return found


def read_metrics(path: Path) -> dict[str, Evaluation]:
    """The evaluations in a metrics.json by split, without those of several labels a text (`label_sets`).

    Empty where there is none. Raises UserError if damaged.
    """
    return parsed_entries(path, Evaluation, several=False)


def parsed_entries(path: Path, kind: type[AnyEvaluation], *, several: bool) -> dict[str, AnyEvaluation]:
    """The entries of a metrics.json of texts with several labels, or the others. Raises UserError."""
    entries = {split: of for split, of in read_entries(path).items() if (LABEL_SETS in of) == several}
    try:
        found = {split: from_content(kind, entry, split) for split, entry in entries.items()}
    except WrongContentError as error:
        raise damaged(path, str(error), fix=_FIX) from None
    for split, evaluation in found.items():
        if evaluation.split != split:
            raise damaged(path, f"{split:.80}.split is {evaluation.split!r:.80}", fix=_FIX)
    return found


def calibrate_on(
    rows: Examples,
    found: RunFolder | ExportedModel,
    *,
    linear: LinearModel | None = None,
    progress: Progress | None = None,
) -> dict[Path, Calibration]:
    """Fit and keep the calibration on labelled rows that nothing was learned from.

    Of a run its exports are calibrated too, each by the logits that it computes itself. They are sealed
    again, the run is left to the caller. ``linear`` replaces the linear model beside the encoder in all of
    them. ``progress`` is called with the rows done by each. Raises UserError for rows without labels or of
    unknown classes, and damaged folders.
    """
    made = {}
    exports = () if isinstance(found, ExportedModel) else (found.path / "export" / kind for kind in KINDS)
    for folder in (found, *filter(None, map(find_exported, exports))):
        labels = aligned_labels(rows, folder.labels.names)
        classifier = open_model(folder, engine="own", checks="all", progress=progress)
        classifier.linear = linear or classifier.linear
        encoded = classifier.encode(rows.texts)
        logits, distances = classifier.outputs(encoded.ids, progress=progress)
        scores = classifier.linear_scores(encoded.ids)
        require_plausible_numbers(rows, labels, logits, folder.labels.names)
        held_out = HeldOutRows(logits, labels, rows.fingerprint(), distances, encoded.readable, scores)
        source = f"{counted(len(rows), 'row')} of {rows.source}"
        if linear is not None:
            linear.save(folder.path)
        made[folder.path] = store_calibration(folder.path, held_out, source, folded=classifier.folded)
        if classifier.off_topic is not None and distances is not None:
            classifier.off_topic.with_reference(distances).save(folder.path / OFF_TOPIC)
        if isinstance(folder, ExportedModel):
            folder.seal_calibration()
    return made


def calibrate_out_of_fold(
    run: RunFolder, *, stack: bool | None, **reading: Unpack[Reading]
) -> dict[Path, Calibration]:
    """Calibrate a run and its exports again by what the models of its folds said, which is kept.

    ``stack`` as for `linear_model_for`. Raises UserError where there is no linear model to stack.
    """
    rows, before = read_held_out_rows(run.path, run.labels), read_calibration(run.path)
    assert rows is not None
    assert before is not None
    linear = LinearModel.of_folder(run.path, len(run.labels.names))
    if stack and (linear is None or rows.linear is None):
        raise UserError(
            f"no linear model can be stacked on {run.path}",
            found="a cross-validated run without linear models beside those of its folds",
            fix="train it with --stack, or leave out --stack",
        )
    if stack is not None and linear is not None and rows.linear is not None:
        alone = rows.logits - np.float32(linear.stack) * rows.linear
        gain = Stack.of(alone, rows.linear, rows.labels, np.zeros(0, np.int64))
        linear = linear.with_stack(gain.weight if stack else 0.0)
        rows = replace(rows, logits=linear.stacked(alone, rows.linear))
        if stack and "notice" in reading and (remark := gain.remark(asked=True)) is not None:
            reading["notice"](remark)
    made = {}
    for folder in (run, *filter(None, (find_exported(run.path / "export" / kind) for kind in KINDS))):
        of_folder = read_calibration(folder.path)
        if linear is not None:
            linear.save(folder.path)
        folded = 1.0 if of_folder is None else of_folder.folded
        made[folder.path] = store_calibration(folder.path, rows, before.source, folded=folded)
        if isinstance(folder, ExportedModel):
            folder.seal_calibration()
    return made


def linear_model_for(
    found: RunFolder | ExportedModel,
    *,
    stack: bool,
    progress: Progress | None = None,
    **reading: Unpack[Reading],
) -> LinearModel | None:
    """The linear model beside the encoder, with its part in the answers or, unless ``stack``, without one.

    It learns from a run's own training rows where the run has none yet, and its part is what the validation
    rows give it; ``notice`` of the ``reading`` is told. None where there is none to be left out. Raises
    UserError where the rows are not known, or allow neither.
    """
    if not stack:
        linear = LinearModel.of_folder(found.path, len(found.labels.names))
        return linear and linear.with_stack(0.0)
    own = known_rows(
        found, purpose="a linear model learns from", otherwise="leave out --stack", progress=progress
    )
    assert isinstance(found, RunFolder)  # an export knows no rows
    linear, gain = _fit_stack(found, own, progress)
    if "notice" in reading and (remark := gain.remark(asked=True)) is not None:
        reading["notice"](remark)
    return linear


def _fit_stack(run: RunFolder, data: TrainingData, progress: Progress | None) -> tuple[LinearModel, Stack]:
    classifier, names = RunClassifier(run, progress=progress), run.labels.names
    linear = classifier.linear
    if linear is None:
        opening, closing = classifier.special_tokens
        sequences, labels = classifier.token_ids(data.train.texts), aligned_labels(data.train, names)
        seed = run.manifest.seed or 0
        linear = LinearModel.fit(sequences, labels, len(names), opening=opening, closing=closing, seed=seed)
    if linear is None or not len(data.validation):
        raise UserError(
            f"no linear model can be stacked on {run.path}",
            found="no validation rows, by which it is found how much it should count"
            if linear is not None
            else "training rows of one class, with the same labels each, or without a token",
            fix="leave out --stack, or train with rows held out",
        )
    held_out, labels = classifier.token_ids(data.validation.texts), aligned_labels(data.validation, names)
    logits, _distances = classifier.encoder_outputs(held_out, progress=progress)
    found = Stack.of(logits, linear.scores(held_out), labels, np.array(data.choosing, dtype=np.int64))
    return linear.with_stack(found.weight), found


def fit_off_topic_score(run: RunFolder, data: TrainingData, progress: Progress | None = None) -> None:
    """Fit the off-topic score of a run that was trained without one, on its own rows."""
    classifier = RunClassifier(run, progress=progress)
    train, held_out = (classifier.token_ids(rows.texts) for rows in (data.train, data.calibrating))
    labels = strata(aligned_labels(data.train, data.train.label_names))
    found = off_topic_score(classifier.features, train, labels, held_out)
    if found is not None:
        found[0].save(run.off_topic)
