"""What newsdesk knows of each architecture: the layers that adapters go on, its positions, its head.

One table, ``ARCHITECTURES``. To add an architecture, add its line; with a ``Layout`` the fused encoder and
the ONNX graph compute it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from newsdesk.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

TargetSet = Literal["query-value", "attention", "all-linear"]
TARGET_SETS: tuple[TargetSet, ...] = ("query-value", "attention", "all-linear")


@dataclass(frozen=True)
class Layout:
    """Names of the parts of a classifier that is built like BERT.

    Attributes:
        prefix: the encoder within the classifier.
        query, key, value, attention_output, attention_norm: modules within ``encoder.layer.N``. Those of the
            feed-forward half are intermediate.dense, output.dense and output.LayerNorm in all of them.
        head: the modules that the first token's last state passes, in order.
        pooler, output: the linear layers among them.
    """

    prefix: str
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_output: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    head: tuple[str, ...] = ("classifier",)
    pooler: str = "classifier.dense"
    output: str = "classifier.out_proj"


@dataclass(frozen=True)
class Architecture:
    """An architecture as transformers' ``model_type`` names it.

    Attributes:
        query_value, attention, feed_forward: suffixes of the names of its linear layers, as PEFT's
            ``target_modules`` has them.
        counts_from_padding: whether positions count from one after the padding token's id, padding left out.
        layout: where its parts are, if it is built like BERT; None: transformers and peft compute it.
    """

    query_value: tuple[str, ...] = ("query", "value")
    attention: tuple[str, ...] = ("query", "key", "value", "attention.output.dense")
    feed_forward: tuple[str, ...] = ("intermediate.dense", "output.dense")
    counts_from_padding: bool = False
    layout: Layout | None = None

    def targets(self, name: TargetSet) -> tuple[str, ...]:
        """The suffixes of a named set of targets."""
        if name == "query-value":
            return self.query_value
        return self.attention if name == "attention" else self.attention + self.feed_forward


_BERT = Layout(
    "bert", head=("bert.pooler", "dropout", "classifier"), pooler="bert.pooler.dense", output="classifier"
)
_MPNET = Layout(
    "mpnet",
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    attention_output="attention.attn.o",
    attention_norm="attention.LayerNorm",
)
_ROBERTA = Architecture(counts_from_padding=True, layout=Layout("roberta"))

ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": Architecture(layout=_BERT),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "mpnet": Architecture(("q", "v"), ("q", "k", "v", "o"), counts_from_padding=True, layout=_MPNET),
    "xlm-roberta-xl": Architecture(counts_from_padding=True),
    "data2vec-text": Architecture(counts_from_padding=True),
    "electra": Architecture(),
    "ernie": Architecture(),
    "albert": Architecture(
        attention=("query", "key", "value", "attention.dense"), feed_forward=("ffn", "ffn_output")
    ),
    "deberta": Architecture(("in_proj",), ("in_proj", "attention.output.dense")),
    "deberta-v2": Architecture(
        ("query_proj", "value_proj"), ("query_proj", "key_proj", "value_proj", "attention.output.dense")
    ),
    "distilbert": Architecture(("q_lin", "v_lin"), ("q_lin", "k_lin", "v_lin", "out_lin"), ("lin1", "lin2")),
    # ModernBERT projects query, key and value in one matrix: an adapter on it covers all three.
    "modernbert": Architecture(("Wqkv",), ("Wqkv", "attn.Wo"), ("mlp.Wi", "mlp.Wo")),
}
BERT_LIKE: Mapping[str, Layout] = {
    name: known.layout for name, known in ARCHITECTURES.items() if known.layout is not None
}
"""What the fused encoder and the ONNX graph compute."""


def reason_not_bert_like(config: Mapping[str, Any]) -> str | None:
    """Why fused encoder and ONNX graph cannot compute a configuration, as half a sentence; None if they can.

    ``config`` is the content of a config.json.
    """
    positions = config.get("position_embedding_type") or "absolute"
    obstacles = {
        f"{config['model_type']} is not one of {', '.join(BERT_LIKE)}": config["model_type"] not in BERT_LIKE,
        f"its positions are {positions}, not absolute": positions != "absolute",
        "it is a decoder, whose tokens do not see what follows": bool(config.get("is_decoder")),
    }
    return next((reason for reason, found in obstacles.items() if found), None)


def longest_text(config: Any) -> int | None:
    """Most tokens of a text that an encoder of this transformers config has positions for; None: no limit."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    known = ARCHITECTURES.get(config.model_type)
    if positions is not None and known is not None and known.counts_from_padding:
        return positions - (config.pad_token_id or 0) - 1  # the first ones are never used
    return positions


def vocabulary_of(config: Any) -> int | None:
    """How many tokens an encoder of this transformers config has embeddings for; None: it does not say."""
    size: int | None = getattr(config, "vocab_size", None)
    return size


def require_length(config: Any, max_length: int) -> None:
    """Raise UserError when the encoder has fewer positions than ``max_length`` tokens need."""
    longest = longest_text(config)
    if longest is not None and max_length > longest:
        raise UserError(
            f"the base model reads at most {longest} tokens",
            found=f"model.max_length = {max_length}",
            fix=f"use --set model.max_length={longest} or less",
        )


def feature_layer(layers: int) -> int:
    """After how many of an encoder's layers the features are taken; 0 means the embeddings."""
    return 2 * layers // 3


def target_modules(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """Resolve a recipe's targets to module-name suffixes of this model.

    Args:
        model: a sequence classifier; only module names and types are looked at.
        targets: one of TARGET_SETS, or names of modules.

    Raises:
        UserError: when the architecture is not known by name and ``targets`` names a set, or when a name
            matches no linear layer; it lists the linear layers there are.
    """
    from torch import nn

    model_type = model.config.model_type
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    # The last parts of their names, each once, in order of appearance.
    found = f"its linear layers are called {', '.join(dict.fromkeys(n.rpartition('.')[2] for n in linear))}"
    if len(targets) == 1 and targets[0] in TARGET_SETS:
        if model_type not in ARCHITECTURES:
            raise UserError(
                f"newsdesk does not know which layers of a {model_type} encoder are {targets[0]!r}",
                found=found,
                fix='name them, for example --set lora.targets=\'["query", "value"]\'',
            )
        return list(ARCHITECTURES[model_type].targets(targets[0]))
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in linear):
            raise UserError(
                f"lora.targets names {target!r}, which is no linear layer of this {model_type} encoder",
                found=found,
                fix=f"name one of these, or one of the sets {', '.join(TARGET_SETS)}, in lora.targets",
            )
    return list(targets)


def adapted_layers(config: Any, layers: str) -> list[int] | None:
    """The numbers of the layers that carry adapters, as PEFT's ``layers_to_transform``; None: all of them.

    ``layers`` is "all" or "top-N". Raises UserError where the encoder of this transformers config has fewer,
    or where all its layers are one and the same.
    """
    if layers == "all":
        return None
    there, top = int(config.num_hidden_layers), int(layers.removeprefix("top-"))
    if getattr(config, "num_hidden_groups", None):
        raise UserError(
            f"the layers of a {config.model_type} encoder share their weights",
            found=f"lora.layers = {layers}",
            fix="use --set lora.layers=all",
        )
    if top > there:
        raise UserError(
            f"the base model has {there} layers",
            found=f"lora.layers = {layers}",
            fix="use --set lora.layers=all",
        )
    return list(range(there - top, there))


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
