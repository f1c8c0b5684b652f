"""Channel statistics of a batch: masked, and summed over processes where asked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from un.norms.core.base import statistics_dtype
from un.norms.core.passes import reduce_products


class Moments(NamedTuple):
    """Statistics over the rows that count."""

    square: Tensor  # (C,), mean of squares; around the mean, if there is one
    mean: Tensor | None  # (C,)
    num_rows: int | Tensor  # an int where the host knows it, otherwise without axes


def measure_moments(
    x: Tensor, pad_mask: Tensor | None, *, centered: bool = False, sync: bool = False, input_type: bool = False
) -> Moments:
    """Returns the mean of squares of x (R, C) per channel, and the mean if `centered`.

    No row at all gives zeros, never NaN. Padding (pad_mask (R,), True = padding) is cut out, whatever it holds.

    Args:
        x: (R, C).
        pad_mask: (R,) or None.
        centered: subtract the mean first.
        sync: sum over processes.
        input_type: accumulate in x's own type (switch S16 of the official code) instead of float32.
    """
    own_count: int | Tensor = len(x)
    if pad_mask is not None:
        own_count, x = pad_mask.logical_not().sum(), x.masked_fill(pad_mask.unsqueeze(-1), 0)
    synced = is_distributed(sync)
    if not centered:
        square_sum = (x * x).sum(0) if input_type else reduce_products(x, x)[0]
        own = Moments(divide(square_sum, own_count), None, own_count)
        return sum_moments(own)[0] if synced else own
    mean_sum = x.sum(0, dtype=x.dtype if input_type else statistics_dtype(x.dtype))
    count: int | Tensor = own_count
    if synced:
        mean_sum, count = sum_over_processes(mean_sum, own_count, like=mean_sum)
    mean = divide(mean_sum, count)
    # Σ (x - mean)² as Σ x (x - mean) - mean Σ (x - mean); the last sum is tiny and kept exact.
    products, total = reduce_products(x, x, mean)
    square_sum = (products - mean * (total - own_count * mean)).clamp_min(0)
    if synced:
        (square_sum,) = sum_over_processes(square_sum, like=square_sum)
    return Moments(divide(square_sum, count), mean, count)


def divide(total: Tensor, count: int | Tensor) -> Tensor:
    """Returns total / count, and 0 where nothing was counted."""
    return total / max(count, 1) if isinstance(count, int) else total / count.clamp_min(1)


def is_distributed(sync: bool) -> bool:
    """Tells whether statistics are to be summed over processes now."""
    return sync and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(*values: Tensor | int, like: Tensor) -> tuple[Tensor, ...]:
    """All-reduces vectors and counts in one call, in statistics precision; counts travel as vectors of one entry.

    Every process must get here equally often and in the same order, whatever its share of the batch looks like.
    """
    # A tensor made of a host's number would be copied, and the copy waited for; filling one is queued.
    tensors = [v if isinstance(v, Tensor) else torch.full((), v, device=like.device) for v in values]
    packed = torch.cat([tensor.reshape(-1).to(statistics_dtype(like.dtype)) for tensor in tensors])
    dist.all_reduce(packed)
    parts = packed.split([tensor.numel() for tensor in tensors])
    return tuple(part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True))


def sum_moments(*parts: Moments) -> tuple[Moments, ...]:
    """All-reduces moments without mean, of this process's rows, in one call."""
    sums = [value for part in parts for value in (part.square * part.num_rows, part.num_rows)]
    totals = sum_over_processes(*sums, like=parts[0].square)
    pairs = zip(totals[::2], totals[1::2], strict=True)
    return tuple(Moments(divide(square, count), None, count) for square, count in pairs)
