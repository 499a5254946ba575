"""Ways to quantise a classifier's ONNX graph to 8-bit integers, the fastest first."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from newsdesk.exports.onnx_graph import FUSED

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

Array = NDArray[Any]
_TABLE_ROWS = 1000  # smaller tables are not worth two more operators
_SMALLEST_PEAK = 1e-9  # of a token that is all zeros, which would be divided by
_FLOAT32 = 1  # onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class Setting:
    """One way to quantise.

    Attributes:
        bits: of the weights: 7 (signed) or 8 (unsigned). With 7 no sum of products overflows 16 bits, which
            processors without VNNI add in.
        inputs: whether the inputs of products are rounded to 8 bits, each token in its own range, so that the
            scores of a text do not depend on its neighbours; or stay float32, and weights alone are rounded.
    """

    bits: Literal[7, 8]
    inputs: Literal["token", "float32"] = "token"

    def __str__(self) -> str:
        """The setting in words, as the table of what was tried has it."""
        how = "inputs by token" if self.inputs == "token" else "alone: inputs in float32"
        return f"{self.bits}-bit weights, {how}"


FASTEST = Setting(7)
SETTINGS = (FASTEST, Setting(8), Setting(8, "float32"))
"""What an export tries, until one passes the gate (docs/deploy.md compares these with others)."""


def products(model: ModelProto) -> set[str]:
    """Names of the nodes that multiply an activation by a constant matrix."""
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    return {node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in matrices}


def quantise(model: ModelProto, setting: Setting) -> ModelProto:
    """A copy of the model with its products and its word table quantised."""
    rewriter = _Rewriter(model, setting)
    quantised = deepcopy(model)
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


@dataclass
class _Rewriter:
    """Turns nodes into their quantised form and collects the constants these need."""

    model: ModelProto
    setting: Setting
    constants: list[TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._matrices = {t.name: t for t in self.model.graph.initializer if len(t.dims) == 2}
        self._products = products(self.model)
        self._rounded: set[str] = set()

    def rewritten(self, node: NodeProto) -> Iterator[NodeProto]:
        """The nodes that take a node's place: itself, where there is nothing to quantise."""
        if node.name in self._products:
            yield from self._product(node)
        elif node.op_type == "Gather" and self._is_table(node):
            yield from self._lookup(node)
        else:
            yield node

    def _is_table(self, node: NodeProto) -> bool:
        table = self._matrices.get(node.input[0])
        return table is not None and table.dims[0] >= _TABLE_ROWS and table.data_type == _FLOAT32

    def _product(self, node: NodeProto) -> Iterator[NodeProto]:
        source, name = node.input[0], node.name
        whole, scales, zeros = rounded_weights(self._values(node.input[1]), self.setting.bits)
        matrix = self._constant(f"{name}.quantised", whole)
        scale, zero = self._constant(f"{name}.scale", scales), self._constant(f"{name}.zero", zeros)
        if self.setting.inputs == "float32":
            # Engines compute the float32 weights once, when they load: a smaller file, computed as before.
            yield _node("Cast", [matrix], f"{name}.whole", to=_FLOAT32)
            yield _node("Cast", [zero], f"{name}.origin", to=_FLOAT32)
            yield _node("Sub", [f"{name}.whole", f"{name}.origin"], f"{name}.centred")
            yield _node("Mul", [f"{name}.centred", scale], f"{name}.restored")
            yield _node("MatMul", [source, f"{name}.restored"], node.output[0], name)
            return
        if source not in self._rounded:
            self._rounded.add(source)
            yield from self._by_token(source)
        inputs = [f"{source}.whole", matrix, f"{source}.step", scale, f"{source}.origin", zero]
        yield _node("MatMulIntegerToFloat", inputs, f"{name}.of_unit", name, FUSED)
        yield _node("Mul", [f"{name}.of_unit", f"{source}.peak"], node.output[0])

    def _by_token(self, source: str) -> Iterator[NodeProto]:
        """Divide each token by its peak and round it in -1 to 1: no token's range depends on another's."""
        self._constant(f"{source}.step", np.float32(1 / 127))
        self._constant(f"{source}.origin", np.uint8(128))
        self._constant(f"{source}.least", np.float32(_SMALLEST_PEAK))
        yield _node("Abs", [source], f"{source}.absolute")
        yield _node("ReduceMax", [f"{source}.absolute"], f"{source}.largest", axes=[-1], keepdims=1)
        yield _node("Max", [f"{source}.largest", f"{source}.least"], f"{source}.peak")
        yield _node("Div", [source, f"{source}.peak"], f"{source}.unit")
        inputs = [f"{source}.unit", f"{source}.step", f"{source}.origin"]
        yield _node("QuantizeLinear", inputs, f"{source}.whole")

    def _lookup(self, node: NodeProto) -> Iterator[NodeProto]:
        """A table of words in 8 bits, a scale for each row: a quarter of what is most of a small model."""
        name = node.name
        whole, scales, _ = rounded_weights(self._values(node.input[0]).T, 8)
        rows = (whole.astype(np.int16).T - 128).astype(np.int8)
        table = self._constant(f"{name}.quantised", rows)
        scale = self._constant(f"{name}.scale", scales[:, None])
        yield _node("Gather", [table, node.input[1]], f"{name}.rows")
        yield _node("Cast", [f"{name}.rows"], f"{name}.whole", to=_FLOAT32)
        yield _node("Gather", [scale, node.input[1]], f"{name}.scales")
        yield _node("Mul", [f"{name}.whole", f"{name}.scales"], node.output[0])

    def _values(self, name: str) -> Array:
        from onnx import numpy_helper

        return np.asarray(numpy_helper.to_array(self._matrices[name]))

    def _constant(self, name: str, values: Any) -> str:
        from onnx import numpy_helper

        array = np.ascontiguousarray(values).reshape(np.shape(values))
        self.constants.append(numpy_helper.from_array(array, name))
        return name


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
