"""Moving Average Batch Normalization (megvii-model/MABN, ICLR 2020), without mean, on tokens.

UN without filtration and running gradient average, with the arithmetic mean, and with the ratio r in the forward too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from un.norms.core.base import Norm, flatten_rows
from un.norms.core.moments import divide, is_distributed, measure_moments, sum_over_processes
from un.norms.core.options import check_at_least, check_flags, check_fraction, make_windows
from un.norms.core.passes import Coefficients, Upstream, normalize
from un.norms.core.transaction import BACKWARD, FORWARD, Batch, take_batch, take_gradient
from un.norms.core.updates import push_entry, register_count
from un.norms.core.window import average_slots, move_average


class Call(NamedTuple):
    """What a forward hands to its backward; vectors are (C,), the others have no axes."""

    scale: Tensor  # 1 / sqrt(s + eps)
    factor: Tensor  # r times the scale
    number: Tensor  # of the call, from 1; 0 for a refused batch
    refused: Tensor  # whether the batch is


class MovingAverageBatchNorm(Norm):
    """MABN. Buffers as in the official code: running_var (1, C, 1, 1), buffer_x2 and buffer_gz (M, C), iters (1,).

    The official layer knows no padding; here pad_mask keeps rows out of the second moment (ours).

    Args:
        num_features: C.
        window: simulated over real batch size, 16 for 32 over 2; 4 to compare with UN. Or a (forward, backward) pair.
        warmup_steps: calls before smoothing starts.
        momentum: weight of the OLD value in running_var.
        sync: sum statistics over processes (ours).
        count: `calls` of this layer or optimizer `updates` for window and warm-up (ours).
        eps, affine, device, dtype: as of `Norm`.
    """

    overwritten = ("buffer_x2",)
    gradient_state = ("buffer_gz",)
    shown = ("window", "warmup_steps", "momentum")
    average_window = staticmethod(average_slots)

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
        self.window = make_windows(window)
        check_at_least("warmup_steps", warmup_steps, 0)
        check_fraction("momentum", momentum)
        check_flags(sync=sync)
        self.warmup_steps, self.momentum, self.sync = warmup_steps, momentum, sync
        self.register_state("running_var", 1, 1, num_features, 1, 1)
        self.register_state("buffer_x2", 0, self.window[0], num_features)
        self.register_state("buffer_gz", 0, self.window[1], num_features)
        self.register_counters("iters", "nonfinite_counter")
        register_count(self, count)

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalises x (..., C); pad_mask (...), True = padding, keeps rows out of the second moment."""
        x, pad_mask = self.check_input(x, pad_mask)
        if not self.training:
            return self.apply_affine(x)
        rows, mask = flatten_rows(x, pad_mask)
        measure = partial(measure_moments, rows, mask, sync=self.sync)
        call = self.notes.decide_once(rows, lambda: take_batch(self, measure(), self.smooth_moment))
        return normalize(self, x, call.factor, partial(self.correct_gradient, call, len(rows)))

    def smooth_moment(self, batch: Batch) -> Call:
        """Takes the second moment into the window and finds the one to normalise by."""
        q, window, running = batch.square, self.buffer_x2, self.running_var.view(-1)
        push_entry(self, FORWARD, window, batch.number % len(window), q)
        s = torch.where(self.is_raw(batch.number, window), q, average_slots(window))
        scale = (s + self.eps).rsqrt()
        ratio = ((running + self.eps).rsqrt() / scale).clamp(0.2, 5)  # and from call 1001 on, as in UN
        ratio = ratio.masked_fill(batch.number <= max(1000, self.warmup_steps), 1)
        move_average(running, s, self.momentum)
        return Call(scale, scale * ratio, batch.number, batch.refused)

    def is_raw(self, number: Tensor, window: Tensor) -> Tensor:
        """Tells whether a call, by its number, comes before the smoothing by a window."""
        return number <= max(len(window), self.warmup_steps - 1)

    def correct_gradient(self, call: Call, num_rows: int | Tensor, upstream: Upstream) -> Coefficients:
        """Finds the gradients of input and weight."""
        weight, dx_sum, _ = upstream
        outer, weight_grad = call.factor * weight, call.factor * dx_sum
        if is_distributed(self.sync):
            dx_sum, num_rows = sum_over_processes(dx_sum, num_rows, like=dx_sum)
        p, window = divide(outer * dx_sum, num_rows), self.buffer_gz
        take_gradient(self, call.refused, p, partial(push_entry, self, BACKWARD, window, call.number % len(window)))
        raw = self.is_raw(call.number, window) & ~call.refused  # those refused are corrected by the window
        mean = torch.where(raw, p, average_slots(window))
        return Coefficients(outer, mean * call.scale * call.scale, None, weight_grad)
