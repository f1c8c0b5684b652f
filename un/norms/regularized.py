"""Regularised batch normalization (RBN, arXiv 2210.05153, wjxts/RegularizedBN).

The statistics of a batch m, u (mean and biased variance) are drawn towards the running ones by a term in the loss,

    λ_m Σ_c (running_mean - m)² + λ_v Σ_c |running_var - u|,

in which the running statistics, already moved by the batch, are constants. The official code adds it to the loss summed
over the target tokens of a batch, our tasks to the mean: the same λ weigh more here by the number of tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from un.norms.batchnorm import BatchNorm, Call
from un.norms.core.autograd import refuse_second_derivatives
from un.norms.core.moments import divide, is_distributed, sum_over_processes
from un.norms.core.options import check_at_least
from un.norms.core.passes import Coefficients, Upstream
from un.norms.core.transaction import Batch


class RegularizedCall(NamedTuple):
    """What a forward hands to its backward, the fields of `un.norms.batchnorm.Call` first."""

    scale: Tensor
    mean: Tensor
    num_rows: int | Tensor
    corrected: Tensor | None
    refused: Tensor
    is_above: Tensor  # (C,), whether the variance is at least eps, so that it counts
    penalty: Tensor  # without axes
    offset: Tensor  # (C,), with the next the derivative of the penalty by a row x: offset + slope (x - mean)
    slope: Tensor  # (C,)


class RegularizedBatchNorm(BatchNorm):
    """BN that divides by sqrt(max(variance, eps)), with a penalty where batches differ from the running statistics.

    As in the official code the running variance is of the biased kind. `penalty()` after a forward in training is the
    term of the module's docstring.

    Args:
        num_features: C.
        momentum: weight of the NEW value in the running statistics (torch's convention).
        penalty_mean: λ_m; the default is the official one of pre-norm Transformers, post-norm has 60.
        penalty_variance: λ_v; the default is the official one of pre-norm Transformers, post-norm has 0.
        eps: the least variance.
        affine, sync, device, dtype: as of `BatchNorm`.
    """

    shown = ("momentum", "penalty_mean", "penalty_variance")

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.05,
        penalty_mean: float = 0.1,
        penalty_variance: float = 0.01,
        eps: float = 1e-5,
        affine: bool = True,
        sync: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, momentum=momentum, eps=eps, affine=affine, sync=sync, device=device, dtype=dtype)
        check_at_least("penalty_mean", penalty_mean, 0)
        check_at_least("penalty_variance", penalty_variance, 0)
        self.penalty_mean, self.penalty_variance = penalty_mean, penalty_variance

    def normalize_batch(self, x: Tensor, call: RegularizedCall) -> Tensor:
        if self.penalty_mean or self.penalty_variance:
            self.notes.keep_penalty(_Penalty.apply(x, call, is_distributed(self.sync)))
        return super().normalize_batch(x, call)

    def move_running(self, update: Tensor | None, corrected: Tensor | None, batch: Batch) -> RegularizedCall:
        """Moves the running statistics and measures what the batch's differ from them."""
        call: Call = super().move_running(update, corrected, batch)
        mean_excess, variance_excess = call.mean - self.running_mean, batch.square - self.running_var
        penalty = self.penalty_mean * mean_excess.square().sum() + self.penalty_variance * variance_excess.abs().sum()
        derivatives = 2 * self.penalty_mean * mean_excess, 2 * self.penalty_variance * variance_excess.sign()
        # A refused batch is the running statistics, to which rounding must add nothing.
        terms = (term.masked_fill(call.refused, 0) for term in (penalty, *derivatives))
        penalty, *by_row = terms
        return RegularizedCall(
            *call, batch.square >= self.eps, penalty, *(divide(value, call.num_rows) for value in by_row)
        )

    def estimate_variance(self, variance: Tensor, count: int | Tensor) -> Tensor:
        return variance

    def invert(self, variance: Tensor) -> Tensor:
        return variance.clamp_min(self.eps).rsqrt()

    def differentiate(self, call: RegularizedCall, upstream: Upstream) -> Coefficients:
        """Finds the exact gradient, to which a variance below eps passes nothing."""
        coefficients = super().differentiate(call, upstream)
        return coefficients._replace(inner=coefficients.inner.where(call.is_above, 0))


class _Penalty(torch.autograd.Function):
    """The penalty as a function of x (..., C): its value is known, and so are its derivatives by the statistics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: RegularizedCall, synced: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.call, ctx.synced = call, synced
        return call.penalty.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,), call = ctx.saved_tensors, ctx.call
        with torch.no_grad():
            if ctx.synced:  # the rows of this process move the penalty of every process
                (grad,) = sum_over_processes(grad, like=grad)
            offset, slope = grad * call.offset, grad * call.slope
            rows = torch.addcmul(offset - slope * call.mean, x.view(-1, x.shape[-1]), slope)
            counted = ~call.refused if call.corrected is None else call.corrected & ~call.refused
            x_grad = rows.where(counted, 0).to(x.dtype).view(x.shape)
        return (*refuse_second_derivatives(x_grad), None, None)
