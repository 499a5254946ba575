"""A merged classifier as an ONNX model: written down where its architecture is known, traced where not."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from newsdesk.errors import UserError
from newsdesk.files import write_bytes
from newsdesk.inference.onnx_graph import FEATURES, LOGITS, OPSET, build_graph, reason_not_buildable

if TYPE_CHECKING:
    from onnx import ModelProto
    from transformers import PreTrainedModel

_LARGEST_FILE = 2**31 - 1  # bytes that a protocol buffer can hold


def to_onnx(model: PreTrainedModel) -> ModelProto:
    """The classifier in float32, with the inputs and outputs that `build_graph` describes.

    Raises UserError when its architecture can be neither written down nor traced.
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
        """The model as a function of what every artefact is given, and of nothing else."""

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
