"""Switch S20 of UN (ours): the mean that is subtracted, of the batch or of the window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from un.norms.moments import Moments, as_type, choose
from un.norms.schedule import Phase
from un.norms.updates import merge_entry
from un.norms.window import average_slots, read_slot, write_slot

if TYPE_CHECKING:
    from un.norms.unified import UnifiedNorm


def choose_center(
    norm: UnifiedNorm, moments: Moments, phase: Phase, usable: Tensor | None, number: Tensor | None
) -> tuple[Tensor | None, Tensor | float]:
    """Takes the batch's mean into the state of a norm with centering.

    Returns:
        The mean (C,) to subtract and its derivative by the batch's mean; (None, 0) without centering.
    """
    if moments.mean is None:
        return None, 0.0
    center, weight = moments.mean, torch.ones_like(moments.mean)
    if norm.switches.centering == "window":
        ring, slot, raw = norm.buffer_mean, phase.forward_slot, phase.forward_raw
        old = read_slot(ring, slot)
        write_slot(ring, slot, choose(usable, merge_entry(number, old, as_type(center, ring)), old))
        slots = torch.full_like(weight, norm.window[0]) if number is None else norm.window[0] * number.to(weight.dtype)
        weight = torch.where(raw, weight, slots.reciprocal())
        center = torch.where(raw, center, average_slots(ring))
    center = choose(usable, center, norm.running_mean)
    weight = choose(usable, weight, torch.zeros_like(weight))
    norm.running_mean.lerp_(as_type(center, norm.running_mean), 1 - norm.momentum[0])
    return center, weight
