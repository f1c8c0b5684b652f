"""GroupNorm over the channels of each token: LayerNorm within groups of channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from un.norms.core.base import Norm, statistics_dtype
from un.norms.core.options import check_at_least


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
        check_at_least("num_groups", num_groups, 1)
        if num_features % num_groups:
            raise ValueError(f"num_groups must divide num_features = {num_features}, got {num_groups}")
        self.num_groups = num_groups

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalises x (..., C); rows do not see each other, so pad_mask changes nothing."""
        x, _ = self.check_input(x, pad_mask)
        groups = x.to(statistics_dtype(x.dtype)).unflatten(-1, (self.num_groups, -1))
        y = F.layer_norm(groups, groups.shape[-1:], eps=self.eps).flatten(-2)
        # No view leaves the norm: activation checkpointing forbids in-place operations on one.
        y = y.clone() if self.weight is None else y * self.weight
        return (y if self.bias is None else y + self.bias).to(x.dtype)
