"""The derivatives that a norm in training mode refuses: it moves statistics, in the forward and in the backward.

In evaluation mode norms are ordinary operations of torch, and everything works.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

ONE_DERIVATIVE = (
    "a norm in training mode moves its statistics and has one derivative, by backward() or autograd.grad(): no second "
    "derivative, forward-mode differentiation, batched gradient or torch.func transform; call eval() on it first"
)


def refuse_transforms(*values: Tensor | None) -> None:
    """Refuses a training step inside what it cannot go through, before it moves any state.

    Raises:
        RuntimeError: inside a transform of `torch.func`, or where a value has a tangent of forward-mode differentiation
            or is a batch of gradients (is_grads_batched=True). The compiler refuses these by itself.
    """
    if torch.compiler.is_compiling():
        return
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(ONE_DERIVATIVE)
    in_forward_mode = forward_ad._current_level >= 0
    for value in values:
        if value is None:
            continue
        tangent = forward_ad.unpack_dual(value).tangent if in_forward_mode else None
        if tangent is not None or torch._C._functorch.is_legacy_batchedtensor(value):
            raise RuntimeError(ONE_DERIVATIVE)


def refuse_second_derivatives(*gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """The same gradients; where they are part of a graph (create_graph=True), differentiating them is refused.

    `torch.autograd.function.once_differentiable` will not do: where the upstream gradient is a constant it makes these
    gradients constants too, and a second derivative then lacks the norm's part without a word.
    """
    if not torch.is_grad_enabled():
        return gradients
    present = [gradient.detach().requires_grad_() for gradient in gradients if gradient is not None]
    refusing = iter(_Refusal.apply(*present))
    return tuple(None if gradient is None else next(refusing) for gradient in gradients)


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradient.clone() for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        raise RuntimeError(ONE_DERIVATIVE)
