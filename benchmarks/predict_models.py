"""The models of predict_speed.py: one classifier in every form that a contestant reads.

MODELS/merged/             as transformers saves it, with its tokenizer
MODELS/onnx-fp32/          newsdesk's exported models
MODELS/onnx-int8/
MODELS/traced/model.onnx   PyTorch's own export
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from newsdesk import __version__, api
from newsdesk.data.columns import TextLayout
from newsdesk.exports.int8_settings import FASTEST, quantise
from newsdesk.exports.onnx_conversion import to_onnx, traced, write_onnx
from newsdesk.files import sha256_of, write_json
from newsdesk.model.catalog import resolve_base, resolve_config
from newsdesk.runs.exported import MODEL_FILES, ExportManifest, Kind, find_exported
from newsdesk.runs.folder import MANIFEST
from newsdesk.runs.labels import Labels
from newsdesk.runs.manifest import BaseFacts, ExportedRun
from newsdesk.stored import write_stored

TRACED = "traced/model.onnx"
CONTESTANTS: tuple[Kind, ...] = ("merged", "onnx-fp32", "onnx-int8")


def prepare_models(
    folder: Path, shape: str, label_names: Sequence[str], max_length: int, run: Path | None
) -> None:
    """Fill the folder, unless it is there already: with the run's own classifier, else with a random head."""
    if (folder / TRACED).is_file():
        return
    from transformers import AutoModelForSequenceClassification

    if run is not None:
        for kind in CONTESTANTS:
            exported = run / "export" / kind
            if find_exported(exported):
                shutil.copytree(exported, folder / kind, dirs_exist_ok=True)
            else:
                api.export(run, kind, out=folder / kind)
    else:
        write_untrained(folder, shape, label_names, max_length)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder / "merged")
    (folder / TRACED).parent.mkdir(exist_ok=True)
    write_onnx(traced(model.eval()), folder / TRACED)


def write_untrained(folder: Path, shape: str, label_names: Sequence[str], max_length: int) -> None:
    """Every form of a classifier whose head is random; roberta-base is random from the bottom up.

    Speed does not depend on what weights are. RoBERTa's shape reads texts by MiniLM's vocabulary.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(label_names)), "label2id": {n: i for i, n in enumerate(label_names)}}
    names["num_labels"] = len(label_names)  # type: ignore[assignment]
    if shape == "roberta-base":
        tokenizer = resolve_base("all-MiniLM-L6-v2").path
        config = resolve_config(shape) | {"pad_token_id": 0, **names}  # as the vocabulary pads
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**config))
    else:
        tokenizer = resolve_base("all-MiniLM-L6-v2" if shape == "minilm" else shape).path
        model = AutoModelForSequenceClassification.from_pretrained(tokenizer, **names)
    merged = folder / "merged"
    model.eval().save_pretrained(merged)
    shutil.copy(tokenizer / "tokenizer.json", merged)
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    write_json(merged / "tokenizer_config.json", settings | {"model_max_length": max_length})
    float32 = to_onnx(model)
    labels = Labels(tuple(label_names), TextLayout(("text",)), max_length)
    _write_exported(folder, "onnx-fp32", float32, labels)
    _write_exported(folder, "onnx-int8", quantise(float32, FASTEST), labels)


def _write_exported(folder: Path, kind: Kind, model: Any, labels: Labels) -> None:
    """As an export lays it down, but for figures of quality, of which a random head has none."""
    exported = folder / kind
    (exported / MODEL_FILES[kind]).parent.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "merged" / name, exported)
    labels.write(exported)
    write_onnx(model, exported / MODEL_FILES[kind])
    hashes = {
        path.relative_to(exported).as_posix(): sha256_of(path)
        for path in sorted(exported.rglob("*"))
        if path.is_file()
    }
    random = BaseFacts("random", "random", None)
    run = ExportedRun(newsdesk=__version__, versions={}, base=random, sha256="")
    manifest = ExportManifest(
        kind=kind, newsdesk=__version__, run=run, max_length=labels.max_length, files=hashes
    )
    write_stored(exported / MANIFEST, manifest)
