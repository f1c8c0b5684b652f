"""Norms without statistics: a squashing function with a learnable slope takes the place of the division.

Dynamic Tanh (DyT, jiachenzhu/DyT, arXiv 2503.10622) and Dynamic erf (Derf, zlab-princeton/Derf, arXiv 2512.10938).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from un.norms.core.base import Norm, statistics_dtype


class DynamicTanh(Norm):
    """y = weight tanh(alpha x) + bias with one learnable scalar alpha; not offline, the tanh stays.

    Args:
        num_features: C.
        initial_alpha: start of alpha (0.5; language models take it by width and position, e.g. 0.8 before attention).
        eps: unused; every norm of this package takes one.
        bias: learnable bias; language models leave it out.
        affine, device, dtype: as of `Norm`.
    """

    shown = ("initial_alpha",)
    has_offset = False

    offset: Any  # a scalar parameter; None without one

    def __init__(
        self,
        num_features: int,
        *,
        initial_alpha: float = 0.5,
        eps: float = 0.0,
        affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, bias=bias, device=device, dtype=dtype)
        self.initial_alpha = initial_alpha
        self.alpha = nn.Parameter(torch.full((1,), float(initial_alpha), device=device, dtype=dtype))
        offset = nn.Parameter(torch.zeros(1, device=device, dtype=dtype)) if self.has_offset else None
        self.register_parameter("offset", offset)

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Squashes x (..., C); rows do not see each other, so pad_mask changes nothing."""
        x, _ = self.check_input(x, pad_mask)
        return self.scale_and_shift(self.squash(x.to(statistics_dtype(x.dtype)))).to(x.dtype)

    def squash(self, x: Tensor) -> Tensor:
        """Returns x (..., C) between -1 and 1."""
        return torch.tanh(self.alpha * x)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.alpha, self.initial_alpha)
        if self.offset is not None:
            nn.init.zeros_(self.offset)


class DynamicErf(DynamicTanh):
    """y = weight erf(alpha x + offset) + bias, alpha and offset (0 at the start) learnable scalars; not offline.

    Options are those of `DynamicTanh`.
    """

    has_offset = True

    def squash(self, x: Tensor) -> Tensor:
        return torch.erf(self.alpha * x + self.offset)
