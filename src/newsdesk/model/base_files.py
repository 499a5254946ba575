"""A stranger's model: its config.json and its index of weights, checked before transformers loads it.

What would import code, ask for a kernel or a quantisation, allocate without measure, or open another file
than a *.safetensors inside the folder, is refused by its name.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
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
    padding, tokens = config.get("pad_token_id"), config.get("vocab_size") or _LARGEST["vocab_size"]
    if padding is not None and not (type(padding) is int and 0 <= padding < tokens):
        raise _refused(where, f"pad_token_id = {padding!r:.80}, not one of {tokens:,} tokens")


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
    inner = outline.base_model  # itself, where there is no head around it
    wanted = {name: tuple(parameter.shape) for name, parameter in inner.named_parameters()}
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


def load_model(
    folder: Path,
    kind: Any,
    prepare: Callable[[Any, PreTrainedModel], None] = lambda _config, _outline: None,
    **settings: Any,
) -> tuple[Any, Collection[str]]:
    """A model in float32 from a stranger's folder, checked first, and the tensors that the folder lacks.

    Args:
        folder: of the model, as save_pretrained wrote it.
        kind: one of transformers' classes that choose a model by its configuration.
        prepare: given the configuration, which it may change, and the model of it without weights.
        settings: of the configuration, in place of the folder's.

    Raises UserError for what is not a plain base model, and whatever transformers raises.
    """
    import torch
    from transformers import AutoConfig

    shapes = require_plain_base(folder)
    with quiet_transformers():
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, **settings)
        with torch.device("meta"):
            outline = kind.from_config(copy.deepcopy(config))
        require_outlined(folder, shapes, outline)
        prepare(config, outline)
        model, loading = kind.from_pretrained(
            str(folder),
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    return model, loading["missing_keys"]


def load_encoder(base: Path) -> PreTrainedModel:
    """A base model's encoder without a head, in float32 and evaluation mode.

    Raises UserError where transformers cannot make one of the folder.
    """
    from transformers import AutoModel

    try:
        encoder, missing = load_model(base, AutoModel)
    except UserError:
        raise
    except Exception as error:  # whatever transformers makes of settings that it was never given
        raise unusable_base(base, error) from error
    require_whole_encoder(base, missing)
    return encoder.eval()  # type: ignore[no-any-return]


def require_whole_encoder(base: Path, missing: Iterable[str], *, prefix: str = "") -> None:
    """Raise UserError where transformers would start a part of the encoder from random numbers.

    Its tensors' names begin with ``prefix``. The pooler may be missing: encoders pre-trained on masked tokens
    alone have none.
    """
    of_encoder = [name for name in missing if name.startswith(prefix)]
    lost = sorted(name for name in of_encoder if not name.startswith(f"{prefix}pooler."))
    if lost:
        raise UserError(
            f"the weights in {base} are not a whole encoder",
            found=f"{len(lost)} tensors of its config.json's architecture are missing, the first {lost[0]}",
            fix="give --base the folder as save_pretrained wrote it",
        )


def unusable_base(base: object, error: Exception) -> UserError:
    """The error for what transformers makes no text classifier of, in its words."""
    return UserError(
        f"transformers cannot make a text classifier of {base}",
        found=first_fact(error),
        fix="give --base an encoder that AutoModelForSequenceClassification knows, with safetensors weights",
    )


def first_fact(error: BaseException) -> str:
    """The first line of a message that says something; torch heads its lists of faults with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' notices of a fresh head and its progress bars: newsdesk shows its own."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
