"""RMSNorm: each row divided by its root mean square."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
