"""A stranger's base model: its config.json and its index of weights, checked before transformers reads them.

What would import code, ask for a kernel or a quantisation, allocate without measure, or open another file
than a *.safetensors inside the folder, is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from newsdesk.errors import UserError
from newsdesk.files import read_json

CONFIG = "config.json"
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


def require_plain_base(folder: Path) -> None:
    """Raise UserError unless the configuration is plain and all weights are *.safetensors in the folder."""
    require_plain_config(read_json(folder / CONFIG, fix=_FIX), folder)
    index = folder / SHARDED_WEIGHTS
    if not index.is_file():
        return
    shards = read_json(index, fix=_FIX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise _refused(folder, f"{SHARDED_WEIGHTS} without a weight_map")
    for name in shards.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name) or not (folder / name).is_file():
            raise _refused(folder, f"{SHARDED_WEIGHTS} names {name!r:.80}")


def _refused(where: object, found: str) -> UserError:
    return UserError(f"{where} is not a base model that newsdesk loads", found=found, fix=_FIX)
