"""Batch normalization over tokens: the plain baseline, and RepBN (xinghaochen/SLAB, arXiv 2405.11582)."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from un.norms.base import Norm, check_flags, check_fraction
from un.norms.moments import (
    choose,
    count_usable,
    is_distributed,
    measure_moments,
    sum_over_processes,
)
from un.norms.passes import Coefficients, normalize


class _Step(NamedTuple):
    scale: Tensor
    mean: Tensor
    usable: Tensor
    num_rows: int | Tensor
    corrected: Tensor | None  # (R, 1), the rows that are not padding; None for all


class BatchNorm(Norm):
    """BN per channel over the rows that are not padding; the gradient through mean and variance is exact.

    Buffers as torch.nn.BatchNorm1d: running_mean (C,), running_var (C,), num_batches_tracked ().

    Args:
        num_features: C.
        momentum: weight of the NEW value in the running statistics (torch's convention).
        eps: inside the square root.
        affine: learnable weight and bias.
        sync: sum statistics over processes.
        device: of parameters and buffers.
        dtype: of the parameters.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    nonfinite_counter: Tensor
    optional_state = ("nonfinite_counter",)

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.1,
        eps: float = 1e-5,
        affine: bool = True,
        sync: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, device=device, dtype=dtype)
        check_fraction("momentum", momentum)
        check_flags(sync=sync)
        self.momentum, self.sync = momentum, sync
        self.register_state("running_mean", 0, num_features)
        self.register_state("running_var", 1, num_features)
        self.register_state("num_batches_tracked", 0, integer=True)
        self.register_state("nonfinite_counter", 0, 1, integer=True)

    def forward(self, x: Tensor, pad_mask: Tensor | None = None, update: Tensor | None = None) -> Tensor:
        """Normalises x (..., C).

        Args:
            x: (..., C).
            pad_mask: (...), True = padding.
            update: boolean without axes; False leaves the running statistics alone (used by ProgressiveRepBatchNorm).
        """
        pad_mask = self.check_input(x, pad_mask)
        if not self.training:
            return self.apply_affine(x)
        rows = x.detach().reshape(-1, self.num_features)
        mask = None if pad_mask is None else pad_mask.reshape(-1)
        step = self.notes.decide_once(rows, lambda: self._observe(rows, mask, update))
        rule = partial(self._differentiate, step)
        return normalize(x, self.weight, self.bias, step.scale, rule, mean=step.mean, corrected=step.corrected)

    @torch.no_grad()
    def _observe(self, rows: Tensor, mask: Tensor | None, update: Tensor | None) -> _Step:
        moments = measure_moments(rows, mask, centered=True, sync=self.sync)
        usable = count_usable(moments, self.nonfinite_counter)
        assert moments.mean is not None  # centered moments have one
        variance = choose(usable, moments.square, self.running_var)
        mean = choose(usable, moments.mean, self.running_mean)
        count = moments.num_rows
        others = max(count - 1, 1) if isinstance(count, int) else (count - 1).clamp_min(1)
        tracked = usable if update is None else usable & update
        for running, batch in ((self.running_mean, mean), (self.running_var, variance * count / others)):
            running.lerp_(torch.where(tracked, batch, running).to(running.dtype), self.momentum)
        self.num_batches_tracked.add_(tracked)
        corrected = None if mask is None else mask.logical_not().unsqueeze(-1)
        return _Step((variance + self.eps).rsqrt_(), mean, usable, count, corrected)

    def _differentiate(self, step: _Step, weight: Tensor | None, products: Tensor, total: Tensor) -> Coefficients:
        """The exact gradient: a row that counted loses its share of the summed gradients of mean and variance."""
        outer = step.scale if weight is None else step.scale * weight
        weight_grad = step.scale * products
        if is_distributed(self.sync):
            products, total = sum_over_processes(products, total, like=products)
        count = step.num_rows.clamp_min(1) if isinstance(step.num_rows, Tensor) else max(step.num_rows, 1)
        share = choose(step.usable, outer / count, torch.zeros_like(outer))
        return Coefficients(outer, share * products * step.scale.square(), share * total, weight_grad)

    def affine(self) -> tuple[Tensor, Tensor]:
        """The inference map: scale = weight / sqrt(running_var + eps), shift = bias - running_mean * scale."""
        return self.combine_affine((self.running_var + self.eps).rsqrt(), self.running_mean)

    def watch(self) -> dict[str, Tensor]:
        """Calls rejected as non-finite."""
        return {"nonfinite_count": self.nonfinite_counter.squeeze()}

    def extra_repr(self) -> str:
        """Adds the momentum."""
        return f"{super().extra_repr()}, momentum={self.momentum}"


class RepBatchNorm(BatchNorm):
    """RepBN: BN(x) + η x with one learnable scalar η; offline like BN.

    Args:
        num_features: C.
        initial_eta: start of η; 0 in the language-model variant.
        initial_weight: start of the BN weight; 0 in the language-model variant.
        momentum: as BatchNorm.
        eps: inside the square root.
        affine: learnable weight and bias of the BN.
        sync: sum statistics over processes.
        device: of parameters and buffers.
        dtype: of the parameters.
    """

    def __init__(
        self,
        num_features: int,
        *,
        initial_eta: float = 1.0,
        initial_weight: float = 1.0,
        momentum: float = 0.1,
        eps: float = 1e-5,
        affine: bool = True,
        sync: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, momentum=momentum, eps=eps, affine=affine, sync=sync, device=device, dtype=dtype)
        self.initial_eta, self.initial_weight = initial_eta, initial_weight
        self.eta = nn.Parameter(torch.full((1,), float(initial_eta), device=device, dtype=dtype))
        if self.weight is not None:
            nn.init.constant_(self.weight, initial_weight)

    def forward(self, x: Tensor, pad_mask: Tensor | None = None, update: Tensor | None = None) -> Tensor:
        """Normalises x (..., C) and adds η x; arguments as BatchNorm."""
        if not self.training:
            self.check_input(x, pad_mask)
            return self.apply_affine(x)
        return (super().forward(x, pad_mask, update) + self.eta * x).to(x.dtype)

    def affine(self) -> tuple[Tensor, Tensor]:
        """BN's inference map with η added to the scale."""
        scale, shift = super().affine()
        return scale + self.eta, shift

    def reset_parameters(self) -> None:
        """Sets parameters and buffers to their initial values."""
        super().reset_parameters()
        nn.init.constant_(self.eta, self.initial_eta)
        if self.weight is not None:
            nn.init.constant_(self.weight, self.initial_weight)
