"""Windows of recent statistics and averages over them: fluctuation smoothing (paper, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor


def write_slot(window: Tensor, slot: Tensor, entry: Tensor) -> None:
    """Writes entry, (C,) or (1, C), into window (M, C) at a slot, a number on the device."""
    window.index_copy_(0, slot, entry.reshape(1, -1).to(window.dtype))


def read_slot(window: Tensor, slot: Tensor) -> Tensor:
    """Returns the entry (1, C) of window (M, C) at a slot; window[slot] would wait for the device."""
    return window.index_select(0, slot)


def average_slots(window: Tensor) -> Tensor:
    """Returns the arithmetic mean over the slots."""
    return window.mean(0)


def average_geometrically(window: Tensor) -> Tensor:
    """Returns the geometric mean over the slots, the product of their M-th roots.

    An empty slot (0) makes it 0, as in the official code. The mean of one slot is that slot to the bit, and a window of
    1 has no outliers.
    """
    return window.pow(1 / len(window)).prod(0)


def choose(flag: Tensor | None, value: Tensor, otherwise: Tensor) -> Tensor:
    """Returns the value where a flag is true, else the other; None is a flag that never is."""
    return otherwise if flag is None else torch.where(flag, value, otherwise)


def move_average(running: Tensor, value: Tensor, momentum: float) -> None:
    """Moves a running average (C,), in which the old value has the weight `momentum`."""
    running.lerp_(value.to(running.dtype), 1 - momentum)
