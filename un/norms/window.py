"""Ring buffers of recent statistics and the averages over them (fluctuation smoothing, paper section 3)."""

from __future__ import annotations

from torch import Tensor

AVERAGES = ("geometric", "arithmetic", "harmonic", "last")


def read_slot(ring: Tensor, slot: Tensor) -> Tensor:
    """The entry (1, C) of ring (M, C) at slot (1,)."""
    return ring.index_select(0, slot)


def write_slot(ring: Tensor, slot: Tensor, value: Tensor) -> None:
    """Writes value, (1, C) or (C,), into ring (M, C) at slot (1,), on the device."""
    ring.index_copy_(0, slot, value if value.dim() == 2 else value.unsqueeze(0))


def average_window(ring: Tensor, kind: str, latest: Tensor) -> Tensor:
    """Averages ring (M, C) over its slots.

    An empty slot (0) makes the geometric mean 0, as in the official code, which takes exp(mean(log)); the product of
    M-th roots is the same number from half the operations. `last` is no smoothing.

    Args:
        ring: (M, C).
        kind: one of AVERAGES.
        latest: (C,), what `last` returns.
    """
    if kind == "geometric":
        return average_geometrically(ring)
    if kind == "arithmetic":
        return average_slots(ring)
    if kind == "harmonic":
        return average_slots(ring.reciprocal()).reciprocal_()
    return latest


def average_slots(ring: Tensor) -> Tensor:
    """Arithmetic mean over the slots; a sum and a product are half the cost of `mean` at this size."""
    return ring.sum(0).mul_(1 / ring.shape[0])


def average_geometrically(ring: Tensor) -> Tensor:
    """Geometric mean over the slots."""
    return ring.pow(1 / ring.shape[0]).prod(0)
