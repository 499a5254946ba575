"""Which modules of an encoder the adapters go on, per architecture, and which make up its head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from newsdesk.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel


TargetSet = Literal["query-value", "attention", "all-linear"]
TARGET_SETS: tuple[TargetSet, ...] = ("query-value", "attention", "all-linear")


def feature_layer(layers: int) -> int:
    """Behind how many of an encoder's layers the features are taken; 0 stands for the embeddings."""
    return 2 * layers // 3


@dataclass(frozen=True)
class Projections:
    """Suffixes of the names of an architecture's linear layers, as PEFT's ``target_modules`` wants them."""

    query_value: tuple[str, ...]
    attention: tuple[str, ...]
    feed_forward: tuple[str, ...]

    def select(self, targets: TargetSet) -> tuple[str, ...]:
        """The suffixes that a named set of targets stands for."""
        if targets == "query-value":
            return self.query_value
        return self.attention if targets == "attention" else self.attention + self.feed_forward


_BERT = Projections(
    ("query", "value"),
    ("query", "key", "value", "attention.output.dense"),
    ("intermediate.dense", "output.dense"),
)
_PROJECTIONS = {
    **dict.fromkeys(
        (
            "bert",
            "roberta",
            "xlm-roberta",
            "xlm-roberta-xl",
            "camembert",
            "electra",
            "ernie",
            "data2vec-text",
        ),
        _BERT,
    ),
    "albert": Projections(
        ("query", "value"), ("query", "key", "value", "attention.dense"), ("ffn", "ffn_output")
    ),
    "deberta": Projections(
        ("in_proj",), ("in_proj", "attention.output.dense"), ("intermediate.dense", "output.dense")
    ),
    "deberta-v2": Projections(
        ("query_proj", "value_proj"),
        ("query_proj", "key_proj", "value_proj", "attention.output.dense"),
        ("intermediate.dense", "output.dense"),
    ),
    "distilbert": Projections(("q_lin", "v_lin"), ("q_lin", "k_lin", "v_lin", "out_lin"), ("lin1", "lin2")),
    # ModernBERT projects query, key and value in one matrix: an adapter on it covers all three.
    "modernbert": Projections(("Wqkv",), ("Wqkv", "attn.Wo"), ("mlp.Wi", "mlp.Wo")),
    "mpnet": Projections(("q", "v"), ("q", "k", "v", "o"), ("intermediate.dense", "output.dense")),
}


def target_modules(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """Resolve a recipe's targets to module-name suffixes of this model.

    Args:
        model: a sequence classifier; only module names and types are looked at.
        targets: one of TARGET_SETS, or names of modules.

    Raises:
        UserError: when the architecture is not known by name and ``targets`` names a set, or when a name
            matches no linear layer; it lists the linear layers there are.
    """
    model_type = model.config.model_type
    if len(targets) == 1 and targets[0] in TARGET_SETS:
        if model_type not in _PROJECTIONS:
            raise UserError(
                f"newsdesk does not know which layers of a {model_type} encoder are {targets[0]!r}",
                found=f"its linear layers are called {', '.join(_linear_suffixes(model))}",
                fix='name them, for example --set lora.targets=\'["query", "value"]\'',
            )
        return list(_PROJECTIONS[model_type].select(targets[0]))
    linear = _linear_names(model)
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in linear):
            raise UserError(
                f"lora.targets names {target!r}, which is no linear layer of this {model_type} encoder",
                found=f"its linear layers are called {', '.join(_linear_suffixes(model))}",
                fix=f"name one of these, or one of the sets {', '.join(TARGET_SETS)}, in lora.targets",
            )
    return list(targets)


def head_modules(model: PreTrainedModel, *, train_pooler: bool) -> list[str]:
    """Names of the modules trained in full and stored whole beside the adapter (PEFT's ``modules_to_save``).

    These are all modules outside the encoder that have weights. BERT's classifier reads the encoder's own
    pooler, which pre-training on sentences never trained; left frozen it costs points (docs/architecture.md
    has the measurement), so it is trained too unless ``train_pooler`` is False.
    """
    head = [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    ]
    if train_pooler and getattr(model.base_model, "pooler", None) is not None:
        head.append("pooler")
    return head


def _linear_names(model: nn.Module) -> list[str]:
    from torch import nn

    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _linear_suffixes(model: nn.Module) -> list[str]:
    """Distinct last parts of linear layers' names, in order of appearance."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name in _linear_names(model)))


_FINEST = 8


def bucket_length(length: int, longest: int) -> int:
    """The width, in tokens, that rows of ``length`` tokens are padded to; never more than ``longest``.

    Multiples of 8 up to 64 tokens (a batch of 16 rows then fills whole tiles of 128 in every matrix
    product), of 16 up to 128, of 32 up to 256 and so on: four widths an octave, 20 in all up to 512, and
    beyond 32 tokens at most a quarter more than ``length``. ``longest`` is the number of positions that the
    encoder has. Raises ValueError when ``length`` exceeds it or is not positive.
    """
    if not 0 < length <= longest:
        raise ValueError(f"{length} tokens do not fit the encoder's {longest} positions")
    octave = (length - 1).bit_length()  # 2 ** octave is the smallest power of two not below length
    step = max(_FINEST, (1 << octave) // _FINEST)
    return min(-(-length // step) * step, longest)


@dataclass(frozen=True)
class ParameterGroup:
    """A row of the parameter table: one part of the model and how many of its numbers are trained."""

    name: str
    trainable: int
    total: int


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
