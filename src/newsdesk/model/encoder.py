"""A frozen encoder with LoRA, as fast as the matrix products in it: BERT, RoBERTa and MPNet families.

    peft model  --fuse-->  FusedClassifier      the same parameters, the same logits, less work

What is left out of the work that transformers + peft do, and why it may be:

- Query, key and value are one matrix product; each adapter adds to its own columns of the result.
- Every one of these classifiers reads only the first token, so the last layer computes only that:
  keys and values of all tokens, everything else of one.
- The embeddings and all layers below the first adapter build no graph, frozen weights get no gradient.
- Dropout draws 16 random bits an element, not a double (see fused_ops).
- A batch without padding carries no mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from newsdesk.model.fused_ops import AdaptedLinear, Span, attention, dropout, dropout_add, padding_bias

if TYPE_CHECKING:
    from peft import PeftModel

FAMILIES = {
    "BertForSequenceClassification": "bert",
    "CamembertForSequenceClassification": "roberta",
    "MPNetForSequenceClassification": "mpnet",
    "RobertaForSequenceClassification": "roberta",
    "XLMRobertaForSequenceClassification": "roberta",
}


class Projection(nn.Module):
    """Linear layers of one input as one: (tokens, in) -> (tokens, sum of outs), frozen but for their adapters.

    The layers' own weights become views of the fused matrix, so it is held once.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, linears: Sequence[nn.Module]) -> None:
        super().__init__()
        bases = [getattr(linear, "base_layer", linear) for linear in linears]
        self.register_buffer("weight", _one_storage([base.weight for base in bases]), persistent=False)
        self.register_buffer("bias", _one_storage([base.bias for base in bases]), persistent=False)
        self.factors = nn.ParameterList()
        self.dropout = 0.0
        spans, start = [], 0
        for linear, base in zip(linears, bases, strict=True):
            stop = start + base.out_features
            if linear is not base:
                (name,) = linear.lora_A
                self.factors += [linear.lora_A[name].weight, linear.lora_B[name].weight]
                self.dropout = getattr(linear.lora_dropout[name], "p", 0.0)
                spans.append(Span(start, stop, linear.scaling[name]))
            start = stop
        self.spans = tuple(spans)

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, in) -> (tokens, out)."""
        probability = self.dropout if self.training else 0.0
        y: Tensor = AdaptedLinear.apply(x, self.weight, self.bias, self.spans, probability, *self.factors)
        return y


def _one_storage(parts: list[nn.Parameter]) -> Tensor:
    """Lay frozen parameters end to end along dimension 0 and make each a view of its stretch."""
    if len(parts) == 1:
        return parts[0].detach()
    whole = torch.cat([part.detach() for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    return whole


class Layer(nn.Module):
    """One transformer layer with LayerNorm after each half (Vaswani et al., 2017): (batch * length, hidden)."""

    def __init__(self, layer: Any, heads: int) -> None:
        super().__init__()
        query, key, value, output = _attention_linears(layer)
        self._project(query, key, value)
        half = layer.attention if hasattr(layer.attention, "attn") else layer.attention.output
        self.attention_output = Projection([output])
        self.attention_norm = half.LayerNorm
        self.intermediate = Projection([layer.intermediate.dense])
        self.activation = layer.intermediate.intermediate_act_fn
        self.output = Projection([layer.output.dense])
        self.output_norm = layer.output.LayerNorm
        self.heads = heads
        self.hidden_dropout = float(layer.output.dropout.p)
        self.attention_dropout = float(_self_attention(layer).dropout.p)

    def _project(self, query: nn.Module, key: nn.Module, value: nn.Module) -> None:
        self.query_key_value = Projection([query, key, value])

    def forward(self, x: Tensor, batch: int, bias: Tensor | None) -> Tensor:
        """(batch * length, hidden) -> the same; bias broadcasts onto (batch, heads, length, length)."""
        q, k, v = self.query_key_value(x).view(batch, -1, 3, self.heads, x.shape[1] // self.heads).unbind(2)
        return self._after_attention(x, q, k, v, bias)

    def _after_attention(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        hidden_dropout = self.hidden_dropout if self.training else 0.0
        context = attention(q, k, v, bias, self.attention_dropout if self.training else 0.0)
        x = self.attention_norm(dropout_add(self.attention_output(context), x, hidden_dropout))
        inner = self.activation(self.intermediate(x))
        x = self.output_norm(dropout_add(self.output(inner), x, hidden_dropout))
        return x


class LastLayer(Layer):
    """The last layer, where only the first token is read: (batch * length, hidden) -> (batch, hidden)."""

    def _project(self, query: nn.Module, key: nn.Module, value: nn.Module) -> None:
        self.query = Projection([query])
        self.key_value = Projection([key, value])

    def forward(self, x: Tensor, batch: int, bias: Tensor | None) -> Tensor:
        """Keys and values of every token; query, and all that follows, of the first."""
        first = x.view(batch, -1, x.shape[1])[:, 0]
        head_size = x.shape[1] // self.heads
        q = self.query(first).view(batch, 1, self.heads, head_size)
        k, v = self.key_value(x).view(batch, -1, 2, self.heads, head_size).unbind(2)
        return self._after_attention(first, q, k, v, bias if bias is None else bias[:, :, :1])


class FusedClassifier(nn.Module):
    """The peft model's function and its trainable parameters, computed faster; made by `fuse`.

    train() and eval() switch every dropout. An optimiser may take its parameters or the peft
    model's: they are the same objects. The head is the model's own modules, in float32.
    """

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        classifier: Any = model.get_base_model()
        backbone = getattr(classifier, classifier.base_model_prefix)
        heads = classifier.config.num_attention_heads
        *lower, last = backbone.encoder.layer
        self.embeddings = backbone.embeddings
        self.layers = nn.ModuleList([*(Layer(layer, heads) for layer in lower), LastLayer(last, heads)])
        self.head = nn.Sequential(*_head(classifier))
        self.relative_bias = getattr(backbone.encoder, "compute_position_bias", None)
        self.train(model.training)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Token ids (batch, length) int64 and mask (batch, length) of 1 and 0 -> logits (batch, classes) float32.

        None as the mask says that nothing is padded. On a CPU a mask of ones is found out and
        dropped; on a GPU looking would wait for the device, so there the caller says it.
        """
        batch = len(input_ids)
        x = self._embed(input_ids)
        bias = self._attention_bias(input_ids, attention_mask, x.dtype)
        for layer in self.layers:
            x = layer(x, batch, bias)
        logits: Tensor = self.head(x.float().unsqueeze(1))
        return logits

    def _embed(self, input_ids: Tensor) -> Tensor:
        """(batch, length) -> (batch * length, hidden), without a graph."""
        tables, length = self.embeddings, input_ids.shape[1]
        if hasattr(tables, "padding_idx"):  # RoBERTa and MPNet number the real tokens from padding_idx + 1
            real = input_ids.ne(tables.padding_idx).int()
            positions = (real.cumsum(1).int() * real).long() + tables.padding_idx
        else:
            positions = torch.arange(length, device=input_ids.device)
        x = F.embedding(input_ids, tables.word_embeddings.weight)
        if hasattr(tables, "token_type_embeddings"):
            x += tables.token_type_embeddings.weight[0]
        x += F.embedding(positions, tables.position_embeddings.weight)
        x = tables.LayerNorm(x)
        return dropout(x, float(tables.dropout.p) if self.training else 0.0).flatten(0, 1)

    def _attention_bias(self, input_ids: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """What is added to the attention scores: MPNet's relative positions, the mask of padding, both or None."""
        bias = None
        if self.relative_bias is not None:
            bias = self.relative_bias(input_ids[:1])  # the batch's rows share it, and it is frozen
        if mask is None or (mask.device.type == "cpu" and bool(mask.all())):
            return bias
        padding = padding_bias(mask, dtype)
        return padding if bias is None else bias + padding


def fuse(model: PeftModel, *, compute_dtype: torch.dtype = torch.float32) -> FusedClassifier:
    """Return the fast form of a LoRA classifier; both share every trainable parameter and every frozen weight.

    Training the result trains the peft model, which saves as before. Its frozen encoder weights are
    converted to compute_dtype in place and those of query, key and value become views of one matrix,
    so memory is not doubled: move the model to its device before. In float32 the peft model computes what it
    did; in bfloat16 run it under torch.autocast, and merge adapters into freshly loaded weights, not
    these rounded ones. Adapters and head stay as they are (float32).

    Raises ValueError where `reason_not_fusable` has a reason.
    """
    reason = reason_not_fusable(model)
    if reason is not None:
        raise ValueError(f"cannot be fused: {reason}")
    classifier: Any = model.get_base_model()
    backbone = getattr(classifier, classifier.base_model_prefix)
    for part in (backbone.embeddings, backbone.encoder):
        for parameter in part.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(compute_dtype)
    return FusedClassifier(model)


def reason_not_fusable(model: nn.Module) -> str | None:
    """Why `fuse` cannot take the model, as a sentence's end for the log, or None where it can.

    A model with a reason trains through transformers + peft unchanged.
    """
    if not hasattr(model, "peft_config") or not hasattr(model, "get_base_model"):
        return "it is not a peft model"
    classifier: Any = model.get_base_model()
    if type(classifier).__name__ not in FAMILIES:
        return f"{type(classifier).__name__} is none of {', '.join(FAMILIES)}"
    if len(model.peft_config) != 1:
        return f"it carries {len(model.peft_config)} adapters, not one"
    (adapter,) = model.peft_config.values()
    if adapter.peft_type != "LORA":
        return f"its adapter is {adapter.peft_type}, not LoRA"
    config = classifier.config
    if getattr(config, "position_embedding_type", "absolute") not in ("absolute", None):
        return f"its positions are {config.position_embedding_type}, not absolute"
    if getattr(config, "is_decoder", False):
        return "it is a decoder"
    return _reason_in_linears(classifier) or _reason_in_the_rest(classifier)


def _reason_in_linears(classifier: Any) -> str | None:
    from peft.tuners.lora import Linear

    names = {id(module): name for name, module in classifier.named_modules()}
    for linear in _encoder_linears(classifier):
        name, base = names[id(linear)], getattr(linear, "base_layer", linear)
        if type(base) is not nn.Linear:  # a quantised layer may be a subclass
            return f"{name} is a {type(base).__name__}, not a plain linear layer"
        if linear is base:
            continue
        if type(linear) is not Linear:
            return f"{name} carries a {type(linear).__name__}, not plain LoRA"
        if linear.lora_variant:
            variants = {type(variant).__name__ for variant in linear.lora_variant.values()}
            return f"{name} uses {', '.join(sorted(variants))}, not plain LoRA"
        if any(linear.lora_bias.values()):
            return f"{name}'s adapter has a bias"
        if linear.merged or linear.disable_adapters:
            return f"{name}'s adapter is merged or disabled"
    return None


def _reason_in_the_rest(classifier: Any) -> str | None:
    """Outside the encoder's linear layers and the head, nothing may be wrapped or trained."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    linears = list(_encoder_linears(classifier))
    known = {id(module) for part in (*_head(classifier), *linears) for module in part.modules()}
    for name, module in classifier.named_modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) and id(module) not in known:
            return f"{name} is adapted, which only linear layers and the head can be"
    free = {id(parameter) for part in _head(classifier) for parameter in part.parameters()}
    for linear in linears:
        if hasattr(linear, "lora_A"):
            free |= {id(p) for factors in (linear.lora_A, linear.lora_B) for p in factors.parameters()}
    for name, parameter in classifier.named_parameters():
        if parameter.requires_grad and id(parameter) not in free:
            return f"it trains {name}, which the fused encoder keeps frozen"
    return None


def _self_attention(layer: Any) -> Any:
    """The module with the query, key and value of a layer: MPNet calls it attn, the others self."""
    return getattr(layer.attention, "attn", None) or layer.attention.self


def _attention_linears(layer: Any) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """Query, key, value and output projection of a layer."""
    inner = _self_attention(layer)
    if hasattr(inner, "o"):
        return inner.q, inner.k, inner.v, inner.o
    return inner.query, inner.key, inner.value, layer.attention.output.dense


def _encoder_linears(classifier: Any) -> Iterator[nn.Module]:
    """Every linear layer, adapted or not, that a Projection replaces."""
    for layer in getattr(classifier, classifier.base_model_prefix).encoder.layer:
        yield from _attention_linears(layer)
        yield from (layer.intermediate.dense, layer.output.dense)


def _head(classifier: Any) -> list[nn.Module]:
    """The modules from the last hidden states (batch, >= 1, hidden) to the logits; each reads position 0 only."""
    if classifier.base_model_prefix == "bert":
        return [classifier.bert.pooler, classifier.dropout, classifier.classifier]
    return [classifier.classifier]
