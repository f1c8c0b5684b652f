"""PowerNorm in its masked form (sIncerass/powernorm, arXiv 2003.07845).

Running instead of batch statistics after warm-up, and a running gradient statistic; a per-row group scaling first.
PN-V, without running statistics in training, is `UnifiedNorm` with a window of 1 (`configs/norm/pn_v.yaml`).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from un.norms.base import Norm, check_at_least, check_flags, check_fraction, statistics_dtype
from un.norms.moments import (
    Moments,
    as_type,
    choose,
    count_usable,
    divide,
    is_distributed,
    is_finite,
    measure_moments,
    sum_moments,
    sum_over_processes,
)
from un.norms.passes import Coefficients, normalize
from un.norms.updates import advance_steps, register_count


class _Step(NamedTuple):
    factor: Tensor  # of Z
    batch_scale: Tensor  # 1 / sqrt(q + eps)
    all_rows: Moments  # over all rows, padded ones too
    usable: Tensor  # whether the batch entered the state


class PowerNorm(Norm):
    """PN. Buffers as in the official code: running_phi and ema_gz (1, C, 1, 1), iters (1,).

    Args:
        num_features: C.
        num_groups: groups of the row scaling; the translation recipe takes the number of attention heads.
        warmup_steps: calls normalised by the batch statistic.
        alpha_forward: weight of the OLD value in running_phi.
        alpha_backward: 1 minus the step of the gradient statistic.
        eps: inside the square roots.
        group_scaling: off gives a norm that is offline at inference (ours; PN is published with it on).
        affine: learnable weight and bias.
        sync: sum statistics over processes (ours).
        count: `calls` of this layer or optimizer `updates` for the warm-up (ours).
        device: of parameters and buffers.
        dtype: of the parameters.

    Raises:
        ValueError: where num_groups does not divide num_features, or a value is out of range.
    """

    running_phi: Tensor
    ema_gz: Tensor
    iters: Tensor
    nonfinite_counter: Tensor
    optional_state = ("nonfinite_counter", "update_calls")

    def __init__(
        self,
        num_features: int,
        *,
        num_groups: int = 1,
        warmup_steps: int = 10000,
        alpha_forward: float = 0.9,
        alpha_backward: float = 0.9,
        eps: float = 1e-5,
        group_scaling: bool = True,
        affine: bool = True,
        sync: bool = False,
        count: str = "calls",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, device=device, dtype=dtype)
        check_at_least("num_groups", num_groups, 1)
        if num_features % num_groups:
            raise ValueError(f"num_groups must divide num_features = {num_features}, got {num_groups}")
        check_at_least("warmup_steps", warmup_steps, 0)
        check_fraction("alpha_forward", alpha_forward)
        check_flags(group_scaling=group_scaling, sync=sync)
        check_fraction("alpha_backward", alpha_backward)
        self.num_groups, self.warmup_steps, self.group_scaling, self.sync = (
            num_groups,
            warmup_steps,
            group_scaling,
            sync,
        )
        self.alpha_forward, self.alpha_backward = alpha_forward, alpha_backward
        self.register_state("running_phi", 1, 1, num_features, 1, 1)
        self.register_state("ema_gz", 0, 1, num_features, 1, 1)
        self.register_state("iters", 0, 1, integer=True)
        self.register_state("nonfinite_counter", 0, 1, integer=True)
        register_count(self, count)

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalises x (..., C); pad_mask (...), True = padding, keeps rows out of the second moment."""
        pad_mask = self.check_input(x, pad_mask)
        x = self.scale_groups(x)
        if not self.training:
            return self._apply_running(x)
        rows = x.detach().reshape(-1, self.num_features)
        mask = None if pad_mask is None else pad_mask.reshape(-1)
        step = self.notes.decide_once(rows, lambda: self._observe(rows, mask))
        return normalize(x, self.weight, self.bias, step.factor, partial(self._correct_gradient, step))

    def scale_groups(self, x: Tensor) -> Tensor:
        """Divides each row's groups of channels by their root mean square, in x's type; stays at inference."""
        if not self.group_scaling:
            return x
        groups = x.unflatten(-1, (self.num_groups, -1)).to(statistics_dtype(x.dtype))
        return (groups / (groups.square().mean(-1, keepdim=True) + self.eps).sqrt()).flatten(-2).to(x.dtype)

    @torch.no_grad()
    def _observe(self, rows: Tensor, mask: Tensor | None) -> _Step:
        """Steps 2 to 4: takes the batch's moments into the state and chooses the factor of Z."""
        moments = measure_moments(rows, mask)
        # The gradient statistic runs over all rows, padded ones too (official code).
        all_rows = moments if mask is None else measure_moments(rows, None)
        if is_distributed(self.sync):
            moments, all_rows = sum_moments(moments, all_rows)  # in one, as not every process need have a mask
        usable = count_usable(moments, self.nonfinite_counter)
        advance_steps(self, self.iters, usable)
        t, phi = self.iters, self.running_phi.view(-1)
        q = choose(usable, as_type(moments.square, phi), phi)
        factor = (torch.where(t <= self.warmup_steps, q, phi) + self.eps).rsqrt_()
        cumulative = torch.lerp(phi, q, 1 / t.clamp_min(1).to(phi.dtype))  # phi (t - 1) / t + q / t
        updated = torch.where(t < self.warmup_steps, cumulative, phi).lerp_(q, 1 - self.alpha_forward)
        phi.copy_(choose(usable, updated, phi))
        batch_scale = (choose(usable, moments.square, phi) + self.eps).rsqrt_()
        return _Step(factor, batch_scale, all_rows, usable)

    def _correct_gradient(self, step: _Step, weight: Tensor | None, products: Tensor, total: Tensor) -> Coefficients:
        """H = g - (1 - alpha) ν Z; ν grows by mean(h Z); the input gradient divides h by the batch's own scale."""
        factor, batch_scale, all_rows, usable = step
        gradient = self.ema_gz.view(-1)
        weight_grad = factor * products
        if is_distributed(self.sync):
            (products,) = sum_over_processes(products, like=products)
        mean = divide(factor * products, all_rows.num_rows)
        weight = torch.ones_like(factor) if weight is None else weight
        correction = (1 - self.alpha_backward) * gradient * factor
        grown = gradient + weight * mean - correction * factor * all_rows.square
        inner = correction * batch_scale
        gradient.copy_(choose(usable & is_finite(grown), as_type(grown, gradient), gradient))
        return Coefficients(weight * batch_scale, inner, None, weight_grad)

    def _apply_running(self, x: Tensor) -> Tensor:
        scale, shift = self.combine_affine((self.running_phi.view(-1) + self.eps).rsqrt())
        return torch.addcmul(shift, x, scale).to(x.dtype)

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """The inference map, or None with group scaling, which depends on the row."""
        return None if self.group_scaling else self.combine_affine((self.running_phi.view(-1) + self.eps).rsqrt())

    def reset_steps(self) -> None:
        """Enters warm-up anew and keeps all statistics."""
        self.iters.zero_()

    def watch(self) -> dict[str, Tensor]:
        """Calls rejected as non-finite."""
        return {"nonfinite_count": self.nonfinite_counter.squeeze()}

    def extra_repr(self) -> str:
        """Adds groups, warm-up and whether rows are scaled."""
        scaling = f"num_groups={self.num_groups}" if self.group_scaling else "group_scaling=False"
        return f"{super().extra_repr()}, {scaling}, warmup_steps={self.warmup_steps}"
