"""Runs a channel-last norm where a model keeps its channels on another axis, as ConvNeXt's downsampling does."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ChannelFirst(nn.Module):
    """Presents maps (B, C, H, W), sequences (B, C, T), or any (B, C, ...), to a norm that expects channels last.

    Both permutations are views, so the only cost is the norm's own reading of a strided input. The inner norm stays
    visible as `norm`, which also prefixes its keys in a state dict; parameters, `num_features` and `affine()` are
    passed through, so that code which reads them from a norm needs no case for the wrapper.

    Args:
        norm: a norm over the last axis.
        axis: of the channels; -2 for a norm that swaps the last two axes, whatever their number.
    """

    def __init__(self, norm: nn.Module, axis: int = 1) -> None:
        super().__init__()
        self.norm: Any = norm
        self.axis = axis

    @property
    def num_features(self) -> int:
        return self.norm.num_features

    @property
    def weight(self) -> nn.Parameter | None:
        return self.norm.weight

    @property
    def bias(self) -> nn.Parameter | None:
        return self.norm.bias

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """Returns the inner norm's inference map: scale and shift, each (C,), along the axis of the channels."""
        return self.norm.affine()

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalises x (B, C, ...); pad_mask (B, ...), True = padding."""
        x = x.movedim(self.axis, -1)
        y = self.norm(x) if pad_mask is None else self.norm(x, pad_mask)
        return y.movedim(-1, self.axis)

    def extra_repr(self) -> str:
        return "" if self.axis == 1 else f"axis={self.axis}"


def find_inner(norm: nn.Module) -> nn.Module:
    """Returns the norm inside a layout wrapper, or the norm itself."""
    return norm.norm if isinstance(norm, ChannelFirst) else norm
