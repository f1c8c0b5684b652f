"""Trains a model in eager mode and a compiled copy of it side by side."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from un import norms

# Phases are crossed within a few steps: the window is full after 3, smoothing starts at 4, compensation after 6.
PHASES = {"window": 3, "warmup_steps": 4, "compensation_start": 6}
LEARNING_RATE = 0.1
# A gradient that is zero but for rounding, as of a bias in front of a centring norm, is measured by the others.
LEAST_SCALE = 1e-3


def make_unified(num_features: int, **options: Any) -> norms.UnifiedNorm:
    return norms.UnifiedNorm(num_features, **{**PHASES, **options})


def make_mabn(num_features: int, **options: Any) -> norms.MovingAverageBatchNorm:
    """Builds MABN whose compensation starts in the seventh call; its 1000 calls are not an option."""
    norm = norms.MovingAverageBatchNorm(num_features, window=3, warmup_steps=4, **options)
    norm.iters.fill_(1000 - PHASES["compensation_start"])
    return norm


def assert_compiled_training_agrees(
    model: nn.Module,
    batches: Sequence[Any],
    compute_loss: Callable[[nn.Module, Any], Tensor],
    backend: str,
    tolerance: float = 1e-10,
    **options: Any,
) -> nn.Module:
    """Compares losses, all gradients and all buffers after every step; each difference relative to the largest entry.

    Returns:
        The compiled model.
    """
    compiled = copy.deepcopy(model)
    compiled.compile(backend=backend, fullgraph=True, **options)
    optimizers = [torch.optim.SGD(net.parameters(), LEARNING_RATE) for net in (model, compiled)]
    for number, batch in enumerate(batches):
        states = []
        for net, optimizer in zip((model, compiled), optimizers, strict=True):
            optimizer.zero_grad()
            loss = compute_loss(net, batch)
            loss.backward()
            gradients = {f"gradient of {k}": p.grad for k, p in net.named_parameters() if p.grad is not None}
            buffers = {k: b.clone() for k, b in net.named_buffers()}
            states.append((loss.detach(), gradients, buffers))
            optimizer.step()
        (loss, gradients, buffers), (found_loss, found_gradients, found_buffers) = states
        assert gradients.keys() == found_gradients.keys()
        least = LEAST_SCALE * max(gradient.abs().max().item() for gradient in gradients.values())
        pairs = {"loss": (loss, found_loss, 0.0)}
        pairs |= {k: (v, found_gradients[k], least) for k, v in gradients.items()}
        pairs |= {k: (v, found_buffers[k], LEAST_SCALE) for k, v in buffers.items()}
        for name, (expected, found, floor) in pairs.items():
            scale = max(expected.abs().max().item(), floor) if expected.numel() else 1.0
            where = f"step {number + 1}, {name}: "
            torch.testing.assert_close(
                found, expected, rtol=0, atol=tolerance * scale, msg=lambda text, where=where: where + text
            )
    return compiled
