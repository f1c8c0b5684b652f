"""Parameter groups and learning-rate schedules that timm's factories leave to the caller."""

import math
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any, Literal

from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from un.vision.models import list_head_parameters

Interval = Literal["step", "epoch"]


def create_scheduler(
    optimizer: Optimizer,
    num_updates: int,  # length of the training, the cool-down included
    updates_per_epoch: int,
    *,
    sched: str = "cosine",  # timm's name of the schedule
    interval: Interval = "step",  # sets the rate before each update; `epoch` keeps it for an epoch
    warmup_epochs: float = 0,  # linear warm-up
    warmup_steps: int = 0,  # the same in updates, with `interval=step` only; the two are added
    cooldown_epochs: int = 0,  # the last epochs, which keep the minimum
    warmup_lr: float = 1e-5,  # at the start of the warm-up
    min_lr: float = 0.0,  # at the end of the decay
    warmup_prefix: bool = False,  # the decay starts after the warm-up, which otherwise hides its start
    lag: int = 0,  # updates or epochs, by `interval`, by which the rate follows; it has its first value for 1 + lag
    **arguments: Any,  # of `timm.scheduler.create_scheduler_v2`
) -> Scheduler:
    """Creates a timm scheduler for a training of `num_updates` optimizer updates."""
    if lag < 0:
        raise ValueError(f"scheduler.lag={lag} must be at least 0")
    if interval not in ("step", "epoch"):
        raise ValueError(f"scheduler.interval={interval!r} must be step or epoch")
    if interval == "epoch" and warmup_steps:
        raise ValueError(f"scheduler.warmup_steps={warmup_steps} needs scheduler.interval=step; give warmup_epochs")
    ticks_per_epoch = updates_per_epoch if interval == "step" else 1
    length = num_updates if interval == "step" else math.ceil(num_updates / updates_per_epoch)
    warmup = round(warmup_epochs * ticks_per_epoch) + warmup_steps
    length -= cooldown_epochs * ticks_per_epoch + (warmup if warmup_prefix else 0)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=sched,
        num_epochs=max(length, 1),  # a training shortened below its warm-up or cool-down
        warmup_epochs=warmup,
        step_on_epochs=interval == "epoch",
        updates_per_epoch=1,
        warmup_lr=warmup_lr,
        min_lr=min_lr,
        warmup_prefix=warmup_prefix,
        **arguments,
    )
    return LaggingScheduler(scheduler, lag) if lag else scheduler


class LaggingScheduler(Scheduler):
    """Sets at time t the rate that another scheduler of timm has for t - lag, and before that its first."""

    def __init__(self, scheduler: Scheduler, lag: int) -> None:
        super().__init__(scheduler.optimizer, scheduler.param_group_field, scheduler.t_in_epochs, initialize=False)
        self.scheduler, self.lag = scheduler, lag
        self.update_groups(self._get_lr(0))

    def _get_lr(self, t: int) -> list[float]:
        return self.scheduler._get_lr(max(t - self.lag, 0))

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state_dict)


def group_for_transfer(
    model: nn.Module,
    head_lr: float,
    body_lr_factor: float,  # learning rate of the body over that of the head
    body: Sequence[str] = ("*",),  # globs on parameter names; what neither these nor the head take is ungrouped
    freeze_ungrouped: bool = False,  # otherwise it is trained with the body
) -> list[dict[str, Any]]:
    """Splits the parameters of a timm model into the head and the body, which learns more slowly.

    Returns:
        Groups for an optimizer, head first. Parameters that do not require a gradient are in none.
    """
    head_names = set(list_head_parameters(model))
    head, rest = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name in head_names:
            head.append(parameter)
        elif not freeze_ungrouped or any(fnmatch(name, pattern) for pattern in body):
            rest.append(parameter)
        else:
            parameter.requires_grad_(False)
    return [{"params": head, "lr": head_lr}, {"params": rest, "lr": head_lr * body_lr_factor}]
