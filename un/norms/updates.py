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

from un.norms.base import Norm, check_choice

COUNTS = ("calls", "updates")
# Buffers in units of the upstream gradient.
GRADIENT_STATE = ("ema_gz", "buffer_gz")
# Counts what was rejected, so it outlives a step that is taken back.
KEPT_COUNTERS = ("nonfinite_counter",)


def register_count(norm: Norm, count: str) -> None:
    """Lets a norm's windows and warm-up count `calls` (official) or `updates`, i.e. optimizer steps (ours).

    Of the calls of one update the first advances the step counter; the others add to the same window entry, which is
    the mean over them. Running averages move with every call in both.

    Raises:
        ValueError: for another word.
    """
    check_choice("count", count, COUNTS)
    norm.count = count
    if count == "updates":
        norm.register_state("update_calls", 0, 2, integer=True)  # forward and backward calls since the last update


def advance_steps(norm: Norm, iters: Tensor, usable: Tensor | None) -> Tensor | None:
    """Advances the step counter (1,) for a forward call unless its batch is not usable.

    Returns:
        The call's number (1,) within its update, the first is 1; None where calls are counted.
    """
    if norm.count == "calls":
        iters.add_(1 if usable is None else usable)
        return None
    calls = norm.update_calls[:1]
    first = calls == 0
    iters.add_(first if usable is None else first & usable)
    return _count_call(calls, usable)


def count_backward(norm: Norm, usable: Tensor | None) -> Tensor | None:
    """The same for a backward call, which advances nothing else."""
    return None if norm.count == "calls" else _count_call(norm.update_calls[1:], usable)


def _count_call(calls: Tensor, usable: Tensor | None) -> Tensor:
    calls.add_(1 if usable is None else usable)
    return calls.clamp_min(1)


def merge_entry(number: Tensor | None, old: Tensor, entry: Tensor) -> Tensor:
    """The window entry, (1, C) or (C,), after the call of this number: the mean of its update's calls."""
    return entry if number is None else torch.lerp(old, entry, number.to(entry.dtype).reciprocal())


def end_update(model: nn.Module) -> None:
    """Tells norms that count updates that the optimizer has stepped."""
    for module in model.modules():
        if isinstance(module, Norm) and "update_calls" in module._buffers:
            module.update_calls.zero_()


def call_after_step(optimizer: Optimizer, act: Callable[[], None]) -> RemovableHandle:
    """Calls `act` after every step that was taken, not after one that a GradScaler skipped."""

    def act_if_taken(stepped: Optimizer, args: Any, kwargs: Any) -> None:
        found_inf = getattr(stepped, "found_inf", None)  # fused optimizers are stepped and skip by themselves
        if found_inf is None or not bool(found_inf):
            act()

    return optimizer.register_step_post_hook(act_if_taken)


def scale_gradient_state(model: nn.Module, factor: float) -> None:
    """Multiplies what the norms keep about gradients, after the loss scale has changed by this factor."""
    state = [buffer for name, buffer in _list_state(model) if name in GRADIENT_STATE]
    if state:
        torch._foreach_mul_(state, factor)


class NormState:
    """The state of a model's norms, to be kept before an update and restored where its step is skipped.

    Args:
        model: with its norms in place and on its device.
    """

    def __init__(self, model: nn.Module) -> None:
        self._state = [buffer for name, buffer in _list_state(model) if name not in KEPT_COUNTERS]
        self._kept = [torch.empty_like(buffer) for buffer in self._state]

    def keep(self) -> None:
        """Remembers the state."""
        _copy(self._kept, self._state)

    @torch.no_grad()
    def restore(self) -> None:
        """Goes back to the state kept last."""
        _copy(self._state, self._kept)


def _list_state(model: nn.Module) -> list[tuple[str, Tensor]]:
    norms = (module for module in model.modules() if isinstance(module, Norm))
    return [(name, buffer) for norm in norms for name, buffer in norm._buffers.items() if buffer is not None]


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
