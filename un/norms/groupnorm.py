"""GroupNorm over the channels of each token: LayerNorm within groups of channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from un.norms.core.base import Norm, statistics_dtype
from un.norms.core.options import check_groups


class GroupNorm(Norm):
    """y = weight (x - mean) / sqrt(variance + eps) + bias, mean and variance over a row's group; no state, not offline.

    Args:
        num_features: C.
        num_groups: groups of adjacent channels.
        eps, affine, device, dtype: as of `Norm`.
    """

    shown = ("num_groups",)

    def __init__(
        self,
        num_features: int,
        *,
        num_groups: int = 8,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, device=device, dtype=dtype)
        check_groups(num_groups, num_features)
        self.num_groups = num_groups

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalises x (..., C); rows do not see each other, so pad_mask changes nothing."""
        x, _ = self.check_input(x, pad_mask)
        groups = x.to(statistics_dtype(x.dtype)).unflatten(-1, (self.num_groups, -1))
        return self.scale_and_shift(F.layer_norm(groups, groups.shape[-1:], eps=self.eps).flatten(-2)).to(x.dtype)
