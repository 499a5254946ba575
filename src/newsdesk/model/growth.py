"""A trained classifier with more classes: its adapter and head as they are, and new rows in the head."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from newsdesk.errors import UserError
from newsdesk.files import read_regular
from newsdesk.model.base_files import tensor_shapes
from newsdesk.model.classifier import (
    ADAPTER_FILES,
    OUTPUT_LAYERS,
    PEFT_PREFIX,
    load_classifier,
    require_adapter_files,
    require_head_of,
)
from newsdesk.model.network import Network, predict_rows
from newsdesk.model.tokenizer import TokenIds

if TYPE_CHECKING:
    from peft import PeftModel

Values = NDArray[np.float32]
_FIX = "copy the run again from an undamaged copy"


def grown_classifier(
    base: Path, adapter: Path, label_names: Sequence[str], *, known: int, dropout: float | None
) -> PeftModel:
    """A base model with a trained adapter folder on it, to be trained further, in float32.

    Its head gets a row of zeros for each class beyond the first ``known``. Raises UserError as
    `load_classifier` does.
    """
    require_adapter_files(adapter)
    shapes = tensor_shapes(adapter / ADAPTER_FILES[1], fix=_FIX)
    require_head_of(shapes, adapter, known)
    with tempfile.TemporaryDirectory(prefix="newsdesk-growing-") as grown:
        for name in ADAPTER_FILES:
            (Path(grown) / name).write_bytes(read_regular(adapter / name, _LARGEST))
        rewrite_head(Path(grown), lambda rows: _padded(rows, len(label_names) - known))
        return load_classifier(base, Path(grown), label_names, dropout=dropout, trainable=True)


_LARGEST = 1 << 34


def _padded(rows: Tensor, more: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(more, *rows.shape[1:])])


def rewrite_head(adapter: Path, change: Any) -> None:
    """Write an adapter's weights again with ``change`` made to what the head has a row of for each class."""
    from safetensors.torch import load_file, save_file

    file = adapter / ADAPTER_FILES[1]
    tensors = load_file(file)
    for layer in OUTPUT_LAYERS:
        if f"{PEFT_PREFIX}{layer}.weight" in tensors:
            for name in (f"{PEFT_PREFIX}{layer}.weight", f"{PEFT_PREFIX}{layer}.bias"):
                if name in tensors:
                    tensors[name] = change(tensors[name]).contiguous()
            break
    save_file(tensors, file, metadata={"format": "pt"})


def output_layer(model: PeftModel) -> nn.Linear:
    """The trained layer that gives the logits. Raises UserError where the adapter trains none."""
    modules = dict(model.named_modules())
    for layer in OUTPUT_LAYERS:
        head, _, inner = layer.partition(".")
        name = ".".join(filter(None, (f"{PEFT_PREFIX}{head}.modules_to_save.default", inner)))
        if isinstance(found := modules.get(name), nn.Linear):
            return found
    raise UserError(
        "the head of this adapter cannot get more classes",
        found="no linear layer among modules_to_save that gives the logits",
        fix="train anew without --from",
    )


def head_inputs(network: Network, sequences: Sequence[TokenIds]) -> Values:
    """What the last layer reads of texts, (texts, features); of a long text the mean over its windows."""
    layer, seen = output_layer(network.model), list[Tensor]()
    handle = layer.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))

    def compute(batch: Sequence[TokenIds]) -> tuple[Tensor, ...]:
        seen.clear()
        logits = network(batch)
        return (seen[-1].reshape(len(logits), -1).float(),)

    try:
        return predict_rows(network, sequences, compute, layer.in_features)
    finally:
        handle.remove()


_MOST_ROWS = 256
"""Rows of known classes, and of each new one, that its row of the head is computed from."""
_NEAREST = 0.05


def begin_new_classes(
    network: Network, sequences: Sequence[TokenIds], truth: NDArray[Any], *, known: int
) -> None:
    """Give the head a row for each class beyond the first ``known``, from the features of rows, in place.

    The row points from the mean of the known classes to that of the new one (its texts' imprint: Qi et al.,
    2018), as long as the known rows are on average. Its bias is such that half-way between texts of the new
    class and those of the others that come closest both are equally likely; where a text may have several
    labels, half-way between the means. Training starts near the answer, and from a head of zeros would have
    to push known classes away first.

    Args:
        network: with a head that has rows of zeros for these classes.
        sequences: token ids of the training rows.
        truth: their class ids, (rows,), or truth values (rows, labels).
        known: how many classes the head was trained on.
    """
    layer = output_layer(network.model)
    having = truth if truth.ndim == 2 else truth[:, None] == np.arange(len(layer.weight))
    of_new = having[:, known:].any(axis=1)
    groups = [np.flatnonzero(having[:, label]) for label in range(known, len(layer.weight))]
    rows = np.unique(np.concatenate([_some(group) for group in (np.flatnonzero(~of_new), *groups)]))
    having, inputs = having[rows], torch.from_numpy(head_inputs(network, [sequences[row] for row in rows]))
    weight, bias = (parameter.detach().cpu() for parameter in (layer.weight, layer.bias))
    logits = inputs @ weight[:known].T + bias[:known]
    means = [inputs[having[:, label]].mean(dim=0) for label in range(known) if having[:, label].any()]
    centre = torch.stack(means).mean(dim=0) if means else torch.zeros_like(inputs[0])
    length = weight[:known].norm(dim=1).mean()
    for label in range(known, len(layer.weight)):
        own = torch.from_numpy(having[:, label])
        if not own.any():
            continue
        direction = inputs[own].mean(dim=0) - centre
        row = length * direction / direction.norm().clamp_min(1e-12)
        projected = inputs @ row
        if truth.ndim == 2:
            sides = [projected[side].mean() for side in (own, ~own) if side.any()]
            start = -torch.stack(sides).mean()
        else:
            lacking = logits.max(dim=1).values - projected  # what the bias has to make up for
            start = lacking[own].median()
            if not own.all():
                start = (start + lacking[~own].quantile(_NEAREST)) / 2
        with torch.no_grad():
            layer.weight[label] = row.to(layer.weight)
            layer.bias[label] = start.to(layer.bias)


def _some(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most `_MOST_ROWS` of the rows, the same ones each time."""
    return np.random.default_rng(0).permutation(rows)[:_MOST_ROWS]
