"""What is left of a norm that has been taken out: a trainable map per channel, or one that still centres each row.

`un.retrofit` puts them where a trained model had its LayerNorms; from scratch they give a model without norms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from un.norms.core.base import Norm, statistics_dtype


class ChannelMap(Norm):
    """y = weight x + bias, in training as at inference; no state.

    Args:
        num_features: C.
        eps: unused; every norm of this package takes one.
        affine, device, dtype: as of `Norm`.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 0.0,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, device=device, dtype=dtype)

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Maps x (..., C); rows do not see each other, so pad_mask changes nothing."""
        x, _ = self.check_input(x, pad_mask)
        return self.scale_and_shift(self.center(x.to(statistics_dtype(x.dtype)))).to(x.dtype)

    def center(self, x: Tensor) -> Tensor:
        """Returns what weight and bias act on, for x (..., C)."""
        return x

    def affine(self) -> tuple[Tensor, Tensor] | None:
        one = torch.ones(self.num_features, device=self._state_device, dtype=self._state_dtype)
        return self.combine_affine(one if self.weight is None else one.to(self.weight.device))


class CenteredMap(ChannelMap):
    """y = weight (x - mean of x over its channels) + bias: LayerNorm without the division; linear, but not offline.

    This is the "fake" LayerNorm of arXiv 2409.13710, whose fixed deviation is in the weight.
    """

    def center(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True)

    def affine(self) -> None:
        return None
