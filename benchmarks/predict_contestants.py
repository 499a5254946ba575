"""The contestants of predict_speed.py: each opens its model in a process and classifies when asked.

    python predict_contestants.py NAME MODELS

A line on standard input, {"texts": [...], "batch": 8, "one_by_one": false}, gets one on standard output: the
labels, the seconds of each call, and the process's peak memory. MODELS is a folder as predict_models.py
leaves it. Packages are imported where they are used: optimum's environment has nothing of newsdesk.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import answers, peak_memory

Classify = Callable[[Sequence[str], int], list[str]]
"""Texts and a batch size, which newsdesk decides by itself, to labels."""


def main() -> None:
    replies = answers()
    classify = CONTESTANTS[sys.argv[1]](Path(sys.argv[2]))
    for line in sys.stdin:
        request = json.loads(line)
        texts, batch = request["texts"], request["batch"]
        labels, seconds = [], []
        for part in [[text] for text in texts] if request["one_by_one"] else [texts]:
            start = time.perf_counter()
            labels += classify(part, batch)
            seconds.append(time.perf_counter() - start)
        answer = {"labels": labels, "seconds": seconds, "peak_memory": peak_memory()}
        print(json.dumps(answer), file=replies, flush=True)


def newsdesk(models: Path, kind: str, together: bool = False) -> Classify:
    """What `newsdesk predict` does with a window of rows.

    ``together`` has all threads share one large batch, where they would compute a small one each.
    """
    from newsdesk.prediction.open_model import TOKENS_PER_BATCH, ExportedClassifier, open_model

    predictor: Any = open_model(models / kind)
    if together:
        predictor.tokens_per_batch = TOKENS_PER_BATCH
        predictor._compute_all = partial(ExportedClassifier._compute_all, predictor)

    def classify(texts: Sequence[str], _batch: int) -> list[str]:
        return [prediction.label for prediction in predictor.predict(texts)]

    return classify


def pipeline(models: Path, precision: str = "float32") -> Classify:
    """Transformers' pipeline on the merged model, texts in the order they come."""
    import torch
    from transformers import pipeline

    classifier: Any = pipeline(
        "text-classification", model=str(models / "merged"), dtype=getattr(torch, precision), device="cpu"
    )
    return partial(_by_pipeline, classifier)


def optimum(models: Path) -> Classify:
    """Optimum's dynamic int8 in transformers' pipeline; exported and quantised the first time."""
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer, pipeline

    folder = models / "optimum"
    if not folder.is_dir():
        _quantise_with_optimum(models / "merged", folder)
    model = ORTModelForSequenceClassification.from_pretrained(folder, file_name="model_quantized.onnx")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return partial(_by_pipeline, pipeline("text-classification", model=model, tokenizer=tokenizer))


def plain_onnxruntime(models: Path) -> Classify:
    """PyTorch's own export on onnxruntime as it is, texts sorted by their length."""
    classify = _session(models, models / "traced" / "model.onnx")

    def in_order_of_length(texts: Sequence[str], batch: int) -> list[str]:
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        labels = classify([texts[row] for row in order], batch)
        return [label for _, label in sorted(zip(order, labels, strict=True))]

    return in_order_of_length


def optimum_stand_in(models: Path) -> Classify:
    """Onnxruntime's dynamic int8 of PyTorch's export with the settings of optimum's avx2 or avx512_vnni."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantised = models / "traced" / "model_quantized.onnx"
    if not quantised.is_file():
        weights = QuantType.QInt8 if has_vnni() else QuantType.QUInt8
        options = {"WeightSymmetric": True, "ActivationSymmetric": False}
        quantize_dynamic(
            models / "traced" / "model.onnx",
            quantised,
            per_channel=False,
            reduce_range=False,
            weight_type=weights,
            extra_options=options,
        )
    return _session(models, quantised)


def has_vnni() -> bool:
    """Whether this processor adds four products of bytes in one instruction."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "avx512_vnni" in cpuinfo.read_text()


def _by_pipeline(classifier: Any, texts: Sequence[str], batch: int) -> list[str]:
    return [found["label"] for found in classifier(list(texts), batch_size=batch, truncation=True)]


def _session(models: Path, file: Path) -> Classify:
    """A graph in a session without settings, fed by transformers' tokenizer."""
    import onnxruntime
    from transformers import AutoTokenizer

    names = json.loads((models / "merged" / "config.json").read_text(encoding="utf-8"))["id2label"]
    tokenizer = AutoTokenizer.from_pretrained(models / "merged")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def classify(texts: Sequence[str], batch: int) -> list[str]:
        labels: list[str] = []
        for start in range(0, len(texts), batch):
            part = list(texts[start : start + batch])
            encoded = tokenizer(part, padding=True, truncation=True, return_tensors="np")
            feed = {name: encoded[name] for name in ("input_ids", "attention_mask")}
            labels += [names[str(row)] for row in session.run(["logits"], feed)[0].argmax(axis=1)]
        return labels

    return classify


def _quantise_with_optimum(merged: Path, folder: Path) -> None:
    """As optimum's documentation does it, with its settings for this processor."""
    from optimum.onnxruntime import ORTModelForSequenceClassification, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig
    from transformers import AutoTokenizer

    settings = AutoQuantizationConfig.avx512_vnni if has_vnni() else AutoQuantizationConfig.avx2
    exported = folder.with_name("optimum-float32")
    ORTModelForSequenceClassification.from_pretrained(merged, export=True).save_pretrained(exported)
    quantiser = ORTQuantizer.from_pretrained(exported)
    quantiser.quantize(save_dir=folder, quantization_config=settings(is_static=False, per_channel=False))
    AutoTokenizer.from_pretrained(merged).save_pretrained(folder)


CONTESTANTS: dict[str, Callable[[Path], Classify]] = {
    "newsdesk-int8": partial(newsdesk, kind="onnx-int8"),
    "newsdesk-float32": partial(newsdesk, kind="onnx-fp32"),
    "newsdesk-int8-together": partial(newsdesk, kind="onnx-int8", together=True),
    "pipeline-1": pipeline,
    "pipeline": pipeline,
    "pipeline-bfloat16": partial(pipeline, precision="bfloat16"),
    "onnxruntime": plain_onnxruntime,
    "optimum-int8": optimum,
    "stand-in-int8": optimum_stand_in,
}


if __name__ == "__main__":
    main()
