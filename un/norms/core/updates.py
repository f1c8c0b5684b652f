"""Optimizer steps as norms see them: several calls may belong to one, and a step may be skipped.

Gradient accumulation makes one update of several calls: `count="updates"` lets windows and warm-up count the former.
Loss scaling (float16) skips a step whose gradients overflowed, and scales what the norms know about gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from un.norms.core.base import Norm
from un.norms.core.options import check_choice
from un.norms.core.window import read_slot, write_slot

COUNTS = ("calls", "updates")
# Counts what was rejected, so it outlives a step that is taken back.
KEPT_COUNTERS = ("nonfinite_counter",)


def register_count(norm: Norm, count: str) -> None:
    """Lets a norm's windows and warm-up count `calls` (official) or `updates`, which are optimizer steps (ours).

    Of the calls of one update the first advances the step counter; the others add to the same window entry, which is
    the mean over them. Running averages move with every call in both.

    Raises:
        ValueError: for another word.
    """
    check_choice("count", count, COUNTS)
    norm.count = count
    if count == "updates":
        norm.register_state("update_calls", 0, 2, integer=True)  # forward and backward calls since the last update


def count_calls(norm: Norm, side: int) -> Tensor | int:
    """Returns of how many calls the latest entry of the window of a side, FORWARD or BACKWARD, is the mean."""
    return norm.update_calls[side].clamp_min(1) if norm.count == "updates" else 1


def merge_entry(norm: Norm, side: int, window: Tensor, slot: Tensor, entry: Tensor) -> Tensor:
    """Returns what a window (M, C) holds after the latest call: its entry (C,), or the mean of its update's calls."""
    if norm.count == "calls":
        return entry
    share = count_calls(norm, side).to(window.dtype).reciprocal()  # type: ignore[union-attr]
    return torch.lerp(read_slot(window, slot), entry.to(window.dtype), share)


def push_entry(norm: Norm, side: int, window: Tensor, slot: Tensor, entry: Tensor) -> None:
    """Writes an entry (C,) into a window; the calls of one update share their entry."""
    write_slot(window, slot, merge_entry(norm, side, window, slot, entry))


def end_update(model: nn.Module) -> None:
    """Tells norms that count updates that the optimizer has stepped."""
    for norm in _list_norms(model):
        if norm.count == "updates":
            norm.update_calls.zero_()


def describe_warmup(model: nn.Module) -> str:
    """Returns a line about norms that a training left inside their warm-up; empty where there are none."""
    norms = [norm for norm in _list_norms(model) if norm.counts_steps and int(norm.iters) > 0]
    steps = {norm: getattr(norm, "warmup_steps", 0) for norm in norms}
    behind = [norm for norm in norms if int(norm.iters) < steps[norm]]
    if not behind:
        return ""
    one = behind[0]
    return (
        f"{len(behind)} of {len(norms)} norms are still in their warm-up, in which they only use batch statistics: "
        f"{type(one).__name__} counted {int(one.iters)} of {steps[one]} {one.count}; train longer or lower warmup_steps"
    )


def call_after_step(optimizer: Optimizer, act: Callable[[], None]) -> RemovableHandle:
    """Calls `act` after every step that was taken, not after one that a GradScaler skipped."""

    def act_if_taken(stepped: Optimizer, args: Any, kwargs: Any) -> None:
        found_inf = getattr(stepped, "found_inf", None)  # fused optimizers are stepped and skip by themselves
        if found_inf is None or not bool(found_inf):
            act()

    return optimizer.register_step_post_hook(act_if_taken)


def scale_gradient_state(model: nn.Module, factor: float) -> None:
    """Multiplies what the norms keep about gradients, after the loss scale has changed by this factor."""
    state = [norm.get_buffer(name) for norm in _list_norms(model) for name in norm.gradient_state]
    if state:
        torch._foreach_mul_(state, factor)


class NormState:
    """The state of a model's norms, to be kept before an update and restored where its step is skipped.

    Args:
        model: with its norms in place and on its device.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [item for norm in _list_norms(model) for item in norm.named_buffers(recurse=False)]
        self._state = [buffer for name, buffer in named if name not in KEPT_COUNTERS]
        self._kept = [torch.empty_like(buffer) for buffer in self._state]

    def keep(self) -> None:
        _copy(self._kept, self._state)

    @torch.no_grad()
    def restore(self) -> None:
        _copy(self._state, self._kept)


def _list_norms(model: nn.Module) -> list[Norm]:
    return [module for module in model.modules() if isinstance(module, Norm)]


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
