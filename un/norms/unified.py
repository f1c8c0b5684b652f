"""Unified Normalization (arXiv 2208.01313): smoothed statistics in training, a fixed affine map at inference.

Symbols of the paper: q second moment of the batch, s smoothed second moment, v (running_var) its running average, r the
compensation ratio, p the batch's gradient statistic mean(g Z), ψ (ema_gz) its running average, κ the one used. Steps
F1-F11 and B1-B8 follow the official code (hikvision-research/Unified-Normalization); `Switches` lists where it differs
from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from un.norms.base import Norm, check_at_least, check_flags, check_fraction, make_pair
from un.norms.centering import choose_center
from un.norms.filtration import find_outliers, measure_gap, measure_threshold
from un.norms.moments import (
    Moments,
    as_type,
    choose,
    count_usable,
    gate,
    has_rows,
    is_distributed,
    is_finite,
    measure_moments,
    sum_over_processes,
)
from un.norms.passes import Coefficients, normalize
from un.norms.schedule import Phase, make_schedule
from un.norms.switches import build_switches
from un.norms.updates import advance_steps, count_backward, merge_entry, register_count
from un.norms.window import average_slots, average_window, read_slot, write_slot


class _Step(NamedTuple):
    """What one training forward hands to its backward; vectors are (C,), flags have no axes or are (C,)."""

    scale: Tensor  # 1 / sqrt(s + eps)
    ratio: Tensor | None  # r, None for 1
    slot: Tensor  # of the backward window
    raw: Tensor  # the gradient statistic is not smoothed yet
    filtered: Tensor | None  # None: nothing is ever filtered
    usable: Tensor | None  # None: every batch is
    mean: Tensor | None  # of the batch, where it is centred
    center: Tensor | None  # the mean that was subtracted
    center_weight: Tensor | float  # its derivative by the batch mean
    corrected: Tensor | None  # (R, 1), the rows whose gradient is corrected; None for all


class UnifiedNorm(Norm):
    """UN with the official behaviour by default.

    Buffers (official names, so official checkpoints load): running_var (C,), ema_gz (C,), buffer_x2 (M_f, C), buffer_gz
    (M_b, C), iters (1,), skip_counter (1,); ours: nonfinite_counter (1,), and with centering running_mean (C,) and
    buffer_mean (M_f, C).

    Args:
        num_features: C.
        window: M, or a (forward, backward) pair.
        warmup_steps: W, in training-mode calls of this layer.
        filtration: outlier filtration; officially off for language, on for vision.
        eps: inside the square root.
        momentum: weight of the OLD value in the running averages, or a (running_var, ema_gz) pair (S19).
        affine: learnable weight and bias.
        device: of parameters and buffers.
        dtype: of the parameters.
        **switches: see `Switches`.

    Raises:
        ValueError: for a value out of range or an unknown switch.
    """

    running_var: Tensor
    ema_gz: Tensor
    buffer_x2: Tensor
    buffer_gz: Tensor
    iters: Tensor
    skip_counter: Tensor
    nonfinite_counter: Tensor
    running_mean: Tensor
    buffer_mean: Tensor
    optional_state = ("nonfinite_counter", "update_calls")

    def __init__(
        self,
        num_features: int,
        *,
        window: int | Sequence[int] = 4,
        warmup_steps: int = 4000,
        filtration: bool = False,
        eps: float = 1e-5,
        momentum: float | Sequence[float] = 0.9,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **switches: Any,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, device=device, dtype=dtype)
        self.switches = build_switches(**switches)
        self.window = make_pair("window", window, whole=True)
        self.momentum = make_pair("momentum", momentum)
        self.warmup_steps, self.filtration = warmup_steps, filtration
        check_at_least("window", min(self.window), 1)
        for value in self.momentum:
            check_fraction("momentum", value)
        check_at_least("warmup_steps", warmup_steps, 0)
        check_flags(filtration=filtration)
        self.register_state("running_var", 1, num_features)
        self.register_state("ema_gz", 0, num_features)
        self.register_state("buffer_x2", 0, self.window[0], num_features)
        self.register_state("buffer_gz", 0, self.window[1], num_features)
        for name in ("iters", "skip_counter", "nonfinite_counter"):
            self.register_state(name, 0, 1, integer=True)
        if self.switches.centering != "none":
            self.register_state("running_mean", 0, num_features)
            self.register_state("buffer_mean", 0, self.window[0], num_features)
        register_count(self, self.switches.count)
        self.schedule = make_schedule(self.window, warmup_steps, self.switches)

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalises x (..., C); pad_mask (...), True = padding, keeps rows out of the statistics.

        Raises:
            ValueError: for a wrong shape of x or pad_mask, or a mask that is not boolean.
        """
        pad_mask = self.check_input(x, pad_mask)
        if not self.training:
            return self.apply_affine(x)
        rows = x.detach().reshape(-1, self.num_features)
        mask = None if pad_mask is None else pad_mask.reshape(-1)
        step = self.notes.decide_once(rows, lambda: self._observe(rows, mask))
        rule = partial(self._correct_gradient, step, len(rows) if step.corrected is None else step.corrected.sum())
        return normalize(x, self.weight, self.bias, step.scale, rule, mean=step.center, corrected=step.corrected)

    @torch.no_grad()
    def _observe(self, rows: Tensor, mask: Tensor | None) -> _Step:
        """F1 to F10: takes the batch's moments into the state and chooses the statistics of this call."""
        switches = self.switches
        moments = measure_moments(
            rows,
            mask if switches.pad_moment == "excluded" else None,
            centered=switches.centering != "none",
            sync=switches.sync,
            input_type=switches.statistics_type == "input",
        )
        usable = self._find_usable(moments)
        number = advance_steps(self, self.iters, usable)
        phase = self.schedule.locate(self.iters)
        center, center_weight = choose_center(self, moments, phase, usable, number)
        q = moments.square
        if center is not None and moments.mean is not None and switches.centering == "window":
            q = q + (moments.mean - center).square()
        running = self.running_var
        smooth, filtered = self._smooth(q, phase, usable, number)
        s = choose(usable, smooth, running)
        scale = (s + self.eps).rsqrt_()
        ratio = self._compensate(scale, phase, filtered)
        target = s
        if filtered is not None and switches.filtered_running == "freeze":
            target = torch.where(filtered, running, s)
        running.lerp_(as_type(target, running), 1 - self.momentum[0])  # F10
        corrected, slot, raw = self._find_corrected_rows(mask), phase.backward_slot, phase.backward_raw
        return _Step(scale, ratio, slot, raw, filtered, usable, moments.mean, center, center_weight, corrected)

    def _smooth(
        self, q: Tensor, phase: Phase, usable: Tensor | None, number: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """F3 to F7: fluctuation smoothing over the window and outlier filtration."""
        switches, ring, slot = self.switches, self.buffer_x2, phase.forward_slot
        old = read_slot(ring, slot)
        entry = choose(usable, merge_entry(number, old, as_type(q, ring)), old)
        if self._is_unsmoothed():
            write_slot(ring, slot, entry)
            return q, None
        if not self.filtration:
            write_slot(ring, slot, entry)
            return torch.where(phase.forward_raw, q, average_window(ring, switches.forward_average, q)), None
        before = measure_threshold(ring, switches) if switches.threshold_window == "before" else None  # F3
        write_slot(ring, slot, entry)  # F4
        threshold = measure_threshold(ring, switches) if before is None else before
        filtered = find_outliers(measure_gap(ring), threshold, switches.filter_decision)
        filtered = choose(usable, filtered & ~phase.unfiltered, torch.zeros_like(filtered))
        self.skip_counter.add_(filtered.any())
        kept = {"running": self.running_var, "batch": entry, "keep": old}[switches.filtered_moment]
        write_slot(ring, slot, torch.where(filtered, kept, entry))  # F6
        smooth = average_window(ring, switches.forward_average, q)
        return torch.where(phase.forward_raw | filtered, q, smooth), filtered  # F7

    def _compensate(self, scale: Tensor, phase: Phase, filtered: Tensor | None) -> Tensor | None:
        """F8: r = sqrt(s + eps) / sqrt(v + eps), before v moves; scale is 1 / sqrt(s + eps)."""
        switches = self.switches
        if switches.compensation == "none" or self._is_unsmoothed():
            return None
        ratio = (self.running_var + self.eps).rsqrt_().div_(scale)
        if switches.compensation_limits is not None:
            ratio.clamp_(*switches.compensation_limits)
        return ratio.masked_fill_(phase.uncompensated if filtered is None else phase.uncompensated | filtered, 1)

    def _correct_gradient(
        self, step: _Step, count: int | Tensor, weight: Tensor | None, products: Tensor, total: Tensor
    ) -> Coefficients:
        """B1 to B8 on (C,) vectors: `products` = Σ D (x - center), `total` = Σ D over all rows."""
        switches = self.switches
        factor = step.scale if step.ratio is None else step.scale * step.ratio
        outer = factor if weight is None else factor * weight
        weight_grad = products * (factor if switches.compensation == "full" else step.scale)  # B8
        if is_distributed(switches.sync):
            products, total, count = sum_over_processes(products, total, count, like=products)
        count = max(count, 1) if isinstance(count, int) else count.clamp_min(1)
        p = outer * products / count  # B2
        kappa = self._smooth_gradient(p, step)
        inner = kappa * step.scale * step.scale  # B7
        if step.center is None or step.mean is None:
            return Coefficients(outer, inner, None, weight_grad)
        # Exact gradient through the mean: every row loses its share of the summed gradient of the centred rows.
        gathered = outer * total / count - inner * (step.mean - step.center)
        return Coefficients(outer, inner, step.center_weight * gathered, weight_grad)

    def _smooth_gradient(self, p: Tensor, step: _Step) -> Tensor:
        """B3 to B6: takes p into window and running average and returns κ."""
        switches, ring, slot, average = self.switches, self.buffer_gz, step.slot, self.ema_gz
        usable, raw = step.usable, step.raw
        if switches.reject_nonfinite:
            usable = is_finite(p) if usable is None else usable & is_finite(p)
        old = read_slot(ring, slot)
        drop = torch.ones_like(raw) if self._is_unsmoothed() else step.filtered
        entry = as_type(p, ring)
        if drop is not None:
            kept = {"running": average, "batch": entry, "keep": old}[switches.filtered_gradient]
            entry = torch.where(drop, kept, entry)
        entry = merge_entry(count_backward(self, usable), old, entry)
        write_slot(ring, slot, choose(usable, entry, old))  # B3
        mean = p
        if switches.backward_average in ("window_running", "window"):
            mean = torch.where(raw if drop is None else raw | drop, p, average_slots(ring))  # B4
        old_average = average if drop is None else average.clone()
        average.lerp_(choose(usable, as_type(mean, average), average), 1 - self.momentum[1])  # B5
        if switches.warmup_gradient == "instant":
            average.copy_(torch.where(gate(usable, raw if drop is None else raw & ~drop), p, average))
        if drop is not None and switches.filtered_gradient_average != "update":
            target = p if switches.filtered_gradient_average == "replace" else old_average
            average.copy_(torch.where(gate(usable, drop), target, average))
        kappa = average if switches.backward_average in ("window_running", "running") else choose(usable, mean, average)
        return kappa if drop is None else torch.where(gate(usable, drop), mean, kappa)  # B6

    def _find_usable(self, moments: Moments) -> Tensor | None:
        """Whether the batch may enter the state; None for every batch (official) unless it is empty."""
        if self.switches.reject_nonfinite:
            return count_usable(moments, self.nonfinite_counter)
        return None if isinstance(moments.num_rows, int) and moments.num_rows else has_rows(moments)

    def _find_corrected_rows(self, mask: Tensor | None) -> Tensor | None:
        """Rows (R, 1) that take part in the gradient statistic; None for all."""
        switches = self.switches
        if switches.centering != "none":
            excluded = switches.pad_moment == "excluded"
        else:
            excluded = switches.pad_gradient == "excluded"
        return None if mask is None or not excluded else mask.logical_not().unsqueeze(-1)

    def _is_unsmoothed(self) -> bool:
        """F5: with a window of 1 the official code drops smoothing in every call (this is PN-V)."""
        return self.window[0] == 1 and self.switches.single_window == "unsmoothed"

    def affine(self) -> tuple[Tensor, Tensor]:
        """The inference map: scale = weight / sqrt(running_var + eps), shift = bias - running_mean * scale."""
        mean = None if self.switches.centering == "none" else self.running_mean
        return self.combine_affine((self.running_var + self.eps).rsqrt(), mean)

    def reset_steps(self) -> None:
        """Enters warm-up anew and keeps all statistics (official advice before fine-tuning)."""
        self.iters.zero_()

    def watch(self) -> dict[str, Tensor]:
        """Fraction of calls filtered, calls rejected as non-finite, and mean ratio of window to running statistic."""
        smooth = average_window(self.buffer_x2, "geometric", self.running_var)
        return {
            "filtered_fraction": (self.skip_counter / self.iters.clamp_min(1)).squeeze(),
            "nonfinite_count": self.nonfinite_counter.squeeze(),
            "window_ratio": ((smooth + self.eps) / (self.running_var + self.eps)).mean(),
        }

    def extra_repr(self) -> str:
        """Adds the main settings and every switch that is not official."""
        window = self.window[0] if self.window[0] == self.window[1] else self.window
        main = f"window={window}, warmup_steps={self.warmup_steps}, filtration={self.filtration}"
        return f"{super().extra_repr()}, {main}{self.switches.describe_changes()}"
