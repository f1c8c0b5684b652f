"""The learning-rate schedule of fairseq's Transformer recipes."""

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def create_inverse_sqrt_scheduler(
    optimizer: Optimizer,
    num_updates: float,
    updates_per_epoch: int,
    *,
    warmup_steps: int = 4000,
    warmup_lr: float = 1e-7,
) -> LambdaLR:
    """Creates the schedule of fairseq's `inverse_sqrt`, to be stepped after every update.

    Before update u (the first is 0) the rate is warmup_lr + u (lr - warmup_lr) / warmup_steps in the warm-up, then
    lr sqrt(warmup_steps / u), with lr as the optimizer has it.

    Args:
        optimizer: Its learning rates are set.
        num_updates: Not used: this schedule has no end.
        updates_per_epoch: Not used.
        warmup_steps: Updates of linear warm-up.
        warmup_lr: Rate before the first update.

    Raises:
        ValueError: There is no warm-up step, or the first rate is negative.
    """
    if warmup_steps < 1:
        raise ValueError(f"scheduler.warmup_steps={warmup_steps} must be at least 1: the rate falls from there")
    if warmup_lr < 0:
        raise ValueError(f"scheduler.warmup_lr={warmup_lr} must be at least 0")

    def compute_factor(update: int, start: float) -> float:
        if update < warmup_steps:
            return start + update * (1 - start) / warmup_steps
        return math.sqrt(warmup_steps / update)

    starts = [warmup_lr / group["lr"] for group in optimizer.param_groups]
    return LambdaLR(optimizer, [partial(compute_factor, start=start) for start in starts])
