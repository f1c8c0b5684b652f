"""Where a layer stands in its warm-up, decided on the device from its step counter."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from un.norms.constants import get_constant
from un.norms.switches import Switches

# The official code switches the compensation ratio on after this many calls at the earliest (S2, MABN too).
COMPENSATION_START = 1000


class Phase(NamedTuple):
    """Flags and ring slots of one call, tensors without axes on the layer's device."""

    forward_slot: Tensor
    backward_slot: Tensor
    forward_raw: Tensor  # the forward statistic is not smoothed yet
    backward_raw: Tensor
    uncompensated: Tensor  # the ratio r is 1
    unfiltered: Tensor  # filtration is not on yet


class Schedule:
    """Turns the step counter t into a `Phase` with two small operations.

    Args:
        windows: (M_f, M_b).
        raw_until: last t of the (forward, backward) statistics that are not smoothed.
        uncompensated_until: last t with r = 1.
        unfiltered_until: last t without filtration.
    """

    def __init__(
        self, windows: tuple[int, int], raw_until: tuple[int, int], uncompensated_until: int, unfiltered_until: int = 0
    ) -> None:
        self.windows = windows
        self.limits = (*raw_until, uncompensated_until, unfiltered_until)

    def locate(self, iters: Tensor) -> Phase:
        """The phase at t = iters (1,)."""
        if torch.compiler.is_compiling():  # comparisons with numbers are fused, tensors of them copied to the device
            t = iters.squeeze(0)
            return Phase(*(t % window for window in self.windows), *(t <= limit for limit in self.limits))
        device = iters.device
        windows = get_constant((self.windows, device), lambda: torch.tensor(self.windows, device=device))
        limits = get_constant((self.limits, device), lambda: torch.tensor(self.limits, device=device))
        return Phase(*(iters % windows).unbind(), *(iters <= limits).unbind())


def make_schedule(windows: tuple[int, int], warmup_steps: int, switches: Switches) -> Schedule:
    """UN's schedule (S2, S4): smooth once the window was passed and filter from W on, or both on a full window."""
    if switches.smoothing_start == "full_window":
        raw_until = (max(windows[0], warmup_steps) - 1, max(windows[1], warmup_steps) - 1)
        unfiltered_until = raw_until[0]
    else:
        raw_until = (max(windows[0], warmup_steps - 1), max(windows[1], warmup_steps - 1))
        unfiltered_until = warmup_steps - 1
    return Schedule(windows, raw_until, max(switches.compensation_start, warmup_steps), unfiltered_until)
