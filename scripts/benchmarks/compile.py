"""Forward and backward of whole models in training, each norm in eager mode and compiled, against LayerNorm.

The optimizer is left out, being the same for all; there is no dropout. UN is past its warm-up and compensates.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import Row, make_dictionary
from benchmarks.inference import compile_alone
from benchmarks.inference_models import NUM_WORDS
from un import norms
from un.finished.timing import compare, time_interleaved
from un.surgery import NormFactory, replace_norms

VIT, ENCODER = MODELS = ("vit_small", "iwslt_encoder")
ENGINES = ("eager", "compiled")
LAYER_NORM = "layernorm"
# As in the paper, UN filters in vision and not in language.
NORMS: dict[str, Callable[[bool], NormFactory | None]] = {
    LAYER_NORM: lambda filtration: None,
    "un": lambda filtration: partial(norms.UnifiedNorm, warmup_steps=0, compensation_start=0, filtration=filtration),
    "batchnorm": lambda filtration: norms.BatchNorm,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=30, help="timed steps of each arm")
    parser.add_argument("--warmup", type=int, default=5, help="steps of each arm before; the first compiles")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--norms", nargs="+", choices=tuple(NORMS), default=list(NORMS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--images", type=int, default=16, help="batch of vit_small, of 224 x 224 pixels")
    parser.add_argument("--sentences", type=int, default=64, help="batch of iwslt_encoder")
    parser.add_argument("--length", type=int, default=32, help="tokens of a sentence")


def build_model(name: str, norm: str) -> nn.Module:
    """Builds a model in training mode with one of the norms everywhere."""
    torch.manual_seed(0)
    if name == VIT:
        from un.vision.models import create_model

        model = create_model("vit_small_patch16_224")
    else:
        from un.translation.encoder_graph import EncoderGraph
        from un.translation.transformer import build_transformer

        words = make_dictionary(NUM_WORDS)
        form: dict[str, Any] = {"encoder_normalize_before": True, "share_all_embeddings": True, "dropout": 0.0}
        model = EncoderGraph(build_transformer(words, words, **form))
    factory = NORMS[norm](name == VIT)
    if factory is not None:
        replace_norms(model, factory)
    return model.train()


def draw_input(name: str, options: argparse.Namespace) -> Tensor:
    """Returns images (B, 3, 224, 224) or tokens (B, T) without padding."""
    if name == VIT:
        return torch.randn(options.images, 3, 224, 224)
    return torch.randint(4, NUM_WORDS, (options.sentences, options.length))


def make_arm(model: nn.Module, call: Callable[..., Tensor | tuple[Tensor, Tensor]], x: Tensor) -> Callable[[], None]:
    """Returns a step: forward and backward, from a random gradient of the output, so that no gradient is zero."""
    grad: list[Tensor] = []

    def run() -> None:
        model.zero_grad()
        outputs = call(x)
        y = outputs[0] if isinstance(outputs, tuple) else outputs
        if not grad:
            grad.append(torch.randn_like(y))
        y.backward(grad[0])

    return run


def measure(options: argparse.Namespace) -> list[Row]:
    """Returns the median milliseconds of every arm, and the median of its ratio to LayerNorm in the same engine."""
    rows: list[Row] = []
    for name in options.models:
        x = draw_input(name, options)
        arms: dict[str, Callable[[], None]] = {}
        for norm in dict.fromkeys((LAYER_NORM, *options.norms)):
            for engine in options.engines:
                model = build_model(name, norm)
                call = compile_alone(model, norm) if engine == "compiled" else model
                arms[f"{norm} {engine}"] = make_arm(model, call, x)
        seconds = time_interleaved(arms, options.rounds, options.warmup)
        for arm, values in seconds.items():
            norm, engine = arm.split()
            low, median, high = (1e3 * value for value in statistics.quantiles(values, n=4))
            row: Row = {"model": name, "norm": norm, "engine": engine, "ms": median, "ms_quartiles": (low, high)}
            rows.append(row | {"ratio_to_layernorm": compare(values, seconds[f"{LAYER_NORM} {engine}"])})
    return rows
