"""A run to an exported model: merged, converted, checked against the run, and only then put in place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from newsdesk import __version__
from newsdesk.data.duplicates import KNOWN_TEXTS
from newsdesk.errors import UserError, missing_package
from newsdesk.evaluation.evaluate import require_plausible_numbers
from newsdesk.exports.onnx_conversion import cutting, dividing, to_onnx, write_onnx
from newsdesk.exports.parity import (
    Evidence,
    ExportQuality,
    Limits,
    Logits,
    Quality,
    compare,
    measured_with,
    require_enough_rows,
    require_exact,
)
from newsdesk.files import read_json, sha256_of, write_json
from newsdesk.model.tokenizer import TextTokenizer, limit_words
from newsdesk.prediction.open_model import RunClassifier, base_of, load, needing_train_extra
from newsdesk.progress import Progress
from newsdesk.runs.calibration import read_calibration, store_calibration, write_calibration
from newsdesk.runs.exported import (
    MODEL_FILES,
    QUALITY,
    ExportedModel,
    ExportManifest,
    Kind,
    find_exported,
)
from newsdesk.runs.folder import MANIFEST, RunFolder, figures_in
from newsdesk.runs.off_topic import OFF_TOPIC
from newsdesk.runs.replacing import require_not_around_us, require_nothing_else
from newsdesk.stored import write_stored

if TYPE_CHECKING:
    from onnx import ModelProto
    from transformers import PreTrainedModel

FOLD_ROWS = 64
"""Rows on which an export is compared with itself before its temperature went into its weights."""

Observer = Callable[[Quality], None]


@dataclass(frozen=True)
class Export:
    """An exported model that passed its gate.

    Attributes:
        path: its folder.
        kind: one of KINDS.
        quality: the content of its quality.json.
    """

    path: Path
    kind: Kind
    quality: ExportQuality


def target_of(run: RunFolder, kind: Kind, out: Path | None) -> Path:
    """Where an exported model goes: ``out``, else into the run's own folder."""
    return run.path / "export" / kind if out is None else out


def export_run(
    run: RunFolder,
    kind: Kind,
    evidence: Evidence,
    target: Path,
    limits: Limits | None = None,
    *,
    progress: Progress | None = None,
    observe: Observer = lambda _quality: None,
) -> Export:
    """Export the run as a kind to ``target``, replacing what is there; all of it or nothing.

    Args:
        run: a finished run.
        kind: ``merged`` (transformers), ``onnx-fp32`` or ``onnx-int8``.
        evidence: the labelled rows on which it has to do what the run does.
        target: the folder to write.
        limits: what ``onnx-int8`` may lose; None: 0.2 points, and 0.5 at the upper end of the interval.
        progress: called while the base model is fetched, and with the rows done.
        observe: called with each setting's figures as they are measured.

    Raises:
        UserError: when a package is missing, or the exported model fails its gate.
    """
    limits = (limits or Limits()) if kind == "onnx-int8" else None
    if kind != "merged":
        _require_onnx()
    if limits is not None:
        require_enough_rows(evidence, limits)
    classifier = RunClassifier(run, device="cpu", progress=progress)
    reference = classifier.predict_logits(evidence.examples.texts, progress=progress)
    require_plausible_numbers(evidence.examples, evidence.labels, reference, run.labels.names)
    model = merged_classifier(run, progress)
    with staged_export(target) as folder:
        _write_common(run, kind, model, folder)
        candidate = Candidate(run, kind, folder, evidence, reference, observe, limits or Limits())
        tried = _WRITERS[kind](model, candidate)
        _fold_temperature(model, candidate)
        quality = ExportQuality(
            kind=kind,
            setting=tried[-1].setting,
            rows=evidence.facts,
            run_accuracy=tried[-1].accuracy + tried[-1].accuracy_lost,
            tried=tuple(tried),
            measured_with=measured_with(kind),
            limits=limits,
        )
        write_stored(folder / QUALITY, quality)
        _seal(run, kind, folder)
    if target.resolve().is_relative_to(run.path.resolve()):
        run.reseal(wrote=target)
    return Export(target, kind, quality)


@dataclass(frozen=True)
class Candidate:
    """An exported model in the making, and what it has to live up to."""

    run: RunFolder
    kind: Kind
    folder: Path
    evidence: Evidence
    reference: Logits
    observe: Observer
    limits: Limits

    @property
    def model(self) -> Path:
        """Where the file of the weights is to be written."""
        return self.folder / MODEL_FILES[self.kind]

    def measure(self, setting: str) -> Quality:
        """Compare what lies in the folder with the run, by the code that will predict with it."""
        _seal(self.run, self.kind, self.folder)
        classifier = load(self.folder, device="cpu")
        encoded = classifier.encode(self.evidence.examples.texts)
        logits, distances = classifier.outputs(encoded.ids)
        megabytes = self.model.stat().st_size / 1e6
        rows = self.evidence.validation_rows
        quality = compare(setting, self.reference, logits, self.evidence.labels, megabytes, rows)
        held_out = self.evidence.held_out(logits, distances, encoded.readable)
        if held_out is not None:  # the last to be measured is the one that is taken
            store_calibration(self.folder, held_out, self.evidence.held_out_source)
            if classifier.off_topic is not None and held_out.distances is not None:
                classifier.off_topic.with_reference(held_out.distances).save(self.folder / OFF_TOPIC)
        self.observe(quality)
        return quality


def merged_classifier(run: RunFolder, progress: Progress | None = None) -> PreTrainedModel:
    """The run's classifier as plain transformers, adapters merged into freshly loaded float32 weights.

    Raises UserError when a package is missing, or the base is not the one the run was trained on.
    """
    with needing_train_extra("an export"):
        from newsdesk.model.classifier import load_classifier

        model = load_classifier(base_of(run, progress), run.adapter, run.labels.names)
    merged: Any = model.merge_and_unload()
    merged.config.architectures = [type(merged).__name__]  # the base's own may name another head
    return merged.eval()  # type: ignore[no-any-return]


def _write_merged(model: PreTrainedModel, candidate: Candidate) -> list[Quality]:
    _save_merged(model, candidate.folder)
    return _exact(candidate.measure("merged, float32"))


def _save_merged(model: PreTrainedModel, folder: Path) -> None:
    from newsdesk.model.classifier import quiet_transformers

    with quiet_transformers():
        model.save_pretrained(folder)


def _write_float32(model: PreTrainedModel, candidate: Candidate) -> list[Quality]:
    write_onnx(_converted(model, candidate.run), candidate.model)
    return _exact(candidate.measure("onnx, float32"))


def _write_int8(model: PreTrainedModel, candidate: Candidate) -> list[Quality]:
    from newsdesk.exports.int8_settings import Ladder, calibrate, first_that_passes

    float32 = _converted(model, candidate.run)
    tokenizer = TextTokenizer.from_folder(candidate.run.tokenizer, candidate.run.labels.max_length)
    sequences = tokenizer.encode(candidate.evidence.calibration)
    ladder = Ladder(float32, lambda: calibrate(float32, sequences, model.config.pad_token_id or 0))

    def measure(quantised: ModelProto, setting: str) -> Quality:
        write_onnx(quantised, candidate.model)
        return candidate.measure(setting)

    return first_that_passes(ladder, measure, candidate.evidence, candidate.limits)


def _converted(model: PreTrainedModel, run: RunFolder) -> ModelProto:
    """The float32 graph, which cuts texts where the run does."""
    tokenizer = TextTokenizer.from_folder(run.tokenizer, run.labels.max_length)
    graph, closing = to_onnx(model), tokenizer.closing_ids
    return cutting(graph, run.labels.max_length, closing[0]) if len(closing) == 1 else graph


def _fold_temperature(model: PreTrainedModel, candidate: Candidate) -> None:
    """Divide the last layer by the temperature, so that other programs give calibrated probabilities.

    Raises UserError when what newsdesk computes of some rows is not the same as before.
    """
    found = read_calibration(candidate.folder)
    if found is None or found.temperature == 1:
        return
    texts = candidate.evidence.examples.texts[:FOLD_ROWS]
    _seal(candidate.run, candidate.kind, candidate.folder)
    before = load(candidate.folder, device="cpu").predict_logits(texts)
    if candidate.kind == "merged":
        _divide_head(model, found.temperature)
        _save_merged(model, candidate.folder)
    else:
        import onnx

        write_onnx(dividing(onnx.load(candidate.model), found.temperature), candidate.model)
    write_calibration(candidate.folder, replace(found, folded=found.temperature))
    _seal(candidate.run, candidate.kind, candidate.folder)
    after = load(candidate.folder, device="cpu").predict_logits(texts)
    setting = f"{candidate.kind} with its temperature in its weights"
    require_exact(compare(setting, before, after, candidate.evidence.labels[:FOLD_ROWS], 0.0))


def _divide_head(model: PreTrainedModel, temperature: float) -> None:
    """Divide weights and bias of the layer that computes the logits."""
    import torch

    classes = model.config.num_labels
    layers = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    *_, head = (layer for layer in layers if layer.out_features == classes)
    with torch.no_grad():
        for tensor in head.parameters():
            tensor.div_(temperature)


def _exact(quality: Quality) -> list[Quality]:
    require_exact(quality)
    return [quality]


_WRITERS: dict[Kind, Callable[[PreTrainedModel, Candidate], list[Quality]]] = {
    "merged": _write_merged,
    "onnx-fp32": _write_float32,
    "onnx-int8": _write_int8,
}


def _write_common(run: RunFolder, kind: Kind, model: PreTrainedModel, folder: Path) -> None:
    """Configuration, tokenizer and labels: what every kind carries."""
    model.config.save_pretrained(folder)
    shutil.copytree(run.tokenizer, folder, dirs_exist_ok=True)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(run.labels.max_length)
    if kind == "merged":  # a graph cuts texts itself
        limit_words(tokenizer, run.labels.max_length)
    tokenizer.save(str(folder / "tokenizer.json"))  # where programs without transformers cut texts
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        content = json.loads(settings.read_text(encoding="utf-8"))
        content["model_max_length"] = run.labels.max_length  # where transformers does when it is asked
        if kind == "merged":  # other classes would not take tokenizer.json as it is
            content["tokenizer_class"] = "PreTrainedTokenizerFast"
        write_json(settings, _for_transformers_4(content, folder / "tokenizer.json"))
    run.labels.write(folder)
    if run.off_topic.is_file():  # measured again, by the features that the exported model computes
        shutil.copyfile(run.off_topic, folder / OFF_TOPIC)
    if (run.path / KNOWN_TEXTS).is_file():
        shutil.copyfile(run.path / KNOWN_TEXTS, folder / KNOWN_TEXTS)


def _for_transformers_4(settings: dict[str, Any], tokenizer: Path) -> dict[str, Any]:
    """A tokenizer's settings, saying what transformers 4, on which optimum runs, would assume otherwise."""
    if settings.get("tokenizer_class") == "TokenizersBackend":  # it knows the class by another name
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    splitting = read_json(tokenizer, fix="train the run again").get("pre_tokenizer") or {}
    if "add_prefix_space" in splitting:  # without a word on it, it turns the space before a text off
        settings.setdefault("add_prefix_space", splitting["add_prefix_space"])
    return settings


def _seal(run: RunFolder, kind: Kind, folder: Path) -> None:
    """Write the exported model's manifest, last of all."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    manifest = ExportManifest(
        kind=kind,
        newsdesk=__version__,
        run=run.manifest.exported(sha256_of(run.path / MANIFEST)),
        max_length=run.labels.max_length,
        files={file.relative_to(folder).as_posix(): sha256_of(file) for file in files},
    )
    write_stored(folder / MANIFEST, manifest)


def require_free_for_export(target: Path, *, overwrite: bool) -> None:
    """Raise UserError unless ``target`` is free, or an exported model that may be replaced."""
    if not target.exists():
        return
    require_not_around_us(target)
    if target.is_dir() and not any(target.iterdir()):
        return
    exported = _whole_export(target)
    if exported is None or not overwrite:
        raise UserError(
            f"there is something at {target} already",
            found="an exported model" if exported else "no exported model of newsdesk",
            fix="replace it with --overwrite" if exported else "choose another folder with --out",
        )
    named = [target / name for name in (MANIFEST, *exported.manifest.files)]
    require_nothing_else(target, {*named, *figures_in(target)})


def _whole_export(target: Path) -> ExportedModel | None:
    """The exported model in a folder, by the content of its manifest; None for anything else."""
    exported = find_exported(target)
    try:
        return exported if exported is not None and exported.manifest.files else None
    except UserError:
        return None


@contextmanager
def staged_export(target: Path) -> Iterator[Path]:
    """A new folder to fill; when the block is through it takes the place of the exported model at ``target``.

    If the block raises, ``target`` is as it was; after a kill it is so once something is exported there
    again, at the latest. Raises UserError where nothing can be written, or ``target`` holds more by then.
    """
    target = target.resolve()
    staging, replaced = (target.with_name(f".{target.name}.{role}") for role in ("staging", "replaced"))
    existed = next(parent for parent in target.parents if parent.exists())
    try:
        if replaced.is_dir() and not target.exists():  # killed between the two renames below
            replaced.rename(target)
        for leftover in (staging, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
        staging.mkdir(parents=True)
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
        for parent in target.parents:  # a refused export leaves no empty folders either
            if parent == existed or any(parent.iterdir()):
                break
            parent.rmdir()


def _require_onnx() -> None:
    """Raise UserError before any work is done where a package is missing that only the export needs."""
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise missing_package(package, "export", "an export to onnx")
