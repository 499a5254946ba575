"""Make a run of an adapter that someone trained with plain transformers + peft."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import ValidationError

from newsdesk import __version__
from newsdesk.config import LoraSection, Recipe, ResolvedRecipe
from newsdesk.data.columns import TextLayout
from newsdesk.errors import UserError
from newsdesk.files import parsed_json, read_regular, write_bytes
from newsdesk.model.adapter_config import AdapterConfig
from newsdesk.model.architectures import require_length
from newsdesk.model.base_files import tensor_shapes
from newsdesk.model.catalog import BASE_MODELS, ResolvedBase, resolve_base
from newsdesk.model.classifier import (
    ADAPTER_FILES,
    OUTPUT_LAYERS,
    PEFT_PREFIX,
    copy_tokenizer,
    head_rows,
    load_classifier,
    require_adapter_files,
)
from newsdesk.model.tokenizer import TextTokenizer
from newsdesk.progress import Progress
from newsdesk.runs.folder import RunFolder, require_free, staged
from newsdesk.runs.labels import Labels
from newsdesk.runs.manifest import ImportFacts, Manifest, base_facts, installed_versions

TEXT_COLUMN = TextLayout(("text",))

_GENERIC_NAME = re.compile(r"LABEL_\d+")
_NAME_THE_BASE = "name the base it was trained on with --base: a catalogue name, Hub id or folder"


@dataclass(frozen=True)
class SavedAdapter:
    """What an adapter folder says of itself, read without torch and without unpickling.

    Attributes:
        folder: its path.
        config: the content of adapter_config.json.
        shapes: the shape of every tensor in adapter_model.safetensors, by its name there.
    """

    folder: Path
    config: AdapterConfig
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def read(cls, folder: Path) -> SavedAdapter:
        """Read the folder. Raises UserError unless it holds a LoRA of a sequence classifier, whole files."""
        require_adapter_files(folder)
        shapes = tensor_shapes(folder / ADAPTER_FILES[1], fix="copy it again from its source")
        return cls(folder, AdapterConfig.read(folder), shapes)

    @cached_property
    def label_count(self) -> int:
        """Classes of its head. Raises UserError when the head was not saved with it."""
        rows = head_rows(self.shapes)
        if rows is not None:
            return rows
        raise UserError(
            f"{self.folder} holds no classification head: predictions would come from a random one",
            found=f"{len(self.shapes)} tensors, none of them {' or '.join(OUTPUT_LAYERS)}",
            fix='train it with task_type="SEQ_CLS", or with the head in modules_to_save, and save it again',
        )


def import_adapter(
    adapter: Path,
    out: Path,
    *,
    base: str | None = None,
    label_names: Sequence[str] | None = None,
    layout: TextLayout = TEXT_COLUMN,
    max_length: int = 128,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Make a run of an adapter folder in PEFT's layout; its two files are copied byte for byte.

    Whatever is wrong with the adapter, its base or its labels leaves ``out`` as it was.

    Args:
        adapter: folder with adapter_config.json and adapter_model.safetensors; LoRA or a variant of it.
        out: the run folder to write.
        base: name, Hub id or folder of the base model; None: what adapter_config.json names.
        label_names: class names in id order; None: those of the config.json beside the adapter or of the
            base, where they are names; else "0", "1", ...
        layout: how rows of a file become texts.
        max_length: tokens a text is cut to.
        overwrite: replace a run that is already at ``out``.
        progress: called while the base model is fetched.

    Raises:
        UserError: when the folder is no such adapter, lacks its head, or does not fit base and labels.
    """
    require_free(out, overwrite=overwrite)
    saved = SavedAdapter.read(adapter)
    found = _find_base(saved, base, progress)
    names = _names_of_labels(saved, found.path, label_names)
    recipe = _known_recipe(saved, found, layout, max_length)
    _require_nothing_random(saved, found, names, max_length)
    # Trainers save a tokenizer beside the adapter.
    beside = all((adapter / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    manifest = Manifest(
        newsdesk=__version__,
        versions=installed_versions(),
        base=base_facts(found),
        imported=ImportFacts(str(adapter.absolute()), saved.config.peft_version),
    )
    with staged(out) as prepared:
        for name in ADAPTER_FILES:
            write_bytes(prepared.adapter / name, (adapter / name).read_bytes())
        prepared.write_labels(Labels(names, layout, max_length))
        prepared.write_recipe(recipe.to_toml())
        copy_tokenizer(adapter if beside else found.path, prepared.tokenizer)
        TextTokenizer.from_folder(prepared.tokenizer, max_length)
        prepared.seal(manifest)
    return RunFolder(out)


def _find_base(saved: SavedAdapter, base: str | None, progress: Progress | None) -> ResolvedBase:
    """The base model: as named by the user, else by the adapter, whose paths are those of another machine."""
    if base is not None:
        return resolve_base(base, progress=progress)
    reference = saved.config.base_model_name_or_path
    if not reference:
        raise UserError(f"{saved.folder} does not say what its base model is", fix=_NAME_THE_BASE)
    known = Path(reference).is_absolute() or reference in BASE_MODELS
    if not known and (reference.startswith(".") or reference.count("/") > 1 or Path(reference).is_dir()):
        raise UserError(
            f"{saved.folder} names its base model by a relative path, which is not valid here",
            found=f"base_model_name_or_path {reference!r}",
            fix=_NAME_THE_BASE,
        )
    try:
        return resolve_base(reference, progress=progress)
    except UserError as error:
        raise UserError(
            f"the base model that {saved.folder} names is not available: {error.wrong}",
            found=error.found,
            fix=_NAME_THE_BASE,
        ) from error


def _names_of_labels(saved: SavedAdapter, base: Path, given: Sequence[str] | None) -> tuple[str, ...]:
    count = saved.label_count
    if given is None:
        declared = (_declared_names(folder / "config.json") for folder in (saved.folder, base))
        numbers = tuple(str(label) for label in range(count))
        return next((names for names in declared if len(names) == count), numbers)
    if len(given) != count:
        raise UserError(
            f"the head of {saved.folder} has {count} classes, not {len(given)}",
            found=f"--labels {', '.join(given)}",
            fix=f"name its {count} classes in the order of their ids, or leave --labels out",
        )
    twice = [name for name, times in Counter(given).items() if times > 1]
    if twice:
        raise UserError("two classes have the same name", found=f"--labels {', '.join(given)}")
    return tuple(given)


def _declared_names(config_file: Path) -> tuple[str, ...]:
    """The distinct class names of a config.json in id order; none where they are but LABEL_0, LABEL_1, ..."""
    declared = (_json_object(config_file) or {}).get("id2label")
    if not isinstance(declared, dict):
        return ()
    names = tuple(str(declared.get(str(label))) for label in range(len(declared)))
    generic = all(_GENERIC_NAME.fullmatch(name) for name in names)
    complete = set(declared) == {str(label) for label in range(len(names))}
    return names if complete and not generic and len(set(names)) == len(names) else ()


def _known_recipe(
    saved: SavedAdapter, base: ResolvedBase, layout: TextLayout, max_length: int
) -> ResolvedRecipe:
    """The recipe as far as adapter_config.json and the caller know it. Raises UserError for bad values."""
    known: dict[str, dict[str, Any]] = {
        "data": {
            "train": "unknown",
            "text": layout.text_columns,
            "template": layout.template,
            "normaliser": layout.normaliser,
        },
        "model": {
            "base": base.anywhere,
            "max_length": max_length,
            "train_pooler": any(".pooler." in name for name in saved.shapes),
        },
        "lora": _lora_section(saved.config),
    }
    description = f"Imported from {saved.folder}: what is not marked 'imported' says nothing of its training"
    try:
        recipe = Recipe.model_validate({"description": description, **known})
    except ValidationError as error:
        fault = error.errors()[0]
        raise UserError(
            f"{saved.folder} holds settings that newsdesk cannot read",
            found=f"{'.'.join(map(str, fault['loc']))} = {fault['input']!r}: {fault['msg'].lower()}",
            fix="correct its adapter_config.json",
        ) from error
    origins = {f"{section}.{key}": "imported" for section, values in known.items() for key in values}
    return ResolvedRecipe(recipe, origins | {"data.train": "an adapter folder does not tell"})


def _lora_section(config: AdapterConfig) -> dict[str, Any]:
    """PEFT's settings under newsdesk's names; rank and alpha patterns stay in adapter_config.json."""
    targets, initialisation = config.target_modules or (), config.init_lora_weights
    initialisations = get_args(LoraSection.model_fields["init"].annotation)
    return {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "targets": (targets,) if isinstance(targets, str) else tuple(sorted(targets)),
        "bias": config.bias,
        "rslora": config.use_rslora,
        "dora": config.use_dora,
        "init": initialisation if initialisation in initialisations else "default",
    }


def _require_nothing_random(
    saved: SavedAdapter, base: ResolvedBase, names: tuple[str, ...], max_length: int
) -> None:
    """Raise UserError unless the adapter fits the base, and the two together decide every weight.

    What no file decides differs between two loads from different seeds. PEFT's frozen copy of the untrained
    head does, but takes no part in any prediction.
    """
    loads = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            torch.manual_seed(seed)
            loads.append(load_classifier(base.path, saved.folder, names))
    one, other = loads
    try:
        require_length(one.config, max_length)
    except UserError as error:
        raise UserError(error.wrong, found=f"--max-length {max_length}", fix="give a smaller one") from error
    undecided = [
        name.removeprefix(PEFT_PREFIX)
        for (name, left), right in zip(one.named_parameters(), other.parameters(), strict=True)
        if ".original_module." not in name and not torch.equal(left, right)
    ]
    if undecided:
        raise UserError(
            f"neither {base.name} nor {saved.folder} holds all weights: predictions would be random in part",
            found=f"no values for {', '.join(undecided)}",
            fix=f"{_NAME_THE_BASE}; or train it again with these modules in modules_to_save",
        )


def _json_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where there is none."""
    try:
        content = parsed_json(read_regular(path))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
