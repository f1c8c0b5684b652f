"""UN with its switches: where the paper and the official code differ, and variants of our own.

`UnifiedNorm(..., switch=value)` is of this class where a switch is away from its default, and `un.norms.Switches`
explains each. Read `un.norms.unified` first: the steps are the same, and at the defaults so is every bit.
"""

from __future__ import annotations

import math
import sys
from collections import namedtuple
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from un.norms.core.base import flatten_rows
from un.norms.core.moments import divide, is_distributed, measure_moments, sum_over_processes
from un.norms.core.passes import Coefficients, Upstream, normalize
from un.norms.core.switches import Switches, build_switches
from un.norms.core.transaction import BACKWARD, FORWARD, Batch, take_batch
from un.norms.core.updates import count_calls, merge_entry, push_entry, register_count
from un.norms.core.window import average_geometrically, average_slots, choose, move_average, read_slot, write_slot
from un.norms.unified import Call, UnifiedNorm

PLAIN_OPTIONS = ("num_features", *UnifiedNorm.__init__.__kwdefaults__)  # type: ignore[misc]
ALWAYS = sys.maxsize  # calls


def average_harmonically(window: Tensor) -> Tensor:
    """Returns the harmonic mean over the slots."""
    return average_slots(window.reciprocal()).reciprocal()


AVERAGES = {"geometric": average_geometrically, "arithmetic": average_slots, "harmonic": average_harmonically}


class Center(NamedTuple):
    """The mean that a call subtracts (S20); vectors are (C,)."""

    mean: Tensor
    offset: Tensor  # of the batch's own mean from it
    derivative: Tensor  # of it, by the batch's own mean


# What a forward hands to its backward: what the plain norm does (flags (C,) where channels decide alone), a Center or
# None, and the rows (R, 1) that take part in the gradient statistic, or None for all.
VariantCall = namedtuple("VariantCall", (*Call._fields, "center", "corrected"))  # type: ignore[misc]


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
        plain, others = split_options(options)
        self.switches = switches = build_switches(**others)
        super().__init__(num_features, **plain)
        if switches.centering != "none":
            self.register_state("running_mean", 0, num_features)
            self.register_state("buffer_mean", 0, self.window[0], num_features)
            self.overwritten = ("buffer_x2", "buffer_mean")
        register_count(self, switches.count)
        self.counts_padding = switches.pad_moment == "included"
        self.rejects_nonfinite = switches.reject_nonfinite
        self.always_dropped = self.window[0] == 1 and switches.single_window == "unsmoothed"  # S18
        self.ratio_limits = switches.compensation_limits or (0, math.inf)  # S2
        self.set_warmup(self.warmup_steps)  # once more, with all that it depends on
        self.average_window = AVERAGES.get(switches.forward_average, average_geometrically)

    def set_warmup(self, steps: int) -> None:
        """Finds the last calls before each phase, by the switches."""
        super().set_warmup(steps)
        switches = self.switches
        self.last_uncompensated = max(switches.compensation_start, steps)  # S2
        if switches.compensation == "none":  # S1
            self.last_uncompensated = ALWAYS
        if switches.smoothing_start == "full_window":  # S4
            self.last_raw = tuple(max(size, steps, 1) - 1 for size in self.window)
            self.last_unfiltered = self.last_raw[0]
        self.last_uncentered = ALWAYS if self.always_dropped else self.last_raw[0]  # by the window's mean
        if switches.forward_average == "last":  # S13
            self.last_raw = (ALWAYS, self.last_raw[1])

    @classmethod
    def is_asked_for(cls, options: Mapping[str, Any]) -> bool:
        """Tells whether a switch is away from its default."""
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

    def take_rows(self, rows: Tensor, mask: Tensor | None) -> Any:
        """Measures rows (R, C) and takes them into the state (S14, S16, S17, S20)."""
        switches = self.switches
        centered, counted = switches.centering != "none", self.counts_padding
        moments = measure_moments(
            rows,
            None if counted else mask,
            centered=centered,
            sync=switches.sync,
            input_type=switches.statistics_type == "input",
        )
        call = take_batch(self, moments, self.smooth_moment)
        # The exact gradient through the mean needs the rows that are in it.
        all_rows = counted if centered else switches.pad_gradient == "included"
        return call._replace(corrected=None if mask is None or all_rows else mask.logical_not().unsqueeze(-1))

    def smooth_moment(self, batch: Batch) -> Any:
        """Takes the batch into the windows and finds what the backward needs (S12, S20)."""
        center = None
        if batch.mean is not None:
            center = self.smooth_mean(batch.mean, batch)
            if self.switches.centering == "window":
                batch = batch._replace(square=batch.square + center.offset.square())
        frozen = self.switches.filtered_running == "freeze" and not self.always_dropped
        before = self.running_var.clone() if frozen else None
        call = super().smooth_moment(batch)
        if before is not None:
            self.running_var.copy_(choose(call.dropped, before, self.running_var))
        return VariantCall(*call, center, None)  # type: ignore[call-arg]  # mypy cannot see the fields

    def smooth_mean(self, mean: Tensor, batch: Batch) -> Center:
        """Takes the batch's mean into window and running average, and finds the mean to subtract (S20)."""
        smooth, derivative = mean, torch.ones_like(mean)
        if self.switches.centering == "window":
            window, raw = self.buffer_mean, batch.number <= self.last_uncentered
            push_entry(self, FORWARD, window, batch.number % len(window), mean)
            smooth = torch.where(raw, mean, average_slots(window))
            derivative = torch.where(raw, derivative, derivative / (len(window) * count_calls(self, FORWARD)))
        move_average(self.running_mean, smooth, self.momentum[0])
        return Center(smooth, mean - smooth, derivative.masked_fill(batch.refused, 0))

    def push_moment(self, q: Tensor, number: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Writes q into the window, or what outliers leave there; returns outlier, gap and threshold (S5 to S9)."""
        switches, window, slot = self.switches, self.buffer_x2, number % self.window[0]
        if not self.filtration:
            push_entry(self, FORWARD, window, slot, q)
            return None, None, None
        old, entry = read_slot(window, slot), merge_entry(self, FORWARD, window, slot, q)
        threshold = measure_threshold(window, switches)
        write_slot(window, slot, entry)
        if switches.threshold_window == "after":
            threshold = measure_threshold(window, switches)
        gap = average_slots(window) - average_geometrically(window)
        if switches.filter_decision == "mean":
            gap, threshold = gap.mean(), threshold.mean()
        exceeded = gap > threshold
        outlier = (exceeded if switches.filter_decision == "channel" else exceeded.any()) & (
            number > self.last_unfiltered
        )
        self.skip_counter.add_(outlier.any())
        kept = {"running": self.running_var, "batch": entry, "keep": old}[switches.filtered_moment]
        write_slot(window, slot, torch.where(outlier, kept, entry))
        return outlier, gap, threshold

    def correct_gradient(self, call: Any, num_rows: int | Tensor, upstream: Upstream) -> Coefficients:
        """Finds dL/dx and dL/dγ (S1, S17, S20)."""
        own_sum = upstream.dx_sum
        if is_distributed(self.switches.sync):
            dx_sum, d_sum, num_rows = sum_over_processes(own_sum, upstream.d_sum, num_rows, like=own_sum)
            upstream = upstream._replace(dx_sum=dx_sum, d_sum=d_sum)
        outer, inner, offset, _ = super().correct_gradient(call, num_rows, upstream)
        if call.center is not None:
            # Exact gradient through the mean: every row loses its share of the summed gradient of the centred rows.
            gathered = divide(outer * upstream.d_sum, num_rows) - inner * call.center.offset
            offset = call.center.derivative * gathered
        seen = call.scale if self.switches.compensation == "input" else call.ratio * call.scale
        return Coefficients(outer, inner, offset, own_sum * seen)

    def smooth_gradient(self, call: Any, p: Tensor) -> Tensor:
        """Takes p (C,) into the window and the running average ψ, and returns the one to correct by (S3, S10, S11)."""
        switches, window, average, dropped = self.switches, self.buffer_gz, self.ema_gz, call.dropped
        slot, kept, replaced = call.number % len(window), average, p
        if switches.filtered_gradient != "running":
            kept = p if switches.filtered_gradient == "batch" else read_slot(window, slot)
        if switches.filtered_gradient_average == "keep":
            replaced = average.clone()
        push_entry(self, BACKWARD, window, slot, choose(dropped, kept, p))
        raw, mean = call.phase <= self.last_raw[1], p
        if switches.backward_average in ("window_running", "window"):
            mean = torch.where(raw, p, average_slots(window))
        move_average(average, mean, self.momentum[1])
        if switches.warmup_gradient == "instant":
            average.copy_(torch.where(raw & (call.phase > 0), p, average))
        if switches.filtered_gradient_average != "update":
            average.copy_(choose(dropped, replaced, average))
        if switches.backward_average in ("window", "instant"):
            return mean
        return choose(dropped, mean, average)

    def extra_repr(self) -> str:
        return super().extra_repr() + self.switches.describe_changes()


def measure_threshold(window: Tensor, switches: Switches) -> Tensor:
    """Returns M times the variance of sqrt(window): a scalar for the layer, or (C,) (S6, S7)."""
    correction = 1 if switches.threshold_divisor == "sample" else 0
    roots = window.sqrt()
    pooled = switches.threshold_scope == "layer"
    variance = roots.var(correction=correction) if pooled else roots.var(0, correction=correction)
    return variance * (len(window) if switches.threshold_factor is None else switches.threshold_factor)


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the options of `UnifiedNorm` and the others, which should be switches."""
    plain = {name: value for name, value in options.items() if name in PLAIN_OPTIONS}
    return plain, {name: value for name, value in options.items() if name not in PLAIN_OPTIONS}


UnifiedNorm.variant = UnifiedNormVariant
