"""Ring buffers of recent statistics and the averages over them (fluctuation smoothing, paper section 3)."""

from __future__ import annotations

from torch import Tensor

AVERAGES = ("geometric", "arithmetic", "harmonic", "last")


def read_slot(ring: Tensor, slot: Tensor) -> Tensor:
    """The entry (C,) of ring (M, C) at slot (1,)."""
    return ring.index_select(0, slot).squeeze(0)


def write_slot(ring: Tensor, slot: Tensor, value: Tensor) -> None:
    """Writes value (C,) into ring (M, C) at slot (1,), on the device."""
    ring.index_copy_(0, slot, value.to(ring.dtype).unsqueeze(0))


def average_window(ring: Tensor, kind: str, latest: Tensor) -> Tensor:
    """Averages ring (M, C) over its slots.

    The geometric mean is exp(mean(log)), so an empty slot (0) makes it 0 (official code). `last` is no smoothing.

    Args:
        ring: (M, C).
        kind: one of AVERAGES.
        latest: (C,), what `last` returns.
    """
    if kind == "geometric":
        return ring.log().mean(0).exp_()
    if kind == "arithmetic":
        return ring.mean(0)
    if kind == "harmonic":
        return ring.reciprocal().mean(0).reciprocal_()
    return latest
