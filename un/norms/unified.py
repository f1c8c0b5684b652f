"""Unified Normalization (UN, arXiv 2208.01313), as the official code computes it (hikvision-research).

    forward     q = mean of x² over rows, without padding          the batch's second moment
                s = geometric mean of the last M q                 fluctuation smoothing; in warm-up, s = q
                z = x / sqrt(s + ε),  y = γ z + β
                v ← α v + (1 - α) s                                the running moment
    filtration  arithmetic - geometric mean of the last M q > M · variance of their square roots: an outlier,
                for which s = q and the window keeps v in the place of q
    backward    r = sqrt(s + ε) / sqrt(v + ε),  g = r γ dL/dy      compensation; in warm-up, r = 1
                p = mean of g z over rows                          the batch's gradient statistic
                ψ ← α ψ + (1 - α) · mean of the last M p           smoothed likewise; in warm-up, p in the mean's place
                dL/dx = (g - ψ z) / sqrt(s + ε)
    inference   y = γ x / sqrt(v + ε) + β                          an affine map, which folds into a linear layer

Where the paper differs, and other switches: `un.norms.unified_variants`. F1 to F11 and B1 to B8: docs/algorithm.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from un.norms.core.base import Norm, flatten_rows
from un.norms.core.moments import divide, measure_moments
from un.norms.core.options import check_flags, make_fractions, make_windows
from un.norms.core.passes import Coefficients, Upstream, normalize
from un.norms.core.schedule import choose_unit, register_place
from un.norms.core.transaction import Batch, take_batch, take_gradient
from un.norms.core.window import average_geometrically, average_slots, choose, move_average, write_slot

OFFICIAL_WARMUP = 4000  # calls


class Call(NamedTuple):
    """What a forward hands to its backward; vectors are (C,), the others have no axes."""

    scale: Tensor  # 1 / sqrt(s + ε)
    ratio: Tensor  # r
    number: Tensor  # t, from 1; 0 for a refused batch
    phase: Tensor  # t, but 0, before all phases, where smoothing is dropped
    dropped: Tensor | None  # whether smoothing is: for an outlier, and in every call with a window of 1; None: never
    refused: Tensor  # whether the batch is
    gap: Tensor | None  # arithmetic - geometric mean of the window, a vector; None without filtration
    threshold: Tensor | None  # what makes an outlier of a larger gap


class UnifiedNorm(Norm):
    """UN with the official behaviour.

    Buffers (official names, so official checkpoints load): running_var v (C,), ema_gz ψ (C,), buffer_x2 (M_f, C) and
    buffer_gz (M_b, C), the last q and p, iters (1,), skip_counter (1,); ours: nonfinite_counter (1,).

    Args:
        num_features: C.
        window: M, or a (forward, backward) pair.
        warmup_steps: W, training-mode calls of this layer before smoothing, filtration and compensation start; 4000
            unless there is a fraction.
        warmup_fraction: W as a fraction of the training (ours), see `un.norms.set_training_length`; with it there is a
            buffer more, warmup ().
        filtration: outlier filtration; officially off for language, on for vision.
        eps: ε.
        momentum: α, the weight of the OLD value in the running averages, or a (v, ψ) pair.
        affine, device, dtype: as of `Norm`.
        **switches: see `un.norms.Switches`; with one away from its default the norm is a `UnifiedNormVariant`.
    """

    overwritten: tuple[str, ...] = ("buffer_x2",)
    gradient_state = ("ema_gz", "buffer_gz")
    shown = ("window", "warmup_steps", "filtration")
    average_window = staticmethod(average_geometrically)

    def __init__(
        self,
        num_features: int,
        *,
        window: int | Sequence[int] = 4,
        warmup_steps: int | None = None,
        warmup_fraction: float | None = None,
        filtration: bool = False,
        eps: float = 1e-5,
        momentum: float | Sequence[float] = 0.9,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **switches: Any,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, device=device, dtype=dtype)
        check_flags(filtration=filtration)
        self.window, self.momentum = make_windows(window), make_fractions("momentum", momentum)
        self.filtration, warmup = filtration, choose_unit("warmup", warmup_steps, warmup_fraction, OFFICIAL_WARMUP)
        self.register_state("running_var", 1, num_features)
        self.register_state("ema_gz", 0, num_features)
        self.register_state("buffer_x2", 0, self.window[0], num_features)
        self.register_state("buffer_gz", 0, self.window[1], num_features)
        self.register_counters("iters", "skip_counter", "nonfinite_counter")
        self.ratio_limits, self.always_dropped = (0.2, 5.0), self.window[0] == 1
        if isinstance(warmup, float):
            register_place(self, "warmup", warmup)
            self.read_places()
        else:
            self.set_warmup(warmup)

    def set_warmup(self, steps: int) -> None:
        """Finds the last calls before smoothing (forward, backward), filtration and compensation start."""
        self.warmup_steps = steps
        self.last_raw: tuple[int, ...] = tuple(max(size, steps - 1) for size in self.window)
        self.last_unfiltered, self.last_uncompensated = max(steps - 1, 0), max(1000, steps)

    def read_places(self) -> None:
        super().read_places()
        if "warmup" in self.places:
            self.set_warmup(self.places["warmup"])

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalises x (..., C); pad_mask (...), True = padding, keeps rows out of the second moment."""
        x, pad_mask = self.check_input(x, pad_mask)
        if not self.training:
            return self.apply_affine(x)
        rows, mask = flatten_rows(x, pad_mask)
        call = self.notes.decide_once(rows, lambda: take_batch(self, measure_moments(rows, mask), self.smooth_moment))
        return normalize(self, x, call.scale, partial(self.correct_gradient, call, len(rows)))

    def smooth_moment(self, batch: Batch) -> Call:
        """Takes q into the window and finds s, r and what the backward needs (F5, F7, F8, F10)."""
        q, number, running = batch.square, batch.number, self.running_var
        outlier, gap, threshold = self.push_moment(q, number)
        dropped = torch.ones_like(number, dtype=torch.bool) if self.always_dropped else outlier
        phase = number if dropped is None else number.masked_fill(dropped, 0)
        s = torch.where(phase <= self.last_raw[0], q, self.average_window(self.buffer_x2))
        scale = (s + self.eps).rsqrt()
        ratio = ((running + self.eps).rsqrt() / scale).clamp_(*self.ratio_limits)
        ratio.masked_fill_(phase <= self.last_uncompensated, 1)
        move_average(running, s, self.momentum[0])
        return Call(scale, ratio, number, phase, dropped, batch.refused, gap, threshold)

    def push_moment(self, q: Tensor, number: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Writes q into the window, or v in the place of an outlier; returns outlier, gap, threshold (F3, F4, F6)."""
        window, slot = self.buffer_x2, number % self.window[0]
        if not self.filtration:
            write_slot(window, slot, q)
            return None, None, None
        threshold = len(window) * window.sqrt().var()  # of all entries, before q is one
        write_slot(window, slot, q)
        gap = average_slots(window) - average_geometrically(window)
        outlier = (gap > threshold).any() & (number > self.last_unfiltered)
        write_slot(window, slot, torch.where(outlier, self.running_var, q))
        self.skip_counter.add_(outlier)
        return outlier, gap, threshold

    def correct_gradient(self, call: Call, num_rows: int | Tensor, upstream: Upstream) -> Coefficients:
        """Finds dL/dx and dL/dγ (B1, B2, B7, B8)."""
        compensated = call.ratio * call.scale
        outer = compensated * upstream.weight
        p = divide(outer * upstream.dx_sum, num_rows)
        psi = take_gradient(self, call.refused, p, partial(self.smooth_gradient, call), otherwise=self.ema_gz)
        return Coefficients(outer, psi * call.scale * call.scale, None, compensated * upstream.dx_sum)

    def smooth_gradient(self, call: Call, p: Tensor) -> Tensor:
        """Takes p (C,) into the window and the running average ψ, and returns the one to correct by (B3 to B6)."""
        window, average = self.buffer_gz, self.ema_gz
        write_slot(window, call.number % self.window[1], choose(call.dropped, average, p))
        mean = torch.where(call.phase <= self.last_raw[1], p, average_slots(window))
        move_average(average, mean, self.momentum[1])
        return choose(call.dropped, mean, average)
