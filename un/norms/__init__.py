"""Normalization layers for Transformers, all as `norm(x, pad_mask=None)` on channel-last x."""

from un.norms.base import Norm
from un.norms.unified import UnifiedNorm

__all__ = ["Norm", "UnifiedNorm"]
