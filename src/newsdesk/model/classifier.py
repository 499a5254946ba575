"""A pre-trained encoder with LoRA and a classification head, over transformers + peft."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from newsdesk.config import LoraSection, ModelSection
from newsdesk.errors import UserError
from newsdesk.model.architectures import head_modules, target_modules

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

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


@dataclass(frozen=True)
class ParameterGroup:
    """A row of the parameter table: one part of the model and how many of its numbers are trained."""

    name: str
    trainable: int
    total: int


def build_classifier(
    base: Path, label_names: Sequence[str], model: ModelSection, lora: LoraSection
) -> PeftModel:
    """Load a base model's weights and put fresh adapters and a fresh head on it, in float32.

    Draws from torch's global random state. Raises UserError when transformers cannot make a sequence
    classifier of the base, or when ``lora.targets`` does not fit it.
    """
    from transformers import AutoModelForSequenceClassification

    config = _read_config(base, label_names, model.dropout)
    with _quiet_transformers():
        try:
            classifier = AutoModelForSequenceClassification.from_pretrained(
                str(base), config=config, dtype=torch.float32, use_safetensors=True
            )
        except (ValueError, OSError) as error:
            raise _unusable_base(base, error) from error
    return _add_adapters(classifier, model, lora)


def outline_classifier(
    config: dict[str, Any], label_count: int, model: ModelSection, lora: LoraSection
) -> PeftModel:
    """The same model from its configuration alone, on the meta device: shapes and counts, no weights."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    settings = {key: value for key, value in config.items() if key != "model_type"}
    resolved = AutoConfig.for_model(config["model_type"], **settings, num_labels=label_count)
    # PiSSA and its kin factor the weights at hand; on the meta device there are none, and shapes are equal.
    plain = lora.model_copy(update={"init": "default"})
    with torch.device("meta"), _quiet_transformers():
        return _add_adapters(AutoModelForSequenceClassification.from_config(resolved), model, plain)


def load_classifier(base: Path, adapter: Path, label_names: Sequence[str]) -> PeftModel:
    """A base model with a trained adapter folder in PEFT's layout on it, in float32 and evaluation mode.

    Raises UserError when the adapter was made for another model, another number of labels, or lies in a
    pickle.
    """
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    require_adapter_files(adapter)
    with _quiet_transformers():
        classifier = AutoModelForSequenceClassification.from_pretrained(
            str(base), config=_read_config(base, label_names, None), dtype=torch.float32, use_safetensors=True
        )
        try:
            loaded = PeftModel.from_pretrained(classifier, str(adapter))
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"the adapter {adapter} does not fit {base.name} with {len(label_names)} labels",
                found=str(error).splitlines()[0],
                mend="name the base it was trained on with --base, and all its labels with --labels",
            ) from error
    return loaded.eval()


def require_adapter_files(adapter: Path) -> None:
    """Raise UserError unless ``adapter`` holds PEFT's two files, with the weights as safetensors."""
    missing = [name for name in ADAPTER_FILES if not (adapter / name).is_file()]
    if not missing:
        return
    if (adapter / "adapter_model.bin").is_file():
        raise UserError(
            f"the weights in {adapter} are a pickle, which newsdesk never loads",
            found="adapter_model.bin",
            mend="where you trust it, load it with peft and save_pretrained(..., safe_serialization=True)",
        )
    raise UserError(
        f"{adapter} is not a PEFT adapter folder",
        found=f"missing: {', '.join(missing)}",
        mend="give the folder that holds adapter_config.json and adapter_model.safetensors",
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
        self._initial: tempfile.TemporaryDirectory[str] | None = None
        if config.init_lora_weights in _MUTATING_INITS:
            self._initial = tempfile.TemporaryDirectory(prefix="newsdesk-initial-")
            model.save_pretrained(self._initial.name, save_embedding_layers=False)

    def save(self, folder: Path) -> None:
        """Write (or atomically replace) the two adapter files in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        config = self._model.peft_config["default"]
        fresh = dict(config.__dict__)
        with tempfile.TemporaryDirectory(prefix=".adapter-", dir=folder.parent) as temporary:
            self._model.save_pretrained(
                temporary,
                save_embedding_layers=False,
                path_initial_model_for_weight_conversion=self._initial.name if self._initial else None,
            )
            # Converting, peft doubles the live configuration's rank and alpha; the next save needs them as is.
            config.__dict__.update(fresh)
            for name in ADAPTER_FILES:
                (Path(temporary) / name).replace(folder / name)


def trainable_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """Copies of all trained tensors by parameter name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def restore_state(model: PeftModel, state: dict[str, torch.Tensor]) -> None:
    """Write tensors from :func:`trainable_state` back in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in state:
                parameter.copy_(state[name])


def parameter_table(model: PeftModel) -> list[ParameterGroup]:
    """Trainable and total parameters by part: encoder, adapters, head, and PEFT's frozen copy of the head.

    The sums are what ``print_trainable_parameters`` of PEFT counts.
    """
    sizes: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            part = "LoRA adapters"
        elif ".modules_to_save." in name:
            part = "classification head"
        elif ".original_module." in name:
            part = "untrained copy of the head"
        else:
            part = "frozen encoder"
        counts = sizes.setdefault(part, [0, 0])
        counts[0] += parameter.numel() if parameter.requires_grad else 0
        counts[1] += parameter.numel()
    return [ParameterGroup(name, *counts) for name, counts in sizes.items()]


def _read_config(base: Path, label_names: Sequence[str], dropout: float | None) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            str(base),
            num_labels=len(label_names),
            id2label=dict(enumerate(label_names)),
            label2id={name: index for index, name in enumerate(label_names)},
        )
    except (ValueError, OSError) as error:
        raise _unusable_base(base, error) from error
    if dropout is not None:
        # The head keeps the dropout it would have had: it falls back to the encoder's only when it has none.
        if getattr(config, "classifier_dropout", 0.0) is None:
            config.classifier_dropout = config.hidden_dropout_prob
        for name in _ENCODER_DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, dropout)
    return config  # type: ignore[no-any-return]


def _add_adapters(classifier: PreTrainedModel, model: ModelSection, lora: LoraSection) -> PeftModel:
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides by rank: a float is as good
        lora_dropout=lora.dropout,
        target_modules=target_modules(classifier, lora.targets),
        modules_to_save=head_modules(classifier, train_pooler=model.train_pooler),
        bias=lora.bias,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        init_lora_weights=True if lora.init == "default" else lora.init,  # type: ignore[arg-type]
    )
    with _quiet_transformers():
        return get_peft_model(classifier, config)


def _unusable_base(base: Path, error: Exception) -> UserError:
    return UserError(
        f"transformers cannot make a text classifier of {base}",
        found=str(error).strip().splitlines()[0],
        mend="give --base an encoder that AutoModelForSequenceClassification knows, with safetensors weights",
    )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without the notices that a fresh head is fresh, and without progress bars: newsdesk shows its own."""
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


def copy_tokenizer(base: Path, target: Path) -> None:
    """Write the base's tokenizer to ``target`` in the form that transformers and tokenizers both read.

    Raises UserError when the base has none that has a fast (``tokenizer.json``) form.
    """
    from transformers import AutoTokenizer

    try:
        with _quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(base))
    except Exception as error:  # transformers raises many kinds for a missing or odd tokenizer
        raise UserError(
            f"{base} has no tokenizer that transformers can load",
            found=str(error).strip().splitlines()[0],
            mend="put its tokenizer.json and tokenizer_config.json into that folder",
        ) from error
    with tempfile.TemporaryDirectory(prefix=".tokenizer-", dir=_existing(target.parent)) as temporary:
        tokenizer.save_pretrained(temporary)
        if not (Path(temporary) / "tokenizer.json").is_file():
            raise UserError(
                f"the tokenizer of {base} has no fast form (tokenizer.json)",
                mend="choose a base whose tokenizer the tokenizers library knows",
            )
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(temporary, target)


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
