"""The learning rate of a short training, whose recipe's warm-up would be longer than all of it."""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def create_short_schedule(
    optimizer: Optimizer,
    num_updates: float,  # of the whole training; infinite where it has no end
    updates_per_epoch: int,
    *,
    warmup_share: float = 0.1,
) -> LambdaLR:
    """Creates a linear warm-up over a share of the training, then a cosine to 0; for any task.

    Raises:
        ValueError: the share is not in [0, 1], or the training has no end.
    """
    if not math.isfinite(num_updates):
        raise ValueError("a schedule needs an end: set trainer.max_epochs or trainer.max_steps")
    if not 0 <= warmup_share <= 1:
        raise ValueError(f"scheduler.warmup_share={warmup_share} must be between 0 and 1")
    return LambdaLR(optimizer, partial(_compute_factor, length=num_updates, warmup=round(warmup_share * num_updates)))


def _compute_factor(update: int, length: float, warmup: int) -> float:
    if update < warmup:
        return (update + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min((update - warmup) / max(length - warmup, 1), 1.0)))
