"""Constants of this machine: memory bandwidth, what norms move and take, and all-reduce over gloo."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.layers import make_layer_arm
from un.finished.timing import measure_call, time_interleaved
from un.norms import UnifiedNorm
from un.reports.result import write_json

COPIED_BYTES = 1 << 28  # ours: far beyond any cache
SHAPE = (8, 197, 384)  # images, tokens and channels of ViT-S; a batch that fits a laptop
SIZES = (4, 1 << 12, 1 << 16, 1 << 20, 1 << 22)  # bytes that are all-reduced
SMALL = 1 << 12  # bytes up to which a call is all latency
WARMUP = 5
TIMEOUT = timedelta(seconds=120)  # for a process that does not turn up
NORMS: Mapping[str, Callable[[int], nn.Module]] = {
    "LayerNorm": nn.LayerNorm,
    "UN": UnifiedNorm,
    "UN, synchronised": partial(UnifiedNorm, sync=True),  # the same where there is one process
}


def measure_bandwidth(rounds: int) -> float:
    """Bytes per second that a copy reads and writes together."""
    source = torch.ones(COPIED_BYTES // 4)
    target = torch.empty_like(source)
    seconds = time_interleaved({"copy": lambda: target.copy_(source)}, rounds, WARMUP, measure_work)
    return 2 * COPIED_BYTES / statistics.median(seconds["copy"])


def measure_work(run: Callable[[], object]) -> float:
    """Seconds that this process computes, with one thread: what else runs on the machine hardly counts."""
    start = process_time()
    run()
    return process_time() - start


def take_fast(seconds: Sequence[float]) -> float:
    """The 5th percentile, for processes that wait for each other and, on a busy machine, for their turns."""
    return statistics.quantiles(seconds, n=20, method="inclusive")[0]


class TrafficCounter(TorchDispatchMode):
    """Adds up the bytes that operators read and write.

    Each input and output of an operator is one pass over it, which is what the best kernel of its kind needs. Views
    cost nothing.

    Args:
        threshold: bytes below which a tensor is not counted: weights and statistics.
    """

    def __init__(self, threshold: int) -> None:
        super().__init__()
        self.threshold, self.bytes = threshold, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read, written = _measure_sizes((args, kwargs)), _measure_sizes(result)
        if read and not func.is_view:  # without an input it is an allocation
            self.bytes += sum(size for size in (*read.values(), *written.values()) if size >= self.threshold)
        return result


def _measure_sizes(tree: Any) -> dict[int, int]:
    """Bytes by address of the tensors in a tree."""
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}


def count_traffic(build: Callable[[int], nn.Module], dtype: torch.dtype) -> dict[str, float]:
    """Bytes per value of x that a norm's forward and backward move, and that it saves from one for the other."""
    norm, x = build(SHAPE[-1]).to(dtype), torch.randn(SHAPE, dtype=dtype, requires_grad=True)
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            saved.update(_measure_sizes(tensor))
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        norm(x)
    with TrafficCounter(x.numel()) as forward:
        y = norm(x)
    grad = torch.ones_like(y)
    with TrafficCounter(x.numel()) as backward:
        y.backward(grad)
    sizes = {"forward": forward.bytes, "backward": backward.bytes, "saved": sum(saved.values())}
    return {name: size / x.numel() for name, size in sizes.items()}


def time_norms(
    rounds: int,
    names: Sequence[str],
    measure: Callable[[Callable[[], object]], float],
    choose: Callable[[Sequence[float]], float],
) -> dict[str, float]:
    """Seconds of forward plus backward by name, `choose` of all rounds."""
    x, grad = torch.randn(SHAPE, requires_grad=True), torch.randn(SHAPE)
    arms = {name: make_layer_arm(NORMS[name](SHAPE[-1]), x, grad) for name in names}
    return {name: choose(values) for name, values in time_interleaved(arms, rounds, WARMUP, measure).items()}


def measure_processes(count: int, rounds: int) -> dict[str, Any]:
    """All-reduce over gloo, and UN with and without it, in `count` processes of one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_work, (count, Path(folder), rounds), nprocs=count, start_method="spawn")
        return json.loads((Path(folder) / "measured.json").read_text())


def _work(rank: int, count: int, folder: Path, rounds: int) -> None:
    """Measures as one process of several; the first writes what it saw."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count, timeout=TIMEOUT)
    buffers = {str(size): torch.zeros(size // 4) for size in SIZES}
    times = time_interleaved({size: partial(dist.all_reduce, x) for size, x in buffers.items()}, rounds, WARMUP)
    seconds = {int(size): take_fast(values) for size, values in times.items()}
    norms = time_norms(rounds, ("UN", "UN, synchronised"), measure_call, take_fast)
    dist.destroy_process_group()
    if rank == 0:
        result = {"processes": count, "all_reduce_seconds": seconds, **fit_line(seconds), "norms": norms}
        write_json(result, folder / "measured.json")


def fit_line(seconds: Mapping[int, float]) -> dict[str, float]:
    """Fits latency + bytes / bandwidth: the median of small sizes, and the way from there to the largest."""
    latency = statistics.median(value for size, value in seconds.items() if size <= SMALL)
    largest = max(seconds)
    return {"latency": latency, "bandwidth": largest / max(seconds[largest] - latency, 1e-9)}
