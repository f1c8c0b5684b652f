"""Moving Average Batch Normalization (megvii-model/MABN, ICLR 2020), without mean, on tokens.

UN without filtration and running gradient average, with the arithmetic mean, and with the ratio r in the forward too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from un.norms.base import Norm, check_at_least, check_flags, check_fraction, make_pair
from un.norms.moments import (
    Moments,
    as_type,
    choose,
    count_usable,
    divide,
    is_distributed,
    is_finite,
    measure_moments,
    sum_over_processes,
)
from un.norms.passes import Coefficients, normalize
from un.norms.schedule import COMPENSATION_START, Phase, Schedule
from un.norms.updates import advance_steps, count_backward, merge_entry, register_count
from un.norms.window import average_slots, read_slot, write_slot

# Clamp of the compensation ratio in the official code; UN inherits it.
COMPENSATION_LIMITS = (0.2, 5.0)


class MovingAverageBatchNorm(Norm):
    """MABN. Buffers as in the official code: running_var (1, C, 1, 1), buffer_x2 and buffer_gz (M, C), iters (1,).

    The official layer knows no padding; here pad_mask keeps rows out of the second moment (ours).

    Args:
        num_features: C.
        window: simulated over real batch size, 16 for 32 over 2; 4 to compare with UN. Or a (forward, backward) pair.
        warmup_steps: calls before smoothing starts.
        momentum: weight of the OLD value in running_var.
        eps: inside the square root.
        affine: learnable weight and bias.
        sync: sum statistics over processes (ours).
        count: `calls` of this layer or optimizer `updates` for window and warm-up (ours).
        device: of parameters and buffers.
        dtype: of the parameters.
    """

    running_var: Tensor
    buffer_x2: Tensor
    buffer_gz: Tensor
    iters: Tensor
    nonfinite_counter: Tensor
    optional_state = ("nonfinite_counter", "update_calls")

    def __init__(
        self,
        num_features: int,
        *,
        window: int | Sequence[int] = 16,
        warmup_steps: int = 100,
        momentum: float = 0.98,
        eps: float = 1e-5,
        affine: bool = True,
        sync: bool = False,
        count: str = "calls",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, device=device, dtype=dtype)
        self.window = make_pair("window", window, whole=True)
        check_at_least("window", min(self.window), 1)
        check_at_least("warmup_steps", warmup_steps, 0)
        check_fraction("momentum", momentum)
        check_flags(sync=sync)
        self.warmup_steps, self.momentum, self.sync = warmup_steps, momentum, sync
        self.register_state("running_var", 1, 1, num_features, 1, 1)
        self.register_state("buffer_x2", 0, self.window[0], num_features)
        self.register_state("buffer_gz", 0, self.window[1], num_features)
        self.register_state("iters", 0, 1, integer=True)
        self.register_state("nonfinite_counter", 0, 1, integer=True)
        register_count(self, count)
        raw_until = (max(self.window[0], warmup_steps - 1), max(self.window[1], warmup_steps - 1))
        self.schedule = Schedule(self.window, raw_until, max(COMPENSATION_START, warmup_steps))

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalises x (..., C); pad_mask (...), True = padding, keeps rows out of the second moment."""
        pad_mask = self.check_input(x, pad_mask)
        if not self.training:
            return self.apply_affine(x)
        rows = x.detach().reshape(-1, self.num_features)
        mask = None if pad_mask is None else pad_mask.reshape(-1)
        step = self.notes.decide_once(rows, lambda: self._observe(measure_moments(rows, mask, sync=self.sync)))
        scale, ratio, phase, usable = step
        rule = partial(self._correct_gradient, scale, ratio, phase, usable, len(rows))
        return normalize(x, self.weight, self.bias, scale * ratio, rule)

    @torch.no_grad()
    def _observe(self, moments: Moments) -> tuple[Tensor, Tensor, Phase, Tensor]:
        usable = count_usable(moments, self.nonfinite_counter)
        number = advance_steps(self, self.iters, usable)
        phase = self.schedule.locate(self.iters)
        ring, running, q = self.buffer_x2, self.running_var.view(-1), moments.square
        old = read_slot(ring, phase.forward_slot)
        write_slot(ring, phase.forward_slot, choose(usable, merge_entry(number, old, as_type(q, ring)), old))
        s = torch.where(phase.forward_raw, q, average_slots(ring))
        s = choose(usable, s, running)
        scale = (s + self.eps).rsqrt_()
        ratio = (running + self.eps).rsqrt_().div_(scale).clamp_(*COMPENSATION_LIMITS)
        ratio.masked_fill_(phase.uncompensated, 1)
        running.lerp_(as_type(s, running), 1 - self.momentum)
        return scale, ratio, phase, usable

    def _correct_gradient(
        self,
        scale: Tensor,
        ratio: Tensor,
        phase: Phase,
        usable: Tensor,
        count: int | Tensor,
        weight: Tensor | None,
        products: Tensor,
        total: Tensor,
    ) -> Coefficients:
        ring, factor = self.buffer_gz, scale * ratio
        outer = factor if weight is None else factor * weight
        weight_grad = factor * products
        if is_distributed(self.sync):
            products, count = sum_over_processes(products, count, like=products)
        p = divide(outer * products, count)
        usable = usable & is_finite(p)
        number, old = count_backward(self, usable), read_slot(ring, phase.backward_slot)
        write_slot(ring, phase.backward_slot, choose(usable, merge_entry(number, old, as_type(p, ring)), old))
        mean = torch.where(phase.backward_raw, p, average_slots(ring))
        return Coefficients(outer, mean * scale * scale, None, weight_grad)

    def affine(self) -> tuple[Tensor, Tensor]:
        """The inference map: scale = weight / sqrt(running_var + eps), shift = bias."""
        return self.combine_affine((self.running_var.view(-1) + self.eps).rsqrt())

    def reset_steps(self) -> None:
        """Enters warm-up anew and keeps all statistics."""
        self.iters.zero_()

    def watch(self) -> dict[str, Tensor]:
        """Calls rejected as non-finite, and mean ratio of window to running statistic."""
        ratio = (average_slots(self.buffer_x2) + self.eps) / (self.running_var.view(-1) + self.eps)
        return {"nonfinite_count": self.nonfinite_counter.squeeze(), "window_ratio": ratio.mean()}

    def extra_repr(self) -> str:
        """Adds window, warm-up and momentum."""
        return (
            f"{super().extra_repr()}, window={self.window}, warmup_steps={self.warmup_steps}, momentum={self.momentum}"
        )
