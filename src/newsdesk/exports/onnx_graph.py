"""A BERT-like classifier as an ONNX graph, built operator by operator.

    tensors of a merged model  --build_graph-->  onnx.ModelProto

A traced graph has hundreds of small operators. This one is shorter and loads faster, its fused operators are
ONNX Runtime's own (domain com.microsoft), and it leaves out what a tracer cannot know to be unused: these
classifiers read the first token alone, so the last layer computes only that. Query, key and value are one
product. Numpy and onnx alone, no torch; the tensors have the names that transformers gives them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.model.architectures import (
    ARCHITECTURES,
    BERT_LIKE,
    feature_layer,
    reason_not_bert_like,
)
from newsdesk.runs.exported import FEATURES, LOGITS, STATES

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

Array = NDArray[Any]
Declared = tuple[str, list[int | str]]
"""The type of an input or output, and its axes, by name where they are free."""

TOKEN_INPUTS: Mapping[str, Declared] = {
    name: ("int64", ["batch", "sequence"]) for name in ("input_ids", "attention_mask")
}
FUSED = "com.microsoft"
OPSET = 17
IR_VERSION = 8  # of the same age as the opset, so that runtimes of 2022 and later read it
_KINDS = {"float32": 1, "int8": 3, "int64": 7, "float16": 10}  # onnx.TensorProto.DataType
_LOWEST = float(np.finfo(np.float32).min)
_TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
_RELATIVE_BIAS = "encoder.relative_attention_bias.weight"
_MPNET_FARTHEST = 128  # tokens; farther ones share a bucket (transformers fixes it, too)


_ACTIVATIONS = {"gelu": "BiasGelu", "gelu_new": "FastGelu", "gelu_pytorch_tanh": "FastGelu"}


def reason_not_buildable(config: Mapping[str, Any]) -> str | None:
    """Why `build_graph` cannot build this configuration, as half a sentence, or None where it can."""
    reason = reason_not_bert_like(config)
    if reason is None and config.get("hidden_act") not in _ACTIVATIONS:
        reason = f"its activation is {config.get('hidden_act')}"
    return reason


def build_graph(config: Mapping[str, Any], tensors: Mapping[str, Array]) -> ModelProto:
    """The classifier as an ONNX model in float32.

    Inputs ``input_ids`` and ``attention_mask``, int64 (batch, sequence), both dynamic. Outputs, float32:
    ``logits`` (batch, classes), and ``features`` (batch, hidden), the tokens' states after `feature_layer`,
    averaged.

    Args:
        config: the content of the model's config.json.
        tensors: every weight by its name in model.safetensors.

    Raises:
        ValueError: where `reason_not_buildable` has a reason, or when a weight would be left out.
    """
    reason = reason_not_buildable(config)
    if reason is not None:
        raise ValueError(f"cannot be built: {reason}")
    writer = GraphWriter(config, tensors)
    writer.classifier()
    require_all_read(tensors, writer.read)
    outputs: dict[str, Declared] = {  # who asks for no name takes the first
        LOGITS: ("float32", ["batch", int(config["num_labels"])]),
        FEATURES: ("float32", ["batch", int(config["hidden_size"])]),
    }
    return writer.graph.model("classifier", TOKEN_INPUTS, outputs)


def require_all_read(tensors: Iterable[str], read: Collection[str]) -> None:
    """Raise ValueError where a weight was not read, except buffers that only count."""
    counting = ("position_ids", "token_type_ids")
    if left := sorted(name for name in tensors if name not in read and not name.endswith(counting)):
        raise ValueError(f"{len(left)} weights have no place in the graph, the first {left[0]}")


@dataclass
class Graph:
    """Nodes and constants of a graph in the making; every method returns the name of the tensor it made."""

    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def constant(self, name: str, values: Array | list[int] | int) -> str:
        """Store values under a name: arrays as they are, Python integers as int64."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add(self, operator: str, name: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output, called as the node is; the domain "" is ONNX's own."""
        from onnx import helper

        output = name if name in (LOGITS, FEATURES, STATES) else f"{name}:out"
        self.nodes.append(
            helper.make_node(operator, inputs, [output], name=name, domain=domain, **attributes)
        )
        return output

    def split(self, name: str, source: str, parts: int) -> list[str]:
        """Cut the last axis into equal parts."""
        from onnx import helper

        outputs = [f"{name}.{part}" for part in range(parts)]
        self.nodes.append(helper.make_node("Split", [source], outputs, name=name, axis=-1))
        return outputs

    def cut(self, name: str, source: str, sizes: list[int]) -> list[str]:
        """Cut the last axis into parts of these sizes."""
        from onnx import helper

        outputs = [f"{name}.{part}" for part in range(len(sizes))]
        given = [source, self.constant(f"{name}.sizes", sizes)]
        self.nodes.append(helper.make_node("Split", given, outputs, name=name, axis=-1))
        return outputs

    def model(self, name: str, inputs: Mapping[str, Declared], outputs: Mapping[str, Declared]) -> ModelProto:
        """The model, with inputs, outputs and opsets declared."""
        from onnx import helper

        declared = [
            [helper.make_tensor_value_info(port, _KINDS[kind], axes) for port, (kind, axes) in ports.items()]
            for ports in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, name, declared[0], declared[1], self.constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED, 1)]
        return helper.make_model(graph, producer_name="newsdesk", ir_version=IR_VERSION, opset_imports=opsets)


class GraphWriter:
    """Builds a classifier, or a part of one.

    Attributes:
        graph: what was built so far.
        read: names of the tensors that are in it.
        layers: of the encoder, how many there are.
        feature_layer: after how many of them the features are taken.
    """

    shape_source = "input_ids"  # an input of the shape (batch, sequence)

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Array]) -> None:
        self.graph = Graph()
        self.read: set[str] = set()
        self.layers = int(config["num_hidden_layers"])
        self.feature_layer = feature_layer(self.layers)
        self._config, self._tensors = config, tensors
        self._layout = BERT_LIKE[config["model_type"]]
        self._heads = int(config["num_attention_heads"])
        self._epsilon = float(config["layer_norm_eps"])

    def classifier(self) -> None:
        """From token ids to logits."""
        graph, mask = self.graph, self._mask()
        x = self._through(self._embeddings(), mask, range(self.layers))
        x = graph.add("Squeeze", "first_token", x, graph.constant("token_axis", [1]))
        x = graph.add("Tanh", "pooled", self._gemm("pooler", x, self._layout.pooler))
        self._gemm(LOGITS, x, self._layout.output)

    def _mask(self) -> str:
        return self.graph.add("Cast", "padding_mask", "attention_mask", to=6)  # int32, as attention wants it

    def _through(self, x: str, mask: str, numbers: range) -> str:
        """States (batch, sequence, hidden) through layers; the last leaves only the first token's."""
        bias = self._relative_bias() if self._has(_RELATIVE_BIAS) else ""
        for number in numbers:
            if number == self.feature_layer:
                self._mean_over_tokens(x)
            x = self._layer(x, mask, bias, number, only_first=number == self.layers - 1)
        return x

    def _mean_over_tokens(self, x: str) -> None:
        """The second output: (batch, sequence, hidden) -> ``features`` (batch, hidden), padding left out."""
        graph = self.graph
        mask = graph.add("Cast", "features.mask", "attention_mask", to=1)  # float32
        row = graph.add("Unsqueeze", "features.row", mask, graph.constant("features.row_axis", [1]))
        total = graph.add("MatMul", "features.sum", row, x)
        total = graph.add("Squeeze", "features.total", total, "features.row_axis")
        tokens = graph.add("ReduceSum", "features.tokens", mask, "features.row_axis", keepdims=1)
        graph.add("Div", FEATURES, total, tokens)

    def _tensor(self, name: str) -> Array:
        self.read.add(name)
        return np.asarray(self._tensors[name], dtype=np.float32)

    def _has(self, name: str) -> bool:
        return f"{self._layout.prefix}.{name}" in self._tensors

    def _encoder_shape(self, name: str) -> tuple[int, ...]:
        return np.shape(self._tensors[f"{self._layout.prefix}.{name}"])

    def _encoder_tensor(self, name: str) -> Array:
        return self._tensor(f"{self._layout.prefix}.{name}")

    def _embeddings(self) -> str:
        """(batch, sequence) -> (batch, sequence, hidden)."""
        graph, tables = self.graph, "embeddings"
        words = graph.constant(f"{tables}.words", self._encoder_tensor("embeddings.word_embeddings.weight"))
        table = self._encoder_tensor("embeddings.position_embeddings.weight")
        if self._has(_TOKEN_TYPES):
            table = table + self._encoder_tensor(_TOKEN_TYPES)[0]
        positions = graph.constant(f"{tables}.positions", table)
        return graph.add(
            "SkipLayerNormalization",
            f"{tables}.norm",
            graph.add("Gather", f"{tables}.word", words, "input_ids"),
            self._position_rows(positions),
            *self._norm(f"{tables}.norm", "embeddings.LayerNorm"),
            epsilon=self._epsilon,
            domain=FUSED,
        )

    def _position_rows(self, table: str) -> str:
        """Rows of the position table: (sequence, hidden), or (batch, sequence, hidden) by the family."""
        graph = self.graph
        if not ARCHITECTURES[self._config["model_type"]].counts_from_padding:
            zero, one = graph.constant("zero", [0]), graph.constant("one", [1])
            length = graph.add("Shape", "sequence", "input_ids", start=1, end=2)
            return graph.add("Slice", "embeddings.position", table, zero, length, zero, one)
        padding = graph.constant("padding_id", int(self._config["pad_token_id"]))
        is_padding = graph.add("Equal", "is_padding", "input_ids", padding)
        real = graph.add("Cast", "real", graph.add("Not", "is_real", is_padding), to=7)
        running = graph.add("CumSum", "running", real, graph.constant("sequence_axis", 1))
        positions = graph.add("Add", "positions", graph.add("Mul", "running_of_real", running, real), padding)
        return graph.add("Gather", "embeddings.position", table, positions)

    def _relative_bias(self) -> str:
        """MPNet's bias by distance, added to every layer's scores: (1, heads, sequence, sequence)."""
        graph, farthest = self.graph, int(self._config["max_position_embeddings"]) - 1
        buckets = self._encoder_tensor(_RELATIVE_BIAS)  # (buckets, heads)
        distances = np.arange(-farthest, farthest + 1)
        by_distance = buckets[relative_buckets(distances, len(buckets))].T[None]
        start, step = graph.constant("range_start", 0), graph.constant("range_step", 1)
        length = graph.add("Shape", "bias.sequence", self.shape_source, start=1, end=2)
        length = graph.add("Squeeze", "bias.length", length, graph.constant("first_axis", [0]))
        place = graph.add("Range", "bias.place", start, length, step)
        rows = graph.add("Unsqueeze", "bias.rows", place, graph.constant("last_axis", [1]))
        distance = graph.add("Sub", "bias.distance", place, rows)
        index = graph.add("Add", "bias.index", distance, graph.constant("bias.farthest", farthest))
        return graph.add("Gather", "bias", graph.constant("bias.by_distance", by_distance), index, axis=2)

    def _layer(self, x: str, mask: str, bias: str, number: int, *, only_first: bool) -> str:
        """(batch, sequence, hidden) -> the same, or (batch, 1, hidden) where only the first token is read."""
        graph, layout, name = self.graph, self._layout, f"layer.{number}"
        source = f"encoder.layer.{number}."
        parts = [source + part for part in (layout.query, layout.key, layout.value)]
        if only_first:
            first = [graph.constant(f"first.{end}", [value]) for end, value in (("start", 0), ("stop", 1))]
            axis = graph.constant("first.axis", [1])
            keys_values = self._matmul(f"{name}.key_value", x, *parts[1:])
            sources = [x, x]
            x = graph.add("Slice", f"{name}.first", x, *first, axis)
            query = self._matmul(f"{name}.query", x, parts[0])
            qkv, sources = [query, *graph.split(f"{name}.split", keys_values, 2)], [x, *sources]
            if bias:
                of_rows = graph.constant("first.bias_axis", [2])
                bias = graph.add("Slice", "first.bias", bias, *first, of_rows)
        else:
            qkv = graph.split(f"{name}.split", self._matmul(f"{name}.query_key_value", x, *parts), 3)
            sources = [x] * 3
        qkv = [self._adapted(*each) for each in zip(qkv, sources, parts, strict=True)]
        offsets = graph.constant(f"{name}.qkv.bias", np.concatenate([self._bias(part) for part in parts]))
        attributes = {"num_heads": self._heads, "mask_filter_value": _LOWEST}
        inputs = [*qkv, offsets, mask, *([bias] if bias else [])]
        context = graph.add("MultiHeadAttention", f"{name}.attention", *inputs, **attributes, domain=FUSED)
        x = self._add_and_norm(
            f"{name}.attention_output",
            context,
            x,
            source + layout.attention_output,
            source + layout.attention_norm,
        )
        inner = self._activated(f"{name}.intermediate", x, source + "intermediate.dense")
        return self._add_and_norm(
            f"{name}.output", inner, x, source + "output.dense", source + "output.LayerNorm"
        )

    def _add_and_norm(self, name: str, x: str, residual: str, dense: str, norm: str) -> str:
        product = self._adapted(self._matmul(name, x, dense), x, dense)
        return self.graph.add(
            "SkipLayerNormalization",
            f"{name}.norm",
            product,
            residual,
            *self._norm(f"{name}.norm", norm),
            self.graph.constant(f"{name}.bias", self._bias(dense)),
            epsilon=self._epsilon,
            domain=FUSED,
        )

    def _activated(self, name: str, x: str, dense: str) -> str:
        offsets = self.graph.constant(f"{name}.bias", self._bias(dense))
        operator = _ACTIVATIONS[self._config["hidden_act"]]
        product = self._adapted(self._matmul(name, x, dense), x, dense)
        return self.graph.add(operator, f"{name}.activation", product, offsets, domain=FUSED)

    def _adapted(self, product: str, _x: str, _linear: str) -> str:
        """The product of ``x`` and a linear layer, to which a graph with adapters adds theirs."""
        return product

    def _matmul(self, name: str, x: str, *linears: str) -> str:
        """Linear layers of one input as one product without bias, which the next operator adds."""
        weights = np.concatenate([self._encoder_tensor(f"{linear}.weight") for linear in linears])
        return self.graph.add("MatMul", name, x, self.graph.constant(f"{name}.weight", weights.T))

    def _gemm(self, name: str, x: str, linear: str) -> str:
        weight = self.graph.constant(f"{name}.weight", self._tensor(f"{linear}.weight").T)
        bias = self.graph.constant(f"{name}.bias", self._tensor(f"{linear}.bias"))
        return self.graph.add("Gemm", name, x, weight, bias)

    def _norm(self, name: str, norm: str) -> tuple[str, str]:
        return (
            self.graph.constant(f"{name}.weight", self._encoder_tensor(f"{norm}.weight")),
            self.graph.constant(f"{name}.shift", self._encoder_tensor(f"{norm}.bias")),
        )

    def _bias(self, linear: str) -> Array:
        return self._encoder_tensor(f"{linear}.bias")


def relative_buckets(distances: NDArray[np.integer], buckets: int) -> NDArray[np.int64]:
    """The bucket of each signed distance in tokens; far ones share theirs (T5: Raffel et al., 2020).

    Half of the ``buckets`` are for keys after the query (distance > 0). Computed in float32, as torch does,
    since the edges of the logarithmic buckets depend on the last bit.
    """
    half = buckets // 2
    near = half // 2
    away = np.abs(distances)
    with np.errstate(divide="ignore"):
        octaves = np.log(away.astype(np.float32) / near) / np.float32(np.log(_MPNET_FARTHEST / near))
    far = near + np.where(away < near, 0, octaves * (half - near)).astype(np.int64)
    return np.where(distances > 0, half, 0) + np.where(away < near, away, np.minimum(far, half - 1))
