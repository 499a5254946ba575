"""Exported models in a few kilobytes: the graph averages token embeddings, which numpy can say as well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from newsdesk.data.columns import TextLayout
from newsdesk.files import sha256_of, write_json
from newsdesk.runs.exported import MODEL_FILES, ExportedModel, ExportManifest, Kind
from newsdesk.runs.labels import Labels
from newsdesk.runs.manifest import BaseFacts, ExportedRun
from newsdesk.stored import write_stored

LABELS = ("Business", "Science", "Sports")
WORDS = {
    label: words.split()
    for label, words in (
        ("Business", "market shares profit bank trade prices dollar merger investors budget"),
        ("Science", "orbit genome telescope software quantum fossil vaccine robot climate laser"),
        ("Sports", "goal coach striker tennis season medal referee league sprint champion"),
    )
}
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(word for words in WORDS.values() for word in words)]
WEIGHTS = np.array(
    [[float(piece in WORDS[label]) * 3 for label in LABELS] for piece in PIECES], dtype=np.float32
) + np.linspace(0, 0.3, len(PIECES) * 3, dtype=np.float32).reshape(-1, 3)


def expected_logits(ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What the graph gives for one text's token ids."""
    return WEIGHTS[ids].mean(axis=0)


def build_exported(
    folder: Path, *, kind: Kind = "onnx-int8", text_columns: tuple[str, ...] = ("text",), max_length: int = 16
) -> Path:
    """An exported model folder as an export leaves it."""
    (folder / "onnx").mkdir(parents=True)
    write_json(folder / "config.json", {"model_type": "bert", "pad_token_id": 0})
    Labels(LABELS, TextLayout(text_columns), max_length).write(folder)
    write_tokenizer(folder / "tokenizer.json")
    (folder / MODEL_FILES[kind]).write_bytes(graph())
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
    run = ExportedRun(newsdesk="0.1.0", versions={}, base=BaseFacts("tiny", "tiny", None), sha256="0")
    manifest = ExportManifest(kind=kind, newsdesk="0.1.0", run=run, max_length=max_length, files=hashes)
    write_stored(folder / "manifest.json", manifest)
    return folder


def write_tokenizer(path: Path) -> None:
    """Words are tokens; all others are [UNK]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(path))


def graph() -> bytes:
    """input_ids, attention_mask -> the mean of the embeddings of the tokens that are not padding."""
    from onnx import TensorProto, helper, numpy_helper

    rows = ["batch", "sequence"]
    nodes = [
        helper.make_node("Gather", ["weights", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["embedded", "column"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "tokens"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["column", "tokens"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mean_of_embeddings",
        [helper.make_tensor_value_info(n, TensorProto.INT64, rows) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "classes"])],
        [
            numpy_helper.from_array(WEIGHTS, "weights"),
            numpy_helper.from_array(np.array([2], dtype=np.int64), "last"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "tokens"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def tampered(folder: Path, **facts: Any) -> None:
    """Write the manifest anew with other facts."""
    write_stored(folder / "manifest.json", replace(ExportedModel(folder).manifest, **facts))
