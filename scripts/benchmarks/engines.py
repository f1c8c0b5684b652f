"""What the inference benchmark calls: a model in each engine, and the memory that a call takes.

Layer normalisation is there twice. Native is torch's fused kernel in eager mode and the operator LayerNormalization in
onnxruntime; elementary is nine kernels in eager mode, and fused by onnxruntime where it can. Inductor compiles both,
and fuses them with what surrounds them.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.inference_models import Workload

CAPTURE_WARMUP = 3  # calls on the capturing stream beforehand, as torch's notes on CUDA graphs advise
MEGABYTE = 1e6
Call = Callable[[], Any]


class Prepared(NamedTuple):
    """An arm in an engine.

    Attributes:
        call: what is timed.
        peak_megabytes: the most that a call holds beside what was there before; None where it is not known.
        operators: of its graph, where there is one that can be read.
    """

    call: Call
    peak_megabytes: float | None
    operators: dict[str, int] | None = None


def prepare(engine: str, dtype: str, workload: Workload, arm: str, folder: Path) -> Prepared:
    """Makes an arm ready to be timed.

    Args:
        engine: see `un.reports.measurements`.
        dtype: as there; int8 is quantised here, other types the workload has already.
        workload: its inputs are on the device.
        arm: one of its models.
        folder: for files of graphs.
    """
    model, device = workload.models[arm], next(iter(workload.inputs.values())).device
    call = partial(workload.run, model)
    if engine == "onnxruntime":
        return prepare_graph(workload, arm, folder, quantized=dtype == "int8")
    if engine == "compile":
        call = partial(workload.run, compile_alone(model, arm))
    call()  # compiles; loads kernels; fills caches of the libraries
    if engine == "cuda_graph":
        return capture(call)
    return Prepared(call, measure_peak_on_gpu(call) if device.type == "cuda" else measure_peak(call))


def prepare_graph(workload: Workload, arm: str, folder: Path, *, quantized: bool) -> Prepared:
    """Exports an arm for onnxruntime, with int8 weights in linear layers if `quantized` (dynamic ranges)."""
    from un.finished.onnx_graph import GraphSession, count_operators, quantize_graph, write_graph

    path = folder / f"{arm}.onnx"
    with torch.inference_mode(False):
        write_graph(workload.cut_graph(arm), path)
    if quantized:
        exported, path = path, folder / f"{arm}_int8.onnx"
        quantize_graph(exported, path)
    session = GraphSession(path)
    call = partial(session.session.run, None, session.make_feed(workload.inputs.values()))
    return Prepared(call, None, count_operators(path))


def compile_alone(model: nn.Module, arm: str) -> Callable[..., Any]:
    """Compiles a model so that its calls do not go through the guards of other arms, which share its class's code."""

    def call(*inputs: Tensor) -> Any:
        return model(*inputs)

    code = call.__code__.replace(co_name=f"call_{arm}")
    return torch.compile(types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__))


def capture(call: Call) -> Prepared:
    """Captures a call, whose inputs stay where they are, as a CUDA graph; its memory is that of the capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(CAPTURE_WARMUP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    held: list[Any] = [call]  # a graph keeps nothing alive of what it reads: model, optimizer, inputs

    def record() -> None:
        with torch.cuda.graph(graph, stream=stream):  # the libraries' workspaces belong to this stream
            held.append(call())

    peak = measure_peak_on_gpu(record)

    def replay() -> Any:
        graph.replay()
        return held[-1]

    return Prepared(replay, peak)


def measure_peak_on_gpu(call: Call) -> float:
    """Returns the most megabytes of torch's memory that a call holds beside what was held before it."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MEGABYTE


def measure_peak(call: Call) -> float:
    """Returns the same on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None
    events: Any = profiler.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / MEGABYTE
