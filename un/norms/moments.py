"""Channel statistics of a batch: masked, and summed over processes where asked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from un.norms.passes import reduce_products


class Moments(NamedTuple):
    """Statistics over the rows that count.

    `square` (C,) is the mean of squares, around `mean` if that is not None; `count` is |V|, an int where the host knows
    it and a tensor without axes otherwise.
    """

    square: Tensor
    mean: Tensor | None
    count: int | Tensor


def sum_over_processes(*values: Tensor | int, like: Tensor) -> tuple[Tensor, ...]:
    """All-reduces vectors and counts in one call; counts travel as vectors of one entry."""
    flat = [torch.as_tensor(v, device=like.device).to(like.dtype).reshape(-1) for v in values]
    packed = torch.cat(flat)
    dist.all_reduce(packed)
    parts = packed.split([f.numel() for f in flat])
    return tuple(p.reshape(v.shape) if isinstance(v, Tensor) else p.reshape(()) for p, v in zip(parts, values, strict=True))


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
    if input_type:
        square = (x * x).sum(0)
        mean_sum = x.sum(0) if centered else None
    elif centered:
        mean_sum = x.sum(0, dtype=torch.promote_types(x.dtype, torch.float32))
    else:
        square, mean_sum = reduce_products(x, x)[0], None
    synced = is_distributed(sync)
    if mean_sum is None:
        if synced:
            square, count = sum_over_processes(square, count, like=square)
        return Moments(_divide(square, count), None, count)
    if synced:
        mean_sum, count = sum_over_processes(mean_sum, count, like=mean_sum)
    mean = _divide(mean_sum, count)
    return Moments(_divide(_sum_centered_squares(x, mean, pad_mask, synced), count), mean, count)


def _sum_centered_squares(x: Tensor, mean: Tensor, pad_mask: Tensor | None, synced: bool) -> Tensor:
    """Sum of (x - mean)² over the rows as Σ x (x - mean) - mean Σ (x - mean); the last sum is tiny and kept exact."""
    products, total = reduce_products(x, x, mean)
    rows = count_rows(x, pad_mask)
    square = (products - mean * (total - rows * mean)).clamp_min(0)
    return sum_over_processes(square, like=square)[0] if synced else square


def _divide(total: Tensor, count: int | Tensor) -> Tensor:
    """total / count, and 0 where nothing was counted."""
    return total / max(count, 1) if isinstance(count, int) else total / count.clamp_min(1)


def is_finite(value: Tensor) -> Tensor:
    """Whether all of value (C,) is finite, as a boolean (1,); three small operations and no host synchronisation."""
    return (value - value).sum(0, keepdim=True) == 0


def choose(flag: Tensor | None, value: Tensor, other: Tensor) -> Tensor:
    """`value` where flag is true or None, else `other`."""
    return value if flag is None else torch.where(flag, value, other)
