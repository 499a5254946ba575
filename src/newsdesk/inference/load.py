"""From a path to a classifier: a run or an artefact, and the engine that computes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from newsdesk.errors import UserError
from newsdesk.inference.artefact import PREFERRED, ArtefactFolder, find_artefact, preferred_export
from newsdesk.inference.text_classifier import TextClassifier
from newsdesk.training.run_folder import open_run

if TYPE_CHECKING:
    from newsdesk.sources.source import Progress

Engine = Literal["auto", "onnx", "torch"]


def load(
    path: str | Path,
    *,
    engine: Engine = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> TextClassifier:
    """The run or artefact at ``path``, ready to classify texts.

    An artefact is computed by what it was made for. A run with an export (onnx-int8 before onnx-fp32)
    predicts with that, else with PyTorch; ``engine`` "onnx" or "torch" insists on one. ``device`` and
    ``progress`` concern PyTorch alone. Raises UserError when there is neither run nor artefact, or none
    that the engine can compute.
    """
    folder = Path(path)
    artefact = find_artefact(folder)
    if artefact is not None:
        return _from_artefact(artefact, engine, device)
    run = open_run(folder)
    export = None if engine == "torch" else preferred_export(folder)
    if export is not None:
        return _from_artefact(export, engine, device)
    if engine == "onnx":
        raise UserError(
            f"the run {folder} has no ONNX export",
            found=f"neither export/{PREFERRED[0]} nor export/{PREFERRED[1]} in it",
            fix=f"newsdesk export {folder} --to {PREFERRED[0]}",
        )
    from newsdesk.inference.run_predictor import RunPredictor

    return RunPredictor(run, device=device, progress=progress)


def _from_artefact(artefact: ArtefactFolder, engine: Engine, device: str) -> TextClassifier:
    computed_by = "torch" if artefact.kind == "merged" else "onnx"
    if engine not in ("auto", computed_by):
        raise UserError(
            f"--engine {engine} cannot compute {artefact.path}",
            found=f"an artefact of kind {artefact.kind}",
            fix=f"leave --engine out, or make one with newsdesk export RUN --to "
            f"{'merged' if engine == 'torch' else PREFERRED[0]}",
        )
    if artefact.kind == "merged":
        from newsdesk.inference.merged_predictor import MergedPredictor

        return MergedPredictor(artefact, device=device)
    from newsdesk.inference.onnx_predictor import OnnxPredictor

    return OnnxPredictor(artefact)
