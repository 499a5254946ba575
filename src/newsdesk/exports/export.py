"""A run to an exported model: merged, converted, checked against the run, and only then put in place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from newsdesk import __version__
from newsdesk.data.duplicates import KNOWN_TEXTS
from newsdesk.errors import UserError, counted, missing_package
from newsdesk.evaluation.evaluate import require_plausible_numbers
from newsdesk.exports.int8_settings import SETTINGS, Setting, quantise
from newsdesk.exports.onnx_conversion import cutting, dividing, to_onnx, write_onnx
from newsdesk.exports.parity import (
    Evidence,
    ExportQuality,
    Limits,
    Logits,
    Loss,
    LostF1,
    Quality,
    compare,
    compare_sets,
    measured_with,
    no_setting_passes,
    require_enough_rows,
    require_exact,
)
from newsdesk.exports.shared_export import SharedParts
from newsdesk.files import (
    make_folder,
    read_json,
    read_regular,
    remove_empty,
    sha256_of,
    write_bytes,
    write_json,
)
from newsdesk.model.tokenizer import TextTokenizer, limit_words
from newsdesk.model.tokenizer_file import open_tokenizer
from newsdesk.prediction.classifier import Classifier
from newsdesk.prediction.open_model import RunClassifier, open_model
from newsdesk.progress import Progress
from newsdesk.runs.calibration import (
    CALIBRATION,
    CALIBRATION_ROWS,
    Calibration,
    HeldOutRows,
    calibrate,
    fit_temperature,
    read_calibration,
    read_held_out_rows,
    store_calibration,
    write_calibration,
)
from newsdesk.runs.exported import (
    MODEL_FILES,
    QUALITY,
    QUANTISED,
    ExportManifest,
    Kind,
    find_exported,
    weights_of,
)
from newsdesk.runs.folder import MANIFEST, RunFolder, figures_in, require_not_around_us, require_nothing_else
from newsdesk.runs.label_decisions import LabelDecisions
from newsdesk.runs.linear_model import LINEAR_MODEL, LinearModel
from newsdesk.runs.off_topic import OFF_TOPIC
from newsdesk.stored import write_stored

if TYPE_CHECKING:
    from onnx import ModelProto
    from transformers import PreTrainedModel

FOLD_ROWS = 64
"""Rows on which an export is compared with itself before its temperature went into its weights."""


@dataclass(frozen=True)
class Export:
    """An exported model that passed its gate: its folder, and the content of its quality.json."""

    path: Path
    kind: Kind
    quality: ExportQuality


def export_run(
    run: RunFolder,
    kind: Kind,
    evidence: Evidence,
    target: Path,
    limits: Limits | None = None,
    *,
    progress: Progress | None = None,
    observe: Callable[[Quality], None] = lambda _quality: None,
) -> Export:
    """Export the run as a kind to ``target``, replacing what is there; all of it or nothing.

    Args:
        run, kind, target: a finished run, what to make of it, and the folder to write.
        evidence: the labelled rows on which it has to do what the run does.
        limits: what 8-bit kinds may lose; None: 0.2 points, and 0.5 at the upper end of the interval.
        progress: called while the base model is fetched, and with the rows done.
        observe: called with each setting's figures as they are measured.

    Raises:
        UserError: when a package is missing, or the exported model fails its gate.
    """
    limits = (limits or Limits()) if kind in QUANTISED else None
    if kind != "merged":
        _require_onnx()
    if limits is not None:
        require_enough_rows(evidence, limits)
    classifier = RunClassifier(run, device="cpu", progress=progress)
    reference = classifier.predict_logits(evidence.examples.texts, progress=progress)
    require_plausible_numbers(evidence.examples, evidence.labels, reference, run.labels.names)
    shared = SharedParts.of(run.path, classifier.adapted()) if kind == "onnx-shared" else None
    model: Any = classifier.merged() if shared is None else classifier.adapted().get_base_model()
    with staged_export(target) as folder:
        _write_common(run, kind, model, folder)
        manifest = _unsealed_manifest(run, kind)
        write_stored(folder / MANIFEST, manifest)  # enough to open it; the files' hashes come last
        decisions = classifier.decisions
        candidate = Candidate(
            run, kind, folder, model, evidence, reference, observe, progress, decisions, shared
        )
        tried = candidate.write_int8(limits) if limits is not None else [candidate.write_float32()]
        without_linear = candidate.fold_temperature()
        quality = ExportQuality(
            kind=kind,
            setting=tried[-1].setting,
            rows=evidence.facts,
            run_accuracy=tried[-1].accuracy + tried[-1].accuracy_lost,
            tried=tuple(tried),
            measured_with=measured_with(kind),
            limits=limits,
            without_linear=without_linear if isinstance(without_linear, Loss) else None,
            f1_without_linear=without_linear if isinstance(without_linear, LostF1) else None,
        )
        write_stored(folder / QUALITY, quality)
        files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
        hashes = {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}
        write_stored(folder / MANIFEST, replace(manifest, files=hashes))
    if target.resolve().is_relative_to(run.path.resolve()):
        run.reseal(wrote=target)
    return Export(target, kind, quality)


@dataclass(frozen=True)
class Candidate:
    """An exported model in the making: what it is made of, and what it has to live up to."""

    run: RunFolder
    kind: Kind
    folder: Path
    model: PreTrainedModel
    evidence: Evidence
    reference: Logits
    observe: Callable[[Quality], None]
    progress: Progress | None
    decisions: LabelDecisions | None = None
    shared: SharedParts | None = None

    @property
    def weights(self) -> Path:
        """Where the file of the weights is written."""
        return self.folder / MODEL_FILES[self.kind]

    def write_float32(self) -> Quality:
        """Write and measure what computes the run's own arithmetic. Raises UserError where it does not."""
        if self.kind == "merged":
            self._save_merged()
        else:
            write_onnx(self._converted(), self.weights)
        quality = self.measure("merged, float32" if self.kind == "merged" else "onnx, float32")
        require_exact(quality)
        return quality

    def write_int8(self, limits: Limits) -> list[Quality]:
        """Write and measure one setting after the other until one passes; its figures are the last.

        Raises UserError, with the table of what was tried, when none passes.
        """
        write = self._writer_of_int8()
        tried = []
        for setting in SETTINGS:
            write(setting)
            tried.append(self.measure(str(setting)))
            if tried[-1].is_close(limits):
                return tried
        raise no_setting_passes(tried, self.evidence.facts, limits)

    def _writer_of_int8(self) -> Callable[[Setting], None]:
        if self.shared is not None:
            return partial(self.shared.write, self.folder)
        float32 = self._converted()
        return lambda setting: write_onnx(quantise(float32, setting), self.weights)

    def measure(self, setting: str) -> Quality:
        """Compare the export with the run, by the code that will predict with it, and calibrate it."""
        classifier = self._opened()
        encoded = classifier.encode(self.evidence.examples.texts)
        logits, distances = classifier.outputs(encoded.ids, progress=self.progress)
        megabytes = sum((self.folder / name).stat().st_size for name in weights_of(self.kind)) / 1e6
        scores = classifier.linear_scores(encoded.ids)
        held_out = self.evidence.held_out(logits, distances, encoded.readable, scores)
        quality = self._compared(setting, logits, megabytes, held_out)
        if held_out is not None:  # the last to be measured is the one that is taken
            source = f"{counted(len(held_out.labels), 'row')} held out from {self.evidence.examples.source}"
            store_calibration(self.folder, held_out, source)
            if classifier.off_topic is not None and held_out.distances is not None:
                classifier.off_topic.with_reference(held_out.distances).save(self.folder / OFF_TOPIC)
        self.observe(quality)
        return quality

    def _compared(
        self, setting: str, logits: Logits, megabytes: float, held_out: HeldOutRows | None
    ) -> Quality:
        rows, labels = self.evidence.validation_rows, self.evidence.labels
        if self.run.labels.task == "single":
            return compare(setting, self.reference, logits, labels, megabytes, rows)
        outputs = self.reference, logits
        decisions = [self.decisions, self.decisions]
        if held_out is not None:  # both by decisions that were fitted on the same rows
            count = len(held_out.labels)
            alike = (replace(held_out, logits=each[:count], linear=None) for each in outputs)
            decisions = [calibrate(rows, "").decisions for rows in alike]
        own, its = decisions
        assert own is not None  # a run of several labels has them
        assert its is not None
        return compare_sets(setting, outputs, (own, its), labels, megabytes, rows)

    def fold_temperature(self) -> Loss | LostF1 | None:
        """Divide the last layer by the temperature, so that other programs give calibrated probabilities.

        They do not know of a linear model: where one is stacked it is the temperature of the encoder alone,
        and what they lose is returned. Nothing is divided where a text may have several labels, nor in a kind
        that no other program reads. Raises UserError when what newsdesk computes of some rows is not the same
        as before.
        """
        labels = self.run.labels
        found, rows = read_calibration(self.folder, labels), read_held_out_rows(self.folder, labels)
        if found is None or rows is None or self.shared is not None:
            return None
        temperature, lost = found.temperature, None
        linear = LinearModel.of_folder(self.folder, len(labels.names))
        if linear is not None and linear.stack and rows.linear is not None:
            alone = rows.logits - np.float32(linear.stack) * rows.linear
            if found.decisions is not None:
                outputs, its = (rows.logits, alone), LabelDecisions.fit(alone, rows.labels)
                decisions = found.decisions, its
                return compare_sets("", outputs, decisions, rows.labels, 0.0, len(alone)).f1_lost
            temperature = fit_temperature(alone, rows.labels)
            lost = compare("the encoder alone", rows.logits, alone, rows.labels, 0.0).loss
        if temperature != 1 and found.decisions is None:
            self._divide_by(temperature, found)
        return lost

    def _divide_by(self, temperature: float, found: Calibration) -> None:
        texts = self.evidence.examples.texts[:FOLD_ROWS]
        before = self._opened().predict_logits(texts)
        if self.kind == "merged":
            _divide_head(self.model, temperature)
            self._save_merged()
        else:
            import onnx

            write_onnx(dividing(onnx.load(self.weights), temperature), self.weights)
        write_calibration(self.folder, replace(found, folded=temperature))
        after = self._opened().predict_logits(texts)
        setting = f"{self.kind} with its temperature in its weights"
        require_exact(compare(setting, before, after, self.evidence.labels[:FOLD_ROWS], 0.0))

    def _opened(self) -> Classifier:
        return open_model(self.folder, device="cpu", checks="none")

    def _save_merged(self) -> None:
        from newsdesk.model.base_files import quiet_transformers

        with quiet_transformers():
            self.model.save_pretrained(self.folder)

    def _converted(self) -> ModelProto:
        """The float32 graph, which cuts texts where the run does."""
        max_length = self.run.labels.max_length
        closing = TextTokenizer.from_folder(self.run.tokenizer, max_length).closing_ids
        graph = to_onnx(self.model)
        return cutting(graph, max_length, closing[0]) if len(closing) == 1 else graph


def _divide_head(model: PreTrainedModel, temperature: float) -> None:
    """Divide weights and bias of the layer that computes the logits."""
    import torch

    classes = model.config.num_labels
    layers = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    *_, head = (layer for layer in layers if layer.out_features == classes)
    with torch.no_grad():
        for tensor in head.parameters():
            tensor.div_(temperature)


def _write_common(run: RunFolder, kind: Kind, model: PreTrainedModel, folder: Path) -> None:
    """Configuration, tokenizer and labels: what every kind carries."""
    if run.labels.task == "multi":
        model.config.problem_type = "multi_label_classification"
    model.config.save_pretrained(folder)
    for file in sorted(run.tokenizer.iterdir()):
        write_bytes(folder / file.name, read_regular(file))
    tokenizer = open_tokenizer(folder)
    tokenizer.enable_truncation(run.labels.max_length)
    if kind == "merged":  # a graph cuts texts itself
        limit_words(tokenizer, run.labels.max_length)
    tokenizer.save(str(folder / "tokenizer.json"))  # where programs without transformers cut texts
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        content = read_json(settings, fix="train the run again")
        content["model_max_length"] = run.labels.max_length  # where transformers does when it is asked
        if kind == "merged":  # other classes would not take tokenizer.json as it is
            content["tokenizer_class"] = "PreTrainedTokenizerFast"
        write_json(settings, _for_transformers_4(content, folder / "tokenizer.json"))
    run.labels.write(folder)
    if run.off_topic.is_file():  # measured again, by the features that the exported model computes
        shutil.copyfile(run.off_topic, folder / OFF_TOPIC)
    answers = read_held_out_rows(run.path, run.labels)
    # What models of folds said cannot be asked of the export, which stands for the run.
    calibrated = (CALIBRATION, CALIBRATION_ROWS) if answers is not None and answers.folds else ()
    linear = LinearModel.of_folder(run.path, len(run.labels.names)) if kind == "onnx-shared" else None
    # Of a hundred classifiers in one process, each would hold one that is no part of its answers.
    counts = () if linear is not None and not linear.stack else (LINEAR_MODEL,)
    for name in (KNOWN_TEXTS, *counts, *calibrated):
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, folder / name)


def _for_transformers_4(settings: dict[str, Any], tokenizer: Path) -> dict[str, Any]:
    """A tokenizer's settings, saying what transformers 4, on which optimum runs, would assume otherwise."""
    if settings.get("tokenizer_class") == "TokenizersBackend":  # it knows the class by another name
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    splitting = read_json(tokenizer, fix="train the run again").get("pre_tokenizer") or {}
    if "add_prefix_space" in splitting:  # without a word on it, it turns the space before a text off
        settings.setdefault("add_prefix_space", splitting["add_prefix_space"])
    return settings


def _unsealed_manifest(run: RunFolder, kind: Kind) -> ExportManifest:
    """The manifest of an export of the run, without the hashes of its files."""
    return ExportManifest(
        kind=kind,
        newsdesk=__version__,
        run=run.manifest.exported(sha256_of(run.path / MANIFEST)),
        max_length=run.labels.max_length,
        files={},
    )


def require_free_for_export(target: Path, *, overwrite: bool) -> None:
    """Raise UserError unless ``target`` is free, or an exported model that may be replaced."""
    if not target.exists():
        return
    require_not_around_us(target)
    if target.is_dir() and not any(target.iterdir()):
        return
    files: Mapping[str, str] = {}
    with suppress(UserError):  # a manifest that cannot be read is nobody's to replace
        exported = find_exported(target)
        files = {} if exported is None else exported.manifest.files
    if not (files and overwrite):
        raise UserError(
            f"there is something at {target} already",
            found="an exported model" if files else "no exported model of newsdesk",
            fix="replace it with --overwrite" if files else "choose another folder with --out",
        )
    named = [target / name for name in (MANIFEST, *files)]
    require_nothing_else(target, {*named, *figures_in(target)})


@contextmanager
def staged_export(target: Path) -> Iterator[Path]:
    """A new folder to fill; when the block is through it takes the place of the exported model at ``target``.

    If the block raises, ``target`` is as it was; after a kill it is so at the next export to it, at the
    latest. Raises UserError where nothing can be written, or ``target`` contains other files by then.
    """
    target = target.resolve()
    staging, replaced = (target.with_name(f".{target.name}.{role}") for role in ("staging", "replaced"))
    made: list[Path] = []
    try:
        made = make_folder(target.parent)
        if replaced.is_dir() and not target.exists():  # killed between the two renames below
            replaced.rename(target)
        for leftover in (staging, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
        staging.mkdir()
    except OSError as error:
        raise UserError(
            f"no exported model can be written to {target}",
            found=error.strerror,
            fix="choose another folder with --out",
        ) from error
    try:
        yield staging
        if target.exists():
            require_free_for_export(target, overwrite=True)
            target.rename(replaced)
        staging.rename(target)
    finally:
        for leftover in (staging, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
        remove_empty(made)


def _require_onnx() -> None:
    """Raise UserError before any work is done where a package is missing that only the export needs."""
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise missing_package(package, "export", "an export to onnx")
