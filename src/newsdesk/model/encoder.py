"""A frozen encoder with LoRA, as fast as the matrix products in it: BERT, RoBERTa and MPNet families.

    peft model  --fuse-->  FusedClassifier      the same parameters, the same logits, less work

What is left out of the work that transformers + peft do, and why it may be:

- Query, key and value are one matrix product; each adapter adds to its own columns of the result.
- Every one of these classifiers reads only the first token, so the last layer computes only that:
  keys and values of all tokens, everything else of one.
- The embeddings and all layers below the first adapter build no graph, frozen weights get no gradient.
- Dropout draws 16 random bits an element, and keeps only these (see fused_ops).
- A batch without padding carries no mask.

Where adapters are on the last layers alone (``lora.layers = "top-N"``), the layers below are the trunk: it
has no dropout, so that what it computes for a text never changes, and can be kept (see trunk).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from newsdesk.model.architectures import BERT_LIKE, Layout, feature_layer, reason_not_bert_like
from newsdesk.model.fused_ops import AdaptedLinear, Span, attention, dropout, dropout_add, padding_bias

if TYPE_CHECKING:
    from peft import PeftModel


class Projection(nn.Module):
    """Linear layers of one input as one: (tokens, in) -> (tokens, sum of outs).

    Frozen, except for their adapters. The layers' own weights become views of the fused matrix.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, linears: Sequence[Any]) -> None:
        """Take plain or LoRA-carrying linear layers, in the order their outputs are to stand."""
        super().__init__()
        bases = [_base(linear) for linear in linears]
        self.register_buffer("weight", _one_storage([base.weight for base in bases]), persistent=False)
        self.register_buffer("bias", _one_storage([base.bias for base in bases]), persistent=False)
        self.factors = nn.ParameterList()
        self.dropout = 0.0
        spans, start = [], 0
        for linear, base in zip(linears, bases, strict=True):
            stop = start + base.out_features
            if linear is not base:
                (name,) = linear.lora_A
                self.factors += _adapter(linear)
                self.dropout = getattr(linear.lora_dropout[name], "p", 0.0)
                spans.append(Span(start, stop, linear.scaling[name]))
            start = stop
        self.spans = tuple(spans)

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, in) -> (tokens, out)."""
        probability = self.dropout if self.training else 0.0
        arguments = (x, self.weight, self.bias, self.spans, probability, *self.factors)
        return AdaptedLinear.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]


def _one_storage(parts: list[nn.Parameter]) -> Tensor:
    """Lay frozen parameters end to end along dimension 0 and make each a view of its stretch."""
    if len(parts) == 1:
        return parts[0].detach()
    whole = torch.cat([part.detach() for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    return whole


class Layer(nn.Module):
    """One transformer layer, LayerNorm after each half (Vaswani et al., 2017)."""

    def __init__(self, layer: Any, layout: Layout, heads: int) -> None:
        """Take over a transformers layer: LayerNorms and activation as they are, linears as Projections."""
        super().__init__()
        part = layer.get_submodule
        self._project(part(layout.query), part(layout.key), part(layout.value))
        self.attention_output = Projection([part(layout.attention_output)])
        self.attention_norm = part(layout.attention_norm)
        self.intermediate = Projection([layer.intermediate.dense])
        self.activation = layer.intermediate.intermediate_act_fn
        self.output = Projection([layer.output.dense])
        self.output_norm = layer.output.LayerNorm
        self.heads = heads
        self.hidden_dropout = float(layer.output.dropout.p)
        self.attention_dropout = float(part(layout.query.rpartition(".")[0]).dropout.p)

    def _project(self, query: Any, key: Any, value: Any) -> None:
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
        y: Tensor = self.output_norm(dropout_add(self.output(inner), x, hidden_dropout))
        return y


class LastLayer(Layer):
    """The last layer, where only the first token is read: (batch * length, hidden) -> (batch, hidden)."""

    def _project(self, query: Any, key: Any, value: Any) -> None:
        self.query = Projection([query])
        self.key_value = Projection([key, value])

    def forward(self, x: Tensor, batch: int, bias: Tensor | None) -> Tensor:
        """Keys and values of every token; query, and all that follows, of the first."""
        first = x.view(batch, -1, x.shape[1])[:, 0]
        head_size = x.shape[1] // self.heads
        q = self.query(first).view(batch, 1, self.heads, head_size)
        k, v = self.key_value(x).view(batch, -1, 2, self.heads, head_size).unbind(2)
        return self._after_attention(first, q, k, v, bias if bias is None else bias[:, :, :1])


class FusedEncoder(nn.Module):
    """A transformers encoder's function, computed faster: token ids to the states of all tokens.

    Attributes:
        trunk_layers: how many layers are below the adapters, by the adapter's own settings; 0: no trunk.
    """

    def __init__(self, backbone: Any, layers: Sequence[nn.Module]) -> None:
        """Take over the backbone's embeddings; ``layers`` stand for its own."""
        super().__init__()
        self.embeddings = backbone.embeddings
        self.layers = nn.ModuleList(layers)
        self.relative_bias = getattr(backbone.encoder, "compute_position_bias", None)
        self.trunk_layers = 0

    @classmethod
    def of(cls, backbone: Any) -> FusedEncoder:
        """All of a plain transformers encoder that is built like BERT; dropout stays as it is."""
        layout, heads = BERT_LIKE[backbone.config.model_type], backbone.config.num_attention_heads
        fused = cls(backbone, [Layer(layer, layout, heads) for layer in backbone.encoder.layer])
        return fused.train(backbone.training)

    def states(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, layers: int | None = None
    ) -> Tensor:
        """What the first ``layers``, or all, make of token ids and mask: (batch, length, hidden)."""
        batch = len(input_ids)
        x = self._embed(input_ids)
        bias = self._attention_bias(input_ids, attention_mask, x.dtype)
        for layer in self.layers[:layers]:
            x = layer(x, batch, bias)
        return x.view(*input_ids.shape, -1)

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
        probability = float(tables.dropout.p) if self.training and not self.trunk_layers else 0.0
        return dropout(x, probability).flatten(0, 1)

    def _attention_bias(self, shaped: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """What is added to the attention scores: MPNet's relative positions, the mask of padding, or both.

        ``shaped`` is any tensor (batch, length).
        """
        bias = None
        if self.relative_bias is not None:
            bias = self.relative_bias(shaped[:1])  # the batch's rows share it, and it is frozen
        if mask is None or (mask.device.type == "cpu" and bool(mask.all())):
            return bias
        padding = padding_bias(mask, dtype)
        return padding if bias is None else bias + padding


class FusedClassifier(FusedEncoder):
    """The peft model's function and its trainable parameters, computed faster; made by `fuse`.

    train() and eval() switch every dropout. An optimiser may take its parameters or the peft
    model's: they are the same objects. The head is the model's own modules, in float32.
    """

    def __init__(self, model: PeftModel) -> None:
        """Take over a model for which `reason_not_fusable` gives None; `fuse` checks."""
        classifier: Any = model.get_base_model()
        layout, heads = _layout(classifier), classifier.config.num_attention_heads
        backbone = getattr(classifier, layout.prefix)
        *lower, last = backbone.encoder.layer
        layers = [*(Layer(layer, layout, heads) for layer in lower), LastLayer(last, layout, heads)]
        super().__init__(backbone, layers)
        self.head = nn.Sequential(*_head(classifier))
        (settings,) = model.peft_config.values()
        adapted = getattr(settings, "layers_to_transform", None)
        adapted = [adapted] if isinstance(adapted, int) else adapted
        self.trunk_layers = min(adapted) if adapted else 0
        self.train(model.training)

    def train(self, mode: bool = True) -> Self:
        """Switch every dropout above the trunk."""
        super().train(mode)
        for layer in self.layers[: self.trunk_layers]:
            layer.train(False)
        return self

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Token ids int64 and mask of 1 and 0, both (batch, length) -> logits (batch, classes) float32.

        A mask of None says that nothing is padded. A mask of ones is dropped on a CPU; on a GPU checking it
        would wait for the device, so the caller has to know.
        """
        return self._logits_and_states(input_ids, attention_mask)[0]

    def with_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The logits, and the tokens' states after `feature_layer`, averaged: (batch, hidden) float32."""
        logits, states = self._logits_and_states(input_ids, attention_mask)
        return logits, mean_over_tokens(states.view(*input_ids.shape, -1), attention_mask)

    def trunk_states(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """What the trunk computes of token ids and mask, (batch, length, hidden) in the compute precision."""
        return self.states(input_ids, attention_mask, self.trunk_layers)

    def from_trunk(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """`forward` from what `trunk_states` gave: (batch, length, hidden) -> (batch, classes) float32."""
        bias = self._attention_bias(states[..., 0], attention_mask, states.dtype)
        x = states.flatten(0, 1)
        for layer in self.layers[self.trunk_layers :]:
            x = layer(x, len(states), bias)
        logits: Tensor = self.head(x.float().unsqueeze(1))
        return logits

    def _logits_and_states(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """(batch, classes) float32, and (batch * length, hidden) after the layer that features come from."""
        batch = len(input_ids)
        x = self._embed(input_ids)
        bias = self._attention_bias(input_ids, attention_mask, x.dtype)
        for number, layer in enumerate(self.layers):
            if number == feature_layer(len(self.layers)):
                states = x
            x = layer(x, batch, bias)
        logits: Tensor = self.head(x.float().unsqueeze(1))
        return logits, states


def mean_over_tokens(x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(batch, length, hidden) -> float32 (batch, hidden) without the padding; no mask says there is none."""
    if attention_mask is None:
        return x.float().mean(dim=1)
    mask = attention_mask.unsqueeze(1).float()
    return (mask @ x.float()).squeeze(1) / mask.sum(dim=2)


def fuse(model: PeftModel, *, compute_dtype: torch.dtype = torch.float32) -> FusedClassifier:
    """Return the fast form of a LoRA classifier; the two share trainable parameters and frozen weights.

    Training the result trains the peft model, which saves as before. Its frozen encoder weights are converted
    to compute_dtype in place, and those of query, key and value become views of one matrix: move the model to
    its device first. Adapters and head stay float32. In bfloat16 run the peft model under torch.autocast, and
    merge adapters into freshly loaded weights, not into these rounded ones.

    Raises ValueError where `reason_not_fusable` has a reason.
    """
    reason = reason_not_fusable(model)
    if reason is not None:
        raise ValueError(f"cannot be fused: {reason}")
    classifier: Any = model.get_base_model()
    backbone = getattr(classifier, _layout(classifier).prefix)
    adapters = {id(p) for linear in _encoder_linears(classifier) for p in _adapter(linear)}
    for parameter in (*backbone.embeddings.parameters(), *backbone.encoder.parameters()):
        if id(parameter) not in adapters:
            parameter.data = parameter.data.to(compute_dtype)
    return FusedClassifier(model)


def keep_freed_memory() -> bool:
    """Have the process keep the memory that one step frees for the next; False where there is no glibc.

    By default glibc may give the top of the heap back to the kernel after every step, and each page then
    faults in again, zeroed: a tenth to a fifth of a small encoder's step. It changes the whole process
    (blocks up to 32 MiB come from the heap, which never shrinks), so a program that trains calls it once.
    """
    trim_threshold, mmap_threshold = -1, -3  # numbers of mallopt(3)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(mmap_threshold, 2**25) and mallopt(trim_threshold, -1))


def reason_not_fusable(model: Any) -> str | None:
    """Why `fuse` cannot take the model, as half a sentence for the log, or None where it can.

    A model with a reason trains through transformers + peft, more slowly and to the same end.
    """
    if not hasattr(model, "peft_config") or not hasattr(model, "get_base_model"):
        return "it is not a peft model"
    classifier, adapters = model.get_base_model(), list(model.peft_config.values())
    kind = type(classifier).__name__
    if not kind.endswith("ForSequenceClassification"):
        return f"{kind} is no sequence classifier"
    if reason := reason_not_bert_like(classifier.config.to_dict()):
        return reason
    if len(adapters) != 1:
        return f"it carries {len(adapters)} adapters, not one"
    if adapters[0].peft_type != "LORA":
        return f"its adapter is of type {adapters[0].peft_type.value}, not LORA"
    return _reason_in_linears(classifier) or _reason_in_the_rest(classifier)


def _reason_in_linears(classifier: Any) -> str | None:
    """Every linear layer of the encoder must be a plain one, with plain LoRA or none."""
    from peft.tuners.lora import Linear

    names = {id(module): name for name, module in classifier.named_modules()}
    for linear in _encoder_linears(classifier):
        name, base = names[id(linear)], _base(linear)
        if type(base) is not nn.Linear:  # quantised layers are subclasses
            return f"{name} is a {type(base).__name__}, not a plain linear layer"
        if linear is base:
            continue
        variants = {type(variant).__name__ for variant in getattr(linear, "lora_variant", {}).values()}
        if type(linear) is not Linear or variants:
            return f"{name} carries {', '.join(variants) or type(linear).__name__}, not plain LoRA"
        if any(getattr(linear, "lora_bias", {}).values()):
            return f"the adapter of {name} has a bias"
        if linear.merged or linear.disable_adapters:
            return f"the adapter of {name} is merged or disabled"
    return None


def _reason_in_the_rest(classifier: Any) -> str | None:
    """Outside the adapters of the encoder's linear layers and the head, nothing may be wrapped or trained."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    head, linears = nn.ModuleList(_head(classifier)), list(_encoder_linears(classifier))
    known = {id(module) for part in (head, *linears) for module in part.modules()}
    for name, module in classifier.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and id(module) not in known:
            return f"{name} is adapted, and only linear layers and the head can be"
    trainable = {id(p) for part in (head.parameters(), *map(_adapter, linears)) for p in part}
    for name, parameter in classifier.named_parameters():
        if parameter.requires_grad and id(parameter) not in trainable:
            return f"it trains {name}, which the fused encoder holds frozen"
    return None


def _base(linear: Any) -> Any:
    """The frozen linear layer itself, under its adapter or bare."""
    return getattr(linear, "base_layer", linear)


def _adapter(linear: Any) -> list[nn.Parameter]:
    """LoRA's A (r, in) and B (out, r) of a linear layer, or nothing."""
    if linear is _base(linear):
        return []
    (name,) = linear.lora_A
    return [linear.lora_A[name].weight, linear.lora_B[name].weight]


def _layout(classifier: Any) -> Layout:
    return BERT_LIKE[classifier.config.model_type]


def _encoder_linears(classifier: Any) -> Iterator[Any]:
    """Every linear layer, adapted or not, that a Projection replaces."""
    layout = _layout(classifier)
    names = (layout.query, layout.key, layout.value, layout.attention_output)
    for layer in getattr(classifier, layout.prefix).encoder.layer:
        yield from (layer.get_submodule(name) for name in (*names, "intermediate.dense", "output.dense"))


def _head(classifier: Any) -> list[nn.Module]:
    """The modules from the last hidden states to the logits; the first of them reads position 0 only."""
    return [classifier.get_submodule(name) for name in _layout(classifier).head]
