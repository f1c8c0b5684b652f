"""PowerNorm in its masked form (sIncerass/powernorm, arXiv 2003.07845).

Running instead of batch statistics after warm-up, and a running gradient statistic; a per-row group scaling first.
PN-V, without running statistics in training, is `UnifiedNorm` with a window of 1 (`configs/norm/pn_v.yaml`).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from un.norms.core.base import Norm, flatten_rows, statistics_dtype
from un.norms.core.moments import Moments, divide, is_distributed, measure_moments, sum_moments, sum_over_processes
from un.norms.core.options import check_at_least, check_flags, check_fraction, check_groups
from un.norms.core.passes import Coefficients, Upstream, normalize
from un.norms.core.transaction import Batch, take_batch, take_gradient
from un.norms.core.updates import register_count
from un.norms.core.window import move_average


class Call(NamedTuple):
    """What a forward hands to its backward; vectors are (C,)."""

    factor: Tensor  # of Z
    batch_scale: Tensor  # 1 / sqrt(q + eps)
    all_rows: Moments  # over all rows, padded ones too
    refused: Tensor  # whether the batch is, without axes


class PowerNorm(Norm):
    """PN. Buffers as in the official code: running_phi and ema_gz (1, C, 1, 1), iters (1,).

    Args:
        num_features: C.
        num_groups: groups of the row scaling; the translation recipe takes the number of attention heads.
        warmup_steps: calls normalised by the batch statistic.
        alpha_forward: weight of the OLD value in running_phi.
        alpha_backward: 1 minus the step of the gradient statistic.
        group_scaling: off gives a norm that is offline at inference (ours; PN is published with it on).
        sync: sum statistics over processes (ours).
        count: `calls` of this layer or optimizer `updates` for the warm-up (ours).
        eps, affine, device, dtype: as of `Norm`.
    """

    gradient_state = ("ema_gz",)
    running_moment = "running_phi"
    shown = ("num_groups", "group_scaling", "warmup_steps")

    running_phi: Tensor

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
        check_groups(num_groups, num_features)
        check_at_least("warmup_steps", warmup_steps, 0)
        check_fraction("alpha_forward", alpha_forward)
        check_fraction("alpha_backward", alpha_backward)
        check_flags(group_scaling=group_scaling, sync=sync)
        self.num_groups, self.group_scaling, self.sync = num_groups, group_scaling, sync
        self.warmup_steps, self.alpha_forward, self.alpha_backward = warmup_steps, alpha_forward, alpha_backward
        self.register_state("running_phi", 1, 1, num_features, 1, 1)
        self.register_state("ema_gz", 0, 1, num_features, 1, 1)
        self.register_counters("iters", "nonfinite_counter")
        register_count(self, count)

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalises x (..., C); pad_mask (...), True = padding, keeps rows out of the second moment."""
        x, pad_mask = self.check_input(x, pad_mask)
        x = self.prepare(x)
        if not self.training:
            scale, shift = super().affine()  # type: ignore[misc]  # there are running statistics
            return torch.addcmul(shift, x, scale).to(x.dtype)
        rows, mask = flatten_rows(x, pad_mask)
        call = self.notes.decide_once(rows, lambda: self.take_rows(rows, mask))
        return normalize(self, x, call.factor, partial(self.correct_gradient, call))

    def prepare(self, x: Tensor) -> Tensor:
        """Divides each row's groups of channels by their root mean square, in x's type; stays at inference."""
        if not self.group_scaling:
            return x
        groups = x.unflatten(-1, (self.num_groups, -1)).to(statistics_dtype(x.dtype))
        return (groups / (groups.square().mean(-1, keepdim=True) + self.eps).sqrt()).flatten(-2).to(x.dtype)

    @torch.no_grad()
    def take_rows(self, rows: Tensor, mask: Tensor | None) -> Call:
        """Measures rows (R, C) and takes them into the state."""
        moments = measure_moments(rows, mask)
        # The gradient statistic runs over all rows, padded ones too (official code).
        all_rows = moments if mask is None else measure_moments(rows, None)
        if is_distributed(self.sync):
            moments, all_rows = sum_moments(moments, all_rows)  # in one, as not every process need have a mask
        return take_batch(self, moments, partial(self.smooth_moment, all_rows))

    def smooth_moment(self, all_rows: Moments, batch: Batch) -> Call:
        """Moves the running moment and chooses the factor of Z (steps 2 to 4)."""
        t, phi = batch.number, self.running_phi.view(-1)
        q = batch.square.to(phi.dtype)
        factor = (torch.where(t <= self.warmup_steps, q, phi) + self.eps).rsqrt()
        cumulative = torch.lerp(phi, q, 1 / t.clamp_min(1).to(phi.dtype))  # phi (t - 1) / t + q / t
        phi.copy_(torch.where(t < self.warmup_steps, cumulative, phi))
        move_average(phi, q, self.alpha_forward)
        return Call(factor, (batch.square + self.eps).rsqrt(), all_rows, batch.refused)

    def correct_gradient(self, call: Call, upstream: Upstream) -> Coefficients:
        """Finds h = g - (1 - alpha) ν Z, grows ν by mean(h Z), and divides h by the batch's own scale."""
        factor, batch_scale, all_rows, refused = call
        weight, dx_sum, _ = upstream
        gradient = self.ema_gz.view(-1)
        weight_grad = factor * dx_sum
        if is_distributed(self.sync):
            (dx_sum,) = sum_over_processes(dx_sum, like=dx_sum)
        mean = divide(factor * dx_sum, all_rows.num_rows)
        correction = (1 - self.alpha_backward) * gradient * factor
        grown = gradient + weight * mean - correction * factor * all_rows.square
        take_gradient(self, refused, grown, lambda grown: gradient.copy_(grown))
        return Coefficients(weight * batch_scale, correction * batch_scale, None, weight_grad)

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """Returns the inference map; None with group scaling, which depends on the row."""
        return None if self.group_scaling else super().affine()
