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
from un.norms.core.constants import get_zeros
from un.norms.core.moments import Moments
from un.norms.core.updates import advance_steps, count_backward

Result = TypeVar("Result")


class Batch(NamedTuple):
    """What a step learns of a batch."""

    square: Tensor  # (C,), mean of squares; around the mean, if there is one
    mean: Tensor | None  # (C,)
    num_rows: int | Tensor  # of those that count
    number: Tensor  # (1,), of the call or update, 0 if refused; only norms with a step counter may look at it
    refused: Any  # whether the batch is, a tensor without axes; None where none can be


@torch.no_grad()
def take_batch(norm: Norm, moments: Moments, step: Callable[[Batch], Result], rejecting: bool = True) -> Result:
    """Lets `step` take a batch into the norm's state, and returns what the step returns.

    Args:
        norm: names in `overwritten` the buffers that a refused batch would change.
        moments: of the batch.
        step: moves the state, and returns all that the backward needs of it, which later calls move on.
        rejecting: whether moments that are not finite are refused.
    """
    square, mean, num_rows = moments
    refused = _find_empty(num_rows, square)
    if rejecting:
        nonfinite = is_nonfinite(square)
        norm.nonfinite_counter.add_(nonfinite)
        refused = nonfinite if refused is None else nonfinite | refused
    number: Any = advance_steps(norm, refused)
    if refused is not None:
        running_moment, running_mean = norm.read_running()
        square = torch.where(refused, running_moment, square)
        mean = None if mean is None else torch.where(refused, running_mean, mean)
    batch = Batch(square, mean, num_rows, number, refused)
    return _keep_where(refused, norm.overwritten, norm, lambda: step(batch))


def take_gradient(
    norm: Norm,
    refused: Tensor | None,
    statistic: Tensor,
    step: Callable[[Tensor], Tensor | None],
    otherwise: Tensor | None = None,
    rejecting: bool = True,
) -> Tensor:
    """Lets `step` take a gradient statistic (C,) into the buffers that the norm names as `gradient_state`.

    They stay as they are where the batch was refused, or the statistic is not finite.

    Args:
        norm: whose state it is.
        refused: whether the batch was.
        statistic: is handed to the step.
        step: moves the state.
        otherwise: what is used where refused.
        rejecting: whether a statistic that is not finite is refused.

    Returns:
        What the step returns, or `otherwise`.
    """
    if rejecting:
        nonfinite = is_nonfinite(statistic)
        refused = nonfinite if refused is None else nonfinite | refused
    count_backward(norm, refused)
    used: Any = _keep_where(refused, norm.gradient_state, norm, lambda: step(statistic))
    return used if refused is None or otherwise is None else torch.where(refused, otherwise, used)


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


def _keep_where(refused: Tensor | None, names: Iterable[str], norm: Norm, step: Callable[[], Result]) -> Result:
    """Runs a step, after which the buffers of these names are as before where `refused` is true."""
    if refused is None:
        return step()
    kept: list[tuple[Any, Tensor]] = [(norm._buffers[name], getattr(norm, name).clone()) for name in names]
    result = step()
    for buffer, before in kept:
        torch.where(refused, before, buffer, out=buffer)
    return result


def is_nonfinite(value: Tensor) -> Tensor:
    """Whether anything in value (C,) is not finite, as a boolean without axes.

    Anything finite times 0 is 0; infinities and NaN give NaN, which differs from itself.
    """
    zero = torch.dot(value, get_zeros(value))
    return zero != zero


def _find_empty(num_rows: int | Tensor, like: Tensor) -> Tensor | None:
    """Whether a batch has no rows, as a boolean without axes; None where the host knows that it has."""
    if isinstance(num_rows, Tensor):
        return num_rows == 0
    return None if num_rows else torch.ones((), dtype=torch.bool, device=like.device)
