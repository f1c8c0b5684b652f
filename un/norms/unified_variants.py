"""UN with its switches: where the paper and the official code differ, and variants of our own.

`UnifiedNorm(..., switch=value)` is of this class where a switch is away from its default, and `un.norms.Switches`
explains each. Read `un.norms.unified` first: the steps are the same, and at the defaults so is every bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from un.norms.core.base import flatten_rows
from un.norms.core.filtration import find_outliers, measure_gap, measure_threshold
from un.norms.core.moments import divide, is_distributed, measure_moments, sum_over_processes
from un.norms.core.passes import Coefficients, Upstream, normalize
from un.norms.core.schedule import Phase, Schedule
from un.norms.core.switches import Switches, build_switches
from un.norms.core.transaction import Batch, take_batch, take_gradient
from un.norms.core.updates import BACKWARD, FORWARD, count_calls, merge_entry, push_entry, register_count
from un.norms.core.window import (
    average_geometrically,
    average_harmonically,
    average_slots,
    choose,
    move_average,
    read_slot,
    write_slot,
)
from un.norms.unified import UnifiedNorm

# S13; `last` is no smoothing.
AVERAGES = {"geometric": average_geometrically, "arithmetic": average_slots, "harmonic": average_harmonically}
PLAIN_OPTIONS: Any = UnifiedNorm.__init__.__kwdefaults__


class Center(NamedTuple):
    """The mean that a call subtracts (S20), each (C,)."""

    mean: Tensor
    derivative: Tensor  # of it, by the batch's mean
    batch_mean: Tensor


class Call(NamedTuple):
    """What a forward hands to its backward, see `un.norms.unified.Call`; flags are (C,) where channels decide alone."""

    scale: Tensor
    ratio: Tensor
    slot: Tensor
    raw: Tensor
    dropped: Tensor | None
    refused: Tensor | None
    gap: Tensor | None
    threshold: Tensor | None
    center: Center | None
    corrected: Tensor | None = None  # (R, 1), the rows that take part in the gradient statistic; None for all


class UnifiedNormVariant(UnifiedNorm):
    """UN with switches.

    With centering there are two buffers more: running_mean (C,) and buffer_mean (M_f, C).

    Args:
        num_features: C.
        **options: those of `UnifiedNorm` and, as switches, the fields of `Switches`.

    Raises:
        ValueError: for a value out of range or an unknown switch.
    """

    running_mean: Tensor
    buffer_mean: Tensor

    def __init__(self, num_features: int, **options: Any) -> None:
        plain, switches = split_options(options)
        super().__init__(num_features, **plain)
        self.switches = build_switches(**switches)
        if self.switches.centering != "none":
            self.register_state("running_mean", 0, num_features)
            self.register_state("buffer_mean", 0, self.window[0], num_features)
            self.overwritten = ("buffer_x2", "buffer_mean")
        register_count(self, self.switches.count)
        self.schedule = Schedule(
            self.window,
            self.warmup_steps,
            compensation_start=self.switches.compensation_start,
            on_full_window=self.switches.smoothing_start == "full_window",
            dropped=self.window[0] == 1 and self.switches.single_window == "unsmoothed",
        )

    @classmethod
    def is_asked_for(cls, options: Mapping[str, Any]) -> bool:
        """Whether a switch is away from its default."""
        return build_switches(**split_options(options)[1]) != Switches()

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalises x (..., C); which statistics padding is in, pad_mask (...) True, depends on S14."""
        x, pad_mask = self.check_input(x, pad_mask)
        if not self.training:
            return self.apply_affine(x)
        rows, mask = flatten_rows(x, pad_mask)
        call = self.notes.decide_once(rows, lambda: self.take_rows(rows, mask))
        rule = partial(self.correct_gradient, call, len(rows) if call.corrected is None else call.corrected.sum())
        mean = None if call.center is None else call.center.mean
        return normalize(self, x, call.scale, rule, mean=mean, corrected=call.corrected)

    def take_rows(self, rows: Tensor, mask: Tensor | None) -> Call:
        """Measures rows (R, C) and takes them into the state."""
        switches = self.switches
        moments = measure_moments(
            rows,
            mask if switches.pad_moment == "excluded" else None,
            centered=switches.centering != "none",
            sync=switches.sync,
            input_type=switches.statistics_type == "input",
        )
        call = take_batch(self, moments, self.smooth_moment, switches.reject_nonfinite)
        return call._replace(corrected=self.find_corrected_rows(mask))

    def find_corrected_rows(self, mask: Tensor | None) -> Tensor | None:
        """Returns the rows (R, 1) that take part in the gradient statistic; None for all (S14)."""
        switches = self.switches
        if switches.centering != "none":
            excluded = switches.pad_moment == "excluded"
        else:
            excluded = switches.pad_gradient == "excluded"
        return None if mask is None or not excluded else mask.logical_not().unsqueeze(-1)

    def smooth_moment(self, batch: Batch) -> Call:  # type: ignore[override]  # it has a field more
        """Takes the batch into the windows and finds s, r and what the backward needs."""
        switches, q, running = self.switches, batch.square, self.running_var
        phase = self.schedule.locate(batch.number)
        center = None if batch.mean is None else self.choose_center(batch, phase)
        if center is not None and switches.centering == "window":
            q = q + (center.batch_mean - center.mean).square()
        filtered, gap, threshold = self.push_moment(q, phase)
        s = moved = q
        if filtered is not None:
            phase = phase.drop(filtered)
        if switches.forward_average != "last":
            s = moved = torch.where(phase.forward_raw, q, AVERAGES[switches.forward_average](self.buffer_x2))
        if filtered is not None and switches.filtered_running == "freeze":
            moved = torch.where(filtered, running, s)
        scale = (s + self.eps).rsqrt_()
        ratio = self.compensate(scale, phase)
        move_average(running, moved, self.momentum[0])
        slot, raw, dropped = phase.backward_slot, phase.backward_raw, phase.dropped
        return Call(scale, ratio, slot, raw, dropped, batch.refused, gap, threshold, center)

    def choose_center(self, batch: Batch, phase: Phase) -> Center:
        """Takes the batch's mean into the state, and chooses the mean to subtract (S20)."""
        assert batch.mean is not None  # centered moments have one
        mean, derivative = batch.mean, torch.ones_like(batch.mean)
        if self.switches.centering == "window":
            push_entry(self, FORWARD, self.buffer_mean, phase.forward_slot, mean)
            share = derivative / (self.window[0] * count_calls(self, FORWARD))
            derivative = torch.where(phase.forward_raw, derivative, share)
            mean = torch.where(phase.forward_raw, mean, average_slots(self.buffer_mean))
        if batch.refused is not None:
            derivative = derivative.masked_fill(batch.refused, 0)
        move_average(self.running_mean, mean, self.momentum[0])
        return Center(mean, derivative, batch.mean)

    def push_moment(self, q: Tensor, phase: Phase) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Takes q (C,) into the window, or what outliers leave there (S5 to S9).

        Returns:
            Whether smoothing is dropped, for the layer or (C,), and the gap and threshold that decided it; None where
            filtration is off.
        """
        switches, window, slot = self.switches, self.buffer_x2, phase.forward_slot
        if not self.filtration:
            push_entry(self, FORWARD, window, slot, q)
            return None, None, None
        old, entry = read_slot(window, slot), merge_entry(self, FORWARD, window, slot, q)
        threshold = measure_threshold(window, switches)
        write_slot(window, slot, entry)
        if switches.threshold_window == "after":
            threshold = measure_threshold(window, switches)
        gap = measure_gap(window)
        if switches.filter_decision == "mean":
            gap, threshold = gap.mean(), threshold.mean()
        filtered = find_outliers(gap, threshold, switches.filter_decision) & ~phase.unfiltered
        self.skip_counter.add_(filtered.any())
        kept = {"running": self.running_var, "batch": entry, "keep": old}[switches.filtered_moment]
        write_slot(window, slot, torch.where(filtered, kept, entry))
        return filtered, gap, threshold

    def compensate(self, scale: Tensor, phase: Phase) -> Tensor:
        """Returns r (C,) for the scale 1 / sqrt(s + eps), before v moves (S1, S2)."""
        if self.switches.compensation == "none":
            return torch.ones_like(scale)
        ratio = (self.running_var + self.eps).rsqrt_() / scale
        if self.switches.compensation_limits is not None:
            ratio.clamp_(*self.switches.compensation_limits)
        return ratio.masked_fill_(phase.uncompensated, 1)

    def smooth_gradient(self, call: Call, p: Tensor) -> Tensor:  # type: ignore[override]
        """Takes p (C,) into the window and the running average ψ, and returns the one to correct by (S3, S10, S11)."""
        switches, window, average, dropped = self.switches, self.buffer_gz, self.ema_gz, call.dropped
        kept = average
        if switches.filtered_gradient != "running":
            kept = p if switches.filtered_gradient == "batch" else read_slot(window, call.slot)
        push_entry(self, BACKWARD, window, call.slot, choose(dropped, kept, p))
        mean = p
        if switches.backward_average in ("window_running", "window"):
            mean = torch.where(call.raw, p, average_slots(window))
        replaced = average.clone() if switches.filtered_gradient_average == "keep" else p
        move_average(average, mean, self.momentum[1])
        if switches.warmup_gradient == "instant":
            unsmoothed = call.raw if dropped is None else call.raw & ~dropped
            average.copy_(torch.where(unsmoothed, p, average))
        if dropped is not None and switches.filtered_gradient_average != "update":
            average.copy_(torch.where(dropped, replaced, average))
        runs = switches.backward_average in ("window_running", "running")
        return choose(dropped, mean, average if runs else mean)

    def correct_gradient(  # type: ignore[override]
        self, call: Call, num_rows: int | Tensor, upstream: Upstream
    ) -> Coefficients:
        """Finds dL/dx and dL/dγ (S1, S17, S20)."""
        weight, dx_sum, d_sum = upstream
        compensated = call.ratio * call.scale
        outer = compensated if weight is None else compensated * weight
        weight_grad = dx_sum * (compensated if self.switches.compensation == "full" else call.scale)
        if is_distributed(self.switches.sync):
            dx_sum, d_sum, num_rows = sum_over_processes(dx_sum, d_sum, num_rows, like=dx_sum)
        step = partial(self.smooth_gradient, call)
        p, rejecting = divide(outer * dx_sum, num_rows), self.switches.reject_nonfinite
        psi = take_gradient(self, call.refused, p, step, otherwise=self.ema_gz, rejecting=rejecting)
        inner, center = psi * call.scale * call.scale, call.center
        if center is None:
            return Coefficients(outer, inner, None, weight_grad)
        # Exact gradient through the mean: every row loses its share of the summed gradient of the centred rows.
        gathered = divide(outer * d_sum, num_rows) - inner * (center.batch_mean - center.mean)
        return Coefficients(outer, inner, center.derivative * gathered, weight_grad)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Returns the inference map: scale = γ / sqrt(v + ε), shift = β - running mean * scale."""
        return self.combine_affine((self.running_var + self.eps).rsqrt(), self.read_running()[1])

    def extra_repr(self) -> str:
        """Adds every switch that is away from its default."""
        return super().extra_repr() + self.switches.describe_changes()


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the options of `UnifiedNorm` and the others, which should be switches."""
    plain = {name: value for name, value in options.items() if name in PLAIN_OPTIONS}
    return plain, {name: value for name, value in options.items() if name not in PLAIN_OPTIONS}


UnifiedNorm.variant = UnifiedNormVariant
