"""Which engine and which graph: the same weights on ONNX Runtime and OpenVINO, alternating in one run.

    python benchmarks/engines.py                      # RoBERTa-base's shape, random weights, a few minutes
    python benchmarks/engines.py --shape tiny --rounds 2

Prints milliseconds for a batch and for a single text, medians over rounds. OpenVINO takes part where it is
installed (pip install openvino), its int8 where nncf is too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from newsdesk.exports.int8_settings import SETTINGS, quantise
from newsdesk.exports.onnx_conversion import to_onnx, traced
from newsdesk.prediction.onnx_session import default_threads

SHAPES = {
    "roberta-base": {"vocab_size": 5000},
    "minilm": {"vocab_size": 5000, "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
    "tiny": {"vocab_size": 1200, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48},
}
HEADS = {"tiny": 4}
BATCHES = {"batch of 32": (32, 48), "single text": (1, 48)}
Feed = dict[str, Any]
Engine = Callable[[Feed], Any]


def random_model(shape: str) -> Any:
    """A RoBERTa of this shape with random weights: speed does not depend on what they are."""
    import torch
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    config = RobertaConfig(
        **SHAPES[shape],
        num_attention_heads=HEADS.get(shape, 12),
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=1,
        num_labels=4,
    )
    return RobertaForSequenceClassification(config).eval()


def inputs(rows: int, length: int) -> Feed:
    """A batch without padding."""
    ids = np.random.default_rng(0).integers(5, 1200, (rows, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def onnxruntime_engine(model: Any) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = default_threads()
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda feed: session.run(["logits"], feed)[0]


def openvino_engine(model: Any, int8: bool = False) -> Engine:
    import openvino

    core = openvino.Core()
    read = core.read_model(model.SerializeToString(), b"")
    if int8:
        import nncf

        samples = nncf.Dataset([inputs(4, 48) for _ in range(8)])
        read = nncf.quantize(read, samples, model_type=nncf.ModelType.TRANSFORMER)
    settings = {"INFERENCE_NUM_THREADS": default_threads(), "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(read, "CPU", settings)
    return lambda feed: compiled(feed)[0]


def engines(shape: str) -> dict[str, Engine]:
    """Every contestant by name, ready to compute."""
    model = random_model(shape)
    written, by_tracer = to_onnx(model), traced(model)
    contestants = {
        "onnxruntime float32, traced": onnxruntime_engine(by_tracer),
        "onnxruntime float32, written down": onnxruntime_engine(written),
    }
    for setting in SETTINGS:
        contestants[f"onnxruntime {setting}"] = onnxruntime_engine(quantise(written, setting))
    if find_spec("openvino"):
        contestants["openvino float32, traced"] = openvino_engine(by_tracer)
        if find_spec("nncf"):
            contestants["openvino int8 (nncf), traced"] = openvino_engine(by_tracer, int8=True)
    return contestants


def measure(contestants: dict[str, Engine], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of each contestant on each batch, taking turns within every round."""
    results: dict[str, dict[str, float]] = {name: {} for name in contestants}
    for batch, (rows, length) in BATCHES.items():
        feed = inputs(rows, length)
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for compute in contestants.values():
            compute(feed)  # the first call allocates
        for _ in range(rounds if rows > 1 else 3 * rounds):
            for name, compute in contestants.items():
                start = time.perf_counter()
                compute(feed)
                seconds[name].append(time.perf_counter() - start)
        for name, times in seconds.items():
            results[name][batch] = 1000 * statistics.median(times)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="roberta-base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    results = measure(engines(arguments.shape), arguments.rounds)
    packages = [name for name in ("onnxruntime", "openvino", "nncf") if find_spec(name)]
    print(", ".join(f"{name} {version(name)}" for name in packages), f"- {arguments.shape}, milliseconds")
    print(f"{'':<64}" + "".join(f"{batch:>14}" for batch in BATCHES))
    for name, figures in results.items():
        print(f"{name:<64}" + "".join(f"{figures[batch]:>14.1f}" for batch in BATCHES))
    if not find_spec("openvino"):
        print("openvino is not installed and took no part: pip install openvino")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
