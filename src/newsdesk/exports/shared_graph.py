"""An encoder in two graphs for many classifiers: what no adapter changes, and the layers that have adapters.

    token ids  --build_trunk-->  states  --build_adapted, with any runs' adapters-->  logits

Both hold the base model's own weights, so that they are the same, byte for byte, for all runs on one base
whose adapters begin at one layer and are on the same linear layers. What is a run's own comes as an input,
one for each row of a batch: y = W x + B (A x).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from newsdesk.exports.onnx_graph import FUSED, TOKEN_INPUTS, Array, Declared, GraphWriter, require_all_read
from newsdesk.model.architectures import BERT_LIKE, Layout
from newsdesk.runs.exported import FEATURES, LOGITS, STATES
from newsdesk.runs.exported_adapter import INPUTS

if TYPE_CHECKING:
    from onnx import ModelProto

FACTORS, POOLER_WEIGHT, POOLER_SCALE, POOLER_BIAS, HEAD_WEIGHT, HEAD_BIAS = INPUTS


def linears_of_layer(layout: Layout) -> tuple[str, ...]:
    """Names within a layer of all linear layers that adapters may be on, in the order of the factors."""
    attention = (layout.query, layout.key, layout.value, layout.attention_output)
    return (*attention, "intermediate.dense", "output.dense")


def adapted_linears(config: Mapping[str, Any], below: int, targets: Collection[str]) -> list[str]:
    """Names in the encoder of linear layers from layer ``below`` on that are ``targets``, in order."""
    layout = BERT_LIKE[config["model_type"]]
    names = [name for name in linears_of_layer(layout) if name in targets]
    numbers = range(below, int(config["num_hidden_layers"]))
    return [f"encoder.layer.{number}.{name}" for number in numbers for name in names]


def build_graphs(
    config: Mapping[str, Any], tensors: Mapping[str, Array], below: int, targets: Collection[str]
) -> tuple[ModelProto, ModelProto]:
    """The graph of the embeddings and the first ``below`` layers, and that of the others.

    The first has the inputs of every graph and gives ``states``, float32 (batch, sequence, hidden). The
    second takes these, the mask, and the inputs that `newsdesk.runs.exported_adapter` describes; it gives
    ``logits`` (batch, classes). Whichever has the layer of the features gives ``features``, too. Where one
    text is asked of several adapters, the states may be of one row, and mask and adapters of several.

    Args:
        config: the content of the model's config.json, which `reason_not_buildable` has no reason against.
        tensors: every weight of the untouched base, by its name in the classifier, without pooler and head.
        below: the first layer that has adapters.
        targets: of `linears_of_layer`, those that have them.

    Raises ValueError when a weight would be left out.
    """
    trunk, above = _TrunkWriter(config, tensors, below), _AdaptedWriter(config, tensors, below, targets)
    models = trunk.model(), above.model()
    require_all_read(tensors, trunk.read | above.read)
    return models


class _TrunkWriter(GraphWriter):
    """Builds what no adapter changes."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Array], below: int) -> None:
        super().__init__(config, tensors)
        self._below, self._hidden = below, int(config["hidden_size"])

    def model(self) -> ModelProto:
        """From token ids to the states that adapted layers begin with."""
        mask = self._mask()
        x = self._through(self._embeddings(), mask, range(self._below))
        if self._below == self.feature_layer:
            self._mean_over_tokens(x)
        self.graph.add("Identity", STATES, x)
        outputs: dict[str, Declared] = {STATES: ("float32", ["batch", "sequence", self._hidden])}
        if self._below >= self.feature_layer:
            outputs[FEATURES] = ("float32", ["batch", self._hidden])
        return self.graph.model("trunk", TOKEN_INPUTS, outputs)


class _AdaptedWriter(_TrunkWriter):
    """Builds the layers that have adapters, pooler and head."""

    shape_source = "attention_mask"

    def __init__(
        self, config: Mapping[str, Any], tensors: Mapping[str, Array], below: int, targets: Collection[str]
    ) -> None:
        super().__init__(config, tensors, below)
        self._linears = adapted_linears(config, below, targets)
        self._first = f"encoder.layer.{below}."
        if below >= self.feature_layer:
            self.feature_layer = -1  # the trunk gives the features

    def model(self) -> ModelProto:
        """From states to logits."""
        mask = self._mask()
        self._cut_factors()
        self._logits(self._through(STATES, mask, range(self._below, self.layers)))
        hidden, features = self._hidden, self.feature_layer >= 0
        axes: dict[str, list[int | str]] = {
            FACTORS: ["rank", self._width],
            POOLER_WEIGHT: [hidden, hidden],
            POOLER_SCALE: [1, hidden],
            POOLER_BIAS: [1, hidden],
            HEAD_WEIGHT: [hidden, "classes"],
            HEAD_BIAS: [1, "classes"],
        }
        inputs: dict[str, Declared] = {
            STATES: ("float32", ["texts", "sequence", hidden]),
            "attention_mask": TOKEN_INPUTS["attention_mask"],
            **{name: (INPUTS[name], ["adapters", *of]) for name, of in axes.items()},
        }
        outputs: dict[str, Declared] = {LOGITS: ("float32", ["batch", "classes"])}
        if features:
            outputs[FEATURES] = ("float32", ["batch", hidden])
        return self.graph.model("adapted_layers", inputs, outputs)

    def _cut_factors(self) -> None:
        """A (batch, rank, in) and B (batch, rank, out) of every adapted layer, still float16."""
        graph = self.graph
        shapes = [self._encoder_shape(f"{linear}.weight") for linear in self._linears]
        sizes = [size for out, inside in shapes for size in (inside, out)]
        self._width = sum(sizes)
        parts = graph.cut("factors.split", FACTORS, sizes)
        self._factors = dict(zip(self._linears, zip(parts[::2], parts[1::2], strict=True), strict=True))
        rows = graph.add("Shape", "rows", "attention_mask", start=0, end=1)
        one = graph.constant("rows.rest", [1, 1])
        self._rows = graph.add("Concat", "rows.shape", rows, one, axis=0)

    def _adapted(self, product: str, x: str, linear: str) -> str:
        """W x + B (A x); where one text is asked of several adapters, a row for each of them."""
        graph, name = self.graph, linear.removeprefix("encoder.")
        if linear in self._factors:
            pair = zip(("A", "B"), self._factors[linear], strict=True)
            down, up = (graph.add("Cast", f"{name}.{factor}", part, to=1) for factor, part in pair)
            inside = graph.add("FusedMatMul", f"{name}.down", x, down, transB=1, domain=FUSED)
            return graph.add("Add", f"{name}.adapted", product, graph.add("MatMul", f"{name}.up", inside, up))
        if linear.startswith(self._first) and linear.removeprefix(self._first) in self._qkv:
            return graph.add("Expand", f"{name}.rows", product, self._rows)
        return product

    @property
    def _qkv(self) -> tuple[str, str, str]:
        return self._layout.query, self._layout.key, self._layout.value

    def _logits(self, x: str) -> None:
        """From the first token's state, (batch, 1, hidden)."""
        graph = self.graph
        for name, weight, scale, bias in (
            ("pooler", POOLER_WEIGHT, POOLER_SCALE, POOLER_BIAS),
            ("head", HEAD_WEIGHT, None, HEAD_BIAS),
        ):
            whole = graph.add("Cast", f"{name}.weight", weight, to=1)
            x = graph.add("MatMul", f"{name}.product", x, whole)
            x = graph.add("Mul", f"{name}.scaled", x, scale) if scale else x
            x = graph.add("Add", f"{name}.sum", x, bias)
            if name == "pooler":
                x = graph.add("Tanh", "pooled", x)
        graph.add("Squeeze", LOGITS, x, graph.constant("token_axis", [1]))
