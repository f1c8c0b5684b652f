"""Inference of whole models: folded UN against LayerNorm, and identity instead of every norm as the lower bound.

Every combination of model, engine, device, type and batch is one JSON file in the folder, so the table can be measured
piece by piece; it shows all files of the folder. Before arms are timed, folded and unfolded outputs are compared within
the engine, and with those of eager PyTorch.

float16 and bfloat16 are models whose weights have that type, as a deployer's would; the statistics of norms stay
float32. float32 is without TF32. int8 has 8-bit weights in linear layers, whose inputs are quantised at each call.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Row
from benchmarks.engines import Prepared, prepare
from benchmarks.inference_models import ARMS, UNFOLDED, Workload, build_workload, building_ahead
from benchmarks.sweep import add_sweep_options, is_measured, measure_all, settle_options
from un.command.cli import read_count
from un.finished.timing import compare, measure_call, measure_on_gpu, time_interleaved
from un.folding.verify import list_tensors, measure_difference
from un.reports.measurements import (
    DTYPES,
    ENGINES,
    FOLDED,
    FOLDERS,
    IDENTITY,
    LAYER_NORM,
    MODELS,
    PLANS,
    Setting,
    Stage,
    combine_settings,
    find_obstacle,
    plan_settings,
)
from un.reports.rendering import format_table

# Largest relative difference of outputs; halves and integers round at every layer. Others are only recorded: int8, and
# a search in half precision, which may take another turn.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 0.15}
COMPILED_ARMS = (LAYER_NORM, FOLDED, IDENTITY)  # the others become the same kernels, and compiling takes long
RECORDED = ("rounds", "warmup", "threads", "length", "steps")  # options
HEADER = ("model", "engine", "device", "dtype", "batch", *(f"{arm} ms" for arm in ARMS))
HEADER += ("folded / layernorm", "identity / layernorm", "folded / identity")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    add_sweep_options(parser, Path("runs") / FOLDERS["inference"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, help="default, also of the next two: what is planned")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES)
    parser.add_argument("--batches", nargs="+", type=read_count)
    parser.add_argument("--length", type=read_count, default=32, help="tokens of a source sentence")
    parser.add_argument("--steps", type=read_count, default=32, help="tokens of a translation without its end")
    parser.add_argument("--table", action="store_true", help="measure nothing, show what the folder holds")


def measure(options: argparse.Namespace) -> list[Row]:
    """Measures what was asked for, as far as the budget goes; returns a row for each arm in the folder."""
    settle_options(options)
    latest: dict[tuple[str, int, str], Workload] = {}  # engines come one after the other for one workload

    def measure_setting(setting: Setting) -> dict[str, Any]:
        key = (setting.model, setting.batch, setting.dtype)
        if key not in latest:
            latest.clear()
            latest[key] = build_workload(*key, options)
        return measure_workload(setting, latest[key], options)

    if not options.table:
        settings = [
            one for one in list_settings(options) if options.again or not is_measured(options.output / one.file)
        ]
        is_quick = options.device == "cuda" and settings
        with building_ahead(one.model for one in settings) if is_quick else contextlib.nullcontext():
            measure_all(settings, measure_setting, options)
    return read_rows(options.output)


def list_settings(options: argparse.Namespace) -> list[Setting]:
    """Returns what is planned, or the product of what was asked for; the rest of it is as in the first plan."""
    if not (options.engines or options.dtypes or options.batches):
        return plan_settings(options.models, options.device)
    first = PLANS["inference"][options.device][0]
    engines, dtypes = options.engines or first.engines, options.dtypes or ("float32",)
    for engine in engines:
        for dtype in dtypes:
            reasons = {find_obstacle(model, engine, options.device, dtype) for model in options.models} - {""}
            for reason in reasons:
                print(f"{engine} {dtype}: not everything is measured, {reason}", file=sys.stderr)
    stage = Stage(engines, dtypes, options.batches or first.batches, options.models)
    return combine_settings("inference", options.device, stage)


def read_rows(folder: Path) -> list[Row]:
    """Returns a row for every arm of every file.

    Raises:
        ValueError: there is no file.
    """
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*-batch=*.json"))]
    results = [result for result in results if "failure" not in result]
    if not results:
        raise ValueError(f"{folder} holds no results: measure without --table first")
    keys = ("model", "engine", "device", "dtype", "batch", "threads", "rounds")
    return [
        {**{key: result[key] for key in keys}, "arm": arm, **found}
        for result in results
        for arm, found in result["arms"].items()
    ]


def show(rows: list[Row], options: argparse.Namespace) -> None:
    print(render_table(rows))


def render_table(rows: Sequence[Row]) -> str:
    """Returns folded UN against LayerNorm: median milliseconds, and medians of the ratios of adjacent calls."""
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        setting = tuple(row[key] for key in ("model", "engine", "device", "dtype", "batch"))
        groups.setdefault(setting, {})[row["arm"]] = row
    lines = []
    for setting, arms in groups.items():
        times = [f"{1e3 * arms[arm]['seconds']:.3g}" if arm in arms else "" for arm in ARMS]
        folded, identity = arms[FOLDED], arms[IDENTITY]
        ratios = (folded["ratio_to_layernorm"], identity["ratio_to_layernorm"], folded["ratio_to_identity"])
        lines.append([*setting, *times, *(f"{ratio:.3f}" for ratio in ratios)])
    return format_table(HEADER, lines)


def measure_workload(setting: Setting, workload: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """Checks and times all arms of a model in one engine."""
    arms = [arm for arm in ARMS if setting.engine != "compile" or arm in COMPILED_ARMS]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        prepared = {arm: prepare(setting.engine, setting.dtype, workload, arm, Path(folder)) for arm in arms}
        checks = check_outputs(workload, prepared, setting)
        timer = measure_on_gpu if setting.device == "cuda" else measure_call
        calls = {arm: one.call for arm, one in prepared.items()}
        seconds = time_interleaved(calls, options.rounds, options.warmup, timer, options.seconds)
    return {
        **{key: getattr(options, key) for key in RECORDED},
        "rounds": len(seconds[LAYER_NORM]),
        "checks": checks,
        "arms": {arm: describe_arm(arm, prepared[arm], seconds, workload) for arm in arms},
    }


def describe_arm(
    arm: str, prepared: Prepared, seconds: Mapping[str, Sequence[float]], workload: Workload
) -> dict[str, Any]:
    """Returns what a file holds of an arm."""
    values, (label, items) = seconds[arm], workload.items
    twentieths = statistics.quantiles(values, n=20, method="inclusive") if len(values) > 1 else values * 2
    return {
        "seconds": statistics.median(values),
        "seconds_p5": twentieths[0],
        "seconds_p95": twentieths[-1],
        f"{label}_per_second": items / statistics.median(values),
        "peak_megabytes": prepared.peak_megabytes,
        "weights_megabytes": count_weights(workload.models[arm]),
        "ratio_to_layernorm": compare(values, seconds[LAYER_NORM]),
        "ratio_to_identity": compare(values, seconds[IDENTITY]),
        "operators": prepared.operators,
    }


def count_weights(model: torch.nn.Module) -> float:
    """Returns the megabytes of a model's parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) / 1e6


def check_outputs(workload: Workload, prepared: Mapping[str, Prepared], setting: Setting) -> dict[str, Any]:
    """Compares folded with unfolded UN, and what was prepared with eager PyTorch; notes where identity overflows.

    Raises:
        ValueError: they differ by more than rounding.
    """
    finished = {arm: list(read_tensors(workload.finish(arm))) for arm in (UNFOLDED, FOLDED)}
    found = {"folded and unfolded": measure_difference(finished[UNFOLDED], finished[FOLDED])}
    for arm in prepared.keys() & {LAYER_NORM, UNFOLDED, FOLDED} if setting.engine != "eager" else ():
        eager, here = workload.run(workload.models[arm]), prepared[arm].call()
        found[f"{arm} here and in eager"] = measure_difference(list(read_tensors(eager)), list(read_tensors(here)))
    can_turn = setting.model == "iwslt_beam5" and setting.dtype != "float32"
    tolerance = math.inf if can_turn else TOLERANCES.get(setting.dtype, math.inf)
    for what, difference in found.items():
        if not difference <= tolerance:
            raise ValueError(f"outputs of {what} differ by {difference:.1e} of the largest")
    identity = read_tensors(prepared[IDENTITY].call())
    return {"differences": found, "identity_finite": all(bool(tensor.isfinite().all()) for tensor in identity)}


def read_tensors(outputs: Any) -> Iterator[Tensor]:
    """Yields the tensors in whatever an engine returns."""
    for output in outputs if isinstance(outputs, list | tuple) else [outputs]:
        yield from list_tensors(output if isinstance(output, Tensor) else torch.as_tensor(output))
