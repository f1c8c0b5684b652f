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

from un.norms.core.base import Norm, statistics_dtype
from un.norms.core.compiling import LIBRARY
from un.norms.core.constants import get_zeros
from un.norms.core.derivatives import refuse_second_derivatives, refuse_transforms


class Coefficients(NamedTuple):
    """What a gradient rule answers, each (C,): the input gradient is `outer * D - inner * (x - mean) - offset`.

    D is the upstream gradient. `weight_grad` is the gradient of the norm's weight.
    """

    outer: Tensor
    inner: Tensor
    offset: Tensor | None
    weight_grad: Tensor


BUFFERS_REPLACED = (
    "the buffers of a norm in training mode were replaced between its forward and its backward, which moves them: pass "
    "only parameters to functional_call, and move the norm to another device or type after the backward"
)


class Upstream(NamedTuple):
    """What a gradient rule is given, each (C,), for the upstream gradient D = dL/dy; sums run over all rows."""

    weight: Tensor | None  # that the forward used
    dx_sum: Tensor  # of D * (x - mean)
    d_sum: Tensor  # of D


GradientRule = Callable[[Upstream], Coefficients]


def reduce_products(g: Tensor, x: Tensor, mean: Tensor | None = None, divisor: int = 1) -> tuple[Tensor, Tensor]:
    """Σ g (x - mean) / divisor and Σ g over the rows of (R, C) inputs, each (C,), in one pass.

    torch's batch-norm backward in evaluation mode computes these two sums fused, and scales the first by
    1/sqrt(variance + eps): variance 0 and eps = divisor² make that the wanted division. It is two to four times faster
    on CPU than a product followed by sums, also where the compiler fuses these: it sums column by column.
    """
    if torch.compiler.is_compiling():
        products, total = torch.ops.un.reduce_products(g, x, mean) if x.is_cpu else _reduce_plainly(g, x, mean)
        return products / divisor, total
    dtype = statistics_dtype(x.dtype)
    if g.numel() == 0:
        zeros = torch.zeros(2, x.shape[-1], device=x.device, dtype=dtype)
        return zeros[0], zeros[1]
    same = g is x
    x = _as_statistics(x, dtype)
    g = x if same else _as_statistics(g, dtype)
    zeros = get_zeros(x)
    mean = zeros if mean is None else mean.to(dtype)
    _, products, total = torch.ops.aten.native_batch_norm_backward(
        g, x, None, mean, zeros, None, None, False, float(divisor) ** 2, [False, True, True]
    )
    return products, total


def _reduce_plainly(g: Tensor, x: Tensor, mean: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = statistics_dtype(x.dtype)
    g, x = g.to(dtype), x.to(dtype)
    return (g * (x if mean is None else x - mean)).sum(0), g.sum(0)


LIBRARY.define("reduce_products(Tensor g, Tensor x, Tensor? mean) -> (Tensor, Tensor)")
LIBRARY.impl("reduce_products", reduce_products, "CPU")
LIBRARY.impl("reduce_products", _reduce_plainly, "Meta")


def _as_statistics(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.contiguous() if x.dtype == dtype else x.to(dtype).contiguous()


def apply_scale(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """Computes scale * x + shift for x (..., C) in the precision of the (C,) vectors; returns x's type."""
    y = x * scale if shift is None else torch.addcmul(shift, x, scale)
    return y if y.dtype == x.dtype else y.to(x.dtype)


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
        return apply_scale(x, scale, shift)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_transforms(grad)
        with torch.no_grad():
            gradients = _differentiate(ctx, grad)
        return (*refuse_second_derivatives(*gradients), None, None, None, None)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of input, weight and bias."""
    x, weight = ctx.saved_tensors
    shape = x.shape
    x, grad = x.view(-1, shape[-1]), grad.reshape(-1, shape[-1])
    products, total = reduce_products(grad, x, ctx.mean)
    outer, inner, offset, weight_grad = ctx.rule(Upstream(weight, products, total))
    x_grad = None
    if ctx.needs_input_grad[0]:
        x_grad = _combine(grad, x, outer, inner, _constant(ctx.mean, inner, offset), ctx.corrected).view(shape)
    weight_type, bias_type = ctx.parameter_types
    return (
        x_grad,
        None if weight_type is None else weight_grad.to(weight_type),
        None if bias_type is None else total.to(bias_type),
    )


def _constant(mean: Tensor | None, inner: Tensor, offset: Tensor | None) -> Tensor | None:
    """The part of the input gradient that is the same for every row."""
    if mean is None:
        return offset if offset is None else -offset
    return mean * inner if offset is None else torch.addcmul(-offset, mean, inner)


def _combine(
    grad: Tensor, x: Tensor, outer: Tensor, inner: Tensor, constant: Tensor | None, corrected: Tensor | None
) -> Tensor:
    """Outer * grad - inner * x + constant; where `corrected` (R, 1) is False only outer * grad."""
    if corrected is not None:
        correction = x * -inner if constant is None else torch.addcmul(constant, x, -inner)
        return (grad * outer + correction.where(corrected, 0)).to(x.dtype)
    out = grad * outer if constant is None else torch.addcmul(constant, grad, outer)
    out = out.addcmul_(x, inner, value=-1)
    return out if out.dtype == x.dtype else out.to(x.dtype)


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
