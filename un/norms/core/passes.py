"""The passes over activations, and the one autograd function built from them.

A norm with offline statistics touches x four times: reduce and apply in the forward, reduce and apply in the backward.
Everything that makes UN, MABN, PowerNorm and BatchNorm differ happens between these passes, on (C,) vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from un.norms.core.autograd import LIBRARY, refuse_second_derivatives
from un.norms.core.base import Norm, statistics_dtype

BUFFERS_REPLACED = (
    "the buffers of a norm in training mode were replaced between its forward and its backward, which moves them: pass "
    "only parameters to functional_call, and move the norm to another device or type after the backward"
)


class Upstream(NamedTuple):
    """What a gradient rule is given, each (C,), for the upstream gradient D = dL/dy; sums run over all rows."""

    weight: Tensor | float  # that the forward used; 1 for a norm without one
    dx_sum: Tensor  # of D * (x - mean)
    d_sum: Tensor  # of D


class Coefficients(NamedTuple):
    """What a gradient rule answers, each (C,): the input gradient is `outer * D - inner * (x - mean) - offset`."""

    outer: Tensor
    inner: Tensor
    offset: Tensor | None
    weight_grad: Tensor  # dL/dγ


GradientRule = Callable[[Upstream], Coefficients]


def reduce_products(g: Tensor, x: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns Σ g (x - mean) and Σ g over the rows of (R, C) inputs, each (C,), in one pass.

    torch's batch-norm backward in evaluation mode computes these two sums fused, and scales the first by
    1/sqrt(variance + eps), here 1. It is two to four times faster on CPU than a product followed by sums, also where
    the compiler fuses these: it sums column by column. On a GPU its half that only reduces is called, which reads half
    precision as it is and sums in float32.
    """
    if torch.compiler.is_compiling():
        return torch.ops.un.reduce_products(g, x, mean) if x.is_cpu else _reduce_plainly(g, x, mean)
    if g.numel() == 0:
        return _reduce_plainly(g, x, mean)
    dtype = statistics_dtype(x.dtype)
    if x.is_cuda:
        mean = x.new_zeros(x.shape[-1], dtype=dtype) if mean is None else mean.to(dtype)
        # Without a weight, nothing is asked of the second argument after the inputs, 1/sqrt(variance + eps).
        total, products, _, _ = torch.ops.aten.batch_norm_backward_reduce(
            g.contiguous(), x.contiguous(), mean, mean, None, True, False, False
        )
        return products, total
    same = g is x
    x = x.to(dtype).contiguous()
    g = x if same else g.to(dtype).contiguous()
    zeros = x.new_zeros(x.shape[-1])
    mean = zeros if mean is None else mean.to(dtype)
    wanted = [False, True, True]
    _, products, total = torch.ops.aten.native_batch_norm_backward(
        g, x, None, mean, zeros, None, None, False, 1.0, wanted
    )
    return products, total


def _reduce_plainly(g: Tensor, x: Tensor, mean: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = statistics_dtype(x.dtype)
    g, x = g.to(dtype), x.to(dtype)
    return (g * (x if mean is None else x - mean)).sum(0), g.sum(0)


LIBRARY.define("reduce_products(Tensor g, Tensor x, Tensor? mean) -> (Tensor, Tensor)")
LIBRARY.impl("reduce_products", reduce_products, "CPU")
LIBRARY.impl("reduce_products", _reduce_plainly, "Meta")


def normalize(
    norm: Norm,
    x: Tensor,
    factor: Tensor,
    rule: GradientRule,
    *,
    mean: Tensor | None = None,
    corrected: Tensor | None = None,
) -> Tensor:
    """Returns weight * factor * (x - mean) + bias, with the norm's weight and bias and a gradient given by `rule`.

    Saves x and nothing else of its size. The sums the rule receives run over all rows.

    Args:
        norm: the rule may move its `gradient_state`.
        x: (..., C), contiguous.
        factor: (C,), a constant to autograd.
        rule: called once in a backward.
        mean: (C,) or None for 0, a constant to autograd.
        corrected: (R, 1) boolean, the rows whose gradient has the `inner` and `offset` terms; None for all.
    """
    if norm.gradient_state and not torch.compiler.is_compiling():
        rule = partial(_apply_rule, rule, norm, {name: norm._buffers[name] for name in norm.gradient_state})
    return _Normalize.apply(x, norm.weight, norm.bias, factor, mean, corrected, rule)


def _apply_rule(rule: GradientRule, norm: Norm, state: dict[str, Tensor | None], upstream: Upstream) -> Coefficients:
    """Applies a rule, which must find the buffers of the forward, where it moves them."""
    for name, buffer in state.items():
        if norm._buffers[name] is not buffer:
            raise RuntimeError(BUFFERS_REPLACED)
    return rule(upstream)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        factor: Tensor,
        mean: Tensor | None,
        corrected: Tensor | None,
        rule: GradientRule,
    ) -> Tensor:
        scale = factor if weight is None else weight * factor
        shift = bias
        if mean is not None:
            shift = -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)
        # The weight is kept, too: the backward must not use, or be silent about, one that has changed since.
        ctx.save_for_backward(x, weight)
        ctx.mean, ctx.corrected, ctx.rule = mean, corrected, rule
        ctx.parameter_types = [None if p is None else p.dtype for p in (weight, bias)]
        # No view of anything: autograd forbids in-place operations on views that such a function returns.
        y = x * scale if shift is None else torch.addcmul(shift, x, scale)
        # A cast that does nothing is not returned: compiled by torch 2.11, it makes every gradient 0 without a word.
        return y if y.dtype == x.dtype else y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            gradients = _differentiate(ctx, grad)
        return (*refuse_second_derivatives(*gradients), None, None, None, None)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Returns the gradients of input, weight and bias."""
    x, weight = ctx.saved_tensors
    shape = x.shape
    x, grad = x.view(-1, shape[-1]), grad.reshape(-1, shape[-1])
    products, total = reduce_products(grad, x, ctx.mean)
    outer, inner, offset, weight_grad = ctx.rule(Upstream(1.0 if weight is None else weight, products, total))
    x_grad = None
    if ctx.needs_input_grad[0]:
        constant = None if offset is None else -offset
        if ctx.mean is not None:
            constant = ctx.mean * inner if constant is None else torch.addcmul(constant, ctx.mean, inner)
        x_grad = _combine(grad, x, outer, inner, constant, ctx.corrected).to(x.dtype).view(shape)
    weight_type, bias_type = ctx.parameter_types
    return (
        x_grad,
        None if weight_type is None else weight_grad.to(weight_type),
        None if bias_type is None else total.to(bias_type),
    )


def _combine(
    grad: Tensor, x: Tensor, outer: Tensor, inner: Tensor, constant: Tensor | None, corrected: Tensor | None
) -> Tensor:
    """Returns outer * grad - inner * x + constant; where `corrected` (R, 1) is False only outer * grad."""
    if corrected is not None:
        correction = x * -inner if constant is None else torch.addcmul(constant, x, -inner)
        return grad * outer + correction.where(corrected, 0)
    out = grad * outer if constant is None else torch.addcmul(constant, grad, outer)
    return out.addcmul_(x, inner, value=-1)
