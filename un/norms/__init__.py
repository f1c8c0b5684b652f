"""Normalization layers for Transformers, all as `norm(x, pad_mask=None)` on channel-last x."""

from un.norms.batchnorm import BatchNorm, RepBatchNorm
from un.norms.core.base import Norm
from un.norms.core.calibration import calibrate
from un.norms.core.switches import Switches
from un.norms.core.updates import describe_warmup, end_update
from un.norms.dynamic import DynamicErf, DynamicTanh
from un.norms.groupnorm import GroupNorm
from un.norms.mabn import MovingAverageBatchNorm
from un.norms.powernorm import PowerNorm
from un.norms.progressive import ProgressiveRepBatchNorm
from un.norms.rmsnorm import RMSNorm
from un.norms.unified import UnifiedNorm
from un.norms.unified_variants import UnifiedNormVariant

__all__ = [
    "BatchNorm",
    "DynamicErf",
    "DynamicTanh",
    "GroupNorm",
    "MovingAverageBatchNorm",
    "Norm",
    "PowerNorm",
    "ProgressiveRepBatchNorm",
    "RMSNorm",
    "RepBatchNorm",
    "Switches",
    "UnifiedNorm",
    "UnifiedNormVariant",
    "calibrate",
    "describe_warmup",
    "end_update",
]
