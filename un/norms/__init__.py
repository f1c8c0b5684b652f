"""Normalization layers for Transformers, all as `norm(x, pad_mask=None)` on channel-last x."""

from un.norms.base import Norm
from un.norms.batchnorm import BatchNorm, RepBatchNorm
from un.norms.calibration import calibrate
from un.norms.dynamic_tanh import DynamicTanh
from un.norms.layout import ChannelFirst
from un.norms.mabn import MovingAverageBatchNorm
from un.norms.masking import share_pad_mask
from un.norms.powernorm import PowerNorm
from un.norms.progressive import ProgressiveRepBatchNorm
from un.norms.rmsnorm import RMSNorm
from un.norms.switches import Switches
from un.norms.unified import UnifiedNorm
from un.norms.unified_variants import UnifiedNormVariant

__all__ = [
    "BatchNorm",
    "ChannelFirst",
    "DynamicTanh",
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
    "share_pad_mask",
]
