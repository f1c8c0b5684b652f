"""Runs a channel-last norm where a model keeps its channels on axis 1, as ConvNeXt's stem and downsampling do."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ChannelFirst(nn.Module):
    """Presents maps (B, C, H, W), or any (B, C, ...), to a norm that expects channels last.

    Both permutations are views, so the only cost is the norm's own reading of a strided input. The inner norm stays
    visible as `norm`, which also prefixes its keys in a state dict; parameters, `num_features` and `affine()` are passed
    through, so that code which reads them from a norm needs no case for the wrapper.

    Args:
        norm: a norm over the last axis.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm: Any = norm

    @property
    def num_features(self) -> int:
        """C of the inner norm."""
        return self.norm.num_features

    @property
    def weight(self) -> nn.Parameter | None:
        """Weight (C,) of the inner norm."""
        return self.norm.weight

    @property
    def bias(self) -> nn.Parameter | None:
        """Bias (C,) of the inner norm."""
        return self.norm.bias

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """The inner norm's inference map: scale and shift, each (C,), along axis 1 of a map."""
        return self.norm.affine()

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalises x (B, C, H, W); pad_mask (B, H, W), True = padding."""
        x = x.movedim(1, -1)
        y = self.norm(x) if pad_mask is None else self.norm(x, pad_mask)
        return y.movedim(-1, 1)
