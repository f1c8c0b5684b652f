"""Normalization layers for Transformers, all as `norm(x, pad_mask=None)` on channel-last x."""

from un.norms.batchnorm import BatchNorm, FeedForwardBatchNorm, RepBatchNorm
from un.norms.channel_map import CenteredMap, ChannelMap
from un.norms.core.base import Norm
from un.norms.core.calibration import calibrate
from un.norms.core.schedule import set_training_length
from un.norms.core.switches import Switches
from un.norms.core.updates import describe_warmup, end_update
from un.norms.dynamic import DynamicErf, DynamicTanh
from un.norms.groupnorm import GroupNorm
from un.norms.mabn import MovingAverageBatchNorm
from un.norms.powernorm import PowerNorm
from un.norms.progressive import ProgressiveRepBatchNorm
from un.norms.regularized import RegularizedBatchNorm
from un.norms.rmsnorm import RMSNorm, ScaleNorm
from un.norms.taper import TaperNorm
from un.norms.unified import UnifiedNorm
from un.norms.unified_variants import UnifiedNormVariant

__all__ = [
    "BatchNorm",
    "CenteredMap",
    "ChannelMap",
    "DynamicErf",
    "DynamicTanh",
    "FeedForwardBatchNorm",
    "GroupNorm",
    "MovingAverageBatchNorm",
    "Norm",
    "PowerNorm",
    "ProgressiveRepBatchNorm",
    "RMSNorm",
    "RegularizedBatchNorm",
    "RepBatchNorm",
    "ScaleNorm",
    "Switches",
    "TaperNorm",
    "UnifiedNorm",
    "UnifiedNormVariant",
    "calibrate",
    "describe_warmup",
    "end_update",
    "set_training_length",
]
