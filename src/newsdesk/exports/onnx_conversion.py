"""A merged classifier as an ONNX model: built where its architecture is known, traced where not."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from newsdesk.errors import UserError
from newsdesk.exports.onnx_graph import OPSET, build_graph, reason_not_buildable
from newsdesk.files import write_bytes
from newsdesk.runs.exported import FEATURES, LOGITS

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto
    from transformers import PreTrainedModel

_LARGEST_FILE = 2**31 - 1  # bytes that a protocol buffer can hold


def to_onnx(model: PreTrainedModel) -> ModelProto:
    """The classifier in float32, with the inputs and outputs that `build_graph` describes.

    Raises UserError when its architecture can be neither built nor traced.
    """
    config = {**model.config.to_dict(), "num_labels": model.config.num_labels}
    if reason_not_buildable(config) is None:
        return build_graph(config, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    return traced(model)


def traced(model: PreTrainedModel) -> ModelProto:
    """The graph that PyTorch's tracer makes of any architecture: larger, slower, but the same function.

    Raises UserError when the tracer cannot follow the model.
    """
    import onnx
    import torch

    from newsdesk.model.network import logits_and_features

    class TwoInputs(torch.nn.Module):
        """The model as a function of what every exported model is given, and of nothing else."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return logits_and_features(self.model, input_ids, attention_mask)

    example = torch.ones(2, 8, dtype=torch.long)
    names = ["input_ids", "attention_mask"]
    axes = {0: "batch", 1: "sequence"}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        file = Path(folder) / "traced.onnx"
        try:
            torch.onnx.export(
                TwoInputs().eval(),
                (example, example.clone()),
                file,
                input_names=names,
                output_names=[LOGITS, FEATURES],
                dynamic_axes={**dict.fromkeys(names, axes), LOGITS: {0: "batch"}, FEATURES: {0: "batch"}},
                opset_version=OPSET,
                dynamo=False,
            )
        except Exception as error:  # the tracer raises whatever the model's own code does
            raise UserError(
                f"a {model.config.model_type} classifier cannot be converted to onnx",
                found=next(iter(str(error).splitlines()), type(error).__name__),
                fix="export it with --to merged, which any architecture can be",
            ) from error
        return onnx.load(str(file))


def cutting(model: ModelProto, max_length: int, closing_id: int) -> ModelProto:
    """A copy that reads at most ``max_length`` tokens of each row, as the run does, whoever tokenises.

    Of a longer row the first ``max_length - 1`` tokens are kept, and ``closing_id``, the special token that
    ends every text, is put after them. Many clients do not truncate unless asked, and transformers.js cuts
    the closing token off, too.
    """
    from onnx import helper, numpy_helper

    cut = deepcopy(model)
    inputs = {"input_ids": "cut.input_ids", "attention_mask": "cut.attention_mask"}
    for node in cut.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = inputs.get(name, name)
    last = np.zeros((1, max_length), dtype=np.int64)
    last[0, -1] = 1
    values = {"start": [0], "stop": [max_length], "axis": [1], "closing": closing_id, "last": last}
    constants = {name: np.array(value, dtype=np.int64) for name, value in values.items()}
    cut.graph.initializer.extend(
        numpy_helper.from_array(value, f"cut.{name}") for name, value in constants.items()
    )

    def made(operator: str, output: str, *inputs: str, **attributes: Any) -> NodeProto:
        return helper.make_node(operator, inputs, [output], name=output, **attributes)

    span = ("cut.start", "cut.stop", "cut.axis")
    nodes = [
        made("Slice", "cut.ids", "input_ids", *span),
        made("Slice", "cut.attention_mask", "attention_mask", *span),
        made("Shape", "cut.length", "cut.attention_mask", start=1, end=2),
        made("Slice", "cut.at_end", "cut.last", "cut.start", "cut.length", "cut.axis"),
        made("Mul", "cut.full", "cut.attention_mask", "cut.at_end"),  # 1 at the last place that is read
        made("Cast", "cut.is_full", "cut.full", to=9),  # bool
        made("Where", "cut.input_ids", "cut.is_full", "cut.closing", "cut.ids"),
    ]
    kept = list(cut.graph.node)
    del cut.graph.node[:]
    cut.graph.node.extend([*nodes, *kept])
    return cut


def dividing(model: ModelProto, temperature: float) -> ModelProto:
    """A copy whose logits are divided by ``temperature``, in the weights and the bias of the last layer."""
    from onnx import helper, numpy_helper

    divided = deepcopy(model)
    graph = divided.graph
    (head,) = (node for node in graph.node if LOGITS in node.output)
    used = [name for node in graph.node for name in node.input]
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    own = [name for name in head.input[1:] if name in tensors and used.count(name) == 1]
    if head.op_type == "Gemm" and len(own) == len(head.input) - 1:
        for name in own:
            values = numpy_helper.to_array(tensors[name]) / np.float32(temperature)
            tensors[name].CopyFrom(numpy_helper.from_array(values, name))
        return divided
    head.output[list(head.output).index(LOGITS)] = f"{LOGITS}.undivided"
    graph.initializer.append(numpy_helper.from_array(np.array(temperature, np.float32), "temperature"))
    inputs = [f"{LOGITS}.undivided", "temperature"]
    graph.node.append(helper.make_node("Div", inputs, [LOGITS], name="divided_by_temperature"))
    return divided


def write_onnx(model: ModelProto, file: Path) -> None:
    """Write the model, its weights in the same file. Raises UserError when it is too large for one."""
    if (size := model.ByteSize()) > _LARGEST_FILE:
        raise UserError(
            "the model is too large for one onnx file",
            found=f"{size / 1e9:.1f} GB, where 2.1 GB are the most",
            fix="export it with --to merged",
        )
    write_bytes(file, model.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracer's warnings, which are for the authors of models."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
