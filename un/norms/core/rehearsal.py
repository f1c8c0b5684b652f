"""A trial of a new norm: whether what it does in training survives activation checkpointing."""

from __future__ import annotations

import copy

import torch
from torch import distributed
from torch.utils.checkpoint import checkpoint

from un.norms.core.base import Norm
from un.norms.core.schedule import set_training_length

ROWS = 4  # of the trial's batch
TRIAL_STEPS = 100  # of the training that schedules in fractions are told of


def check_recomputation(norm: Norm) -> None:
    """Checks that the state of a norm moves once in a call that is recomputed in the backward.

    Twins train on one random batch, one of them with activation checkpointing. Norms on the meta device and those that
    could wait for other processes are not tried.

    Args:
        norm: Is not changed, nor are the random states.

    Raises:
        ValueError: Some buffers moved otherwise.
    """
    state = dict(norm.named_buffers())
    is_distributed = distributed.is_available() and distributed.is_initialized()
    if not state or is_distributed or any(buffer.is_meta for buffer in state.values()):
        return
    generator = torch.Generator().manual_seed(0)
    x, upstream = torch.randn(2, ROWS, norm.num_features, generator=generator, dtype=torch.float32)
    twins = [copy.deepcopy(norm).to("cpu", torch.float32).train() for _ in range(2)]
    for twin in twins:
        set_training_length(twin, TRIAL_STEPS)
    with torch.inference_mode(False), torch.enable_grad():
        twins[0](x.clone().requires_grad_()).backward(upstream)
        inputs = x.clone().requires_grad_()
        checkpoint(twins[1], inputs, use_reentrant=False, preserve_rng_state=False).backward(upstream)
    plain, recomputed = (dict(twin.named_buffers()) for twin in twins)
    moved = [name for name in state if not torch.equal(plain[name], recomputed[name])]
    if moved:
        raise ValueError(
            f"{type(norm).__name__} changes {', '.join(moved)} outside self.notes.decide_once: activation "
            "checkpointing would change it twice and torch.compile might (docs/add_a_norm.md)"
        )
