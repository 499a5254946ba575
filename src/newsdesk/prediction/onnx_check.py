"""A stranger's ONNX graph, checked before onnxruntime sees it: `require_plain_graph`.

The file is a protocol buffer; the few of its fields that decide what runs are read here, so that the base
install needs no other package for it, and weights, which are most of the bytes, are skipped. Every field that
is not known is refused: what this reader passes over, onnxruntime must not find.
Source of the numbers: onnx.proto of onnx 1.16 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Literal

from newsdesk.files import open_regular

LARGEST_GRAPH = 2**31 - 1
"""Bytes of a graph: more, and onnxruntime cannot read it."""
_MOST_NODES = 50_000  # DeBERTa, traced, has 430 a layer
_MOST_FIELDS = 1_000_000
_MOST_DIMENSIONS = 8
_LONGEST_NAME = 1 << 16
_OPSETS = range(11, 27)

_OPERATORS = """
Abs Add And Cast Ceil Clip Concat Constant ConstantOfShape Cos CumSum DequantizeLinear Div Dropout
DynamicQuantizeLinear Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm Greater
GreaterOrEqual Identity IsInf IsNaN LayerNormalization Less LessOrEqual Log LogSoftmax MatMul MatMulInteger
Max Mean Min Mod Mul Neg Not Or Pow QuantizeLinear Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceSum
Relu Reshape Round Shape Sigmoid Sign Sin Size Slice Softmax Split Sqrt Squeeze Sub Sum Tanh Tile Transpose
Trilu Unsqueeze Where Xor
"""
_FUSED_OPERATORS = """
Attention BiasGelu DynamicQuantizeMatMul EmbedLayerNormalization FastGelu FusedMatMul Gelu
MatMulIntegerToFloat MultiHeadAttention QAttention QuickGelu SkipLayerNormalization
"""
_KNOWN = {
    **dict.fromkeys(("", "ai.onnx"), frozenset(_OPERATORS.split())),
    "com.microsoft": frozenset(_FUSED_OPERATORS.split()),
}
"""What exports of encoders consist of: newsdesk's own, traced ones, and optimum's, in float32 and int8."""

_COSTLY = {
    "products": [
        "MatMul",
        "Gemm",
        "MatMulInteger",
        "FusedMatMul",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
    ],
    "growing": ["ConstantOfShape", "Expand", "Tile", "Range"],
}
_MOST_FOLDED = {"products": 128, "growing": 16, "others": 2_000}
_LARGEST_FACTOR = 4 << 20
"""Of constants: operators that onnxruntime may compute as it loads, and elements of a factor.

DeBERTa-v2, traced, has two products a layer; 8-bit weights are restored by four operators a matrix.
"""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_KINDS = {"float32": 1, "int8": 3, "int64": 7, "float16": 10}
_SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8}
"""Bytes of an element by TensorProto.DataType: numbers and truth values, no texts."""
_TYPED = {4: 4, 5: 1, 7: 1, 10: 8, 11: 1}
"""Bytes of an element at least, by the field of a TensorProto that holds values other than as raw bytes."""

_MODEL = {1, 2, 3, 4, 5, 6, 7, 8, 14}
_GRAPH = {1, 2, 5, 10, 11, 12, 13, 14, 16}
_NODE = {1, 2, 3, 4, 5, 6, 7, 9}
_ATTRIBUTE = {1, 2, 3, 4, 5, 7, 8, 9, 13, 20}
_TENSOR = {1, 2, 4, 5, 7, 8, 9, 10, 11, 12, 14, 16}
_NAMES = {
    ("model", 20): "training_info",
    ("model", 25): "functions",
    ("graph", 15): "sparse_initializer",
    ("attribute", 6): "a graph inside of a node",
    ("attribute", 11): "graphs inside of a node",
    ("tensor", 6): "texts for weights",
    ("tensor", 13): "external_data: weights in another file",
    ("tensor", 14): "external_data: weights in another file",
}


class GraphRefusedError(ValueError):
    """Why a graph is not run, as half a sentence."""


@dataclass(frozen=True)
class Port:
    """What an input or output of a graph has to be: the type of its elements, its axes, None: of any size."""

    kind: Literal["float32", "int8", "int64", "float16"]
    axes: tuple[int | None, ...]

    def __str__(self) -> str:
        """In words, for errors."""
        sizes = ", ".join("any" if size is None else str(size) for size in self.axes)
        return f"{self.kind} of axes ({sizes})"


TOKENS = Port("int64", (None, None))
"""Token ids or a mask, (batch, sequence)."""

_Declared = tuple[int, list[int | None] | None]
"""What a graph says of an input or output: the number of its type, and its axes where they are said."""


@dataclass
class _Node:
    """An operator, the names it reads and makes, and the elements of its value where it is a constant."""

    operator: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    value: int = 0


@dataclass
class _Graph:
    """What is found in a model that the checks need."""

    opsets: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, _Declared] = field(default_factory=dict)
    outputs: dict[str, _Declared] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)  # elements by name
    nodes: list[_Node] = field(default_factory=list)
    left: int = _MOST_FIELDS

    def read(
        self, content: memoryview, message: str, known: Collection[int]
    ) -> Iterator[tuple[int, int | memoryview]]:
        """Numbers and values of a message's fields. Raises IndexError where it is cut off."""
        place, end = 0, len(content)
        while place < end:
            tag = content[place]
            place += 1
            if tag >= 0x80:
                tag, place = _varint(content, place - 1)
            number, wire = tag >> 3, tag & 7
            self.left -= 1
            if not self.left:
                raise GraphRefusedError(f"more than {_MOST_FIELDS:,} names, operators and tensors")
            if number not in known:
                raise _unknown(message, number)
            if wire == _BYTES:
                size = content[place]
                place += 1
                if size >= 0x80:
                    size, place = _varint(content, place - 1)
                if place + size > end:
                    raise IndexError
                yield number, content[place : place + size]
                place += size
            elif wire == _VARINT:
                value, place = _varint(content, place)
                yield number, value
            elif wire in (_FIXED32, _FIXED64):
                size = 4 if wire == _FIXED32 else 8
                if place + size > end:
                    raise IndexError
                yield number, content[place : place + size]
                place += size
            else:
                raise IndexError


def require_plain_graph(
    path: Path, inputs: Mapping[str, Port], outputs: Mapping[str, Port], *, limit: int = LARGEST_GRAPH
) -> bool:
    """Refuse a file that is not one graph of known operators with these inputs and outputs.

    Args:
        path: of the file.
        inputs: by their names; there may be no others.
        outputs: by names that must be among the graph's, which need not say their axes.
        limit: bytes of the file, at most.

    Returns whether what it computes of constants alone is little, so that onnxruntime may do it as it loads,
    where nothing could stop it. Raises GraphRefusedError with what was found, and OSError for what is no
    regular file.
    """
    with open_regular(path) as stream:
        size = stream.seek(0, 2)
        if not 0 < size <= limit:
            raise GraphRefusedError(f"{size:,} bytes, where 1 to {limit:,} are expected")
        content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        graph = _read_model(content)
    except (IndexError, UnicodeDecodeError):
        raise GraphRefusedError("it is cut off, or no ONNX file") from None
    _require_interface(graph, inputs, outputs)
    return _foldable(graph)


def _foldable(graph: _Graph) -> bool:
    counts = dict.fromkeys(_MOST_FOLDED, 0)
    for node in graph.nodes:
        sizes = [graph.constants.get(name) for name in node.inputs if name]
        known = [size for size in sizes if size is not None]
        if node.operator == "Constant":
            known, kind = [node.value], ""
        elif not known or len(known) < len(sizes):
            continue
        else:
            kind = next((kind for kind, names in _COSTLY.items() if node.operator in names), "others")
            counts[kind] += node.operator != "Identity"
        if kind == "products" and max(known) > _LARGEST_FACTOR:
            return False
        made = {"products": prod(known), "growing": _LARGEST_FACTOR + 1}.get(kind, max(known))
        graph.constants.update(dict.fromkeys(node.outputs, made))
    return all(counts[kind] <= most for kind, most in _MOST_FOLDED.items())


def _require_interface(graph: _Graph, inputs: Mapping[str, Port], outputs: Mapping[str, Port]) -> None:
    opset = graph.opsets.get("", graph.opsets.get("ai.onnx"))
    if opset not in _OPSETS:
        raise GraphRefusedError(f"opset {opset}, where {_OPSETS[0]} to {_OPSETS[-1]} are known")
    if not graph.nodes:
        raise GraphRefusedError("no operator in it")
    given = {name: found for name, found in graph.inputs.items() if name not in graph.constants}
    if set(given) != set(inputs):
        raise GraphRefusedError(f"inputs {_listed(given)}, where {_listed(inputs)} are expected")
    for name, port in inputs.items():
        kind, shape = given[name]
        if kind != _KINDS[port.kind] or shape is None or tuple(shape) != port.axes:
            raise GraphRefusedError(f"input {name} is not {port}")
    for name, port in outputs.items():
        if name not in graph.outputs:
            raise GraphRefusedError(f"outputs {_listed(graph.outputs)}, and no {name}")
        kind, shape = graph.outputs[name]
        if kind != _KINDS[port.kind] or (shape is not None and len(shape) != len(port.axes)):
            raise GraphRefusedError(f"output {name} is not {port}")
        for found, wanted in [] if shape is None else zip(shape, port.axes, strict=True):
            if None not in (found, wanted) and found != wanted:
                raise GraphRefusedError(f"output {name} has {found} columns, where {wanted} are expected")


def _listed(names: Collection[str]) -> str:
    return ", ".join(f"{name:.40}" for name in list(names)[:5]) or "none"


def _read_model(content: memoryview) -> _Graph:
    graph = _Graph()
    for number, value in graph.read(content, "model", _MODEL):
        if number == 7:
            _read_graph(_message(value), graph)
        elif number == 8:
            opset = dict(graph.read(_message(value), "opset", {1, 2}))
            graph.opsets[_text(opset.get(1, b""))] = _integer(opset.get(2, 0))
    return graph


def _read_graph(content: memoryview, graph: _Graph) -> None:
    for number, value in graph.read(content, "graph", _GRAPH):
        if number == 1:
            if len(graph.nodes) == _MOST_NODES:
                raise GraphRefusedError(f"more than {_MOST_NODES:,} operators")
            graph.nodes.append(_read_node(_message(value), graph))
        elif number == 5:
            name, elements = _read_tensor(_message(value), graph)
            graph.constants[name] = elements
        elif number in (11, 12):
            name, kind, shape = _value_info(_message(value), graph)
            (graph.inputs if number == 11 else graph.outputs)[name] = kind, shape


def _read_node(content: memoryview, graph: _Graph) -> _Node:
    node = _Node()
    for number, value in graph.read(content, "node", _NODE):
        if number == 1:
            node.inputs.append(_text(value))
        elif number == 2:
            node.outputs.append(_text(value))
        elif number == 4:
            node.operator = _text(value)
        elif number == 7:
            node.domain = _text(value)
        elif number == 5:
            for inner, tensor in graph.read(_message(value), "attribute", _ATTRIBUTE):
                if inner == 5:
                    node.value = _read_tensor(_message(tensor), graph)[1]
    if node.operator not in _KNOWN.get(node.domain, ()):
        whose = f" of {node.domain:.40}" if node.domain else ""
        raise GraphRefusedError(f"the operator {node.operator:.40}{whose}, which encoders do not need")
    return node


def _read_tensor(content: memoryview, graph: _Graph) -> tuple[str, int]:
    """The tensor's name and number of elements. Refuses one that does not hold its values."""
    name, kind, raw, typed = "", 0, 0, 0
    dims: list[int] = []
    for number, value in graph.read(content, "tensor", _TENSOR):
        if number == 1:
            dims += _integers(value)
        elif number == 2:
            kind = _integer(value)
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = len(_message(value))
        elif number in _TYPED:
            typed += 1 if isinstance(value, int) else len(value) // _TYPED[number]
        elif number == 14 and value != 0:
            raise _unknown("tensor", 14)
    if kind not in _SIZES:
        raise GraphRefusedError(f"the tensor {name:.40} of a type that encoders do not need ({kind})")
    elements = prod(dims)
    if len(dims) > _MOST_DIMENSIONS or any(size < 0 for size in dims):
        raise GraphRefusedError(f"the tensor {name:.40} of axes {dims[:_MOST_DIMENSIONS]}")
    if raw != elements * _SIZES[kind] and not (raw == 0 and elements <= typed):
        raise GraphRefusedError(f"the tensor {name:.40} says {elements:,} elements and does not hold them")
    return name, elements


def _value_info(content: memoryview, graph: _Graph) -> tuple[str, int, list[int | None] | None]:
    """Name, type of the elements and sizes of the axes, None where they are free, of an input or output."""
    name, kind, shape = "", 0, None
    for number, value in graph.read(content, "value", {1, 2, 3, 4}):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for of, tensor in graph.read(_message(value), "type", {1, 6}):
                for inner, part in graph.read(_message(tensor), "type", {1, 2}) if of == 1 else ():
                    if inner == 1:
                        kind = _integer(part)
                    else:
                        shape = [
                            _axis(_message(axis), graph)
                            for _, axis in graph.read(_message(part), "shape", {1})
                        ]
    return name, kind, shape


def _axis(content: memoryview, graph: _Graph) -> int | None:
    return next((_integer(v) for n, v in graph.read(content, "axis", {1, 2, 3}) if n == 1), None)


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    """A number of up to 64 bits, and the place behind it; those of 63 bits and a sign stay signed."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value - (1 << 64) if value >= 1 << 63 else value, place
    raise IndexError


def _integers(value: int | memoryview) -> list[int]:
    """Values of a repeated number, packed or not."""
    if isinstance(value, int):
        return [value]
    if len(value) > 10 * _MOST_DIMENSIONS:
        raise GraphRefusedError(f"a tensor of more than {_MOST_DIMENSIONS} axes")
    found, place = [], 0
    while place < len(value):
        number, place = _varint(value, place)
        found.append(number)
    return found


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise IndexError
    return value


def _integer(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise IndexError
    return value


def _text(value: int | memoryview | bytes) -> str:
    if isinstance(value, int):
        raise IndexError
    if len(value) > _LONGEST_NAME:
        raise GraphRefusedError(f"a name of {len(value):,} bytes")
    return str(value, "utf-8")


def _unknown(message: str, number: int) -> GraphRefusedError:
    what = _NAMES.get((message, number), f"field {number} in a {message}: no ONNX file, or a damaged one")
    return GraphRefusedError(what)
