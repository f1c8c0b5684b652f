"""Batches cut into the shards of several processes, and norms that see the whole batch or one shard of it."""

from __future__ import annotations

from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, distributed
from torch.utils.checkpoint import checkpoint

from tests.norms.helpers import BUILDERS, SYNCING
from un import norms

C, N = 6, 5  # channels, tokens
# What distinguishes the shards of a step; the kinds take turns.
KINDS = ("equal", "masked", "one masked", "uneven", "empty", "only padding", "non-finite", "outlier", "bad padding")
STEPS = 2 * len(KINDS)

SYNCED = {
    **{name: BUILDERS[name] for name in SYNCING},
    "un_pads_excluded": lambda c, **k: norms.UnifiedNorm(c, warmup_steps=2, pad_gradient="excluded", **k),
    "un_pads_included": lambda c, **k: norms.UnifiedNorm(c, warmup_steps=2, pad_moment="included", **k),
}


class Shard(NamedTuple):
    x: Tensor  # (B, N, C)
    mask: Tensor | None  # (B, N)
    grad: Tensor  # (B, N, C), upstream


def make_shards(step: int, count: int, seed: int) -> list[Shard]:
    """The shards of one step."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    kind, special = KINDS[step % len(KINDS)], (step // len(KINDS)) % count  # the process that differs from the others
    scales = torch.linspace(-1, 1, C, dtype=torch.float64).exp()
    shards = []
    for rank in range(count):
        size = {"uneven": 1 + 3 * (rank == special), "empty": 3 * (rank != special)}.get(kind, 2)
        x = torch.randn(size, N, C, generator=generator, dtype=torch.float64) * scales + 0.5
        grad = torch.randn(size, N, C, generator=generator, dtype=torch.float64)
        mask = torch.rand(size, N, generator=generator) < 0.4
        if rank == special and kind == "only padding":
            mask[:] = True
        if rank == special and kind == "bad padding":
            x[mask] = float("inf")
            grad[mask] = 0
        if rank == special and kind == "non-finite":
            x[0, 0, 0] = float("inf")
        if rank == special and kind == "outlier":
            x[..., step % C] *= 1000
        has_mask = kind in ("masked", "only padding", "bad padding") or (kind == "one masked" and rank == special)
        shards.append(Shard(x, mask if has_mask else None, grad))
    return shards


def join_shards(shards: list[Shard]) -> Shard:
    """The batch which one process would see."""
    masks = [torch.zeros(s.x.shape[:2], dtype=torch.bool) if s.mask is None else s.mask for s in shards]
    mask = None if all(s.mask is None for s in shards) else torch.cat(masks)
    return Shard(torch.cat([s.x for s in shards]), mask, torch.cat([s.grad for s in shards]))


def run_steps(
    rank: int | None, name: str, count: int, seed: int = 0, calls: int = 1, checkpointed: bool = False
) -> list[dict[str, Any]]:
    """Runs a norm over STEPS batches, or over the shards of one process.

    Args:
        rank: the process; None for the whole batch in one process.
        name: of SYNCED.
        count: number of processes.
        seed: of the numbers.
        calls: forward calls before each backward; every one is of a batch of its own.
        checkpointed: whether the backward repeats each forward.

    Returns:
        For each backward `y` and `x` (gradients) of the batches, gradients by parameter and buffers by name, as arrays.
    """
    norm = SYNCED[name](C, sync=rank is not None, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    found = []
    for first in range(0, STEPS, calls):
        norm.zero_grad()
        inputs, outputs, grads, penalties = [], [], [], []
        for step in range(first, first + calls):
            shards = make_shards(step, count, seed)
            x, mask, grad = join_shards(shards) if rank is None else shards[rank]
            inputs.append(x.requires_grad_())
            outputs.append(checkpoint(norm, x, mask, use_reentrant=False) if checkpointed else norm(x, mask))
            grads.append(grad)
            if (penalty := norm.penalty()) is not None:  # every process adds it, and gradients are summed over them
                penalties.append(penalty if rank is None else penalty / count)
        outputs_and_penalties = [*outputs, *penalties]
        grads += [torch.ones_like(penalty) for penalty in penalties]
        torch.autograd.backward(outputs_and_penalties, grads)
        found.append(
            {
                "y": [y.detach().numpy() for y in outputs],
                "x": [x.grad.numpy() for x in inputs],
                "parameters": {n: p.grad.numpy() for n, p in norm.named_parameters()},
                "buffers": {n: b.clone().numpy() for n, b in norm.named_buffers()},
            }
        )
    return found


def calibrate_shards(rank: int | None, count: int) -> dict[str, Any]:
    """Returns the buffers of norms calibrated over the finite batches, or over the shards of one process."""
    model = torch.nn.Sequential(norms.BatchNorm(C, dtype=torch.float64), norms.UnifiedNorm(C, dtype=torch.float64))
    steps = [step for step in range(STEPS) if KINDS[step % len(KINDS)] not in ("non-finite", "bad padding")]
    shards = [make_shards(step, count, seed=0) for step in steps]
    batches = [join_shards(one) if rank is None else one[rank] for one in shards]
    norms.calibrate(model, batches, lambda m, shard: m[1](m[0](shard.x, shard.mask), shard.mask), sync=rank is not None)
    return {name: buffer.numpy() for name, buffer in model.named_buffers()}


def run_counted(rank: int, *arguments: Any) -> tuple[list[dict[str, Any]], tuple[int, int]]:
    """Returns what `run_steps` does, and the number of its collectives and of the values they carried."""
    sizes = []
    reduce = distributed.all_reduce

    def note(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(tensor.numel())
        return reduce(tensor, *arguments, **options)

    with mock.patch.object(distributed, "all_reduce", note):
        return run_steps(rank, *arguments), (len(sizes), sum(sizes))
