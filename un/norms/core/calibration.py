"""Inference statistics measured over given data instead of taken from training (switch S15)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from un.norms.core.base import Norm, flatten_rows
from un.norms.core.moments import is_distributed, sum_over_processes

Sums = tuple[Tensor, ...]  # the number of rows, without axes, and the sums of them and of their squares, (C,)


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    run: Callable[[nn.Module, Any], Any] = lambda model, batch: model(batch),
    *,
    sync: bool = False,
) -> int:
    """Replaces the running statistics of every norm by those of `batches` passed in evaluation mode.

    All layers are measured in the same pass, so each sees its predecessors with their old statistics. What is kept of a
    batch are sums per channel, in float64. A norm that no row reaches keeps its statistics.

    Args:
        model: holds the norms; its training flag is restored, and where it is compiled it runs uncompiled, because
            compiled norms call no hooks.
        batches: whatever `run` takes.
        run: calls the model on one batch.
        sync: pool the batches of all processes, each of which makes this call.

    Returns:
        The number of norms recalibrated.

    Raises:
        ValueError: where the model has no norm with running statistics, there is no batch, or a norm meets a value that
            is not finite; the statistics are then as before.
    """
    norms = find_statistics(model)
    if not norms:
        raise ValueError("the model has no norm with running statistics to calibrate")
    sums = {norm: _start_sums(norm) for norm in norms}
    handles = [norm.register_forward_pre_hook(partial(_add_call, sums), with_kwargs=True) for norm in norms]
    training = model.training
    model.eval()
    try:
        with _run_uncompiled():
            for batch in batches:
                run(model, batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if is_distributed(sync):
        sums = {norm: sum_over_processes(*own, like=own[1]) for norm, own in sums.items()}
    found = {norm: own for norm, own in sums.items() if own[0] > 0}
    if not found:
        raise ValueError("calibration needs at least one batch")
    for norm, (_, total, square) in found.items():
        if not (total.isfinite() & square.isfinite()).all():
            raise ValueError(f"calibration: norm {norms[norm]} met a value that is not finite")
    for norm, own in found.items():
        _set_running(norm, *own)
    return len(found)


def find_statistics(model: nn.Module) -> dict[Norm, str]:
    """Returns the norms of a model that have running statistics, with their dotted names."""
    named = ((module, name) for name, module in model.named_modules() if isinstance(module, Norm))
    return {norm: name for norm, name in named if norm.read_running()[0] is not None}


def _run_uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Runs compiled modules as written; there are none without the compiler, which takes seconds to import."""
    is_loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if is_loaded else contextlib.nullcontext()


def _start_sums(norm: Norm) -> Sums:
    zeros = torch.zeros_like(norm.read_running()[0], dtype=torch.float64)
    return zeros.new_zeros(()), zeros, zeros


def _add_call(sums: dict[Norm, Sums], norm: Norm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Adds the rows of one call."""
    x, pad_mask = norm.check_input(args[0], kwargs.get("pad_mask", args[1] if len(args) > 1 else None))
    rows, mask = flatten_rows(norm.prepare(x).double(), None if norm.counts_padding else pad_mask)
    rows = rows if mask is None else rows[~mask]
    count, total, square = sums[norm]
    sums[norm] = (count + len(rows), total + rows.sum(0), square + rows.square().sum(0))


def _set_running(norm: Norm, count: Tensor, total: Tensor, square: Tensor) -> None:
    running_moment, running_mean = norm.read_running()  # views of the buffers
    mean, moment = total / count, square / count
    if running_mean is not None:
        running_mean.copy_(mean)
        moment = (moment - mean.square()).clamp_min(0)
    running_moment.copy_(moment)
