"""Batch normalization over tokens: the plain baseline, and RepBN (xinghaochen/SLAB, arXiv 2405.11582)."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from un.norms.core.base import Norm, flatten_rows
from un.norms.core.moments import divide, is_distributed, measure_moments, sum_over_processes
from un.norms.core.options import check_flags, check_fraction
from un.norms.core.passes import Coefficients, Upstream, normalize
from un.norms.core.transaction import Batch, take_batch
from un.norms.core.window import move_average


class Call(NamedTuple):
    """What a forward hands to its backward."""

    scale: Tensor  # (C,), 1 / sqrt(variance + eps)
    mean: Tensor  # (C,)
    num_rows: int | Tensor
    corrected: Tensor | None  # (R, 1), the rows that are not padding; None for all
    refused: Tensor  # whether the batch is, without axes


class BatchNorm(Norm):
    """BN per channel over the rows that are not padding; the gradient through mean and variance is exact.

    Buffers as torch.nn.BatchNorm1d: running_mean (C,), running_var (C,), num_batches_tracked ().

    Args:
        num_features: C.
        momentum: weight of the NEW value in the running statistics (torch's convention).
        sync: sum statistics over processes.
        eps, affine, device, dtype: as of `Norm`.
    """

    overwritten = ("running_var", "num_batches_tracked")
    shown: tuple[str, ...] = ("momentum",)

    running_mean: Tensor
    num_batches_tracked: Tensor

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
        self.register_counters("nonfinite_counter")

    def forward(self, x: Tensor, pad_mask: Tensor | None = None, update: Tensor | None = None) -> Tensor:
        """Normalises x (..., C).

        Args:
            x: (..., C).
            pad_mask: (...), True = padding.
            update: boolean without axes; False leaves the running statistics alone.
        """
        x, pad_mask = self.check_input(x, pad_mask)
        if not self.training:
            return self.apply_affine(x)
        rows, mask = flatten_rows(x, pad_mask)
        return self.normalize_batch(x, self.notes.decide_once(rows, lambda: self.take_rows(rows, mask, update)))

    def normalize_batch(self, x: Tensor, call: Any) -> Tensor:
        """Normalises x (..., C) by the statistics of its batch."""
        rule = partial(self.differentiate, call)
        return normalize(self, x, call.scale, rule, mean=call.mean, corrected=call.corrected)

    def take_rows(self, rows: Tensor, mask: Tensor | None, update: Tensor | None) -> Any:
        """Measures rows (R, C) and takes them into the running statistics, unless `update` is there and False."""
        corrected = None if mask is None else mask.logical_not().unsqueeze(-1)
        moments = measure_moments(rows, mask, centered=True, sync=self.sync)
        return take_batch(self, moments, partial(self.move_running, update, corrected))

    def move_running(self, update: Tensor | None, corrected: Tensor | None, batch: Batch) -> Any:
        """Moves the running statistics, and returns a `Call` or what has its attributes."""
        mean, variance, count = batch.mean, batch.square, batch.num_rows
        assert mean is not None  # centered moments have one
        for running, value in ((self.running_mean, mean), (self.running_var, self.estimate_variance(variance, count))):
            value = value if update is None else torch.where(update, value, running)
            move_average(running, value, 1 - self.momentum)
        self.num_batches_tracked.add_(1 if update is None else update)
        return Call(self.invert(variance), mean, count, corrected, batch.refused)

    def estimate_variance(self, variance: Tensor, count: int | Tensor) -> Tensor:
        """Returns what enters the running variance: here the sample variance, as in torch."""
        return variance * count / (max(count - 1, 1) if isinstance(count, int) else (count - 1).clamp_min(1))

    def invert(self, variance: Tensor) -> Tensor:
        """Returns the factor (C,) by which rows around their mean are normalised."""
        return (variance + self.eps).rsqrt()

    def affine(self) -> tuple[Tensor, Tensor]:
        return self.combine_affine(self.invert(self.running_var), self.running_mean)

    def differentiate(self, call: Any, upstream: Upstream) -> Coefficients:
        """Finds the exact gradient: a row that counted loses its share of the sums that pass mean and variance."""
        weight, dx_sum, d_sum = upstream
        outer, weight_grad = call.scale * weight, call.scale * dx_sum
        if is_distributed(self.sync):
            dx_sum, d_sum = sum_over_processes(dx_sum, d_sum, like=dx_sum)
        share = divide(outer, call.num_rows).masked_fill(call.refused, 0)
        return Coefficients(outer, share * dx_sum * call.scale.square(), share * d_sum, weight_grad)


class FeedForwardBatchNorm(BatchNorm):
    """BN at every norm and, by surgery, one more in every MLP ("BN + FFN-BN", Yao et al., ICCV workshops 2021).

    The norms in the MLPs stand behind the first layer, before the activation, as in the public code, and fold into
    that layer. Options are those of `BatchNorm`.
    """

    in_mlps = True


class RepBatchNorm(BatchNorm):
    """RepBN: BN(x) + η x with one learnable scalar η; offline like BN.

    Args:
        num_features: C.
        initial_eta: start of η; 0 in the language-model variant.
        initial_weight: start of the BN weight; 0 in the language-model variant.
        momentum, eps, affine, sync, device, dtype: as of `BatchNorm`.
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
            return super().forward(x, pad_mask)
        x = x.contiguous()
        return (super().forward(x, pad_mask, update) + self.eta * x).to(x.dtype)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Returns BN's inference map with η added to the scale."""
        scale, shift = super().affine()
        return scale + self.eta, shift

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.eta, self.initial_eta)
        if self.weight is not None:
            nn.init.constant_(self.weight, self.initial_weight)
