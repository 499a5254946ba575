"""A trained classifier with more classes: its adapter and head as they are, and new rows in the head."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from newsdesk.config import ModelSection
from newsdesk.errors import UserError
from newsdesk.files import damaged, read_regular
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
    base: Path, adapter: Path, label_names: Sequence[str], model: ModelSection, *, known: int
) -> PeftModel:
    """A base model with a trained adapter folder on it, to be trained further as a recipe's ``model`` says.

    Its head gets a row of zeros for each class beyond the first ``known``. Raises UserError as
    `load_classifier` does.
    """
    require_adapter_files(adapter)
    shapes = tensor_shapes(adapter / ADAPTER_FILES[1], fix=_FIX)
    require_head_of(shapes, adapter, known)
    for layer in OUTPUT_LAYERS:
        bias = shapes.get(name := f"{PEFT_PREFIX}{layer}.bias", (known,))
        if bias != (known,):
            raise damaged(adapter / ADAPTER_FILES[1], f"{name} is {bias}, not {(known,)}", fix=_FIX)
    with tempfile.TemporaryDirectory(prefix="newsdesk-growing-") as grown:
        for name in ADAPTER_FILES:
            (Path(grown) / name).write_bytes(read_regular(adapter / name, _LARGEST))
        rewrite_head(Path(grown), lambda rows: _padded(rows, len(label_names) - known))
        return load_classifier(base, Path(grown), label_names, train=model)


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


_MOST_ROWS = 1024
"""Rows of known classes, and of each new one, that its row of the head is fitted on."""
_RIDGE, _STEPS = 3e-4, 200


def begin_new_classes(
    network: Network, sequences: Sequence[TokenIds], truth: NDArray[Any], *, known: int, share: float
) -> None:
    """Give the head a row for each class beyond the first ``known``, in place: the likeliest beside them.

    A logistic regression on what the head reads of texts, in which the known rows of the head stay as they
    are, with a normal prior on the weights; each new class counts as ``share`` of the rows, at least. So
    training begins near the answer. From rows of zeros it would have to push the known classes away first;
    rows that point to the class's mean (Qi et al., 2018) take texts from the known ones: features of an
    encoder that never had to tell a class from others often lie between theirs.

    Args:
        network: with a head that has rows of zeros for these classes.
        sequences: token ids of the training rows.
        truth: their class ids, (rows,), or truth values (rows, labels).
        known: how many classes the head was trained on.
        share: the larger, the more texts of the new classes are found, and the more known ones are lost.
    """
    layer = output_layer(network.model)
    classes = len(layer.weight)
    if classes == known:
        return
    having = truth if truth.ndim == 2 else truth[:, None] == np.arange(classes)
    groups = [np.flatnonzero(having[:, label]) for label in range(known, classes)]
    groups.append(np.flatnonzero(~having[:, known:].any(axis=1)))
    rows = np.unique(np.concatenate([_some(group) for group in groups]))
    inputs = torch.from_numpy(head_inputs(network, [sequences[row] for row in rows])).double()
    targets = torch.from_numpy(having[rows]).double()
    weight, bias = (parameter.detach().cpu().double() for parameter in (layer.weight, layer.bias))
    logits = inputs @ weight[:known].T + bias[:known]
    found = _likeliest(inputs, logits, targets, share, one_each=truth.ndim == 1)
    with torch.no_grad():
        layer.weight[known:] = found[:, :-1].to(layer.weight)
        layer.bias[known:] = found[:, -1].to(layer.bias)


def _likeliest(inputs: Tensor, logits: Tensor, targets: Tensor, share: float, *, one_each: bool) -> Tensor:
    """Weights and, last, the bias of each new class, (new, features + 1), beside known ``logits``.

    ``targets`` are 1 for the classes that a row has, (rows, classes), of which it has ``one_each`` or any.
    Each new class counts as ``share`` of the rows, at least.
    """
    known = logits.shape[1]
    shares = targets[:, known:].mean(dim=0)
    more = (share / shares.clamp_min(1e-9)).clamp(1.0, len(targets)) - 1
    counts = 1 + (targets[:, known:] * more).amax(dim=1)  # how many rows each counts as
    row = torch.zeros(targets.shape[1] - known, inputs.shape[1] + 1, dtype=inputs.dtype, requires_grad=True)
    search = torch.optim.LBFGS([row], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        given = inputs @ row[:, :-1].T + row[:, -1]
        if one_each:
            each = F.cross_entropy(torch.cat([logits, given], dim=1), targets, reduction="none")
        else:
            each = F.binary_cross_entropy_with_logits(given, targets[:, known:], reduction="none").sum(dim=1)
        value = (each * counts).sum() / counts.sum() + _RIDGE * row[:, :-1].square().sum()
        value.backward()
        return value

    search.step(loss)
    return row.detach()


def _some(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most `_MOST_ROWS` of the rows, the same ones each time."""
    return np.random.default_rng(0).permutation(rows)[:_MOST_ROWS]
