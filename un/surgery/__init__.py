"""Finds the norms of any built model, by what they do, and replaces them in place."""

from un.surgery.layout import ChannelFirst
from un.surgery.masking import share_pad_mask
from un.surgery.recognition import is_norm
from un.surgery.replacement import SurgeryReport, mark_final_norms, replace_norms, reset_norm_steps
from un.surgery.sites import NormFactory

__all__ = [
    "ChannelFirst",
    "NormFactory",
    "SurgeryReport",
    "is_norm",
    "mark_final_norms",
    "replace_norms",
    "reset_norm_steps",
    "share_pad_mask",
]
