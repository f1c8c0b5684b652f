"""The learning-rate schedule of fairseq's Transformer recipes."""

import math
from collections.abc import Callable

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
    """Create the schedule of fairseq's `inverse_sqrt`, to be stepped after every update.

    Before update u (the first is 0) the rate is warmup_lr + u (lr - warmup_lr) / warmup_steps in the warm-up, then
    lr sqrt(warmup_steps / u), with lr as the optimizer has it.

    Args:
        optimizer: Whose learning rates are set.
        num_updates: Not used: this schedule has no end.
        updates_per_epoch: Not used.
        warmup_steps: Updates of linear warm-up.
        warmup_lr: Rate before the first update.

    Raises:
        ValueError: Fewer than one warm-up step, or a negative first rate.
    """
    if warmup_steps < 1:
        raise ValueError(f"scheduler.warmup_steps={warmup_steps} must be at least 1: the rate falls from there")
    if warmup_lr < 0:
        raise ValueError(f"scheduler.warmup_lr={warmup_lr} must be at least 0")

    def make_factor(lr: float) -> Callable[[int], float]:
        start = warmup_lr / lr

        def factor(update: int) -> float:
            if update < warmup_steps:
                return start + update * (1 - start) / warmup_steps
            return math.sqrt(warmup_steps / update)

        return factor

    return LambdaLR(optimizer, [make_factor(group["lr"]) for group in optimizer.param_groups])
