"""Windows of recent statistics and averages over them: fluctuation smoothing (paper, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor


def write_slot(ring: Tensor, slot: Tensor, entry: Tensor) -> None:
    """Writes entry, (1, C) or (C,), into ring (M, C) at slot (1,), on the device."""
    ring.index_copy_(0, slot, as_type(entry if entry.dim() == 2 else entry.unsqueeze(0), ring))


def read_slot(ring: Tensor, slot: Tensor) -> Tensor:
    """Returns the entry (1, C) of ring (M, C) at slot (1,)."""
    return ring.index_select(0, slot)


def move_average(running: Tensor, value: Tensor, momentum: float) -> None:
    """Moves a running average (C,), in which the old value has the weight `momentum`."""
    running.lerp_(as_type(value, running), 1 - momentum)


def average_slots(ring: Tensor) -> Tensor:
    """Returns the arithmetic mean over the slots; a sum and a product are half the cost of `mean` at this size."""
    return ring.sum(0).mul_(1 / ring.shape[0])


def average_geometrically(ring: Tensor) -> Tensor:
    """Returns the geometric mean over the slots.

    An empty slot (0) makes it 0, as in the official code, which takes exp(mean(log)); the product of M-th roots is the
    same number from half the operations.
    """
    return ring.pow(1 / ring.shape[0]).prod(0)


def average_harmonically(ring: Tensor) -> Tensor:
    """Returns the harmonic mean over the slots."""
    return average_slots(ring.reciprocal()).reciprocal_()


def choose(flag: Tensor | None, value: Tensor, other: Tensor) -> Tensor:
    """Returns `value` where flag is true, else `other`; `other` everywhere for None."""
    return other if flag is None else torch.where(flag, value, other)


def as_type(value: Tensor, like: Tensor) -> Tensor:
    """Returns `value` in the type of `like`; the test is cheaper than a `to` that does nothing."""
    return value if value.dtype == like.dtype else value.to(like.dtype)
