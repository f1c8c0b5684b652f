"""Runs a channel-last norm where a model keeps its channels on axis 1, as ConvNeXt's stem and downsampling do."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

PROBE_SCALE = 100.0  # of the inputs of `is_channel_first`, so large that eps does not matter
PROBE_TOLERANCE = 0.05  # on outputs of order 1: passes bfloat16 under autocast, not the factor 10 between positions


class ChannelFirst(nn.Module):
    """Presents maps (B, C, H, W), or any (B, C, ...), to a norm that expects channels last.

    Both permutations are views, so the only cost is the norm's own reading of a strided input. The inner norm stays
    visible as `norm`, which also prefixes its keys in a state dict; parameters, `num_features` and `affine()` are
    passed through, so that code which reads them from a norm needs no case for the wrapper.

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


def is_channel_first(norm: nn.Module) -> bool:
    """Whether a foreign norm, one with a `normalized_shape` (C,), takes maps (B, C, H, W).

    Asks the norm itself: a copy sees a map whose positions differ by a factor, and only a norm over axis 1 both accepts
    the shape and removes the factor. Names are a poorer guide: most such classes of timm and torchvision are called
    "...2d", but ConvNeXt's original LayerNorm is not and has the layout as an option. Works on meta tensors too.
    """
    probe = copy.deepcopy(norm).to_empty(device="cpu").float().eval()
    for parameter in probe.parameters():
        nn.init.ones_(parameter)
    (num_channels,) = norm.normalized_shape  # type: ignore[misc]
    width = 3 if num_channels == 2 else 2  # never num_channels, so that a norm over the last axis refuses
    x = torch.arange(num_channels * width, dtype=torch.float32, device="cpu").cos().view(1, num_channels, 1, width)
    factors = torch.logspace(0, 1, width, device="cpu")
    try:
        with torch.no_grad():
            # forward() and not __call__, which would run the model's hooks
            y, scaled = probe.forward(PROBE_SCALE * x), probe.forward(PROBE_SCALE * factors * x)
    except (RuntimeError, ValueError, TypeError):
        return False
    return torch.allclose(y, scaled, atol=PROBE_TOLERANCE)
