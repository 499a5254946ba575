"""What the inputs of a model's products look like on real texts: ranges, peaks, and a sample of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.inference.quantise import Calibration, InputRange, products
from newsdesk.model.tokenizer import TokenIds, length_sorted_batches, pad

if TYPE_CHECKING:
    from onnx import ModelProto

_TOKENS_KEPT = 256  # of each batch, to estimate errors by
_ROWS_A_BATCH = 32

Values = NDArray[np.float32]


def calibrate(model: ModelProto, sequences: Sequence[TokenIds], pad_id: int) -> Calibration:
    """Run the float32 model on token ids and look at the input of every product; padding is left out."""
    observed = {source: _Observed() for source in products(model).values()}
    session = _session_with_outputs(model, list(observed))
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    for rows in length_sorted_batches(lengths, _ROWS_A_BATCH):
        input_ids, mask = pad([sequences[row] for row in rows], pad_id)
        outputs = session.run(list(observed), {"input_ids": input_ids, "attention_mask": mask})
        for seen, values in zip(observed.values(), outputs, strict=True):
            real = values[mask.astype(bool)] if values.shape[:2] == mask.shape else values
            seen.add(real.reshape(-1, values.shape[-1]))
    return {source: seen.summary() for source, seen in observed.items()}


class _Observed:
    """What was seen of one tensor so far."""

    def __init__(self) -> None:
        self._ends: list[tuple[float, float]] = []
        self._peaks: list[Values] = []
        self._samples: list[Values] = []

    def add(self, values: Values) -> None:
        """Take the values of some tokens, (tokens, channels)."""
        self._ends.append((float(values.min()), float(values.max())))
        self._peaks.append(np.abs(values).max(axis=0))
        every = max(1, len(values) // _TOKENS_KEPT)
        self._samples.append(values[::every])

    def summary(self) -> InputRange:
        """All that was seen: to clip the few tokens that reach far costs points, for they carry the rest."""
        lows, highs = zip(*self._ends, strict=True)
        return InputRange(min(lows), max(highs), np.max(self._peaks, axis=0), np.concatenate(self._samples))


def _session_with_outputs(model: ModelProto, names: list[str]) -> Any:
    """A session that also gives the named tensors."""
    import onnxruntime
    from onnx import ModelProto as Model
    from onnx import helper

    opened = Model()
    opened.CopyFrom(model)
    opened.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(
        opened.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
