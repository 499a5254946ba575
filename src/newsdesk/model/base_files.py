"""A stranger's base model: its config.json and its index of weights, checked before transformers reads them.

What would import code, ask for a kernel or a quantisation, allocate without measure, or open another file
than a *.safetensors inside the folder, is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsdesk.errors import UserError
from newsdesk.files import damaged, leads_out, open_tensors, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
SHARDED_WEIGHTS = "model.safetensors.index.json"

_REFUSED = ("auto_map", "quantization_config", "compression_config", "kernel_config", "use_kernels")
_ATTENTION = ("attn_implementation", "_attn_implementation")
_LARGEST = {
    "hidden_size": 1 << 16,
    "num_hidden_layers": 1 << 9,
    "num_attention_heads": 1 << 10,
    "intermediate_size": 1 << 18,
    "vocab_size": 1 << 23,
    "max_position_embeddings": 1 << 20,
    "type_vocab_size": 1 << 10,
    "embedding_size": 1 << 16,
}
"""Sizes that no encoder comes near; all are at least 1."""
_SHARD = re.compile(r"[\w-]+(\.[\w-]+)*\.safetensors")
_FIX = "give --base a folder as save_pretrained wrote it, of a model that needs no code of its own"


def require_plain_config(config: Mapping[str, Any], where: object) -> None:
    """Raise UserError for a configuration that asks for more than a known encoder of a usual size."""
    for name in _REFUSED:
        if config.get(name):
            raise _refused(where, f"{name} = {config[name]!r:.80}")
    for name in _ATTENTION:
        if "/" in str(config.get(name) or ""):
            raise _refused(where, f"{name} = {config[name]!r:.80}")
    if not isinstance(config.get("model_type"), str):
        raise _refused(where, f"model_type = {config.get('model_type')!r:.80}")
    for name, most in _LARGEST.items():
        value = config.get(name)
        whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
        if value is not None and not whole:
            raise _refused(where, f"{name} = {value!r:.80}, not a whole number from 1 to {most:,}")


def tensor_shapes(path: Path, *, fix: str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a file of weights, by its name; nothing but the header is read.

    Raises UserError, with ``fix``, for what is no whole safetensors file of floating-point numbers in its
    folder. Whole numbers pass under names that count positions, which older files of transformers have.
    """
    from safetensors import SafetensorError

    try:
        if leads_out(path, path.parent):
            raise OSError(f"a link to {path.resolve()}, outside of its folder")
        with open_tensors(path) as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            for name, part in parts.items():
                if part.get_dtype() not in _FLOATS and not name.endswith(_COUNTS):
                    raise ValueError(f"{name:.80} holds {part.get_dtype()}, not one of {', '.join(_FLOATS)}")
            return {name: tuple(part.get_shape()) for name, part in parts.items()}
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"no whole safetensors file: {error}", fix=fix) from None


_MOST_MISSING, _TIMES_MISSING = 1 << 24, 4
"""Parameters that may be missing before transformers is asked which: it makes them up first."""
_FLOATS, _COUNTS = ("F64", "F32", "F16", "BF16"), ("_ids", "num_batches_tracked")


def require_plain_base(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a base's tensors by their names.

    Raises UserError unless the configuration is plain and all weights are *.safetensors in the folder.
    """
    require_plain_config(read_json(folder / CONFIG, fix=_FIX), folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for name in _weight_files(folder):
        shapes |= tensor_shapes(folder / name, fix=_FIX)
    return shapes


def require_outlined(folder: Path, shapes: Mapping[str, tuple[int, ...]], outline: PreTrainedModel) -> None:
    """Raise UserError where config.json describes another encoder than the weights are of.

    ``outline`` is the model of that configuration, without weights: so nothing is allocated for it before.
    """
    encoder = f"{outline.base_model_prefix}."
    wanted = {
        name.removeprefix(encoder): tuple(parameter.shape)
        for name, parameter in outline.named_parameters()
        if name.startswith(encoder)
    }
    found = {name.removeprefix(encoder): shape for name, shape in shapes.items()}
    for name, shape in wanted.items():
        if found.get(name, shape) != shape:
            raise _refused(folder, f"{name:.80} is {found[name]} in the weights, {shape} by {CONFIG}")
    most = sum(map(prod, wanted.values()))
    if most > _MOST_MISSING + _TIMES_MISSING * (there := sum(map(prod, shapes.values()))):
        raise _refused(folder, f"an encoder of {most:,} parameters by {CONFIG}, {there:,} in the weights")


def _weight_files(folder: Path) -> Iterable[str]:
    """The names of the files of weights, as transformers chooses them."""
    index = folder / SHARDED_WEIGHTS
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return (WEIGHTS,)
    shards = read_json(index, fix=_FIX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise _refused(folder, f"{SHARDED_WEIGHTS} without a weight_map")
    for name in shards.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name) or not (folder / name).is_file():
            raise _refused(folder, f"{SHARDED_WEIGHTS} names {name!r:.80}")
    return sorted(set(shards.values()))


def _refused(where: object, found: str) -> UserError:
    return UserError(f"{where} is not a base model that newsdesk loads", found=found, fix=_FIX)
