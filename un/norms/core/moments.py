"""Channel statistics of a batch: masked, and summed over processes where asked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from un.norms.core.base import statistics_dtype
from un.norms.core.passes import reduce_products


class Moments(NamedTuple):
    """Statistics over the rows that count.

    `square` (C,) is the mean of squares, around `mean` if that is not None; `num_rows` is |V|, an int where the host
    knows it and a tensor without axes otherwise.
    """

    square: Tensor
    mean: Tensor | None
    num_rows: int | Tensor


def sum_over_processes(*values: Tensor | int, like: Tensor) -> tuple[Tensor, ...]:
    """All-reduces vectors and counts in one call, in statistics precision; counts travel as vectors of one entry.

    Every process must get here equally often and in the same order, whatever its share of the batch looks like.
    """
    dtype = statistics_dtype(like.dtype)
    flat = [
        v.to(dtype).reshape(-1) if isinstance(v, Tensor) else torch.full((1,), v, device=like.device, dtype=dtype)
        for v in values
    ]
    packed = torch.cat(flat)
    dist.all_reduce(packed)
    parts = packed.split([f.numel() for f in flat])
    shapes = [v.shape if isinstance(v, Tensor) else () for v in values]
    return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))


def sum_moments(*parts: Moments) -> tuple[Moments, ...]:
    """All-reduces moments without mean, of this process's rows, in one call."""
    sums = [value for part in parts for value in (part.square * part.num_rows, part.num_rows)]
    totals = sum_over_processes(*sums, like=parts[0].square)
    pairs = zip(totals[::2], totals[1::2], strict=True)
    return tuple(Moments(divide(square, count), None, count) for square, count in pairs)


def is_distributed(sync: bool) -> bool:
    """Whether statistics are to be summed over processes now."""
    return sync and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def count_rows(x: Tensor, pad_mask: Tensor | None) -> int | Tensor:
    """|V|: rows of x (R, C) that are not padding, without a host synchronisation."""
    return x.shape[0] if pad_mask is None else pad_mask.logical_not().sum()


def measure_moments(
    x: Tensor, pad_mask: Tensor | None, *, centered: bool = False, sync: bool = False, input_type: bool = False
) -> Moments:
    """Mean of squares of x (R, C) per channel, and the mean if `centered`.

    No row at all gives zeros, never NaN. Padding (pad_mask (R,), True = padding) is cut out, whatever it holds.

    Args:
        x: (R, C).
        pad_mask: (R,) or None.
        centered: subtract the mean first.
        sync: sum over processes.
        input_type: accumulate in x's own type (switch S16 of the official code) instead of float32.
    """
    count = count_rows(x, pad_mask)
    if pad_mask is not None:
        x = x.masked_fill(pad_mask.unsqueeze(-1), 0)
    synced = is_distributed(sync)
    if not centered:
        if input_type:
            square = divide((x * x).sum(0), count)
        elif isinstance(count, int):
            square = reduce_products(x, x, divisor=max(count, 1))[0]
        else:
            square = divide(reduce_products(x, x)[0], count)
        own = Moments(square, None, count)
        return sum_moments(own)[0] if synced else own
    mean_sum = x.sum(0) if input_type else x.sum(0, dtype=statistics_dtype(x.dtype))
    if synced:
        mean_sum, count = sum_over_processes(mean_sum, count, like=mean_sum)
    mean = divide(mean_sum, count)
    return Moments(divide(_sum_centered_squares(x, mean, pad_mask, synced), count), mean, count)


def _sum_centered_squares(x: Tensor, mean: Tensor, pad_mask: Tensor | None, synced: bool) -> Tensor:
    """Sum of (x - mean)² over the rows as Σ x (x - mean) - mean Σ (x - mean); the last sum is tiny and kept exact."""
    products, total = reduce_products(x, x, mean)
    rows = count_rows(x, pad_mask)
    square = (products - mean * (total - rows * mean)).clamp_min(0)
    return sum_over_processes(square, like=square)[0] if synced else square


def divide(total: Tensor, count: int | Tensor) -> Tensor:
    """Total / count, and 0 where nothing was counted."""
    return total / max(count, 1) if isinstance(count, int) else total / count.clamp_min(1)
