"""A pre-trained encoder with LoRA and a classification head, over transformers + peft."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from newsdesk.config import LoraSection, ModelSection
from newsdesk.errors import UserError
from newsdesk.files import (
    LARGEST_JSON,
    damaged,
    leads_out,
    parsed_json,
    read_regular,
    write_bytes,
    write_json,
)
from newsdesk.model.adapter_config import AdapterConfig
from newsdesk.model.architectures import adapted_layers, head_modules, target_modules
from newsdesk.model.base_files import (
    first_fact,
    load_model,
    quiet_transformers,
    require_plain_config,
    require_whole_encoder,
    tensor_shapes,
    unusable_base,
)
from newsdesk.model.tokenizer_file import TOKENIZER, is_panic, open_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

# These initialisations move a part of the frozen weights into the adapter; what is saved must undo that.
_MUTATING_INITS = ("pissa", "pissa_niter_16", "olora")
# What different architectures call the dropout inside their encoder.
_ENCODER_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "embedding_dropout",
    "mlp_dropout",
)


def build_classifier(
    base: Path, label_names: Sequence[str], model: ModelSection, lora: LoraSection
) -> PeftModel:
    """Load a base model's weights and put fresh adapters and a fresh head on it, in float32.

    Draws from torch's global random state. Raises UserError when transformers cannot make a sequence
    classifier of the base, or when ``lora.targets`` does not fit it.
    """
    return _add_adapters(_pretrained(base, label_names, dropout=model.dropout), model, lora)


def outline_classifier(
    config: dict[str, Any], label_count: int, model: ModelSection, lora: LoraSection
) -> PeftModel:
    """The same model from its configuration alone, on the meta device: shapes and counts, no weights.

    Raises UserError when transformers knows no such encoder, or ``lora.targets`` does not fit it.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    require_plain_config(config, "the configuration")
    model_type = str(config["model_type"])
    # A base may carry the classes it was trained on before; ours are others.
    own = ("model_type", "num_labels", "id2label", "label2id")
    settings = {key: value for key, value in config.items() if key not in own}
    try:
        resolved = AutoConfig.for_model(model_type, **settings, num_labels=label_count)
        with torch.device("meta"), quiet_transformers():
            classifier = AutoModelForSequenceClassification.from_config(resolved)
    except Exception as error:  # whatever transformers makes of settings that it was never given
        raise unusable_base(f"a model of type {model_type}", error) from error
    # PiSSA and similar factor the weights; on the meta device there are none, and shapes are the same.
    plain = lora.model_copy(update={"init": "default"})
    with torch.device("meta"):
        return _add_adapters(classifier, model, plain)


def load_classifier(
    base: Path, adapter: Path, label_names: Sequence[str], *, train: ModelSection | None = None
) -> PeftModel:
    """A base model with a trained adapter folder in PEFT's layout on it, in float32 and evaluation mode.

    ``train`` is what a recipe says of one that is to be trained further. Raises UserError when the adapter
    was made for another model or another number of labels, or is a pickle.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    require_adapter_files(adapter)
    settings = AdapterConfig.read(adapter).for_peft()
    require_head_of(tensor_shapes(adapter / ADAPTER_FILES[1], fix=_FIX_ADAPTER), adapter, len(label_names))
    classifier = _pretrained(base, label_names, dropout=None if train is None else train.dropout)
    with quiet_transformers():
        try:
            loaded = PeftModel.from_pretrained(
                classifier, str(adapter), config=settings, is_trainable=train is not None
            )
            _require_same_tensors(loaded, adapter / ADAPTER_FILES[1])
        except KeyError as error:  # peft looks every tensor of modules_to_save up without asking
            raise UserError(
                f"the adapter {adapter} does not fit {base.name}: it lacks a part that modules_to_save names",
                found=f"no tensor {error.args[0]}",
                fix="name the base it was trained on with --base, or save it again with save_pretrained",
            ) from error
        except (RuntimeError, ValueError, TypeError, SafetensorError) as error:
            raise UserError(
                f"the adapter {adapter} does not fit {base.name} with {len(label_names)} labels",
                found=first_fact(error),
                fix="name the base it was trained on with --base, and all its labels with --labels",
            ) from error
    adapted = (parameter for name, parameter in loaded.named_parameters() if "lora_" in name)
    if not all(parameter.isfinite().all() for parameter in adapted):
        raise damaged(adapter / ADAPTER_FILES[1], "numbers that are not finite", fix=_FIX_ADAPTER)
    return loaded.eval()


PEFT_PREFIX = "base_model.model."
OUTPUT_LAYERS = ("classifier.out_proj", "classifier", "score")
"""The layer that gives the logits, under the names that transformers' sequence classifiers give it."""
_FIX_ADAPTER = "copy it again from its source"


def head_rows(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The classes of an adapter's head, from its tensors' shapes; None where the head is not among them."""
    rows = (shapes.get(f"{PEFT_PREFIX}{layer}.weight", ()) for layer in OUTPUT_LAYERS)
    return next((shape[0] for shape in rows if len(shape) == 2), None)


def require_head_of(shapes: Mapping[str, tuple[int, ...]], adapter: Path, labels: int) -> None:
    """Raise UserError where the head has other classes than there are labels: before any is allocated."""
    rows = head_rows(shapes)
    if rows is not None and rows != labels:
        raise UserError(
            f"the adapter {adapter} does not fit {labels:,} labels",
            found=f"a head of {rows:,} classes",
            fix="name all its labels with --labels, or copy the run again from an undamaged copy",
        )


def load_merged(folder: Path, label_count: int) -> PreTrainedModel:
    """A merged export's model in float32 and evaluation mode.

    Raises UserError where its files do not fit each other, or so many labels.
    """
    from transformers import AutoModelForSequenceClassification

    def require_labels(config: Any, _outline: PreTrainedModel) -> None:
        if config.num_labels != label_count:
            raise ValueError(f"config.json has {config.num_labels:,} labels, labels.json {label_count:,}")

    try:
        model, missing = load_model(folder, AutoModelForSequenceClassification, require_labels)
        if missing:
            raise ValueError(f"no tensor {min(missing)}")
    except UserError:
        raise
    except Exception as error:  # whatever transformers makes of settings that it was never given
        raise damaged(folder, first_fact(error), fix="export it again with newsdesk export") from error
    return model.eval()  # type: ignore[no-any-return]


def require_adapter_files(adapter: Path) -> None:
    """Raise UserError unless ``adapter`` holds PEFT's two files, with the weights as safetensors."""
    missing = [name for name in ADAPTER_FILES if not (adapter / name).is_file()]
    elsewhere = [name for name in ADAPTER_FILES if leads_out(adapter / name, adapter)]
    if elsewhere and not missing:
        raise UserError(
            f"{adapter} holds a link to a place outside of it",
            found=f"{elsewhere[0]} -> {(adapter / elsewhere[0]).readlink()}",
            fix="put the file itself in its place",
        )
    if not missing:
        return
    if (adapter / "adapter_model.bin").is_file():
        raise UserError(
            f"the weights in {adapter} are a pickle, which newsdesk never loads",
            found="adapter_model.bin",
            fix="where you trust it, load it with peft and save_pretrained(..., safe_serialization=True)",
        )
    raise UserError(
        f"{adapter} is not a PEFT adapter folder",
        found=f"missing: {', '.join(missing)}",
        fix="give the folder that holds adapter_config.json and adapter_model.safetensors",
    )


class AdapterStore:
    """Writes a model's adapter and head as PEFT's two files, such that they load onto the untouched base."""

    def __init__(self, model: PeftModel, base_reference: str) -> None:
        """Remember the fresh model's state where its initialisation changed frozen weights.

        Args:
            model: as :func:`build_classifier` returned it, before the first training step.
            base_reference: what ``adapter_config.json`` names as base: a Hub id, or a local path.
        """
        self._model = model
        config: Any = model.peft_config["default"]
        config.base_model_name_or_path = base_reference
        self._initial: dict[str, torch.Tensor] = {}
        if config.init_lora_weights in _MUTATING_INITS:
            self._initial = {
                name: tensor.detach().cpu().clone()
                for name, tensor in _adapter_state(model).items()
                if "lora_A" in name or "lora_B" in name
            }

    def save(self, folder: Path) -> None:
        """Write (or atomically replace) the two adapter files in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".adapter-", dir=folder.parent) as temporary:
            self._model.save_pretrained(temporary, save_embedding_layers=False)
            config_path, weights_path = (Path(temporary) / name for name in ADAPTER_FILES)
            config = json.loads(config_path.read_text(encoding="utf-8"))
            # peft writes this set in an order that differs from process to process.
            if not isinstance(config["target_modules"], str):  # an expression, of an imported adapter
                config["target_modules"] = sorted(config["target_modules"])
            if self._initial:
                _subtract_initial(weights_path, config, self._initial)
            write_json(config_path, config)
            for name in ADAPTER_FILES:
                # Renaming would keep safetensors' file mode, which shuts out everyone but its owner.
                write_bytes(folder / name, (Path(temporary) / name).read_bytes())


def trainable_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """Copies of all trained tensors by parameter name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def restore_state(model: PeftModel, state: dict[str, torch.Tensor]) -> None:
    """Write tensors from :func:`trainable_state` back in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in state:
                parameter.copy_(state[name])


def _pretrained(base: Path, label_names: Sequence[str], *, dropout: float | None) -> PreTrainedModel:
    """A sequence classifier with the base's encoder and a fresh head, in float32.

    ``dropout`` replaces what the base uses inside its encoder; the head keeps its own.
    """
    from transformers import AutoModelForSequenceClassification

    labels = dict(enumerate(label_names))
    ids = {name: label for label, name in labels.items()}
    head_dropouts: dict[str, float] = {}

    def set_dropouts(config: Any, outline: PreTrainedModel) -> None:
        if dropout is not None:
            head_dropouts.update(_head_dropouts(outline))
            for name in filter(partial(hasattr, config), _ENCODER_DROPOUTS):
                setattr(config, name, dropout)

    settings = {"num_labels": len(labels), "id2label": labels, "label2id": ids}
    try:
        classifier, missing = load_model(base, AutoModelForSequenceClassification, set_dropouts, **settings)
    except UserError:
        raise
    except Exception as error:  # whatever transformers makes of settings that it was never given
        raise unusable_base(base, error) from error
    require_whole_encoder(base, missing, prefix=f"{classifier.base_model_prefix}.")
    for name, probability in head_dropouts.items():
        classifier.get_submodule(name).p = probability
    return classifier  # type: ignore[no-any-return]


def _head_dropouts(outline: PreTrainedModel) -> dict[str, float]:
    """The head's dropout modules by name; many heads fall back to the encoder's settings for them."""
    return {
        name: module.p
        for name, module in outline.named_modules()
        if isinstance(module, torch.nn.Dropout) and not name.startswith(outline.base_model_prefix + ".")
    }


def _adapter_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """Adapter and head tensors under the names that adapter_model.safetensors has for them."""
    from peft import get_peft_model_state_dict

    state: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state


def _subtract_initial(weights: Path, config: dict[str, Any], initial: Mapping[str, torch.Tensor]) -> None:
    """Make a saved adapter relative to the untouched base, in its file and in ``config``.

    W - A0 B0 + A B, which training computed, is W + [A; A0] [B, -B0]: an adapter of twice the rank
    (Meng et al., 2024, appendix C). The scaling alpha/rank, or alpha/sqrt(rank), stays as it is.
    """
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    for name, first in initial.items():
        is_down = "lora_A" in name
        tensors[name] = torch.cat([tensors[name], first if is_down else -first], dim=0 if is_down else 1)
    save_file(tensors, weights, metadata={"format": "pt"})
    config["r"] *= 2
    config["lora_alpha"] *= math.sqrt(2) if config["use_rslora"] else 2
    config["init_lora_weights"] = True


def _require_same_tensors(loaded: PeftModel, weights: Path) -> None:
    """Raise ValueError unless the file has every tensor of the loaded model and no adapter beyond it.

    Peft itself leaves what is missing untrained and drops what fits nowhere.
    """
    from safetensors import safe_open

    expected = set(_adapter_state(loaded))
    with safe_open(weights, framework="pt") as file:
        found = set(file.keys())
    if missing := sorted(expected - found):
        raise ValueError(f"it lacks {len(missing)} tensors of the model, the first {missing[0]}")
    if beyond := sorted(name for name in found - expected if "lora_" in name):
        raise ValueError(f"it has {len(beyond)} tensors that the model has no place for, first {beyond[0]}")


def _add_adapters(classifier: PreTrainedModel, model: ModelSection, lora: LoraSection) -> PeftModel:
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides by rank: a float is as good
        lora_dropout=lora.dropout,
        target_modules=target_modules(classifier, lora.targets),
        layers_to_transform=adapted_layers(classifier.config, lora.layers),
        modules_to_save=head_modules(classifier, train_pooler=model.train_pooler),
        bias=lora.bias,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        init_lora_weights=True if lora.init == "default" else lora.init,  # type: ignore[arg-type]
    )
    with quiet_transformers():
        try:
            adapted = get_peft_model(classifier, config)
        except ValueError as error:  # such as targets that the layers of lora.layers do not have
            raise _no_such_targets(lora, first_fact(error)) from None
    without = [name for name in lora.targets if any(part.isdigit() for part in name.split("."))]
    if lora.layers != "all" and without:
        raise _no_such_targets(lora, f"{without[0]} names a layer of its own")
    return adapted


def _no_such_targets(lora: LoraSection, found: str) -> UserError:
    return UserError(
        "lora.targets and lora.layers do not go together",
        found=f"targets {', '.join(lora.targets)}, layers {lora.layers}: {found:.200}",
        fix="name targets that every layer has, such as query-value, or use --set lora.layers=all",
    )


def copy_tokenizer(base: Path, target: Path) -> None:
    """Write the base's tokenizer to ``target`` in the form that transformers and tokenizers both read.

    Raises UserError when the base has none, or none that has a fast (``tokenizer.json``) form.
    """
    from transformers import AutoTokenizer

    try:
        with tempfile.TemporaryDirectory(prefix="newsdesk-tokenizer-") as plain, quiet_transformers():
            _copy_plain(base, Path(plain))
            tokenizer = AutoTokenizer.from_pretrained(plain, trust_remote_code=False)
        # Where no file holds a vocabulary, transformers makes up one of special tokens alone.
        names = dict.fromkeys(tokenizer.vocab_files_names.values())
        if not any((base / name).is_file() for name in names):
            raise FileNotFoundError(f"none of {', '.join(names)} is there")
    except BaseException as error:  # transformers raises many kinds for a missing or odd tokenizer
        if isinstance(error, UserError) or not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise UserError(
            f"{base} has no tokenizer that transformers can load",
            found=first_fact(error),
            fix="put its tokenizer.json and tokenizer_config.json into that folder",
        ) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tokenizer-", dir=target.parent) as temporary:
        tokenizer.save_pretrained(temporary)
        if not (Path(temporary) / "tokenizer.json").is_file():
            raise UserError(
                f"the tokenizer of {base} has no fast form (tokenizer.json)",
                fix="choose a base whose tokenizer the tokenizers library knows",
            )
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(temporary, target)


_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
_LARGEST_SETTINGS = 4 << 20  # bytes
_TOKENIZER_FILES = (
    *(*_SETTINGS, TOKENIZER),
    *("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model"),
    *("spm.model", "spiece.model", "sentencepiece.bpe.model"),
)
_NAMES_A_FILE = re.compile(r".*_files?|auto_map|name_or_path")


def _copy_plain(base: Path, target: Path) -> None:
    """Copy the files that make a tokenizer, without the settings that name code, or files elsewhere.

    Raises UserError for a tokenizer.json that newsdesk does not support, OSError for what is no plain file.
    """
    if (base / TOKENIZER).exists():
        open_tokenizer(base)
    for name in _TOKENIZER_FILES:
        if not (base / name).exists():
            continue
        content = read_regular(base / name, _LARGEST_SETTINGS if name in _SETTINGS else LARGEST_JSON)
        if name in ("tokenizer_config.json", "config.json"):
            settings = parsed_json(content)
            if not isinstance(settings, dict):
                raise ValueError(f"no object in {name}")
            plain = {key: value for key, value in settings.items() if not _NAMES_A_FILE.fullmatch(key)}
            content = json.dumps(plain).encode()
        (target / name).write_bytes(content)
