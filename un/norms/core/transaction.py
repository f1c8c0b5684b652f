"""What surrounds a norm's step: a batch enters the state of the norm whole, or leaves no trace.

Refused are batches without rows and those with a statistic that is not finite. A refused batch goes through the step
all the same, as if it had the running statistic and came before all phases: averages do not move, nothing is smoothed,
compensated or filtered, and the batch is normalised as at inference. What the step overwrites besides is put back. All
of this happens on the device, without a branch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from un.norms.core.base import Norm
from un.norms.core.moments import Moments

Result = TypeVar("Result")

FORWARD, BACKWARD = 0, 1  # places in `update_calls`


class Batch(NamedTuple):
    """What a step learns of a batch."""

    square: Tensor  # (C,), mean of squares; around the mean, if there is one
    mean: Tensor | None  # (C,)
    num_rows: int | Tensor  # of those that count
    number: Tensor  # of the call or update, 0 if refused, no axes; only norms with a step counter may look at it
    refused: Tensor  # whether the batch is, without axes


@torch.no_grad()
def take_batch(norm: Norm, moments: Moments, step: Callable[[Batch], Result]) -> Result:
    """Lets `step` take a batch into the norm's state, and returns what the step returns.

    Args:
        norm: names in `overwritten` the buffers that a refused batch would change.
        moments: of the batch.
        step: moves the state, and returns all that the backward needs of it, which later calls move on.
    """
    norm.batch_moments = moments
    square, mean, num_rows = moments
    refused = find_nonfinite(norm, square)
    norm.nonfinite_counter.add_(refused)
    if isinstance(num_rows, Tensor) or not num_rows:
        refused = refused | (num_rows == 0)
    number: Any = advance_steps(norm, refused) if norm.counts_steps else None
    running_moment, running_mean = norm.read_running()
    square = torch.where(refused, running_moment, square)
    mean = None if mean is None else torch.where(refused, running_mean, mean)
    batch = Batch(square, mean, num_rows, number, refused)
    return _keep_where(refused, norm.overwritten, norm, lambda: step(batch))


def take_gradient(
    norm: Norm,
    refused: Tensor,
    statistic: Tensor,
    step: Callable[[Tensor], Tensor | None],
    otherwise: Tensor | None = None,
) -> Tensor:
    """Lets `step` take a gradient statistic (C,) into the buffers that the norm names as `gradient_state`.

    They stay as they are where the batch was refused, or the statistic is not finite.

    Args:
        norm: whose state it is.
        refused: whether the batch was.
        statistic: is handed to the step.
        step: moves the state.
        otherwise: what is used where refused.

    Returns:
        What the step returns, or `otherwise`.
    """
    refused = refused | find_nonfinite(norm, statistic)
    if norm.count == "updates":
        norm.update_calls[BACKWARD].add_(~refused)
    used: Any = _keep_where(refused, norm.gradient_state, norm, lambda: step(statistic))
    return used if otherwise is None else torch.where(refused, otherwise, used)


def preview(norm: Any, moments: Moments, **settings: object) -> Any:
    """Returns what `norm.smooth_moment` would decide about the coming batch; leaves no trace.

    Args:
        norm: before the call.
        moments: of the batch.
        **settings: attributes that the norm is to have for it.
    """
    twin = copy.copy(norm)
    twin._buffers = {name: buffer if buffer is None else buffer.clone() for name, buffer in norm._buffers.items()}
    for name, value in settings.items():
        setattr(twin, name, value)
    return take_batch(twin, moments, twin.smooth_moment)


def advance_steps(norm: Norm, refused: Tensor) -> Tensor:
    """Advances the step counter, and returns the number of the call, or of its update; 0 for a refused batch."""
    entered = ~refused
    if norm.count == "updates":
        calls = norm.update_calls[FORWARD]
        norm.iters.add_((calls == 0) & entered)
        calls.add_(entered)
    else:
        norm.iters.add_(entered)
    return norm.iters.squeeze(0) * entered


def _keep_where(refused: Tensor, names: Iterable[str], norm: Norm, step: Callable[[], Result]) -> Result:
    """Runs a step, after which the buffers of these names are as before where `refused` is true."""
    kept: list[tuple[Any, Tensor]] = [(norm._buffers[name], getattr(norm, name).clone()) for name in names]
    result = step()
    for buffer, before in kept:
        torch.where(refused, before, buffer, out=buffer)
    return result


def find_nonfinite(norm: Norm, value: Tensor) -> Tensor:
    """Tells whether anything in value (C,) is not finite, as a boolean without axes; False where it is let in."""
    if not norm.rejects_nonfinite:
        return torch.zeros((), dtype=torch.bool, device=value.device)
    return torch.dot(value, torch.zeros_like(value)) != 0  # NaN
