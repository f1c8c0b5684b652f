"""Forward plus backward of every norm against nn.LayerNorm in float32."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.common import Row
from un import norms
from un.finished.timing import compare, time_interleaved

# Tokens of one batch, from a small ViT on CIFAR-10, translation, and the paper's translation model.
SHAPES = ((64, 65, 192), (32, 64, 256), (128, 50, 512))
WARMUP = 10
ARMS: dict[str, Callable[[int], nn.Module]] = {
    "LayerNorm": nn.LayerNorm,
    "UN": lambda c: norms.UnifiedNorm(c),
    "UN, filtration": lambda c: norms.UnifiedNorm(c, warmup_steps=0, filtration=True),
    "UN, variant": lambda c: norms.UnifiedNormVariant(c),
    "UN, variant, filtration": lambda c: norms.UnifiedNormVariant(c, warmup_steps=0, filtration=True),
    "UN, centered": lambda c: norms.UnifiedNorm(c, centering="batch"),
    "BatchNorm": norms.BatchNorm,
    "PowerNorm": norms.PowerNorm,
    "MABN": norms.MovingAverageBatchNorm,
    "RMSNorm": norms.RMSNorm,
    "RepBatchNorm": norms.RepBatchNorm,
    "DynamicTanh": norms.DynamicTanh,
}


def make_layer_arm(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], None]:
    """Returns a step: forward and backward of one layer, with the gradients of input, weight and bias."""

    def run() -> None:
        x.grad = None
        layer.zero_grad()
        layer(x).backward(grad)

    return run


def measure(options: argparse.Namespace) -> list[Row]:
    """Times every arm at every shape, and compares it with nn.LayerNorm."""
    rows: list[Row] = []
    for shape in SHAPES:
        x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
        arms = {name: make_layer_arm(build(shape[-1]), x, grad) for name, build in ARMS.items()}
        seconds = time_interleaved(arms, options.rounds, WARMUP)
        base = seconds["LayerNorm"]
        for name, values in seconds.items():
            low, median, high = (1e3 * value for value in statistics.quantiles(values, n=4))
            row: Row = {"shape": shape, "norm": name, "ms": median, "ms_quartiles": (low, high)}
            rows.append(row | {"ratio": compare(values, base)})
    return rows
