"""Outlier filtration: the AM-GM threshold that says when smoothing must be dropped (paper section 3).

For equal weights the arithmetic mean exceeds the geometric mean by at most M times the variance of the square roots, on
one and the same window. A larger gap, measured against the variance of the window before the new entry or pooled over
channels, marks an outlier.
"""

from __future__ import annotations

from torch import Tensor

from un.norms.core.switches import Switches
from un.norms.core.window import average_geometrically, average_slots


def measure_threshold(ring: Tensor, switches: Switches) -> Tensor:
    """M times the variance of sqrt(ring) for ring (M, C): a scalar for the layer, or (C,) (S6, S7)."""
    correction = 1 if switches.threshold_divisor == "sample" else 0
    roots = ring.sqrt()
    pooled = switches.threshold_scope == "layer"
    variance = roots.var(correction=correction) if pooled else roots.var(0, correction=correction)
    return variance * (ring.shape[0] if switches.threshold_factor is None else switches.threshold_factor)


def measure_gap(ring: Tensor) -> Tensor:
    """Arithmetic minus geometric mean over the slots of ring (M, C), per channel; never below 0 but for rounding."""
    return average_slots(ring) - average_geometrically(ring)


def find_outliers(gap: Tensor, threshold: Tensor, decision: str) -> Tensor:
    """Whether to drop smoothing: a boolean without axes for the layer, or (C,) where every channel decides for itself.

    A NaN on either side compares false, so a window that holds a non-finite entry filters nothing (official code).

    Args:
        gap: (C,) from `measure_gap`.
        threshold: scalar or (C,).
        decision: `any` channel drops the layer (official), `channel` drops itself, `mean` compares means.
    """
    if decision == "mean":
        return gap.mean() > threshold.mean()
    exceeded = gap > threshold
    return exceeded if decision == "channel" else exceeded.any()
