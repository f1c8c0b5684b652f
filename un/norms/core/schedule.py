"""Where a norm stands in its warm-up, decided on the device from its step counter."""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
from torch import Tensor

from un.norms.core.constants import get_constant

# The official code switches the compensation ratio on after this many calls at the earliest (S2, MABN too).
COMPENSATION_START = 1000
RATIO_LIMITS = (0.2, 5.0)  # and clamps it to these
ALWAYS = sys.maxsize


class Phase(NamedTuple):
    """Ring slots and flags of one call, tensors without axes on the norm's device."""

    forward_slot: Tensor
    backward_slot: Tensor
    forward_raw: Tensor  # the second moment is not smoothed yet
    backward_raw: Tensor  # nor the gradient statistic
    uncompensated: Tensor  # the ratio r is 1
    unfiltered: Tensor  # filtration is not on yet
    dropped: Tensor | None = None  # smoothing is dropped: in every call, or by `drop`; None: it is not

    def drop(self, flag: Tensor) -> Phase:
        """Returns the phase in which smoothing and compensation are dropped, too, where `flag` is true."""
        return self._replace(
            forward_raw=self.forward_raw | flag,
            backward_raw=self.backward_raw | flag,
            uncompensated=self.uncompensated | flag,
            dropped=flag if self.dropped is None else self.dropped | flag,
        )


class Schedule:
    """Turns the step counter t into a `Phase` with two small operations.

    Args:
        windows: (M_f, M_b).
        warmup_steps: W.
        compensation_start: r is 1 while t <= max(compensation_start, W).
        on_full_window: smooth, and filter, once the window is full (t >= M, the paper) instead of once it was passed
            (t > M, official; filtration then only waits for W).
        dropped: smoothing is dropped in every call.
    """

    def __init__(
        self,
        windows: tuple[int, int],
        warmup_steps: int,
        *,
        compensation_start: int = COMPENSATION_START,
        on_full_window: bool = False,
        dropped: bool = False,
    ) -> None:
        self.windows, self.dropped = windows, dropped
        warmup_end = max(warmup_steps - 1, 0)
        forward_end, backward_end = (max(window - on_full_window, warmup_end) for window in windows)
        filtration_end = forward_end if on_full_window else warmup_end
        # The last calls of the flags of `Phase`, in their order; the first call is 1.
        limits = (forward_end, backward_end, max(compensation_start, warmup_steps), filtration_end)
        self.limits = (ALWAYS,) * len(limits) if dropped else limits

    def locate(self, number: Tensor) -> Phase:
        """Returns the phase of the call t = number (1,)."""
        if torch.compiler.is_compiling():  # comparisons with numbers are fused, tensors of them copied to the device
            t = number.squeeze(0)
            flags = tuple(t <= limit for limit in self.limits)
            slots = tuple(t % window for window in self.windows)
        else:
            device = number.device
            limits = get_constant((self.limits, device), lambda: torch.tensor(self.limits, device=device))
            windows = get_constant((self.windows, device), lambda: torch.tensor(self.windows, device=device))
            flags, slots = (number <= limits).unbind(), (number % windows).unbind()
        phase = Phase(*slots, *flags)
        return phase._replace(dropped=phase.forward_raw) if self.dropped else phase
