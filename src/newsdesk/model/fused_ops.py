"""The fused encoder's arithmetic: frozen linear layers with LoRA, cheap dropout, attention.

Each is an autograd function that keeps only what its backward pass needs: no gradient of a frozen
weight, no second copy of an activation, no float mask.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Span(NamedTuple):
    """The output columns start..stop that one adapter adds to, and PEFT's scaling of it."""

    start: int
    stop: int
    scaling: float


class Keep(NamedTuple):
    """Which elements a dropout keeps: those whose random 16 bits reach the threshold.

    PyTorch's CPU dropout draws a random number for each element (7 ns, in all about a tenth of a small
    encoder's step); four 16-bit lanes from each 64-bit draw make it five times cheaper. The probability
    is thereby rounded to a multiple of 2**-16; scale is the exact reciprocal of the share then kept.
    """

    lanes: Tensor
    threshold: int
    scale: float

    @classmethod
    def draw(cls, like: Tensor, probability: float) -> Keep:
        """Draw for a tensor of like's shape, from PyTorch's generator of its device; 0 < probability < 1."""
        if like.device.type == "cpu" and not torch.compiler.is_compiling():
            quads = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
            lanes = quads.view(torch.int16)[: like.numel()].view(like.shape)
        else:
            lanes = torch.randint(-(2**15), 2**15, like.shape, dtype=torch.int16, device=like.device)
        dropped = round(probability * 2**16)
        return cls(lanes, dropped - 2**15, 2**16 / (2**16 - dropped))

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Ones and zeros of dtype (not yet scaled); comparing straight into floats skips a slow bool pass."""
        mask = torch.empty(self.lanes.shape, dtype=dtype, device=self.lanes.device)
        return torch.ge(self.lanes, self.threshold, out=mask)


class AdaptedLinear(torch.autograd.Function):
    """y = x Wᵀ + b, plus scaling · dropout(x) Aᵀ Bᵀ on each span (LoRA: Hu et al., 2021, arXiv:2106.09685).

    x (tokens, in), weight (out, in) and bias (out) frozen, in the compute precision; factors A₁ (r₁, in),
    B₁ (span, r₁), A₂ ... in float32, as are their gradients. Adapters of one input share one dropout
    mask, as in the method's original code (loralib's MergedLinear).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        spans: tuple[Span, ...],
        dropout: float,
        *factors: Tensor,
    ) -> Tensor:
        """Return (tokens, out); keeps dropout(x) and the rank-r products, and neither without an adapter."""
        y = F.linear(x, weight, bias)
        keep = Keep.draw(x, dropout) if spans and dropout else None
        seen = x if keep is None else x * keep.mask(x.dtype)
        cast = [factor.to(x.dtype) for factor in factors]
        inner = []
        for span, down, up in zip(spans, cast[::2], cast[1::2], strict=True):
            inner.append(seen @ down.t())
            y[:, span.start : span.stop].addmm_(inner[-1], up.t(), alpha=_gain(span, keep))
        ctx.spans, ctx.keep = spans, keep
        ctx.save_for_backward(weight, seen if spans else None, *cast, *inner)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x (where wanted) and of the factors."""
        weight, seen, *rest = ctx.saved_tensors
        count = len(ctx.spans)
        downs, ups, inner = rest[: 2 * count : 2], rest[1 : 2 * count : 2], rest[2 * count :]
        grad_factors, grad_inner = [], []
        for span, up, low in zip(ctx.spans, ups, inner, strict=True):
            part, gain = grad[:, span.start : span.stop], _gain(span, ctx.keep)
            grad_inner.append((part @ up).mul_(gain))
            grad_factors += [(grad_inner[-1].t() @ seen).float(), (part.t() @ low).mul_(gain).float()]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            through = grad_x if ctx.keep is None else torch.zeros_like(grad_x)
            for low, down in zip(grad_inner, downs, strict=True):
                through.addmm_(low, down)
            if ctx.keep is not None:
                grad_x.addcmul_(through, ctx.keep.mask(grad.dtype))
        return grad_x, None, None, None, None, *grad_factors


def _gain(span: Span, keep: Keep | None) -> float:
    return span.scaling * (keep.scale if keep else 1.0)


class _DropoutAdd(torch.autograd.Function):
    """residual + dropout(y) in one pass; keeps two bytes an element."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, residual: Tensor, probability: float) -> Tensor:
        ctx.keep = Keep.draw(y, probability)
        return torch.addcmul(residual, y, ctx.keep.mask(y.dtype), value=ctx.keep.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return ctx.keep.mask(grad.dtype).mul_(grad).mul_(ctx.keep.scale), grad, None


def dropout_add(y: Tensor, residual: Tensor, probability: float) -> Tensor:
    """Return residual + dropout(y), both of one shape; y is overwritten where nothing is dropped."""
    if not probability:
        return y.add_(residual)
    return _DropoutAdd.apply(y, residual, probability)  # type: ignore[no-any-return, no-untyped-call]


def dropout(x: Tensor, probability: float) -> Tensor:
    """Dropout of a tensor that needs no gradient (the embeddings' output), overwriting it."""
    if not probability:
        return x
    keep = Keep.draw(x, probability)
    return x.mul_(keep.mask(x.dtype)).mul_(keep.scale)


class _DropoutAttention(torch.autograd.Function):
    """Attention with dropout on its probabilities, for the CPU, whose flash kernel knows none.

    q (batch, heads, queries, head_size), k and v (batch, heads, keys, head_size), bias broadcast
    onto (batch, heads, queries, keys) or None. The dropped probabilities are not kept, and those of texts
    with more keys than q, k and v have numbers a head are not either: the backward pass computes them again
    (Chen et al., 2016, arXiv:1604.06174), for else they would take more memory than all three together.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, probability: float) -> Tensor:
        shape = q.shape
        ctx.shape = shape
        q, k, v = (t.flatten(0, 1) for t in (q * shape[-1] ** -0.5, k, v))
        probabilities = _probabilities(q, k, bias, shape)
        ctx.keep = Keep.draw(probabilities, probability)
        short = k.shape[1] <= 3 * shape[-1]
        ctx.save_for_backward(q, k, v, bias, probabilities if short else None)
        dropped = ctx.keep.mask(q.dtype).mul_(probabilities)
        context: Tensor = (dropped @ v).mul_(ctx.keep.scale)
        return context.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, probabilities = ctx.saved_tensors
        if probabilities is None:
            probabilities = _probabilities(q, k, bias, ctx.shape)
        grad = (grad * ctx.keep.scale).flatten(0, 1)
        mask = ctx.keep.mask(grad.dtype)
        grad_scores = (grad @ v.transpose(1, 2)).mul_(mask)
        grad_v = mask.mul_(probabilities).transpose(1, 2) @ grad
        grad_scores = torch._softmax_backward_data(grad_scores, probabilities, -1, grad.dtype)
        grad_q = (grad_scores @ k).mul_(ctx.shape[-1] ** -0.5)
        grad_k = grad_scores.transpose(1, 2) @ q
        heads = ctx.shape[:2]
        return *(t.unflatten(0, heads) for t in (grad_q, grad_k, grad_v)), None, None


def _probabilities(q: Tensor, k: Tensor, bias: Tensor | None, shape: torch.Size) -> Tensor:
    """Softmax of q kᵀ + bias, (batch * heads, queries, keys); shape is q's with its heads apart."""
    scores = q @ k.transpose(1, 2)
    if bias is not None:
        scores.view(*shape[:3], -1).add_(bias)
    return scores.softmax(-1)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, probability: float) -> Tensor:
    """Scaled dot-product attention -> (batch * queries, heads * head_size).

    q (batch, queries, heads, head_size), k and v (batch, keys, heads, head_size); bias is added to the
    scaled scores and broadcasts onto (batch, heads, queries, keys); probability is the dropout's.
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    own_dropout = probability and q.device.type == "cpu"
    kernel: Any = _DropoutAttention.apply if own_dropout else F.scaled_dot_product_attention
    context: Tensor = kernel(q, k, v, bias, probability)
    batch, heads, queries, head_size = context.shape
    return context.transpose(1, 2).reshape(batch * queries, heads * head_size)


def padding_bias(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, keys) of ones and zeros -> (batch, 1, 1, keys) of 0 and the dtype's lowest number.

    Not minus infinity: a row that is all padding then stays finite.
    """
    padding = attention_mask[:, None, None, :] == 0
    return torch.zeros(padding.shape, dtype=dtype, device=padding.device).masked_fill_(
        padding, torch.finfo(dtype).min
    )
