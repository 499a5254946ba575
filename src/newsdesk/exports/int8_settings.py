"""From the fastest way to quantise to gentler ones, until one passes the gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from newsdesk.errors import UserError
from newsdesk.exports.onnx_graph import FUSED
from newsdesk.exports.parity import (
    Evidence,
    Limits,
    Quality,
    render_tried,
    rows_to_tell,
)
from newsdesk.model.tokenizer import TokenIds, length_sorted_batches, pad

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto


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


Array = NDArray[Any]
Activations = Literal["batch", "token", "calibrated", "float32"]

_WORDS: dict[Activations, str] = {
    "batch": "inputs by batch",
    "token": "inputs by token",
    "calibrated": "inputs by calibration",
    "float32": "alone: inputs in float32",
}
_TABLE_ROWS = 1000  # smaller tables are not worth two more operators
_SMALLEST_PEAK = 1e-9  # of a token that is all zeros, which would be divided by


@dataclass(frozen=True)
class Setting:
    """One way to quantise.

    Attributes:
        activations: where the range comes from that the inputs of products are rounded in. A batch's range
            makes the scores of a text depend on its neighbours, a token's and a calibrated one do not.
            "float32" leaves inputs as they are and rounds weights alone.
        bits: of the weights: 7 (signed) or 8 (unsigned).
        smoothing: SmoothQuant's alpha, the share of an input channel's peak that moves into the weights; 0
            for none (Xiao et al., 2023, arXiv:2211.10438).
        kept: names of the products that stay float32.
    """

    activations: Activations
    bits: Literal[7, 8]
    smoothing: float = 0.0
    kept: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """The setting in words, as the table of what was tried has it."""
        parts = [f"{self.bits}-bit weights", _WORDS[self.activations]]
        if self.smoothing:
            parts.append(f"smoothed by {self.smoothing:g}")
        if self.kept:
            parts.append(f"{len(self.kept)} products in float32")
        return ", ".join(parts)


@dataclass(frozen=True)
class InputRange:
    """What the input of a product looks like over the calibration rows.

    Attributes:
        low, high: the smallest and the largest value.
        peaks: the largest absolute value of each channel, (channels,).
        sample: some tokens' values, (tokens, channels).
    """

    low: float
    high: float
    peaks: Array
    sample: Array


Calibration = Mapping[str, InputRange]
"""What was seen at each product's input, by the tensor's name."""


def products(model: ModelProto) -> dict[str, str]:
    """Products of an activation and a constant matrix: the input's tensor by the node's name."""
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    return {
        node.name: node.input[0]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in matrices
    }


def quantise(model: ModelProto, setting: Setting, calibration: Calibration | None = None) -> ModelProto:
    """A copy of the model, quantised; ``calibration`` is needed for calibrated ranges and smoothing."""
    from onnx import ModelProto as Model

    rewriter = _Rewriter(model, setting, calibration or {})
    quantised = Model()
    quantised.CopyFrom(model)
    graph = quantised.graph
    nodes = [new for node in model.graph.node for new in rewriter.rewritten(node)]
    used = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*constants, *rewriter.constants])
    return quantised


def rounded_weights(weights: Array, bits: int) -> tuple[Array, Array, Array]:
    """Weights (in, out) as integers, with scale and zero point of each output channel, (out,).

    int8 from -63 to 63 around 0 for 7 bits, uint8 from 1 to 255 around 128 for 8.
    """
    largest = 63 if bits == 7 else 127
    peaks = np.abs(weights).max(axis=0)
    scales = np.where(peaks > 0, peaks, 1.0).astype(np.float32) / np.float32(largest)
    whole = np.rint(weights / scales)
    if bits == 7:
        return whole.astype(np.int8), scales, np.zeros(len(scales), np.int8)
    return (whole + 128).astype(np.uint8), scales, np.full(len(scales), 128, np.uint8)


def rounding_error(sample: Array, weights: Array, bits: int) -> float:
    """How much of a product rounding changes: norm of the change over the norm of the product.

    ``sample`` (tokens, in) is rounded to 8 bits by each token's range, ``weights`` (in, out) as asked for.
    """
    step = np.maximum(np.abs(sample).max(axis=1, keepdims=True), _SMALLEST_PEAK) / 127
    inputs = np.rint(sample / step) * step
    whole, scales, zeros = rounded_weights(weights, bits)
    exact = sample @ weights
    changed = inputs @ ((whole.astype(np.float32) - zeros) * scales) - exact
    return float(np.linalg.norm(changed) / max(float(np.linalg.norm(exact)), _SMALLEST_PEAK))


@dataclass
class _Rewriter:
    """Turns nodes into their quantised form and collects the constants these need."""

    model: ModelProto
    setting: Setting
    calibration: Calibration
    constants: list[TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._matrices = {t.name: t for t in self.model.graph.initializer if len(t.dims) == 2}
        self._products = products(self.model)
        self._prepared: set[str] = set()

    def rewritten(self, node: NodeProto) -> Iterator[NodeProto]:
        """The nodes that take a node's place: itself, where there is nothing to quantise."""
        if node.name in self._products and node.name not in self.setting.kept:
            yield from self._product(node)
        elif node.op_type == "Gather" and self._is_table(node):
            yield from self._lookup(node)
        else:
            yield node

    def _is_table(self, node: NodeProto) -> bool:
        table = self._matrices.get(node.input[0])
        return table is not None and table.dims[0] >= _TABLE_ROWS and table.data_type == 1  # float32

    def _product(self, node: NodeProto) -> Iterator[NodeProto]:
        source, name, weights = node.input[0], node.name, self._values(node.input[1])
        if self.setting.smoothing:
            source, weights = f"{name}.smoothed", self._smooth(name, source, weights)
            yield _node("Mul", [node.input[0], f"{name}.smoother"], source)
        whole, scales, zeros = rounded_weights(weights, self.setting.bits)
        matrix = self._constant(f"{name}.quantised", whole)
        scale, zero = self._constant(f"{name}.scale", scales), self._constant(f"{name}.zero", zeros)
        if self.setting.activations == "float32":
            yield from _restored(name, matrix, scale, zero)
            yield _node("MatMul", [source, f"{name}.restored"], node.output[0], name)
        elif self.setting.activations == "batch":
            inputs = [source, matrix, scale, zero]
            yield _node("DynamicQuantizeMatMul", inputs, node.output[0], name, FUSED)
        elif self.setting.activations == "calibrated":
            yield from self._calibrated(source, node.input[0])
            inputs = [f"{source}.whole", matrix, f"{source}.step", scale, f"{source}.origin", zero]
            yield _node("MatMulIntegerToFloat", inputs, node.output[0], name, FUSED)
        else:
            yield from self._by_token(source)
            inputs = [f"{source}.whole", matrix, f"{source}.step", scale, f"{source}.origin", zero]
            yield _node("MatMulIntegerToFloat", inputs, f"{name}.of_unit", name, FUSED)
            yield _node("Mul", [f"{name}.of_unit", f"{source}.peak"], node.output[0])

    def _calibrated(self, source: str, observed: str) -> Iterator[NodeProto]:
        """Round a tensor in the range that was seen for it; once, however many products read it."""
        if source in self._prepared:
            return
        self._prepared.add(source)
        seen = self.calibration[observed]
        low, high = min(seen.low, 0.0), max(seen.high, 0.0)
        step = np.float32(max(high - low, _SMALLEST_PEAK) / 255)
        self._constant(f"{source}.step", step)
        self._constant(f"{source}.origin", np.uint8(round(-low / float(step))))
        yield _node("QuantizeLinear", [source, f"{source}.step", f"{source}.origin"], f"{source}.whole")

    def _by_token(self, source: str) -> Iterator[NodeProto]:
        """Divide each token by its peak and round it in -1 to 1: no token's range depends on another's."""
        if source in self._prepared:
            return
        self._prepared.add(source)
        self._constant(f"{source}.step", np.float32(1 / 127))
        self._constant(f"{source}.origin", np.uint8(128))
        self._constant(f"{source}.least", np.float32(_SMALLEST_PEAK))
        yield _node("Abs", [source], f"{source}.absolute")
        yield _node("ReduceMax", [f"{source}.absolute"], f"{source}.largest", axes=[-1], keepdims=1)
        yield _node("Max", [f"{source}.largest", f"{source}.least"], f"{source}.peak")
        yield _node("Div", [source, f"{source}.peak"], f"{source}.unit")
        yield _node(
            "QuantizeLinear", [f"{source}.unit", f"{source}.step", f"{source}.origin"], f"{source}.whole"
        )

    def _smooth(self, name: str, source: str, weights: Array) -> Array:
        """Move peaks of input channels into the weights; what the input is multiplied by is stored."""
        alpha = self.setting.smoothing
        activation_peaks = np.maximum(self.calibration[source].peaks, _SMALLEST_PEAK)
        weight_peaks = np.maximum(np.abs(weights).max(axis=1), _SMALLEST_PEAK)
        factors = (activation_peaks**alpha / weight_peaks ** (1 - alpha)).astype(np.float32)
        self._constant(f"{name}.smoother", 1 / factors)
        return np.asarray(weights * factors[:, None])

    def _lookup(self, node: NodeProto) -> Iterator[NodeProto]:
        """A table of words in 8 bits, a scale for each row: a quarter of what is most of a small model."""
        name = node.name
        whole, scales, _ = rounded_weights(self._values(node.input[0]).T, 8)
        rows = (whole.astype(np.int16).T - 128).astype(np.int8)
        table = self._constant(f"{name}.quantised", rows)
        scale = self._constant(f"{name}.scale", scales[:, None])
        yield _node("Gather", [table, node.input[1]], f"{name}.rows")
        yield _node("Cast", [f"{name}.rows"], f"{name}.whole", to=1)  # float32
        yield _node("Gather", [scale, node.input[1]], f"{name}.scales")
        yield _node("Mul", [f"{name}.whole", f"{name}.scales"], node.output[0])

    def _values(self, name: str) -> Array:
        from onnx import numpy_helper

        return np.asarray(numpy_helper.to_array(self._matrices[name]))

    def _constant(self, name: str, values: Any) -> str:
        from onnx import numpy_helper

        self.constants.append(
            numpy_helper.from_array(np.ascontiguousarray(values).reshape(np.shape(values)), name)
        )
        return name


def _restored(name: str, matrix: str, scale: str, zero: str) -> Iterator[NodeProto]:
    """The weights as float32 again. Engines fold this when they load: a smaller file, computed as before."""
    yield _node("Cast", [matrix], f"{name}.whole", to=1)
    yield _node("Cast", [zero], f"{name}.origin", to=1)
    yield _node("Sub", [f"{name}.whole", f"{name}.origin"], f"{name}.centred")
    yield _node("Mul", [f"{name}.centred", scale], f"{name}.restored")


def _node(
    operator: str,
    inputs: list[str],
    output: str,
    name: str | None = None,
    domain: str = "",
    **attributes: Any,
) -> NodeProto:
    from onnx import helper

    return helper.make_node(operator, inputs, [output], name=name or output, domain=domain, **attributes)


FASTEST = Setting("token", bits=7)
FINER = Setting("token", bits=8)
SENSITIVE_SHARES = (1 / 8, 1 / 3)
SMOOTHING = 0.5

Measure = Callable[["ModelProto", str], Quality]


class Ladder:
    """The settings to try on a model, the fastest first; what needs calibration waits until its turn."""

    def __init__(self, model: ModelProto, calibrate: Callable[[], Calibration]) -> None:
        """Take the float32 model, and what looks at the inputs of its products when that is needed."""
        self._model = model
        self._calibrate = calibrate

    @cached_property
    def calibration(self) -> Calibration:
        """What the inputs of the products look like."""
        return self._calibrate()

    def __iter__(self) -> Iterator[Setting]:
        """The settings in order."""
        yield from (FASTEST, FINER)
        ranked = self.most_sensitive()
        for share in SENSITIVE_SHARES:
            yield replace(FINER, kept=frozenset(ranked[: max(1, round(share * len(ranked)))]))
        yield Setting("calibrated", bits=8)
        yield replace(FINER, smoothing=SMOOTHING)
        yield Setting("float32", bits=8)

    def most_sensitive(self) -> list[str]:
        """Names of the products, those first that rounding changes most on the calibration rows."""
        from onnx import numpy_helper

        found = products(self._model)
        tensors = {tensor.name: tensor for tensor in self._model.graph.initializer}
        errors = {}
        for node in self._model.graph.node:
            if node.name in found:
                weights = numpy_helper.to_array(tensors[node.input[1]])
                errors[node.name] = rounding_error(
                    self.calibration[node.input[0]].sample, weights, FINER.bits
                )
        return sorted(errors, key=lambda name: -errors[name])

    def quantised(self, setting: Setting) -> ModelProto:
        """The model by one of the settings."""
        needs_calibration = setting.smoothing or setting.activations == "calibrated"
        return quantise(self._model, setting, self.calibration if needs_calibration else None)


def first_that_passes(ladder: Ladder, measure: Measure, evidence: Evidence, limits: Limits) -> list[Quality]:
    """Try the ladder's settings; the last of the figures returned is of the one that passes.

    ``measure`` writes a model and measures it on ``evidence``. Raises UserError, with the table of what was
    tried, when none passes.
    """
    tried: list[Quality] = []
    for setting in ladder:
        tried.append(measure(ladder.quantised(setting), str(setting)))
        if tried[-1].is_close(limits):
            return tried
    found = "\n" + "\n".join(render_tried(tried, evidence.facts, limits))
    enough = min(filter(None, (rows_to_tell(quality, limits) for quality in tried)), default=None)
    if enough is None:
        raise UserError(
            "no way to quantise this model keeps its quality; nothing was written",
            found=found,
            fix="deploy it with --to onnx-fp32, or allow more with --max-loss and --max-loss-upper",
        )
    raise UserError(
        "the rows are too few to tell whether an int8 export keeps the quality; nothing was written",
        found=found,
        fix=f"give about {enough:,} labelled rows, which the run did not learn from, with --data FILE; allow "
        "more with --max-loss-upper; or deploy it with --to onnx-fp32",
    )
