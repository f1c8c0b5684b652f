"""Inference statistics recomputed over a calibration set instead of taken from training (switch S15)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from un.norms.core.base import Norm, flatten_rows

Sums = tuple[int, Any, Any]  # the number of rows, and the sums of them and of their squares, (C,)


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    run: Callable[[nn.Module, Any], Any] = lambda model, batch: model(batch),
) -> int:
    """Replaces the running statistics of every norm by those of `batches` passed in evaluation mode.

    All layers are measured in the same passes, so each sees its predecessors with their old statistics.

    Args:
        model: holds the norms; its training flag is restored.
        batches: whatever `run` takes.
        run: calls the model on one batch.

    Returns:
        The number of norms recalibrated.

    Raises:
        ValueError: where the model has no norm with running statistics, or there is no batch.
    """
    norms = [m for m in model.modules() if isinstance(m, Norm) and m.read_running()[0] is not None]
    if not norms:
        raise ValueError("the model has no norm with running statistics to calibrate")
    sums: dict[Norm, Sums] = {}
    handles = [norm.register_forward_pre_hook(partial(_add_call, sums), with_kwargs=True) for norm in norms]
    training = model.training
    model.eval()
    try:
        for batch in batches:
            run(model, batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if not sums:
        raise ValueError("calibration needs at least one batch")
    for norm, (count, total, square) in sums.items():
        running_moment, running_mean = norm.read_running()  # views of the buffers
        mean, moment = total / max(count, 1), square / max(count, 1)
        if running_mean is not None:
            running_mean.copy_(mean)
            moment = (moment - mean.square()).clamp_min(0)
        running_moment.copy_(moment)
    return len(sums)


def _add_call(sums: dict[Norm, Sums], norm: Norm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Adds the rows of one call."""
    x, pad_mask = norm.check_input(args[0], kwargs.get("pad_mask", args[1] if len(args) > 1 else None))
    rows, mask = flatten_rows(norm.prepare(x).double(), pad_mask)
    rows = rows if mask is None else rows[~mask]
    count, total, square = sums.get(norm, (0, 0, 0))
    sums[norm] = (count + len(rows), total + rows.sum(0), square + rows.square().sum(0))
