"""Training steps of whole models: UN and BatchNorm against LayerNorm; forward, loss, backward and optimizer.

Engines: eager; `compile_norms`, the same with UN's own step compiled (`compile=norms` of a run) against LayerNorm
in eager mode; `cuda_graph`, whole steps without the time that the host takes to launch them; `compile`, whole models.
There is no dropout. UN is past its warm-up and compensates. bfloat16 is autocast: weights stay float32.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import Row, make_dictionary
from benchmarks.engines import capture, compile_alone, measure_peak, measure_peak_on_gpu
from benchmarks.inference_models import NUM_WORDS, VISION
from benchmarks.sweep import add_sweep_options, measure_all, settle_options
from un import norms
from un.command.cli import read_count
from un.finished.timing import compare, measure_call, measure_on_gpu, time_interleaved
from un.norms.core.compilation import compile_norms
from un.reports.measurements import (
    BATCH_NORM,
    FOLDERS,
    LAYER_NORM,
    PLANS,
    TRAINED_MODELS,
    TRAINING_ENGINES,
    UN,
    Setting,
    Stage,
    combine_settings,
    plan_settings,
)
from un.reports.rendering import format_table
from un.surgery import NormFactory, replace_norms

NUM_CLASSES, LEARNING_RATE = 1000, 1e-5  # which no one looks at
# As in the paper, UN filters in vision and not in language.
NORMS: dict[str, Callable[[bool], NormFactory | None]] = {
    LAYER_NORM: lambda filtration: None,
    UN: lambda filtration: partial(norms.UnifiedNorm, warmup_steps=0, compensation_start=0, filtration=filtration),
    BATCH_NORM: lambda filtration: norms.BatchNorm,
}


class Batch(NamedTuple):
    """The model's arguments, and the classes of its logits (..., classes)."""

    inputs: tuple[Tensor, ...]
    target: Tensor


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    add_sweep_options(parser, Path("runs") / FOLDERS["training"])
    parser.add_argument("--models", nargs="+", choices=TRAINED_MODELS, default=list(TRAINED_MODELS))
    parser.add_argument("--engines", nargs="+", choices=TRAINING_ENGINES, help="default, also below: what is planned")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"))
    parser.add_argument("--batches", nargs="+", type=read_count, help="images, or sentences")
    parser.add_argument("--length", type=read_count, default=32, help="tokens of a sentence")


def measure(options: argparse.Namespace) -> list[Row]:
    """Measures what was asked for, as far as the budget goes; returns a row for each arm that was measured now."""
    settle_options(options)
    rows: list[Row] = []

    def measure_setting(setting: Setting) -> dict[str, Any]:
        found = measure_steps(setting, options)
        about = {key: getattr(setting, key) for key in ("model", "engine", "device", "dtype", "batch")}
        for arm, entry in found["arms"].items():
            times = {"ms": 1e3 * entry["seconds"], "ratio": entry["ratio_to_layernorm"]}
            rows.append({**about, "norm": arm, **times, "peak_megabytes": entry["peak_megabytes"]})
        return found

    measure_all(list_settings(options), measure_setting, options)
    return rows


def show(rows: list[Row], options: argparse.Namespace) -> None:
    if rows:
        print(format_table(rows[0], [row.values() for row in rows]))


def list_settings(options: argparse.Namespace) -> list[Setting]:
    """Returns what is planned, or the product of what was asked for; the rest of it is as in the first plan."""
    if not (options.engines or options.dtypes or options.batches):
        return plan_settings(options.models, options.device, "training")
    first = PLANS["training"][options.device][0]
    choices = (options.engines or first.engines, options.dtypes or first.dtypes, options.batches or first.batches)
    return combine_settings("training", options.device, Stage(*choices, options.models))


def measure_steps(setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """Builds a model with each norm and times its steps."""
    on_gpu = setting.device == "cuda"
    batch = draw_batch(setting, options.length)
    arms: dict[str, Callable[[], Any]] = {}
    peaks: dict[str, float] = {}
    for norm in NORMS:
        if norm == BATCH_NORM and setting.engine == "compile_norms":
            continue
        model = build_model(setting.model, norm).to(setting.device)
        call: Callable[..., Any] = model
        if setting.engine == "compile":
            call = compile_alone(model, norm)
        elif setting.engine == "compile_norms":
            compile_norms(model)
        step = make_step(model, call, batch, setting)
        step()  # compiles, and makes the state of the optimizer
        if setting.engine == "cuda_graph":
            model.zero_grad()  # gradients belong to the graph
            arms[norm], peaks[norm], _ = capture(step)
        else:
            arms[norm], peaks[norm] = step, (measure_peak_on_gpu if on_gpu else measure_peak)(step)
    timer = measure_on_gpu if on_gpu else measure_call
    seconds = time_interleaved(arms, options.rounds, options.warmup, timer, options.seconds)
    return {
        **{key: getattr(options, key) for key in ("warmup", "threads", "length")},
        "rounds": len(seconds[LAYER_NORM]),
        "arms": {
            norm: {
                "seconds": statistics.median(values),
                "seconds_quartiles": statistics.quantiles(values, n=4) if len(values) > 1 else values * 3,
                "peak_megabytes": peaks[norm],
                "ratio_to_layernorm": compare(values, seconds[LAYER_NORM]),
            }
            for norm, values in seconds.items()
        },
    }


def build_model(name: str, norm: str) -> nn.Module:
    """Builds a model in training mode with one of the norms everywhere."""
    torch.manual_seed(0)
    if name in VISION:
        from un.vision.models import create_model

        model = create_model(VISION[name])
    else:
        from un.translation.transformer import build_transformer

        words = make_dictionary(NUM_WORDS)
        form: dict[str, Any] = {"encoder_normalize_before": True, "share_all_embeddings": True, "dropout": 0.0}
        model = build_transformer(words, words, **form)
    factory = NORMS[norm](name in VISION)
    if factory is not None:
        replace_norms(model, factory)
    return model.train()


def draw_batch(setting: Setting, length: int) -> Batch:
    """Returns images (B, 3, 224, 224), or tokens (B, T) without padding, as source and as target."""
    size, device = setting.batch, setting.device
    if setting.model in VISION:
        images = torch.randn(size, 3, 224, 224, device=device)
        return Batch((images,), torch.randint(NUM_CLASSES, (size,), device=device))
    source, previous, target = torch.randint(4, NUM_WORDS, (3, size, length), device=device).unbind()
    return Batch((source, torch.full((size,), length, device=device), previous), target)


def make_step(model: nn.Module, call: Callable[..., Any], batch: Batch, setting: Setting) -> Callable[[], None]:
    """Returns a step of AdamW on one batch, which is also right for a CUDA graph."""
    on_gpu = setting.device == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, fused=on_gpu, capturable=on_gpu)

    def step() -> None:
        optimizer.zero_grad()
        # A cache of cast weights would be made once, at the capture of a graph, and never again.
        mixed = setting.dtype != "float32"
        with torch.autocast(
            setting.device, torch.bfloat16, enabled=mixed, cache_enabled=setting.engine != "cuda_graph"
        ):
            outputs = call(*batch.inputs)
            logits = outputs[0] if isinstance(outputs, tuple) else outputs
            loss = F.cross_entropy(logits.flatten(0, -2), batch.target.flatten())
        loss.backward()
        optimizer.step()

    return step
