"""Inference of whole models: folded UN against LayerNorm, and identity instead of every norm as the lower bound.

Every combination of model, engine, device and batch is one JSON file in the folder, so the table can be measured piece
by piece; it shows all files of the folder. Before arms are timed, folded and unfolded outputs are compared within the
engine, and with those of eager PyTorch.

LayerNorm is there twice. Native is torch's fused kernel in eager mode and the operator LayerNormalization in
onnxruntime; elementary is nine kernels in eager mode, and fused by onnxruntime where it can. Inductor compiles both,
and fuses them with what surrounds them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import Row
from benchmarks.inference_models import ARMS, IDENTITY, UNFOLDED, Workload, build_workload
from un.command.cli import read_count
from un.finished.timing import compare, measure_call, measure_on_gpu, time_interleaved
from un.folding.verify import list_tensors, measure_difference
from un.reports.measurements import BATCHES, ENGINES, FOLDED, FOLDER, LAYER_NORM, MODELS, Setting, find_obstacle
from un.reports.rendering import format_table
from un.reports.result import write_json
from un.training.environment import describe_git, describe_hardware, list_packages

TOLERANCES = {"float32": 1e-4, "float16": 2e-2}  # relative difference of outputs
RECORDED = ("device", "dtype", "rounds", "warmup", "threads", "length", "steps")  # options
HEADER = ("model", "engine", "device", "dtype", "batch", *(f"{arm} ms" for arm in ARMS))
HEADER += ("folded / layernorm", "identity / layernorm", "folded / identity")
Call = Callable[[], Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--batches", nargs="+", type=read_count, help="default: 1 8 on a CPU, 1 64 256 on a GPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device)
    parser.add_argument("--dtype", choices=tuple(TOLERANCES), default="float32", help="float16 not with onnxruntime")
    parser.add_argument("--rounds", type=read_count, default=200, help="timed calls of each arm")
    parser.add_argument("--warmup", type=int, default=50, help="calls of each arm before")
    parser.add_argument("--length", type=read_count, default=32, help="tokens of a source sentence")
    parser.add_argument("--steps", type=read_count, default=32, help="tokens of a translation without its end")
    parser.add_argument("--folder", type=Path, default=Path("runs") / FOLDER, help="of the results")
    parser.add_argument("--table", action="store_true", help="measure nothing, show what the folder holds")


def measure(options: argparse.Namespace) -> list[Row]:
    """Measures every combination that was asked for; returns a row for each arm in the folder."""
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if not options.table:
        for name, batch in product(options.models, options.batches or BATCHES[options.device]):
            workload = None
            for engine in options.engines:
                obstacle = find_obstacle(name, engine, options.device, options.dtype)
                if obstacle:
                    print(f"{name} in {engine}: not measured, {obstacle}", file=sys.stderr)
                    continue
                workload = workload or build_workload(name, batch, options, torch.device(options.device))
                result = measure_engine(name, engine, batch, workload, options)
                setting = Setting(name, engine, options.device, options.dtype, batch)
                write_json(result, options.folder / setting.file)
    return read_rows(options.folder)


def read_rows(folder: Path) -> list[Row]:
    """Returns a row for every arm of every file.

    Raises:
        ValueError: there is no file.
    """
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*-batch=*.json"))]
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
        times = [f"{1e3 * arms[arm]['seconds']:.3g}" for arm in ARMS]
        folded, identity = arms[FOLDED], arms[IDENTITY]
        ratios = (folded["ratio_to_layernorm"], identity["ratio_to_layernorm"], folded["ratio_to_identity"])
        lines.append([*setting, *times, *(f"{ratio:.3f}" for ratio in ratios)])
    return format_table(HEADER, lines)


def measure_engine(
    name: str, engine: str, batch: int, workload: Workload, options: argparse.Namespace
) -> dict[str, Any]:
    """Checks and times all arms of a model in one engine."""
    cuda = options.device == "cuda"
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        calls, operators = prepare_calls(engine, workload, Path(folder))
        checks = check_outputs(workload, calls, TOLERANCES[options.dtype])
        peaks = {arm: None if engine == "onnxruntime" else measure_peak(call, cuda) for arm, call in calls.items()}
        timer = measure_on_gpu if cuda else measure_call
        seconds = time_interleaved(calls, options.rounds, options.warmup, timer)
    label, items = workload.items
    arms = {}
    for arm, values in seconds.items():
        twentieths = statistics.quantiles(values, n=20, method="inclusive") if len(values) > 1 else values * 2
        arms[arm] = {
            "seconds": statistics.median(values),
            "seconds_p5": twentieths[0],
            "seconds_p95": twentieths[-1],
            f"{label}_per_second": items / statistics.median(values),
            "peak_megabytes": peaks[arm],
            "ratio_to_layernorm": compare(values, seconds[LAYER_NORM]),
            "ratio_to_identity": compare(values, seconds[IDENTITY]),
            "operators": operators.get(arm),
        }
    return {
        "model": name,
        "engine": engine,
        "batch": batch,
        **{key: getattr(options, key) for key in RECORDED},
        "checks": checks,
        "arms": arms,
        "hardware": describe_hardware(),
        "packages": list_packages(),
        "git": describe_git(),
    }


def prepare_calls(engine: str, workload: Workload, folder: Path) -> tuple[dict[str, Call], dict[str, dict[str, int]]]:
    """Returns what is timed of every arm, and the operators of its graph where there is one."""
    operators: dict[str, dict[str, int]] = {}
    calls: dict[str, Call] = {}
    for arm, model in workload.models.items():
        if engine == "onnxruntime":
            from un.finished.onnx_graph import GraphSession, count_operators, write_graph

            path = folder / f"{arm}.onnx"
            with torch.inference_mode(False):
                write_graph(workload.cut_graph(arm), path)
            operators[arm] = count_operators(path)
            session = GraphSession(path)
            calls[arm] = partial(session.session.run, None, session.make_feed(workload.inputs.values()))
        elif engine == "compile":
            calls[arm] = partial(workload.run, compile_alone(model, arm))
        else:
            calls[arm] = partial(workload.run, model)
    return calls, operators


def compile_alone(model: nn.Module, arm: str) -> Callable[..., Any]:
    """Compiles a model so that its calls do not go through the guards of other arms, which share its class's code."""

    def call(*inputs: Tensor) -> Any:
        return model(*inputs)

    code = call.__code__.replace(co_name=f"call_{arm}")
    return torch.compile(types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__))


def check_outputs(workload: Workload, calls: Mapping[str, Call], tolerance: float) -> dict[str, Any]:
    """Compares folded with unfolded UN, and both with eager PyTorch; notes where identity overflows.

    Raises:
        ValueError: they differ by more than rounding.
    """
    finished = {arm: list(read_tensors(workload.finish(arm))) for arm in (UNFOLDED, FOLDED)}
    found = {"folded and unfolded": measure_difference(finished[UNFOLDED], finished[FOLDED])}
    for arm in (UNFOLDED, FOLDED):
        eager, here = (list(read_tensors(outputs)) for outputs in (workload.run(workload.models[arm]), calls[arm]()))
        found[f"{arm} here and in eager"] = measure_difference(eager, here)
    for what, difference in found.items():
        if not difference <= tolerance:
            raise ValueError(f"outputs of {what} differ by {difference:.1e} of the largest")
    identity = read_tensors(calls[IDENTITY]())
    return {"differences": found, "identity_finite": all(bool(tensor.isfinite().all()) for tensor in identity)}


def read_tensors(outputs: Any) -> Iterator[Tensor]:
    """Yields the tensors in whatever an engine returns."""
    for output in outputs if isinstance(outputs, list | tuple) else [outputs]:
        yield from list_tensors(output if isinstance(output, Tensor) else torch.as_tensor(output))


def measure_peak(call: Call, cuda: bool) -> float:
    """Returns the most megabytes of torch's memory that a call holds beside what was held before it."""
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None
    events: Any = profiler.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 1e6
