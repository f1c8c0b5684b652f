"""PRepBN: LayerNorm gives way to RepBN during training (xinghaochen/SLAB, arXiv 2405.11582)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from un.norms.batchnorm import RepBatchNorm
from un.norms.core.base import NEVER, Norm, flatten_rows, statistics_dtype
from un.norms.core.options import check_at_least, check_choice, check_fraction
from un.norms.core.schedule import choose_unit, register_place
from un.norms.rmsnorm import RMSNorm

# T as a fraction of the training: about 0.8 as users report (xinghaochen/SLAB, issue 6; 60000 steps gave them NaN).
# The paper's runs have numbers of steps: 300000, DeiT and Swin 60000, CSwin 120000.
DEFAULT_FRACTION = 0.8


class ProgressiveRepBatchNorm(Norm):
    """λ LN(x) + (1 - λ) RepBN(x) in training with λ falling to 0; RepBN alone at inference, whatever λ is.

    Evaluation means nothing before λ has reached 0. Buffers, integers without axes: warm (pure LN calls left), iter
    (steps left), total_step; calls, where the counters move once in several calls.

    Args:
        num_features: C.
        steps: T over which λ falls from `start` to 0.
        fraction: T as a fraction of the training, see `un.norms.set_training_length`; 0.8 unless there are steps.
        layer_norm_steps: w, calls of pure LN before that.
        start: λ at the first mixed call.
        base: `layernorm` or `rmsnorm`.
        calls_per_step: calls after which the counters move once; 16 in the language-model variant.
        sync: sum RepBN's statistics over processes.
        eps, affine, device, dtype: as of `Norm`, for both norms.
        **rep_options: further options of RepBatchNorm.
    """

    warm: Tensor
    iter: Tensor
    total_step: Tensor
    calls: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        steps: int | None = None,
        fraction: float | None = None,
        layer_norm_steps: int = 0,
        start: float = 1.0,
        base: str = "layernorm",
        calls_per_step: int = 1,
        eps: float = 1e-5,
        affine: bool = True,
        sync: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **rep_options: Any,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=False, device=device, dtype=dtype)
        length = choose_unit("", steps, fraction, DEFAULT_FRACTION)
        check_at_least("steps", 1 if isinstance(length, float) else length, 1)
        check_at_least("layer_norm_steps", layer_norm_steps, 0)
        check_at_least("calls_per_step", calls_per_step, 1)
        check_fraction("start", start)
        check_choice("base", base, ("layernorm", "rmsnorm"))
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.start, self.calls_per_step = start, calls_per_step
        self.base_norm: RMSNorm | nn.LayerNorm
        if base == "rmsnorm":
            self.base_norm = RMSNorm(num_features, eps=eps, affine=affine, **place)
        else:
            self.base_norm = nn.LayerNorm(num_features, eps=eps, elementwise_affine=affine, **place)
        self.rep_norm = RepBatchNorm(num_features, eps=eps, affine=affine, sync=sync, **place, **rep_options)
        register_place(self, "total_step", length)
        for name, value in (("warm", layer_norm_steps), ("iter", self.places["total_step"]), ("calls", 0)):
            self.register_state(name, value, integer=True)

    def fix_places(self, length: float) -> None:
        """Finds T, from which the steps left are counted down, and which is at least 1."""
        super().fix_places(length)
        self.total_step.clamp_min_(1)
        self.iter.copy_(torch.where(self.iter == NEVER, self.total_step, self.iter))
        self.read_places()

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalises x (..., C); pad_mask (...), True = padding, keeps rows out of the batch statistics."""
        x, pad_mask = self.check_input(x, pad_mask)
        if not self.training:
            return self.rep_norm(x, pad_mask)
        share, mixing = self.notes.decide_once(flatten_rows(x, None)[0], self._advance)
        y = share * self._apply_base(x) + (1 - share) * self.rep_norm(x, pad_mask, update=mixing)
        return y.to(x.dtype)

    def _apply_base(self, x: Tensor) -> Tensor:
        """Returns the LN or RMSNorm of x in statistics precision, whatever the types of x and the parameters."""
        base = self.base_norm
        if isinstance(base, RMSNorm):
            return base(x)
        dtype = statistics_dtype(x.dtype)
        weight, bias = (None if p is None else p.to(dtype) for p in (base.weight, base.bias))
        return F.layer_norm(x.to(dtype), base.normalized_shape, weight, bias, base.eps)

    @torch.no_grad()
    def _advance(self) -> tuple[Tensor, Tensor]:
        """Returns λ of this call and whether RepBN takes part; moves the counters on the device."""
        mixing, share = self.warm == 0, self._share()
        self.calls.add_(1)
        moves = self.calls % self.calls_per_step == 0
        self.iter.sub_((moves & mixing & (self.iter > 0)).long())
        self.warm.sub_((moves & ~mixing).long())
        return share, mixing

    def _share(self) -> Tensor:
        """Returns λ, the share of LN in the next training call."""
        return torch.where(self.warm == 0, self.start * self.iter.double() / self.total_step, 1.0)

    @property
    def source(self) -> RepBatchNorm:
        return self.rep_norm

    def affine(self) -> tuple[Tensor, Tensor]:
        return self.rep_norm.affine()

    def copy_affine(self, weight: Tensor | None, bias: Tensor | None) -> None:
        """Copies a replaced norm's weight and bias into the LN (or RMSNorm), with which λ starts."""
        for name, value in (("weight", weight), ("bias", bias)):
            own = getattr(self.base_norm, name)
            if own is not None and value is not None:
                own.data.copy_(value)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.base_norm.reset_parameters()
        self.rep_norm.reset_parameters()

    def watch(self) -> dict[str, Tensor]:
        """Returns the next λ, and what RepBN watches."""
        return {"layer_norm_share": self._share(), **self.rep_norm.watch()}
