"""What each way to quantise does to a run's predictions, whether or not the gate would let it through.

    python benchmarks/quantisation.py runs/best       # needs the run's own rows, a base in the cache

The reference is the run's float32 ONNX graph; the rows are those of the gate.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from newsdesk.evaluation.rows import known_rows
from newsdesk.exports.int8_settings import SETTINGS, quantise
from newsdesk.exports.onnx_conversion import to_onnx, write_onnx
from newsdesk.exports.parity import Limits, Logits, compare, evidence_of, render_progress, render_tried
from newsdesk.model.tokenizer import TextTokenizer, TokenIds, batches_by_tokens, pad
from newsdesk.prediction.open_model import RunClassifier
from newsdesk.runs.folder import open_run


def logits_of(file: Path, sequences: list[TokenIds], pad_id: int, classes: int) -> Logits:
    """Logits of all rows by ONNX Runtime, in batches as prediction makes them."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    logits = np.zeros((len(sequences), classes), dtype=np.float32)
    for rows in batches_by_tokens(np.array([len(ids) for ids in sequences]), 2048):
        input_ids, mask = pad([sequences[row] for row in rows], pad_id)
        logits[rows] = session.run(["logits"], {"input_ids": input_ids, "attention_mask": mask})[0]
    return logits


def main(path: str) -> None:
    run = open_run(Path(path))
    evidence = evidence_of(known_rows(run, purpose="this measures", otherwise="train a run of your own"))
    model = RunClassifier(run, device="cpu").merged()
    pad_id, classes = int(model.config.pad_token_id or 0), len(run.labels.names)
    tokenizer = TextTokenizer.from_folder(run.tokenizer, run.labels.max_length)
    float32 = to_onnx(model)
    sequences = tokenizer.encode(evidence.examples.texts)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(float32, file)
        reference = logits_of(file, sequences, pad_id, classes)
        tried = []
        for setting in SETTINGS:
            write_onnx(quantise(float32, setting), file)
            logits = logits_of(file, sequences, pad_id, classes)
            megabytes = file.stat().st_size / 1e6
            rows = evidence.validation_rows
            tried.append(compare(str(setting), reference, logits, evidence.labels, megabytes, rows))
            print(render_progress(tried[-1]), flush=True)
    print("\n".join(render_tried(tried, evidence.facts, Limits())))


if __name__ == "__main__":
    main(sys.argv[1])
