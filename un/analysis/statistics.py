"""What is measured at a norm's input, as tensors on its device; nothing here waits for the device."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from un.analysis.recorded_norms import RecordedNorm
from un.norms import Norm
from un.norms.core.moments import Moments, measure_moments
from un.norms.core.transaction import preview


class Observation(NamedTuple):
    """One call of a norm, before it; vectors are (C,), the others have no axes.

    Symbols as in `un.norms.unified`: q second moment of this batch, v running second moment.
    """

    moment: Tensor  # q around zero, whatever the norm subtracts
    running_ratio: Tensor | None  # (q + eps) / (v + eps), q as the norm takes it
    peak: Tensor  # largest |x| over the root mean square of all entries
    gap: Tensor | None  # AM - GM over the window with q in it, at the channel nearest to being filtered
    threshold: Tensor | None  # what that channel's gap is compared with
    num_rows: int | Tensor


def measure_square(site: RecordedNorm, x: Tensor, pad_mask: Tensor | None) -> Tensor:
    """Returns the second moment q (C,) around zero of one process's batch."""
    return measure_moments(site.flatten(x), _flatten(pad_mask)).square


def observe(site: RecordedNorm, x: Tensor, pad_mask: Tensor | None) -> Observation:
    """Measures one call; to be called before the norm, whose state it leaves alone.

    Args:
        site: the norm.
        x: its input.
        pad_mask: of the input's shape without the channels, True = padding, which is left out.
    """
    rows, mask = site.flatten(x), _flatten(pad_mask)
    running, running_mean = site.read_running()
    moments = measure_moments(rows, mask, centered=running_mean is not None)
    moment = moments.square if moments.mean is None else moments.square + moments.mean.square()
    low, high = torch.aminmax(rows if mask is None else rows.masked_fill(mask.unsqueeze(-1), 0))
    peak = torch.maximum(-low, high).to(moment.dtype) / moment.mean().sqrt()
    scaled = site.scale_rows(rows)
    own = moments if scaled is None else measure_moments(scaled, mask)
    ratio = None if running is None else (own.square + site.eps) / (running + site.eps)
    gap, threshold = None, None
    if isinstance(site.source, Norm) and site.source.filtration is not None:
        gap, threshold = measure_outlier(site.source, own)
    return Observation(moment, ratio, peak, gap, threshold, moments.num_rows)


def measure_outlier(norm: Norm, moments: Moments) -> tuple[Tensor, Tensor]:
    """Returns AM-GM gap and threshold of the coming call, as the norm's own step finds them, filtration on or off.

    Filtration would strike where gap > threshold. With switch S8 at `mean` they are means over the channels, otherwise
    those of the channel nearest to being filtered. Both are NaN until the window was passed once, and for a batch that
    the norm refuses.

    Args:
        norm: with filtration, before the call.
        moments: of the coming batch, centered if the norm is.
    """
    call = preview(norm, moments, filtration=True)
    gap, threshold = torch.broadcast_tensors(torch.atleast_1d(call.gap), call.threshold)
    nearest = (gap - threshold).argmax().view(1)
    known = (norm.iters >= len(norm.buffer_x2)).squeeze() & ~call.refused
    gap, threshold = (value.index_select(0, nearest).squeeze().where(known, math.nan) for value in (gap, threshold))
    return gap, threshold


def measure_fluctuation(moment: Tensor, previous: Tensor, eps: float) -> Tensor:
    """Returns how far the second moment (C,) moved since the call before, as |ln (q + eps) / (q' + eps)|."""
    return ((moment + eps).log() - (previous + eps).log()).abs()


def measure_gradient(site: RecordedNorm, num_rows: int | Tensor) -> Tensor | None:
    """Returns the gradient statistic p = mean over rows of weight D z, (C,), from the weight's gradient, if it has one.

    D is the upstream gradient and z what the weight multiplies, so that this is p of UN (step B2) where its switches
    compensate both gradients or none. Over the accumulated batches of a step it is the sum, of which each is a share.
    """
    weight = getattr(site.source, "weight", None)
    if weight is None or weight.grad is None:
        return None
    count = max(num_rows, 1) if isinstance(num_rows, int) else num_rows.clamp_min(1)
    return weight.detach().float() * weight.grad.detach().float() / count


def _flatten(pad_mask: Tensor | None) -> Tensor | None:
    return None if pad_mask is None else pad_mask.reshape(-1)
