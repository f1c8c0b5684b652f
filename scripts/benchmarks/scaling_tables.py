"""The tables of docs/scaling.md."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.scaling_machine import SHAPE
from benchmarks.scaling_model import FLOAT, Cluster, Workload, list_messages, predict

GPUS = (1, 8, 16, 64, 256, 1024)
IMAGES = (1, 2, 8, 32, 128, 1024)  # of one batch; several processes with sync share one
TOKENS = 197  # of an image in ViT-S
WINDOW = 4  # batches that UN averages over
# Bytes per value in float32, forward and backward, where every pass is one kernel that reads its inputs once: reduce,
# apply, and both again. LayerNorm's forward keeps a row in registers; on a GPU its backward reads both inputs twice,
# the second time for the gradients of weight and bias (layer_norm_kernel.cu of torch).
ON_GPU = {
    "LayerNorm, as on a GPU": (2 * FLOAT, (3 + 2) * FLOAT),
    "UN, one kernel a pass": ((1 + 2) * FLOAT, (2 + 3) * FLOAT),
}


def render_tables(
    machine: Mapping[str, Any], workloads: Sequence[Workload], cluster: Cluster, processes: Mapping[str, Any] | None
) -> str:
    """Returns all tables in Markdown, each with a heading."""
    sections = {
        "Memory traffic of a norm": describe_traffic(machine),
        "What the models hold and send": describe_models(workloads),
        "Predicted: what more UN moves than LayerNorm, on one GPU": describe_traffic_times(workloads, machine, cluster),
        "Predicted: what norms send, by the number of GPUs": describe_predictions(workloads, cluster),
        "Noise of the second moment": describe_noise(),
        "Measured on this machine": describe_machine(machine),
    }
    if processes is not None:
        sections["Training steps of several processes on this machine"] = describe_processes(processes)
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in sections.items()) + "\n"


def sum_traffic(machine: Mapping[str, Any], norm: str) -> float:
    """Bytes per value that a norm moves in forward and backward, in float32."""
    found = machine["traffic"]["float32"][norm]
    return float(found["forward"] + found["backward"])


def describe_traffic(machine: Mapping[str, Any]) -> str:
    """Bytes per value of x that each norm moves, counted operator by operator, and derived for a GPU."""
    rows = []
    for dtype, norms in machine["traffic"].items():
        for name, found in norms.items():
            sizes = (found["forward"], found["backward"], found["forward"] + found["backward"])
            rows.append([f"{name}, {dtype}", *(f"{size:.0f}" for size in sizes), f"{found['saved']:.2f}"])
    for name, (forward, backward) in ON_GPU.items():
        rows.append([f"{name}, float32", str(forward), str(backward), str(forward + backward), ""])
    return tabulate(["bytes per value", "forward", "backward", "both", "saved in between"], rows)


def describe_models(workloads: Sequence[Workload]) -> str:
    """Counts of the models."""
    rows = []
    for one in workloads:
        messages = list_messages(one.channels)
        cells = [f"{one.title}, {one.batch}", str(len(one.channels)), f"{one.values / 1e6:.0f}"]
        cells += [f"{one.norm_bytes / 1e6:.2f}", f"{len(messages)}", f"{sum(messages) / 1e6:.2f}"]
        rows.append([*cells, f"{FLOAT * one.parameters / 1e6:.0f}"])
    header = ["model, batch of a GPU", "norms", "values normed, millions", "state, MB", "messages with sync"]
    return tabulate([*header, "these, MB", "gradients, MB"], rows)


def describe_traffic_times(workloads: Sequence[Workload], machine: Mapping[str, Any], cluster: Cluster) -> str:
    """What more UN moves than LayerNorm, as time on one GPU."""
    layer_norm, fused = (sum(sizes) for sizes in ON_GPU.values())
    eager = sum_traffic(machine, "UN")
    rows = []
    for one in workloads:
        step = predict(one, cluster, 1)["compute"]
        more = [one.values * (size - layer_norm) / cluster.memory for size in (eager, fused)]
        rows.append([one.title, f"{1e3 * step:.0f} ms", *(_show(seconds, step) for seconds in more)])
    return tabulate(["", "step without norms", "UN, eager", "UN, one kernel a pass"], rows)


def describe_predictions(workloads: Sequence[Workload], cluster: Cluster) -> str:
    """What communication adds to a step."""
    parts = {"sync": "sync=true", "broadcast": "DDP's broadcast", "gradients": "gradients"}
    rows = []
    for one in workloads:
        predicted = [predict(one, cluster, gpus) for gpus in GPUS]
        for part, label in parts.items():
            rows.append([f"{one.title}: {label}", *(_show(times[part], times["compute"]) for times in predicted)])
    return tabulate(["", *map(str, GPUS)], rows)


def describe_noise() -> str:
    """Standard deviation of a batch's second moment, in units of the moment, for Gaussian channels: sqrt(2 / n)."""
    rows = []
    for label, tokens, window in (
        ("tokens of an image all agree", 1, 1),
        ("tokens are independent", TOKENS, 1),
        (f"all agree, window of {WINDOW}", 1, WINDOW),
        (f"independent, window of {WINDOW}", TOKENS, WINDOW),
    ):
        rows.append([label, *(f"{math.sqrt(2 / (images * tokens * window)):.1%}" for images in IMAGES)])
    return tabulate(["images in a batch", *map(str, IMAGES)], rows)


def describe_machine(machine: Mapping[str, Any]) -> str:
    """Constants of the machine at hand, and how the model of an all-reduce fares there."""
    norms, moved = machine["norms"], {name: sum_traffic(machine, name) for name in machine["norms"]}
    times = [f"{name} {1e3 * seconds:.2f} ms" for name, seconds in norms.items()]
    ratios = [norms["UN"] / norms["LayerNorm"], moved["UN"] / moved["LayerNorm"]]
    text = (
        f"{machine['hardware']['cpu']}, {machine['cores']} cores, one thread a process, {machine['rounds']} rounds."
        f" By the processor's time, medians: a copy moves {machine['bandwidth'] / 1e9:.1f} GB/s;"
        f" forward and backward of {SHAPE} in float32: {', '.join(times)}; ratio {ratios[0]:.2f}, and {ratios[1]:.2f}"
        f" by the counted traffic. By the clock, 5th percentiles, under a load of {machine['load']:.1f}:"
    )
    rows = []
    for found in machine["processes"]:
        local, sync = (found["norms"][name] for name in ("UN", "UN, synchronised"))
        predicted = sum(found["latency"] + size / found["bandwidth"] for size in list_messages([SHAPE[-1]]))
        cells = [found["latency"] * 1e3, found["bandwidth"] / 1e6, local * 1e3, sync * 1e3, predicted * 1e3]
        rows.append([str(found["processes"]), *(f"{cell:.2f}" for cell in cells)])
    header = ["processes (gloo)", "latency, ms", "bandwidth, MB/s", "UN, ms", "UN with sync, ms"]
    return f"{text}\n\n{tabulate([*header, 'its two messages by the model, ms'], rows)}"


def describe_processes(processes: Mapping[str, Any]) -> str:
    """Whole training steps, from scripts/benchmark.py processes."""
    rows = [{key: value for key, value in row.items() if "quart" not in key} for row in processes["rows"]]
    return tabulate([key.replace("_", " ") for key in rows[0]], [list(map(_write, row.values())) for row in rows])


def _show(seconds: float, step: float) -> str:
    """Milliseconds, and their share of a step."""
    return f"{1e3 * seconds:.2f} ms, {seconds / step:.1%}" if seconds else "–"


def _write(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def tabulate(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
