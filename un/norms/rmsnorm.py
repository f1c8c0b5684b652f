"""RMSNorm and ScaleNorm: each row divided by its root mean square, or by its length."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from un.norms.core.base import Norm, statistics_dtype


class RMSNorm(Norm):
    """y = weight x / sqrt(mean over C of x² + eps); no bias, no state, not offline.

    Args:
        num_features: C.
        eps: inside the square root (1e-6 is the project's choice).
        affine, device, dtype: as of `Norm`.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-6,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalises x (..., C); rows do not see each other, so pad_mask changes nothing."""
        x, _ = self.check_input(x, pad_mask)
        dtype = statistics_dtype(x.dtype)
        weight = None if self.weight is None else self.weight.to(dtype)
        return F.rms_norm(x.to(dtype), (self.num_features,), weight, self.eps).to(x.dtype)


class ScaleNorm(Norm):
    """y = g x / max(length of x, eps), the length over C; no bias, no state, not offline (arXiv 1910.05895).

    The scalar g, `scale` (1,), starts at sqrt(C), as in tnq177/transformers_without_tears: rows as long as those of
    RMSNorm. It stands for a weight of g / sqrt(C) in every channel; it cannot take the weights of another norm, and
    surgery refuses to drop them.

    Args:
        num_features: C.
        eps: the least length.
        affine: whether g is learnable; sqrt(C) otherwise.
        device, dtype: as of `Norm`.
    """

    scale: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=False, device=device, dtype=dtype)
        scale = nn.Parameter(torch.empty(1, device=device, dtype=dtype)) if affine else None
        self.register_parameter("scale", scale)
        self.reset_parameters()

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalises x (..., C); rows do not see each other, so pad_mask changes nothing."""
        x, _ = self.check_input(x, pad_mask)
        unit = F.normalize(x.to(statistics_dtype(x.dtype)), dim=-1, eps=self.eps)
        return (unit * (math.sqrt(self.num_features) if self.scale is None else self.scale)).to(x.dtype)

    def read_affine(self) -> tuple[Tensor | None, Tensor | None]:
        if self.scale is None:
            return None, None
        return (self.scale / math.sqrt(self.num_features)).expand(self.num_features), None

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.scale is not None:
            nn.init.constant_(self.scale, math.sqrt(self.num_features))
