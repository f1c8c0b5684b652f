"""What is left of a norm that cannot vanish: one multiplication and one addition per element, or only the former."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScaleShift(nn.Module):
    """Computes scale * x + shift per channel, in the type of the wider of x and scale, and returns x's type.

    Args:
        scale: (C,) where the channels are last, (C, 1, ...) with one 1 per axis behind them where they are not.
        shift: of scale's shape; None for a multiplication alone.
    """

    scale: Tensor
    shift: Tensor | None

    def __init__(self, scale: Tensor, shift: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Maps x; pad_mask is ignored, as by every norm at inference."""
        y = x * self.scale if self.shift is None else torch.addcmul(self.shift, x, self.scale)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        """Channels, and whether there is a shift."""
        return f"{self.scale.shape[0]}" + ("" if self.shift is not None else ", shift=False")


class PassOn(nn.Identity):
    """Stands where a norm was that a model calls with a padding mask; returns x."""

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Returns x; pad_mask is ignored."""
        return x
