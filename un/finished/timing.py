"""Fair timing: arms take turns, so that a change of the machine's speed meets all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import torch


def measure_call(run: Callable[[], object]) -> float:
    """Seconds of a call by the clock on the wall."""
    start = perf_counter()
    run()
    return perf_counter() - start


def measure_on_gpu(run: Callable[[], object]) -> float:
    """Seconds from a call's first kernel to its last, by events of the current CUDA device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def time_interleaved(
    arms: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int,
    measure: Callable[[Callable[[], object]], float] = measure_call,
) -> dict[str, list[float]]:
    """Seconds of every call of every arm, one of each in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for index in range(warmup + rounds):
        for name, run in arms.items():
            elapsed = measure(run)
            if index >= warmup:
                seconds[name].append(elapsed)
    return seconds


def compare(values: Sequence[float], base: Sequence[float]) -> float:
    """Median of the ratios of calls that followed each other."""
    return statistics.median(a / b for a, b in zip(values, base, strict=True))
